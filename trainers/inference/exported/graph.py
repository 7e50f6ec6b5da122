"""ONNX models: written, with layers that can be one made one, and compared with the model that they are of."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from trainers.inference.exported.session import PICTURES, open_session, run
from trainers.instances import parts
from trainers.run_facts import DatasetFacts, Json
from trainers.tasks.base import Output

if TYPE_CHECKING:
    from onnx import GraphProto

TOLERANCE = 1e-4
"""Of the largest number of an output, by which the file's may differ from the model's."""
WITHIN = ("Relu", "Clip", "LeakyRelu")
"""Activations that ONNX Runtime computes together with the convolution before them."""
Answer = Callable[[Output, tuple[int, int]], tuple[Tensor, ...]]


class CannotWrite(ValueError):
    """A model cannot be written as ONNX, or what was written is another; the message says which layer, and why."""


class Served(nn.Module):
    """A network that takes pictures as they are, and says besides what follows from its output."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, meta: DatasetFacts, answer: Answer) -> None:
        """
        Args:
            network: takes normalised images, fp32.
            meta: mean and standard deviation of each channel, of values in [0, 1].
            answer: from the network's output, and height and width of the pictures.
        """
        super().__init__()
        mean, std = (torch.tensor(meta[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.network, self.answer = network, answer
        self.register_buffer("shift", (-mean / std).float())
        self.register_buffer("scale", (1 / std / 255).float())

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Of uint8 (N, H, W, C), answers and then the network's outputs."""
        images = torch.addcmul(self.shift, pictures.permute(0, 3, 1, 2).float(), self.scale)
        output = self.network(images)
        return (*self.answer(output, (images.shape[2], images.shape[3])), *parts(output))


class Layers(NamedTuple):
    """What has become one layer."""

    normalisations: int
    """BatchNorm layers of the model."""
    folded: int
    """Those of them that are part of a convolution now."""
    convolutions: int
    activations: int
    """Those that ONNX Runtime computes together with the convolution before them."""

    def __str__(self) -> str:
        folded = f"{self.folded} of {self.normalisations} BatchNorm layers are folded into convolutions"
        return f"{folded if self.normalisations else 'there is no BatchNorm'}; {self.activations} activations are " + (
            f"computed with the {self.convolutions} convolutions"
        )


class Written(NamedTuple):
    """A model that is not kept yet."""

    content: bytes
    layers: Layers


def write(model: nn.Module, pictures: Tensor, names: Sequence[str]) -> Written:
    """An ONNX model, for any number of pictures.

    Args:
        model: in evaluation mode; takes and gives tensors.
        pictures: two or more that it can take.
        names: of its outputs.

    Raises:
        CannotWrite: the model cannot be exported.
    """
    with quiet(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        try:
            found: Any = torch.onnx.export(
                model,
                (pictures[:2],),
                dynamo=True,
                input_names=[PICTURES],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},
                verbose=False,
            )
        except Exception as error:  # whatever a model of the user's own makes torch raise
            raise CannotWrite(_explain(model, pictures[:2], error)) from None
    proto = found.model_proto
    operations = [str(node.target) for node in found.exported_program.graph.nodes]
    normalisations = sum("batch_norm" in name for name in operations)
    for node in proto.graph.node:  # where the code lies that it was traced from, on this machine
        del node.metadata_props[:]
        node.doc_string = ""
    content: bytes = proto.SerializeToString()
    return Written(content, _count(proto.graph, normalisations))


def _sort_stable(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """What torch has no words for in ONNX: TopK of all numbers, which takes the first one of equal numbers first."""
    from onnxscript import opset18

    assert stable
    op: Any = opset18  # whose types of numbers are narrower than what it takes
    count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(self, count, axis=dim, largest=int(descending), sorted=1)


def tell(content: bytes, told: Json) -> bytes:
    """The model with what it tells, as text or JSON."""
    import onnx

    proto = onnx.load_from_string(content)
    words = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
    onnx.helper.set_model_props(proto, words)
    proto.producer_name = "trainyard"
    result: bytes = proto.SerializeToString()
    return result


def check(content: bytes, model: Served, pictures: Tensor, names: Sequence[str], network: Sequence[str]) -> float:
    """The largest difference between a file's outputs and the model's, in parts of the largest number of each.

    What answers hold depends on which of nearly equal numbers is the larger: the model's answers are those to the
    file's own output.

    Args:
        content: of the file.
        model: that it is of.
        pictures: uint8 (N, H, W, C), of which one is looked at alone too.
        names: of all outputs.
        network: of those that are the network's.

    Raises:
        CannotWrite: it is more than TOLERANCE.
    """
    session, worst = open_session(content), 0.0
    answers = len(names) - len(network)
    for some in (pictures, pictures[:1]):
        found = run(session, some.numpy(), names)
        raw = found[answers:]
        output = raw[0] if len(raw) == 1 else tuple(raw)
        with torch.no_grad():
            wanted = (*model.answer(output, (some.shape[1], some.shape[2])), *model(some)[answers:])
        for name, mine, theirs in zip(names, found, wanted, strict=True):
            if mine.shape != theirs.shape:
                raise CannotWrite(f"{name} has the shape {tuple(mine.shape)}, and the model's {tuple(theirs.shape)}")
            scale = max(1e-6, float(theirs.double().abs().max()))
            worst = max(worst, float((mine.double() - theirs.double()).abs().max()) / scale)
            if not worst <= TOLERANCE:
                raise CannotWrite(
                    f"in the file {name} differs by {worst:.1e} of its largest number; {TOLERANCE:g} is allowed"
                )
    return worst


def _count(graph: GraphProto, normalisations: int) -> Layers:
    """`normalisations`: those of the model."""
    kinds = Counter(node.op_type for node in graph.node)
    readers = Counter(name for node in graph.node for name in node.input)
    convolved = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    activations = [node for node in graph.node if node.op_type in WITHIN and node.input[0] in convolved]
    return Layers(
        normalisations=normalisations,
        folded=normalisations - kinds["BatchNormalization"],
        convolutions=kinds["Conv"],
        activations=sum(readers[node.input[0]] == 1 for node in activations),
    )


def _explain(model: nn.Module, pictures: Tensor, error: Exception) -> str:
    """Which layer cannot be exported, and why: the smallest part of the model that cannot be by itself."""
    seen: dict[str, tuple[tuple[object, ...], Mapping[str, object]]] = {}
    names = {module: name for name, module in model.named_modules()}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs: seen.setdefault(names[module], (args, kwargs)) and None, with_kwargs=True
        )
        for module in names
    ]
    try:
        with torch.no_grad():
            model(pictures)
    finally:
        for hook in hooks:
            hook.remove()
    name, reason = "", error
    inner: Iterator[tuple[str, nn.Module]] = iter(model.named_children())
    while (child := next(inner, None)) is not None:
        path = f"{name}.{child[0]}" if name else child[0]
        if path in seen and (found := _try(child[1], *seen[path])) is not None:
            name, reason, inner = path, found, iter(child[1].named_children())
    layer = name.removeprefix("network").lstrip(".")
    kind = type(model.get_submodule(name)).__name__
    where = f"its layer {layer} ({kind})" if layer else "it" if name else "what its task makes of its output"
    return f"{where} cannot be written as ONNX: {_root(reason)}"


def _try(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Exception | None:
    """Why a part of a model cannot be exported; None: it can."""
    try:
        torch.onnx.export(module, args, kwargs=dict(kwargs), dynamo=True, verbose=False)
    except Exception as error:
        return error
    return None


def _root(error: BaseException) -> str:
    """The first line of what an error comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch, its exporter and ONNX Runtime's quantisation say about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
