"""Networks for masks from segmentation_models_pytorch: any decoder on any encoder, by name.

https://github.com/qubvel-org/segmentation_models.pytorch
"""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from trainers.models import _weights

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OF_TIMM = "tu-"
"""Before the names of timm's networks, as encoders."""


def build(
    *,
    image_size: tuple[int, int],
    channels: int,
    classes: int,
    arch: str,
    encoder_name: str = "resnet34",
    weights: str | None = None,
    encoder_depth: int | None = None,
    encoder_output_stride: int | None = None,
    decoder_channels: Any = None,
    decoder_attention_type: str | None = None,
) -> nn.Module:
    """A network of segmentation_models_pytorch: (N, channels, height, width) -> logits (N, classes, height, width).

    Args:
        image_size: Height and width; most networks take multiples of 32.
        channels: Of the images. Weights for 3 channels are adapted to others: see `_weights.put`.
        classes: Number of classes.
        arch: Unet, UnetPlusPlus, FPN, DeepLabV3Plus, Segformer, ...
        encoder_name: resnet34, mit_b0, ..., or tu-NAME of a network of timm.
        weights: Of the encoder. None for random; "hub", or "hub:NAME" where there are several, downloaded once; a
            .pth or .safetensors FILE of the encoder, or of the whole network; or package:NAME of an installed package.
        encoder_depth: Number of times that the encoder halves the size; None: the network's default, as below.
        encoder_output_stride: How much smaller the encoder's last features are.
        decoder_channels: Of the decoder, or of each of its stages, as in 256,128,64,32,16.
        decoder_attention_type: scse, for attention in the decoder (Roy et al., 2018).

    Raises:
        ValueError: There is no such network, its arguments do not go together, or the weights do not fit.
    """
    smp, kind = _kind(arch)
    given = {
        "encoder_depth": encoder_depth,
        "encoder_output_stride": encoder_output_stride,
        "decoder_channels": decoder_channels,
        "decoder_attention_type": decoder_attention_type,
    }
    own: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    taken = inspect.signature(kind).parameters
    if unknown := [name for name in own if name not in taken]:
        raise ValueError(f"arch={kind.__name__} takes no {unknown[0]}; leave it out of --model-args")
    of_timm = _of_timm(encoder_name)
    if of_timm is None:
        _check_encoder(smp, encoder_name)
    elif "dynamic_img_size" in taken:
        own["dynamic_img_size"] = True
    elif of_timm.fixed_input_size:
        own["img_size"] = image_size
    own |= {"encoder_name": encoder_name, "in_channels": channels, "classes": classes}
    found = None
    if weights is not None and not _is_hub(weights):
        found = _weights.read(weights, of_timm.architecture if of_timm else encoder_name.removeprefix("timm-"))
    try:
        model: nn.Module = kind(encoder_weights=None, **own)
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError) as error:
        raise ValueError(f"arch={kind.__name__} encoder_name={encoder_name} cannot be built: {error}") from None
    _check_size(model, image_size)
    if found is not None:
        _put(model, found, str(weights), encoder_name)
    elif weights is not None:
        tag = True if of_timm else _tag(smp, encoder_name, weights)
        with _weights.from_hub(f"encoder_name={encoder_name}"):
            model = kind(encoder_weights=tag, **own)
    return model


def head(model: nn.Module) -> list[str]:
    """The names of the parts that are new where the encoder has weights: all others."""
    return [
        name for name, part in model.named_children() if name != "encoder" and next(part.parameters(), None) is not None
    ]


def normalisation(
    *, encoder_name: str = "resnet34", weights: str, **_: object
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the channels of the pictures that the encoder's weights were trained on; of a file
    for an encoder that is none of timm's, ImageNet's."""
    if of_timm := _of_timm(encoder_name):
        return of_timm.mean, of_timm.std
    if not _is_hub(weights):
        return IMAGENET
    smp = _import()
    with _weights.from_hub(f"encoder_name={encoder_name}"):
        known = smp.encoders.get_preprocessing_params(encoder_name, _tag(smp, encoder_name, weights))
    return tuple(known["mean"]), tuple(known["std"])


def licence(*, encoder_name: str = "resnet34", weights: str, **_: object) -> str | None:
    """Of the weights, where it is known."""
    of_timm = _of_timm(encoder_name)
    return of_timm.license if of_timm and _is_hub(weights) else _weights.licence_of(weights)


def names(pattern: str) -> dict[str, str]:
    """What `--model-args` may say -> the weights that there are, for names that match; tu-NAME is each of timm's."""
    smp = _import()
    archs = [kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    found = {f"arch={arch}": "" for arch in archs if fnmatch.fnmatch(arch.lower(), pattern.lower())}
    for name, known in smp.encoders.encoders.items():
        if fnmatch.fnmatch(name, pattern) and not name.startswith("timm-"):  # as tu-, deprecated
            tags = ", ".join(known["pretrained_settings"])
            found[f"encoder_name={name}"] = f"hub: {tags}" if tags else ""
    return found


def _import() -> Any:
    try:
        import segmentation_models_pytorch  # here, because it takes seconds, and comes with an extra
    except ImportError:
        raise ValueError("the model smp needs segmentation_models_pytorch: pip install 'trainyard[smp]'") from None
    return segmentation_models_pytorch


def _kind(arch: str) -> tuple[Any, Any]:
    """The library, and the class of a network. Raises ValueError."""
    smp = _import()
    known = smp.MODEL_ARCHITECTURES_MAPPING
    if str(arch).lower() not in known:
        names = ", ".join(kind.__name__ for kind in known.values())
        raise ValueError(f"segmentation_models_pytorch has no arch={arch}; it has {names}")
    return smp, known[arch.lower()]


def _of_timm(encoder_name: str) -> Any:
    """What timm knows of an encoder; None where it is none of timm's. Raises ValueError."""
    if not encoder_name.startswith(OF_TIMM):
        return None
    import timm

    name = encoder_name.removeprefix(OF_TIMM)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(OF_TIMM + each for each in near)}?" if near else ""
        raise ValueError(f"encoder_name={encoder_name}: timm has no model {name!r}{hint}")
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # of another tag
        raise ValueError(f"encoder_name={encoder_name}: {error}") from None


def _check_encoder(smp: ModuleType, name: str) -> None:
    known = smp.encoders.get_encoder_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"segmentation_models_pytorch has no encoder_name={name}{hint}; python -m trainers list --models PATTERN "
            "finds names, and tu-NAME is a network of timm"
        )


def _check_size(model: Any, image_size: tuple[int, int]) -> None:
    stride = model.encoder.output_stride if model.requires_divisible_input_shape else 1
    if any(side % stride for side in image_size):
        height, width = image_size
        near = "x".join(str(max(stride, round(side / stride) * stride)) for side in image_size)
        raise ValueError(
            f"arch={type(model).__name__} needs height and width that are multiples of {stride}, got {height}x{width}; "
            f"give --image-size {near}"
        )


def _is_hub(weights: str) -> bool:
    return weights == "hub" or weights.startswith("hub:")


def _tag(smp: ModuleType, encoder_name: str, weights: str) -> str:
    """Which weights of an encoder: those that are named, else ImageNet's, else the first. Raises ValueError."""
    known = list(smp.encoders.encoders[encoder_name]["pretrained_settings"])
    tag = weights.partition(":")[2] or ("imagenet" if "imagenet" in known else known[0] if known else "")
    if tag not in known:
        what = f"; give {' or '.join(f'hub:{each}' for each in known)}" if known else ", nor any others"
        raise ValueError(f"weights={weights}: there are none of encoder_name={encoder_name}{what}")
    return tag


def _put(model: Any, found: Mapping[str, Tensor], weights: str, encoder_name: str) -> None:
    """Weights of the whole network, or of its encoder by the names of the network that it was."""
    if any(name.startswith("encoder.") for name in found):
        name = f"{type(model).__name__} on {encoder_name}"
        _weights.put(model, found, weights=weights, architecture=name, new=["segmentation_head"])
        return
    encoder = model.encoder.model if encoder_name.startswith(OF_TIMM) else model.encoder
    tops = {name for name, _ in encoder.named_children()}
    flat = {name: name.replace(".", "_", 1) for name in found}  # timm's stages.0 is stages_0 where features are taken
    named = {flat[name] if flat[name].partition(".")[0] in tops else name: each for name, each in found.items()}
    _weights.put(encoder, named, weights=weights, architecture=f"the encoder {encoder_name}", truncated=True)
