"""ONNX models, run by ONNX Runtime: they take pictures as they are, and normalise them themselves."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.formatting import printable
from trainers.inference.exported.format import Loaded
from trainers.inference.exported.told import as_taken
from trainers.run_facts import Json, RunFacts
from trainers.tasks.base import Output

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

PICTURES = "pictures"
"""The input: uint8 (batch, height, width, channels)."""
NETWORK = "network_outputs"
"""The names of the outputs that are the network's own, of which the task makes its classes and scores."""
Pixels = npt.NDArray[np.uint8]


def require(*packages: str) -> None:
    """Raises ValueError where a package of the extra is not installed."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"FILE.onnx needs {name}: pip install 'trainyard[onnx]'")


def open_session(model: str | bytes, *, look: bool = False) -> InferenceSession:
    """An onnxruntime.InferenceSession on the processor, with as many threads as torch has.

    Args:
        model: a path, or the content of a file.
        look: it is only to be looked at.

    Raises:
        ValueError: it is no ONNX model, or the extra is not installed.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    if look:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a class of its own for each reason
        name = printable(model) if isinstance(model, str) else "what was written"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name} cannot be opened by onnxruntime {onnxruntime.__version__}: {reason}") from None


def run(session: InferenceSession, pictures: Pixels, names: Sequence[str]) -> list[Tensor]:
    """Outputs of these names."""
    return [torch.from_numpy(each) for each in session.run(list(names), {PICTURES: pictures})]


def without_answers(file: Path, names: Sequence[str]) -> bytes:
    """The model up to outputs of these names: ONNX Runtime computes all that a model holds, whatever is asked for, and
    answers may take longer than the network."""
    require("onnx")
    import onnx

    proto = onnx.load(str(file))
    for output in [each for each in proto.graph.output if each.name not in names]:
        proto.graph.output.remove(output)
    needed = set(names)
    for node in reversed(proto.graph.node[:]):  # each comes after those that it needs
        if needed.isdisjoint(node.output):
            proto.graph.node.remove(node)
        else:
            needed.update(node.input)
    content: bytes = proto.SerializeToString()
    return content


@functools.lru_cache(2)
def _told(path: str, stamp: tuple[int, int]) -> str:
    """What a file of this size and time tells, as JSON; "{}" where it tells nothing."""
    assert stamp
    found: dict[str, str] = open_session(path, look=True).get_modelmeta().custom_metadata_map
    parts = {}
    for name, value in found.items():
        parts[name] = value
        with contextlib.suppress(ValueError):
            parts[name] = json.loads(value)
    return json.dumps(parts)


class Onnx:
    """Files of these models."""

    def told(self, file: Path) -> Json:
        stat = os.stat(file)
        told: Json = json.loads(_told(str(file), (stat.st_size, stat.st_mtime_ns)))
        return told

    def seen(self, facts: RunFacts) -> RunFacts:
        """Numbers that change nothing: pictures reach the model as whole numbers from 0 to 255."""
        channels = facts["dataset"]["channels"]
        return as_taken(facts, [0.0] * channels, [1 / 255] * channels)

    def load(self, file: Path) -> Loaded:
        of_pictures = self.network(file)

        def network(images: Tensor) -> Output:
            pixels = images.permute(0, 2, 3, 1).round().to(torch.uint8)
            found = of_pictures(np.ascontiguousarray(pixels.cpu().numpy()))
            return found[0] if len(found) == 1 else tuple(found)

        return Loaded(network, memory_format="channels_last")  # as pictures are

    def network(self, file: Path) -> Callable[[Pixels], list[Tensor]]:
        """The network in a file, which takes pictures as they are, uint8 (N, *image_size, C)."""
        names = self.told(file)[NETWORK]
        session = open_session(without_answers(file, names))
        return functools.partial(run, session, names=names)
