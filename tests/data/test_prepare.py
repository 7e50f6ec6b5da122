"""Preparing and reading: every picture once, decoded once, published whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.data import prepare as preparing
from trainers.data import sampler, shard_transfer, targets
from trainers.data.batches import Batch, Cached, ahead
from trainers.data.decoder import Decoder
from trainers.data.meta import describe
from trainers.data.prepare import prepare
from trainers.data.resize import shrink
from trainers.data.source import cache_key, choose_mode, scan_files, size_of
from trainers.datasets import Source
from trainers.recipe import Recipe, resolve


def folder_of_pictures(folder: Path, count: int = 7) -> Path:
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def recipe(**changes: Any) -> Recipe:
    small = {"image_size": (16, 16), "stored_size": (16, 16), "dataset_args": {"val_share": 0.3, "test_share": 0.0}}
    return resolve("resnet.r18", model="linear_cnn", augment={"resized_crop": [0.9, 1.0]}, **{**small, **changes})


def read_all(cached: Cached, split: str) -> Batch:
    rows = cached.meta["rows"][split]
    return next(cached.batches(split, [sampler.one_pass(np.arange(rows))]))


def test_what_is_read_is_what_was_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = folder_of_pictures(tmp_path / "raw")
    source = scan_files(recipe(), str(raw))
    decoder = Decoder(recipe(), targets.kind(source.target), source.channels, len(source.classes))
    expected = [sample for item in source.splits["train"] for sample in decoder.read(item)]
    one = Cached(prepare(recipe(), source, tmp_path / "one"))
    monkeypatch.setattr(preparing, "SHARD_BYTES", 3 * 16 * 16 * 3)
    monkeypatch.setattr(preparing, "SUMMED_AT_ONCE", 100)
    many = Cached(prepare(recipe(), source, tmp_path / "many"))
    assert len(one.meta["shards"]["train"]) == 1
    assert len(many.meta["shards"]["train"]) == 4
    for cached in (one, many):
        batch = read_all(cached, "train")
        np.testing.assert_array_equal(batch.images, np.stack([image for image, _ in expected]))
        assert batch.targets.tolist() == [target for _, target in expected]
        mean = batch.images.reshape(-1, 3).mean(0) / 255
        np.testing.assert_allclose(cached.meta["mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(cached.meta["std"], batch.images.reshape(-1, 3).std(0) / 255, rtol=1e-9)
    ids = np.array([9, 0, 4, 4])
    picked = next(many.batches("train", [sampler.one_pass(ids)]))
    np.testing.assert_array_equal(picked.images, read_all(one, "train").images[ids])
    assert one.meta["fingerprint"] == many.meta["fingerprint"]


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (1, 1, 1, 1), (70_000, 1, 1, 1), (9, 32, 31, 1), (2, 3, 1, 4)])
@pytest.mark.parametrize("at_once", [1, 1000, 2**18])
@pytest.mark.parametrize("white", [False, True])
def test_sums_over_pictures_are_those_of_whole_numbers(
    shape: tuple[int, ...], at_once: int, white: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, as Python's integers of any length have them; white squares are the largest."""
    monkeypatch.setattr(preparing, "SUMMED_AT_ONCE", at_once)
    images = np.random.default_rng(3).integers(255 * white, 256, shape, np.uint8)
    sums, squares = preparing._sums(images)
    for channel in range(shape[3]):
        values = [int(value) for value in images[..., channel].reshape(-1)]
        assert sums[channel] == float(sum(values))
        assert squares[channel] == float(sum(value * value for value in values))
    assert all(isinstance(value, float) for value in (*sums, *squares))  # as meta.json has had them


def test_sums_take_little_memory() -> None:
    """As floats the pictures would take eight times their own."""
    images = np.full((50, 224, 224, 3), 200, np.uint8)
    tracemalloc.start()
    try:
        sums, squares = preparing._sums(images)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (sums, squares) == ([50 * 224 * 224 * 200.0] * 3, [50 * 224 * 224 * 40_000.0] * 3)
    assert peak < images.nbytes / 4


def test_a_channel_that_is_the_same_everywhere_stays_small_where_it_is_not(tmp_path: Path) -> None:
    """As two channels of a picture of one stain: 0 in training, and some noise of a lossy file in validation."""
    raw = folder_of_pictures(tmp_path / "raw")
    for file in raw.rglob("*.png"):
        pixels = np.asarray(Image.open(file)) * np.array([1, 0, 0], np.uint8) + np.array([0, 0, 127], np.uint8)
        Image.fromarray(pixels).save(file)
    cached = Cached(prepare(recipe(), scan_files(recipe(), str(raw)), tmp_path / "cache"))
    mean, std = np.array(cached.meta["mean"]), np.array(cached.meta["std"])
    np.testing.assert_allclose(mean[1:], [0, 127 / 255], atol=1e-12)
    one_level_more = (np.float32(1) / 255 - mean[1:] + mean[1:]) / std[1:]
    assert (one_level_more < 4).all()
    assert std[0] == pytest.approx(read_all(cached, "train").images[..., 0].std() / 255)


def test_pictures_are_decoded_once_and_again_when_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = folder_of_pictures(tmp_path / "raw")
    first = prepare(recipe(), scan_files(recipe(), str(raw)), tmp_path / "cache")
    monkeypatch.setattr(preparing, "_decode_chunk", None)  # nothing is decoded from here on
    assert prepare(recipe(lr=9.0), scan_files(recipe(), str(raw)), tmp_path / "cache") == first
    keys = {cache_key(recipe(), scan_files(recipe(), str(raw)))}
    for changes in ({"stored_size": (20, 20)}, {"resize": "stretch"}, {"dataset_args": {"split_seed": 1}}):
        keys.add(cache_key(recipe(**changes), scan_files(recipe(**changes), str(raw))))
    os.utime(raw / "cat" / "0.png", ns=(1, 1))
    keys.add(cache_key(recipe(), scan_files(recipe(), str(raw))))
    assert len(keys) == 5


def _key_of(wanted: Recipe, source: Source, monkeypatch: pytest.MonkeyPatch, answer: float, at_once: int) -> str:
    """The key where the system takes so many seconds to answer of a file, with the most files that were asked of at
    once; each is asked of once."""
    plain, lock = os.stat, threading.Lock()
    asked: list[str] = []
    now = most = 0

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        nonlocal now, most
        if not str(path).endswith(".png"):
            return plain(path, *args, **kwargs)
        with lock:
            asked.append(path)
            now += 1
            most = max(most, now)
        if answer:
            time.sleep(answer)
        with lock:
            now -= 1
        return plain(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        patch.setattr("trainers.data.source.ASKED_AT_ONCE", at_once)
        patch.setattr("trainers.data.source.OF_A_THREAD", 4)
        patch.setattr("trainers.data.source.ASKED_FIRST", 4)
        patch.setattr("trainers.data.source.SLOW_SECONDS", 0.02)
        key = cache_key(wanted, source)
    files = [item.path for items in source.splits.values() for item in items]
    assert sorted(asked) == sorted(files)
    assert most == 1 if not answer else 1 < most <= at_once
    return key


def test_files_are_asked_for_side_by_side_where_each_answer_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw", count=40)))
    os.unlink(tmp_path / "raw" / "dog" / "39.png")
    (tmp_path / "raw" / "dog" / "39.png").symlink_to(tmp_path / "nowhere.png")
    fast = _key_of(recipe(), source, monkeypatch, 0, 8)
    assert _key_of(recipe(), source, monkeypatch, 0.03, 8) == fast == cache_key(recipe(), source)
    assert size_of(item for items in source.splits.values() for item in items) == sum(
        file.stat().st_size for file in (tmp_path / "raw").rglob("*.png") if file.exists()
    )


def test_a_prepare_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw")))

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparing, "_publish", no_space)
    with pytest.raises(OSError, match="No space"):
        prepare(recipe(), source, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def _prepare(raw: str, cache: str, results: Any) -> None:
    results.put(str(prepare(recipe(), scan_files(recipe(), raw), Path(cache))))


def test_two_at_once_do_not_collide_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    raw, cache = str(folder_of_pictures(tmp_path / "raw")), tmp_path / "cache"
    left = cache / cache_key(recipe(), scan_files(recipe(), raw))
    left.mkdir(parents=True)
    (left / "train-deadbeef-00000.arrow").write_bytes(b"half")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    both = [context.Process(target=_prepare, args=(raw, str(cache), results)) for _ in range(2)]
    for process in both:
        process.start()
    folders = {results.get(timeout=900) for _ in both}
    for process in both:
        process.join()
    assert folders == {str(left)}
    meta = json.loads((left / "meta.json").read_text())
    shards = {name for names in meta["shards"].values() for name in names}
    assert {path.name for path in left.iterdir()} == {"meta.json", *shards}
    assert read_all(Cached(left), "train").images.shape == (10, 16, 16, 3)


@pytest.mark.parametrize("overtaken", ["while it writes", "once it has written"])
def test_the_slower_of_two_uses_what_the_faster_has_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overtaken: str
) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw")))
    step = "_write_arrow" if overtaken == "while it writes" else "_publish"
    slow = getattr(preparing, step)

    def overtake(*arguments: Any) -> None:
        monkeypatch.setattr(preparing, step, slow)
        if overtaken == "while it writes":
            slow(*arguments)
        prepare(recipe(), source, tmp_path / "cache")  # which removes the shards that are not its own
        if overtaken == "once it has written":
            slow(*arguments)

    monkeypatch.setattr(preparing, step, overtake)
    folder = prepare(recipe(), source, tmp_path / "cache")
    meta = json.loads((folder / "meta.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        "meta.json",
        *(name for names in meta["shards"].values() for name in names),
    }
    assert read_all(Cached(folder), "train").images.shape == (10, 16, 16, 3)


def test_shards_of_hosts_that_do_not_see_the_folder_arrive_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw")))
    one = Cached(prepare(recipe(), source, tmp_path / "one"))
    monkeypatch.setattr(preparing, "SHARD_BYTES", 3 * 16 * 16 * 3)
    monkeypatch.setattr(preparing, "INLINE_BYTES", -1)
    seen: list[bool] = []

    def tasks(rows: list[dict[str, Any]], function: Any) -> Iterator[dict[str, Any]]:
        """Every second one on a host that sees the driver's folder."""
        for number, row in enumerate(rows):
            away = function({**row, **({"mark": "/nowhere", "file": f"/nowhere/{row['file']}"} if number % 2 else {})})
            seen.append(away["shard"] == b"")
            yield away

    monkeypatch.setattr(preparing, "ray_map", tasks)
    many = Cached(prepare(recipe(), source, tmp_path / "many", ray=True))
    assert set(seen) == {True, False}
    assert many.meta["fingerprint"] == one.meta["fingerprint"]
    np.testing.assert_array_equal(read_all(many, "train").images, read_all(one, "train").images)
    assert not [path for path in many.folder.iterdir() if path.name.startswith(".")]


def test_a_host_that_does_not_see_the_shards_copies_them_from_the_drivers_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw")))
    folder = prepare(recipe(), source, tmp_path / "cache")
    hidden = folder.rename(tmp_path / "elsewhere")
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "own"))
    with pytest.raises(ValueError, match=f"{socket.gethostname()} does not see the prepared pictures in {folder}"):
        shard_transfer.local({"folder": str(folder)})
    read: list[str] = []

    def read_there(node: str, path: str) -> bytes:
        read.append(path)
        assert (node, str(Path(path).parent)) == ("driver", str(folder))
        return (hidden / Path(path).name).read_bytes()

    monkeypatch.setattr(shard_transfer, "_read_there", read_there)
    for _ in range(2):
        own = shard_transfer.local({"folder": str(folder), "node": "driver"})
    assert sorted(read) == sorted(str(folder / path.name) for path in hidden.iterdir())  # each once
    np.testing.assert_array_equal(read_all(Cached(own), "val").images, read_all(Cached(hidden), "val").images)
    next(hidden.glob("*.arrow")).write_bytes(b"damaged")
    monkeypatch.setenv("TRAINYARD_CACHE", str(tmp_path / "third"))
    with pytest.raises(shard_transfer.Damaged, match="is damaged where it is copied from"):
        shard_transfer.local({"folder": str(folder), "node": "driver"})
    assert not list((tmp_path / "third").rglob("meta.json"))  # half a copy does not count


def test_pictures_that_occur_twice_are_reported(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    pictures = {}
    for split, count in (("train", 4), ("val", 2)):
        folder_of_pictures(raw / split, count)
    rng = np.random.default_rng(5)
    for split in ("train", "val"):
        for path in sorted((raw / split).rglob("*.png")):
            pictures[path] = rng.integers(0, 255, (24, 30, 3), np.uint8)
            Image.fromarray(pictures[path]).save(path)
    for target, origin in (("val/cat/1.png", "train/cat/0.png"), ("train/dog/0.png", "train/cat/1.png")):
        (raw / target).write_bytes((raw / origin).read_bytes())
    cached = Cached(prepare(recipe(), scan_files(recipe(), str(raw)), tmp_path / "cache"))
    assert cached.meta["repeated"]["splits"]["count"] == 1
    assert cached.meta["repeated"]["classes"]["count"] == 1
    described = "\n".join(describe(cached.meta))
    assert "occur in two splits" in described
    assert "occur in two classes" in described
    assert "train: 8 pictures (cat 4, dog 4)" in described


def test_reading_ahead_changes_nothing_and_leaves_no_thread() -> None:
    made: list[int] = []

    def batches(count: int, error: bool = False) -> Iterator[Batch]:
        for number in range(count):
            made.append(number)
            ids = np.array([number])
            yield Batch(sampler.Pass(number, 0, ids, ids, 1.0, True), np.zeros((1, 1, 1, 1), np.uint8), ids)
        if error:
            raise ValueError("a bad picture")

    before = threading.active_count()
    assert [batch.of.step for batch in ahead(batches(7))] == list(range(7))
    reading = ahead(batches(7, error=True))
    assert next(reading).of.step == 0
    with pytest.raises(ValueError, match="a bad picture"):
        list(reading)
    made.clear()
    left_early = ahead(batches(1000))
    assert isinstance(left_early, Generator)
    assert next(left_early).of.step == 0
    left_early.close()
    assert len(made) < 10
    assert threading.active_count() == before


@pytest.mark.parametrize(("shape", "size"), [((40, 60), (20, 20)), ((60, 40), (16, 24)), ((10, 10), (20, 30))])
def test_pictures_are_stretched_cropped_or_padded_to_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ramp = (np.stack([rows / shape[0], columns / shape[1], 0 * rows], -1) * 255).astype(np.uint8)
    stretched = shrink(ramp, size, "stretch")
    expected = np.asarray(Image.fromarray(ramp).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(stretched, expected)
    cropped, padded = shrink(ramp, size, "crop"), shrink(ramp, size, "pad")
    assert cropped.shape == padded.shape == (*size, 3)
    # A crop keeps the middle; bars are black, and the picture between them is whole.
    np.testing.assert_allclose(cropped.mean((0, 1)), ramp.mean((0, 1)), atol=6)
    scale = min(size[0] / shape[0], size[1] / shape[1])
    inner = round(shape[0] * scale) * round(shape[1] * scale)
    np.testing.assert_allclose((padded.any(-1)).sum() / inner, 1, atol=0.12)


@pytest.mark.parametrize(("side", "stored"), [(75, 146), (239, 146), (1000, 96), (3, 128)])
def test_a_square_is_cropped_by_nothing_however_its_scale_is_rounded(side: int, stored: int) -> None:
    ramp = np.tile(np.linspace(0, 255, side).astype(np.uint8)[:, None, None], (1, side, 3))
    square = (stored, stored)
    assert np.array_equal(shrink(ramp, square, "crop"), shrink(ramp, square, "stretch"))


def test_the_disk_decides_between_cache_and_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scan_files(recipe(), str(folder_of_pictures(tmp_path / "raw")))
    assert choose_mode("auto", recipe(), source, tmp_path / "cache", ray=True) == "cache"
    monkeypatch.setattr("trainers.data.source.bytes_needed", lambda *_: 2**60)
    assert choose_mode("auto", recipe(), source, tmp_path / "cache", ray=True) == "stream"
    with pytest.raises(ValueError, match=r"need 1073741824\.00 GiB"):
        choose_mode("auto", recipe(), source, tmp_path / "cache", ray=False)
