"""Channels cut out of a network, by torch-pruning, which finds what belongs together: the outputs of a layer, their
normalisation, and the inputs of all layers behind, through sums, concatenations and reshaping.

Of every layer the same share of channels goes, those of the smallest weights (the norm of a group, after Fang et al.,
"DepGraph: towards any structural pruning", CVPR 2023), as many as the network needs fewer multiplications by. What
cannot be cut is found by trying: each layer by itself, on a copy without memory, which must still give an output of the
same shape. So the last layers are kept, whatever a model calls them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import time
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trainers.formatting import shortened
from trainers.training.shapes import Convolution
from trainers.training.torch_internals import tree_leaves

if TYPE_CHECKING:
    from torch_pruning.dependency import DependencyGraph, Group

MULTIPLE, LARGE = 8, 16
"""Channels that are left of a layer are a multiple of it where the layer has as many as LARGE: processors compute them
together."""
STEPS, MOST_STEPS = 64, 60
"""Shares of channels are counted in 1 / STEPS; at most so many of these are cut out."""
QUICK = 10**9
"""A network with at most so many multiplications is tried with its weights: without memory torch works out all sizes in
Python, which takes longer."""
TIMED_SECONDS, TIMED = 3.0, 5
"""Networks are timed for so long, and so often at least."""
Roots = (*Convolution, nn.Linear)
"""Layers whose outputs are cut."""


class Cut(NamedTuple):
    """A network that was cut."""

    model: nn.Module
    macs: tuple[int, int]
    """Multiplications, each with an addition, of one picture, before and after."""
    parameters: tuple[int, int]
    kept: dict[str, str]
    """Layers that could not be cut -> why."""


class _Root(NamedTuple):
    """The outputs of a layer, and what goes with them."""

    name: str
    channels: int
    groups: int
    """In which they come, of convolutions and GroupNorm: as many are cut of each."""
    weakest: list[int]
    """The numbers of a group's channels, the least important first."""

    @property
    def unit(self) -> int:
        return math.lcm(MULTIPLE if self.channels >= LARGE else 1, self.groups)

    def cut(self, share: float) -> list[int]:
        """The numbers of the channels that go."""
        kept = max(1, round(self.channels * (1 - share) / self.unit)) * self.unit
        each, count = self.channels // self.groups, max(0, self.channels - kept) // self.groups
        return sorted(group * each + number for group in range(self.groups) for number in self.weakest[:count])


def import_pruner() -> ModuleType:
    """torch-pruning. Raises ValueError where it is not installed."""
    try:
        import torch_pruning  # here, as it comes with an extra
    except ImportError:
        raise ValueError("prune needs torch-pruning: pip install 'trainyard[prune]'") from None
    module: ModuleType = torch_pruning
    return module


def cut(model: nn.Module, images: Tensor, speedup: float) -> Cut:
    """A copy of a network with fewer channels.

    Args:
        model: With its weights; it stays as it is.
        images: One picture, as the model takes it.
        speedup: How many times fewer multiplications it is to need.

    Raises:
        ValueError: It cannot be; the message names the layers that cannot be cut, and why.
    """
    import_pruner()
    model = copy.deepcopy(model).eval().requires_grad_()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # of torch-pruning, about parameters that it finds
        bare, stand_in, before = _for_trials(model, images)
        roots, kept = _find_roots(model, images)
        roots, failed = _try_each(bare, stand_in, roots)
        kept |= failed

        def macs(step: int) -> int:
            return count_macs(_cut(bare, stand_in, roots, step / STEPS), stand_in)

        if (fewest := macs(MOST_STEPS)) * speedup > before:
            raise ValueError(
                f"--speedup {speedup:g} is more than can be had: {before / fewest:.2f} at most; {describe_kept(kept)}"
            )
        low, high = 0, MOST_STEPS
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if macs(middle) * speedup <= before else (middle, high)
        smaller = _cut(model, images, roots, high / STEPS)
        found = count_macs(smaller, images)
    kept = {name: why for name, why in kept.items() if _outputs(smaller, name) == _outputs(model, name)}
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, smaller)]
    return Cut(smaller, (before, found), (counts[0], counts[1]), kept)


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiplications, each with an addition, of the convolutions and products of matrices of a pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(images)
    return int(counted.get_total_flops()) // 2


def time_pass(models: Mapping[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Milliseconds of a pass of each network, medians; they take turns, as the machine may be busy for a while."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    begun = time.perf_counter()
    with torch.no_grad():
        for model in models.values():
            model(images)
        while time.perf_counter() - begun < TIMED_SECONDS or len(next(iter(seconds.values()))) < TIMED:
            for name, model in models.items():
                start = time.perf_counter()
                model(images)
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


# ---- what can be cut ----


def _for_trials(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, int]:
    """The network and a picture to try cuts on, without memory where a pass takes long; and its multiplications."""
    macs = count_macs(model, images)
    if macs > QUICK:
        bare, stand_in = copy.deepcopy(model).to("meta"), images.to("meta")
        with contextlib.suppress(Exception):  # whatever a model does with numbers that are not there
            _shapes(bare, stand_in)
            return bare, stand_in, macs
    return model, images, macs


def _find_roots(model: nn.Module, images: Tensor) -> tuple[list[_Root], dict[str, str]]:
    """The layers whose outputs torch-pruning can follow, in its order; and the others, with what it says."""
    graph, names = _graph(model, images), {module: name for name, module in model.named_modules()}
    importance = import_pruner().importance.GroupMagnitudeImportance(p=2)
    in_attention = {child for module in model.modules() if hasattr(module, "num_heads") for child in module.children()}
    roots: list[_Root] = []
    kept: dict[str, str] = {}
    done: set[nn.Module] = set()
    for layer in [module for module in graph.module2node if isinstance(module, Roots)]:
        if layer in done:
            continue
        name, pruner = names[layer], graph.get_pruner_of_module(layer)
        channels = int(pruner.get_out_channels(layer))
        try:
            if layer in in_attention:
                raise ValueError("attention shares its channels between heads")
            group = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(channels)))
            done |= _with_outputs(graph, group)
            groups = _count_groups(group)
            scores = importance(group)
            if scores is None or len(scores) != channels:
                raise ValueError("what its channels are worth does not show")
        except ValueError as error:
            kept[name] = str(error)
            continue
        except Exception as error:  # torch-pruning's own have no base in common
            kept[name] = f"torch-pruning cannot follow its channels: {_explain(error)}"
            continue
        weakest = scores.view(groups, -1).mean(0).argsort(stable=True)
        root = _Root(name, channels, groups, weakest.tolist())
        if root.unit < channels:
            roots.append(root)
        else:
            kept[name] = f"its {channels} channels come by {root.unit}"
    return roots, kept


def _try_each(model: nn.Module, images: Tensor, roots: list[_Root]) -> tuple[list[_Root], dict[str, str]]:
    """Those without most of whose channels the output has the same shape, tried one after the other; and why not the
    others."""
    wanted, kept = _shapes(model, images), dict[str, str]()
    left: list[_Root] = []
    while left != roots:  # anew after each that leaves the network in pieces
        trial = copy.deepcopy(model)
        graph, left = _graph(trial, images), []
        for root in roots:
            try:
                group = _group(graph, trial, root, 1.0)
            except Exception as error:  # torch-pruning's own; nothing was cut
                kept[root.name] = f"torch-pruning cannot follow its channels: {_explain(error)}"
                continue
            try:
                group.prune()
                why = "" if _shapes(trial, images) == wanted else "the output would have another shape"
            except Exception as error:  # the model's
                why = _explain(error)
            if why:
                kept[root.name] = why
                break
            left.append(root)
        roots = [root for root in roots if root.name not in kept]
    return roots, kept


def _cut(model: nn.Module, images: Tensor, roots: list[_Root], share: float) -> nn.Module:
    """A copy without a share of the channels of each of these layers."""
    smaller = copy.deepcopy(model)
    graph = _graph(smaller, images)
    for root in roots:
        if root.cut(share):
            _group(graph, smaller, root, share).prune()
    return smaller


def _group(graph: DependencyGraph, model: nn.Module, root: _Root, share: float) -> Group:
    """What goes, by torch-pruning, with a share of the channels of a layer."""
    layer = model.get_submodule(root.name)
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, root.cut(share))


def _graph(model: nn.Module, images: Tensor) -> DependencyGraph:
    """What belongs together in a network, by torch-pruning."""
    return import_pruner().DependencyGraph().build_dependency(model, example_inputs=images, verbose=False)


def _with_outputs(graph: DependencyGraph, group: Group) -> set[nn.Module]:
    """The layers whose outputs are of a group."""
    return {part.target.module for part, _ in group if graph.is_out_channel_pruning_fn(part.handler)}


def _count_groups(group: Group) -> int:
    """The most groups in which channels come in a layer where a group of them passes; a depthwise convolution's are
    channels by themselves."""
    most = 1
    for part, _ in group:
        layer = part.target.module
        if isinstance(layer, nn.GroupNorm):
            most = max(most, layer.num_groups)
        elif isinstance(layer, Convolution) and layer.groups != layer.out_channels:
            most = max(most, layer.groups)
    return most


def _outputs(model: nn.Module, name: str) -> int:
    """Of a layer."""
    layer = model.get_submodule(name)
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _shapes(model: nn.Module, images: Tensor) -> list[torch.Size]:
    """Of all tensors that a network returns."""
    with torch.no_grad():
        return [leaf.shape for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]


def _explain(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines and not isinstance(error, ValueError) else str(error)


def describe_kept(kept: Mapping[str, str]) -> str:
    """Why layers were kept as they are, for people; "" where none was."""
    by_reason: dict[str, list[str]] = {}
    for name, why in kept.items():
        by_reason.setdefault(why, []).append(name)
    each = "; ".join(f"{shortened(names)} ({why})" for why, names in by_reason.items())
    return each and f"kept as it is: {each}"
