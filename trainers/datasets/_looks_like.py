"""What a folder that is no set of class folders may be instead: pictures with boxes, or with masks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from trainers.datasets._pairs import NEARLY, common_start
from trainers.formatting import printable, shortened
from trainers.listing import Listing, Tree, list_folder, walk, words

IMAGES = frozenset(["images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "image_2"])
LABELS = frozenset(["labels", "label", "annotations", "annotation", "label_2", "bboxes", "boxes"])
MASKS = frozenset(["masks", "mask", "segmentationclass", "gt", "ground_truth", "groundtruth", "segmentations"])
OF_PICTURES = IMAGES.union("pics picture photo rgb left original originals raw".split())
OF_MASKS = MASKS | LABELS.union(
    "ann anns anno annos annot annots seg segs segmentation truth trimap matte mattes".split()
)
"""Words in the names of folders; those of masks come first: label_images."""
_IS_MASK = re.compile(
    r"[ _.-]+(masks?|seg|segmentation|trimap|gt|groundtruth|ground_truth|matte)([\W_]*\d+)?\.\w+$", re.IGNORECASE
)
"""The name of a mask that lies beside its picture."""
_SAMPLED = 20
"""Pictures whose masks are looked for."""
_COCO = re.compile(r"(instances|annotations|bboxes|coco)([\W_].*)?\.json")
DETECTION: Mapping[str, str] = {"COCO": "coco", "YOLO": "yolo", "Darknet": "yolo", "Pascal VOC": "voc"}
"""Form of boxes -> the data set that reads it."""
ROBOFLOW = {"_annotations.coco.json": "COCO", "_annotations.csv": "CSV", "_darknet.labels": "Darknet"}
"""Files that exports bring -> the form."""
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
TABLES = (".csv", ".tsv", ".xls", ".xlsx", ".json", ".jsonl", ".parquet", ".txt")


# ---- pictures and masks among classes ----


def find_pairs_of_folders(held: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Folders of pictures and of their masks, by the names of both and of the files in them.

    Args:
        held: Folder -> the pictures in it, as paths.

    Returns:
        The folder of the pictures and that of the masks; None where there are none.
    """
    pairs = ((one, other, [[*map(_stem, held[name])] for name in (one, other)]) for one, other in _by_name(list(held)))
    return next(((one, other) for one, other, stems in pairs if _belong(*stems)), None)


def masks_beside(tree: Tree) -> set[str]:
    """Pictures below a class folder that are masks of others there: in masks/ beside images/, or x_mask beside x."""
    if not tree.folders and not any(map(_IS_MASK.search, tree.pictures)):
        return set()
    found: set[str] = set()
    folders: dict[str, list[str]] = {}
    for path in tree.pictures:
        folders.setdefault(os.path.dirname(path), []).append(path)
    beside: dict[str, dict[str, list[str]]] = {}
    for folder, paths in folders.items():
        if folder != tree.root:
            beside.setdefault(os.path.dirname(folder), {})[os.path.basename(folder)] = paths
        stems = set(map(_stem, paths))
        masks = {path for path in paths if (of := _IS_MASK.search(path)) and _stem(path[: of.start()] + ".") in stems}
        found |= masks if 3 * len(masks) >= len(paths) else set()  # one for every other picture, or more
    for held in beside.values():
        while pair := find_pairs_of_folders(held):
            found.update(held.pop(pair[1]))
    return found


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _by_name(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of folders of pictures and of masks: imgs and labels, train and train_masks."""
    said = {name: words(name) for name in names}
    for other in names:
        rest = [word for word in said[other] if word not in OF_MASKS]
        if len(rest) == len(said[other]):
            continue
        for one in names:
            if OF_MASKS.isdisjoint(said[one]) and (said[one] == rest or not OF_PICTURES.isdisjoint(said[one])):
                yield one, other


def _belong(pictures: Sequence[str], masks: Sequence[str]) -> bool:
    """Whether the part of a picture's name that is its own is in the name of a mask, for nearly all pictures."""
    if not pictures or not masks:
        return False
    before, after = len(common_start(pictures)), len(common_start([name[::-1] for name in pictures]))
    sampled = pictures[:: -(-len(pictures) // _SAMPLED)]
    cores = [name[before : len(name) - after] or name for name in sampled]
    return sum(any(core in mask for mask in masks) for core in cores) >= NEARLY * len(cores)


# ---- the whole folder ----


def looks_like(root: str, *, wanted: bool = False, deep: int = 2) -> str | None:
    """Pictures with boxes or with masks, and what to do with them; None where nothing says so.

    Args:
        root: The folder.
        wanted: Whether pictures with masks are what is wanted; the folders of both have other names then.
        deep: How many folders below each other are looked into.
    """
    try:
        listing = list_folder(root)
        found = (wanted and _masks(root, listing, wanted)) or _boxes(root, listing) or _masks(root, listing, wanted)
    except ValueError:  # a folder that cannot be read says nothing, and the error that led here is raised
        return None
    if found or deep == 0:
        return found
    inner = [folder for folder in listing.folders if len(listing.folders) <= 8 or folder.lower() in IMAGES]
    below = (looks_like(os.path.join(root, name), wanted=wanted, deep=deep - 1) for name in inner)
    return next((found for found in below if found), None)


def _boxes(root: str, listing: Listing) -> str | None:
    beside = next((name for name in listing.others if name in ROBOFLOW), None)
    if beside is not None:
        return _detection(ROBOFLOW[beside], root, beside)
    for name in listing.folders:
        if name.lower() in LABELS:
            held = _first_file(os.path.join(root, name))
            ending = os.path.splitext(held or "")[1]
            form = {".json": "COCO", ".xml": "Pascal VOC", ".txt": "YOLO"}.get(ending)
            if form:
                return _detection(form, root, f"{name}/{held}")
    names = {name.lower() for name in listing.others}
    for ending, form in ((".xml", "Pascal VOC"), (".txt", "YOLO"), (".json", "LabelMe")):
        sampled = listing.pictures[:_SAMPLED]  # some may have no boxes
        beside = next((name for name in sampled if os.path.splitext(name)[0].lower() + ending in names), None)
        if beside is not None:
            return _detection(form, root, f"{os.path.splitext(beside)[0]}{ending} beside {beside}")
    coco = next((name for name in listing.others if _COCO.fullmatch(name.lower())), None)
    if coco is not None:
        return _detection("COCO", root, coco)
    yolo = next((name for name in listing.others if name in ("data.yaml", "dataset.yaml", "obj.names")), None)
    return _detection("YOLO", root, yolo) if yolo else None


def _masks(root: str, listing: Listing, wanted: bool) -> str | None:
    pairs = _by_name(listing.folders)
    pair = next((pair for pair in pairs if all(_holds_pictures(os.path.join(root, name)) for name in pair)), None)
    if pair is None:
        return None
    pictures, masks = map(printable, pair)
    if wanted:
        if (pictures.lower(), masks.lower()) == ("images", "masks"):
            return None
        return (
            f"{printable(root)} looks like pictures in {pictures} and masks in {masks}: give these folders the names "
            "images and masks"
        )
    return (
        f"{printable(root)} looks like pictures and their masks ({pictures} and {masks}): a class for each pixel "
        "is trained with --dataset mask_folder, which reads images/* and masks/*, and a recipe such as unet.camvid"
    )


def _holds_pictures(folder: str) -> bool:
    try:
        return bool(walk(folder, "").pictures)
    except ValueError:  # it need not be sound
        return False


def _detection(form: str, root: str, sign: str) -> str:
    data_set = DETECTION.get(form)
    what = f"{printable(root)} looks like detection data in the form of {form} ({printable(sign)})"
    if data_set is None:
        return f"{what}, which is not read: export it in the form of COCO, for --dataset coco"
    return f"{what}: a detector is trained with --dataset {data_set}, and a recipe such as folder.detect"


def _first_file(folder: str) -> str | None:
    """A file in a folder, or in the first folder in it."""
    listing = list_folder(folder)
    if listing.others:
        return listing.others[0]
    inner = listing.folders[0] if listing.folders and not listing.pictures else None
    held = list_folder(os.path.join(folder, inner)).others if inner else []
    return f"{inner}/{held[0]}" if held else None


def say_unread(others: Sequence[str]) -> str:
    """What to do with archives and tables that lie where class folders are missing."""
    names = sorted(set(others))
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    tables = [name for name in names if name.lower().endswith(TABLES)]
    said = f" (unpack {shortened(archives, 3)} first)" if archives else ""
    return said + (f" (lists of labels, such as {shortened(tables, 1)}, are not read)" if tables else "")
