"""What a folder that is no set of class folders may be instead, for messages."""

from __future__ import annotations

import os

from trainers.formatting import printable
from trainers.listing import Listing, list_folder

IMAGES = frozenset(["images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "image_2"])
LABELS = frozenset(["labels", "label", "annotations", "annotation", "label_2", "bboxes", "boxes"])
MASKS = frozenset(["masks", "mask", "segmentationclass", "gt", "ground_truth", "groundtruth", "segmentations"])
NO_DETECTION = "training detectors is not offered yet: give pictures in class folders, or masks with mask_folder"
ROBOFLOW = {"_annotations.coco.json": "COCO", "_annotations.csv": "CSV", "_darknet.labels": "Darknet"}
"""Files that exports bring -> the form."""


def looks_like(root: str, *, masks: bool = True, deep: int = 2) -> str | None:
    """Pictures with boxes or with masks, and what to do with them; None where nothing says so.

    Args:
        root: The folder.
        masks: Whether to say so of masks.
        deep: How many folders below each other are looked into.
    """
    listing = list_folder(root)
    found = _boxes(root, listing) or (_masks(root, listing) if masks else None)
    if found or deep == 0:
        return found
    inner = [folder for folder in listing.folders if len(listing.folders) <= 8 or folder.lower() in IMAGES]
    below = (looks_like(os.path.join(root, name), masks=masks, deep=deep - 1) for name in inner)
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
    for ending, form in ((".xml", "Pascal VOC"), (".txt", "YOLO")):
        beside = next(
            (name for name in listing.pictures[:3] if os.path.splitext(name)[0].lower() + ending in names), None
        )
        if beside is not None:
            return _detection(form, root, f"{os.path.splitext(beside)[0]}{ending} beside {beside}")
    yolo = next((name for name in listing.others if name in ("data.yaml", "dataset.yaml", "obj.names")), None)
    return _detection("YOLO", root, yolo) if yolo else None


def _masks(root: str, listing: Listing) -> str | None:
    lower = {name.lower(): name for name in listing.folders}
    pictures = next((lower[name] for name in lower if name in IMAGES), None)
    masks = next((lower[name] for name in lower if name in MASKS | LABELS), None)
    if pictures is None or masks is None:
        return None
    return (
        f"{printable(root)} looks like pictures and their masks ({pictures} and {masks}): a class for each pixel is "
        "trained with --dataset mask_folder, which reads images/* and masks/*, and a recipe such as unet.camvid"
    )


def _detection(form: str, root: str, sign: str) -> str:
    return f"{printable(root)} looks like detection data in the form of {form} ({printable(sign)}); {NO_DETECTION}"


def _first_file(folder: str) -> str | None:
    """A file in a folder, or in the first folder in it."""
    listing = list_folder(folder)
    if listing.others:
        return listing.others[0]
    inner = listing.folders[0] if listing.folders and not listing.pictures else None
    held = list_folder(os.path.join(folder, inner)).others if inner else []
    return f"{inner}/{held[0]}" if held else None
