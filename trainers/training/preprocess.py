"""Stored pictures to what the model takes, on the device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainers.augmentations import AUGMENTATIONS, Mixing
from trainers.data import augment, targets
from trainers.data.batches import Batch
from trainers.data.mixing import Mixture, mixture
from trainers.data.targets import Array
from trainers.instances import Targets, each
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.run_facts import DatasetFacts
from trainers.training.distributed import World
from trainers.upload import upload


class Preprocess:
    """Stored pictures to what the model takes, on the device."""

    def __init__(self, recipe: Recipe, meta: Meta | DatasetFacts, world: World) -> None:
        """
        Args:
            recipe: says what is changed at random, and the size that the model takes.
            meta: names the kind of target; `mean` and `std` are per channel, of values in [0, 1].
            world: of this process: its device and the type of floats.
        """
        self.recipe, self.world, self.target = recipe, world, targets.of_meta(meta)
        mean, std = (torch.tensor(meta[name], dtype=torch.float64).view(1, -1, 1, 1) for name in ("mean", "std"))
        self.shift, self.scale, self.scale_of_bytes = (
            tensor.to(world.device, world.dtype) for tensor in (-mean / std, 1 / std, 1 / std / 255)
        )

    def __call__(self, batch: Batch, epoch: int | None = None) -> tuple[Tensor, Targets]:
        """Bring a batch to the device.

        Args:
            batch: stored pictures and targets.
            epoch: whose random numbers augment them; None: the middle of the stored pictures, unchanged.

        Returns:
            Images, normalised (N, C, *image_size), and targets as the task takes them, (N, ...).
        """
        images, stored, maps = self._changed(batch, epoch)
        return images, self.target.finish(stored, maps)

    def mixed(self, batch: Batch, epoch: int) -> tuple[Tensor, Targets, Mixture | None]:
        """Bring a batch to the device for a training step: changed at random and mixed, as the recipe says.

        Args:
            batch: stored pictures and targets, of one micro-batch.
            epoch: whose random numbers are used.

        Returns:
            Images and targets, as of `__call__`; and how the loss is mixed. None: it is not, as nothing is, or as the
            targets are maps, of which boxes were pasted as they were into the images.
        """
        images, stored, maps = self._changed(batch, epoch)
        how = mixture(
            self.recipe.augment,
            size=self.recipe.image_size,
            seed=self.recipe.seed,
            epoch=epoch,
            numbers=batch.of.numbers,
            device=images.device,
        )
        if how is not None:
            images = how.blend(images)
            if maps is not None and how.box is not None:
                maps, how = how.paste(maps.clone()), None
        return images, self.target.finish(stored, maps), how

    def _changed(self, batch: Batch, epoch: int | None) -> tuple[Tensor, Targets, Tensor | None]:
        """Images, normalised; targets, and their maps, if they have any, changed as the images are."""
        recipe = self.recipe
        stored, found = each(self._to_device, batch.targets), batch.targets
        maps = self.target.maps(stored)
        if epoch is None or all(isinstance(AUGMENTATIONS[name], Mixing) for name in recipe.augment):
            images, maps = self._middle(batch.images, maps)
            if recipe.storage_size != recipe.image_size:
                mapping = augment.center_mapping(recipe.storage_size, recipe.image_size, len(images))
                found = self.target.move(found, mapping, recipe.storage_size, recipe.image_size)
        else:
            pixels = self._floats(batch.images).mul_(1 / 255)
            images, maps, mapping, erased = augment.augment(
                pixels,
                recipe.augment,
                size=recipe.image_size,
                seed=recipe.seed,
                epoch=epoch,
                ids=batch.of.numbers,
                masks=maps,
                ignore_index=self.target.outside,
            )
            images = torch.addcmul(self.shift, images, self.scale)
            if self.world.memory_format == "contiguous":  # else a convolution would take what some changes make of it
                images = images.contiguous()
            size = (batch.images.shape[1], batch.images.shape[2])  # of a mosaic, that of the store twice
            found = self.target.move(found, mapping, size, recipe.image_size, erased)
        return images, stored if found is batch.targets else each(self._to_device, found), maps

    def images(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 (N, *storage_size, C) -> normalised (N, C, *image_size)."""
        return self._middle(pictures, None)[0]

    def normalise(self, images: Tensor) -> Tensor:
        """(N, C, H, W) with values from 0 to 255, of any size, to zero mean and unit variance."""
        return torch.addcmul(self.shift, images, self.scale_of_bytes)

    def _middle(self, pictures: npt.NDArray[np.uint8] | Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        images = self._floats(pictures)
        if self.recipe.storage_size != self.recipe.image_size:
            images, masks = augment.center(images, self.recipe.image_size, masks)
        return self.normalise(images), masks

    def _floats(self, pictures: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """(N, C, H, W) from 0 to 255. As it comes, pictures lie pixel by pixel: in channels_last."""
        pixels = self._to_device(pictures).permute(0, 3, 1, 2)
        if self.world.memory_format == "channels_last":
            return pixels.to(self.world.dtype)
        return pixels.to(self.world.dtype, memory_format=torch.contiguous_format)

    def _to_device(self, array: Array | Tensor) -> Tensor:
        return upload(array, self.world.device)
