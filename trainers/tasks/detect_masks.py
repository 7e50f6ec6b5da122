"""Objects in pictures with their masks: `detect`, and masks by prototypes as YOLACT makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from trainers import box_table, instances
from trainers.instances import Instances
from trainers.models._points import Masked
from trainers.tasks import average_precision, box_loss, detect, mask_loss
from trainers.tasks.base import Counts, Floats, Ints, Output, Scores, precise
from trainers.tasks.detect import Detect

TARGET = "instances"


def outputs(classes: int) -> int:
    """A logit for each class; beside these a model predicts a box, its centreness and coefficients."""
    return classes


def make(
    classes: int,
    class_weights: Tensor | None = None,
    *,
    radius: float = 1.5,
    reach: float = 8.0,
    nms: float = 0.6,
    least_score: float = 0.05,
    max_detections: int = 100,
    points: Tensor | None = None,
    image_size: tuple[int, int] | None = None,
) -> DetectMasks:
    """The task; all as of `detect`.

    Args:
        classes: Number of classes.
        class_weights: None: the focal loss knows none.
        radius: How far off the middle of an object points learn to find it, in strides.
        reach: How far off the sides of an object may be from the points of a map, in strides.
        nms: Of two detections of a class whose boxes overlap by a larger IoU, the surer one is kept.
        least_score: What has a lower score is no detection.
        max_detections: As many are kept of a picture, the surest.
        points: Where the model looks, (P, 3): x, y and stride in pixels.
        image_size: Height and width of the pictures, in pixels.

    Raises:
        ValueError: A value is not allowed.
    """
    boxes = detect.make(
        classes,
        class_weights,
        radius=radius,
        reach=reach,
        nms=nms,
        least_score=least_score,
        max_detections=max_detections,
        points=points,
        image_size=image_size,
    )
    assert isinstance(boxes, Detect)  # which points make
    return DetectMasks(boxes)


class DetectMasks:
    """`target` is `Instances` in pixels of the pictures; `output` what `Masked` says: as of `detect`, with a
    coefficient of each prototype after the classes, and the prototypes."""

    metric = "mask_ap"
    errors = ()
    shown = 4

    def __init__(self, boxes: Detect) -> None:
        """See `make`; `boxes` knows all but the masks."""
        self.boxes = boxes
        self.max_detections, self.nms = boxes.max_detections, boxes.nms

    def stand_in(self, rows: int) -> Masked:
        """Zeros, as a model might give for so many pictures, with one prototype of a quarter of their size."""
        height, width = self.boxes.image_size
        points = self.boxes.stand_in(rows)
        return Masked(torch.cat([points, points[..., :1]], 2), torch.zeros(rows, 1, -(-height // 4), -(-width // 4)))

    def weight(self, target: Instances[Tensor]) -> Tensor:
        """Divisors of the losses, float64 (4,): three as of `detect`, and the objects that have a point."""
        wanted = self.boxes.find_wanted(target.table)
        _, learned = self._find_learned(wanted, target)
        return torch.cat([box_loss.divisors(wanted), learned.sum(dtype=torch.float64)[None]])

    def loss(self, output: Masked, target: Instances[Tensor]) -> Tensor:
        """Sums of the losses of classes, boxes, centreness and masks, float64 (4,). Raises ValueError where the
        output's shape does not fit."""
        points, prototypes, stride = self._check(output, len(target.table))
        wanted = self.boxes.find_wanted(target.table)
        places, learned = self._find_learned(wanted, target)
        own = points.shape[2] - prototypes.shape[1]
        coefficients = points[..., own:].gather(1, places[..., None].expand(-1, -1, prototypes.shape[1]))
        of_masks = mask_loss.loss(coefficients, prototypes, target, learned, stride)
        return torch.cat([box_loss.losses(points[..., :own], wanted), of_masks[None]])

    def labels(self, output: Masked, size: tuple[int, int]) -> Instances[Tensor]:
        """Detections and their masks, in pixels of pictures of this size: the table as of `Detect.labels`, (N,
        max_detections, 6), and a layer for each row, uint8 (N, max_detections, *size), 1 in its mask."""
        found = self.find(output, size)
        masks = [self.draw(each, maps, size) for each, maps in zip(found, output[1], strict=True)]
        return Instances(found[..., :6], torch.stack(masks).to(torch.uint8))

    def find(self, output: Masked, size: tuple[int, int]) -> Tensor:
        """Detections as of `Detect.labels`, each with its coefficients behind the class, (N, K, 6 + prototypes)."""
        points, _, _ = self._check(output, len(output[0]))
        return self.boxes.labels(points, size)

    def candidates(self, output: Masked, size: tuple[int, int]) -> Tensor:
        """As of `Detect`, each with its coefficients behind the class."""
        return self.boxes.candidates(output[0], size)

    def draw(self, found: Tensor, prototypes: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks of a picture of this size, bool (K, *size), of what `find` has found in it, (K, 6 + prototypes)."""
        logits, stride = self.logits(found, prototypes)
        scales = [own / side for own, side in zip(self.boxes.image_size, size, strict=True)]
        rows, columns = (
            scale * (torch.arange(side, device=found.device) + 0.5) for scale, side in zip(scales, size, strict=True)
        )
        return mask_loss.draw(logits, found[:, :4] * found.new_tensor([*scales[::-1]] * 2), rows, columns, stride)

    def logits(self, found: Tensor, prototypes: Tensor) -> tuple[Tensor, int]:
        """Of the masks of a picture's detections (K, 6 + prototypes), (K, h, w) in fp32 or better; and the pixels of
        the model's picture that a number of them stands for, along each side."""
        stride = mask_loss.find_stride(self.boxes.image_size, (prototypes.shape[1], prototypes.shape[2]))
        assert stride is not None
        return mask_loss.make_logits(found[:, 6:], precise(prototypes)), stride

    def counts(self, output: Masked, target: Instances[Tensor]) -> Counts:
        """As of `detect`, by boxes; and in per_image `mask_matches`, int32 (N, max_detections, columns), which are
        right by their masks, at the pictures' size."""
        size = self.boxes.image_size
        found = self.find(output, size)
        pairs = zip(found, output[1], strict=True)
        masks = (self.draw(each[each[:, 5] >= 0], maps, size) for each, maps in pairs)
        return self._count(found[..., :6], masks, target)

    def count(self, labels: Instances[Tensor], target: Instances[Tensor]) -> Counts:
        """`counts` of what `labels` gives, and objects in the same pixels, those of any picture."""
        pairs = zip(labels.table, labels.layers, strict=True)
        return self._count(labels.table, (layers[table[:, 5] >= 0] for table, layers in pairs), target)

    def _count(self, found: Tensor, masks: Iterator[Tensor], target: Instances[Tensor]) -> Counts:
        """`masks`: of each picture those of its detections, (n, height, width)."""
        counts = self.boxes.count(found, target.table)
        rows, tables = found.cpu().numpy(), target.table.cpu().numpy()
        overlaps, areas = np.zeros((*rows.shape[:2], tables.shape[1])), np.zeros(rows.shape[:2])
        for number, each in enumerate(masks):
            there = rows[number, :, 5] >= 0
            own = each.cpu().numpy()
            one = Instances(target.table[number : number + 1], target.layers[number : number + 1])
            crowds = box_table.kinds(tables[number]) == box_table.CROWD
            true = instances.masks(one)[0].cpu().numpy()
            overlaps[number, there] = average_precision.mask_overlaps(own, true, crowds)
            areas[number, there] = np.count_nonzero(own, axis=(1, 2))
        matches = torch.from_numpy(average_precision.match(rows, tables, overlaps, areas)).to(found.device)
        return counts._replace(per_image={**counts.per_image, "mask_matches": matches})

    def ranking(self, counts: Mapping[str, Ints]) -> Floats | None:
        """F1 of each picture by its boxes, as of `detect`."""
        return self.boxes.ranking(counts)

    def scores(self, counts: Mapping[str, Ints]) -> Scores:
        """Those of `detect`, of the boxes; `mask_ap`, `mask_ap50` and so on, of the masks."""
        by_box = self.boxes.scores(counts)
        by_mask = average_precision.scores(counts["mask_matches"], counts["truths"], max_detections=self.max_detections)
        of_masks = {f"mask_{name}": value for name, value in by_mask.items() if name.startswith(("ap", "ar"))}
        of_classes = {f"mask_{name}": by_mask["per_class"][name] for name in ("ap", "ap50")}
        return {**of_masks, **by_box, "per_class": {**by_box["per_class"], **of_classes}}

    def _check(self, output: Output, rows: int) -> tuple[Tensor, Tensor, int]:
        """Points and prototypes, in fp32 or better, and the stride of these. Raises ValueError."""
        _, count, columns = self.boxes.output_shape(rows)
        height, width = self.boxes.image_size
        parts = output if isinstance(output, tuple) else (output,)
        shapes = [tuple(each.shape) for each in parts]
        if len(shapes) == 2 and len(shapes[1]) == 4:
            each, *size = shapes[1][1:]
            stride = mask_loss.find_stride((height, width), (size[0], size[1]))
            if shapes[0] == (rows, count, columns + each) and shapes[1][0] == rows and stride:
                return precise(parts[0]), precise(parts[1]), stride
        raise ValueError(
            f"the model's output is {' and '.join(map(str, shapes))}; to learn masks it must be two tensors: ({rows}, "
            f"{count}, {columns} + K), of each point 4 distances, the centreness, the classes and K coefficients, and "
            f"({rows}, K, {-(-height // 4)}, {-(-width // 4)}), K prototypes at a quarter of the size, say; fcos gives "
            "them by --model-args prototypes=16"
        )

    def _find_learned(self, wanted: box_loss.Wanted, target: Instances[Tensor]) -> tuple[Tensor, Tensor]:
        """The point at which the mask of each object is learned, int64 (N, M), and whether there is one, and a mask,
        bool (N, M)."""
        objects, points = target.table.shape[1], wanted.found.shape[1]
        places = mask_loss.find_central(wanted, objects)
        seen = target.table.new_zeros(len(target.table), max(objects, instances.MOST_MASKS) + 1)
        numbers = target.layers.flatten(1).long()
        seen = seen.scatter(1, numbers, 1.0)[:, 1 : objects + 1] > 0
        return places.clamp(max=points - 1), (places < points) & seen
