"""Streamed pictures teach what prepared ones do: the same rows, numbers, weights and losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.ranks import watched_work
from helpers.small import job, small_data, small_recipe
from PIL import Image

from trainers.box_table import CLASS, PAD
from trainers.data import prepare as preparing
from trainers.data import sampler, stream
from trainers.data.batches import Cached
from trainers.data.contract import list_files
from trainers.data.decoded import Decoded
from trainers.data.meta import keep_numbers
from trainers.data.prepare import measure, prepare
from trainers.data.source import scan_files
from trainers.instances import parts
from trainers.messages import Meta
from trainers.recipe import Recipe
from trainers.storage.store import Store

OF_SHARDS = ("shards", "files")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks run here, one after another."""

    def tasks(rows: Sequence[Any], function: Callable[[Any], Any]) -> Iterator[Any]:
        return map(function, rows)

    def tasks_of_several(rows: Sequence[Any], function: Callable[[Any], Sequence[Any]]) -> Iterator[Any]:
        return (result for row in rows for result in function(row))

    monkeypatch.setattr(stream, "ray_map_all", tasks_of_several)
    monkeypatch.setattr(preparing, "ray_map", tasks)


def photos(folder: Path) -> Path:
    """Two classes of other brightness, of sizes that nothing divides; one picture of each split is cut short."""
    rng = np.random.default_rng(3)
    for split, count in (("train", 9), ("val", 4)):
        for number, label in enumerate(("calm", "wild")):
            (folder / split / label).mkdir(parents=True)
            for index in range(count + number):
                pixels = rng.integers(0, 90 + 80 * number, (21 + index, 34, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{index}.png")
        broken = folder / split / "wild" / "1.png"
        broken.write_bytes(broken.read_bytes()[:200])
    return folder


def in_both_modes(recipe: Recipe, raw: str | None, folder: Path) -> tuple[Cached, stream.Streamed]:
    source = scan_files(recipe, raw)
    cached = Cached(prepare(recipe, source, folder / "prepared"))
    return cached, stream.Streamed(recipe, source, measure(recipe, source, folder / "measured"))


def without_shards(meta: Meta) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in OF_SHARDS}


@pytest.mark.parametrize("name", ["resnet.r18", "textures.cnn", "unet.camvid", "unet.drone_binary", "mnist.cnn"])
@pytest.mark.parametrize("rows_of_a_shard", [5, 10**6])
def test_what_is_measured_is_what_would_be_prepared(
    name: str, rows_of_a_shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, raw = small_recipe(name), small_data(name, tmp_path / "raw")
    height, width = recipe.storage_size
    monkeypatch.setattr(preparing, "SHARD_BYTES", rows_of_a_shard * height * width * 3)
    cached, streamed = in_both_modes(recipe, raw, tmp_path)
    assert streamed.meta == without_shards(cached.meta)
    for split, rows in cached.meta["rows"].items():
        passes = [sampler.one_pass(sampler.permutation(0, 0, rows)[:7])]
        [one], [other] = cached.batches(split, passes), streamed.batches(split, passes)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)


@pytest.mark.parametrize(("objects", "rows_of_a_shard"), [("boxes", 5), ("boxes", 10**6), ("masks", 5)])
def test_objects_are_the_same_streamed_and_prepared(
    objects: str, rows_of_a_shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = {"objects": objects, "train": 14, "val": 6, "test": 0, "height": 48, "width": 64}
    recipe = Recipe(
        dataset="shapes",
        dataset_args=args,
        image_size=(32, 40),
        resize="pad",
        model="unet",
        epochs=1,
        lr=1,
        batch_size=4,
    )
    monkeypatch.setattr(preparing, "SHARD_BYTES", rows_of_a_shard * 32 * 40 * 3)
    source = list_files(recipe.dataset, None, args)
    cached = Cached(prepare(recipe, source, tmp_path / "prepared"))
    streamed = stream.Streamed(recipe, source, measure(recipe, source, tmp_path / "measured"))
    decoded = Decoded(recipe, source, "train", cached.meta)
    assert streamed.meta == without_shards(cached.meta)
    assert 2 <= streamed.meta["most_objects"] <= 6
    empty = 0
    for split, rows in cached.meta["rows"].items():
        for ids in (sampler.permutation(0, 0, rows)[:7], np.arange(rows), np.array([3])):
            passes = [sampler.one_pass(ids)]
            [one], [other] = cached.batches(split, passes), streamed.batches(split, passes)
            np.testing.assert_array_equal(one.images, other.images)
            assert type(one.targets) is type(other.targets)
            found = [parts(one.targets), parts(other.targets)]
            if split == "train":
                [third] = decoded.batches(split, passes)
                found.append(parts(third.targets))
            for first, *others in zip(*found, strict=True):
                assert all(first.dtype == each.dtype for each in others)
                assert all(np.array_equal(first, each) for each in others)
            table = found[0][0]
            assert table.dtype == np.float32
            empty += (table[..., CLASS] == PAD).all(1).sum()
    assert empty > 0


def test_pictures_that_cannot_be_used_are_left_out_of_both(tmp_path: Path) -> None:
    raw = str(photos(tmp_path / "raw"))
    recipe = small_recipe("resnet.r18", image_size=(16, 16), stored_size=(16, 16), on_bad_image="skip")
    cached, streamed = in_both_modes(recipe, raw, tmp_path)
    assert streamed.meta == without_shards(cached.meta)
    assert streamed.meta["rows"] == {"train": 18, "val": 8}
    for split, rows in streamed.meta["rows"].items():
        passes = [sampler.one_pass(np.arange(rows))]
        [one], [other] = cached.batches(split, passes), streamed.batches(split, passes)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)
    strict = recipe.replace(on_bad_image="fail")
    for how in (prepare, measure):
        with pytest.raises(ValueError, match="2 pictures cannot be used"):
            how(strict, scan_files(strict, raw), tmp_path / "strict")


def test_a_set_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = str(small_data("resnet.r18", tmp_path / "raw"))
    recipe = small_recipe("resnet.r18")
    source = scan_files(recipe, raw)
    first = measure(recipe, source, tmp_path / "cache", published=Store(tmp_path / "store"))
    prepared = Cached(prepare(recipe, source, tmp_path / "other")).meta
    monkeypatch.setattr(preparing, "_decode_chunk", None)  # nothing is decoded from here on
    assert measure(recipe, source, tmp_path / "new", published=Store(tmp_path / "store")) == first
    assert measure(recipe, source, tmp_path / "other")["mean"] == prepared["mean"]  # what is prepared is known, too


def test_pictures_are_decoded_in_tasks_that_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass has one of its own, as it is waited for; and all are what is prepared, in their order."""
    recipe = small_recipe("unet.camvid")
    cached, streamed = in_both_modes(recipe, str(small_data("unet.camvid", tmp_path / "raw")), tmp_path)
    monkeypatch.setattr(stream, "TASK_PICTURES", 10)
    here, of_tasks = stream.ray_map_all, []

    def noting(rows: Sequence[Any], function: Callable[[Any], Sequence[Any]]) -> Iterator[Any]:
        of_tasks.extend(len(json.loads(row["passes"])) for row in rows)
        return here(rows, function)

    monkeypatch.setattr(stream, "ray_map_all", noting)
    rows = streamed.meta["rows"]["train"]
    passes = [sampler.one_pass(sampler.permutation(0, number, rows)[:3]) for number in range(17)]
    compared = 0
    for one, other in zip(cached.batches("train", passes), streamed.batches("train", iter(passes)), strict=True):
        assert other.of is passes[compared]
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)
        compared += 1
    assert compared == len(passes)
    assert of_tasks == [1, 2, 4, 4, 4, 2]


@pytest.mark.parametrize("name", ["resnet.r18", "unet.camvid"])
def test_a_picture_that_has_vanished_since_ends_the_run_with_its_name(name: str, tmp_path: Path) -> None:
    recipe = small_recipe(name)
    _, streamed = in_both_modes(recipe, str(small_data(name, tmp_path / "raw")), tmp_path)
    gone = streamed.source.splits["train"][2]
    assert gone.path is not None
    Path(gone.path).unlink()
    passes = [sampler.one_pass(np.array(ids)) for ids in ([0, 1], [1, 3], [3, 2])]  # the last two in one task
    batches = streamed.batches("train", passes)
    assert [next(batches).of, next(batches).of] == passes[:2]
    with pytest.raises(ValueError, match=f"{Path(gone.path).name}.*when the pictures were measured: was it changed"):
        next(batches)


def test_a_set_that_is_another_on_this_host_is_refused(tmp_path: Path) -> None:
    raw = str(small_data("resnet.r18", tmp_path / "raw"))
    recipe = small_recipe("resnet.r18")
    source = scan_files(recipe, raw)
    meta = measure(recipe, source, tmp_path / "cache")
    fewer = stream.Streamed(recipe, source, {**meta, "rows": {**meta["rows"], "train": meta["rows"]["train"] + 1}})
    with pytest.raises(ValueError, match="when they were measured: give all hosts the same --data"):
        list(fewer.batches("train", [sampler.one_pass(np.arange(2))]))


@pytest.mark.parametrize("name", ["resnet.r18", "unet.camvid"])
def test_a_run_that_streamed_is_continued_from_prepared_pictures_as_if_nothing_had_happened(
    name: str, tmp_path: Path
) -> None:
    """In float64, to the last bit: with class weights, augmentation, and a stop within the second epoch."""
    recipe = small_recipe(name, epochs=2, precision="fp64", class_weights="median")
    if name == "resnet.r18":
        recipe = recipe.replace(model="linear_cnn")
    raw = small_data(name, tmp_path / "raw")
    source = scan_files(recipe, raw)
    meta = measure(recipe, source, tmp_path / "measured")
    whole = watched_work(dict(job(recipe, raw, tmp_path, "whole")))
    steps = len(whole[-1]["steps"])
    streaming = dict(job(recipe, raw, tmp_path, "moved"))
    streaming["data"] = {"mode": "stream", "folder": None, "published": None, "node": None, "meta": meta}
    first = watched_work({**streaming, "stop_after": steps // 2 + 1})
    rest = watched_work(dict(job(recipe, raw, tmp_path, "moved")))
    assert first[-1]["status"] == "interrupted"
    assert first[-1]["steps"] + rest[-1]["steps"] == whole[-1]["steps"]
    assert rest[-1]["final"]["loss"] == whole[-1]["final"]["loss"]


def test_a_run_keeps_the_numbers_that_it_began_with(tmp_path: Path) -> None:
    """A run of an older version that streamed has the mean of a sample in its run.json."""
    recipe = small_recipe("resnet.r18", model="linear_cnn", epochs=1, precision="fp32")
    raw = small_data("resnet.r18", tmp_path / "raw")
    plain = dict(job(recipe, raw, tmp_path, "plain"))
    meta = plain["data"]["meta"]
    begun: Any = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "class_counts": {"train": [1, 2, 3]}}
    kept = keep_numbers(meta, {**begun, "classes": meta["classes"]})
    assert kept == {**meta, **begun}
    assert keep_numbers(meta, {**begun, "classes": ["another"]}) == meta
    moved = {**job(recipe, raw, tmp_path, "moved"), "data": {**plain["data"], "meta": kept}}
    # workers normalise by what the driver says, not by what lies beside the shards
    assert watched_work(plain)[-1]["steps"] != watched_work(moved)[-1]["steps"]
