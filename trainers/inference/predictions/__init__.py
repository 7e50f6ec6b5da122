"""What people get of a model's predictions: one class for each kind of target (data/targets).

labels        a class for each picture: rows of predictions.csv
masks         masks, colours and overlays at the picture's own size, and scores at that size
label_sets    the labels of each picture, and the probability of each label
numbers       a number for each picture, or several
boxes         the objects of each picture: rows of predictions.csv, files of COCO and YOLO, overlays
instances     the same with the mask of each object, in COCO's results and overlays
"""

from __future__ import annotations

from collections.abc import Mapping

from trainers.data import targets
from trainers.inference.predictions.base import Done as Done
from trainers.inference.predictions.base import Named as Named
from trainers.inference.predictions.base import Predictions as Predictions
from trainers.inference.predictions.instances import Outlined
from trainers.inference.predictions.objects import Objects
from trainers.inference.predictions.pixels import PixelClasses
from trainers.inference.predictions.whole import Classes, Numbers, Tags

_KINDS: Mapping[str, Predictions] = {
    "labels": Classes(),
    "masks": PixelClasses(),
    "label_sets": Tags(),
    "numbers": Numbers(),
    "boxes": Objects(),
    "instances": Outlined(),
}


def of_meta(meta: Mapping[str, object]) -> Predictions:
    """What is made of the predictions of a run, from `dataset` of its run.json. Raises ValueError."""
    return targets.pick(_KINDS, targets.of_meta(meta).name)
