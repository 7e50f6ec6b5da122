"""The objects of each picture, by their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainers.box_table import (
    AREA,
    BOTTOM,
    CLASS,
    COLUMNS,
    CROWD,
    DIFFICULT,
    KIND,
    LEFT,
    PAD,
    PLAIN,
    RIGHT,
    SCALE,
    TOP,
    are_objects,
    are_plain,
    corners,
    padding,
)
from trainers.data.resize import fit
from trainers.data.targets.base import (
    ONE,
    Array,
    Most,
    Occurrence,
    Shared,
    Size,
    TargetFacts,
    class_number,
    hash_pixels,
)
from trainers.datasets import BOXES, BadImage, Item, Objects
from trainers.notices import notice

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from trainers.augmentations import Erased

LEAST_VISIBLE = 0.2
"""Share of its area that an object must keep in the picture to be one that is to be found."""
ROUNDING = 1e-6
"""By which shares may lie outside 0 to 1."""
_NO_BOXES = {
    "elastic": "it bends objects, and their boxes cannot follow",
    "mixup": "a picture would hold the objects of two, each of them in part",
    "cutmix": "a picture would hold the objects of two, cut where no box says so",
    "fill": "reflect shows mirrored objects that no box names; take zeros or edge",
}
_TURNING = ("rotate", "rand_augment", "trivial_augment")


class Placed(NamedTuple):
    """The objects of a picture as it was read."""

    name: str
    """The picture's."""
    table: Array
    """float64 (M, COLUMNS), in pixels of the picture; of no object: padding."""
    size: Size
    """Of the picture."""


class OfObjects(Shared):
    """What kinds of objects share, with masks and without."""

    legacy_masks = False
    names_rows = True
    one_class = False
    weighted = False
    blank = "no picture of the {split} split has an object that is to be found"
    fewest = 1

    def expects(self, classes: int) -> str:
        return "BOXES"

    def may_be(self, target: object, classes: int) -> bool:
        return class_number(target) == BOXES

    def listed(self, items: Sequence[Item], classes: int) -> None:
        return None

    def occurring(self, targets: Array) -> list[int]:
        raise AssertionError("which classes occur in boxes shows when they are read")

    def check_counts(self, counts: Sequence[int], split: str, dataset: str) -> None:
        if not sum(counts):
            raise ValueError(
                f"no picture of the {split} split of {dataset} has an object that is to be found (crowds and difficult "
                "ones are not): there is nothing to learn or to score; annotate some, or take other splits"
            )

    def format_counts(self, counts: Sequence[int]) -> list[str]:
        return [f"{count:,} objects" if count != 1 else "1 object" for count in counts]

    def facts(self, identified: Sequence[int | str], classes: int) -> TargetFacts:
        return {}

    def describe(self, facts: TargetFacts, classes: Sequence[str]) -> list[str]:
        return []

    def refuse(self, settings: Mapping[str, object]) -> None:
        on = [name for name in _NO_BOXES if settings.get(name)]
        if settings.get("fill") == "reflect":
            on.append("fill")
        if on:
            raise ValueError(f"augment {on[0]} does not go with boxes: {_NO_BOXES[on[0]]}; leave it out")


class Boxes(OfObjects):
    """Objects by box, class, kind and area: `box_table` in pixels of the stored picture; stacked float32
    (N, M, COLUMNS), padded to the picture with most; in shards lists of different lengths."""

    name = "boxes"
    holds = "boxes of objects"
    output = (
        "(batch, points, 5 + classes): of each point of the model the distances to the left, top, right and bottom "
        "side of a box, in strides, the logit of its centre, and those of the classes"
    )

    def check(self, name: str, image: Array, target: object, classes: int) -> Placed:
        if not isinstance(target, Objects):
            raise TypeError(f"the target is {type(target).__name__}; it must be Objects (from trainers.datasets)")
        height, width = image.shape[0], image.shape[1]
        count = len(np.asarray(target.classes))
        for field, shape in (("corners", (count, 4)), ("classes", (count,)), ("kinds", (count,)), ("areas", (count,))):
            value = np.asarray(getattr(target, field))
            if value.shape != shape or value.dtype.kind not in ("iu" if field in ("classes", "kinds") else "iuf"):
                raise TypeError(
                    f"Objects.{field} is {'x'.join(map(str, value.shape)) or 'one value'} of {value.dtype}; it must be "
                    f"{'x'.join(map(str, shape))}, as there are {count} classes"
                )
        _check_values(name, target, classes)
        original = target.size or (height, width)
        scale = original[0] * original[1] / (height * width)
        if not count:
            return Placed(name, padding(scale), (height, width))
        table = np.empty((count, COLUMNS))
        table[:, LEFT : BOTTOM + 1] = np.clip(target.corners, 0, 1) * (width, height, width, height)
        table[:, CLASS], table[:, KIND], table[:, AREA] = target.classes, target.kinds, target.areas
        table[:, SCALE] = scale
        return Placed(name, table, (height, width))

    def renumber(self, target: Placed, numbers: Sequence[int], classes: int) -> Placed:
        table = target.table.copy()
        there = are_objects(table)
        table[there, CLASS] = np.asarray(numbers)[table[there, CLASS].astype(np.int64)]
        return target._replace(table=table)

    def resize(self, target: Placed, size: Size, how: str) -> Array:
        table = scaled(target, size, how)
        if how == "crop" and target.size != size:
            table, whole = clip(table, size), table
            if (corners(table) != corners(whole)).any():
                notice("boxes cut", target.name)
        return table.astype(np.float32)

    def stack(self, targets: Sequence[Array]) -> Array:
        return stack_tables(targets, COLUMNS)

    def stored_bytes(self, size: Size) -> int:
        return 0

    def identify(self, targets: Array) -> list[str]:
        return [hash_pixels(trim(table)) for table in targets]

    def to_column(self, targets: Array) -> pa.Array:
        return table_column(targets)

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        """Of all shards together."""
        return joined_tables(columns, COLUMNS)

    def gather(self, columns: Sequence[Array], first_rows: Array, ids: Array) -> Array:
        return gather_tables(columns[0], columns[1], ids)

    def doubts(self, settings: Mapping[str, object]) -> list[str]:
        turning = [name for name in _TURNING if settings.get(name)]
        if not turning:
            return []
        return [
            f"augment {' and '.join(turning)} turns or shears pictures: a box becomes the one around its four corners, "
            "which is too large (twice for a square at 45 degrees, more for what is long): such boxes are learned"
        ]

    def tile(self, targets: Array, corners: Array, shown: Array) -> Array:
        """What reaches beyond the mosaic is cut by `move`."""
        together, first = tiled(targets, corners, shown)
        return np.take_along_axis(together, first[..., None], 1)

    def move(self, targets: Array, mapping: Array, stored: Size, size: Size, erased: Erased | None = None) -> Array:
        table = targets.astype(np.float64)
        whole, seen = follow(corners(table), mapping, stored, size)
        table[..., SCALE] *= grown(mapping)[:, None]
        table = _show(table, whole, seen)
        if erased is not None:
            _hide(table, erased)
        return table

    def count(self, targets: Array, classes: int) -> Occurrence:
        return count_objects(targets, classes)

    def maps(self, targets: Tensor) -> None:
        return None

    def finish(self, targets: Tensor, maps: Tensor | None) -> Tensor:
        return targets.double()

    def shown(self, target: Tensor, every: int) -> Array:
        table = target.cpu().numpy().astype(np.float32)
        table[:, LEFT : BOTTOM + 1] /= every
        return table

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Array:
        """Objects that fill the picture."""
        row = np.zeros(COLUMNS, np.float32)
        row[[RIGHT, BOTTOM, AREA, SCALE]] = size[1], size[0], size[0] * size[1], 1
        return np.broadcast_to(row, (rows, max(1, most.objects), COLUMNS))


def scaled(target: Placed, size: Size, how: str) -> Array:
    """The table of a picture that is brought to `size`, float64; what reaches beyond it is not cut."""
    if target.size == size:
        return target.table.copy()
    (left, top, right, bottom), inner, at = fit(target.size, size, how)
    scale_x, scale_y = inner[0] / (right - left), inner[1] / (bottom - top)
    table = target.table.copy()
    table[:, [LEFT, RIGHT]] = (table[:, [LEFT, RIGHT]] - left) * scale_x + at[0]
    table[:, [TOP, BOTTOM]] = (table[:, [TOP, BOTTOM]] - top) * scale_y + at[1]
    table[:, SCALE] /= scale_x * scale_y
    return table


def stack_tables(tables: Sequence[Array], columns: int) -> Array:
    """Tables of some pictures as one, float32 (N, M, columns)."""
    stacked = np.zeros((len(tables), max(map(len, tables), default=1), columns), np.float32)
    for row, table in zip(stacked, tables, strict=True):
        row[:, CLASS], row[:, SCALE] = PAD, table[0, SCALE]
        row[: len(table)] = table
    return stacked


def table_column(tables: Array) -> pa.ListArray:
    """Stacked tables as a column of lists of different lengths."""
    import pyarrow as pa

    rows = [trim(table) for table in tables]
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows).reshape(-1)), tables.shape[2])
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def joined_tables(columns: Sequence[pa.Array], width: int) -> list[Array]:
    """Of the columns of some shards together: the rows of all tables, (rows, width), and where each table begins, and
    the last one ends, (tables + 1,)."""
    values = [column.flatten().flatten().to_numpy().reshape(-1, width) for column in columns]
    lengths = np.concatenate([[0], *(column.value_lengths().to_numpy() for column in columns)])
    return [np.concatenate(values), np.cumsum(lengths, dtype=np.int64)]


def gather_tables(values: Array, edges: Array, ids: Array) -> Array:
    """Stacked tables of some pictures, of what `joined_tables` gives."""
    first, lengths = edges[ids], edges[ids + 1] - edges[ids]
    place = np.arange(lengths.max(initial=1))
    there = place < lengths[:, None]
    stacked: Array = values[first[:, None] + np.where(there, place, 0)]
    stacked[~there, :SCALE], stacked[~there, SCALE + 1 :] = padding(0)[0, :SCALE], 0
    return stacked


def tiled(targets: Array, corners: Array, shown: Array) -> tuple[Array, Array]:
    """The objects of mosaics.

    Args:
        targets: tables, (places, N, M, columns).
        corners, shown: see `Target.tile`.

    Returns:
        All tables of a mosaic as one, float64 (N, places * M, columns); and the numbers of the rows that are objects
        before those of others, (N, most objects).
    """
    table = targets.astype(np.float64)
    there = are_objects(table) & shown[..., None]
    top, left = corners[:, 0, :, None], corners[:, 1, :, None]
    table[..., LEFT : BOTTOM + 1] += np.where(there[..., None], np.stack([left, top, left, top], -1), 0)
    table[~there, :SCALE], table[~there, SCALE + 1 :] = padding(0)[0, :SCALE], 0
    together = np.concatenate(table, axis=1)
    present = are_objects(together)
    first = np.argsort(~present, axis=1, kind="stable")[:, : max(1, present.sum(1).max(initial=0))]
    return together, first


def count_objects(targets: Array, classes: int) -> Occurrence:
    """Objects that are to be found: neither crowds nor difficult ones."""
    plain = targets[..., CLASS][are_plain(targets)].astype(np.int64)
    most = int(are_objects(targets).sum(1).max(initial=0))
    return {"counts": np.bincount(plain, minlength=classes).tolist(), "most_objects": most}


def follow(sides: Array, mapping: Array, stored: Size, size: Size) -> tuple[Array, Array]:
    """What becomes of boxes (N, M, 4), and what is seen of that; see `Target.move`."""
    whole = _moved(sides, mapping)
    left = _within(sides, _limits(stored))  # of a mosaic's parts not all may be there
    seen = whole if (left == sides).all() else _moved(left, mapping)
    return whole, _within(seen, _limits(size))


def grown(mapping: Array) -> Array:
    """Pixels of the stored picture that one of the changed picture shows, (N,)."""
    a, b, _, d, e, _ = mapping.T
    found: Array = np.abs(a * e - b * d)
    return found


def clip(table: Array, size: Size) -> Array:
    """What is seen of the objects of a picture of this size; `table`: float64 (..., rows, COLUMNS)."""
    return _show(table, corners(table), _within(corners(table), _limits(size)))


def _show(table: Array, whole: Array, seen: Array) -> Array:
    """The objects of which a part is seen.

    What keeps less than LEAST_VISIBLE of its box becomes a crowd, which is neither to be found nor background; what is
    not seen becomes padding. The area becomes that of the part which is seen, the object being as dense everywhere.

    Args:
        table: float64 (..., rows, COLUMNS).
        whole: their boxes, (..., rows, 4).
        seen: the part of these.
    """
    result, there = table.copy(), are_objects(table)
    parts, before = _box_areas(seen), _box_areas(whole)
    share = np.divide(parts, before, out=np.zeros_like(parts), where=before > 0)
    result[..., LEFT : BOTTOM + 1] = seen
    result[..., AREA] *= share
    result[there & (share < LEAST_VISIBLE), KIND] = CROWD
    result[~there | (parts <= 0), :SCALE] = padding(0)[0, :SCALE]
    return result


def _moved(sides: Array, mapping: Array) -> Array:
    """The boxes around what becomes of boxes (N, M, 4) by the inverse of a mapping."""
    a, b, c, d, e, f = (column[:, None, None] for column in mapping.T)
    x, y = sides[..., [0, 2, 0, 2]] - c, sides[..., [1, 1, 3, 3]] - f
    area = a * e - b * d
    new_x, new_y = (e * x - b * y) / area, (a * y - d * x) / area
    return np.stack([new_x.min(-1), new_y.min(-1), new_x.max(-1), new_y.max(-1)], -1)


def _limits(size: Size) -> Array:
    return np.array([0, 0, size[1], size[0]])


def _within(sides: Array, limits: Array) -> Array:
    """The part of boxes that lies within others, which may be none: its sides have then no extent."""
    return np.clip(sides, limits[..., [0, 1, 0, 1]], limits[..., [2, 3, 2, 3]])


def _box_areas(sides: Array) -> Array:
    extent = np.maximum(sides[..., 2:] - sides[..., :2], 0)
    areas: Array = extent[..., 0] * extent[..., 1]
    return areas


def _hide(table: Array, erased: Erased) -> None:
    """Make those objects crowds, in place, of whose boxes too much was erased."""
    part = table[erased.rows]
    hidden = _within(corners(part), erased.boxes[:, None, [1, 0, 3, 2]])
    share = 1 - LEAST_VISIBLE
    part[are_objects(part) & (_box_areas(hidden) > share * _box_areas(corners(part))), KIND] = CROWD
    table[erased.rows] = part


def trim(table: Array) -> Array:
    """A table without padding, but for one row where there is no object: float32, contiguous."""
    there = are_objects(table)
    return np.ascontiguousarray(table[there] if there.any() else table[:1], np.float32)


def _check_values(name: str, objects: Objects, classes: int) -> None:
    """Raises BadImage for what cannot be the objects of a picture."""
    numbers, kinds, sides = (np.asarray(part) for part in (objects.classes, objects.kinds, objects.corners))
    outside = (numbers < 0) | (numbers >= classes)
    if outside.any():
        raise BadImage(
            f"{name}: the class of an object is number {numbers[outside][0]}; allowed are 0 to {classes - 1}"
        )
    if not np.isin(kinds, (PLAIN, CROWD, DIFFICULT)).all():
        raise BadImage(f"{name}: the kinds of its objects are {sorted(set(kinds.tolist()))}; allowed are 0, 1 and 2")
    proper = (sides[:, :2] < sides[:, 2:]).all(1) & (sides >= -ROUNDING).all(1) & (sides <= 1 + ROUNDING).all(1)
    if not proper.all():  # of what is no number too
        shown = ", ".join(f"{side:.6g}" for side in sides[~proper][0])
        raise BadImage(
            f"{name}: the box {shown} is none: left, top, right and bottom must be shares of the picture, 0 to 1, with "
            "left < right and top < bottom"
        )
    if not (np.isfinite(objects.areas) & (np.asarray(objects.areas) > 0)).all():
        raise BadImage(f"{name}: the area of an object is {np.min(objects.areas):g} pixels; it must be above 0")
