"""Pictures with boxes, whatever files name them: checked as they come in, made items, and read.

A box is left, top, right, bottom. What is wrong is refused before a picture is decoded, with its place; what is put
right is counted and said.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trainers.datasets import BOXES, PLAIN, Args, BadImage, Item, Objects, Source
from trainers.datasets._files import assign_splits, check_channels
from trainers.datasets._outlines import Outline, area_of, read_outlines
from trainers.datasets._splits import SPLITS
from trainers.datasets._tables import least_of_stratum, strata_by_rarest
from trainers.decode import Geometry, check_reading, decode, geometry, reading
from trainers.formatting import composed, printable, shortened
from trainers.instances import LAYERS, MOST_LAYERS, MOST_MASKS
from trainers.notices import notice
from trainers.pixels import Pixels

Corners = tuple[float, float, float, float]
REFUSED = 3
"""Mistakes that a message tells, of all that there are."""
ROUNDING = 1.0
"""Pixels by which boxes may reach beyond their picture, and the sides of shrunk pictures differ: programs round."""
ORIENTATIONS = ("upright", "stored")
PUT_RIGHT = {
    "flat": ("without width or height", "left out"),
    "cut": ("beyond the picture by more than a pixel", "cut off there"),
    "twice": ("written twice", "counted twice, as the scores of this format do; remove one of each"),
    "dropped": ("written twice", "taken once"),
    "thin": ("outlined in part by polygons of fewer than three points", "taken without these"),
    "loose": ("drawn elsewhere than the polygons", "taken as written; look whether both are of one object"),
}
"""Kind of boxes -> which they are, and what becomes of them."""
FITTING = 0.5
"""Intersection over union of a box and the one around its polygons from which on nothing is said."""


class How(NamedTuple):
    """The arguments that all data sets with boxes have."""

    channels: int
    val_share: float
    test_share: float
    split_seed: int
    args: Args
    """For `read`, of every item."""
    masks: bool = False


def check_how(
    *,
    channels: int = 3,
    val_share: float = 0.2,
    test_share: float = 0.0,
    split_seed: int = 0,
    box_orientation: str | None = None,
    value_range: Sequence[float] | float | None = None,
    alpha: str | None = None,
    masks: bool = False,
    layers: int = LAYERS,
) -> How:
    """Raises ValueError for values that are not allowed; shares and seed are checked where they are used."""
    check_channels(channels)
    if box_orientation not in (None, *ORIENTATIONS):
        raise ValueError(f"box_orientation={box_orientation} is not offered; use upright or stored")
    turned = {} if box_orientation is None else {"orientation": box_orientation}
    if not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"layers={layers} is not offered; masks that lie over one another take 1 to {MOST_LAYERS}")
    stacked = {"layers": layers} if masks else {}
    args = {"channels": channels, **check_reading(value_range, alpha), **turned, **stacked}
    return How(channels, val_share, test_share, split_seed, args, masks)


def how_of(args: Mapping[str, Any]) -> How:
    """Those of a run's arguments that data which it is scored on is read by."""
    names = ("channels", "box_orientation", "value_range", "alpha", "masks", "layers")
    return check_how(**{name: args[name] for name in names if name in args})


@dataclass(slots=True)
class Picture:
    """A picture and its boxes."""

    path: str
    name: str
    """What people are shown."""
    stated: tuple[int, int] | None = None
    """Width and height, as the labels say; None: they do not."""
    boxes: list[float] = field(default_factory=list)
    """Four corners each, as shares of the picture."""
    classes: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    """In pixels of the stated size; empty where boxes were given as shares."""
    outlines: list[str] = field(default_factory=list)
    """See _outlines.py; empty where masks are not read."""
    args: Args = field(default_factory=dict)
    """What else its item holds."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height; where they are not stated, as the file's header says; None where it cannot be read."""
        return self.stated or _size(self.path)


@functools.lru_cache(maxsize=1)
def _size(path: str) -> tuple[int, int] | None:
    try:
        found = geometry(path)
    except BadImage:  # whoever decodes it reports it
        return None
    return found.width, found.height


class Intake:
    """Boxes as they come in."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        """Sentences, each with its place and what to do."""
        self._found: dict[str, list[str]] = {}

    def check(self) -> None:
        """Raises ValueError for what was refused."""
        if self.refused:
            rest = len(self.refused) - REFUSED
            more = f". There are {rest:,} more such mistakes" if rest > 0 else ""
            raise ValueError(". ".join(self.refused[:REFUSED]) + more)

    def add(
        self,
        picture: Picture,
        corners: Corners,
        number: int,
        where: str,
        *,
        kind: int = PLAIN,
        area: float | None = None,
        shares: bool = False,
        outline: Outline | None = None,
    ) -> None:
        """Take a box.

        Args:
            picture: The picture that it is in.
            corners: Left, top, right, bottom, in pixels of the picture's size.
            number: Of its class.
            where: File and line.
            kind: PLAIN, CROWD or DIFFICULT.
            area: In pixels; None: the box's own.
            shares: Whether corners are shares of the picture's width and height.
            outline: Of the object, where masks are read.
        """
        left, top, right, bottom = corners
        size = (1, 1) if shares else picture.size
        problem = _misplaced(corners, size, picture, shares=shares) or self._misfit(outline, corners, picture, where)
        if problem:
            self.refused.append(f"{where}: {problem}")
            return
        if right == left or bottom == top:
            self._count("flat", where)
            return
        if size is None:
            return
        width, height = size
        cut = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if cut != corners:
            scale = (picture.size or (1, 1)) if shares else (1, 1)
            off = (
                abs(one - other) * scale[side % 2] for side, (one, other) in enumerate(zip(cut, corners, strict=True))
            )
            if max(off) > ROUNDING:
                self._count("cut", where)
        left, top, right, bottom = cut
        picture.boxes += (left / width, top / height, right / width, bottom / height)
        picture.classes.append(number)
        picture.kinds.append(kind)
        if outline is not None:
            picture.outlines.append(outline.text)
        if not shares:
            said = (area, None if outline is None else outline.area)
            known = (float(each) for each in said if each is not None and math.isfinite(each) and each > 0)
            picture.areas.append(next(known, (right - left) * (bottom - top)))

    def _misfit(self, outline: Outline | None, corners: Corners, picture: Picture, where: str) -> str:
        """Why an outline cannot be that of its box; "": it can."""
        if outline is None or outline.problem:
            return "" if outline is None else outline.problem
        if outline.size is not None and picture.stated not in (None, outline.size):
            sizes = [f"{width}x{height}" for width, height in (outline.size, picture.stated)]
            return f"its run lengths are of {sizes[0]} pixels, and the picture has {sizes[1]}; correct one of them"
        if outline.thin:
            self._count("thin", where)
        common = 1.0 if outline.bounds is None else _overlap(outline.bounds, corners)
        if common == 0 and outline.bounds is not None:
            ends = format_box(outline.bounds)
            return f"its polygons, {ends}, lie outside its box, {format_box(corners)}; correct one of them"
        if common < FITTING:
            self._count("loose", where)
        return ""

    def check_masks(self, picture: Picture) -> None:
        """Refuse a picture with more masks than one can have."""
        if len(picture.outlines) > MOST_MASKS:
            self.refused.append(
                f"{printable(picture.name)} has {len(picture.outlines)} objects, and {MOST_MASKS} at most can have "
                "masks; cut it into parts, or leave masks out to learn boxes"
            )

    def check_twice(self, picture: Picture, where: str, *, drop: bool = False) -> None:
        """Look for boxes that stand twice in a picture; `drop`: all but the first are left out."""
        texts = picture.outlines or [""] * len(picture.classes)
        each = list(zip(*(iter(picture.boxes),) * 4, picture.classes, picture.kinds, texts, strict=True))
        if len(set(each)) == len(each):
            return
        kept = list(dict.fromkeys(each))
        for _ in range(len(each) - len(kept)):
            self._count("dropped" if drop else "twice", where)
        if drop:
            picture.areas = [picture.areas[each.index(box)] for box in kept] if picture.areas else []
            picture.boxes = [side for box in kept for side in box[:4]]
            picture.classes, picture.kinds = [box[4] for box in kept], [box[5] for box in kept]
            picture.outlines = [box[6] for box in kept] if picture.outlines else []

    def _count(self, kind: str, where: str) -> None:
        self._found.setdefault(kind, []).append(where)

    def warnings(self) -> list[str]:
        """What was put right."""
        said = []
        for kind, places in self._found.items():
            which, then = PUT_RIGHT[kind]
            boxes = "1 box is" if len(places) == 1 else f"{len(places):,} boxes are"
            said.append(f"{boxes} {which}, such as {places[0]}: {'it is' if len(places) == 1 else 'they are'} {then}")
        return said


def _misplaced(corners: Corners, size: tuple[int, int] | None, picture: Picture, *, shares: bool) -> str:
    """Why a box cannot be one of a picture of this width and height; "": it can."""
    left, top, right, bottom = corners
    if not all(map(math.isfinite, corners)):
        return f"the box {format_box(corners)} has a side that is no number; correct it"
    if right < left or bottom < top:
        return f"the box {format_box(corners)} ends before it begins; correct its corners, or remove it"
    flat = right == left or bottom == top
    if size and not flat and (right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]):
        of = "the picture" if shares else f"the {size[0]}x{size[1]} pixels of"
        return f"the box {format_box(corners)} lies outside {of} {printable(picture.name)}; correct or remove it"
    return ""


def _overlap(one: Corners, other: Corners) -> float:
    """Intersection over union; of flat ones, which still may touch, 1 where they do."""
    width, height = (min(one[2 + side], other[2 + side]) - max(one[side], other[side]) for side in (0, 1))
    if width < 0 or height < 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height) if width * height > 0 else 1.0


def format_box(corners: Iterable[float]) -> str:
    return f"({', '.join(f'{side:g}' for side in corners)})"


# ---- the listing ----


def object_source(
    root: str, found: Mapping[str, Sequence[Picture]], classes: Sequence[str], how: How, warnings: Sequence[str]
) -> Source:
    """The pictures as a listing to train on.

    Args:
        root: The folder, for messages.
        found: Split -> its pictures; without "val", a share of "train" becomes it, and of a set without "test" too
            another one "test".
        classes: Their names.
        how: The arguments.
        warnings: What to say.

    Raises:
        ValueError: A split holds no boxes, or there are too few pictures.
    """
    said = [*warnings, *_say_shared(found)]
    for split in ("train", "val"):
        if split in found and not any(picture.classes for picture in found[split]):
            what = "no pictures" if not found[split] else f"{len(found[split]):,} pictures without a single box"
            raise ValueError(f"the {split} split of {printable(root)} holds {what}; add some, or their labels")
    splits = {split: list(pictures) for split, pictures in found.items()}
    if "val" not in splits:
        pool = splits.pop("train")
        test_share = 0.0 if splits else how.test_share
        least = least_of_stratum(how.val_share, test_share)
        strata = strata_by_rarest([picture.classes for picture in pool], len(classes), least)
        shares = {"val_share": how.val_share, "test_share": test_share}
        drawn = assign_splits(strata, **shares, seed=how.split_seed, what=printable(root))
        splits |= {split: [pool[place] for place in places] for split, places in drawn.items()}
    taught = {number for picture in splits["train"] for number in picture.classes}
    untaught = [name for number, name in enumerate(classes) if number not in taught]
    if untaught:
        said.append(f"no box of the train split has the classes {shortened(untaught)}: they cannot be learned")
    return Source(
        classes=classes,
        channels=how.channels,
        splits={split: [_item(picture, how.args) for picture in splits[split]] for split in SPLITS if split in splits},
        target=_target(how),
        warnings=list(dict.fromkeys(said)),
    )


def scored_source(
    found: Mapping[str, Sequence[Picture]], classes: Sequence[str], how: How, warnings: Sequence[str]
) -> Source:
    """The pictures as a listing of data that a run is scored on: the splits as they are; classes that occur."""
    held = {number for pictures in found.values() for picture in pictures for number in picture.classes}
    renumbered = {number: place for place, number in enumerate(sorted(held))}
    for picture in (picture for pictures in found.values() for picture in pictures):
        picture.classes = [renumbered[number] for number in picture.classes]
    return Source(
        classes=[classes[number] for number in renumbered] or list(classes),
        channels=how.channels,
        splits={split: [_item(picture, how.args) for picture in pictures] for split, pictures in found.items()},
        target=_target(how),
        warnings=list(dict.fromkeys(warnings)),
    )


def _target(how: How) -> str:
    return "instances" if how.masks else "boxes"


def _item(picture: Picture, args: Args) -> Item:
    own: dict[str, Any] = {"boxes": picture.boxes, "classes": picture.classes, **picture.args}
    if any(picture.kinds):
        own["kinds"] = picture.kinds
    if picture.areas:
        own["areas"] = picture.areas
    if picture.stated:
        own["size"] = list(picture.stated)
    if "layers" in args:
        own["outlines"] = picture.outlines
    return Item(path=picture.path, name=picture.name, targets=[BOXES], args={**args, **own})


def _say_shared(found: Mapping[str, Sequence[Picture]]) -> list[str]:
    """Of pictures that stand in two splits: scores on them say nothing of others."""
    paths = {split: {picture.path: picture.name for picture in pictures} for split, pictures in found.items()}
    said = []
    for split in ("val", "test"):
        shared = sorted(paths["train"].keys() & paths.get(split, {}).keys()) if "train" in paths else []
        if shared:
            names = [paths["train"][path] for path in shared]
            said.append(
                f"{len(shared):,} of {len(paths[split]):,} pictures of {split} are pictures of train too, "
                f"{shortened(names, 2)}: scores on them do not say how well others are done"
            )
    return said


def check_names(names: Sequence[str], where: str) -> list[str]:
    """Names of classes, their accents in one form. Raises ValueError where there are none, or one stands twice."""
    classes = [printable(composed(name.strip())) for name in names]
    twice, times = Counter(classes).most_common(1)[0] if classes else ("", 0)
    if not classes or "" in classes or times > 1:
        what = f"the class {twice} twice" if times > 1 else "an empty name" if classes else "no names of classes"
        raise ValueError(f"{where} holds {what}; give each class a name of its own")
    return classes


# ---- reading ----


def read_objects(item: Item) -> list[tuple[Pixels, Objects]]:
    """The picture of an item and its objects; `item.args` may hold "min_size": see `trainers.decode.decode`.

    Boxes of a picture with an EXIF orientation are of the upright or the stored picture, as the sizes in the labels
    tell or as "orientation" in `item.args` says. Raises BadImage, too for sizes that are not the picture's.
    """
    assert item.path is not None
    args = item.args
    corners = np.array(args["boxes"], np.float64).reshape(-1, 4)
    about = geometry(item.path)
    turned, ratio = False, 1.0
    if len(corners):
        turned, ratio = _orient(item, about)
        corners = turn(corners, about.orientation) if turned else corners
    image = decode(item.path, args["channels"], args.get("min_size"), how=reading(args))
    if "areas" in args:
        areas = np.array(args["areas"], np.float64) * ratio
    else:
        sides = (corners[:, 2:] - corners[:, :2]) * (about.width, about.height)
        areas = sides[:, 0] * sides[:, 1]
    classes = np.array(args["classes"], np.int64)
    kinds = np.array(args.get("kinds", [PLAIN] * len(classes)), np.int64)
    size = (about.height, about.width)
    objects = Objects(corners=corners, classes=classes, kinds=kinds, areas=areas, size=size)
    if "outlines" in args:
        drawn_on = tuple(args.get("size", size[::-1])) if "areas" in args else (1, 1)
        found = read_outlines(args["outlines"], drawn_on, about.orientation if turned else 1, image.shape[:2])
        if "areas" not in args:
            drawn = [size[0] * size[1] * area_of(each) for each in found if isinstance(each, list)]
            areas = np.array([area or box for area, box in zip(drawn, areas.tolist(), strict=True)], np.float64)
        objects = objects._replace(outlines=found, areas=areas, layers=args["layers"])
    return [(image, objects)]


def turn(corners: npt.NDArray[np.float64], orientation: int) -> npt.NDArray[np.float64]:
    """Corners (M, 4), shares of the stored picture, as shares of the one that EXIF's orientation makes upright."""
    left, top, right, bottom = corners.T
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in (3, 4, 7, 8):
        top, bottom = 1 - bottom, 1 - top
    if orientation in (2, 3, 6, 7):
        left, right = 1 - right, 1 - left
    return np.stack([left, top, right, bottom], axis=1)


def _orient(item: Item, about: Geometry) -> tuple[bool, float]:
    """Whether the boxes are of the stored picture and must be turned, and how much larger the picture is by area than
    the labels say. Raises BadImage."""
    upright = (about.width, about.height)
    stored = upright[::-1] if about.orientation >= 5 else upright
    asked, stated = item.args.get("orientation"), item.args.get("size")
    if stated is None:
        if about.orientation > 1 and asked is None:
            notice("boxes unsure", str(item.path))
        return asked == "stored" and about.orientation > 1, 1.0
    size = (int(stated[0]), int(stated[1]))
    ways = {"upright": upright} if about.orientation == 1 else {"upright": upright, "stored": stored}
    if asked in ways:
        ways = {asked: ways[asked]}
    fitting = [way for way, of in ways.items() if of == size]
    shrunk = [way for way, of in ways.items() if _is_resized(size, of)]
    if not fitting and not shrunk:
        turned = ", upright as its EXIF orientation says," if about.orientation > 1 else ""
        raise BadImage(
            f"{item.path}{turned} has {upright[0]}x{upright[1]} pixels, and its labels are for {size[0]}x{size[1]}: "
            "boxes do not fit another picture; label this one, or correct the size in the labels"
        )
    if not fitting:
        notice("boxes resized", str(item.path))
    if about.orientation > 1 and asked is None:
        if len(fitting or shrunk) > 1:
            notice("boxes unsure", str(item.path))
        elif (fitting or shrunk)[0] == "stored":
            notice("boxes turned", str(item.path))
    ratio = 1.0 if fitting else upright[0] * upright[1] / (size[0] * size[1])
    return about.orientation > 1 and (fitting or shrunk)[0] == "stored", ratio


def _is_resized(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """Whether a picture of the size `of` may be one of `size` that was shrunk or enlarged as a whole."""
    factor = max(of) / max(size)
    return all(abs(one * factor - other) <= max(ROUNDING, factor) for one, other in zip(size, of, strict=True))
