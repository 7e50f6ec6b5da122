"""What is reported to Ray's metrics, and the dashboard that shows them. Of a real cluster: test_ray_train.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.runtime import prometheus

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
CPU = torch.device("cpu")
STEP = {"kind": "step", "epoch": 3, "epochs": 9, "step": 5, "steps": 20, "loss": 0.5, "images_per_second": 800.0}
LINE = {"epoch": 3, "step": 60, "seconds": 2.0, "images_per_second": 700.0, "data_wait_share": 0.1, "lr": 0.01}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {**STEP, "data_wait_share": 0.2, "score": None, "seconds_left": 9.0},
            {"epoch": 2.25, "loss": 0.5, "images_per_second": 800.0, "data_wait_share": 0.2},
        ),
        (
            {"kind": "epoch", "line": {**LINE, "train/loss": 0.4, "val/loss": 0.3, "val/accuracy": 0.9}},
            {
                "epoch": 3,
                "images_per_second": 700.0,
                "data_wait_share": 0.1,
                "loss": 0.4,
                "validation_loss": 0.3,
                "learning_rate": 0.01,
                "validation_score/accuracy": 0.9,
            },
        ),
        ({"kind": "beat", "idle": 1.5}, {"idle_seconds": 1.5, "gpu_memory_bytes": 0}),
        ({"kind": "message", "text": "hello"}, {}),
    ],
    ids=["step", "epoch", "beat", "message"],
)
def test_an_event_sets_the_gauges_of_its_kind(event: dict[str, Any], expected: dict[str, float]) -> None:
    assert prometheus.measured(event, CPU) == expected
    assert {name.partition("/")[0] for name in expected} <= set(prometheus.DESCRIPTIONS)


def test_the_dashboard_shows_every_gauge_and_no_other() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = set(re.findall(r"ray_trainyard_\w+", " ".join(queries)))
    assert shown == {f"ray_trainyard_{name}" for name in prometheus.DESCRIPTIONS}
    assert all(query.count(one) == query.count(other) > 0 for query in queries for one, other in ("()", "{}"))


def test_the_dashboard_can_be_imported() -> None:
    """As Grafana's schema has it: an id for each panel, places that do not overlap, variables that are defined."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert (dashboard["uid"], dashboard["schemaVersion"]) == ("trainyard", 39)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) | {"datasource"} == variables
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert target["refId"]
