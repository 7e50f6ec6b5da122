"""Any image classifier of timm, by name: https://github.com/huggingface/pytorch-image-models."""

from __future__ import annotations

import difflib
import fnmatch
import sys
from typing import Any

from torch import nn

from trainers.models import _weights


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    name: str,
    weights: str | None = None,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """A network of timm: (N, channels, height, width) -> logits (N, classes).

    Args:
        image_size: Height and width; vision transformers are built for it.
        channels: Of the images. Weights for 3 channels are adapted to others: see `_weights.put`.
        classes: Number of classes.
        name: As timm lists it, such as convnext_tiny, with the tag of its weights or without: resnet50.a1_in1k.
        weights: None for random; "hub" for timm's own, downloaded once; a .pth or .safetensors FILE; or package:NAME
            of an installed package. The last layer starts at zero where its number of classes is another.
        drop_rate: Dropout before the last layer.
        drop_path: Stochastic depth (Huang et al., 2016), where the network has it.

    Raises:
        ValueError: There is no such network, its arguments do not go together, or the weights do not fit.
    """
    import timm  # here, because it takes seconds

    known = _known(name)
    found = _weights.read(weights, known.architecture) if weights not in (None, "hub") else None
    own: dict[str, Any] = {"in_chans": channels, "num_classes": classes, "drop_rate": drop_rate}
    if drop_path:
        own["drop_path_rate"] = drop_path
    if known.fixed_input_size:
        own["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(name, **own)
    except (TypeError, AssertionError) as error:  # no stochastic depth; patches that do not divide the image
        raise ValueError(f"the model {name} cannot be built for {image_size[0]}x{image_size[1]}: {error}") from None
    if weights == "hub":
        if not known.has_weights:
            raise ValueError(f"weights=hub: timm has none of {name}; give weights=FILE, or leave weights out")
        with _weights.from_hub(name):
            model = timm.create_model(name, pretrained=True, **own)
        if classes != known.num_classes:
            _weights.clear(model, head(model))
    elif found is not None:
        fitting = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        convert = None if fitting is None else lambda state: fitting(state, model)
        left = _weights.put(model, found, weights=str(weights), architecture=name, new=head(model), convert=convert)
        _weights.clear(model, left)
    return model


def head(model: Any) -> list[str]:
    """The names of the layers that give the logits."""
    names = model.pretrained_cfg["classifier"] or "head"
    return [names] if isinstance(names, str) else list(names)


def normalisation(*, name: str, **_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the network's weights were trained on."""
    known = _known(name)
    return known.mean, known.std


def licence(*, name: str, weights: str, **_: object) -> str | None:
    """Of the weights, where it is known."""
    return _known(name).license if weights == "hub" else _weights.licence_of(weights)


def names(pattern: str) -> dict[str, str]:
    """What `--model-args` may say -> the weights that there are, for names that match; tags are left out."""
    import timm

    found = [name for name in timm.list_models() if fnmatch.fnmatch(name, pattern)]
    return {f"name={name}": _describe(_known(name)) for name in found}


def _describe(known: Any) -> str:
    return f"hub: {known.tag or 'default'}, {known.license or 'licence not known'}" if known.has_weights else ""


def _known(name: str) -> Any:
    """What timm knows of a network and of the weights that it has of it. Raises ValueError."""
    import timm

    if not name or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"timm has no model {name!r}{hint}; python -m trainers list --models PATTERN finds names")
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # of another tag
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")[:8]
        raise ValueError(f"timm has no weights called {name}; it has {', '.join(tags)}") from None
