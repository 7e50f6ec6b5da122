"""Milliseconds of a picture, from its bytes to the network's output: ours, against PyTorch and ONNX Runtime by hand.

    python tests/benchmarks/inference.py [--quick] [--repeats N] [--threads N] [--batch N] [--only WORD]

Networks of recipes after one epoch on drawn pictures, at the sizes of the recipes: their scores mean nothing, and times
do not depend on the weights.

eager, by hand     the network in evaluation mode as torch makes it, pictures normalised by torch
run                `open_model(RUN)`
model.pt2          `open_model(FILE)`, of `export RUN --out model.pt2`: fused layers
ONNX, by hand      torch.onnx.export(dynamo=True) of the network, normalised by NumPy, ONNX Runtime
model.onnx         `export RUN --out model.onnx`, run by ONNX Runtime as trainers/README.md shows it
int8               the same with --int8

All outputs but those of int8 must agree to 1e-4 of the largest number. Wanted at batch 1: model.onnx at most 0.75 times
the time of eager, and 1.0 of ONNX by hand; int8 at most 0.67 of model.onnx where the processor has VNNI.

--quick: two small networks at tiny sizes.
"""

from __future__ import annotations

import io
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from helpers.small import small_data, small_recipe
from torch import Tensor

import trainers
from trainers.fitting import fit
from trainers.inference.export import export
from trainers.inference.exported.int8 import overflows
from trainers.inference.exported.session import Onnx
from trainers.instances import parts
from trainers.progress import Progress
from trainers.recipe import Scale, resolve

RECIPES = ("digits.cnn", "resnet.r18", "unet.camvid", "deeplab.camvid", "shapes.erfnet", "shapes.fcos")
QUICK = ("digits.cnn", "shapes.unet")
TURN = 0.2
"""Seconds for which a competitor is called in a round."""
TOLERANCE = 1e-4
EAGER, RUN, PT2, HAND, OURS, INT8 = "eager, by hand", "run", "model.pt2", "ONNX, by hand", "model.onnx", "int8"
Pictures = npt.NDArray[np.uint8]
Outputs = Callable[[], list[Any]]


def trained(name: str, quick: bool, folder: Path) -> str:
    """The folder of a run of one epoch."""
    full = resolve(name)
    sizes: dict[str, Any] = {} if quick else {"image_size": full.image_size, "stored_size": None}
    if not quick and name.startswith("unet"):  # as published it has 31 million parameters
        sizes["model_args"] = {**full.model_args, "base_channels": 16}
    recipe = small_recipe(name, epochs=1, patience=None, **sizes)
    raw = small_data(name, folder / f"data-{name}")
    scale = Scale(workers=0, cpus_per_worker=1, data=raw, storage=str(folder))
    return fit(recipe, scale=scale, run=name.replace(".", "-"), progress=Progress()).folder


def competitors(run: str, batch: int, folder: Path) -> dict[str, Outputs]:
    """What each makes of the same pictures: the network's outputs."""
    model = trainers.open_model(run)
    height, width = model.recipe.image_size
    channels, meta = model.meta["channels"], model.meta
    pictures: Pictures = np.random.default_rng(0).integers(0, 256, (batch, height, width, channels), dtype=np.uint8)
    mean, std = (np.array(meta[name], np.float32).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    network = trainers.open_model(run).state.model.to(memory_format=torch.contiguous_format)
    shift, divisor = torch.from_numpy(mean), torch.from_numpy(std)

    def eager() -> list[Any]:
        with torch.inference_mode():
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255)
            return list(parts(network((images - shift) / divisor)))

    by_hand = session(written(network, torch.zeros(2, channels, height, width)))
    (taken,) = (each.name for each in by_hand.get_inputs())

    def onnx_by_hand() -> list[Any]:
        images = (pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
        return list(by_hand.run(None, {taken: np.ascontiguousarray(images)}))

    say = Progress().message
    program = trainers.open_model(export(run, str(folder / "model.pt2"), say=say).as_posix())
    files = [
        export(run, str(folder / "model.onnx"), say=say),
        export(run, str(folder / "int8.onnx"), int8=True, say=say),
    ]
    ours, eight = (Onnx().network(file) for file in files)
    stored = padded(pictures, model.recipe.storage_size)
    return {
        EAGER: eager,
        RUN: lambda: list(parts(model(stored))),
        PT2: lambda: list(parts(program(stored))),
        HAND: onnx_by_hand,
        OURS: lambda: list(ours(pictures)),
        INT8: lambda: list(eight(pictures)),
    }


def padded(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    """Pictures of which these are the middle: a run is given stored ones."""
    (height, width), (rows, columns) = size, pictures.shape[1:3]
    top, left = (height - rows) // 2, (width - columns) // 2
    rims = ((0, 0), (top, height - rows - top), (left, width - columns - left), (0, 0))
    return np.pad(pictures, rims)


def written(network: torch.nn.Module, images: Tensor) -> bytes:
    """As the documentation of torch.onnx shows it."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.onnx.export(network, (images,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(content)
    return content.getvalue()


def session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def check(outputs: dict[str, Outputs]) -> None:
    """All networks are the same."""
    wanted = [np.asarray(each) for each in outputs[EAGER]()]
    for name in (RUN, PT2, HAND, OURS):
        found = [np.asarray(each) for each in outputs[name]()]
        assert len(found) == len(wanted), name
        for mine, theirs in zip(found, wanted, strict=True):
            assert np.abs(mine - theirs).max() <= TOLERANCE * np.abs(theirs).max(), name


def milliseconds(outputs: Outputs, batch: int) -> float:
    """Of a picture: the median of the calls of a turn."""
    outputs()
    taken: list[float] = []
    until = time.perf_counter() + TURN
    while time.perf_counter() < until or len(taken) < 3:
        begun = time.perf_counter()
        outputs()
        taken.append(1000 * (time.perf_counter() - begun) / batch)
    return statistics.median(taken)


def main() -> None:
    given = _common.flags(__doc__, repeats=7, numbers={"batch": (1, "pictures at once")})
    torch.set_num_threads(given.threads)
    with _common.temporary_storage(temporary_files=False) as folder:
        _common.print_machine()
        vnni = {False: "yes, or none is needed", True: "no", None: "not known"}[overflows()]
        print(f"VNNI: {vnni}; ONNX Runtime {onnxruntime.__version__}")
        for name in QUICK if given.quick else RECIPES:
            if given.only not in name:
                continue
            outputs = competitors(trained(name, given.quick, folder), given.batch, folder)
            check(outputs)
            turns = {
                each: lambda call=call: milliseconds(call, given.batch)  # type: ignore[misc]
                for each, call in outputs.items()
            }
            rounds = _common.take_turns(turns, given.repeats)
            bars = {
                (RUN, EAGER): "",
                (PT2, EAGER): "",
                (OURS, EAGER): "<= 0.75",
                (OURS, HAND): "<= 1.0",
                (INT8, OURS): "<= 0.67 with VNNI",
            }
            _common.compare(f"{name}, {given.batch} at once, {given.threads} threads", "ms a picture", rounds, bars)


if __name__ == "__main__":
    main()
