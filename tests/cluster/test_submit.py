"""`python -m cluster submit`, `status`, `logs`, `stop`: on a server that fails on request, and on a real Ray."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.fake_cluster import FakeCluster, serve
from helpers.small import Slow

from cluster import job_client
from cluster.__main__ import main
from cluster.address import DEFAULT, job_server
from cluster.doctor import measure_upload
from cluster.job_entrypoint import HAS, LACKS, lacking
from cluster.submit import last_errors, run_folder
from cluster.upload import PACKAGES, measure, modules, requirements

ROOT = Path(__file__).parents[2]
SECONDS = 900
TRAIN = ["--", "python", "-m", "trainers", "train", "digits.cnn"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the current one, in a home without a token."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.py").write_text("print('mine')\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "TRAINYARD_STORAGE", "TRAINYARD_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by the command; put back after the test
    monkeypatch.setattr(job_client, "RETRY_SECONDS", 0.05)
    return folder


@pytest.fixture
def fake(folder: Path) -> Iterator[FakeCluster]:
    assert folder == Path.cwd()
    with serve(FakeCluster()) as fake:
        os.environ["RAY_API_SERVER_ADDRESS"] = fake.address
        yield fake


# Addresses and tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("10.0.0.1", "http://10.0.0.1:8265"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("https://ray.example.org/lab", "https://ray.example.org:443/lab"),
        (None, DEFAULT),
    ],
)
def test_an_address_of_a_dashboard_is_completed(given: str | None, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert job_server(given) == meant
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "other:1")
    assert job_server(None) == "http://other:1"


@pytest.mark.parametrize("given", ["ray://head:10001", "http://", "head:none", "head:99999", "a b", "u:p@head:1"])
def test_an_address_that_is_no_dashboard_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="address"):
        job_server(given)


@pytest.mark.usefixtures("folder")
def test_a_cluster_that_does_not_answer_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*closed.getsockname())
        assert main(["submit", "--address", address, *TRAIN]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert f"http://{address} (Connection refused)" in err
    assert "ssh -N -L" in err
    assert err.count("\n") == 1


def test_a_server_that_is_not_ray_is_refused(fake: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    fake.failures = [("GET /api/version", 404, "no such page")]
    assert main(["status"]) == 2
    assert "--address http://HEAD:8265" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_token_is_reported_with_where_to_copy_it_from(
    fake: FakeCluster, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failures = [("GET /api/version", status, "Unauthorized")]
    assert main(["submit", *TRAIN]) == 2
    err = capsys.readouterr().err
    assert "copy ~/.ray/auth_token of its head" in err
    assert err.count("\n") == 1
    assert fake.jobs == {}


# What is sent --------------------------------------------------------------------------------------------------


def fill(folder: Path) -> None:
    files = {
        ".gitignore": "*.big\n",
        "sub/code.py": "",
        "sub/weights.big": "x" * 500,
        ".git/objects/1": "x" * 500,
        ".env": "SECRET=1",
        "data/photo.jpg": "x" * 500,
        "sub/data/table.csv": "1",
        "env/pyvenv.cfg": "",
        "env/lib/big.so": "x" * 500,
        "__pycache__/mine.pyc": "x",
        "results/one/run.json": "{}",
        "results/one/checkpoints/1": "x" * 500,
        "results/sweep/sweep.json": "{}",
        "results/notes.txt": "good",
        "pictures/meta.json": "{}",
        "pictures/train-00000.arrow": "x" * 500,
        "store/cache/x": "x" * 500,
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_from_a_checkout_our_packages_are_not_sent_twice(fake: FakeCluster, folder: Path) -> None:
    for name in ("trainers", "tune_spaces", "cluster"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    assert main(["submit", "--", "python", "./mine.py"]) == 0
    [job] = fake.jobs.values()
    assert "py_modules" not in job["runtime_env"]  # Ray fails over an empty list


def test_code_is_uploaded_and_data_runs_and_secrets_are_not(
    fake: FakeCluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured, by doctor too, is what Ray takes."""
    fill(folder)
    monkeypatch.setenv("TRAINYARD_STORAGE", str(folder / "store"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert main(["submit", "--", "python", "./mine.py", "with space"]) == 0
    [job] = fake.jobs.values()
    environment = job["runtime_env"]
    package = environment["working_dir"].removeprefix("gcs://")
    with zipfile.ZipFile(io.BytesIO(fake.packages[f"/api/packages/gcs/{package}"])) as sent:
        files = {info.filename: info.file_size for info in sent.infolist() if not info.is_dir()}
    assert set(files) == {"mine.py", ".gitignore", "sub/code.py", "sub/data/table.csv", "results/notes.txt"}
    upload = measure(folder)
    assert (upload.size, upload.files) == (sum(files.values()), len(files))
    assert upload.entries[0][0] == "mine.py"
    assert measure_upload(folder)["bytes"] == upload.size
    assert len(environment["py_modules"]) == 3
    variables = environment["env_vars"]
    assert variables["TRAINYARD_STORAGE"] == str(folder / "store")
    assert not [name for name in variables if name.startswith("AWS")]
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "60"
    assert job["entrypoint"].endswith("python ./mine.py 'with space'")


def test_our_packages_are_uploaded_where_the_folder_has_none(folder: Path) -> None:
    assert [path.name for path in modules(folder)] == ["trainers", "tune_spaces", "cluster"]
    assert modules(ROOT) == []
    assert any(need.startswith("torch>=") for need in requirements(folder))
    (folder / "pyproject.toml").write_text('[project]\nname = "mine"\ndependencies = ["tiny>=2", "trainyard"]\n')
    assert requirements(folder) == ["tiny>=2", *requirements(ROOT)]


def test_a_large_folder_is_reported_and_one_too_large_for_ray_is_refused(
    fake: FakeCluster, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos").mkdir()
    (folder / "photos/one.png").write_bytes(b"x" * 3000)
    monkeypatch.setattr("cluster.upload.WARN_BYTES", 1000)
    assert main(["submit", *TRAIN]) == 0
    assert "3 KiB of" in (err := capsys.readouterr().err)
    assert "the largest: photos/ (3 KiB)" in err
    sent = len(fake.packages)
    monkeypatch.setattr("cluster.upload.upload_limit", lambda: 2000)
    assert main(["submit", *TRAIN]) == 2
    assert "photos/ (3 KiB), mine.py (14 bytes); list in a .gitignore" in capsys.readouterr().err
    assert (len(fake.packages), len(fake.jobs)) == (sent, 1)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "-- COMMAND"),
        ([*TRAIN, "--data", "photos"], "--data photos"),
        ([*TRAIN, "--storage=runs"], "--storage runs"),
        ([*TRAIN, "--data", "s3://bucket/photos"], "copy the files"),
        ([*TRAIN, "--data=gs://bucket/photos"], "copy the files"),
        ([*TRAIN, "--storage", "s3://key:secret@bucket/runs"], "password"),
    ],
)
def test_commands_that_would_fail_on_the_cluster_are_refused_here(
    words: list[str], named: str, fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", *words]) == 2
    assert named in (err := capsys.readouterr().err)
    assert "secret" not in err
    assert fake.requests == []


def test_packages_that_the_cluster_lacks_are_installed_for_the_job(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.log, fake.exit_code = f'{LACKS}["tiny>=2"]\n', 1

    def second() -> None:
        if len(fake.jobs) == 1:
            fake.log = f"{HAS}\ndone\n"

    fake.on_log = second
    fake.failures = [("POST /api/jobs/", 500, "No available agent to submit job, please try again later.")]
    assert main(["submit", *TRAIN]) == 1  # every job of the fake does
    [job] = fake.jobs.values()  # the first one is forgotten
    assert job["runtime_env"]["pip"]["packages"] == ["tiny>=2"]
    assert "TRAINYARD_NEEDS" not in job["runtime_env"]["env_vars"]
    err = capsys.readouterr().err
    assert "tiny>=2" in err
    assert "done" in err
    assert HAS not in err


def test_another_version_of_ray_is_refused(fake: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    fake.log, fake.exit_code = f'{LACKS}["ray[train]>=9"]\n', 1
    assert main(["submit", *TRAIN]) == 2
    assert "ray[train]>=9; install that on its hosts" in capsys.readouterr().err


def test_only_requirements_that_are_not_met_are_lacking() -> None:
    assert lacking(["numpy>=1", "ray[default]>=2", "nothing; python_version < '3'"]) == []
    assert lacking(["numpy>=99", "no-such-thing[extra]==1"]) == ["numpy>=99", "no-such-thing[extra]==1"]


# What comes back -----------------------------------------------------------------------------------------------


def test_the_log_goes_to_stderr_and_the_run_folder_to_stdout(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.log = f"{HAS}\nepoch 1\n/shared/runs/one\n"
    assert main(["submit", *TRAIN]) == 0
    written = capsys.readouterr()
    assert written.out == "/shared/runs/one\n"
    assert "epoch 1\n/shared/runs/one\n" in written.err
    assert "tensorboard --logdir /shared/runs\n" in written.err
    assert main(["submit", "--detach", *TRAIN]) == 0
    name = capsys.readouterr().out.strip()
    assert list(fake.jobs)[1] == name
    assert main(["logs", name]) == 0
    assert capsys.readouterr().out == "epoch 1\n/shared/runs/one\n"
    assert main(["status"]) == 0
    assert "python -m trainers train digits.cnn" in (table := capsys.readouterr().out)
    assert table.count("succeeded") == 2
    assert main(["status", name]) == 0
    assert "took       1:02" in capsys.readouterr().out
    assert main(["stop", "nothing"]) == 2
    assert "python -m cluster status lists its jobs" in capsys.readouterr().err


def test_each_line_comes_once_though_the_connection_breaks(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [HAS, *(f"line {number}" for number in range(100)), "the end without a newline"]
    fake.log, fake.drops = "\n".join(lines), [333, 0, 700]
    down = "the head is down"
    fake.failures = [("GET /api/jobs/job", 500, down), ("GET /api/jobs/job", 0, ""), ("GET /api/jobs/job", 502, down)]
    fake.failures += [("POST /api/jobs/", 0, "")]  # it started, but the answer was lost
    assert main(["submit", *TRAIN]) == 0
    err = capsys.readouterr().err
    shown = [line for line in err.splitlines() if line.startswith(("line", "the end"))]
    assert shown == lines[1:]
    assert "the connection is lost" in err
    assert "connected again" in err
    assert len(fake.jobs) == 1


def test_a_connection_that_falls_silent_is_opened_again(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_client, "SILENT_SECONDS", 0.1)
    fake.runs_until_stopped = True
    seen: list[int] = []

    def on_log() -> None:
        seen.append(1)
        fake.runs_until_stopped = len(seen) < 3

    fake.on_log = on_log
    assert main(["submit", *TRAIN]) == 0
    assert len(seen) == 3
    assert capsys.readouterr().err.count("hello\n") == 1


def test_a_cluster_that_does_not_come_back_is_given_up_with_how_to_follow_the_job(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_client, "PATIENCE_SECONDS", 0.2)
    fake.failures = [("GET /api/jobs/job", 500, "down")] * 100
    assert main(["submit", *TRAIN]) == 1
    assert "to follow: python -m cluster logs job-" in capsys.readouterr().err


def test_a_restarted_head_is_reported_with_how_to_continue_the_run(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.drops, fake.log = [3], "hello\nworld\n"
    fake.failures = [("GET /api/jobs/job", 404, "")]
    assert main(["submit", *TRAIN]) == 1
    assert "with the same --run" in capsys.readouterr().err


def test_a_failed_job_ends_with_its_exit_code_and_its_error(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.log = HAS + "\nbegin\nTraceback (most recent call last):\n  File x\nValueError: it is bad\n/shared/runs/one\n"
    fake.exit_code = 3
    assert main(["submit", *TRAIN]) == 3
    written = capsys.readouterr()
    end = written.err[written.err.index("error: job-") :]
    assert "failed with exit code 3; its last lines:\n  ValueError: it is bad\n" in end
    assert "Traceback" not in end
    assert written.out == "/shared/runs/one\n"
    fake.exit_code = -9
    assert main(["submit", *TRAIN]) == 137


def test_the_run_folder_and_the_last_error_are_found_in_a_log() -> None:
    assert run_folder(["x", "s3://bucket/runs/one", "", "to continue, repeat"]) == "s3://bucket/runs/one"
    assert run_folder(["/usr/lib/x.py:3: UserWarning: bad"]) is None
    assert last_errors([*"abc", "error: no", "more"]) == ["error: no", "more"]
    assert last_errors([str(number) for number in range(30)]) == [str(number) for number in range(20, 30)]


def interrupt() -> None:
    """Ctrl-C, while the main thread follows the log."""
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


# Ray's client leaves a connection that is interrupted to the garbage collector, which complains: here, not in whatever
# test it would come in.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_without_a_terminal_leaves_the_job_running(
    fake: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.runs_until_stopped, fake.on_log = True, interrupt
    assert main(["submit", *TRAIN]) == 130
    gc.collect()
    [(name, job)] = fake.jobs.items()
    assert job["status"] == "RUNNING"
    err = capsys.readouterr().err
    assert f"to follow: python -m cluster logs {name} --address {fake.address}; to stop: " in err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("answer", "status"), [("y\n", "STOPPED"), ("\n", "RUNNING"), ("", "RUNNING")])
def test_an_interrupt_at_a_terminal_asks_whether_to_stop_the_job(
    answer: str, status: str, fake: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.runs_until_stopped, fake.on_log = True, interrupt
    typed = io.StringIO(answer)
    monkeypatch.setattr(typed, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["submit", *TRAIN]) == 130
    gc.collect()
    [job] = fake.jobs.values()
    assert job["status"] == status
    assert "? [y/N]" in capsys.readouterr().err


# On a real Ray -------------------------------------------------------------------------------------------------


MINE = """
from trainers.recipe import resolve

def cnn():
    return resolve("digits.cnn")
"""


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def processes_of(home: str) -> list[psutil.Process]:
    """Those that were started with that home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == home:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands outside a cluster of 3 CPUs that cluster/local.sh started. FOLDER is the cluster's.

    There is no `python` of Ray's on the cluster's PATH, and no Trainyard on its PYTHONPATH.
    """
    home, folder = tmp_path_factory.mktemp("home"), f"/tmp/tj{os.getpid()}"
    port, dashboard, agent, client = free_ports(4)
    environment = {**os.environ, "HOME": str(home), "NO_COLOR": "1"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "PYTHONPATH"):
        environment.pop(name, None)
    (home / "bin").mkdir()
    (home / "bin/ray").symlink_to(Path(sys.executable).parent / "ray")
    start = ["bash", str(ROOT / "cluster/local.sh"), "--num-cpus=3", f"--temp-dir={folder}", f"--port={port}"]
    start += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--ray-client-server-port={client}"]
    hosts = {**environment, "PATH": f"{home}/bin:/usr/bin:/bin"}
    subprocess.run(start, env=hosts, check=True, capture_output=True, timeout=SECONDS)
    yield {
        **environment,
        **{"PYTHONPATH": str(ROOT), "RAY_API_SERVER_ADDRESS": f"127.0.0.1:{dashboard}", "FOLDER": folder},
        "TRAINYARD_STORAGE": str(home / "storage"),
    }
    for process in processes_of(str(home)):
        with contextlib.suppress(psutil.Error):
            process.kill()
    subprocess.run(["rm", "-rf", folder])


def run(cluster: dict[str, str], cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster", *words]
    return subprocess.run(command, env=cluster, cwd=cwd, text=True, capture_output=True, timeout=SECONDS)


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_run_continues_when_it_is_submitted_again(
    cluster: dict[str, str], slow: Slow, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from trainers.recipe import resolve\n\ndef cnn():\n    return resolve('digits.cnn')\n"
    )
    train = ["--", "python", "-m", "trainers", "train", "./mine.py:cnn", "--run", "one", "--workers", "1"]
    train += [*slow.flags, "--epochs", "4"]
    begun = run(cluster, tmp_path, "submit", "--detach", *train)
    assert begun.returncode == 0, begun.stderr
    job, folder = begun.stdout.strip(), Path(cluster["TRAINYARD_STORAGE"], "one")
    limit = time.monotonic() + SECONDS
    while not list(folder.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < limit, run(cluster, tmp_path, "logs", job).stdout
        time.sleep(0.2)
    stopped = run(cluster, tmp_path, "stop", job)
    assert (stopped.returncode, stopped.stderr.splitlines()[-1]) == (0, f"{job}: stopped")
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    logs = run(cluster, tmp_path, "logs", job)
    assert logs.returncode == 130
    assert "to continue, repeat the command with --run one" in logs.stdout

    slow.hurry()
    again = run(cluster, tmp_path, "submit", *train)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{folder}\n"
    assert f"tensorboard --logdir {folder.parent}" in again.stderr
    assert "Traceback" not in again.stderr
    info = json.loads((folder / "run.json").read_text())
    assert (info["status"], info["attempt"], info["epochs_run"]) == ("finished", 2, 4)
    uploaded = list(Path(cluster["FOLDER"]).glob("session_2*/runtime_resources/*_files/_ray_pkg_*/**/*"))
    assert "mine.py" in {path.name for path in uploaded}
    sent = [path for path in uploaded if path.is_file() and "__pycache__" not in path.parts]  # that was compiled there
    ours = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()]
    assert {path.name for path in sent} <= {"mine.py", *(path.name for path in ours)}
    assert sum(path.stat().st_size for path in sent) <= sum(path.stat().st_size for path in ours) + 1000


@pytest.mark.ray
@pytest.mark.slow
def test_python_is_that_of_the_cluster_and_failures_are_reported(cluster: dict[str, str], tmp_path: Path) -> None:
    code = "import sys, ray, trainers; print(sys.executable, trainers.__file__); sys.exit('error: on request')"
    failed = run(cluster, tmp_path, "submit", "--", "python", "-c", code)
    assert failed.returncode == 1
    assert failed.stderr.endswith("failed with exit code 1; its last lines:\n  error: on request\n")
    python, trainers = next(line for line in failed.stderr.splitlines() if "trainers/__init__.py" in line).split()
    assert python == str(Path(sys.executable).parent / "python")
    assert trainers.startswith(cluster["FOLDER"])
    assert run(cluster, tmp_path, "submit", "--", "sh", "-c", "exit 42").returncode == 42
    table = run(cluster, tmp_path, "status").stdout
    assert "failed with exit code 42" in table


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_or_from_another_machine_nobody_gets_in(cluster: dict[str, str], tmp_path: Path) -> None:
    """Nothing listens beyond loopback."""
    denied = run({**cluster, "HOME": str(tmp_path)}, tmp_path, "submit", "--", "true")
    assert denied.returncode == 2
    assert "copy ~/.ray/auth_token of its head" in denied.stderr
    listening = [
        connection.laddr
        for process in processes_of(cluster["HOME"])
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 3
    assert {address.ip.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
