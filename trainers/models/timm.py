"""Any image classifier of timm, by name: https://github.com/huggingface/pytorch-image-models."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainers.models import _weights


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    name: str = "",
    weights: str | None = None,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """A network of timm: (N, channels, height, width) -> logits (N, classes).

    Args:
        image_size: Height and width; vision transformers are built for it.
        channels: Of the images.
        classes: Number of classes.
        name: As `timm.list_models()` lists it, such as convnext_tiny.
        weights: None for random; "hub" for timm's own, downloaded once; a .pth or .safetensors FILE; or package:NAME
            of an installed package. The last layer is random where its number of classes is another.
        drop_rate: Dropout before the last layer.
        drop_path: Stochastic depth (Huang et al., 2016), where the network has it.

    Raises:
        ValueError: There is no such network, its arguments do not go together, or the weights do not fit.
    """
    import timm  # here, because it takes seconds

    if name not in timm.list_models():
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5] if name else []
        hint = f"did you mean {', '.join(near)}?" if near else "python -m trainers list --models PATTERN finds names"
        raise ValueError(f"timm has no model {name!r}; give --model-args name=NAME: {hint}")
    own: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    known = _known(name)
    if known.fixed_input_size:
        own["img_size"] = image_size
    own |= {"in_chans": channels, "num_classes": classes, "drop_rate": drop_rate}
    model: nn.Module = timm.create_model(name, pretrained=weights == "hub", **own)
    if weights == "hub" and classes != known.num_classes:
        _weights.clear(model, head(model))
    elif weights is not None and weights != "hub":
        _weights.load(model, weights, architecture=name, new=head(model))
    return model


def head(model: Any) -> list[str]:
    """The names of the layers that give the logits."""
    names = model.pretrained_cfg["classifier"]
    return [names] if isinstance(names, str) else list(names)


def normalisation(*, name: str, **_: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the network's weights were trained on."""
    known = _known(name)
    return known.mean, known.std


def _known(name: str) -> Any:
    """What timm knows of a network's own weights."""
    import timm

    return timm.get_pretrained_cfg(name, allow_unregistered=False)
