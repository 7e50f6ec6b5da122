"""Models of whole images: published parameter counts, shapes, gradients, refusals."""

from __future__ import annotations

import ast
import importlib
import inspect
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers.models import linear_cnn, resnet, texture_cnn

MODELS: list[tuple[Any, dict[str, Any], tuple[int, int], int]] = [
    (linear_cnn, {}, (28, 28), 1),
    (linear_cnn, {"num_filters": 3, "batch_norm": False, "dropout": 0.5}, (13, 30), 3),
    (linear_cnn, {}, (4, 4), 1),
    (texture_cnn, {}, (32, 32), 1),
    (texture_cnn, {}, (37, 8), 3),
    (resnet, {"stem": "3x3"}, (33, 19), 3),
    (resnet, {"stem": "3x3", "depth": 50}, (8, 8), 1),
    (resnet, {}, (45, 32), 1),
    (resnet, {}, (32, 63), 4),
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("module", "arguments", "size", "channels"), MODELS)
def test_shapes_and_gradients(module: Any, arguments: dict[str, Any], size: tuple[int, int], channels: int) -> None:
    torch.manual_seed(0)
    model = module.build(image_size=size, channels=channels, classes=5, **arguments)
    output = model(torch.rand(3, channels, *size))
    assert output.shape == (3, 5)
    torch.autograd.backward(nn.functional.cross_entropy(output, torch.tensor([0, 1, 2])))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("name", ["linear_cnn", "texture_cnn", "resnet"])
def test_signature_can_be_read_without_importing(name: str) -> None:
    module = importlib.import_module(f"trainers.models.{name}")
    tree = ast.parse(Path(inspect.getfile(module)).read_text())
    build = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "build")
    assert not build.args.args
    names = [argument.arg for argument in build.args.kwonlyargs]
    assert names[:3] == ["image_size", "channels", "classes"]
    for argument, default in zip(build.args.kwonlyargs[3:], build.args.kw_defaults[3:], strict=True):
        assert argument.annotation is not None
        assert default is not None
        ast.literal_eval(default)


def test_linear_cnn_parameters_by_hand() -> None:
    convolutions = (9 * 1 * 8 + 8) + (9 * 8 * 16 + 16) + (9 * 16 * 32 + 32)
    norms = 2 * (8 + 16 + 32)
    last = 7 * 7 * 32 * 10 + 10
    assert convolutions + norms + last == 21_690
    build = linear_cnn.build
    assert parameters(build(image_size=(28, 28), channels=1, classes=10)) == 21_690
    assert parameters(build(image_size=(28, 28), channels=1, classes=10, batch_norm=False)) == 21_690 - norms


def test_linear_cnn_layers_in_order() -> None:
    model = linear_cnn.build(image_size=(28, 28), channels=1, classes=10, num_filters=4)
    kinds = [type(layer).__name__ for layer in model.children()]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == [*block, "MaxPool2d", *block, "MaxPool2d", *block, "Flatten", "Dropout", "Linear"]
    assert [layer.out_channels for layer in model.children() if isinstance(layer, nn.Conv2d)] == [4, 8, 16]


def test_linear_cnn_drops_out_in_training_only() -> None:
    model = linear_cnn.build(image_size=(8, 8), channels=1, classes=3, batch_norm=False, dropout=0.5)
    images = torch.rand(2, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_texture_cnn_parameters_by_hand() -> None:
    convolutions = (9 * 1 * 6 + 6) + (9 * 6 * 16 + 16) + (9 * 16 * 32 + 32)
    linear = (4 * 4 * 32 * 128 + 128) + (128 * 64 + 64) + (64 * 32 + 32) + (32 * 10 + 10)
    assert convolutions + linear == 81_910
    assert parameters(texture_cnn.build(image_size=(32, 32), channels=1, classes=10)) == 81_910
    wider = texture_cnn.build(image_size=(64, 64), channels=3, classes=4)
    assert parameters(wider) == 81_910 + 2 * 9 * 6 + 3 * 4 * 4 * 32 * 128 - 6 * 33


@pytest.mark.parametrize(
    ("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
def test_resnet_has_the_published_number_of_parameters(depth: int, published: int) -> None:
    with torch.device("meta"):
        model = resnet.build(image_size=(224, 224), channels=3, classes=1000, depth=depth)
    assert parameters(model) == published


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.17), (34, 21.28), (50, 23.52), (101, 42.51)])
def test_resnet_for_cifar_has_the_published_number_of_parameters(depth: int, millions: float) -> None:
    """https://mmclassification.readthedocs.io/en/stable/papers/resnet.html, "Cifar10"."""
    with torch.device("meta"):
        model = resnet.build(image_size=(32, 32), channels=3, classes=10, depth=depth, stem="3x3")
    assert round(parameters(model) / 1e6, 2) == millions


def test_resnet_stem_keeps_the_resolution_of_small_images() -> None:
    model: Any = resnet.build(image_size=(32, 32), channels=3, classes=10, stem="3x3")
    images = torch.rand(1, 3, 32, 32)
    assert model.maxpool(model.conv1(images)).shape == (1, 64, 32, 32)
    # torchvision starts its convolutions at a variance of 2 / (outputs x 3 x 3)
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


class TestImageNetWeights:
    @pytest.fixture
    def published(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
        """Stands in for the download: the weights of another ResNet-18 of 1000 classes."""
        from torchvision.models import ResNet18_Weights, resnet18

        state: dict[str, torch.Tensor] = resnet18().state_dict()
        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_args, **_kwargs: state)
        return state

    def test_same_classes(self, published: dict[str, torch.Tensor]) -> None:
        model = resnet.build(image_size=(64, 64), channels=3, classes=1000, weights="imagenet")
        for name, value in model.state_dict().items():
            assert torch.equal(value, published[name]), name

    def test_other_classes_get_a_new_last_layer(self, published: dict[str, torch.Tensor]) -> None:
        model = resnet.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")
        state = model.state_dict()
        assert state["fc.weight"].shape == (7, 512)
        assert all(torch.equal(state[name], published[name]) for name in state if not name.startswith("fc."))

    def test_no_network(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_args: object, **_kwargs: object) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(ValueError, match="no route to host") as caught:
            resnet.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")
        expected = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        assert f"put that file at {expected}" in str(caught.value)
        assert "--model-args" in str(caught.value)

    def test_file_put_there_by_hand(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: dict[str, torch.Tensor]
    ) -> None:
        monkeypatch.undo()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(published, folder / "resnet18-f37072fd.pth")
        model = resnet.build(image_size=(64, 64), channels=3, classes=1000, weights="imagenet")
        assert torch.equal(model.state_dict()["conv1.weight"], published["conv1.weight"])

    @pytest.mark.parametrize("content", [b"", b"<html>sign in first</html>", b"PK\x03\x04 half a file"])
    def test_file_that_is_not_weights(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "resnet18-f37072fd.pth").write_bytes(content)
        with pytest.raises(ValueError, match="could not be read"):
            resnet.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")


@pytest.mark.parametrize(
    ("module", "arguments", "size", "channels", "message"),
    [
        (linear_cnn, {}, (3, 28), 1, "at least 4x4, got 3x28"),
        (linear_cnn, {"num_filters": 0}, (28, 28), 1, "num_filters=0"),
        (linear_cnn, {"dropout": 1.0}, (28, 28), 1, "dropout=1.0"),
        (texture_cnn, {}, (32, 7), 1, "at least 8x8, got 32x7"),
        (resnet, {}, (28, 28), 1, "at least 32x32, got 28x28; stem=3x3"),
        (resnet, {"stem": "3x3"}, (7, 32), 3, "at least 8x8, got 7x32"),
        (resnet, {"stem": "5x5"}, (32, 32), 3, "use one of standard, 3x3"),
        (resnet, {"depth": 20}, (32, 32), 3, "use one of 18, 34, 50, 101"),
        (resnet, {"weights": "coco"}, (32, 32), 3, "use 'imagenet'"),
        (resnet, {"weights": "imagenet"}, (32, 32), 1, "needs images of 3 channels .* got 1 channels"),
        (resnet, {"weights": "imagenet", "stem": "3x3"}, (32, 32), 3, "and stem=3x3"),
    ],
)
def test_refusals(module: Any, arguments: dict[str, Any], size: tuple[int, int], channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.build(image_size=size, channels=channels, classes=5, **arguments)
