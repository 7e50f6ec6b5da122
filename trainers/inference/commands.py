"""python -m trainers evaluate | predict | export: their words, and what they print."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING

from trainers.cli import cli, leading
from trainers.formatting import check_is_path, plain, shortened
from trainers.inference import Views

if TYPE_CHECKING:
    from trainers.run_facts import Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EvaluateOptions:
    split: str | None = None
    """Which pictures. None: test, where the data has such a split, else val, else all."""
    native: bool = False
    """Score masks at their own size: what the model says is resized to it."""
    sliding: bool = False
    """Move a window of image_size over pictures of their own size: for masks of pictures larger than memory, scored as
    --native does, and for objects that are small in large pictures, which are also seen whole."""
    overlap: float = 0.25
    """Share of a window that the next one covers too."""
    data: str | None = None
    """Where the raw data lies: the same, moved, or other data of the run's classes. None: where it lay in training."""
    tta: Views | None = None
    """Test-time augmentation: the mean output of each picture and its mirror image (flip); of both and both upside down
    (flips); of these four and all of them turned by 90 degrees (rotations, for square pictures). Takes 2, 4 or 8 times
    as long."""
    max_detections: int | None = None
    """The most objects of a picture that are scored, the surest ones. None: as in training."""
    results: str | None = None
    """File to write the objects to that were found: COCO's results, which pycocotools and FiftyOne read."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""
    json: bool = False
    """Print split, rows and every score as JSON."""


def evaluate(argv: list[str]) -> int:
    """The command; returns its exit code."""
    names, flags = leading(argv)
    options = cli(_EvaluateOptions, flags, "python -m trainers evaluate RUN|FILE")
    if len(names) != 1:
        usage = "python -m trainers evaluate RUN|FILE [--split test] [--native] [--data PATH] [--json]"
        raise ValueError(f"usage: {usage}")
    from trainers.inference.evaluate import evaluate as score
    from trainers.progress import Progress

    progress = Progress()
    with progress.bar("evaluating", None) as advance:
        scores = score(
            names[0],
            options.split,
            data=options.data,
            storage=options.storage,
            native=options.native,
            sliding=options.sliding,
            overlap=options.overlap,
            tta=options.tta,
            max_detections=options.max_detections,
            results=options.results,
            advance=advance,
            warn=progress.warning,
        )
    if options.json:
        print(json.dumps(plain(scores)))
        return 0
    _print_scores(scores)
    return 0


def _print_scores(scores: Scores) -> None:
    """Scores, one a line, and those of each class as a table."""
    from rich.console import Console
    from rich.table import Table

    for name, value in scores.items():
        if name not in ("per_class", "classes"):
            print(f"{name:20} {_number(value) if isinstance(value, float) else value}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("class")
    lists: dict[str, list[float | None]] = {}
    for name, values in scores["per_class"].items():
        if values not in lists.values():  # accuracy and recall of a class are one number, and so are Dice and F1
            lists[name] = values
            table.add_column(name.replace("_", " "), justify="right")
    for index, label in enumerate(scores["classes"]):
        found = [values[index] for values in lists.values()]
        table.add_row(label, *("-" if value is None else _number(value) for value in found))
    print()
    Console().print(table)


def _number(value: float) -> str:
    """Of a score, or of how many there are; `-` of what does not occur."""
    return f"{value:,}" if not isinstance(value, float) else "-" if math.isnan(value) else f"{value:.4f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _PredictOptions:
    out: str
    """Folder, or its address (s3://...), that predictions.csv and predictions.png are written to; also masks/ and
    overlays/, where the model segments; detections.json, labels/ and overlays/, where it finds objects. What is done is
    kept there, and the same command goes on with the rest."""
    confidence: float | None = None
    """The least score of an object. None: that at which the run's F1 is best."""
    top_k: int = 1
    """Classes that are named for each picture, the most probable ones: further columns of predictions.csv."""
    workers: int = 0
    """Processes of Ray Data; 0: this process."""
    sliding: bool = False
    """Move a window of image_size over pictures of their own size, in place of shrinking them; objects are looked for
    in the whole picture too."""
    overlap: float = 0.25
    """Share of a window that the next one covers too."""
    tta: Views | None = None
    """Test-time augmentation: the mean output of each picture and its mirror image (flip); of both and both upside down
    (flips); of these four and all of them turned by 90 degrees (rotations, for square pictures). Takes 2, 4 or 8 times
    as long."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def predict(argv: list[str]) -> int:
    """The command; returns its exit code."""
    names, flags = leading(argv)
    options = cli(_PredictOptions, flags, "python -m trainers predict RUN|FILE PATH...")
    if len(names) < 2:
        raise ValueError("usage: python -m trainers predict RUN|FILE PATH... --out DIR")
    for name in names[1:]:
        check_is_path("path", name)
    from trainers.inference.predict import predict_into
    from trainers.progress import Progress
    from trainers.storage.store import Store

    progress = Progress()
    try:
        found = predict_into(
            names[0],
            names[1:],
            Store(options.out),
            workers=options.workers,
            storage=options.storage,
            sliding=options.sliding,
            overlap=options.overlap,
            top_k=options.top_k,
            tta=options.tta,
            confidence=options.confidence,
            progress=progress,
        )
    except KeyboardInterrupt:
        progress.message(f"what is done is kept in {options.out}; to go on, repeat the command")
        raise
    if found.bad:
        progress.warning(f"{len(found.bad)} pictures cannot be decoded and have no prediction: {shortened(found.bad)}")
    print(found.address)
    return 1 if len(found.bad) == found.pictures else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ExportOptions:
    out: str
    """File to write: model.pt2, a torch.export program, or model.onnx, which takes pictures as they are. FILE.json
    beside it holds the classes and how pictures are prepared."""
    int8: bool = False
    """Of FILE.onnx: multiply bytes, smaller and faster where the processor can, by the ranges that 256 training
    pictures show. The score on the validation split is shown."""
    tta: Views | None = None
    """Test-time augmentation: the mean output of each picture and its mirror image (flip); of both and both upside down
    (flips); of these four and all of them turned by 90 degrees (rotations, for square pictures). Takes 2, 4 or 8 times
    as long."""
    data: str | None = None
    """Of --int8: where the raw data lies. None: where it lay in training."""
    storage: str | None = None
    """Folder that run folders lie under. None: $TRAINYARD_STORAGE, else ~/trainyard."""


def export(argv: list[str]) -> int:
    """The command; returns its exit code."""
    names, flags = leading(argv)
    options = cli(_ExportOptions, flags, "python -m trainers export RUN")
    if len(names) != 1:
        raise ValueError("usage: python -m trainers export RUN --out FILE")
    from trainers.inference.export import export as write
    from trainers.progress import Progress

    progress = Progress()
    with progress.waiting("exporting"):
        path = write(
            names[0],
            options.out,
            storage=options.storage,
            tta=options.tta,
            int8=options.int8,
            data=options.data,
            say=progress.message,
            warn=progress.warning,
        )
    print(path)
    return 0
