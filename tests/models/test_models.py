"""Models: published parameter counts, shapes, gradients, refusals; export and eval mode of those for segmentation."""

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

from trainers.models import deeplabv3plus, erfnet, linear_cnn, resnet, texture_cnn, unet

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
# Those that say something of every pixel; last, the height and width of what they say.
SEGMENTERS: list[tuple[Any, dict[str, Any], tuple[int, int], int, tuple[int, int]]] = [
    (erfnet, {}, (97, 131), 3, (97, 131)),
    (erfnet, {}, (16, 16), 15, (16, 16)),
    (erfnet, {"stage": "encoder"}, (97, 131), 3, (13, 17)),
    (erfnet, {"stage": "encoder"}, (16, 24), 1, (2, 3)),
    (deeplabv3plus, {}, (97, 131), 3, (97, 131)),
    (deeplabv3plus, {"output_stride": 8, "dropout": 0.0}, (45, 32), 1, (45, 32)),
    (deeplabv3plus, {"depth": 50}, (32, 32), 4, (32, 32)),
    (unet, {"base_channels": 4}, (97, 131), 3, (97, 131)),
    (unet, {"base_channels": 3, "depth": 1, "batch_norm": False, "dropout": 0.5}, (4, 7), 1, (4, 7)),
    (unet, {"base_channels": 4, "depth": 4}, (32, 33), 4, (32, 33)),
]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("module", "arguments", "size", "channels", "seen"), [*((*model, ()) for model in MODELS), *SEGMENTERS]
)
def test_outputs_have_their_shape_and_every_parameter_a_gradient(
    module: Any, arguments: dict[str, Any], size: tuple[int, int], channels: int, seen: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = module.build(image_size=size, channels=channels, classes=5, **arguments)
    output = model(torch.rand(3, channels, *size))
    assert output.shape == (3, 5, *seen)
    torch.autograd.backward(nn.functional.cross_entropy(output, torch.randint(5, (3, *seen))))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.ne(0).any(), name


@pytest.mark.parametrize("name", ["linear_cnn", "texture_cnn", "resnet", "erfnet", "deeplabv3plus", "unet"])
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


class TestSegmentersAtSmallSize:
    """What holds for every model of pixels, at the smallest image it takes."""

    SMALL = pytest.mark.parametrize(
        ("module", "arguments", "size"),
        [
            (erfnet, {}, (16, 17)),
            (erfnet, {"stage": "encoder"}, (17, 16)),
            (deeplabv3plus, {}, (33, 32)),
            (deeplabv3plus, {"output_stride": 8}, (32, 32)),
            (unet, {"base_channels": 4, "depth": 2}, (9, 8)),
            (unet, {"base_channels": 4, "depth": 2, "batch_norm": False}, (8, 8)),
        ],
    )

    @SMALL
    def test_trains_on_one_image(self, module: Any, arguments: dict[str, Any], size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        model = module.build(image_size=size, channels=3, classes=1, **arguments)
        output = model(torch.rand(1, 3, *size))
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(output, output.detach().gt(0).float()))
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert all(type(m) is nn.BatchNorm2d for m in model.modules() if "Norm" in type(m).__name__)

    @SMALL
    def test_in_eval_an_image_does_not_depend_on_the_others(
        self, module: Any, arguments: dict[str, Any], size: tuple[int, int]
    ) -> None:
        torch.manual_seed(0)
        model = module.build(image_size=size, channels=3, classes=2, **arguments).double()
        images = torch.rand(3, 3, *size, dtype=torch.float64)
        model(images)  # moves the statistics
        model.eval()
        together = model(images)
        assert together.dtype == torch.float64
        for index in range(3):
            torch.testing.assert_close(model(images[index : index + 1]), together[index : index + 1])
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images.contiguous(memory_format=torch.channels_last)), together)

    @SMALL
    def test_export_takes_any_number_of_images(
        self, module: Any, arguments: dict[str, Any], size: tuple[int, int]
    ) -> None:
        torch.manual_seed(0)
        model = module.build(image_size=size, channels=3, classes=2, **arguments).double().eval()
        images = torch.rand(4, 3, *size, dtype=torch.float64)
        batch = torch.export.Dim("batch")
        exported = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},)).module()
        for rows in (1, 4):
            torch.testing.assert_close(exported(images[:rows]), model(images[:rows]))

    @SMALL
    def test_builds_without_memory(self, module: Any, arguments: dict[str, Any], size: tuple[int, int]) -> None:
        with torch.device("meta"):
            model = module.build(image_size=size, channels=3, classes=2, **arguments)
        assert all(tensor.is_meta for tensor in model.state_dict().values())


class TestERFNet:
    @pytest.mark.parametrize("stage", ["encoder", "decoder"])
    def test_parameters_by_hand(self, stage: str) -> None:
        def norm(c: int) -> int:
            return 2 * c

        def down(a: int, b: int) -> int:
            return 9 * a * (b - a) + (b - a) + norm(b)

        def up(a: int, b: int) -> int:
            return 9 * a * b + b + norm(b)

        def residual(c: int) -> int:
            return 4 * (3 * c * c + c) + 2 * norm(c)

        encoder = down(3, 16) + down(16, 64) + 5 * residual(64) + down(64, 128) + 8 * residual(128)
        head = 128 * 20 + 20
        decoder = up(128, 64) + 2 * residual(64) + up(64, 16) + 2 * residual(16) + 4 * 16 * 20 + 20
        with torch.device("meta"):
            model = erfnet.build(image_size=(512, 1024), channels=3, classes=20, stage=stage)
        assert parameters(model) == encoder + (head if stage == "encoder" else decoder)
        # "2.06M" in print: https://github.com/Eromera/erfnet_pytorch counts the head in the whole network
        assert encoder + decoder == 2_064_256
        assert encoder + head + decoder == pytest.approx(2.06e6, rel=0.01)

    def test_layers_are_those_of_table_1(self) -> None:
        with torch.device("meta"):
            model: Any = erfnet.build(image_size=(512, 1024), channels=3, classes=20)
            images = torch.rand(1, 3, 512, 1024)
        shapes = []
        for layer in [*model.encoder, *model.decoder]:
            images = layer(images)
            shapes.append(tuple(images.shape[1:]))
        assert shapes == [
            (16, 256, 512),
            *[(64, 128, 256)] * 6,
            *[(128, 64, 128)] * 9,
            *[(64, 128, 256)] * 3,
            *[(16, 256, 512)] * 3,
            (20, 512, 1024),
        ]
        drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout2d)]
        assert drops == [0.03] * 5 + [0.3] * 8 + [0.0] * 4
        dilations = [m.dilation for m in model.encoder.modules() if isinstance(m, nn.Conv2d) and m.dilation != (1, 1)]
        assert dilations == [pair for d in (2, 4, 8, 16) * 2 for pair in ((d, 1), (1, d))]

    def test_weights_of_stage_one_load_into_stage_two(self) -> None:
        torch.manual_seed(0)
        first = erfnet.build(image_size=(64, 64), channels=3, classes=5, stage="encoder")
        second = erfnet.build(image_size=(64, 64), channels=3, classes=5)
        loaded = second.load_state_dict(first.state_dict(), strict=False)
        assert loaded.unexpected_keys == ["head.weight", "head.bias"]
        assert {name.split(".")[0] for name in loaded.missing_keys} == {"decoder"}
        state = second.state_dict()
        assert all(torch.equal(state[k], v) for k, v in first.state_dict().items() if k.startswith("encoder."))


class TestDeepLab:
    @pytest.mark.parametrize("output_stride", [8, 16])
    def test_parameters_by_hand(self, output_stride: int) -> None:
        backbone = 11_689_512 - (512 * 1000 + 1000)
        aspp = (512 * 256 + 512) + 3 * (9 * 512 * 256 + 512) + (512 * 256 + 256) + (5 * 256 * 256 + 512)
        low = 64 * 48 + 2 * 48
        decoder = (9 * 304 * 256 + 512) + (9 * 256 * 256 + 512)
        head = 256 * 11 + 11
        with torch.device("meta"):
            model = deeplabv3plus.build(image_size=(360, 480), channels=3, classes=11, output_stride=output_stride)
        assert {name: parameters(part) for name, part in model.named_children()} == {
            "backbone": backbone,
            "aspp": aspp,
            "dropout": 0,
            "low": low,
            "decoder": decoder,
            "head": head,
        }
        assert parameters(model) == 16_605_355
        assert f"{parameters(model):,}" in (deeplabv3plus.__doc__ or "")

    @pytest.mark.parametrize("depth", [18, 34, 50])
    def test_backbone_is_the_published_resnet_without_its_last_layer(self, depth: int) -> None:
        size: dict[str, Any] = {"image_size": (64, 64), "channels": 3, "depth": depth}
        with torch.device("meta"):
            published = resnet.build(classes=1000, **size).state_dict()
            model: Any = deeplabv3plus.build(classes=5, output_stride=8, **size)
        shapes = {name: value.shape for name, value in published.items() if not name.startswith("fc.")}
        assert {name: value.shape for name, value in model.backbone.state_dict().items()} == shapes

    @pytest.mark.parametrize(("depth", "output_stride"), [(18, 16), (18, 8), (50, 8)])
    def test_dilation_keeps_what_the_weights_have_learned(self, depth: int, output_stride: int) -> None:
        """The features of the ResNet with its strides are among the dilated one's."""
        torch.manual_seed(0)
        size: dict[str, Any] = {"image_size": (70, 64), "channels": 3, "depth": depth}
        plain: Any = resnet.build(classes=5, **size)
        dilated: Any = deeplabv3plus.build(classes=5, output_stride=output_stride, **size)
        dilated.backbone.load_state_dict(plain.state_dict(), strict=False)
        expected: list[torch.Tensor] = []
        plain.layer4.register_forward_hook(lambda _module, _inputs, output: expected.append(output))
        images = torch.rand(1, 3, 70, 64, dtype=torch.float64)
        plain.double().eval()(images)
        low, last = dilated.double().eval().backbone(images)
        step = 32 // output_stride
        assert low.shape[-2:] == (18, 16)
        assert last.shape[-2:] == (-(-70 // output_stride), 64 // output_stride)
        torch.testing.assert_close(last[..., ::step, ::step], expected[0])

    @pytest.mark.parametrize("output_stride", [8, 16])
    def test_dilation_rates_follow_the_output_stride(self, output_stride: int) -> None:
        with torch.device("meta"):
            model: Any = deeplabv3plus.build(image_size=(64, 64), channels=3, classes=5, output_stride=output_stride)
        rates = [m.dilation[0] for m in model.aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert rates == [96 // output_stride, 192 // output_stride, 288 // output_stride]


class TestUNet:
    def test_parameters_by_hand(self) -> None:
        widths = [64, 128, 256, 512, 1024]

        def block(a: int, b: int) -> int:
            return 9 * a * b + 9 * b * b + 4 * b

        down = sum(block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        up = sum(4 * 2 * b * b + b + block(2 * b, b) for b in widths[:-1])
        build = unet.build
        with torch.device("meta"):
            model = build(image_size=(256, 256), channels=3, classes=24)
            plain = build(image_size=(256, 256), channels=3, classes=24, batch_norm=False)
        assert parameters(model) == down + up + 64 * 24 + 24 == 31_039_128
        assert parameters(model) == pytest.approx(31.0e6, rel=0.01)
        norms = 2 * (sum(widths) + sum(widths[:-1]))  # two a block, each a scale and a shift; else only a bias
        assert parameters(model) - parameters(plain) == norms

    def test_starts_with_features_of_one_size(self) -> None:
        """Without BatchNorm the mean square stays of one order over 18 convolutions; max-pools raise it a little."""
        torch.manual_seed(0)
        model: Any = unet.build(image_size=(64, 64), channels=3, classes=5, base_channels=32, batch_norm=False)
        squares: list[float] = []
        for block in [*model.encoder.blocks, *model.decoder.blocks]:
            block.register_forward_hook(lambda _m, _i, output: squares.append(output.square().mean().item()))
        model(torch.randn(2, 3, 64, 64))
        assert len(squares) == 9
        assert min(squares) > 0.5
        assert max(squares) < 8

    def test_drops_out_in_training_only(self) -> None:
        model = unet.build(image_size=(16, 16), channels=1, classes=2, base_channels=2, depth=2, dropout=0.5)
        images = torch.rand(2, 1, 16, 16)
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))


class TestImageNetWeights:
    @pytest.fixture
    def published(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
        """Stands in for the download: the weights of another ResNet-18 of 1000 classes."""
        from torchvision.models import ResNet18_Weights, resnet18

        state: dict[str, torch.Tensor] = resnet18().state_dict()
        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *_args, **_kwargs: state)
        return state

    def test_with_the_published_classes_all_weights_are_the_published(self, published: dict[str, torch.Tensor]) -> None:
        model = resnet.build(image_size=(64, 64), channels=3, classes=1000, weights="imagenet")
        for name, value in model.state_dict().items():
            assert torch.equal(value, published[name]), name

    def test_other_classes_get_a_new_last_layer(self, published: dict[str, torch.Tensor]) -> None:
        model = resnet.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")
        state = model.state_dict()
        assert state["fc.weight"].shape == (7, 512)
        assert all(torch.equal(state[name], published[name]) for name in state if not name.startswith("fc."))

    def test_deeplab_starts_its_backbone_from_them(self, published: dict[str, torch.Tensor]) -> None:
        model: Any = deeplabv3plus.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(value, published[name]), name

    def test_without_a_network_the_error_says_where_to_put_the_weights(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def refuse(*_args: object, **_kwargs: object) -> None:
            raise urllib.error.URLError("no route to host")

        monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(ValueError, match="no route to host") as caught:
            resnet.build(image_size=(64, 64), channels=3, classes=7, weights="imagenet")
        expected = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
        assert f"put that file at {expected}" in str(caught.value)
        assert "--model-args" in str(caught.value)

    def test_a_file_of_weights_put_there_by_hand_is_used(
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
    def test_a_file_that_holds_no_weights_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes
    ) -> None:
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
        (erfnet, {"stage": "both"}, (32, 32), 3, "stage='both' .* use one of encoder, decoder"),
        (erfnet, {}, (64, 15), 3, "at least 16x16, got 64x15"),
        (erfnet, {}, (64, 64), 16, "1 to 15 channels, got 16"),
        (deeplabv3plus, {"depth": 101}, (64, 64), 3, "depth=101 .* use one of 18, 34, 50"),
        (deeplabv3plus, {"output_stride": 32}, (64, 64), 3, "output_stride=32 .* use one of 16, 8"),
        (deeplabv3plus, {"dropout": 1.0}, (64, 64), 3, "dropout=1.0"),
        (deeplabv3plus, {"weights": "coco"}, (64, 64), 3, "use 'imagenet'"),
        (deeplabv3plus, {"weights": "imagenet"}, (64, 64), 1, "needs images of 3 channels, got 1 channels"),
        (deeplabv3plus, {}, (31, 64), 3, "at least 32x32, got 31x64"),
        (unet, {"base_channels": 0}, (64, 64), 3, "base_channels=0"),
        (unet, {"depth": 0}, (64, 64), 3, "depth=0 is not possible: use 1 or more"),
        (unet, {"dropout": -0.1}, (64, 64), 3, "dropout=-0.1"),
        (unet, {}, (31, 64), 3, "depth=4 needs images of at least 32x32, got 31x64: .* a smaller depth"),
        (unet, {"depth": 5}, (64, 63), 3, "depth=5 needs images of at least 64x64, got 64x63"),
    ],
)
def test_arguments_that_are_not_allowed_are_refused(
    module: Any, arguments: dict[str, Any], size: tuple[int, int], channels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        module.build(image_size=size, channels=channels, classes=5, **arguments)
