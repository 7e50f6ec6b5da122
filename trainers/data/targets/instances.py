"""The objects of each picture, each with a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainers import outlines
from trainers.box_table import AREA, BOTTOM, CLASS, COLUMNS, CROWD, KIND, LEFT, RIGHT, SCALE, TOP, are_objects, padding
from trainers.data.resize import fit, shrink
from trainers.data.targets.base import ONE, Array, Most, Occurrence, Size, hash_pixels
from trainers.data.targets.boxes import (
    LEAST_VISIBLE,
    Boxes,
    OfObjects,
    Placed,
    clip,
    count_objects,
    follow,
    gather_tables,
    grown,
    joined_tables,
    scaled,
    stack_tables,
    table_column,
    tiled,
    trim,
)
from trainers.data.tiles import paste
from trainers.datasets import BadImage, Objects
from trainers.instances import MOST_LAYERS, MOST_MASKS, Instances
from trainers.notices import notice

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from trainers.augmentations import Erased

PIXELS, TIGHT = COLUMNS, COLUMNS + 1
"""Columns of tables on their way to the task: pixels that the whole mask has at the scale of the picture, 0 where an
object has none; and, once pictures were changed, whether the box is the one around what is seen of the mask."""
_BOXES = Boxes()
_COMPRESSION = "lz4"


class Outlined(NamedTuple):
    """The objects of a picture as it was read."""

    placed: Placed
    outlines: Sequence[Any]
    """See `Objects`."""
    layers: int
    """That there may be."""


class InstanceMasks(OfObjects):
    """Objects by box, class, kind, area and mask: a table as of boxes, and layers, uint8 (L, H, W), in which each
    object has the number of its row + 1 (`trainers.instances`); stacked with the layers of the picture that has most;
    in shards each picture's layers by themselves, compressed.

    A mask is the pixels of the outline at the stored size. The largest objects come first, each in the first layer
    where it overlaps nothing. Masks say what is seen of an object, and their pixels where its box ends, if it was
    turned or cut.
    """

    name = "instances"
    holds = "objects with masks"
    output = ""
    outside = 0

    def check(self, name: str, image: Array, target: object, classes: int) -> Outlined:
        placed = _BOXES.check(name, image, target, classes)
        assert isinstance(target, Objects)
        if target.outlines is None or len(target.outlines) != len(target.classes):
            held = "None" if target.outlines is None else f"a list of {len(target.outlines)}"
            raise TypeError(f"Objects.outlines is {held}; it must hold one for each of {len(target.classes)} objects")
        if len(target.outlines) > MOST_MASKS:
            raise BadImage(
                f"{name}: it has {len(target.outlines)} objects, and at most {MOST_MASKS} of a picture can have masks; "
                "cut it into parts, or learn boxes alone (--task detect)"
            )
        if not 1 <= target.layers <= MOST_LAYERS:
            raise TypeError(f"Objects.layers is {target.layers}; it must be 1 to {MOST_LAYERS}")
        return Outlined(placed, [_check_outline(name, each, placed.size) for each in target.outlines], target.layers)

    def renumber(self, target: Outlined, numbers: Sequence[int], classes: int) -> Outlined:
        return target._replace(placed=_BOXES.renumber(target.placed, numbers, classes))

    def resize(self, target: Outlined, size: Size, how: str) -> Instances[Array]:
        """Of one picture: float32 (M, COLUMNS + 1), uint8 (L, height, width)."""
        name, _, own = target.placed
        table = scaled(target.placed, size, how)
        parts = [_draw(outline, own, size, how) for outline in target.outlines]
        if how == "crop" and own != size and parts:
            table, kept = _cut(table, parts, target.outlines, own, size)
            if len(kept) < len(parts) or (table[:, KIND] != target.placed.table[kept, KIND]).any():
                notice("boxes cut", name)
            parts = [parts[number] for number in kept]
        if not parts:
            return Instances(_with_pixels(padding(table[0, SCALE]), [0]), np.zeros((1, *size), np.uint8))
        parts = [part if part.pixels.any() else _one_pixel(row, size) for part, row in zip(parts, table, strict=True)]
        layers, lost = _lay(parts, size, target.layers)
        if lost:
            notice("masks cut", name)
        return Instances(_with_pixels(table, np.bincount(layers.ravel(), minlength=len(parts) + 1)[1:]), layers)

    def stack(self, targets: Sequence[Instances[Array]]) -> Instances[Array]:
        tables = stack_tables([table for table, _ in targets], COLUMNS + 1)
        most = max((len(layers) for _, layers in targets), default=1)
        size = targets[0].layers.shape[1:] if targets else (0, 0)
        stacked = np.zeros((len(targets), most, *size), np.uint8)
        for row, (_, layers) in zip(stacked, targets, strict=True):
            row[: len(layers)] = layers
        return Instances(tables, stacked)

    def stored_bytes(self, size: Size) -> int:
        """Compressed, masks take far less than pictures: a guess that is large enough."""
        return size[0] * size[1] // 8

    def identify(self, targets: Instances[Array]) -> list[str]:
        rows = zip(targets.table, targets.layers, strict=True)
        return [f"{hash_pixels(trim(table))}-{hash_pixels(_used(layers))}" for table, layers in rows]

    def to_column(self, targets: Instances[Array]) -> pa.Array:
        import pyarrow as pa

        used = [_used(layers) for layers in targets.layers]
        packed = [pa.compress(layers.tobytes(), codec=_COMPRESSION, asbytes=True) for layers in used]
        shapes = pa.array(np.array([layers.shape for layers in used], np.int32).reshape(-1))
        columns = {
            "table": table_column(targets.table),
            "layers": pa.array(packed, pa.large_binary()),
            "shape": pa.FixedSizeListArray.from_arrays(shapes, 3),
        }
        return pa.StructArray.from_arrays(list(columns.values()), list(columns))

    def from_columns(self, columns: Sequence[pa.Array]) -> list[Array]:
        """The tables of all shards; the shapes of all layers, (rows, 3); and of each shard the compressed layers of all
        its rows, bytes, and where those of each begin, and the last ones end."""
        found = joined_tables([column.field("table") for column in columns], COLUMNS + 1)
        found.append(np.concatenate([column.field("shape").flatten().to_numpy().reshape(-1, 3) for column in columns]))
        for column in columns:
            _, edges, packed = column.field("layers").buffers()
            found += [np.frombuffer(packed, np.uint8), np.frombuffer(edges, np.int64, len(column) + 1)]
        return found

    def gather(self, columns: Sequence[Array], first_rows: Array, ids: Array) -> Instances[Array]:
        import pyarrow as pa

        values, edges, shapes, *shards = columns
        wanted = shapes[ids]
        layers = np.zeros((len(ids), wanted[:, 0].max(initial=1), *shapes[0, 1:]), np.uint8)
        numbers = np.searchsorted(first_rows, ids, side="right") - 1
        for row, number, within, shape in zip(layers, numbers, ids - first_rows[numbers], wanted, strict=True):
            packed, starts = shards[2 * number : 2 * number + 2]
            plain = pa.decompress(packed[starts[within] : starts[within + 1]], int(shape.prod()), codec=_COMPRESSION)
            row[: shape[0]] = np.frombuffer(plain, np.uint8).reshape(shape)
        return Instances(gather_tables(values, edges, ids), layers)

    def doubts(self, settings: Mapping[str, object]) -> list[str]:
        return []

    def tile(self, targets: Instances[Array], corners: Array, shown: Array) -> Instances[Array]:
        """Numbers are those of the rows of the mosaic's own table. Of more than MOST_MASKS objects the smallest become
        crowds without masks."""
        together, first = tiled(targets.table, corners, shown)
        many = are_objects(together).sum(1) > MOST_MASKS
        if many.any():
            small = np.where(are_objects(together[many]), -together[many][..., PIXELS], 1.0)
            first[many] = np.argsort(small, axis=1, kind="stable")[:, : first.shape[1]]
        table = np.take_along_axis(together, first[..., None], 1)
        beyond = table[:, MOST_MASKS:]
        beyond[..., PIXELS] = 0
        beyond[are_objects(beyond), KIND] = CROWD

        places, count, most = targets.table.shape[:3]
        numbers = np.zeros((count, 1 + places * most), np.uint8)  # of each row of all tables, counted from 1
        ranks = np.arange(1, min(MOST_MASKS, first.shape[1]) + 1, dtype=np.uint8)
        np.put_along_axis(numbers, 1 + first[:, :MOST_MASKS], ranks[None], 1)
        layers = np.zeros_like(targets.layers)
        for place, row in np.argwhere(shown).tolist():
            own = np.zeros(256, np.uint8)
            own[1 : most + 1] = numbers[row, 1 + place * most :][: min(most, 255)]
            layers[place, row] = own[targets.layers[place, row]]
        return Instances(table, np.moveaxis(paste(np.moveaxis(layers, 2, -1), corners, shown), -1, 1))

    def move(
        self, targets: Instances[Array], mapping: Array, stored: Size, size: Size, erased: Erased | None = None
    ) -> Instances[Array]:
        """The tables, with what `finish` needs beside the layers, which move as maps do."""
        table = targets.table.astype(np.float64)
        moved = _BOXES.move(table, mapping, stored, size, erased)  # decides where there is no mask
        masked = table[..., PIXELS] > 0
        for column in (CLASS, KIND, AREA):
            moved[..., column] = np.where(masked, table[..., column], moved[..., column])
        moved[..., PIXELS] /= grown(mapping)[:, None]
        whole, seen = follow(table[..., LEFT : BOTTOM + 1], mapping, stored, size)
        moved[..., LEFT : BOTTOM + 1] = np.where(masked[..., None], seen, moved[..., LEFT : BOTTOM + 1])
        turned = (mapping[:, [1, 3]] != 0).any(1)
        tight = masked & (turned[:, None] | (seen != whole).any(-1))
        return Instances(np.concatenate([moved, tight[..., None]], -1), targets.layers[:, :0])

    def count(self, targets: Instances[Array], classes: int) -> Occurrence:
        return {**count_objects(targets.table, classes), "layers": targets.layers.shape[1]}

    def maps(self, targets: Instances[Tensor]) -> Tensor:
        return targets.layers

    def finish(self, targets: Instances[Tensor], maps: Tensor | None) -> Instances[Tensor]:
        assert maps is not None
        table = targets.table.double()
        changed = table.shape[-1] > TIGHT
        return Instances(_settle(table, maps) if changed else table[..., :COLUMNS], maps)

    def shown(self, target: Instances[Tensor], every: int) -> Instances[Array]:
        return Instances(_BOXES.shown(target.table, every), target.layers[:, ::every, ::every].cpu().numpy())

    def dummy(self, rows: int, size: Size, classes: int, most: Most = ONE) -> Instances[Array]:
        """Objects that fill the picture, by their boxes."""
        table = _BOXES.dummy(1, size, classes, most)
        wider = np.concatenate([table, table[..., AREA : AREA + 1]], -1)
        nothing = np.zeros((), np.uint8)
        return Instances(
            np.broadcast_to(wider, (rows, *wider.shape[1:])), np.broadcast_to(nothing, (rows, most.layers, *size))
        )


# ---- from outlines to layers ----


class _Part(NamedTuple):
    """A mask, as the smallest box that holds it."""

    top: int
    left: int
    pixels: Array
    """bool (height, width); of no pixel (0, 0)."""

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.pixels.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def _check_outline(name: str, outline: object, size: Size) -> Any:
    """An outline as uint8 (height, width), or as polygons, (n, 2) each. Raises BadImage, or TypeError for what is no
    outline at all."""
    if isinstance(outline, np.ndarray):
        if outline.dtype != np.uint8 or outline.shape != size or outline.max(initial=0) > 1:
            raise TypeError(
                f"the mask of an object is {'x'.join(map(str, outline.shape))} of {outline.dtype}; it must be 0 and 1 "
                f"of uint8, {size[0]}x{size[1]}, as the picture is"
            )
        return outline
    if isinstance(outline, str) or not isinstance(outline, Sequence):
        raise TypeError(f"an outline is {type(outline).__name__}; it must be a mask or a list of polygons")
    polygons = [np.asarray(polygon, np.float64).reshape(-1) for polygon in outline]
    for polygon in polygons or [np.empty(0)]:
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise BadImage(
                f"{name}: the polygon of an object has {len(polygon)} numbers; it must be finite x and y of three "
                "points or more"
            )
    return [polygon.reshape(-1, 2) for polygon in polygons]


def _draw(outline: Any, own: Size, size: Size, how: str) -> _Part:
    """An outline of a picture of the size `own` as it is seen where that is brought to `size`; `how`: see
    Recipe.resize."""
    if isinstance(outline, np.ndarray):
        mask = outline if own == size else shrink(outline[:, :, None], size, how, mask=True)[:, :, 0]
    else:
        (left, top, right, bottom), inner, at = fit(own, size, how)
        scale = (inner[0] / (right - left), inner[1] / (bottom - top))
        mask = _fill([(points * (own[1], own[0]) - (left, top)) * scale + at for points in outline], size)
        if how == "pad":
            within = np.zeros_like(mask)
            within[at[1] : at[1] + inner[1], at[0] : at[0] + inner[0]] = 1
            mask &= within
    down, across = np.flatnonzero((mask == 1).any(1)), np.flatnonzero((mask == 1).any(0))
    if not len(down):
        return _Part(0, 0, np.zeros((0, 0), np.bool_))
    top, left = int(down[0]), int(across[0])
    return _Part(top, left, mask[top : down[-1] + 1, left : across[-1] + 1] == 1)


def _fill(polygons: Sequence[Array], size: Size) -> Array:
    """Rounded as they were written: what is drawn depends on their last digits."""
    return outlines.fill([np.round(points, 6) for points in polygons], *size)


def _one_pixel(row: Array, size: Size) -> _Part:
    """Of an object that is too small to be seen: the middle of its box."""
    middle = [(row[TOP] + row[BOTTOM]) / 2, (row[LEFT] + row[RIGHT]) / 2]
    y, x = np.clip(np.floor(middle), 0, np.array(size) - 1).astype(int).tolist()
    return _Part(y, x, np.ones((1, 1), np.bool_))


def _cut(table: Array, parts: Sequence[_Part], of: Sequence[Any], own: Size, size: Size) -> tuple[Array, list[int]]:
    """What is seen of objects that reach beyond the picture, as `boxes.clip` has it of boxes: the table of those of
    which something is, and their numbers; `of`: their outlines."""
    (left, top, right, bottom), inner, _ = fit(own, size, "crop")
    scale = inner[0] / (right - left) * inner[1] / (bottom - top)
    result = clip(table, size)
    for row, before, part, outline in zip(result, table, parts, of, strict=True):
        if not part.pixels.any():
            continue
        full = outline if isinstance(outline, np.ndarray) else _fill([each * (own[1], own[0]) for each in outline], own)
        share = min(1.0, part.pixels.sum() / (full.sum() * scale))
        cut = (row[LEFT : BOTTOM + 1] != before[LEFT : BOTTOM + 1]).any()
        row[:] = before
        row[AREA] *= share
        if share < LEAST_VISIBLE:
            row[KIND] = CROWD
        if cut:
            (y, x), (height, width) = (part.top, part.left), part.pixels.shape
            row[LEFT : BOTTOM + 1] = x, y, x + width, y + height
    kept = np.flatnonzero(are_objects(result)).tolist()
    return result[kept], kept


def _lay(parts: Sequence[_Part], size: Size, most: int) -> tuple[Array, int]:
    """Layers, uint8 (L, height, width), and how many pixels were lost where `most` of them do not hold all: they are
    taken from the larger object of two."""
    layers: list[Array] = []
    lost = 0
    areas = [int(part.pixels.sum()) for part in parts]
    for number in sorted(range(len(parts)), key=lambda number: -areas[number]):
        part = parts[number]
        taken = [int(np.count_nonzero(layer[part.window][part.pixels])) for layer in layers]
        place = next((place for place, pixels in enumerate(taken) if not pixels), None)
        if place is None and len(layers) < most:
            place = len(layers)
            layers.append(np.zeros(size, np.uint8))
        elif place is None:
            place = int(np.argmin(taken))
            lost += taken[place]
        layers[place][part.window][part.pixels] = number + 1
    return np.stack(layers), lost


def _with_pixels(table: Array, pixels: Any) -> Array:
    return np.concatenate([table, np.reshape(pixels, (-1, 1))], 1).astype(np.float32)


def _used(layers: Array) -> Array:
    """Without those that are empty, at the end; one at least."""
    holding = np.flatnonzero(layers.any((1, 2)))
    return np.ascontiguousarray(layers[: holding[-1] + 1 if len(holding) else 1])


# ---- to the task ----


def _settle(table: Tensor, layers: Tensor) -> Tensor:
    """Tables as the task takes them, where pictures were changed: the moved masks say what is seen of each object.

    What keeps less than LEAST_VISIBLE of its pixels becomes a crowd; what is cut off as a whole becomes padding.

    Args:
        table: float64 (N, M, TIGHT + 1).
        layers: uint8 (N, L, height, width), moved.
    """
    import torch

    from trainers.upload import upload

    seen, around = _measure(layers, table.shape[1])
    whole, tight = table[..., PIXELS], table[..., TIGHT] > 0
    share = seen / whole.clamp(min=1e-9)
    result = table[..., :COLUMNS].clone()
    sides = slice(LEFT, BOTTOM + 1)
    result[..., sides] = torch.where((tight & (seen > 0))[..., None], around.double(), result[..., sides])
    result[..., AREA] *= torch.where(whole > 0, share.clamp(max=1), 1.0)
    hidden = (whole > 0) & (share < LEAST_VISIBLE)
    result[..., KIND] = torch.where(hidden, float(CROWD), result[..., KIND])
    gone = tight & (seen == 0)
    nothing = upload(padding(0)[0, :SCALE], result.device)
    result[..., :SCALE] = torch.where(gone[..., None], nothing, result[..., :SCALE])
    return result


def _measure(layers: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """How many pixels each object has, int64 (N, rows), and the box around them, (N, rows, 4): by static shapes, and by
    integers alone, the same in any order."""
    import torch

    count, _, height, width = layers.shape
    numbers = max(256, rows + 1)
    y, x = torch.arange(height, device=layers.device), torch.arange(width, device=layers.device)
    seen = layers.new_zeros(count, numbers, dtype=torch.int64)
    down = layers.new_zeros(count, numbers * height, dtype=torch.bool)
    across = layers.new_zeros(count, numbers * width, dtype=torch.bool)
    for layer in layers.long().unbind(1):
        seen.scatter_add_(1, layer.flatten(1), seen.new_ones(()).expand(count, height * width))
        down.scatter_(1, (layer * height + y[:, None]).flatten(1), True)
        across.scatter_(1, (layer * width + x).flatten(1), True)
    down, across = down.view(count, numbers, height), across.view(count, numbers, width)
    ends = [
        torch.where(across, x, width).amin(2),
        torch.where(down, y, height).amin(2),
        torch.where(across, x + 1, 0).amax(2),
        torch.where(down, y + 1, 0).amax(2),
    ]
    return seen[:, 1 : rows + 1], torch.stack(ends, 2)[:, 1 : rows + 1]
