"""A sheet of what every augmentation makes of two photographs and of a drawn grey picture, to be looked at.

    python tests/helpers/augmentation_sheet.py [--only NAME] [--side 96] [--out augmentations.png]

Each row is a setting: pictures, and beside each its mask laid over it, red and green for two classes, blue for what is
ignored. A mask that does not follow its picture, a wrong colour or a black border shows at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # needs no installation

from trainers.augmentations import mixing_of  # noqa: E402  # found by the path above
from trainers.augmentations.policies import OPERATIONS  # noqa: E402
from trainers.data import sampler  # noqa: E402
from trainers.data.augment import augment  # noqa: E402
from trainers.data.mixing import mixture  # noqa: E402

ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "flips": {"horizontal_flip": 0.5, "vertical_flip": 0.5},
    "rotate, reflect": {"rotate": 30, "fill": "reflect"},
    "resized_crop": {"resized_crop": [0.3, 1.0]},
    "colours": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "rand_augment=9": {"rand_augment": 9},
    "rand_augment=[4,30]": {"rand_augment": [4, 30], "fill": "reflect"},
    "trivial_augment": {"trivial_augment": True},
    "elastic=[200,10]": {"elastic": [200, 10]},
    "elastic=[60,4]": {"elastic": [60, 4]},
    "erase=1": {"erase": 1.0},
    "blur=1": {"blur": 1.0},
    "noise=0.2": {"noise": 0.2},
    "mixup=5": {"mixup": 5.0},
    "cutmix=1": {"cutmix": 1.0},
    "crop, trivial, erase": {
        "resized_crop": [0.4, 1.0],
        "horizontal_flip": 0.5,
        "trivial_augment": True,
        "erase": 0.5,
        "elastic": [60, 6],
    },
}
COLUMNS = 6
LABEL = 140
COLOURS = np.array([[220, 40, 40], [40, 200, 60]])


def photographs(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(3, 3, side, side) in [0, 1], and masks of two classes (3, side, side)."""
    from sklearn.datasets import load_sample_image

    pictures, masks = [], []
    for name in ("flower.jpg", "china.jpg"):
        photo = Image.fromarray(load_sample_image(name)).crop((107, 0, 534, 427)).resize((side, side))
        pixels = np.asarray(photo).astype(int)
        red, blue = pixels[:, :, 0], pixels[:, :, 2]
        masks.append(red > blue + 60 if name == "flower.jpg" else blue < red + 20)
        pictures.append(pixels / 255)
    ring = Image.new("L", (side, side))
    draw = ImageDraw.Draw(ring)
    draw.ellipse((side // 4, side // 5, side * 3 // 4, side * 4 // 5), outline=255, width=side // 10)
    draw.line((side // 2, side // 8, side // 2, side * 7 // 8), fill=160, width=side // 16)
    pictures.append(np.asarray(ring)[:, :, None].repeat(3, 2) / 255)
    masks.append(np.asarray(ring) > 128)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return images, torch.from_numpy(np.stack(masks)).to(torch.uint8)


def changed(settings: dict[str, Any], images: torch.Tensor, masks: torch.Tensor, ids: Any) -> tuple[Any, Any]:
    """A batch as a training step sees it, but for the normalisation."""
    size = (images.shape[2], images.shape[3])
    out, labels, *_ = augment(images, settings, size=size, seed=0, epoch=0, ids=ids, masks=masks)
    assert labels is not None
    how = mixture(settings, size=size, seed=0, epoch=0, numbers=ids, device=images.device)
    if how is not None:
        out = how.blend(out.clone())
        labels = how.paste(labels.clone()) if how.box else labels
    return out, labels


def overlay(image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A picture with its mask laid over it, half each."""
    colours = np.vstack([COLOURS, np.tile([40, 60, 255], (254, 1))])
    return (image // 2 + colours[mask] // 2).astype(np.uint8)


def sheet(side: int, only: str = "") -> Image.Image:
    """All rows whose name has this word, and every operation of the policies at its strongest, either way."""
    images, masks = photographs(side)
    images, masks = images.repeat(2, 1, 1, 1), masks.repeat(2, 1, 1)
    lines = []
    for number, (name, settings) in enumerate(ROWS.items()):
        if only in name:
            if mixing_of(settings):  # each micro-batch is mixed in its own way
                parts = [
                    changed(settings, images[:3], masks[:3], 3 * (2 * number + i) + np.arange(3)) for i in range(2)
                ]
                out, labels = (torch.cat(each) for each in zip(*parts, strict=True))
            else:
                out, labels = changed(settings, images, masks, 6 * number + np.arange(6))
            lines.append((name, out, labels))
    for number, operation in enumerate(OPERATIONS):
        if only in operation.name:
            out, labels = changed({"trivial_augment": True}, images, masks, drawing(number, 6))
            lines.append((operation.name, out, labels))
    page = Image.new("RGB", (LABEL + 2 * COLUMNS * (side + 2), len(lines) * (side + 4)), "white")
    draw = ImageDraw.Draw(page)
    for row, (name, out, labels) in enumerate(lines):
        top = row * (side + 4)
        draw.text((4, top + side // 2), name, fill="black")
        for column in range(COLUMNS):
            pixels = (out[column].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
            for half, shown in enumerate((pixels, overlay(pixels, labels[column].numpy()))):
                page.paste(Image.fromarray(shown), (LABEL + (2 * column + half) * (side + 2), top))
    return page


def drawing(number: int, count: int) -> np.ndarray[Any, Any]:
    """Ids that draw operation `number` of TrivialAugment, strongest first, every second to the other side."""
    draws = sampler.uniforms(0, 0, np.arange(2000), 43)
    ids = np.flatnonzero(np.floor(draws[:, 40] * len(OPERATIONS)) == number)
    ids = ids[np.argsort(-draws[ids, 41], kind="stable")]
    left, right = (ids[(draws[ids, 42] < 0.5) == side] for side in (True, False))
    return np.stack([left[: count // 2], right[: count // 2]], axis=1).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only rows whose name has this word")
    parser.add_argument("--side", type=int, default=96, help="pixels of each picture (default 96)")
    parser.add_argument("--out", type=Path, default=Path("augmentations.png"))
    given = parser.parse_args()
    sheet(given.side, given.only).save(given.out)
    print(given.out)


if __name__ == "__main__":
    main()
