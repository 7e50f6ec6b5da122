"""What is done with a trained model: evaluate, predict, export."""

from __future__ import annotations

from typing import Literal

Views = Literal["flip", "flips", "rotations"]
"""Test-time augmentation, see views.py: of a picture and its mirror image; of both and both upside down; of these four
and all of them turned by 90 degrees."""
