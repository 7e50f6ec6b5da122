"""Data sets: what is found on disk, how it is split and decoded, and what is said where it cannot be."""

from __future__ import annotations

import ast
import gzip
import importlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from trainers.datasets import (
    BadImage,
    Item,
    Source,
    cifar10,
    digits,
    image_folder,
    mnist,
    split_by_share,
    texture_crops,
)
from trainers.decode import decode

FOLDER = Path(importlib.import_module("trainers.datasets").__file__ or "").parent
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def samples(source: Source, split: str) -> list[tuple[str, int]]:
    """(name of item, target) of every sample."""
    return [(item.name, target) for item in source.splits[split] for target in item.targets]


def save(path: Path, pixels: Any = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), 128, np.uint8) if pixels is None else np.asarray(pixels)).save(path, **options)
    return path


def touch(*paths: Path) -> None:
    """Files that look like pictures to a listing."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---- what all data sets have in common ----


@pytest.mark.parametrize("name", NAMES)
def test_signature_can_be_read_without_importing(name: str) -> None:
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    arguments = functions["source"].args
    assert [argument.arg for argument in arguments.args] == ["data"]
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        assert argument.annotation is not None
        assert default is not None
        ast.literal_eval(default)
    assert "read" in functions
    assert len((ast.get_docstring(tree) or "").splitlines()[0]) > 20


def test_importing_them_imports_nothing_heavy() -> None:
    code = (
        f"import sys; {'; '.join(f'import trainers.datasets.{name}' for name in NAMES)}; "
        "print([name for name in ('torch', 'torchvision', 'sklearn', 'PIL', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FOLDER.parent.parent)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("module", [cifar10, image_folder, mnist, texture_crops])
def test_a_path_that_is_no_folder_is_refused(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs --data PATH: a folder that holds"):
        module.source(None)
    with pytest.raises(ValueError, match=r"lost/further does not exist \(of its path, .* does\); give --data"):
        module.source(str(tmp_path / "lost" / "further"))
    touch(tmp_path / "file.txt")
    with pytest.raises(ValueError, match=r"file\.txt is a file, not a folder; give --data"):
        module.source(str(tmp_path / "file.txt"))
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "empty" / ".DS_Store")
    with pytest.raises(ValueError, match="empty is empty; give --data"):
        module.source(str(tmp_path / "empty"))


# ---- split_by_share ----


def test_split_by_share_assigns_every_position_once_and_stratified() -> None:
    labels = [0] * 100 + [1] * 50 + [2] * 10
    assigned = split_by_share(labels, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=3)
    assert sorted(position for positions in assigned.values() for position in positions) == list(range(160))
    counts = {name: Counter(labels[position] for position in positions) for name, positions in assigned.items()}
    assert counts == {"train": {0: 80, 1: 40, 2: 8}, "val": {0: 10, 1: 5, 2: 1}, "test": {0: 10, 1: 5, 2: 1}}
    assert all(positions == sorted(positions) for positions in assigned.values())


def test_split_by_share_depends_on_the_seed_alone() -> None:
    labels, shares = [0, 1] * 50, {"train": 0.7, "val": 0.3}
    assert split_by_share(labels, shares, 1) == split_by_share(labels, shares, 1)
    assert split_by_share(labels, shares, 1) != split_by_share(labels, shares, 2)


def test_split_by_share_does_not_depend_on_the_version_of_numpy() -> None:
    """A split is part of a published result: it must be the same with every version of NumPy."""
    assert split_by_share([0] * 10, {"train": 0.7, "val": 0.3}, 0)["val"] == [0, 3, 5]


@pytest.mark.parametrize("train", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_split_by_share_leaves_no_class_out_of_train(train: float, size: int) -> None:
    labels = [label for label in range(5) for _ in range(size)]
    assigned = split_by_share(labels, {"train": train, "val": 1 - train}, 0)
    assert {labels[position] for position in assigned["train"]} == set(range(5))
    assert sorted(assigned["train"] + assigned["val"]) == list(range(5 * size))


# ---- digits ----


def test_digits() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    source = digits.source(None)
    assert source.classes == [str(digit) for digit in range(10)]
    assert {split: sum(len(item.targets) for item in items) for split, items in source.splits.items()} == {
        "train": 1438,
        "val": 359,
    }
    rows = []
    for item in [item for items in source.splits.values() for item in items]:
        item = Item(**json.loads(json.dumps(asdict(item))))
        assert item.path is None
        for row, (image, target) in zip(item.args["rows"], digits.read(item), strict=True):
            assert image.dtype == np.uint8
            assert image.shape == (8, 8, source.channels)
            assert target == raw.target[row]
            assert np.abs(image[:, :, 0] - raw.images[row] * 255 / 16).max() <= 0.5
            rows.append(row)
    assert sorted(rows) == list(range(1797))
    share = Counter(target for _, target in samples(source, "val"))
    assert all(abs(share[digit] - (raw.target == digit).sum() / 5) < 1 for digit in range(10))


def test_digits_split_by_seed() -> None:
    assert digits.source(None) == digits.source(None)
    assert digits.source(None, split_seed=1).splits != digits.source(None).splits
    with pytest.raises(ValueError, match="split_seed=-1 is out of range"):
        digits.source(None, split_seed=-1)


def test_digits_reads_no_folder() -> None:
    with pytest.raises(ValueError, match="comes with scikit-learn and reads no folder; leave --data /tmp out"):
        digits.source("/tmp")


# ---- MNIST ----


def idx_images(images: np.ndarray) -> bytes:
    return struct.pack(">IIII", 2051, len(images), *images.shape[1:]) + images.tobytes()


def idx_labels(labels: list[int]) -> bytes:
    return struct.pack(">II", 2049, len(labels)) + bytes(labels)


TRAIN_LABELS = [position % 10 for position in range(200)]
TEST_LABELS = [9 - position % 10 for position in range(30)]


def write_mnist(
    folder: Path, changes: Mapping[str, bytes] | None = None, *, separator: str = "-", packed: bool = False
) -> Path:
    """idx files of 200 + 30 images of noise; `changes` replaces a file's bytes, by its name up to `-idx`."""
    files = {
        "train-images-idx3-ubyte": idx_images(noise(200, 28, 28)),
        "train-labels-idx1-ubyte": idx_labels(TRAIN_LABELS),
        "t10k-images-idx3-ubyte": idx_images(noise(30, 28, 28, seed=1)),
        "t10k-labels-idx1-ubyte": idx_labels(TEST_LABELS),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        raw = (changes or {}).get(name.split("-idx")[0], raw)
        path = folder / (name.replace("-idx", f"{separator}idx") + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist(tmp_path: Path, below: str, separator: str, packed: bool) -> None:
    write_mnist(tmp_path / below, separator=separator, packed=packed)
    source = mnist.source(str(tmp_path))
    train, test = noise(200, 28, 28), noise(30, 28, 28, seed=1)
    assert source.channels == 1
    assert {split: len(samples(source, split)) for split in source.splits} == {
        "train": 180,
        "val": 20,
        "test": 30,
    }
    assert Counter(target for _, target in samples(source, "val")) == dict.fromkeys(range(10), 2)
    seen = []
    for split in ("train", "val"):
        for item in source.splits[split]:
            for row, (image, target) in zip(item.args["rows"], mnist.read(item), strict=True):
                np.testing.assert_array_equal(image, train[row][:, :, None])
                assert target == row % 10
                seen.append(row)
    assert sorted(seen) == list(range(200))
    (item,) = source.splits["test"]
    assert [target for _, target in mnist.read(item)] == TEST_LABELS
    np.testing.assert_array_equal(np.stack([image for image, _ in mnist.read(item)])[..., 0], test)


def test_mnist_items_are_json_and_named_once(tmp_path: Path) -> None:
    source = mnist.source(str(write_mnist(tmp_path)))
    items = [item for items in source.splits.values() for item in items]
    assert len({item.name for item in items}) == len(items)
    assert [Item(**json.loads(json.dumps(asdict(item)))) for item in items] == items


def test_mnist_cuts_a_file_into_items_of_2000(tmp_path: Path) -> None:
    labels = [position % 10 for position in range(5000)]
    source = mnist.source(
        str(write_mnist(tmp_path, {"t10k-images": idx_images(noise(5000, 28, 28)), "t10k-labels": idx_labels(labels)}))
    )
    assert [len(item.targets) for item in source.splits["test"]] == [2000, 2000, 1000]
    assert [target for _, target in samples(source, "test")] == labels


def test_mnist_reads_a_changed_file_again(tmp_path: Path) -> None:
    (item,) = mnist.source(str(write_mnist(tmp_path))).splits["test"]
    mnist.read(item)
    write_mnist(tmp_path, {"t10k-images": idx_images(np.full((30, 28, 28), 7, np.uint8))})
    os.utime(tmp_path / "t10k-images-idx3-ubyte", ns=(1, 1))
    assert {int(image.max()) for image, _ in mnist.read(item)} == {7}


def test_mnist_file_that_a_browser_unpacked_but_kept_the_name_is_read(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(idx_labels(TEST_LABELS))
    assert [target for _, target in samples(mnist.source(str(tmp_path)), "test")] == TEST_LABELS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"t10k-labels": idx_images(noise(30, 28, 28))},
            "t10k-labels.* is no idx file of labels: .* 0x00000803, not",
        ),
        (
            {"train-images": b"\x89PNG" + bytes(100)},
            "train-images.* is no idx file of images: it starts with 0x89504e47",
        ),
        ({"train-images": b"\x00\x00"}, "train-images.* is damaged or cut short"),
        (
            {"t10k-images": idx_images(noise(30, 32, 32))},
            "t10k-images.* holds images of 32x32 pixels; MNIST's have 28x28",
        ),
        (
            {"t10k-images": idx_images(noise(29, 28, 28))},
            "t10k-images.* holds 29 images, but there are 30 labels",
        ),
        (
            {"t10k-labels": idx_labels([10] * 30)},
            "t10k-labels.* holds the label 10; MNIST's labels are 0 to 9",
        ),
        (
            {"train-labels": idx_labels(TRAIN_LABELS)[:-1]},
            "train-labels.* is damaged: 199 bytes follow its header, .* 200",
        ),
    ],
)
def test_mnist_file_of_wrong_content_is_refused(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mnist.source(str(write_mnist(tmp_path, changes)))


def test_mnist_images_cut_short_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, {"t10k-images": idx_images(noise(30, 28, 28))[:-5]})
    (item,) = mnist.source(str(tmp_path)).splits["test"]
    with pytest.raises(ValueError, match=r"t10k-images.* is damaged: 23515 bytes follow its header, .* 23520"):
        mnist.read(item)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_mnist_archive_that_is_damaged_is_refused(tmp_path: Path, damage: str) -> None:
    write_mnist(tmp_path, packed=True)
    for name in ("t10k-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"):
        raw = bytearray((tmp_path / name).read_bytes())
        if damage == "cut":
            raw = raw[: len(raw) // 2]
        else:
            raw[len(raw) // 2] ^= 0xFF
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        mnist.source(str(tmp_path))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        mnist.read(Item(path=str(tmp_path / "t10k-images-idx3-ubyte.gz"), name="", targets=[0], args={"rows": [0]}))


def test_missing_mnist_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    item = mnist.source(str(tmp_path)).splits["test"][0]
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match=r"lacks t10k-images-idx3-ubyte \(looked .*--dataset-args download=true"):
        mnist.source(str(tmp_path))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte cannot be read on the host .*: No such file"):
        mnist.read(item)


@pytest.mark.parametrize(("module", "name"), [(mnist, "MNIST"), (cifar10, "CIFAR10")])
def test_a_download_that_fails_is_reported_with_where_to_put_the_file(
    tmp_path: Path, module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = pytest.importorskip("torchvision")

    def refuse(folder: str, download: bool) -> None:
        assert download
        raise RuntimeError(f"Error downloading to {folder}:\n<urlopen error>")

    monkeypatch.setattr(torchvision.datasets, name, refuse)
    with pytest.raises(ValueError, match=rf"{name} could not be downloaded to .*new: .*<urlopen error>"):
        module.source(str(tmp_path / "new"), download=True)
    with pytest.raises(ValueError, match="needs --data PATH"):
        module.source(None, download=True)


def test_mnist_is_not_downloaded_twice(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    assert mnist.source(str(tmp_path), download=True) == mnist.source(str(tmp_path))


@pytest.mark.skipif("TRAINYARD_MNIST" not in os.environ, reason="TRAINYARD_MNIST names no folder with the real MNIST")
def test_mnist_as_published() -> None:
    source = mnist.source(os.environ["TRAINYARD_MNIST"])
    counts = Counter(target for _, target in samples(source, "train") + samples(source, "val"))
    assert [counts[digit] for digit in range(10)] == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert len(samples(source, "test")) == 10000
    test = np.stack([image for item in source.splits["test"] for image, _ in mnist.read(item)])
    assert abs(test.mean() / 255 - 0.1325) < 1e-4


# ---- CIFAR-10 ----


CIFAR_FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def cifar_batch(number: int) -> tuple[np.ndarray, list[int]]:
    """Batch `number` of the sets below: 40 rows of 3,072 bytes, red plane first, and their labels."""
    return noise(40, 3072, seed=number), [(row + number) % 10 for row in range(40)]


PythonPickler: Any = pickle._Pickler


class Python2Pickler(PythonPickler):  # type: ignore[misc]
    """Writes what Python 2 wrote: str and bytes alike as BINSTRING, and NumPy under its old name."""

    def save_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch: ClassVar = {**PythonPickler.dispatch, str: save_string, bytes: save_string}


def python2_pickle(value: Any) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar_pickle(number: int) -> bytes:
    pixels, labels = cifar_batch(number)
    return python2_pickle({"data": pixels, "labels": labels, "batch_label": "batch", "filenames": ["a.png"] * 40})


def cifar_binary(number: int) -> bytes:
    pixels, labels = cifar_batch(number)
    return b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))


def write_cifar(folder: Path, form: str) -> Path:
    """A small CIFAR-10 in one of the forms in which it is published."""
    binary = "bin" in form
    files = {
        name + (".bin" if binary else ""): (cifar_binary if binary else cifar_pickle)(number)
        for number, name in enumerate(CIFAR_FILES)
    }
    if form.endswith(".tar.gz"):
        with tarfile.open(folder / form, "w:gz", compresslevel=1) as archive:
            for name, raw in {"readme.html": b"-", **files}.items():
                member = tarfile.TarInfo(f"cifar-10-batches-{'bin' if binary else 'py'}/{name}")
                member.size = len(raw)
                archive.addfile(member, io.BytesIO(raw))
        return folder
    (folder / form).mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / form / name).write_bytes(raw)
    return folder


CIFAR_FORMS = [
    "cifar-10-batches-py",
    "cifar-10-batches-bin",
    "cifar-10-python.tar.gz",
    "cifar-10-binary.tar.gz",
]


@pytest.mark.parametrize("form", [*CIFAR_FORMS, "."])
def test_cifar10_batches(tmp_path: Path, form: str) -> None:
    source = cifar10.source(str(write_cifar(tmp_path, form)))
    assert source.classes[3] == "cat"
    assert source.channels == 3
    assert {split: len(samples(source, split)) for split in source.splits} == {
        "train": 180,
        "val": 20,
        "test": 40,
    }
    assert Counter(target for _, target in samples(source, "val")) == dict.fromkeys(range(10), 2)
    seen = []
    for split, items in source.splits.items():
        for item in items:
            item = Item(**json.loads(json.dumps(asdict(item))))
            number = CIFAR_FILES.index(item.args["batch"])
            assert (split == "test") == (number == 5)
            pixels, labels = cifar_batch(number)
            for row, (image, target) in zip(item.args["rows"], cifar10.read(item), strict=True):
                assert image.shape == (32, 32, 3)
                assert image[2, 5, 1] == pixels[row, 1024 + 2 * 32 + 5]  # green plane, row 2, column 5
                np.testing.assert_array_equal(image[:, :, 2].ravel(), pixels[row, 2048:])
                assert target == labels[row]
                seen.append((number, row))
    assert sorted(seen) == [(number, row) for number in range(6) for row in range(40)]
    names = [item.name for items in source.splits.values() for item in items]
    assert len(set(names)) == len(names)


def test_cifar10_forms_agree(tmp_path: Path) -> None:
    found = []
    for form in CIFAR_FORMS:
        (tmp_path / form.replace("tar.gz", "")).mkdir()
        source = cifar10.source(str(write_cifar(tmp_path / form.replace("tar.gz", ""), form)), split_seed=4)
        found.append([(item.name, item.targets, item.args) for items in source.splits.values() for item in items])
    assert all(entry == found[0] for entry in found)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10_pickle_that_runs_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    write_cifar(tmp_path, "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Malicious(), protocol=protocol))
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged .* posix\.system"):
        cifar10.source(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_cifar10_pickle_may_not_even_name_builtins(tmp_path: Path, name: str) -> None:
    write_cifar(tmp_path, "cifar-10-batches-py")
    raw = f"cbuiltins\n{name}\n(S'1'\ntR.".encode()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"asks for builtins\.{name}"):
        cifar10.source(str(tmp_path))


def test_cifar10_archive_is_never_unpacked(tmp_path: Path) -> None:
    """A member named ../data_batch_1 is read as a batch, and nothing is written anywhere."""
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        for number, name in enumerate(CIFAR_FILES):
            member = tarfile.TarInfo(f"../{name}")
            raw = cifar_pickle(number)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    before = sorted(tmp_path.rglob("*"))
    source = cifar10.source(str(tmp_path / "data"))
    cifar10.read(source.splits["test"][0])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (pickle.dumps([1]), "does not hold a batch of CIFAR-10 but a list"),
        (pickle.dumps({"data": [1]}), "does not hold a batch of CIFAR-10: rows of 3,072 bytes"),
        (python2_pickle({"data": noise(4, 3071), "labels": [0] * 4}), "rows of 3,072 bytes and their labels"),
        (python2_pickle({"data": noise(4, 3072), "labels": [0] * 3}), "rows of 3,072 bytes and their labels"),
        (python2_pickle({"data": noise(1, 3072), "labels": [10]}), "labels other than 0 to 9"),
        (python2_pickle({"data": noise(1, 3072), "labels": ["cat"]}), "labels other than 0 to 9"),
        (cifar_pickle(0)[:5000], "is damaged or no batch of CIFAR-10"),
        (b"", "is damaged or no batch of CIFAR-10"),
    ],
)
def test_cifar10_pickle_of_wrong_content_is_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    write_cifar(tmp_path, "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"data_batch_2 .*{message}|data_batch_2 {message}"):
        cifar10.source(str(tmp_path))


def test_cifar10_files_of_wrong_content_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, "cifar-10-batches-bin")
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    batch.write_bytes(cifar_binary(1)[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin is damaged: 122919 bytes are no multiple of 3,073"):
        cifar10.source(str(tmp_path))
    batch.unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-bin lacks data_batch_2\.bin; copy"):
        cifar10.source(str(tmp_path))


def test_cifar10_archive_of_wrong_content_is_refused(tmp_path: Path) -> None:
    path = write_cifar(tmp_path, "cifar-10-python.tar.gz") / "cifar-10-python.tar.gz"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz (is damaged or cut short|lacks test_batch)"):
        cifar10.source(str(tmp_path))
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is damaged or cut short"):
        cifar10.source(str(tmp_path))


def test_cifar10_pictures(tmp_path: Path) -> None:
    for number, name in enumerate(cifar10.CLASSES):
        for index in range(10):
            save(
                tmp_path / "train" / name / f"{index}.png",
                np.full((32, 32, 3), 20 * number + index, np.uint8),
            )
        save(tmp_path / "test" / name / "0.png", np.full((32, 32, 3), 250, np.uint8))
    source = cifar10.source(str(tmp_path))
    assert {split: len(samples(source, split)) for split in source.splits} == {
        "train": 90,
        "val": 10,
        "test": 10,
    }
    for item in source.splits["train"]:
        ((image, target),) = cifar10.read(item)
        assert image.shape == (32, 32, 3)
        assert image[0, 0, 0] // 20 == target
    save(tmp_path / "train" / "car" / "0.png")
    with pytest.raises(ValueError, match=r"airplane, .*, car, .*; CIFAR-10's are .* image_folder"):
        cifar10.source(str(tmp_path))


def test_missing_cifar10_files_are_reported(tmp_path: Path) -> None:
    touch(tmp_path / "holiday.jpg")
    with pytest.raises(ValueError, match=r"holds none of CIFAR-10's forms \(it holds holiday\.jpg\)"):
        cifar10.source(str(tmp_path))


# ---- image_folder: what is found ----


def folder_of(root: Path, **counts: int) -> Path:
    """Pictures 00.jpg, 01.jpg, ... by folder; `__` in a folder's name stands for `/`."""
    for name, count in counts.items():
        touch(*(root / name.replace("__", "/") / f"{number:02d}.jpg" for number in range(count)))
    return root


def test_image_folder_with_splits(tmp_path: Path) -> None:
    folder_of(tmp_path, train__cat=3, train__dog=2, val__cat=1, val__dog=1, test__dog=4)
    source = image_folder.source(str(tmp_path))
    assert source.classes == ["cat", "dog"]
    assert samples(source, "train") == [
        ("train/cat/00.jpg", 0),
        ("train/cat/01.jpg", 0),
        ("train/cat/02.jpg", 0),
        ("train/dog/00.jpg", 1),
        ("train/dog/01.jpg", 1),
    ]
    assert samples(source, "val") == [("val/cat/00.jpg", 0), ("val/dog/00.jpg", 1)]
    assert [target for _, target in samples(source, "test")] == [1] * 4
    assert source.splits["val"][1].path == str(tmp_path / "val" / "dog" / "00.jpg")


@pytest.mark.parametrize("val", ["valid", "validation", "Val"])
def test_image_folder_other_names_of_splits(tmp_path: Path, val: str) -> None:
    folder_of(tmp_path, Train__a=2, Train__b=2, **{f"{val}__a": 1}, testing__b=1)
    source = image_folder.source(str(tmp_path))
    assert samples(source, "val") == [(f"{val}/a/00.jpg", 0)]
    assert samples(source, "test") == [("testing/b/00.jpg", 1)]


def test_image_folder_val_is_a_tenth_of_train_and_never_of_test(tmp_path: Path) -> None:
    folder_of(tmp_path, train__a=40, train__b=20, test__a=5, test__b=5)
    source = image_folder.source(str(tmp_path))
    assert Counter(target for _, target in samples(source, "val")) == {0: 4, 1: 2}
    assert Counter(target for _, target in samples(source, "train")) == {0: 36, 1: 18}
    assert all(name.startswith("train/") for name, _ in samples(source, "val") + samples(source, "train"))
    assert [name.split("/")[0] for name, _ in samples(source, "test")] == ["test"] * 10


def test_image_folder_with_train_alone_has_no_test(tmp_path: Path) -> None:
    source = image_folder.source(str(folder_of(tmp_path, train__a=20, train__b=20)))
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 36, "val": 4}


def test_image_folder_without_splits(tmp_path: Path) -> None:
    folder_of(tmp_path, a=50, b=20)
    source = image_folder.source(str(tmp_path))
    counts = {split: Counter(target for _, target in samples(source, split)) for split in source.splits}
    assert counts == {"train": {0: 40, 1: 16}, "val": {0: 5, 1: 2}, "test": {0: 5, 1: 2}}
    names = [name for split in source.splits for name, _ in samples(source, split)]
    assert len(set(names)) == 70
    assert image_folder.source(str(tmp_path)) == source
    assert image_folder.source(str(tmp_path), split_seed=1).splits != source.splits
    assert set(image_folder.source(str(tmp_path), test_share=0.0).splits) == {"train", "val"}


def test_image_folder_order_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    for root, numbers in ((tmp_path / "one", range(30)), (tmp_path / "two", reversed(range(30)))):
        for number in numbers:
            touch(root / "a" / f"{number}.jpg", root / "b" / f"{number}.jpg")
    one, two = image_folder.source(str(tmp_path / "one")), image_folder.source(str(tmp_path / "two"))
    for split in one.splits:
        assert samples(one, split) == samples(two, split)


def test_image_folder_takes_nested_folders_all_endings_and_nothing_else(tmp_path: Path) -> None:
    endings = ["jpg", "JPEG", "png", "Webp", "bmp", "gif", "tif", "TIFF", "ppm", "pgm"]
    touch(*(tmp_path / "train" / "b" / "2024" / "may" / f"x.{ending}" for ending in endings))
    touch(
        tmp_path / "train" / "B" / "x.jpg",
        tmp_path / "train" / "a10" / "x.jpg",
        tmp_path / "train" / "a9" / "x.jpg",
    )
    touch(*(tmp_path / "train" / "b" / name for name in ("Thumbs.db", "notes.txt", ".hidden.jpg", "._x.jpg")))
    touch(tmp_path / "train" / ".git" / "x.jpg", tmp_path / "loose.jpg", tmp_path / "train" / "loose.jpg")
    touch(tmp_path / "val" / "b" / "x.jpg")
    source = image_folder.source(str(tmp_path))
    assert source.classes == ["B", "a10", "a9", "b"]
    nested = [name for name, _ in samples(source, "train") if "/b/" in name]
    assert nested == sorted(f"train/b/2024/may/x.{ending}" for ending in endings)


def test_image_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    folder_of(tmp_path, store=3, data__train__b=1, data__val__b=1)
    (tmp_path / "data" / "train" / "a").symlink_to(tmp_path / "store")
    source = image_folder.source(str(tmp_path / "data"))
    assert [name for name, _ in samples(source, "train")] == [
        "train/a/00.jpg",
        "train/a/01.jpg",
        "train/a/02.jpg",
        "train/b/00.jpg",
    ]
    (tmp_path / "store" / "again").symlink_to(tmp_path / "store")
    with pytest.raises(ValueError, match=r"train/a/again is a link to a folder above it; remove the link"):
        image_folder.source(str(tmp_path / "data"))


def test_image_folder_may_have_a_class_called_train(tmp_path: Path) -> None:
    source = image_folder.source(str(folder_of(tmp_path, train=10, car=10)))
    assert source.classes == ["car", "train"]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 5}, "holds one class folder only, 'a'; training needs two or more"),
        ({"train__a": 5, "test__a": 5}, "train holds one class folder only, 'a'"),
        (
            {"val__a": 5, "test__a": 5, "test__b": 5},
            r"holds no train split, only test, val; add train/<class>/\*",
        ),
        (
            {"train__a": 5, "train__b": 5, "val__a": 1, "val__c": 1},
            "val holds classes that train lacks: c; train has a, b",
        ),
        (
            {"train__a": 5, "train__b": 5, "val__a": 1, "valid__a": 1},
            "holds two folders for val, val and valid; keep one",
        ),
        ({"train__a": 5, "train__b": 5, "val": 3}, "val holds 3 pictures and no class folders; put"),
        ({"train": 5, "test": 5}, "train holds 5 pictures and no class folders"),
        (
            {"a": 3, "b": 3},
            "6 samples in 2 classes are too few for a val split of 0.1 of each class; add samples or raise",
        ),
    ],
)
def test_image_folder_of_another_layout_is_refused(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_folder.source(str(folder_of(tmp_path, **counts)))


def test_image_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "loose", **{".": 4})
    with pytest.raises(ValueError, match="loose holds 4 pictures and no class folders; put the pictures of each"):
        image_folder.source(str(tmp_path / "loose"))
    folder_of(tmp_path / "data", a=9)
    touch(tmp_path / "data" / "b" / "x.heic")
    with pytest.raises(ValueError, match=r"data/b holds no pictures \(it holds x\.heic\); add some"):
        image_folder.source(str(tmp_path / "data"))
    folder_of(tmp_path / "split", train__a=9, train__b=9)
    (tmp_path / "split" / "val" / "a").mkdir(parents=True)
    with pytest.raises(ValueError, match="split/val holds no pictures; add some or remove the folder"):
        image_folder.source(str(tmp_path / "split"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"channels": 4}, "channels=4 is not offered; use 3"),
        (
            {"val_share": 0.0},
            "val_share=0.0 and test_share=0.1 leave no train or no val split; val_share must",
        ),
        ({"val_share": 0.6, "test_share": 0.4}, "their sum below 1"),
        ({"test_share": -0.1}, "test_share 0 or more"),
        ({"split_seed": 2**32}, "split_seed=4294967296 is out of range; give a number from 0 to 4294967295"),
    ],
)
def test_image_folder_arguments_that_are_not_allowed_are_refused(
    tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        image_folder.source(str(folder_of(tmp_path, a=30, b=30)), **args)


def test_image_folder_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path / "data", a=20, b=20)
    monkeypatch.chdir(tmp_path)
    assert image_folder.source("data/") == image_folder.source(str(tmp_path / "data"))


def test_image_folder_lists_without_opening_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, train__a=1000, train__b=1000, val__a=1)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a listing must not open single files")

    monkeypatch.setattr(Image, "open", forbidden)
    assert len(image_folder.source(str(tmp_path)).splits["train"]) == 2000


# ---- decoding ----


def read_one(path: Path, channels: int = 3, **args: Any) -> np.ndarray:
    item = Item(path=str(path), name=path.name, targets=[1], args={"channels": channels, **args})
    ((image, target),) = image_folder.read(item)
    assert target == 1
    assert image.dtype == np.uint8
    assert image.shape[2] == channels
    return image


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm"])
def test_decode_each_format(tmp_path: Path, ending: str, channels: int) -> None:
    pixels = np.zeros((6, 9, 3), np.uint8)
    pixels[:] = (200, 100, 50)
    image = read_one(save(tmp_path / f"x.{ending}", pixels), channels)
    assert image.shape == (6, 9, channels)
    expected = [200, 100, 50] if channels == 3 else [124]  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B = 124.2
    assert np.abs(image.astype(int) - expected).max() <= 4


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "pgm"])
def test_decode_grey_into_colour(tmp_path: Path, ending: str) -> None:
    image = read_one(save(tmp_path / f"x.{ending}", np.full((3, 4), 77, np.uint8)))
    assert image.shape == (3, 4, 3)
    assert set(image.ravel()) == {77}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_decode_16_bits_are_scaled_not_clipped(tmp_path: Path, ending: str, channels: int) -> None:
    values = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    image = read_one(save(tmp_path / f"x.{ending}", values), channels)
    for channel in range(channels):
        assert image[0, :, channel].tolist() == [0, 0, 1, 1, 100, 255]


@pytest.mark.parametrize("values", [np.array([[-1, 5]], np.int32), np.array([[70000, 5]], np.int32)])
def test_decode_beyond_16_bits_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"x\.tif cannot be decoded: its pixels are (below 0|beyond 16 bits)"):
        read_one(save(tmp_path / "x.tif", values))


def test_decode_floating_point_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"x\.tif cannot be decoded: its pixels are floating-point numbers"):
        read_one(save(tmp_path / "x.tif", np.array([[0.5, 1.0]], np.float32)))


@pytest.mark.parametrize("channels", [1, 3])
def test_decode_transparency_on_white(tmp_path: Path, channels: int) -> None:
    black = np.zeros((1, 3, 4), np.uint8)
    black[0, :, 3] = (0, 255, 51)  # transparent, opaque, a fifth
    assert read_one(save(tmp_path / "x.png", black), channels)[0, :, 0].tolist() == [255, 0, 204]
    assert read_one(save(tmp_path / "grey.png", black[:, :, 2:]), channels)[0, :, 0].tolist() == [255, 0, 204]


def test_decode_palette(tmp_path: Path) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 0])
    picture.putdata([0, 1, 2])
    picture.save(tmp_path / "plain.png")
    assert read_one(tmp_path / "plain.png")[0].tolist() == [[10, 20, 30], [200, 100, 50], [0, 0, 0]]
    picture.save(tmp_path / "index.png", transparency=2)
    assert read_one(tmp_path / "index.png")[0].tolist() == [[10, 20, 30], [200, 100, 50], [255, 255, 255]]
    picture.save(tmp_path / "bytes.png", transparency=bytes([255, 0, 51]))
    assert read_one(tmp_path / "bytes.png")[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    picture.save(tmp_path / "x.gif", transparency=0)
    assert read_one(tmp_path / "x.gif")[0, 0].tolist() == [255, 255, 255]


def test_decode_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "x.png")
    assert read_one(tmp_path / "x.png", 1).ravel().tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_decode_cmyk(tmp_path: Path, ending: str, channels: int) -> None:
    Image.new("CMYK", (8, 8), (255, 255, 0, 0)).save(tmp_path / f"x.{ending}")  # cyan and magenta: blue
    expected = [0, 0, 255] if channels == 3 else [29]
    assert np.abs(read_one(tmp_path / f"x.{ending}", channels)[4, 4].astype(int) - expected).max() <= 3


UPRIGHT = np.zeros((8, 16), np.uint8)
UPRIGHT[:, 8:] = 80
UPRIGHT[4:, :8] = 160
UPRIGHT[4:, 8:] = 240  # quarters 0 80 / 160 240
STORED = {  # how a camera that writes this orientation stores the picture above
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT),  # to be turned by 90 degrees clockwise
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_decode_turns_pictures_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation])
    options = {"quality": 100} if ending == "jpg" else {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"x.{ending}", stored, exif=exif, **options)
    image = read_one(path, 1)[:, :, 0]
    assert image.shape == UPRIGHT.shape
    assert np.abs(image.astype(int) - UPRIGHT).max() <= 2


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0Y\0\0\0\x08", b"ExifL\0MM"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_decode_ignores_damaged_exif(tmp_path: Path, ending: str, exif: bytes) -> None:
    path = save(tmp_path / f"x.{ending}", np.full((6, 9, 3), 128, np.uint8), exif=exif)
    assert read_one(path, min_size=(1, 1)).shape[0] in (6, 3)


def smooth(height: int, width: int) -> np.ndarray:
    """A colourful picture without fine detail."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(y / 37) * np.cos(x / 53), np.sin((x + y) / 71), np.cos((x - 2 * y) / 97)]
    return np.stack([127 + 100 * wave for wave in waves], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("min_size", "scale"),
    [((32, 32), 8), ((64, 64), 4), ((64, 65), 4), ((64, 101), 2), ((101, 40), 2), ((250, 10), 1)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_decode_jpeg_at_a_smaller_scale(tmp_path: Path, min_size: tuple[int, int], scale: int, channels: int) -> None:
    path = save(tmp_path / "x.jpg", smooth(512, 640), quality=95)
    whole, small = read_one(path, channels), read_one(path, channels, min_size=list(min_size))
    assert small.shape == (512 // scale, 640 // scale, channels)
    assert small.shape[0] >= 2 * min_size[0] or scale == 1
    assert small.shape[1] >= 2 * min_size[1] or scale == 1
    averaged = whole.reshape(512 // scale, scale, 640 // scale, scale, channels).mean((1, 3))
    assert np.abs(small - averaged).mean() < 1.5


@pytest.mark.parametrize("orientation", [1, 6])
def test_decode_at_a_smaller_scale_means_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    upright = smooth(800, 200)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if orientation == 1 else np.ascontiguousarray(np.rot90(upright))
    path = save(tmp_path / "x.jpg", stored, exif=exif, quality=95)
    image = read_one(path, min_size=(200, 50))
    assert image.shape == (400, 100, 3)
    assert np.abs(image - upright.reshape(400, 2, 100, 2, 3).mean((1, 3))).mean() < 1.5


def test_decode_at_a_smaller_scale_leaves_other_formats_and_small_pictures_whole(tmp_path: Path) -> None:
    pixels = noise(64, 48, 3)
    np.testing.assert_array_equal(read_one(save(tmp_path / "x.png", pixels), min_size=(4, 4)), pixels)
    assert read_one(save(tmp_path / "x.jpg", pixels), min_size=(100, 100)).shape == (64, 48, 3)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif", "tif", "ppm"])
def test_decode_refuses_a_file_cut_short(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path / f"x.{ending}", noise(64, 64, 3))
    raw = path.read_bytes()
    for length in (len(raw) // 2, 20):
        path.write_bytes(raw[:length])
        with pytest.raises(BadImage, match=rf"x\.{ending} cannot be decoded: .*\w.*; replace or remove it"):
            decode(str(path), 3)


def test_decode_refuses_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_text("<html>not found</html>")
    with pytest.raises(BadImage, match=r"x\.jpg cannot be decoded: it is no picture that Pillow knows"):
        decode(str(tmp_path / "x.jpg"), 3)
    (tmp_path / "x.png").touch()
    with pytest.raises(BadImage, match=r"x\.png cannot be decoded: the file is empty"):
        decode(str(tmp_path / "x.png"), 3)
    with pytest.raises(BadImage, match=r"y\.png cannot be decoded: No such file or directory"):
        decode(str(tmp_path / "y.png"), 3)


def test_decode_by_content_not_by_ending(tmp_path: Path) -> None:
    save(tmp_path / "x.png", np.full((2, 3, 3), 9, np.uint8)).rename(tmp_path / "x.jpg")
    assert set(decode(str(tmp_path / "x.jpg"), 3).ravel()) == {9}


# ---- texture_crops ----


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(5):
        for label, name in enumerate(("loose", "packed")):
            save(tmp_path / name / f"{number}.png", noise(60, 80, seed=10 * number + label))
    return tmp_path


def test_texture_crops(photos: Path) -> None:
    source = texture_crops.source(str(photos), crop_size=20, crops_per_photo=6)
    assert source.classes == ["loose", "packed"]
    assert source.channels == 1
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 8, "val": 2}
    for item in source.splits["train"]:
        photo = np.asarray(Image.open(photos / item.name))
        windows = np.lib.stride_tricks.sliding_window_view(photo, (20, 20))
        crops = texture_crops.read(item)
        assert [target for _, target in crops] == [source.classes.index(item.name.split("/")[0])] * 6
        places = set()
        for crop, _ in crops:
            assert crop.shape == (20, 20, 1)
            assert crop.dtype == np.uint8
            ((top, left),) = np.argwhere((windows == crop[:, :, 0]).all((2, 3)))  # found once, as the photo is noise
            places.add((top, left))
        assert len(places) > 3


def test_texture_crops_never_cross_splits(photos: Path) -> None:
    source = texture_crops.source(str(photos), crop_size=20, crops_per_photo=6, val_share=0.4, test_share=0.2)
    assert {split: len(items) for split, items in source.splits.items()} == {"train": 4, "val": 4, "test": 2}
    of_split = {split: {item.path for item in items} for split, items in source.splits.items()}
    assert len(set.union(*of_split.values())) == 10


def crops_of(photos: Path, name: str, **args: Any) -> list[bytes]:
    source = texture_crops.source(str(photos), crop_size=20, **args)
    (item,) = [item for items in source.splits.values() for item in items if item.name == name]
    return [crop.tobytes() for crop, _ in texture_crops.read(item)]


def test_texture_crops_depend_on_seed_name_and_number_alone(photos: Path) -> None:
    before = crops_of(photos, "loose/3.png", crops_per_photo=6)
    assert crops_of(photos, "loose/3.png", crops_per_photo=6) == before
    assert crops_of(photos, "loose/3.png", crops_per_photo=6, split_seed=1) != before
    save(photos / "loose" / "0a.png", noise(60, 80))  # another photo, listed before
    assert crops_of(photos, "loose/3.png", crops_per_photo=8)[:6] == before
    (photos / "loose" / "4.png").write_bytes((photos / "loose" / "3.png").read_bytes())
    assert crops_of(photos, "loose/4.png", crops_per_photo=6) != before


def test_texture_crops_reach_every_corner_evenly() -> None:
    draws = Counter(texture_crops._draw(5, f"0/photo/{number}/top") for number in range(5000))
    assert sorted(draws) == [0, 1, 2, 3, 4]
    assert all(abs(count - 1000) < 150 for count in draws.values())  # 5 standard deviations: 141


def test_texture_crops_of_the_whole_photo(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", noise(20, 20))
    item = Item(path=str(path), name="x.png", targets=[0], args={"crop_size": 20, "split_seed": 0})
    np.testing.assert_array_equal(texture_crops.read(item)[0][0][:, :, 0], noise(20, 20))
    with pytest.raises(BadImage, match=r"x\.png has 20x20 pixels, .*crop_size=21; use crop_size=20"):
        texture_crops.read(replace(item, args={"crop_size": 21, "split_seed": 0}))


def test_texture_crops_of_colour_photographs_are_grey(tmp_path: Path) -> None:
    path = save(tmp_path / "x.jpg", np.full((30, 40, 3), (200, 100, 50), np.uint8))
    item = Item(path=str(path), name="x.jpg", targets=[0], args={"crop_size": 20, "split_seed": 0})
    assert abs(int(texture_crops.read(item)[0][0].mean()) - 124) <= 2


def test_texture_crops_with_split_folders(tmp_path: Path) -> None:
    folder_of(tmp_path, train__a=5, train__b=5, val__a=1, test__b=1)
    source = texture_crops.source(str(tmp_path), crops_per_photo=3)
    assert {split: len(samples(source, split)) for split in source.splits} == {
        "train": 30,
        "val": 3,
        "test": 3,
    }


@pytest.mark.parametrize("args", [{"crop_size": 0}, {"crops_per_photo": 0}])
def test_texture_crops_arguments_that_are_not_allowed_are_refused(photos: Path, args: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must both be 1 or more"):
        texture_crops.source(str(photos), **args)
