"""Sizes of layers other than those that a model is built with: a pruned network as plain data.

A layer is named, with its numbers: outputs and inputs of a convolution or linear layer, and its groups where there are
several; features of a normalisation. A parameter that belongs to no such layer is named, with its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from trainers.formatting import nearest
from trainers.training.torch_internals import NormBase

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Known = (*Convolution, nn.Linear, NormBase, nn.GroupNorm, nn.LayerNorm)
"""Layers whose sizes can be changed; all have `reset_parameters`."""
Sizes = list[int]


def find_changed(model: nn.Module, built: nn.Module) -> dict[str, Sizes]:
    """The sizes of what differs from a model of the same structure, as `resize` takes them to make `built` alike.

    Raises:
        ValueError: A tensor differs that belongs to no layer, nor is a parameter by itself.
    """
    own, other = _sizes(model), _sizes(built)
    changed = {name: sizes for name, sizes in own.items() if other.get(name) != sizes}
    state, there = model.state_dict(), built.state_dict()
    for name, tensor in state.items():
        differs = name not in there or tensor.shape != there[name].shape
        if differs and not any(name == part or name.startswith(f"{part}.") for part in changed):
            raise ValueError(f"{name} {tuple(tensor.shape)} belongs to no layer whose sizes can be changed")
    return changed


def resize(model: nn.Module, shapes: Mapping[str, int | Sequence[int]]) -> None:
    """Give layers other sizes, with fresh weights.

    Args:
        model: Changed in place, where it is, with memory or without.
        shapes: Name of a layer or parameter -> its sizes, as `find_changed` gives them.

    Raises:
        ValueError: The model has no such layer, or it takes other numbers.
    """
    layers, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for name, given in shapes.items():
        sizes = [given] if isinstance(given, int) else list(given)
        layer = layers.get(name)
        if isinstance(layer, Known):
            _resize_layer(layer, name, sizes)
        elif name in parameters:
            path, _, last = name.rpartition(".")
            parameter = nn.Parameter(_fresh(parameters[name], sizes))
            setattr(model.get_submodule(path), last, parameter)
            nn.init.zeros_(parameter)
        else:
            raise ValueError(
                f"shapes: the model has no layer {name!r} whose sizes can be changed{nearest(name, _sizes(model))}"
            )


def _sizes(model: nn.Module) -> dict[str, Sizes]:
    """All that `resize` can change."""
    found: dict[str, Sizes] = {}
    for path, module in model.named_modules():
        if isinstance(module, Known):
            found[path] = _sizes_of(module)
        else:
            own = module.named_parameters(path, recurse=False)
            found |= {name: list(parameter.shape) for name, parameter in own}
    return found


def _sizes_of(layer: nn.Module) -> Sizes:
    if isinstance(layer, Convolution):
        sizes = [layer.out_channels, layer.in_channels]
        return sizes if layer.groups == 1 else [*sizes, layer.groups]
    if isinstance(layer, nn.Linear):
        return [layer.out_features, layer.in_features]
    if isinstance(layer, nn.GroupNorm):
        return [layer.num_channels]
    if isinstance(layer, nn.LayerNorm):
        return list(layer.normalized_shape)
    assert isinstance(layer, NormBase)
    return [layer.num_features]


def _resize_layer(layer: nn.Module, name: str, sizes: Sizes) -> None:
    """Raises ValueError where the layer takes other numbers."""
    count = len(sizes)
    if isinstance(layer, Convolution):
        outputs, inputs, groups = (*sizes, 1)[:3] if count in (2, 3) else (0, 0, 1)
        holds = outputs > 0 and not outputs % groups and not inputs % groups
        what = "outputs, inputs, and groups where there are several, which divide both"
    else:
        holds = count == len(_sizes_of(layer))
        what = "outputs, inputs" if isinstance(layer, nn.Linear) else "features"
        if isinstance(layer, nn.GroupNorm):
            holds, what = holds and not sizes[0] % layer.num_groups, f"a multiple of its {layer.num_groups} groups"
    if not holds:
        raise ValueError(f"shapes {name}={','.join(map(str, sizes))} is not allowed; {type(layer).__name__} has {what}")
    _set_sizes(layer, sizes)
    layer.reset_parameters()  # type: ignore[operator]


def _set_sizes(layer: nn.Module, sizes: Sizes) -> None:
    """The layer's own numbers, and empty tensors that go with them."""
    if isinstance(layer, Convolution):
        outputs, inputs, groups = (*sizes, 1)[:3]
        layer.out_channels, layer.in_channels, layer.groups = outputs, inputs, groups
        both = (inputs, outputs // groups) if isinstance(layer, Transposed) else (outputs, inputs // groups)
        _replace(layer, weight=[*both, *layer.kernel_size], bias=[outputs])
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = sizes
        _replace(layer, weight=sizes, bias=sizes[:1])
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(sizes)
        _replace(layer, weight=sizes, bias=sizes)
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = sizes[0]
        _replace(layer, weight=sizes, bias=sizes)
    elif isinstance(layer, NormBase):
        layer.num_features = sizes[0]
        _replace(layer, weight=sizes, bias=sizes, running_mean=sizes, running_var=sizes)


def _replace(layer: nn.Module, **shapes: Sizes) -> None:
    """Fresh parameters and buffers in place of those that the layer has."""
    for name, shape in shapes.items():
        old = getattr(layer, name)
        if isinstance(old, nn.Parameter):
            setattr(layer, name, nn.Parameter(_fresh(old, shape), requires_grad=old.requires_grad))
        elif old is not None:
            setattr(layer, name, _fresh(old, shape))


def _fresh(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.detach().new_empty(tuple(shape))
