"""Four stored pictures as one of twice the height and width, which is then changed as any stored picture is.

They touch at a random point of the middle half. In the first place each row is itself; in each of the other three
places stands each row once in an epoch: its partners are permutations that follow from (seed, epoch, place) alone, and
where they touch from (seed, epoch, number of the sample). So what is seen does not depend on who reads it. In the last
tenth of the epochs pictures are what they will be when the model is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import cast

import numpy as np

from trainers.data import sampler, targets
from trainers.data.batches import Batch, Data
from trainers.data.sampler import Pass
from trainers.data.targets import Array, Target
from trainers.data.tiles import paste
from trainers.instances import each
from trainers.recipe import Recipe

PLACES = 4
"""Top left, top right, bottom left, bottom right."""


def partners(seed: int, epoch: int, rows: int) -> Array:
    """The rows that stand beside each row, int64 (PLACES - 1, rows): each of these is a permutation of all rows."""
    keys = sampler.mix(seed, epoch, 7, np.arange(1, PLACES)[:, None], np.arange(rows)[None, :])
    return np.argsort(keys, axis=1, kind="stable")


def batches(data: Data, split: str, passes: Iterable[Pass], recipe: Recipe, epoch: int) -> Iterator[Batch]:
    """As `data.batches`, of mosaics: images (N, 2 height, 2 width, channels), and the targets of all that they hold."""
    others = partners(recipe.seed, epoch, data.meta["rows"][split])
    target = targets.of_meta(data.meta)
    passes, wanted = itertools.tee(passes)
    read = data.batches(split, (of._replace(ids=np.concatenate([of.ids, *others[:, of.ids]])) for of in wanted))
    for of, batch in zip(passes, read, strict=True):
        yield _assemble(batch, of, target, recipe, epoch)


def _assemble(batch: Batch, of: Pass, target: Target, recipe: Recipe, epoch: int) -> Batch:
    """Mosaics of the pictures of a batch, which holds all of the first place, then all of the second, ..."""
    assert isinstance(batch.images, np.ndarray)  # where pictures are kept on a device, there are no mosaics
    count, (height, width, channels) = len(of.ids), batch.images.shape[1:]
    bits = sampler.mix(recipe.seed, epoch, 8, of.numbers[:, None], np.arange(3)[None, :])
    chance, down, across = ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).T
    y, x = height // 2 + np.floor(down * (height + 1)), width // 2 + np.floor(across * (width + 1))
    corners = np.array([(y - height, x - width), (y - height, x), (y, x - width), (y, x)]).astype(np.int64)
    alone = ~(chance < cast(float, recipe.augment["mosaic"]))
    corners[0][:, alone] = [[height // 2], [width // 2]]
    shown = np.ones((PLACES, count), np.bool_)
    shown[1:, alone] = False
    images = paste(batch.images.reshape(PLACES, count, height, width, channels), corners, shown)
    stacked = each(lambda part: part.reshape(PLACES, count, *part.shape[1:]), batch.targets)
    return Batch(of, images, target.tile(stacked, corners, shown))
