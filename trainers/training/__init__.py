"""The training loop and its parts: plain PyTorch, no Ray."""
