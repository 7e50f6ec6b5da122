"""Where runs run: what fits into which memory."""
