"""A trained model at hand, for one batch of pictures after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.data.resize import Pixels, shrink
from trainers.decode import decode, reading
from trainers.inference import Views
from trainers.inference.load import Trained, find_trained
from trainers.recipe import Recipe
from trainers.registry import arguments
from trainers.run_facts import DatasetFacts
from trainers.tasks.base import Output
from trainers.training import build
from trainers.training.evaluate import check_rows
from trainers.training.preprocess import Preprocess


class Predictor:
    """A trained model, its pre-processing and its task. What people get of it: predictions/."""

    def __init__(
        self,
        trained: Trained,
        sliding: bool = False,
        overlap: float = 0.25,
        top_k: int = 1,
        tta: Views | None = None,
        confidence: float | None = None,
        max_detections: int | None = None,
    ) -> None:
        """
        Args:
            trained: a run, or a file.
            sliding: whether pictures keep their size and a window of image_size is moved over them.
            overlap: share of a window that its neighbours cover too, 0 up to, not including, 1.
            top_k: classes that are named for a whole picture.
            tta: views whose outputs are averaged.
            confidence: the least score of an object.
            max_detections: the most objects of a picture; None: as in training.
        """
        self.trained, self.meta = trained, trained.dataset
        self.recipe = limited(Recipe.from_json(trained.facts["recipe"]), max_detections)
        self.state, self.world = trained.restore(self.recipe, self.meta, tta=tta)
        self.preprocess = Preprocess(self.recipe, self.meta, self.world)
        self.task = build.make_task(self.recipe, self.meta)
        self.sliding, self.overlap, self.top_k, self.tta = sliding, overlap, top_k, tta
        self.confidence = confidence
        self.seconds = 0.0
        """Time that the model took so far, without reading and pre-processing."""
        self.state.model.eval()

    @property
    def classes(self) -> list[str]:
        """Their names, by number."""
        return self.meta["classes"]

    def read(self, path: str) -> Pixels:
        """A picture as the model is given it, uint8 (*stored_size, C). Raises BadImage, or OSError."""
        return as_stored(path, self.recipe, self.meta)

    def __call__(self, pictures: Pixels) -> Output:
        """What the model makes of pictures as `read` gives them, uint8 (N, *stored_size, C): of classes and masks
        logits, of objects what their task takes. `task.labels(output, recipe.image_size)` makes classes of it."""
        with torch.inference_mode(), self.world.autocast():
            output: Output = self.timed(self.preprocess.images(pictures))
        return output

    def timed(self, images: Tensor) -> Any:
        """The model's output of normalised images; the time that it takes is added to `seconds`."""
        start = self.world.clock()
        output: Output = self.state.model(images)
        self.seconds += self.world.clock() - start
        check_rows(output, len(images), self.recipe)
        return output


def open_model(model: str, *, storage: str | None = None, tta: Views | None = None) -> Predictor:
    """A trained model that can be called.

    Args:
        model: a run, by its name below `storage` or by its folder; or a file that was exported of one.
        storage: where run folders lie, by default the usual place.
        tta: see `evaluate`.

    Returns:
        The model, with `recipe`, `classes`, `task`, and `read`, which reads a picture for it.

    Raises:
        ValueError: there is neither a run nor a file that is called so, or it cannot be opened.
    """
    return Predictor(find_trained(model, storage), tta=tta)


def as_stored(path: str, recipe: Recipe, meta: DatasetFacts) -> Pixels:
    """A picture at the size at which pictures are stored."""
    picture = decode(path, meta["channels"], recipe.storage_size, how=reading(recipe.dataset_args))
    return shrink(picture, recipe.storage_size, recipe.resize)


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
