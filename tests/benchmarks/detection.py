"""Detection against what else there is for it.

    python tests/benchmarks/detection.py [--quick] [--repeats N] [--only WORD]

`ap`: average precision of boxes, in one thread, against pycocotools and, where it is installed, faster-coco-eval, which
is compiled. 1,000 pictures, 80 classes, 7,000 objects, 60,000 detections; and 300 pictures of one class with 6,000
objects and 30,000 detections, where matching weighs most. Ours counts from arrays, theirs from lists of annotations, as
each has them, with the index they build. All scores must be equal to 1e-12. Wanted: at most 0.2 of pycocotools' time.

--quick: 20 pictures.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import time
from typing import Any

import _common
import numpy as np
from helpers.detections import Case, to_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from trainers import box_table
from trainers.tasks import average_precision

BATCH = 64


def draw(pictures: int, classes: int, objects: int, detections: int) -> Case:
    """So many objects and detections of a picture; of these every other one near an object."""
    rng = np.random.default_rng(0)
    truths = np.zeros((pictures, objects, box_table.COLUMNS))
    corner, size = rng.integers(0, 2000, (pictures, objects, 2)) / 4, rng.integers(40, 800, (pictures, objects, 2)) / 4
    truths[..., :4] = np.concatenate([corner, corner + size], axis=-1)
    truths[..., box_table.CLASS] = rng.integers(classes, size=(pictures, objects))
    truths[..., box_table.AREA] = size.prod(axis=-1)
    truths[..., box_table.KIND] = rng.random((pictures, objects)) < 0.02  # a crowd now and then
    truths[..., box_table.SCALE] = 1
    of = rng.integers(objects, size=(pictures, detections))
    near = np.take_along_axis(truths, of[..., None], axis=1)
    found = np.zeros((pictures, detections, 6))
    found[..., :4] = near[..., :4] + rng.integers(-30, 31, (pictures, detections, 4)) / 4
    elsewhere = rng.random((pictures, detections)) < 0.5
    found[elsewhere, :2] = rng.integers(0, 2000, (int(elsewhere.sum()), 2)) / 4
    found[elsewhere, 2:4] = found[elsewhere, :2] + rng.integers(40, 800, (int(elsewhere.sum()), 2)) / 4
    found[..., 2:4] = np.maximum(found[..., 2:4], found[..., :2] + 0.25)
    found[..., 4] = rng.permutation(pictures * detections).reshape(pictures, detections) / 2**20
    found[..., 5] = np.where(elsewhere, rng.integers(classes, size=elsewhere.shape), near[..., box_table.CLASS])
    return Case(found, truths, None, None)


def ours(case: Case, classes: int) -> dict[str, Any]:
    bounds = range(0, len(case.truths), BATCH)
    tables = [average_precision.match(case.detections[at : at + BATCH], case.truths[at : at + BATCH]) for at in bounds]
    return average_precision.scores(np.concatenate(tables), average_precision.count_truths(case.truths, classes))


def theirs(coco: Any, evaluator: Any, entries: list[dict[str, Any]]) -> list[float]:
    """The numbers that COCO prints, of evaluators of pycocotools' interface."""
    both = []
    for dataset in entries:
        one = coco()
        one.dataset = dataset
        one.createIndex()
        both.append(one)
    evaluation = evaluator(*both, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [float(value) for value in evaluation.stats]


NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


def measure_ap(title: str, repeats: int, pictures: int, classes: int, objects: int, detections: int) -> None:
    case = draw(pictures, classes, objects, detections)
    entries = [each.dataset for each in to_coco(case, classes)]
    found: dict[str, list[float]] = {}

    def timed(name: str, count: Any) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            found[name] = count()
            return time.perf_counter() - start

    def by_us() -> list[float]:
        scores = ours(case, classes)
        return [scores[name] for name in NAMES]

    competitors = {"trainyard": lambda: timed("trainyard", by_us)}
    competitors["pycocotools"] = lambda: timed("pycocotools", lambda: theirs(COCO, COCOeval, entries))
    if importlib.util.find_spec("faster_coco_eval"):
        from faster_coco_eval import COCO as FastCOCO  # noqa: N811  # a class of that name
        from faster_coco_eval import COCOeval_faster

        competitors["faster-coco-eval"] = lambda: timed(
            "faster-coco-eval", lambda: theirs(FastCOCO, COCOeval_faster, entries)
        )
    rounds = _common.take_turns(competitors, repeats)
    for name, values in found.items():
        np.testing.assert_allclose(values[: len(NAMES)], found["trainyard"], rtol=0, atol=1e-12, err_msg=name)
    bars = {
        ("trainyard", peer): "<= 0.2" if peer == "pycocotools" else "" for peer in competitors if peer != "trainyard"
    }
    _common.compare(title, "seconds", rounds, bars)


def main() -> None:
    given = _common.flags(__doc__, repeats=5, threads=1)
    _common.print_machine()
    if given.only in "ap":
        sizes = {"80 classes": (1000, 80, 7, 60), "1 class, dense": (300, 1, 20, 100)}
        for name, (pictures, *numbers) in sizes.items():
            pictures = 20 if given.quick else pictures
            measure_ap(f"AP of {pictures} pictures, {name}", given.repeats, pictures, *numbers)


if __name__ == "__main__":
    main()
