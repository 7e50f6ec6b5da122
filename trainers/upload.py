"""Arrays of the host to the device that computes, without a wait.

A GPU copies out of page-locked memory by itself, while the host goes on; before a copy out of any other memory the host
may wait until all is done that the device was given so far. So each array goes by way of page-locked memory of its own.
torch's allocator lends that out, and lends it again only when an event of the device says that the copies out of it are
over; nothing writes to it meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.arrays import Array


def upload(values: Array | Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The same numbers on a device, whose later work finds them.

    Args:
        values: An array or tensor of any shape and type. What is there already is returned as it is, or its memory.
        device: The CPU, or a GPU.
        dtype: Of the result, (the same shape); None: that of `values`.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if dtype is not None:
        tensor = tensor.to(dtype)
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # itself where it is page-locked already
    return tensor.to(device, non_blocking=True)


def page_locked(values: Array | Tensor) -> Array | Tensor:
    """A copy that `upload` needs not copy again, for a thread that has the time; what lies on a device, itself."""
    return values if isinstance(values, Tensor) else torch.from_numpy(values).pin_memory().numpy()
