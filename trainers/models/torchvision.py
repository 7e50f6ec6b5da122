"""Any network of torchvision for classes or masks, by name: https://docs.pytorch.org/vision/stable/models.html."""

from __future__ import annotations

import difflib
import fnmatch
import re
from typing import Any

from torch import Tensor, nn

from trainers.models import _weights
from trainers.models._imagenet import fetch

BESIDE = ["AuxLogits", "aux1", "aux2", "aux_classifier"]
"""Outputs of some networks beside their last one, for training; they are left out."""


def build(
    *, image_size: tuple[int, int], channels: int, classes: int, name: str, weights: str | None = None
) -> nn.Module:
    """A network of torchvision: (N, 3, height, width) -> logits (N, classes), of masks (N, classes, height, width).

    Args:
        image_size: Height and width; vision transformers are built for it.
        channels: Of the images: 3.
        classes: Number of classes.
        name: As torchvision lists it, such as convnext_tiny or deeplabv3_resnet50.
        weights: None for random; "hub" for torchvision's DEFAULT ones, downloaded once; a .pth or .safetensors FILE.
            The last layer starts at zero where its number of classes is another.

    Raises:
        ValueError: There is no such network, its arguments do not go together, or the weights do not fit.
    """
    known = _known(name)
    if channels != 3:
        raise ValueError(
            f"torchvision's networks take images of 3 channels, got {channels}: give --dataset-args channels=3 (grey "
            "pictures then have three equal channels), or --model timm"
        )
    found = None
    if weights == "hub":
        found = _renamed(fetch(known.DEFAULT, "hub", "give weights=FILE, or leave weights out"))
    elif weights is not None:
        found = _weights.read(weights, name)
    try:
        network = _make(name, image_size, classes)
    except (ValueError, AssertionError) as error:  # an image that patches do not divide
        why = str(error).splitlines()[0]
        raise ValueError(f"the model {name} cannot be built for {image_size[0]}x{image_size[1]}: {why}") from None
    if found is not None:
        found = {key: tensor for key, tensor in found.items() if key.partition(".")[0] not in BESIDE}
        left = _weights.put(network, found, weights=str(weights), architecture=name, new=head(network))
        _weights.clear(network, left)
    return _Masks(network) if name in _names()[1] else network


class _Masks(nn.Module):
    """Of what a network returns by name, its last output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)["out"]
        return logits


def head(model: nn.Module) -> list[str]:
    """The names of the layers that give the logits."""
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    return layers[-2:] if layers[-1].endswith("high_classifier") else layers[-1:]  # LR-ASPP adds two


def normalisation(*, name: str, **_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the network's weights were trained on."""
    how = _known(name).DEFAULT.transforms()
    return tuple(how.mean), tuple(how.std)


def licence(*, name: str, weights: str, **_: object) -> str | None:
    """Of the weights, where it is known."""
    return _known(name).DEFAULT.meta.get("license") if weights == "hub" else None


def names(pattern: str) -> dict[str, str]:
    """What `--model-args` may say -> the weights that there are, for names that match."""
    found = [name for kind in _names() for name in kind if fnmatch.fnmatch(name, pattern)]
    return {f"name={name}": f"hub: {_known(name).DEFAULT.name}" for name in found}


def _names() -> tuple[list[str], list[str]]:
    """The networks for classes, and those for masks."""
    from torchvision import models  # here, because it takes seconds and other models do without

    return models.list_models(module=models), models.list_models(module=models.segmentation)


def _known(name: str) -> Any:
    """The weights that torchvision has of a network. Raises ValueError."""
    from torchvision import models

    all_names = [each for kind in _names() for each in kind]
    if name not in all_names:
        near = difflib.get_close_matches(str(name), all_names, 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"torchvision has no model {name!r} for classes or masks{hint}; "
            "python -m trainers list --models PATTERN finds names"
        )
    return models.get_model_weights(name)


def _make(name: str, image_size: tuple[int, int], classes: int) -> nn.Module:
    from torchvision import models

    own: dict[str, Any] = {"num_classes": classes}
    if name in _names()[1]:
        own["weights_backbone"] = None
    elif name in ("googlenet", "inception_v3"):  # transform_input as of their weights, whether these are read or not
        own |= {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ValueError("it takes square images")
        own["image_size"] = image_size[0]
    elif name == "maxvit_t":
        own["input_size"] = image_size
    network: nn.Module = models.get_model(name, weights=None, **own)
    return network


def _renamed(state: _weights.State) -> _weights.State:
    """DenseNets' weights are older than the names of their layers."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): each for name, each in state.items()}
