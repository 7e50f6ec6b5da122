"""A run's model as a file for other programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from trainers.formatting import check_is_path
from trainers.inference import Views, export_onnx, exported, predictions
from trainers.inference.exported import program, session
from trainers.inference.exported.told import describe
from trainers.inference.fused import fuse
from trainers.inference.kept import Opened, keep
from trainers.inference.load import open_run, restore
from trainers.instances import parts
from trainers.recipe import Recipe
from trainers.storage.store import absolute
from trainers.training import build


def export(
    run: str,
    out: str,
    *,
    storage: str | None = None,
    tta: Views | None = None,
    int8: bool = False,
    data: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    warn: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write the best checkpoint of a run as a file, for any batch size, and beside it `out`.json with the task, the
    classes and how pictures are prepared.

    FILE.pt2 is a torch.export program, which takes normalised numbers. FILE.onnx takes pictures as they are, uint8
    (batch, height, width, channels) of image_size, and normalises them itself; it gives answers, such as the
    probabilities of classes, and the model's output. The file is opened again and compared with the model before it is
    kept.

    Args:
        run: its name below `storage`, or its folder.
        out: the file to write.
        storage: where run folders lie, by default the usual place.
        tta: see `evaluate`; the file averages its outputs itself.
        int8: whether FILE.onnx multiplies bytes, by what training pictures make of its layers; it is scored on the
            validation split.
        data: where the raw data lies, by default where it lay in training.
        say: gets what has been done to the layers, and the score of int8.
        warn: gets what a person should know.

    Returns:
        `out`, as an absolute path.

    Raises:
        ValueError: the model cannot be exported, or the two differ; or `out` cannot be written.
    """
    target = _check_out(out)
    if exported.find(run) is not None:
        raise ValueError(f"{run} is a file; export takes the run that it is of")
    if int8 and target.suffix.lower() != ".onnx":
        raise ValueError(f"--int8 is for FILE.onnx, and --out is {out}; leave one of them out")
    opened = _open(run, storage, tta)
    if target.suffix.lower() == ".onnx":
        export_onnx.write(opened, target, say, export_onnx.Int8(data, storage, warn) if int8 else None)
    else:
        _write_program(opened, target, say)
    return target


def _check_out(out: str) -> Path:
    """The file to write. Raises ValueError where it cannot be one."""
    check_is_path("out", out)
    if Path(out).expanduser().is_dir():
        raise ValueError(f"--out {out}: that is a folder; a file is written, give FILE.pt2")
    if (suffix := Path(out).suffix.lower()) in exported.OTHER_FORMATS:
        raise ValueError(f"--out {out}: {suffix} is another format; give FILE{' or FILE'.join(exported.FORMATS)}")
    if suffix == ".onnx":
        session.require("onnx", "onnxscript", "onnxruntime")
    return absolute(out)


def _open(run: str, storage: str | None, tta: Views | None) -> Opened:
    folder, found = open_run(run, storage)
    recipe, meta = Recipe.from_json(found["recipe"]), found["dataset"]
    state, _ = restore(recipe, meta, folder, torch.device("cpu"), tta)
    task = build.make_task(recipe, meta)
    return Opened(found, recipe, state.model.eval(), task, predictions.of_meta(meta), tta)


def _write_program(opened: Opened, target: Path, say: Callable[[str], None]) -> None:
    """Raises ValueError."""
    recipe, meta = opened.recipe, opened.run["dataset"]
    dtype = torch.float64 if recipe.precision == "fp64" else torch.float32
    images = torch.rand(3, meta["channels"], *recipe.image_size, dtype=dtype)
    fused = fuse(opened.network, images)
    say(str(fused))
    model = opened.kind.program(fused.model, opened.task).eval()
    takes = {
        "input": f"{str(dtype).removeprefix('torch.')} (batch, channels, height, width)",
        "values": "(pixel / 255 - mean) / std",
    }
    output = opened.kind.output(meta, opened.task)
    told = describe(recipe, opened.run, output, tta=opened.tta, takes=takes, to_values=True)
    told |= {"layers": {"normalisations": fused.normalisations, "folded": fused.folded}}

    def check(part: Path) -> None:
        again = torch.export.load(part).module()
        for some in (images, images[:1]):
            torch.testing.assert_close(again(some), model(some), rtol=1e-4, atol=1e-4)
        # of nearly equal boxes another may be kept: what the network gives is compared with the model as it was
        for mine, theirs in zip(parts(exported.load(part)(images)), parts(opened.network(images)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            content = program.write(model, images, told, within=model is not fused.model)
        except Exception as error:  # whatever a model of the user's own makes torch raise
            raise ValueError(f"the model {recipe.model} cannot be exported: {str(error).splitlines()[0]}") from None
        keep(content, target, told, check, opened.run["name"])
