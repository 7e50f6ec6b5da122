"""A stall is reported: who waits for whom, and where that one stands."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import job, small_recipe

from trainers.data import batches
from trainers.data.batches import ahead
from trainers.messages import BeatEvent
from trainers.phase import phase, phases
from trainers.runtime import stall_detector
from trainers.runtime.coordinator import Coordinator
from trainers.runtime.stall_detector import Frame, Heartbeat, StallDetector, describe, judge, stands

ROOT = Path(__file__).parents[2]
SECONDS = 900


def report_of(stall_detector: StallDetector) -> str:
    event = stall_detector.check()
    return "" if event is None else f"{event['kind']}: {event['text']}"


def beat(rank: int, size: int = 3, **changes: Any) -> BeatEvent:
    ours = {"kind": "beat", "rank": rank, "size": size, "host": f"host{rank}", "idle": 0.0, "stalled": False}
    stand = {"at": "step 118 of epoch 3", "where": "the end of a step (distributed.py:79 add_up)", "waits": True}
    return {**ours, **stand, "first": False, "last": False, **changes}


READS = {"where": "reading data (batches.py:72 _gather)", "waits": False}
HOSTS = {0: "host0", 1: "host1", 2: "host2"}


def test_the_rank_that_does_not_wait_is_named_as_the_one_waited_for() -> None:
    beats = {0: beat(0), 1: beat(1, **READS), 2: beat(2)}
    assert describe(beats, {}, HOSTS) == (
        "ranks 0 and 2 wait in step 118 of epoch 3 for rank 1 on host1, which stands in reading data "
        "(batches.py:72 _gather)"
    )


def test_a_silent_rank_is_named_as_the_one_waited_for() -> None:
    beats = {0: beat(0), 2: beat(2)}
    text = "ranks 0 and 2 wait in step 118 of epoch 3 for rank 1 on host1, not heard of for 31 s"
    assert describe(beats, {1: 31.0}, HOSTS) == text
    never = describe({0: beat(0, 2)}, {1: 60.0}, {0: "host0"})
    assert never.startswith("rank 0 waits in ")
    assert never.endswith(" for rank 1, which has not come up, not heard of for 60 s")


def test_where_all_ranks_wait_the_network_is_suspected() -> None:
    text = describe({rank: beat(rank) for rank in range(3)}, {}, HOSTS)
    assert text.startswith("ranks 0, 1 and 2 wait in step 118 of epoch 3 for each other")
    assert text.endswith("is the network between host0; host1; host2 up?")


def test_where_no_rank_waits_each_is_named() -> None:
    assert describe({0: beat(0, 1, **READS)}, {}, HOSTS) == "rank 0 on host0 stands in " + READS["where"]
    text = describe({}, {0: 21.0, 1: 22.0}, HOSTS)
    assert text.startswith("rank 0 on host0, not heard of for 21 s; rank 1 on host1, not heard of for 22 s; Ray")


def test_many_ranks_make_a_short_line() -> None:
    beats = {rank: beat(rank, 64, waits=rank > 9) for rank in range(64)}
    text = describe(beats, {}, {rank: f"host{rank}" for rank in range(64)})
    assert text.startswith("54 ranks wait in step 118 of epoch 3 for rank 0 on host0, which")
    assert text.endswith("; and 6 more")


class Hours:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hours() -> Hours:
    return Hours()


def test_a_stall_is_reported_at_growing_intervals_and_so_is_its_end(hours: Hours) -> None:
    stall_detector, reports = StallDetector(20, hours), []
    for rank in range(3):
        stall_detector.hear(beat(rank, first=True))
    for _ in range(100):  # nothing moves; beats come every 5 s, reported as stalled after 20 s
        hours.now += 1
        idle = hours.now - 100
        if idle % 5 == 0:
            for rank in range(3):
                stall_detector.hear(beat(rank, idle=idle, stalled=idle >= 20, **(READS if rank == 1 else {})))
        reports += [(idle, text)] if (text := report_of(stall_detector)) else []
    assert [idle for idle, _ in reports] == [20, 40, 80]
    assert all("warning: no step for" in text and "for rank 1 on host1" in text for _, text in reports)
    for rank in range(3):
        stall_detector.hear(beat(rank))
    assert report_of(stall_detector) == "message: goes on after 100 s"
    assert report_of(stall_detector) == ""


def test_a_rank_that_falls_silent_is_reported_until_it_ends(hours: Hours) -> None:
    stall_detector = StallDetector(20, hours)
    for rank in range(2):
        stall_detector.hear(beat(rank, 2, first=True))
    stall_detector.hear(beat(0, 2, last=True))
    hours.now += 19
    assert report_of(stall_detector) == ""
    hours.now += 2
    assert "rank 1 on host1, not heard of for 21 s" in report_of(stall_detector)
    stall_detector.hear(beat(1, 2, last=True))
    assert report_of(stall_detector) == "message: goes on after 21 s"


def test_a_new_and_smaller_group_of_workers_leaves_nobody_behind(hours: Hours) -> None:
    stall_detector = StallDetector(20, hours)
    for rank in range(3):
        stall_detector.hear(beat(rank, first=True))
    hours.now += 60
    assert report_of(stall_detector)
    stall_detector.hear(beat(1, 2, first=True))
    stall_detector.hear(beat(0, 2, first=True))
    assert report_of(stall_detector) == "message: goes on after 60 s"
    hours.now += 19
    assert report_of(stall_detector) == ""
    hours.now += 2
    assert "rank 2" not in report_of(stall_detector)


def frames(*places: str) -> list[Frame]:
    """Of "file:line function", innermost first; files of ours by name alone."""
    ours, found = str(Path(stall_detector.__file__).parent), []
    for place in places:
        file, line, function = re.split("[: ]", place)
        found.append(Frame(file if file.startswith("/") else f"{ours}/{file}", int(line), function))
    return found


TORCH = str(Path(torch.__file__).parent)
OUTER = ("loop.py:420 _train_epoch", "loop.py:226 train", "worker.py:60 work", "ray_train.py:270 _train_worker")
TRAINING = phase("training", on="device")
PASSES = phase("the passes of a step", on="device")
END = phase("the end of a step", on="device")
EXCHANGE = phase("waiting for other ranks", on="ranks")
READING = phase("reading data")


@pytest.mark.parametrize(
    ("within", "stack", "where", "waits", "waits_with_device"),
    [
        (
            [TRAINING, END, EXCHANGE],
            [f"{TORCH}/distributed/distributed_c10d.py:3000 all_reduce", "distributed.py:79 all_reduce"],
            "the end of a step, waiting for other ranks (distributed.py:79 all_reduce)",
            True,
            True,
        ),
        (
            [EXCHANGE],
            ["distributed.py:79 all_reduce"],
            "waiting for other ranks (distributed.py:79 all_reduce)",
            True,
            True,
        ),
        (
            [TRAINING, PASSES],
            [f"{TORCH}/nn/modules/conv.py:548 forward", "/home/me/mine.py:12 forward", "step.py:459 accumulate"],
            "the passes of a step (mine.py:12 forward)",
            False,
            True,
        ),
        ([TRAINING], ["meter.py:73 _numbers"], "training (meter.py:73 _numbers)", False, True),
        ([TRAINING, READING], ["batches.py:412 _gather"], "reading data (batches.py:412 _gather)", False, False),
        (
            [TRAINING, phase("writing a checkpoint")],
            [f"{os.path.dirname(os.__file__)}/threading.py:355 wait", "checkpoint.py:116 wait"],
            "writing a checkpoint (checkpoint.py:116 wait)",
            False,
            False,
        ),
        ([], ["worker.py:60 work"], "worker.py:60 work", False, True),
    ],
)
def test_the_stack_shows_where_a_rank_stands_and_whether_it_waits(
    within: list[phase], stack: list[str], where: str, waits: bool, waits_with_device: bool
) -> None:
    calls = frames(*stack, *OUTER)
    assert judge(within, calls) == (where, waits)
    assert judge(within, calls, device_waits=True) == (where, waits_with_device)


def test_a_thread_that_has_ended_stands_nowhere() -> None:
    assert judge([TRAINING], []) == ("nowhere: its thread has ended", False)


def test_phases_are_those_of_a_thread_and_end_with_their_block() -> None:
    me, seen = threading.get_ident(), list[list[str]]()

    @PASSES
    def work() -> int:
        """Pass."""
        with END:
            observer = threading.Thread(target=lambda: seen.append([each.name for each in phases(me)]))
            observer.start()
            observer.join()
        raise OSError

    assert work.__doc__ == "Pass."
    with pytest.raises(OSError), TRAINING:  # noqa: PT011
        work()
    assert seen == [["training", "the passes of a step", "the end of a step"]]
    assert phases(me) == []


def test_a_rank_that_reads_ahead_stands_where_its_reader_does() -> None:
    asleep, seen = threading.Event(), list[tuple[str, bool]]()

    def stuck() -> Iterator[Any]:
        asleep.wait(SECONDS)
        yield None

    me, limit = threading.get_ident(), time.monotonic() + SECONDS

    def observe() -> None:
        while "stuck" not in (found := stands(me, device_waits=True))[0] and time.monotonic() < limit:
            time.sleep(0.01)
        seen.append(found)
        asleep.set()

    observer = threading.Thread(target=observe)
    observer.start()
    with TRAINING:
        list(ahead(stuck()))
    observer.join()
    where, waits = seen[0]
    assert re.fullmatch(r"reading data \(test_stall_detector.py:\d+ stuck\)", where)
    assert not waits


def test_a_heartbeat_leaves_no_thread() -> None:
    before, sent = threading.active_count(), list[BeatEvent]()
    with Heartbeat(0, 1, "host", sent.append):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert sent[-1]["last"]


def _slow_rank(rank: int, size: int, work: dict[str, Any], meeting: str, beats: Any) -> None:
    """A rank; the data of rank 1 is held back once, until a file releases it."""
    import torch.distributed as dist

    from trainers.runtime import worker

    plain = batches.Cached.batches

    def slow_disk(*args: Any) -> Iterator[Any]:
        for number, batch in enumerate(plain(*args)):
            if rank == 1 and number == 20:
                limit = time.monotonic() + SECONDS
                while not os.path.exists(f"{meeting}-reported") and time.monotonic() < limit:
                    time.sleep(0.1)
            yield batch

    batches.Cached.batches = slow_disk  # type: ignore[method-assign]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    with Heartbeat(rank, size, f"host{rank}", beats.put, stall_seconds=1.0) as heartbeat:
        end = worker.work(work, rank, size, 1001, lambda event: None, lambda: False, heartbeat=heartbeat)
    dist.destroy_process_group()
    beats.put({"kind": "done", "status": end["status"]})


@pytest.mark.slow
def test_a_rank_with_a_slow_disk_is_named(tmp_path: Path) -> None:
    size, stall_detector, ends = 2, StallDetector(1.0), list[str]()
    reports: list[str] = []
    named = r"warning: no step for \d+ s: rank 0 waits in step \d+ of epoch 1 for rank 1 on host1, "
    named += r"which stands in reading data \(test_stall_detector.py:\d+ slow_disk\)"
    recipe = small_recipe("digits.cnn", batch_size=64, micro_batch_size=16, precision="fp32", epochs=1)
    work = job(recipe, None, tmp_path, "run")
    context = multiprocessing.get_context("spawn")
    beats: Any = context.Queue()
    processes = [
        context.Process(target=_slow_rank, args=(rank, size, work, str(tmp_path / "meeting"), beats), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    limit = time.monotonic() + SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < limit:
        time.sleep(0.1)
        while not beats.empty():
            event = beats.get()
            ends += [event["status"]] if event["kind"] == "done" else []
            if event["kind"] == "beat":
                stall_detector.hear(event)
        reports += [text] if (text := report_of(stall_detector)) else []
        if re.fullmatch(named, text):
            (tmp_path / "meeting-reported").touch()
    assert ends == ["finished"] * size
    assert any(re.fullmatch(named, text) for text in reports), reports
    assert re.fullmatch(r"message: goes on after \d+ s", reports[-1]), reports


def test_workers_that_get_on_are_waited_for_until_they_have_saved() -> None:
    """Before they are ended to start more of them; a store that is away may take its time."""
    coordinator = Coordinator(max_failures=3)
    assert not coordinator.is_saving()
    coordinator.ask_to_save()
    for idle, waited_for in ((1.0, True), (60.0, False), (0.0, True)):
        coordinator.put([{"kind": "beat", "rank": 1, "idle": 0.0}, {"kind": "beat", "rank": 0, "idle": idle}])
        assert coordinator.is_saving() == waited_for
    coordinator.put([{"kind": "saved", "step": 7}])
    assert not coordinator.is_saving()
