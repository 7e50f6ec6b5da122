"""A run's model as a file for other programs."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch

from trainers.decode import reading
from trainers.formatting import check_is_path
from trainers.inference import Views, predictions
from trainers.inference.load import open_run, restore
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json, RunFacts
from trainers.storage.store import Store, absolute, explain
from trainers.training import build
from trainers.training.distributed import World

OTHER_FORMATS = (".onnx", ".engine", ".tflite", ".mlmodel", ".mlpackage", ".safetensors")
"""Endings of files that hold no torch.export program, for whoever opens them by these."""


def export(run: str, out: str, *, storage: str | None = None, tta: Views | None = None) -> Path:
    """Write the best checkpoint of a run as a torch.export program, for any batch size, and beside it `out`.json with
    the task, the classes and how pictures are prepared.

    The program is loaded again and its output compared with the model's before the file is kept.

    Args:
        run: its name below `storage`, or its folder.
        out: the file to write.
        storage: where run folders lie, by default the usual place.
        tta: see `evaluate`; the program averages its outputs itself.

    Returns:
        `out`, as an absolute path.

    Raises:
        ValueError: the model cannot be exported, or the two differ; or `out` cannot be written.
    """
    check_is_path("out", out)
    if (suffix := Path(out).suffix.lower()) in OTHER_FORMATS or Path(out).expanduser().is_dir():
        what = f"{suffix} is another format" if suffix in OTHER_FORMATS else "that is a folder"
        raise ValueError(f"--out {out}: {what}; a torch.export program is written, give FILE.pt2")
    target = absolute(out)
    folder, found = open_run(run, storage)
    recipe, meta = Recipe.from_json(found["recipe"]), found["dataset"]
    state, world = restore(recipe, meta, folder, torch.device("cpu"), tta)
    kind, task = predictions.of_meta(meta), build.make_task(recipe, meta)
    model = kind.program(state.model, task).eval()
    images = torch.rand(3, meta["channels"], *recipe.image_size, dtype=world.dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about itself
        try:
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            program = torch.export.export(model, (images[:2],), dynamic_shapes=shapes)
        except Exception as error:  # whatever a model of the user's own makes torch raise
            raise ValueError(f"the model {recipe.model} cannot be exported: {str(error).splitlines()[0]}") from None
        facts = _input_of(recipe, found, world, kind.output(meta, task))
        part, content = target.with_name(f".{target.name}.part.pt2"), io.BytesIO()
        torch.export.save(program, content)  # not to a file: where the disk is full torch ends the process
        try:
            Store(target.parent).write(part.name, content.getvalue())
            again = torch.export.load(part).module()
            for some in (images, images[:1]):
                torch.testing.assert_close(again(some), model(some), rtol=1e-4, atol=1e-4)
            Store(target.parent).write_json(f"{target.name}.json", {**facts, "tta": tta})
            part.replace(target)
        except AssertionError as error:
            raise ValueError(f"the exported program of {run} differs from the model: {error}") from None
        except OSError as error:
            raise ValueError(f"--out {target} cannot be written: {explain(error)}; give another file") from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return target


def _input_of(recipe: Recipe, run: RunFacts, world: World, output: Json) -> Json:
    """What one must know to use an exported program."""
    meta = run["dataset"]
    return {
        "run": run["name"],
        "task": recipe.task,
        "classes": meta["classes"],
        **output,
        "colours": meta.get("colours"),
        "input": f"{str(world.dtype).removeprefix('torch.')} (batch, channels, height, width)",
        "values": "(pixel / 255 - mean) / std",
        **reading(recipe.dataset_args),
        "channels": meta["channels"],
        "image_size": list(recipe.image_size),
        "stored_size": list(recipe.storage_size),
        "resize": recipe.resize,
        "mean": meta["mean"],
        "std": meta["std"],
        "preprocessing": [*_decoding(recipe, meta["channels"]), *_sizing(recipe), *_numbers(meta)],
        "versions": run["versions"],
    }


# ---- from a file to the program's input, step by step, for whoever writes that anew ----


def _decoding(recipe: Recipe, channels: int) -> list[Json]:
    (height, width), how = recipe.storage_size, reading(recipe.dataset_args)
    low, high = how.get("value_range", (0, 65535))
    return [
        {
            "step": "decode",
            "what": "the first picture of the file; Pillow's draft() may decode a JPEG at 1/2, 1/4 or 1/8, as long as "
            "it stays at least as large as jpeg_at_least (before it is turned)",
            "jpeg_at_least": {"height": 2 * height, "width": 2 * width},
        },
        {"step": "orient", "what": "turned upright, as the EXIF orientation says"},
        {
            "step": "range",
            "what": "grey values of more than 8 bits: floor((value - black) / (white - black) * 255 + 0.5), clipped to "
            "0 to 255; of a TIFF of 12 bits white is 4095, where it was not given in training",
            "black": low,
            "white": high,
        },
        {
            "step": "transparency",
            "what": {
                "white": "a picture with an alpha channel is laid on white",
                "ignore": "an alpha channel is left out",
                "auto": "a picture with an alpha channel is laid on white, but for a channel that is no transparency: "
                "hidden everywhere, or another band of a TIFF",
            }[how.get("alpha", "auto")],
            "alpha": how.get("alpha", "auto"),
        },
        {"step": "convert", "what": "Pillow's convert()", "mode": "L" if channels == 1 else "RGB"},
    ]


def _sizing(recipe: Recipe) -> list[Json]:
    (height, width), (rows, columns) = recipe.storage_size, recipe.image_size
    how = {
        "crop": "the largest centred box of the shape of size is resized: scale = min(W / width, H / height), "
        "left = (W - width * scale) / 2, top = (H - height * scale) / 2, box = (left, top, W - left, H - top), "
        "not rounded",
        "stretch": "the whole picture is resized, whatever its shape",
        "pad": "the whole picture is resized to round(W / scale) x round(H / scale), 1 or more, with scale = "
        "max(W / width, H / height), and laid on black at ((width - its width) // 2, (height - its height) // 2)",
    }[recipe.resize]
    return [
        {
            "step": "resize",
            "what": f"{how}; Pillow's resize(size, BILINEAR, box), which antialiases, to whole numbers 0 to 255",
            "how": recipe.resize,
            "filter": "bilinear, antialiased",
            "size": {"height": height, "width": width},
        },
        {
            "step": "crop",
            "what": "the middle",
            "top": (height - rows) // 2,
            "left": (width - columns) // 2,
            "size": {"height": rows, "width": columns},
        },
    ]


def _numbers(meta: DatasetFacts) -> list[Json]:
    return [
        {"step": "scale", "what": "pixel / 255"},
        {"step": "normalise", "what": "(value - mean) / std, by channel", "mean": meta["mean"], "std": meta["std"]},
        {"step": "order", "what": "channels, height, width; then a batch of them"},
    ]
