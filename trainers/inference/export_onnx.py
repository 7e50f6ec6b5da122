"""A run's model as an ONNX file, in fp32 or in whole numbers of 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from trainers.data.source import scan_files
from trainers.formatting import format_size
from trainers.inference.evaluate import evaluate
from trainers.inference.exported import graph, int8, session
from trainers.inference.exported.told import describe
from trainers.inference.kept import Opened, keep
from trainers.run_facts import Json

LOST = 0.01
"""Of a score: more than this should be known."""


class Int8(NamedTuple):
    """How a model is brought to 8 bits."""

    data: str | None
    """Where the raw data lies; None: where it lay in training."""
    storage: str | None
    warn: Callable[[str], None]


def write(opened: Opened, target: Path, say: Callable[[str], None], eight: Int8 | None) -> None:
    """Write the file. `eight`: how it is brought to 8 bits; None: it is not. Raises ValueError."""
    recipe, meta, kind = opened.recipe, opened.run["dataset"], opened.kind
    model = graph.Served(opened.network.float(), meta, lambda output, size: kind.answer(opened.task, output, size))
    model.eval()
    generator = torch.Generator().manual_seed(recipe.seed)
    shape = (3, *recipe.image_size, meta["channels"])
    pictures = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        network = ["output", "prototypes"][: len(model(pictures[:2])) - len(kind.answers)]
    names = [*kind.answers, *network]
    try:
        written = graph.write(model, pictures, names)
        error = graph.check(written.content, model, pictures, names, network)
    except graph.CannotWrite as reason:
        raise ValueError(f"the model {recipe.model}: {reason}; FILE.pt2 may do") from None
    say(f"{written.layers}; it differs from the model by {error:.0e} of its largest number")
    told = _told(opened, names, network, written.layers)
    if eight is None:
        keep(graph.tell(written.content, told), target, told, lambda part: None, opened.run["name"])
        return
    _write_int8(opened, target, say, eight, written.content, told)


def _told(opened: Opened, names: list[str], network: list[str], layers: graph.Layers) -> Json:
    """What the file tells."""
    meta = opened.run["dataset"]
    takes = {
        "input": f"{session.PICTURES}: uint8 (batch, height, width, channels) of image_size",
        "values": "0 to 255, as they are decoded; the file normalises them: (pixel / 255 - mean) / std",
    }
    output = opened.kind.output(meta, opened.task)
    told = describe(opened.recipe, opened.run, output, tta=opened.tta, takes=takes, to_values=False)
    about = {"outputs": names, session.NETWORK: network, "layers": layers._asdict()}
    return {**told, **about}


def _write_int8(
    opened: Opened, target: Path, say: Callable[[str], None], eight: Int8, content: bytes, told: Json
) -> None:
    recipe, run = opened.recipe, opened.run
    data = eight.data or run["scale"].get("data")
    source = scan_files(recipe, data)
    overflows = int8.overflows()
    reduced = overflows is not False
    made = int8.quantise(content, int8.calibration(recipe, source), reduce_range=reduced)
    told |= {"int8": {"pictures": int8.CALIBRATION, "seed": recipe.seed, "weight_bits": 7 if reduced else 8}}
    if overflows:
        eight.warn(
            "this processor has no VNNI: weights have 7 bits, so that products do not overflow, and int8 may be hardly "
            "faster here than fp32"
        )

    def score(part: Path) -> None:
        """Of the file, beside that of the run."""
        scores = evaluate(str(part), "val", data=data, storage=eight.storage, warn=eight.warn)
        best = run.get("best")
        if best is None:
            return
        name, before = best["metric"], best["value"]
        now = float(scores[name])
        told["int8"] |= {"split": "val", "metric": name, "value": now, "before": before}
        sizes = f"{format_size(len(made))}, {format_size(len(content))} in fp32"
        say(f"val {name} {now:.4f} in int8, {before:.4f} as trained; {sizes}")
        if before - now > LOST:
            eight.warn(f"int8 costs {before - now:.4f} of the {name}; the same command without --int8 costs nothing")

    keep(graph.tell(made, told), target, told, score, run["name"])
