"""A shorter start: training without `torch.compile` does not import the compiler."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable

import torch

TESTED = ((2, 14), (2, 16))
"""From this version of torch until before that one; others get torch's own optimizers."""


@functools.cache
def eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer without torch's decorators for compiled steps, which import torch's compiler at the first step.

    Measured with torch 2.14.1 on two cores of an AMD EPYC, user and system time, with and without: `import
    trainers.training.loop` takes 1.7 s of CPU and 635 MiB, 3.1 s and 782 MiB with torch._dynamo (medians of 5); a whole
    `train digits.cnn --epochs 1 --workers 0` 7.2 s and 882 MiB, 8.5 s and 1,022 MiB with it (least of 5, 18 %).
    This is for processes that train alone, such as those that run trials: DDP imports torch._dynamo whatever the
    optimizer does, for the same 1.4 s and 148 MiB in each of several workers, at the same time.

    Args:
        kind: SGD, Adam or AdamW.

    Returns:
        A class that derives from `kind` and does the same; `kind` itself where torch's version is not a tested one.
    """
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or not TESTED[0] <= (int(version[1]), int(version[2])) < TESTED[1]:
        return kind
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})
