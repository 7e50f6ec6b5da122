"""What a process may use of its host."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainers import limits


@pytest.fixture(autouse=True)
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of the test's own, on a host of 8 cores of which the process may run on 6."""
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    return tmp_path


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


V1 = "4:cpu,cpuacct:/docker/ab\n1:name=systemd:/docker/ab\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),  # no control groups, as on macOS
        ({"own": "0::/\n", "groups/cpu.max": "max 100000\n"}, 6),
        ({"own": "0::/\n", "groups/cpu.max": "100000 100000\n"}, 1),
        ({"own": "0::/\n", "groups/cpu.max": "150000 100000\n"}, 1),
        ({"own": "0::/\n", "groups/cpu.max": "30000 100000\n"}, 1),
        ({"own": "0::/\n", "groups/cpu.max": "400000 100000\n"}, 4),
        ({"own": "0::/\n", "groups/cpu.max": "1600000 100000\n"}, 6),
        ({"own": "0::/pods/a/b\n", "groups/pods/a/cpu.max": "250000 100000", "groups/pods/a/b/cpu.max": "max 1000"}, 2),
        ({"own": "0::/pods/a\n", "groups/cpu.max": "300000 100000"}, 3),  # the container sees its own group as the root
        ({"own": V1, "groups/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "-1", "groups/cpu,cpuacct/x": ""}, 6),
        (
            {
                "own": V1,
                "groups/cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "200000",
                "groups/cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        ({"own": V1, "groups/cpu/cpu.cfs_quota_us": "50000", "groups/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"own": "0::/\n", "groups/cpu.max": "nonsense"}, 6),
        ({"own": "0::/\n", "groups/cpu.max": "100000 0"}, 6),
        ({"own": "0::/\n", "groups/cpu.max": "max"}, 6),
        ({"own": "0::/../../a:b\n", "groups/cpu.max": "200000 100000"}, 2),  # of a process that was moved here
        ({"own": "nonsense\n\n0::/\n", "groups/cpu.max": "200000 100000"}, 2),
        ({"own": "1:name=systemd:/a\n0::/a\n", "groups/unified/a/cpu.max": "200000 100000"}, 6),
    ],
)
def test_cpus_are_those_of_affinity_and_quota(groups: Path, files: Mapping[str, str], expected: int) -> None:
    write(groups, files)
    assert limits.cpus() == expected


def test_cpus_without_affinity_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert limits.cpus() == 8
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert limits.cpus() == 1


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("", None), ("3", 3), ("4,2", 4), ("0", None), ("-1", None), ("²", None)]
)
def test_threads_are_what_openmp_is_told(
    text: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert limits.threads() == expected


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"own": "0::/pods/a\n", "groups/pods/memory.max": "1073741824", "groups/pods/a/memory.max": "max"}, 2**30),
        ({"own": "9:memory:/docker/ab\n", "groups/memory/docker/ab/memory.limit_in_bytes": "536870912"}, 2**29),
    ],
)
def test_memory_is_that_of_the_control_groups(groups: Path, files: Mapping[str, str], limit: int) -> None:
    host = limits.memory()
    assert host == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    write(groups, files)
    assert limits.memory() == min(host, limit)


def test_a_group_whose_name_is_no_utf_8_has_a_quota_too(groups: Path) -> None:
    (groups / "own").write_bytes(b"0::/pod-\xff\n")
    write(groups, {"groups/pod-\udcff/cpu.max": "200000 100000"})
    assert limits.cpus() == 2


def test_load_tells_what_others_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 seconds in which 8 cores computed for 45 s, 15 s of them for this process."""
    now = {"clock": 100.0, "own": 7.0}
    clocks = SimpleNamespace(monotonic=lambda: now["clock"], process_time=lambda: now["own"])
    monkeypatch.setattr(limits, "CORES", tmp_path / "stat")
    monkeypatch.setattr(limits, "time", clocks)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "stat").write_text("cpu  1000 200 300 9000 50 10 20 30 0 0\ncpu0 1 1 1\n")
    load = limits.Load()
    now.update(clock=100.09)
    assert load.cores() is None
    now.update(clock=110.0, own=22.0)
    (tmp_path / "stat").write_text("cpu  4000 200 1300 9900 99 110 120 330 0 0\ncpu0 1 1 1\n")
    assert (load.seconds, load.cores()) == (10.0, (4.5, 1.5))
    assert [load.leaves(threads) for threads in (4, 5, 6, 64)] == [4, 5, 5.0, 5.0]


@pytest.mark.parametrize("text", ["", "nonsense\n", "cpu  1 2 3\n"])
def test_where_the_system_tells_no_load_nothing_is_concluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(limits, "CORES", tmp_path / "stat")
    (tmp_path / "stat").write_text(text)
    load = limits.Load()
    assert load.cores() is None
    assert load.leaves(64) == 64


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "2000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_wait_briefly(
    monkeypatch: pytest.MonkeyPatch, user: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.setenv(name, "")  # it is put back afterwards
        monkeypatch.delenv(name)
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    limits.wait_briefly()
    assert {name: os.environ[name] for name in names if name in os.environ} == expected


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP")
def test_a_command_tells_openmp_before_torch_is_imported() -> None:
    code = """
from trainers import cli
def command():
    import torch
    return 0
cli.exit_code(command)
"""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = {**others, "OMP_DISPLAY_ENV": "verbose"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{limits.SPINS}'" in found.stderr
