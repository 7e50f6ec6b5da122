"""`python -m cluster doctor`: each fault, injected, is found and told with its remedy; a healthy cluster has none."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from helpers.hosts import Hosts, why_not

from cluster import doctor, probe
from cluster.__main__ import main
from cluster.findings import examine
from trainers.recipe import Scale
from trainers.runs import provenance
from trainers.runtime import preflight
from trainers.runtime.preflight import Facts, Finding
from trainers.storage.store import Store

GIB = 2**30
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0+cpu", "torchvision": "0.29.2", "pyarrow": "21.0.0"}
VERSIONS |= {"numpy": "2.1.0", "trainyard": "code 01234567"}
SET = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}
SET |= {"RAY_health_check_failure_threshold": "3"}


def host(name: str) -> Facts:
    """What the probes tell of a host where all is well."""
    return {
        "id": name,
        "arrived": True,
        "versions": dict(VERSIONS),
        "token": {"on": True, "path": "/home/me/.ray/auth_token", "exposed": False},
        "network": {"interface": "eth0", "chosen": None, "name": name, "resolves": "127.0.1.1"},
        "shm": {"path": "/dev/shm", "total": 32 * GIB, "free": 30 * GIB},
        "disk": {"Ray's files": {"path": "/tmp/ray", "total": 500 * GIB, "free": 300 * GIB}},
        "memory": {"total": 64 * GIB, "available": 60 * GIB},
        "gpu": {"devices": [], "driver": None},
        "health": {"settings": SET if name == "a" else None},
        "storage": {"seen": True},
        "data": {"found": True},
        "clock": {"offset": 0.001, "round_trip": 0.002},
        "met": {"unreached": {}, "storage": {"seen": ["a", "b", "c", "driver"]}},
        "exchange": {"bytes_per_second": 1e9, "ready": True},
    }


def healthy() -> tuple[Facts, Facts]:
    """(facts, wanted) of three hosts without a fault."""
    cluster = {
        "cpus": 12.0,
        "workers": 3,
        "resources": {"CPU": 3.0},
        "unfit": None,
        "shapes": {name: {"CPU": 4.0} for name in "abc"},
        "store": dict.fromkeys("abc", 10.0 * GIB),
    }
    facts = {
        "this": {"versions": dict(VERSIONS)},
        "hosts": {name: host(name) for name in "abc"},
        "cluster": cluster,
        "upload": {"bytes": 2**20, "largest": {"trainers": 2**20}},
    }
    return facts, {"storage": "/shared/runs", "data": "/shared/photos", "scale": Scale(workers=3).to_json()}


def found(change: Callable[[Any], None], **wanted: Any) -> list[Finding]:
    facts, asked = healthy()
    change(facts)
    return examine(facts, {**asked, **wanted})


def put(facts: Any, where: str, value: Any) -> None:
    *path, last = where.split("/")
    for name in path:
        facts = facts[name]
    facts[last] = value


def test_nothing_is_found_on_a_healthy_cluster() -> None:
    assert examine(*healthy()) == []


FAULTS: list[tuple[str, Any, bool, str, str, str]] = [
    # where in the facts, what is there, fatal, where it is told to be, what, remedy
    ("hosts/b/storage/seen", False, True, "b", "/shared/runs is not shared", "--storage"),
    ("hosts/b/arrived", False, True, "b", "is not seen elsewhere", "mount it there"),
    ("hosts/b/storage", {"error": "no answer in 3 s"}, True, "b", "cannot be used: no answer", "mount"),
    ("hosts/b/met/storage/seen", ["b"], True, "b", "written on a, c", "mount the same folder"),
    ("hosts/b/network/chosen", "lo", True, "b", "GLOO_SOCKET_IFNAME=lo", "unset it"),
    ("hosts/b/network/interface", None, True, "b", "resolves to 127.0.1.1", "--node-ip-address"),
    ("hosts/b/token/path", "", True, "b", "there is no token", "auth_token there, with mode 600"),
    ("hosts/b/token/exposed", True, False, "b", "others may read the token", "chmod 600"),
    ("hosts/b/token/on", False, False, "b", "authentication is off", "RAY_AUTH_MODE=token"),
    ("hosts/b", {"error": "late", "reached": True}, True, "b", "Ray starts no process there (late)", "auth_token"),
    ("hosts/b", {"error": "late", "reached": False}, True, "b", "it is down, or cut off", "network between"),
    ("hosts/b/clock/offset", 300.0, False, "b", "300 s ahead", "chrony"),
    ("hosts/b/clock/offset", -1000.0, True, "b", "1000 s behind", "chrony"),
    ("hosts/b/versions/torch", "2.14.0+cpu", True, "b", "torch is 2.14.0+cpu, and 2.15.0+cpu where", "same versions"),
    ("hosts/b/versions/trainyard", "code 76543210", True, "b", "trainyard is code 7654", "send the code along"),
    ("hosts/b/versions/python", "3.12.1", True, "b", "python is 3.12.1", "same versions"),
    ("hosts/b/versions/numpy", "1.26.4", False, "b", "numpy is 1.26.4", "same versions"),
    ("hosts/b/versions", {"python": "3.11.7"}, True, "b", "torch is not installed", "install"),
    ("hosts/b/shm/free", 10 * 2**20, True, "b", "10 MiB free of 32", "--shm-size"),
    ("hosts/b/shm/free", 5 * GIB, False, "b", "object store may take 10.00 GiB", "--shm-size"),
    ("hosts/b/disk/Ray's files/free", 2**20, True, "b", "disk of Ray's files (/tmp/ray) has 1 MiB", "make room"),
    ("hosts/b/disk/Ray's files/free", 5 * GIB, False, "b", "Ray moves no objects", "--temp-dir"),
    ("hosts/b/memory/available", GIB, True, "b", "Ray kills processes", "end what takes it"),
    ("hosts/b/data/found", False, True, "b", "not there: /shared/photos", "mount or copy it"),
    ("hosts/b/data", {"error": "no answer in 3 s"}, True, "b", "cannot be read: no answer", "mount or copy it"),
    ("hosts/b/met/unreached", {"c": "timed out"}, True, "b", "does not reach c: timed out", "firewall"),
    ("hosts/b/exchange", {"error": "timed out"}, True, "b", "cannot be exchanged", "GLOO_SOCKET_IFNAME"),
    ("hosts/b/exchange", {"error": "no answer", "ready": False}, False, "b", "torch was not loaded", "ask again"),
    ("hosts/a/health/settings", {}, False, "a", "noticed after 63 s", "RAY_health_check_period_ms=1000"),
    ("cluster/resources", {"CPU": 4.0}, False, "all hosts", "leave none of 12 to prepare", "--cpus-per-worker"),
    ("cluster/unfit", "workers=3 do not fit; give less", True, "all hosts", "do not fit", "give less"),
    ("upload", {"bytes": 200 * 2**20, "largest": {"x.bin": 200 * 2**20}}, False, "here", "x.bin 200 MiB", ".gitignore"),
    ("this/storage", {"error": "it cannot be written: the disk is full; give another"}, True, "here", "full", "give"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault[0]}={str(fault[1])[:20]}" for fault in FAULTS])
def test_each_fault_is_found_and_told_with_its_remedy(fault: tuple[str, Any, bool, str, str, str]) -> None:
    path, value, fatal, where, what, fix = fault
    [finding] = [each for each in found(lambda facts: put(facts, path, copy.deepcopy(value))) if what in each.what]
    assert (finding.fatal, finding.where) == (fatal, where)
    assert fix in finding.fix


def test_what_our_own_code_mends_is_no_fault() -> None:
    """Every healthy host's name resolves to loopback; Gloo is bound to the interface of Ray's address."""
    assert healthy()[0]["hosts"]["b"]["network"]["resolves"].startswith("127.")


def test_builds_of_the_same_version_agree() -> None:
    assert found(lambda facts: put(facts, "hosts/b/versions/torch", "2.15.0+cu130")) == []
    assert found(lambda facts: put(facts, "hosts/b/versions/python", "3.11.9")) == []


def test_streaming_without_a_cpu_left_is_fatal() -> None:
    wanted = {"scale": Scale(workers=3, data_mode="stream").to_json()}
    [finding] = found(lambda facts: put(facts, "cluster/resources", {"CPU": 4.0}), **wanted)
    assert finding.fatal


@pytest.mark.parametrize(
    ("gpu", "promised", "what"),
    [
        ({"devices": ["H"], "driver": "470.1", "torch_cuda": "13.0", "usable": False, "why": "too old"}, 1, "too old"),
        ({"devices": ["H"], "driver": "580.1", "torch_cuda": None, "usable": False, "why": ""}, 1, "without CUDA"),
        ({"devices": [], "driver": None}, 1, "shows none"),
        ({"devices": ["H"], "driver": "580.1", "torch_cuda": "13.0", "usable": True, "why": ""}, 0, "does not know"),
        ({"error": "nvidia-smi hangs"}, 1, "nvidia-smi hangs"),
    ],
)
def test_the_driver_of_a_gpu_goes_with_torch(gpu: Facts, promised: int, what: str) -> None:
    def change(facts: Any) -> None:
        put(facts, "hosts/b/gpu", gpu)
        put(facts, "cluster/shapes/b", {"CPU": 4.0, "GPU": promised})
        put(facts, "cluster/resources", {"CPU": 3.0, "GPU": 1.0})

    [finding] = found(change)
    assert what in finding.what
    assert finding.fatal == bool(promised)


# The probes, on this machine ------------------------------------------------------------------------------------


def test_a_probe_looks_at_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(probe, "_temporary", lambda: str(tmp_path))
    monkeypatch.setattr(probe, "gpu", lambda: {"devices": []})
    with preflight.probe_file(Store(tmp_path / "runs")) as wanted:
        wanted |= {"host": "me", "address": "127.0.0.1", "data": str(tmp_path / "none"), "paths": {}, "alone": True}
        one = probe.Probe(wanted)
        seen = one.look(5)
        door = ("127.0.0.1", seen["ports"][0])
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))  # and does not listen
        met = one.meet({"friend": door, "stranger": closed.getsockname()})
        closed.close()
    assert seen["token"] == {"on": True, "path": str(tmp_path / "token"), "exposed": False}
    assert "secret" not in json.dumps(seen)
    assert seen["network"]["interface"] == "lo"
    assert seen["data"] == {"found": False}
    assert seen["storage"] == {"seen": True}
    assert seen["versions"] == provenance.versions()
    assert seen["disk"]["Ray's files"]["free"] > 0
    assert met["storage"]["seen"] == ["driver", "me"]
    assert list(met["unreached"]) == ["stranger"]
    assert Store(tmp_path / "runs").names() == []
    for each in one.doors:
        each.close()


def test_a_missing_or_open_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert probe.token() == {"on": True, "path": "", "exposed": False}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    monkeypatch.setattr(Path, "parents", [tmp_path, tmp_path / ".ray"])
    tmp_path.chmod(0o755)
    assert probe.token()["exposed"]
    tmp_path.chmod(0o700)
    assert not probe.token()["exposed"]


def test_a_full_disk_and_memory_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=len(str(path))))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8, available=1))
    assert probe.room("/dev/shm") == {"path": "/dev/shm", "total": 100, "free": 8}
    assert probe.room("/nowhere/at/all")["free"] == 1  # that of the root
    assert probe.memory() == {"total": 8, "available": 1}


def test_what_hangs_is_an_error_and_no_hang() -> None:
    """As the file system of a server that is gone."""
    free = threading.Event()
    begun = time.monotonic()
    taken = preflight.take_steps({"data": free.wait, "else": lambda: 1, "bad": lambda: {}["x"]}, 0.2)
    free.set()
    assert time.monotonic() - begun < 2
    assert taken == {
        "data": {"error": "no answer in 0.2 s"},
        "else": 1,
        "bad": {"error": "KeyError: 'x'"},
    }


def test_what_an_upload_would_take(tmp_path: Path) -> None:
    def fill(name: str, size: int) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)

    for name, size in (("big.bin", 200 * 2**20), (".git/pack", 2**30), ("runs/model.pt", 2**30), ("mine/a.py", 100)):
        fill(name, size)
    (tmp_path / ".gitignore").write_text("runs/\n")
    size = doctor.upload_size(tmp_path)
    assert size["bytes"] == 200 * 2**20 + 100 + len("runs/\n")
    assert next(iter(size["largest"].items())) == ("big.bin", 200 * 2**20)


# The command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("doctor --workers 0", "--workers 0 trains in one process"),
        ("doctor --working-dir /nowhere", "--working-dir /nowhere is not a folder"),
        ("doctor --storage ftp://somewhere", "cannot be opened"),
    ],
)
def test_bad_input_is_told_in_a_line(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    written = capsys.readouterr()
    assert told in written.err
    assert written.err.count("\n") == 1


def test_a_missing_token_is_found_where_the_command_is_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert main(["doctor", "--json"]) == 1
    [told] = json.loads(capsys.readouterr().out)["findings"]
    assert "there is no token" in told["what"]
    assert told["fix"] == "copy the head's ~/.ray/auth_token here, with mode 600"


def test_a_run_is_refused_where_hosts_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cheap checks; no Ray here: `b` sees neither storage nor data, `c` does not answer."""
    machines = [preflight.Host(name, f"host {name}", "", 0, {"CPU": 1.0}) for name in "abc"]

    def on_every(_: Any, look: Callable[[Facts], Facts], wanted: Facts) -> dict[str, Facts]:
        seen = look({**wanted, "host": "a"})
        blind = {**seen, "storage": {"seen": False}, "data": {"found": False}}
        return {"a": seen, "b": blind, "c": {"error": preflight.NO_ANSWER}}

    monkeypatch.setattr(preflight, "on_every", on_every)
    monkeypatch.setattr(preflight, "ray_hosts", lambda: machines)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(ValueError, match=r"host b: the storage .* is not shared.*host b: the data are not there"):
        preflight.check_hosts(Store(tmp_path / "runs"), str(tmp_path / "photos"))
    machines.pop(1)
    [warning] = preflight.check_hosts(Store(tmp_path / "runs"), str(tmp_path / "photos"))
    assert warning.startswith("host c: no process started there in time")
    assert Store(tmp_path / "runs").names() == []


def test_a_cluster_that_does_not_answer_is_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "nothing answers at RAY_ADDRESS=127.0.0.1" in told
    assert "1 fatal and 0 other findings" in told


# On three hosts -------------------------------------------------------------------------------------------------

CHECK = """
import sys, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
from trainers.runtime.preflight import check_hosts
from trainers.storage.store import Store
begun = time.monotonic()
try:
    print(check_hosts(Store(sys.argv[1]), sys.argv[2]))
except ValueError as error:
    print("refused:", error)
print(time.monotonic() - begun)
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(tmp_path_factory.mktemp("hosts")) as cluster:
        for machine in cluster.all:
            machine.resolve_to_loopback()  # which is no fault: workers use the interface of Ray's address
        cluster.start_cluster(cpus=2)
        for name in ("runs", "photos"):
            (cluster.folder / name).mkdir()
        (cluster.folder / "photos" / "one.jpg").touch()
        yield cluster


def examined(cluster: Hosts, *flags: str) -> tuple[int, float, list[dict[str, Any]]]:
    """What doctor, started on the head, says: exit code, seconds, findings."""
    command = ["python", "-m", "cluster", "doctor", "--storage", str(cluster.folder / "runs"), "--json", *flags]
    process = cluster.head.start(*command, env={"RAY_ADDRESS": cluster.address})
    out, err = process.communicate(timeout=90)
    assert out, err
    told = json.loads(out)
    print(f"doctor {' '.join(flags)}: {told['seconds']} s", *told["findings"], sep="\n")
    assert not list((cluster.folder / "runs").iterdir()), "doctor leaves nothing behind"
    return process.returncode, told["seconds"], told["findings"]


def checked(cluster: Hosts) -> tuple[str, float]:
    """What a run checks by itself: the warnings or the refusal, and the seconds it took."""
    folders = [str(cluster.folder / name) for name in ("runs", "photos")]
    told, seconds = cluster.head.run("python", "-c", CHECK, *folders, env={"RAY_ADDRESS": cluster.address}).splitlines()
    print(f"check_hosts: {float(seconds):.1f} s, {told}")
    return told, float(seconds)


@pytest.mark.slow
@pytest.mark.cluster
def test_faults_of_three_hosts(three: Hosts, tmp_path: Path) -> None:
    """Nothing on a healthy cluster; then each fault is made, and found on the host that has it."""
    photos = ["--data", str(three.folder / "photos")]
    code, seconds, told = examined(three, "--workers", "3", "--cpus-per-worker", "1", *photos)
    assert (code, told) == (0, [])
    assert seconds < 30
    assert checked(three)[0] == "[]"

    _, second, third = three.all
    second.hide(three.folder / "runs")
    third.hide(three.folder / "photos")
    third.run("fallocate", "-l", "2000M", "/dev/shm/full", cwd=Path("/"))
    (tmp_path / "large.bin").touch()
    os.truncate(tmp_path / "large.bin", 200 * 2**20)
    flags = ["--working-dir", str(tmp_path), "--workers", "2", "--cpus-per-worker", "3"]
    code, seconds, told = examined(three, *flags, *photos)
    assert code == 1
    assert seconds < 30
    assert {(each["where"].split()[0], each["fatal"]) for each in told} >= {
        ("host2", True),
        ("host3", True),
        ("all", True),
        ("here", False),
    }
    lines = {(each["where"].split()[0], each["what"]) for each in told}
    for where, what in (
        ("host2", f"the storage {three.folder / 'runs'} is not shared"),
        ("host3", f"the data are not there: {three.folder / 'photos'}"),
        ("host3", "/dev/shm has"),
        ("all", "workers=2 with 3 CPU each do not fit"),
        ("here", "a job would send 200 MiB (large.bin 200 MiB)"),
    ):
        assert [line for at, line in lines if at == where and what in line], (where, what, lines)
    refusal, _ = checked(three)
    assert refusal.startswith("refused: host2 (10.77.0.12): the storage")
    assert "host3 (10.77.0.13): the data are not there" in refusal

    (second.home / ".ray" / "auth_token").unlink()
    for process in third.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    third.run("rm", "/dev/shm/full", cwd=Path("/"))
    join = ["ray", "start", f"--address={three.address}", f"--node-ip-address={third.address}", "--num-cpus=2"]
    third.run(*join, "--disable-usage-stats", env={"GLOO_SOCKET_IFNAME": "lo"})
    code, seconds, told = examined(three, "--workers", "3", "--cpus-per-worker", "2")
    assert code == 1
    assert seconds < 30
    lines = {(each["where"].split()[0], each["what"]) for each in told}
    for where, what in (
        ("host2", "Ray starts no process there"),
        ("host3", "GLOO_SOCKET_IFNAME=lo is set there"),
        ("all", "leave none of 6 to prepare or stream data"),
    ):
        assert [line for at, line in lines if at == where and what in line], (where, what, lines)
