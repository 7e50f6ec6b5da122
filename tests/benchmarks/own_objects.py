"""AP on a few dozen pictures with boxes after equal processor time: folder.detect against the same from nothing.

    python tests/benchmarks/own_objects.py [--camvid FOLDER] [--data FOLDER ...] [--form coco|yolo|voc]
                                           [--minutes 2 4] [--seeds 3]

A folder is what folder.detect takes. --camvid makes one of CamVid's pictures: each film's first half is for training,
its second half for validation; of their masks, connected pixels of a car, a person, a cyclist or a sign make a box,
where they are enough. Without either, shapes are drawn.

All but the last are one network, FCOS on EfficientNet-Lite0, and all are trained at one size, in one thread:

    folder.detect     python -m trainers train folder.detect --data FOLDER: from ImageNet's weights
    from nothing      the same without weights: all layers at the full rate, BatchNorm by the batch
    small             the same from nothing on the small backbone of models/fcos.py

Each is given as many epochs as fit into the processor time (of the process, evaluation included), by what an epoch
takes of it: schedules end where the time ends. It is the last epoch that is scored. Pictures are decoded before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import print_machine, show, temporary_storage
from PIL import Image

CAMVID = {8: "car", 9: "person", 10: "cyclist", 6: "sign"}
"""Ids of masks -> classes of boxes."""
LEAST = 200
"""Pixels of an object, of 480x360."""


class Result(NamedTuple):
    """What a training came to."""

    ap: float
    ap50: float
    seconds: float
    """Of the processor, all in all."""


# Folders ------------------------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """Of a data set."""

    path: Path
    boxes: list[tuple[int, tuple[int, int, int, int]]]
    """The number of the class; left, top, right and bottom in pixels."""


def box_camvid(source: Path) -> dict[str, list[Picture]]:
    """CamVid's training pictures with boxes around the connected pixels of a class."""
    from scipy import ndimage

    films: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((source / "train").glob("*.png")):
        films[path.name.partition("_")[0]].append(path)
    splits: dict[str, list[Picture]] = {"train": [], "val": []}
    for paths in films.values():
        for number, path in enumerate(paths):
            mask = np.asarray(Image.open(source / "trainannot" / path.name))
            boxes = []
            for name, id_ in enumerate(CAMVID):
                labels, _ = ndimage.label(mask == id_)
                for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
                    if (labels[rows, columns] == index).sum() >= LEAST:
                        boxes.append((name, (columns.start, rows.start, columns.stop, rows.stop)))
            splits["train" if number < len(paths) / 2 else "val"].append(Picture(path, boxes))
    return splits


def write(splits: dict[str, list[Picture]], form: str, folder: Path) -> Path:
    """A data set in the form of COCO, YOLO or Pascal VOC."""
    for split, pictures in splits.items():
        images = folder / {"coco": split, "yolo": f"images/{split}", "voc": "JPEGImages"}[form]
        images.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (images / picture.path.name).write_bytes(picture.path.read_bytes())
        WRITERS[form](split, pictures, folder)
    return folder


def write_coco(split: str, pictures: list[Picture], folder: Path) -> None:
    images, annotations = [], []
    for number, (path, boxes) in enumerate(pictures):
        width, height = Image.open(path).size
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for name, (left, top, right, bottom) in boxes:
            box = [left, top, right - left, bottom - top]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": name + 1, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(CAMVID.values(), 1)]
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def write_yolo(split: str, pictures: list[Picture], folder: Path) -> None:
    labels = folder / "labels" / split
    labels.mkdir(parents=True)
    for path, boxes in pictures:
        width, height = Image.open(path).size
        lines = [
            f"{name} {(left + right) / 2 / width} {(top + bottom) / 2 / height} {(right - left) / width} "
            f"{(bottom - top) / height}\n"
            for name, (left, top, right, bottom) in boxes
        ]
        (labels / f"{path.stem}.txt").write_text("".join(lines))
    names = json.dumps(list(CAMVID.values()))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")


def write_voc(split: str, pictures: list[Picture], folder: Path) -> None:
    names = list(CAMVID.values())
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    for home in (folder / "Annotations", listed.parent):
        home.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{path.stem}\n" for path, _ in pictures))
    for path, boxes in pictures:
        width, height = Image.open(path).size
        objects = "".join(
            f"<object><name>{names[name]}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for name, (left, top, right, bottom) in boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{path.name}</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{path.stem}.xml").write_text(text)


WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}


# Contenders -----------------------------------------------------------------------------------------------------------

NOTHING: dict[str, Any] = {"lr_factor": {"body": 1.0}, "fixed_norms": ()}
CONTENDERS: dict[str, dict[str, Any]] = {
    "folder.detect": {},
    "from nothing": {**NOTHING, "model_args": {"weights": None}},
    "small, from nothing": {**NOTHING, "model_args": {"weights": None, "backbone": "small"}},
}


def trained(changes: dict[str, Any], data: Path | None) -> Callable[[int, int], Result]:
    """folder.detect with changes, for some epochs with a seed, in this process and one thread; 0: its own epochs."""
    from trainers import Scale, fit

    def train(epochs: int, seed: int) -> Result:
        own = changes | {"seed": seed} | ({"epochs": epochs} if epochs else {})
        start = time.process_time()
        result = fit(
            "folder.detect", own, Scale(workers=0, data=None if data is None else str(data), cpus_per_worker=1)
        )
        assert result.status == "finished", result.run["message"]
        last = result.history[-1]
        return Result(last["val/ap"], last["val/ap50"], time.process_time() - start)

    return train


def against_time(title: str, data: Path | None, shared: dict[str, Any], minutes: list[float], seeds: int) -> None:
    """A table of AP and AP50 by the processor time that each was given."""
    rows = []
    trained(shared, data)(1, 0)  # decodes, imports, fills caches of files
    for name, changes in CONTENDERS.items():
        train = trained(shared | changes, data)
        one, three = train(1, 0).seconds, train(3, 0).seconds
        epoch = (three - one) / 2
        for minute in minutes:
            epochs = max(1, round((60 * minute - one) / epoch) + 1)
            found = [train(epochs, seed) for seed in range(seeds)]
            scores = [
                f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
                for values in zip(*(each[:2] for each in found), strict=True)
            ]
            spent = np.mean([each.seconds for each in found])
            rows.append([name, f"{minute:g}", f"{epoch:.1f}", str(epochs), f"{spent:.0f}", *scores])
            print(f"  {rows[-1]}", file=sys.stderr, flush=True)
    show(title, ["", "minutes", "s an epoch", "epochs", "s", "AP (of each seed)", "AP50"], rows)


def folders(given: argparse.Namespace, home: Path) -> Iterator[tuple[str, Path | None, dict[str, Any]]]:
    """What each is called, the folder, and what changes of the recipe."""
    for folder in given.data:
        yield folder.name, folder, {}
    if given.camvid is not None:
        splits = box_camvid(given.camvid)
        objects = {split: sum(len(each.boxes) for each in pictures) for split, pictures in splits.items()}
        title = ", ".join(
            f"{split}: {len(splits[split])} pictures, {count} objects" for split, count in objects.items()
        )
        yield f"CamVid, {title}", write(splits, given.form, home / "camvid"), {}
    if not given.data and given.camvid is None:
        drawn = {"objects": "boxes", "train": 60, "val": 60, "height": 96, "width": 128}
        yield "drawn shapes, 60 + 60 pictures", None, {"dataset": "shapes", "dataset_args": drawn}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for seconds; the numbers mean nothing")
    parser.add_argument("--data", type=Path, nargs="*", default=[], help="folders with boxes")
    parser.add_argument("--camvid", type=Path, help="CamVid's folder, to make boxes of its masks")
    parser.add_argument("--form", choices=list(WRITERS), default="coco", help="of that folder (default coco)")
    parser.add_argument("--size", type=int, nargs=2, help="height and width (default: the recipe's)")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 4], help="of the processor (default 2 4)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default 3)")
    given = parser.parse_args()
    shared: dict[str, Any] = {"image_size": tuple(given.size)} if given.size else {}
    if given.quick:
        given.minutes, given.seeds, shared = [0.01], 1, {"image_size": (64, 64)}
    print_machine()
    with temporary_storage() as home:
        for title, folder, changes in folders(given, home):
            against_time(title, folder, shared | changes, given.minutes, given.seeds)


if __name__ == "__main__":
    main()
