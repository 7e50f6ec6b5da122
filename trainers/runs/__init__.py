"""What a run leaves behind: its folder, events, figures, and where its numbers come from."""
