"""From a picture's file to the input of a model, step by step, in words and numbers for whoever writes that anew."""

from __future__ import annotations

from trainers.decode import reading
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts, Json


def to_pixels(recipe: Recipe, meta: DatasetFacts) -> list[Json]:
    """From a file to what the model sees: whole numbers from 0 to 255, (height, width, channels)."""
    return [*_decoding(recipe, meta["channels"]), *_sizing(recipe)]


def to_values(meta: DatasetFacts) -> list[Json]:
    """From there to normalised numbers, (channels, height, width)."""
    return _numbers(meta)


def _decoding(recipe: Recipe, channels: int) -> list[Json]:
    (height, width), how = recipe.storage_size, reading(recipe.dataset_args)
    low, high = how.get("value_range", (0, 65535))
    return [
        {
            "step": "decode",
            "what": "the first picture of the file; Pillow's draft() may decode a JPEG at 1/2, 1/4 or 1/8, as long as "
            "it stays at least as large as jpeg_at_least (before it is turned)",
            "jpeg_at_least": {"height": 2 * height, "width": 2 * width},
        },
        {"step": "orient", "what": "turned upright, as the EXIF orientation says"},
        {
            "step": "range",
            "what": "grey values of more than 8 bits: floor((value - black) / (white - black) * 255 + 0.5), clipped to "
            "0 to 255; of a TIFF of 12 bits white is 4095, where it was not given in training",
            "black": low,
            "white": high,
        },
        {
            "step": "transparency",
            "what": {
                "white": "a picture with an alpha channel is laid on white",
                "ignore": "an alpha channel is left out",
                "auto": "a picture with an alpha channel is laid on white, but for a channel that is no transparency: "
                "hidden everywhere, or another band of a TIFF",
            }[how.get("alpha", "auto")],
            "alpha": how.get("alpha", "auto"),
        },
        {"step": "convert", "what": "Pillow's convert()", "mode": "L" if channels == 1 else "RGB"},
    ]


def _sizing(recipe: Recipe) -> list[Json]:
    (height, width), (rows, columns) = recipe.storage_size, recipe.image_size
    how = {
        "crop": "the largest centred box of the shape of size is resized: scale = min(W / width, H / height), "
        "left = (W - width * scale) / 2, top = (H - height * scale) / 2, box = (left, top, W - left, H - top), "
        "not rounded",
        "stretch": "the whole picture is resized, whatever its shape",
        "pad": "the whole picture is resized to round(W / scale) x round(H / scale), 1 or more, with scale = "
        "max(W / width, H / height), and laid on black at ((width - its width) // 2, (height - its height) // 2)",
    }[recipe.resize]
    return [
        {
            "step": "resize",
            "what": f"{how}; Pillow's resize(size, BILINEAR, box), which antialiases, to whole numbers 0 to 255",
            "how": recipe.resize,
            "filter": "bilinear, antialiased",
            "size": {"height": height, "width": width},
        },
        {
            "step": "crop",
            "what": "the middle",
            "top": (height - rows) // 2,
            "left": (width - columns) // 2,
            "size": {"height": rows, "width": columns},
        },
    ]


def _numbers(meta: DatasetFacts) -> list[Json]:
    return [
        {"step": "scale", "what": "pixel / 255"},
        {"step": "normalise", "what": "(value - mean) / std, by channel", "mean": meta["mean"], "std": meta["std"]},
        {"step": "order", "what": "channels, height, width; then a batch of them"},
    ]
