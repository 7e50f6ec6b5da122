"""The optimizers that start sooner do what torch's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.training import startup
from trainers.training.startup import eager

KINDS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_starts_sooner_steps_to_the_same_bit(kind: type[torch.optim.Optimizer]) -> None:
    after = []
    for optimizer_kind in (kind, eager(kind)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = optimizer_kind(model.parameters(), lr=0.1, weight_decay=0.01, fused=True)  # type: ignore[call-arg]
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        after.append((type(optimizer).__name__, model.weight.detach().clone(), optimizer.state_dict()["param_groups"]))
    assert after[0][0] == after[1][0]
    assert torch.equal(after[0][1], after[1][1])
    assert after[0][2] == after[1][2]


@pytest.mark.parametrize(
    ("version", "tested"),
    [("2.14.1+cpu", True), ("2.15.0", True), ("2.13.1", False), ("2.16.0a0", False), ("3.0", False)],
)
def test_an_untested_torch_keeps_its_own_optimizers(
    version: str, tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup.torch, "__version__", version)
    eager.cache_clear()
    assert (eager(torch.optim.SGD) is not torch.optim.SGD) == tested
    eager.cache_clear()
