"""Validation pictures with what the model makes of them, drawn by kind of target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from trainers.messages import Picture
from trainers.run_facts import DatasetFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainers.confusion import Drawn
    from trainers.image_tables import Ints


def draw_examples(
    rows: Sequence[Picture], dataset: DatasetFacts, title: str, confusion: Drawn | None, counts: Mapping[str, Ints]
) -> Figure:
    """Examples, one or more.

    Args:
        rows: The pictures.
        dataset: Of run.json.
        title: One line or more.
        confusion: Of the same epoch, where there is one.
        counts: Likewise.
    """
    return _OF_KIND[str(dataset.get("target") or "masks")](rows, dataset, title, confusion, counts)


def _masks(
    rows: Sequence[Picture], dataset: DatasetFacts, title: str, confusion: Drawn | None, _: Mapping[str, Ints]
) -> Figure:
    from trainers.ratios import iou
    from trainers.runs.mask_figures import draw_predictions, palette

    # Without names, by number; 255 is no class.
    largest = max(int(mask[mask < 255].max(initial=0)) for row in rows for mask in (row["target"], row["labels"]))
    classes = [str(name) for name in dataset.get("classes") or range(largest + 1)]
    scores = None if confusion is None else iou(confusion.matrix).tolist()
    return draw_predictions(rows, classes, dataset.get("colours") or palette(len(classes)), title, scores)


def _boxes(
    rows: Sequence[Picture], dataset: DatasetFacts, title: str, _: Drawn | None, counts: Mapping[str, Ints]
) -> Figure:
    from trainers.runs.box_figures import chosen_confidence, draw_predictions

    return draw_predictions(rows, dataset.get("classes") or [], title, chosen_confidence(counts))


def _instances(
    rows: Sequence[Picture], dataset: DatasetFacts, title: str, _: Drawn | None, counts: Mapping[str, Ints]
) -> Figure:
    from trainers.runs.box_figures import chosen_confidence
    from trainers.runs.instance_figures import draw_predictions

    return draw_predictions(rows, dataset.get("classes") or [], title, chosen_confidence(counts))


_OF_KIND: Mapping[str, Callable[..., Figure]] = {"masks": _masks, "boxes": _boxes, "instances": _instances}
"""Kind of target -> what draws its examples."""
