"""Training pictures kept on the device that computes, where they fit beside all that a step needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainers.data.targets import Array
from trainers.upload import upload

SHARE = 0.5
"""Of the room that there is, what pictures may take: memory is not always in one piece."""
PIECE_BYTES = 2**24
"""That are copied at once, through as much page-locked memory of the host."""


class Resident:
    """The training pictures on the device, from the second epoch on: then it is known what steps and evaluation take.

    Batches that are gathered there are those that the host gathers, bit for bit.
    """

    def __init__(self, device: torch.device, room: Callable[[], int]) -> None:
        """
        Args:
            device: That computes, and is this process's alone.
            room: Says how many bytes of it nothing needs.
        """
        self.device, self.room = device, room
        self.bytes = 0
        """That are kept."""
        self._pictures: Tensor | None = None
        self._epochs = 0

    def holds(self, shards: Sequence[Array]) -> bool:
        """Whether the pictures are on the device, in the epoch that begins.

        Args:
            shards: All of them on the host, uint8 (rows, height, width, channels) each.

        Returns:
            False in the first epoch, and where they do not fit: the host is to gather them.
        """
        self._epochs += 1
        size = sum(shard.nbytes for shard in shards)
        if self._epochs == 2 and size <= SHARE * self.room():
            with contextlib.suppress(torch.OutOfMemoryError):  # it is not in one piece
                self._pictures = self._copy(shards)
                self.bytes = size
        return self._pictures is not None

    def gather(self, ids: Array) -> Tensor:
        """The pictures of these rows, int64 (N,), in that order, where it `holds` them."""
        assert self._pictures is not None
        return self._pictures.index_select(0, upload(ids, self.device))

    def _copy(self, shards: Sequence[Array]) -> Tensor:
        rows = sum(len(shard) for shard in shards)
        pictures = torch.empty((rows, *shards[0].shape[1:]), dtype=torch.uint8, device=self.device)
        at, step = 0, max(1, PIECE_BYTES // shards[0][0].nbytes)
        for shard in shards:
            for first in range(0, len(shard), step):
                piece = np.array(shard[first : first + step])  # the shard may be mapped, and not to be written to
                pictures[at : at + len(piece)] = upload(piece, self.device)
                at += len(piece)
        return pictures
