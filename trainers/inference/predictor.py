"""A run's best model at hand, for one batch of pictures after another."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainers.inference import Views
from trainers.inference.load import restore
from trainers.recipe import Recipe
from trainers.registry import arguments
from trainers.run_facts import RunFacts
from trainers.runs.code import with_copies
from trainers.storage.store import Store
from trainers.tasks.base import Output
from trainers.training import build
from trainers.training.evaluate import check_rows
from trainers.training.preprocess import Preprocess


class Predictor:
    """The model of a run, its pre-processing and its task. What people get of it: predictions.py."""

    def __init__(
        self,
        folder: Store,
        sliding: bool,
        overlap: float,
        top_k: int = 1,
        tta: Views | None = None,
        confidence: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        """
        Args:
            folder: of the run.
            sliding: whether pictures keep their size and a window of image_size is moved over them.
            overlap: share of a window that its neighbours cover too, 0 up to, not including, 1.
            top_k: classes that are named for a whole picture.
            tta: views whose outputs are averaged.
            confidence: the least score of an object.
            max_detections: the most objects of a picture; None: as in training.
        """
        found: RunFacts = with_copies(folder.read_json("run.json"), folder)
        self.recipe, self.meta = limited(Recipe.from_json(found["recipe"]), max_detections), found["dataset"]
        self.state, self.world = restore(self.recipe, self.meta, folder, tta=tta)
        self.preprocess = Preprocess(self.recipe, self.meta, self.world)
        self.task = build.make_task(self.recipe, self.meta)
        self.sliding, self.overlap, self.top_k, self.tta = sliding, overlap, top_k, tta
        self.confidence = confidence
        self.seconds = 0.0
        """Time that the model took so far, without reading and pre-processing."""
        self.state.model.eval()

    def timed(self, images: Tensor) -> Any:
        """The model's output of normalised images; the time that it takes is added to `seconds`."""
        start = self.world.clock()
        output: Output = self.state.model(images)
        self.seconds += self.world.clock() - start
        check_rows(output, len(images), self.recipe)
        return output


def limited(recipe: Recipe, max_detections: int | None) -> Recipe:
    """The recipe with another limit of objects of a picture; None: as it is. Raises ValueError."""
    if max_detections is None:
        return recipe
    taken = arguments("tasks", recipe.task, "make")
    if "max_detections" not in taken:
        raise ValueError(f"max_detections={max_detections} is for runs that find objects; leave it out")
    if max_detections < 1:
        raise ValueError(f"max_detections={max_detections} is not allowed; give 1 or more")
    return recipe.replace(task_args={"max_detections": max_detections})


def check_overlap(overlap: float) -> None:
    """Raises ValueError."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap} is not allowed; give 0 up to, not including, 1")
