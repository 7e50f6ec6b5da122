"""The random changes of training pictures: each is one function here, and nothing of it stands elsewhere.

    geometry    where pixels come from: crops, flips, rotate, scale, translate, elastic, erase
    colours     brightness, contrast, saturation, hue
    policies    some operations drawn from a list for each picture: rand_augment, trivial_augment
    sensor      what cameras do: blur, noise
    mixing      two pictures in one: mixup, cutmix
    mosaic      four pictures around a point

A setting that is missing, None, 0 or false is off. `data/augment.py` applies those that are on to a batch, whatever
their order in a recipe: first the crop, then the flips, then rotate, scale and translate about the middle of the
output, then the geometry of a policy, then elastic, all of it as one mapping from output to stored pixels, so that a
turned crop shows what the stored picture holds beyond the crop. Masks follow this mapping. Then the values of the
pictures change, in the order of the list above, each clamped to [0, 1]; masks stay as they are. Then a box is erased,
from pictures and masks. `data/mixing.py` mixes what comes out, normalised.
`data/mosaic.py` puts stored pictures together before any of it.

To add one, decorate a function with what it takes, and give it columns of its own: a sample's random numbers are
uniform in [0, 1), a column each. Never renumber a column: recorded runs would train on other pictures.

Imports neither torch nor NumPy, so that a recipe is checked without them.
"""

from __future__ import annotations

# Their order is that in which the values of pictures change
from trainers.augmentations import colours, geometry, mixing, mosaic, policies, sensor
from trainers.augmentations._registry import (
    AUGMENTATIONS,
    MIXING_DRAWS,
    Augmentation,
    Effect,
    Elastic,
    Erased,
    Mixed,
    Mixing,
    Tiling,
    View,
    check,
    columns_of,
    mixing_of,
)

__all__ = [
    "AUGMENTATIONS",
    "MIXING_DRAWS",
    "Augmentation",
    "Effect",
    "Elastic",
    "Erased",
    "Mixed",
    "Mixing",
    "Tiling",
    "View",
    "check",
    "colours",
    "columns_of",
    "geometry",
    "mixing",
    "mixing_of",
    "mosaic",
    "policies",
    "sensor",
]
