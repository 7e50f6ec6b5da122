"""A task by its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainers.datasets import IGNORED
from trainers.tasks.base import Task
from trainers.tasks.classification import Classify
from trainers.tasks.segmentation import Segment, SegmentBinary


def make(name: str, args: Mapping[str, Any], classes: int, class_weights: Tensor | None) -> Task:
    """The task called `name`. Raises ValueError for arguments that it does not have, or classes it cannot learn."""
    outputs(name, classes)
    try:
        if name == "classify":
            return Classify(classes, class_weights, **args)
        return (SegmentBinary if name == "segment_binary" else Segment)(classes, class_weights, **args)
    except TypeError as error:
        allowed = "label_smoothing" if name == "classify" else "loss, stride, boundary_tolerance"
        raise ValueError(f"task {name!r}: {error}; allowed is {allowed}") from None


def outputs(name: str, classes: int) -> int:
    """How many channels (of images: logits) the task called `name` needs of a model. Raises ValueError."""
    assert name in ("classify", "segment", "segment_binary"), name  # Recipe checks the name
    if name == "segment_binary" and classes != 2:
        raise ValueError(
            f"task 'segment_binary' needs 2 classes, background and foreground; the data has {classes}: "
            "take task 'segment'"
        )
    if name != "classify" and classes > IGNORED:
        raise ValueError(f"task {name!r} knows at most {IGNORED} classes; the data has {classes}")
    return 1 if name == "segment_binary" else classes
