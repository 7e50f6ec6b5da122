"""`python -m cluster doctor`: each fault, injected, is reported with its remedy; a healthy cluster has none."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import socket
import threading
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
from trainers.runs import provenance
from trainers.runtime import preflight
from trainers.runtime.preflight import Finding
from trainers.storage.store import Store

GIB = 2**30
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0+cpu", "torchvision": "0.29.2", "pyarrow": "21.0.0"}
VERSIONS |= {"numpy": "2.1.0", "pillow": "12.0.0", "trainyard": "code 01234567"}
SET = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "3000"}
SET |= {"RAY_health_check_failure_threshold": "3"}

UPLOAD = {"bytes": 2**20, "files": 100, "limit": 512 * 2**20, "refused": False, "largest": {"trainers": 2**20}}
LARGE = {**UPLOAD, "bytes": 200 * 2**20, "largest": {"x.bin": 200 * 2**20}}


def host(name: str) -> dict[str, Any]:
    """What a probe answers on a host where all is well."""
    return {
        "id": name,
        "arrived": True,
        "versions": dict(VERSIONS),
        "token": {"on": True, "path": "/home/me/.ray/auth_token", "exposed": False},
        "network": {"interface": "eth0", "chosen": None, "name": name, "resolves": "127.0.1.1"},
        "shm": {"path": "/dev/shm", "total": 32 * GIB, "free": 30 * GIB},
        "disk": {"Ray's files": {"path": "/tmp/ray", "total": 500 * GIB, "free": 300 * GIB}},
        "memory": {"total": 64 * GIB, "available": 60 * GIB},
        "load": {"cores": 4, "busy": 0.4},
        "gpu": {"devices": [], "driver": None},
        "health": {"settings": SET if name == "a" else None},
        "storage": {"seen": True},
        "data": {"found": True},
        "clock": {"offset": 0.001, "round_trip": 0.002},
        "met": {"unreached": {}, "storage": {"seen": ["a", "b", "c", "driver"]}},
        "exchange": {"bytes_per_second": 1e9, "ready": True},
    }


def healthy() -> tuple[dict[str, Any], dict[str, Any]]:
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
        "upload": UPLOAD,
    }
    return facts, {"storage": "/shared/runs", "data": "/shared/photos", "data_mode": "auto"}


def found(change: Callable[[Any], None], **wanted: Any) -> list[Finding]:
    facts, question = healthy()
    change(facts)
    return examine(facts, {**question, **wanted})


def put(facts: Any, where: str, value: Any) -> None:
    *path, last = where.split("/")
    for name in path:
        facts = facts[name]
    facts[last] = value


def test_nothing_is_found_on_a_healthy_cluster() -> None:
    assert examine(*healthy()) == []


FAULTS: list[tuple[str, Any, bool, str, str, str]] = [
    # where in the facts, what is there, fatal, host that is reported, what the message must give, remedy
    ("hosts/b/storage/seen", False, True, "b", "/shared/runs", "--storage"),
    ("hosts/b/arrived", False, True, "b", "/shared/runs", "mount it there"),
    ("hosts/b/storage", {"error": "no answer in 3 s"}, True, "b", "/shared/runs cannot be used: no answer", "mount"),
    ("hosts/b/met/storage/seen", ["b"], True, "b", "on a, c", "mount the same folder"),
    ("hosts/b/met/storage", {"error": "no answer in 3 s"}, True, "b", "storage", "mount"),
    ("hosts/b/network/chosen", "lo", True, "b", "GLOO_SOCKET_IFNAME=lo", "unset it"),
    ("hosts/b/network/interface", None, True, "b", "127.0.1.1", "--node-ip-address"),
    ("hosts/b/token/path", "", True, "b", "token", "auth_token there, with mode 600"),
    ("hosts/b/token/exposed", True, False, "b", "/home/me/.ray/auth_token", "chmod 600"),
    ("hosts/b/token/on", False, False, "b", "authentication", "RAY_AUTH_MODE=token"),
    ("hosts/b", {"error": "late", "reached": True}, True, "b", "late", "auth_token"),
    ("hosts/b", {"error": "late", "reached": False}, True, "b", "cut off", "network between"),
    ("hosts/b/clock/offset", 300.0, False, "b", "300 s ahead", "chrony"),
    ("hosts/b/clock/offset", -1000.0, True, "b", "1000 s behind", "chrony"),
    ("hosts/b/versions/torch", "2.14.0+cpu", True, "b", "torch is 2.14.0+cpu, and 2.15.0+cpu", "same versions"),
    ("hosts/b/versions/trainyard", "code 76543210", True, "b", "trainyard is code 7654", "submit"),
    ("hosts/b/versions/python", "3.12.1", True, "b", "python is 3.12.1", "same versions"),
    ("hosts/b/versions/numpy", "1.26.4", False, "b", "numpy is 1.26.4", "same versions"),
    ("hosts/b/versions/pillow", "11.3.0", False, "b", "pillow is 11.3.0, and 12.0.0", "same versions"),
    ("hosts/b/versions", {"python": "3.11.7"}, True, "b", "torch is not installed", "install"),
    ("hosts/b/shm/free", 10 * 2**20, True, "b", "10 MiB free of 32", "--shm-size"),
    ("hosts/b/shm/free", 5 * GIB, False, "b", "10.00 GiB", "--shm-size"),
    ("hosts/b/disk/Ray's files/free", 2**20, True, "b", "Ray's files (/tmp/ray) has 1 MiB", "--storage"),
    ("hosts/b/disk/Ray's files/free", 5 * GIB, False, "b", "Ray's files (/tmp/ray) has 5.00 GiB", "--temp-dir"),
    ("hosts/b/memory/available", GIB, True, "b", "1.00 GiB of 64.00 GiB", "end what takes it"),
    ("hosts/b/load/busy", 3.7, False, "b", "3.7 processes computed on its 4 cores", "end them"),
    ("hosts/b/data/found", False, True, "b", "/shared/photos", "mount or copy it"),
    ("hosts/b/data", {"error": "no answer in 3 s"}, True, "b", "/shared/photos", "mount or copy it"),
    ("hosts/b/met/unreached", {"c": "timed out"}, True, "b", "c: timed out", "firewall"),
    ("hosts/b/exchange", {"error": "timed out"}, True, "b", "timed out", "GLOO_SOCKET_IFNAME"),
    ("hosts/b/exchange", {"error": "no answer", "ready": False}, False, "b", "torch", "run doctor again"),
    ("hosts/a/health/settings", {}, False, "a", "63 s", "RAY_health_check_period_ms=1000"),
    ("cluster/resources", {"CPU": 4.0}, False, "all hosts", "none of 12", "--cpus-per-worker"),
    ("cluster/unfit", "workers=3 do not fit; give less", True, "all hosts", "workers=3", "give less"),
    ("upload", LARGE, False, "here", "x.bin 200 MiB", ".gitignore"),
    ("upload", {**LARGE, "refused": True}, False, "here", "submit would refuse", ".gitignore"),
    ("this/storage", {"error": "it cannot be written: the disk is full; give another"}, True, "here", "full", "give"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault[0]}={str(fault[1])[:20]}" for fault in FAULTS])
def test_each_fault_is_reported_with_its_host_and_its_remedy(fault: tuple[str, Any, bool, str, str, str]) -> None:
    path, value, fatal, where, what, fix = fault
    [finding] = [each for each in found(lambda facts: put(facts, path, copy.deepcopy(value))) if what in each.what]
    assert (finding.fatal, finding.where) == (fatal, where)
    assert fix in finding.fix


def test_a_name_that_resolves_to_loopback_is_no_fault() -> None:
    """Gloo is bound to the interface of Ray's address, whatever the name resolves to."""
    assert found(lambda facts: put(facts, "hosts/b/network/resolves", "127.0.0.1")) == []


def test_other_builds_of_the_same_version_are_no_fault() -> None:
    assert found(lambda facts: put(facts, "hosts/b/versions/torch", "2.15.0+cu130")) == []
    assert found(lambda facts: put(facts, "hosts/b/versions/python", "3.11.9")) == []


def test_streaming_without_a_cpu_left_is_fatal() -> None:
    [finding] = found(lambda facts: put(facts, "cluster/resources", {"CPU": 4.0}), data_mode="stream")
    assert finding.fatal


@pytest.mark.parametrize(
    ("gpu", "promised", "what", "fix"),
    [
        (
            {"devices": ["H"], "driver": "470.1", "torch_cuda": "13.0", "usable": False, "why": "too old"},
            1,
            "too old",
            "driver",
        ),
        (
            {"devices": ["H"], "driver": "580.1", "torch_cuda": None, "usable": False, "why": ""},
            1,
            "CUDA",
            "install torch",
        ),
        ({"devices": [], "driver": None}, 1, "nvidia-smi", "--num-gpus 0"),
        (
            {"devices": ["H"], "driver": "580.1", "torch_cuda": "13.0", "usable": True, "why": ""},
            0,
            "1 GPUs",
            "--num-gpus 1",
        ),
        ({"error": "it hangs"}, 1, "it hangs", "run nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_reported_and_fatal_where_ray_counts_it(
    gpu: dict[str, Any], promised: int, what: str, fix: str
) -> None:
    def change(facts: Any) -> None:
        put(facts, "hosts/b/gpu", gpu)
        put(facts, "cluster/shapes/b", {"CPU": 4.0, "GPU": promised})
        put(facts, "cluster/resources", {"CPU": 3.0, "GPU": 1.0})

    [finding] = found(change)
    assert what in finding.what
    assert fix in finding.fix
    assert finding.fatal == bool(promised)


# The probes, on this machine ------------------------------------------------------------------------------------


def test_a_probe_reports_what_it_sees_of_its_host_and_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        seen = one.inspect(5)
        listener = ("127.0.0.1", seen["ports"][0])
        closed = socket.socket()
        closed.bind(("127.0.0.1", 0))  # and does not listen
        met = one.meet({"friend": listener, "stranger": closed.getsockname()})
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
    for each in one.listeners:
        each.close()


def test_a_token_that_is_missing_or_readable_by_others_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_disks_and_memory_are_measured_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100, free=len(str(path))))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8, available=1))
    assert probe.room("/dev/shm") == {"path": "/dev/shm", "total": 100, "free": 8}
    assert probe.room("/nowhere/at/all")["free"] == 1  # that of the root
    assert probe.memory() == {"total": 8, "available": 1}


def test_a_step_that_hangs_becomes_an_error_in_time() -> None:
    """Such as a file system whose server is gone: it never ends by itself."""
    free = threading.Event()
    taken = preflight.take_steps({"data": free.wait, "else": lambda: 1, "bad": lambda: {}["x"]}, 0.2)
    free.set()
    assert taken == {
        "data": {"error": "no answer in 0.2 s"},
        "else": 1,
        "bad": {"error": "KeyError: 'x'"},
    }


def test_what_submit_leaves_behind_is_not_reported(tmp_path: Path) -> None:
    """Ray would upload data and runs, by its own rules; `submit` does not. See also test_submit.py."""
    sizes = {"big.bin": 200 * 2**20, ".git/pack": 2**30, "out/model.pt": 2**30, "mine/a.py": 100}
    sizes |= {"data/photos.tar": 2**30, "results/one/run.json": 0, "results/one/best.pt": 2**30, ".rayignore": 0}
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    (tmp_path / ".gitignore").write_text("out/\n")
    upload = doctor.measure_upload(tmp_path)
    assert upload["bytes"] == 200 * 2**20 + 100 + len("out/\n")
    assert list(upload["largest"].items())[:2] == [("big.bin", 200 * 2**20), ("mine/", 100)]
    assert not upload["refused"]
    os.truncate(tmp_path / "big.bin", upload["limit"] + 1)
    assert doctor.measure_upload(tmp_path)["refused"]


# The command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("doctor --workers 0", "--workers 0"),
        ("doctor --working-dir /nowhere", "--working-dir /nowhere"),
        ("doctor --storage ftp://somewhere", "ftp://somewhere"),
    ],
)
def test_a_bad_flag_is_reported_in_one_line(words: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    written = capsys.readouterr()
    assert named in written.err
    assert written.err.count("\n") == 1


def test_a_token_that_is_missing_where_doctor_is_started_is_fatal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert main(["doctor", "--json"]) == 1
    everything = json.loads(capsys.readouterr().out)
    [finding] = everything["findings"]
    assert "token" in finding["what"]
    assert finding["fix"] == "copy the head's ~/.ray/auth_token here, with mode 600"
    assert everything["facts"] == {"hosts": {}}


def test_a_run_is_refused_where_a_host_sees_neither_storage_nor_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No Ray here: `b` sees neither storage nor data, `c` does not answer."""
    machines = [preflight.Host(name, f"host {name}", "", 0, {"CPU": 1.0}) for name in "abc"]

    def on_every(
        _: Any, look: Callable[[dict[str, Any]], dict[str, Any]], wanted: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        seen = look({**wanted, "host": "a"})
        blind = {**seen, "storage": {"seen": False}, "data": {"found": False}}
        return {"a": seen, "b": blind, "c": {"error": preflight.NO_ANSWER}}

    monkeypatch.setattr(preflight, "on_every", on_every)
    monkeypatch.setattr(preflight, "ray_hosts", lambda: machines)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(ValueError, match=r"host b: .*--storage.*host b: .*/photos; mount or copy it"):
        preflight.check_hosts(Store(tmp_path / "runs"), str(tmp_path / "photos"))
    machines.pop(1)
    [warning] = preflight.check_hosts(Store(tmp_path / "runs"), str(tmp_path / "photos"))
    assert warning.startswith("host c: no process started there in time")
    assert Store(tmp_path / "runs").names() == []


def test_a_cluster_that_does_not_answer_is_fatal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
        assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "RAY_ADDRESS=127.0.0.1" in out
    assert "start the cluster (ray start --head ...), or correct RAY_ADDRESS" in out
    assert "1 fatal and 0 other findings" in out


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


def examined(cluster: Hosts, *flags: str) -> tuple[int, list[dict[str, Any]]]:
    """What doctor, started on the head, says: exit code, findings; not of other tests that run here."""
    command = ["python", "-m", "cluster", "doctor", "--storage", str(cluster.folder / "runs"), "--json", *flags]
    process = cluster.head.start(*command, env={"RAY_ADDRESS": cluster.address})
    out, err = process.communicate(timeout=900)
    assert out, err
    reported = json.loads(out)
    print(f"doctor {' '.join(flags)}: {reported['seconds']} s", *reported["findings"], sep="\n")
    assert not list((cluster.folder / "runs").iterdir()), "doctor leaves nothing behind"
    return process.returncode, [each for each in reported["findings"] if "processes computed" not in each["what"]]


def checked(cluster: Hosts) -> tuple[str, float]:
    """What a run checks by itself: the warnings or the refusal, and the seconds it took."""
    folders = [str(cluster.folder / name) for name in ("runs", "photos")]
    reported, seconds = cluster.head.run(
        "python", "-c", CHECK, *folders, env={"RAY_ADDRESS": cluster.address}
    ).splitlines()
    print(f"check_hosts: {float(seconds):.1f} s, {reported}")
    return reported, float(seconds)


@pytest.mark.slow
@pytest.mark.cluster
def test_faults_of_three_hosts_are_reported_where_they_are(three: Hosts, tmp_path: Path) -> None:
    """Nothing on a healthy cluster; then each fault is made, and found on the host that has it."""
    photos = ["--data", str(three.folder / "photos")]
    code, reported = examined(three, "--workers", "3", "--cpus-per-worker", "1", *photos)
    assert (code, reported) == (0, [])
    assert checked(three)[0] == "[]"

    _, second, third = three.all
    second.hide(three.folder / "runs")
    third.hide(three.folder / "photos")
    third.run("fallocate", "-l", "2000M", "/dev/shm/full", cwd=Path("/"))
    (tmp_path / "large.bin").touch()
    os.truncate(tmp_path / "large.bin", 200 * 2**20)
    flags = ["--working-dir", str(tmp_path), "--workers", "2", "--cpus-per-worker", "3"]
    code, reported = examined(three, *flags, *photos)
    assert code == 1
    assert {(each["where"].split()[0], each["fatal"]) for each in reported} >= {
        ("host2", True),
        ("host3", True),
        ("all", True),
        ("here", False),
    }
    lines = {(each["where"].split()[0], each["what"]) for each in reported}
    for where, what in (
        ("host2", f"the storage {three.folder / 'runs'} is not shared"),
        ("host3", f"the data are not there: {three.folder / 'photos'}"),
        ("host3", "/dev/shm has"),
        ("all", "workers=2 with 3 CPU each do not fit"),
        ("here", "200 MiB in 1 files (large.bin 200 MiB)"),
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
    code, reported = examined(three, "--workers", "3", "--cpus-per-worker", "2")
    assert code == 1
    lines = {(each["where"].split()[0], each["what"]) for each in reported}
    for where, what in (
        ("host2", "Ray starts no process there"),
        ("host3", "GLOO_SOCKET_IFNAME=lo is set there"),
        ("all", "leave none of 6 to prepare or stream data"),
    ):
        assert [line for at, line in lines if at == where and what in line], (where, what, lines)
