"""All that is used of torch and that torch does not promise to keep: private modules and classes without public names.

No other file imports or patches a private name of torch; tests/test_internals.py checks that, and that each of these is
still there. torch has no public names for trees, dispatch modes and fake tensors yet.
"""

from __future__ import annotations

import contextlib
import re

from torch import Tensor, UntypedStorage

# The bases of all normalisation layers, those of other packages among them: tests/training/test_distributed.py,
# test_what_is_made_again_counts_once_and_draws_the_same.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

# Memory traced without a device, this and all below: tests/training/test_peak_memory.py.
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "BatchNorm",
    "NormBase",
    "TorchDispatchMode",
    "fake_tensors",
    "is_view",
    "needs_numbers",
    "storage_key",
    "tree_leaves",
    "tree_map_only",
    "version_of",
    "without_gradient",
]


def fake_tensors() -> contextlib.AbstractContextManager[object]:
    """Tensors that are made in this context have shapes and types, but no memory; others are taken as they are."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def without_gradient(error: str) -> list[int]:
    """Which parameters, by their place among those that are trained, DDP waited for in vain; empty of other errors."""
    # tests/training/test_unused.py: test_a_model_that_uses_other_parameters_in_each_pass_is_named
    if "Expected to have finished reduction in the prior iteration" not in error:
        return []
    found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", error)
    return [int(number) for number in found[1].split()] if found else []


def needs_numbers(error: BaseException) -> bool:
    """Whether an operation failed because fake tensors have no numbers, which it depends on."""
    from torch._subclasses import fake_tensor

    return isinstance(
        error,
        fake_tensor.DataDependentOutputException
        | fake_tensor.DynamicOutputShapeException
        | fake_tensor.UnsupportedFakeTensorException
        | fake_tensor.UnsupportedOperatorException,
    )


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; also of one without memory."""
    return int(tensor._version)


def is_view(tensor: Tensor) -> bool:
    """Whether autograd knows a tensor as a part of another, or as the same in another shape."""
    return tensor._base is not None


def storage_key(storage: UntypedStorage) -> int:
    """What distinguishes a storage from all others that are alive; its address does not, where it has no memory."""
    return int(storage._cdata)
