"""ONNX models in whole numbers of 8 bits: static quantisation, by what calibration pictures make of each layer."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.data import targets
from trainers.data.decoder import Decoder
from trainers.datasets import Source
from trainers.inference.exported.graph import quiet
from trainers.inference.exported.session import PICTURES, Pixels
from trainers.recipe import Recipe
from trainers.runs.provenance import processor_flags

if TYPE_CHECKING:
    from onnx import NodeProto

CALIBRATION = 256
"""Pictures whose activations tell the ranges of the layers."""
AT_ONCE = 8
WEIGHTED = ("Conv", "Gemm", "MatMul")
"""Layers with weights, which take nearly all the time."""
BETWEEN = ("Add", "Concat", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Pad", "Reshape")
"""Layers that stay within 8 bits on the way from one of these to another."""
FAST = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Instructions, as Linux names them, that multiply unsigned by signed bytes without an overflow."""


def overflows() -> bool | None:
    """Whether this processor may overflow where it multiplies bytes: x86 without VNNI adds up two products in 16 bits.
    Then weights must do with 7 bits, and int8 is hardly faster than fp32. None: it is not known."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "i386"):
        return False
    flags = processor_flags()
    return not set(FAST) & flags if flags else None


def calibration(recipe: Recipe, source: Source, count: int = CALIBRATION) -> Iterator[Pixels]:
    """Training pictures that the recipe's seed draws, as the model sees them: uint8 (N, *image_size, C), AT_ONCE each.
    Those that cannot be decoded are passed over."""
    target = targets.kind(source.target)
    decoder = Decoder(recipe, target, source.channels, len(source.classes), source.numbers)
    items, left = source.splits["train"], count
    (height, width), (rows, columns) = recipe.storage_size, recipe.image_size
    top, first = (height - rows) // 2, (width - columns) // 2
    some: list[Pixels] = []
    for number in np.random.default_rng(recipe.seed).permutation(len(items)):
        read = decoder.try_read(items[number])
        for picture, _ in [] if isinstance(read, str) else read[:left]:
            some.append(picture[top : top + rows, first : first + columns])
            left -= 1
        while len(some) >= AT_ONCE or (some and not left):
            yield np.stack(some[:AT_ONCE])
            del some[:AT_ONCE]
        if not left:
            return
    if some:
        yield np.stack(some)


def quantise(content: bytes, pictures: Iterable[Pixels], *, reduce_range: bool) -> bytes:
    """A model whose convolutions and linear layers multiply bytes: weights signed, with a scale for each channel, and
    activations unsigned, which is what processors multiply fastest. What comes before the first such layer and after
    the last one stays as it is.

    Args:
        content: of an ONNX model.
        pictures: for calibration.
        reduce_range: whether weights have 7 bits.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Pictures, a batch at a time."""

        def __init__(self) -> None:
            self._batches = iter(pictures)

        def get_next(self) -> dict[str, Pixels] | None:
            """The next ones; None: there are no more."""
            return next(({PICTURES: batch} for batch in self._batches), None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, ready, done = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        plain.write_bytes(content)
        quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(done),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_within(ready),
        )
        return done.read_bytes()


def _within(file: Path) -> list[str]:
    """The names of the nodes that are computed in 8 bits."""
    import onnx

    graph = onnx.load(str(file)).graph
    constant = {each.name for each in graph.initializer}
    weighted = [node for node in graph.node if _has_weights(node, constant)]
    makers = {name: node for node in graph.node for name in node.output}
    before = _reached(weighted, lambda node: [makers[name] for name in node.input if name in makers])
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    after = _reached(weighted, lambda node: [each for name in node.output for each in readers.get(name, [])])
    between = [node.name for node in graph.node if node.op_type in BETWEEN and node.name in before & after]
    return [*(node.name for node in weighted), *between]


def _has_weights(node: NodeProto, constant: set[str]) -> bool:
    return node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constant


def _reached(starts: Iterable[NodeProto], following: Callable[[NodeProto], list[NodeProto]]) -> set[str]:
    """The names of the nodes that are reached from some, without these where nothing leads back to them."""
    found: set[str] = set()
    left = [each for node in starts for each in following(node)]
    while left:
        node = left.pop()
        if node.name not in found:
            found.add(node.name)
            left += following(node)
    return found
