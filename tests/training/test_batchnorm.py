"""Statistics of BatchNorm by two workers: those of one process, however often a pass calls a layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from trainers.training.batchnorm import BatchNormStatistics
from trainers.training.distributed import World

CPU = torch.device("cpu")


class Net(nn.Module):
    """The first layer is called as often as `calls` says: once, twice, or not in every pass."""

    def __init__(self, momentum: float | None, calls: list[int]) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm1d(3)
        self.calls, self.passes = calls, 0

    def forward(self, images: Tensor) -> Tensor:
        for _ in range(self.calls[self.passes % len(self.calls)]):
            images = self.first(images) + images.square()
        return self.second(images.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("momentum", [0.1, 0.75, None])
@pytest.mark.parametrize("calls", [[1], [2], [3], [1, 0, 2], [0]])
def test_two_workers_keep_what_one_process_does(momentum: float | None, calls: list[int]) -> None:
    """Three steps of three micro-batches: the second worker gets one of them, and then a surplus pass."""
    torch.manual_seed(0)
    alone = Net(momentum, calls).double()
    workers = [copy.deepcopy(alone), copy.deepcopy(alone)]
    norms = [BatchNormStatistics(model, World(rank, 2, CPU, "fp64")) for rank, model in enumerate(workers)]
    for _ in range(3):
        batch = torch.randn(3, 4, 3, 5, 5, dtype=torch.float64)
        table = torch.zeros(3, norms[0].size, dtype=torch.float64)
        for number, images in enumerate([*batch, batch[0]]):
            for model in (workers[number % 2], alone)[: 2 if number < 3 else 1]:
                model.passes = number
                if model is not alone:
                    norms[number % 2].begin_pass()
                model(images)
            if number < 3:
                table[number] = norms[number % 2].of_micro_batch()
        for rank, model in enumerate(workers):
            norms[rank].apply(table)
            for name, value in alone.named_buffers():
                torch.testing.assert_close(model.get_buffer(name), value, rtol=1e-12, atol=1e-12)


def test_layers_in_eval_mode_and_single_workers_are_left_alone() -> None:
    model = Net(0.1, [1]).eval()
    for size in (1, 2):
        norms = BatchNormStatistics(model.train(size == 1), World(0, size, CPU, "fp32"))
        norms.begin_pass()
        assert norms.size == 0
        assert model.first.running_var is not None
        assert model.first.running_var.tolist() == [1.0] * 3
