"""Photographs of textures: many random crops of few large photos."""

from trainers.recipe import Recipe


def cnn() -> Recipe:
    """A small CNN on grey 32x32 pictures, shrunk from 1000-pixel crops of large photos in class folders.

    Source: 3 convolutions (6, 16, 32) and fully connected 128-64-32-N, SGD with momentum 0.9; brightness and
    contrast jitter of 25 %.
    Parameters: 81,910 (10 classes)
    Expected: depends on the photos
    Command: python -m trainers train textures.cnn --data PATH --dataset-args crop_size=1000
    """
    return Recipe(
        dataset="texture_crops",
        model="texture_cnn",
        image_size=(32, 32),
        epochs=30,
        batch_size=64,
        lr=0.01,
        augment={"horizontal_flip": 0.5, "vertical_flip": 0.5, "brightness": 0.25, "contrast": 0.25},
    )
