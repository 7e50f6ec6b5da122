"""Items of a data set to pictures and targets of the stored size."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from trainers import notices
from trainers.data.contract import reader
from trainers.data.resize import Pixels, shrink
from trainers.data.targets import Target
from trainers.datasets import BadImage, Item
from trainers.formatting import printable
from trainers.messages import Notice
from trainers.recipe import Recipe

Sample = tuple[Pixels, Any]
"""A picture, uint8 (height, width, channels), and its target."""


class Decoder:
    """Items of a recipe's data set, as pictures and targets of the recipe's stored size."""

    def __init__(
        self, recipe: Recipe, target: Target, channels: int, classes: int, numbers: Sequence[int] | None = None
    ) -> None:
        """
        Args:
            recipe: names the data set, the stored size and how pictures are brought to it.
            target: the data set's kind.
            channels: of its pictures.
            classes: how many there are.
            numbers: of each class as the data set numbers it, its number; None: the same.
        """
        self.read_item = reader(recipe.dataset, channels)
        self.dataset = recipe.dataset
        self.size, self.resize = recipe.storage_size, recipe.resize
        self.target, self.channels, self.numbers = target, channels, numbers
        self.classes = classes
        self._read_classes = classes if numbers is None else len(numbers)
        self._notices: dict[str, Notice] = {}
        self._lock = threading.Lock()

    def read(self, item: Item) -> list[Sample]:
        """Each sample of an item, at the stored size. Raises BadImage."""
        hinted = dataclasses.replace(item, args={**item.args, "min_size": self.size})
        return [
            (shrink(image, self.size, self.resize), self.target.resize(target, self.size, self.resize))
            for image, target in self._checked(hinted)
        ]

    def read_raw(self, item: Item) -> list[Sample]:
        """As `read`, but at the picture's own size."""
        return list(self._checked(item))

    def _checked(self, item: Item) -> Iterator[Sample]:
        for image, target in self.read_item(item):
            try:
                checked = self.target.check(item.name, image, target, self._read_classes)
                if self.numbers is not None:
                    checked = self.target.renumber(checked, self.numbers, self.classes)
                yield image, checked
            except TypeError as error:
                where = f"{self.dataset}: read() of the item {item.name!r}"
                raise ValueError(f"{where} returned a pair where {error}") from None

    def try_read(self, item: Item) -> list[Sample] | str:
        """`read`, or the reason why it cannot be done. What is noticed of a picture that is read is collected."""
        with notices.collected() as found:
            try:
                samples = self.read(item)
            except BadImage as error:
                return printable(str(error))  # of a file's name
        with self._lock:
            notices.merge(self._notices, found)
        return samples

    def take_notices(self) -> dict[str, Notice]:
        """What was noticed by `try_read` since the last call."""
        with self._lock:
            found, self._notices = self._notices, {}
        return found
