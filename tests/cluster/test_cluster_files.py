"""The files that start a cluster: what Ray's schema says of them, and slurm.sh under a stub scheduler."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from helpers.ray_launcher import as_ray_reads_it

from trainers.recipe import resolve

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHER = ["aws.yaml", "gcp.yaml", "onprem.yaml"]
KUBERAY = ["kuberay-cluster.yaml", "kuberay-job.yaml"]
FILES = [*LAUNCHER, *KUBERAY, "slurm.sh"]
SETTINGS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
BIN = Path(sys.executable).parent


def header(name: str) -> str:
    """The comment at the top of a file."""
    lines = (CLUSTER / name).read_text().splitlines()
    lines = lines[1:] if lines[0].startswith("#!") else lines
    end = next(number for number, line in enumerate(lines) if not line.startswith("#") or line.startswith("#SBATCH"))
    return "\n".join(lines[:end])


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def unit() -> str:
    """The text of the systemd unit, which starts Ray on one's own hosts."""
    return (CLUSTER / "trainyard-ray.service").read_text()


def head_environment(name: str) -> dict[str, str]:
    """The variables that a file sets where the head is started."""
    if name in KUBERAY:
        return {entry["name"]: entry["value"] for entry in pod(cluster_spec(name)["headGroupSpec"])["env"]}
    text = (CLUSTER / name).read_text() if name == "slurm.sh" else " ".join(load(name)["head_start_ray_commands"])
    text = unit() if name == "onprem.yaml" else text
    words = [word for line in text.splitlines() for word in line.replace(";", " ").replace("Environment=", "").split()]
    return dict(word.split("=", 1) for word in words if word.startswith("RAY_") and "=" in word)


# What all of them have -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "Dockerfile"])
def test_the_header_shows_how_to_use_the_file_and_what_was_not_tried(name: str) -> None:
    usage = [line for line in header(name).splitlines() if line.startswith("#     ")]
    assert len(usage) >= 2
    assert "Not tried:" in header(name)


@pytest.mark.parametrize("name", FILES)
def test_the_header_trains_a_recipe_that_exists(name: str) -> None:
    text = (CLUSTER / name).read_text().replace("\\\n#", "")
    words = shlex.split(text.split("-m trainers train", 1)[1].splitlines()[0])
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    micro = flags.get("--micro-batch-size")
    resolve(words[0], micro_batch_size=micro and int(micro))
    assert micro or ":" not in flags["--workers"]  # what elastic workers ask for
    assert flags["--run"]  # by which a run continues


@pytest.mark.parametrize("name", FILES)
def test_a_dead_host_is_noticed_soon_and_a_stopped_job_has_time_to_save(name: str) -> None:
    environment = head_environment(name)
    assert SETTINGS.items() <= environment.items()
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30


@pytest.mark.parametrize("name", FILES)
def test_token_authentication_is_on_and_no_secret_is_in_the_file(name: str) -> None:
    if name in KUBERAY:
        assert cluster_spec(name)["authOptions"] == {"mode": "token"}
    else:
        assert head_environment(name)["RAY_AUTH_MODE"] == "token"
    text = (CLUSTER / name).read_text()
    assert not [
        word for word in ("AKIA", "PRIVATE KEY", "secret_access_key", "password", "RAY_AUTH_TOKEN=") if word in text
    ]


def test_the_wheel_ships_all_files() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cluster"]
    shipped = {path for pattern in patterns for path in CLUSTER.glob(pattern)}
    files = {path for path in CLUSTER.iterdir() if path.is_file() and path.suffix not in (".py", ".md")}
    assert files == shipped


# `ray up` ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_up_accepts_the_file(name: str) -> None:
    config = as_ray_reads_it(load(name))
    workers = [kind for kind in config["available_node_types"].values() if kind["max_workers"]]
    assert workers
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in workers)


@pytest.mark.parametrize("name", LAUNCHER)
def test_hosts_get_the_token_and_the_whole_package(name: str) -> None:
    mounts = load(name)["file_mounts"]
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    local = [path for path in mounts.values() if not path.startswith("~")]
    assert all((ROOT / path).exists() for path in local)
    assert {"pyproject.toml", "README.md", "trainers", "tune_spaces", "cluster"} <= set(local)
    assert any(line.endswith("pip install --quiet ~/trainyard") for line in load(name)["setup_commands"])


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_versions_of_python_and_ray_are_those_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert any(need.startswith("ray[default,train,tune]>=2.60") for need in project["dependencies"])
    image = load(name)["docker"]["image"]
    assert image == "rayproject/ray:2.60.0-py311-gpu"
    assert f"FROM {image}" in (CLUSTER / "Dockerfile").read_text()
    assert cluster_spec("kuberay-job.yaml")["rayVersion"] == "2.60.0"


def test_the_head_on_premises_listens_at_the_address_that_workers_use() -> None:
    config = load("onprem.yaml")
    assert f"--node-ip-address={config['provider']['head_ip']} " in config["head_start_ray_commands"][0]
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])
    assert "Restart=always" in unit()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    ray = tmp_path / "trainyard-venv" / "bin" / "ray"
    ray.parent.mkdir(parents=True)
    ray.symlink_to("/bin/true")
    shutil.copy(CLUSTER / "trainyard-ray.service", tmp_path)
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    verify = ["systemd-analyze", "--user", "verify", str(tmp_path / "trainyard-ray.service")]
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")


# KubeRay -------------------------------------------------------------------------------------------------------


def cluster_spec(name: str) -> Any:
    spec = load(name)["spec"]
    return spec if name == "kuberay-cluster.yaml" else spec["rayClusterSpec"]


def pod(group: Any) -> Any:
    return group["template"]["spec"]["containers"][0]


def test_the_two_kuberay_files_describe_the_same_cluster() -> None:
    kinds = [(load(name)["apiVersion"], load(name)["kind"]) for name in KUBERAY]
    assert kinds == [("ray.io/v1", "RayCluster"), ("ray.io/v1", "RayJob")]
    assert cluster_spec(KUBERAY[0]) == cluster_spec(KUBERAY[1])


def test_pods_have_the_fields_that_kuberay_requires() -> None:
    spec = cluster_spec("kuberay-cluster.yaml")
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert pod(head)["name"] == "ray-head"
    assert {port["name"]: port["containerPort"] for port in pod(head)["ports"]} == {
        "gcs-server": 6379,
        "dashboard": 8265,
    }
    assert pod(workers)["name"] == "ray-worker"
    assert pod(head)["image"] == pod(workers)["image"]
    for group in (head, workers):
        volumes = {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in pod(group)["volumeMounts"]} == volumes
        assert pod(group)["resources"]["requests"] == pod(group)["resources"]["limits"]
    assert pod(workers)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["enableInTreeAutoscaling"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_a_kuberay_job_continues_its_run_on_a_new_cluster() -> None:
    spec = load("kuberay-job.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert "--run " in spec["entrypoint"]


# Scripts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_shellcheck_finds_nothing(name: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / name)], check=True)
    done = subprocess.run([BIN / "shellcheck", str(CLUSTER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Runs its command once a task, each a process of this machine, and passes signals on.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && count=${1#*=}; shift; done
tasks=()
trap 'kill -TERM "${tasks[@]}"; wait; exit 143' TERM
for ((task = 0; task < count; task++)); do
  SLURM_PROCID=$task SLURM_CPUS_ON_NODE=1 "$@" &
  tasks+=($!)
done
wait
"""
HOSTNAME = "#!/bin/sh\necho 'fd00::2 127.0.0.1 203.0.113.9'\n"
# Writes down how it was called. A worker that comes before the head is refused, as by the real one.
RAY = """#!/usr/bin/env bash
if [ "$1" = get-auth-token ]; then
  [ -z "${RAY_AUTH_TOKEN_PATH:-}" ] || exit 1
  mkdir -p "$HOME/.ray"; echo abc > "$HOME/.ray/auth_token"; exit
fi
echo "$SLURM_PROCID $RAY_AUTH_MODE $(cat "$RAY_AUTH_TOKEN_PATH") $RAY_health_check_period_ms $*" >> "$NOTES/calls"
if [ "$SLURM_PROCID" = 0 ]; then sleep 0.3; touch "$NOTES/head"; elif [ ! -e "$NOTES/head" ]; then exit 1; fi
touch "$NOTES/joined.$SLURM_PROCID"
exec sleep 1000
"""
RAY_MODULE = """import os
from pathlib import Path
def is_initialized(): return False
def init(**_): assert os.environ["RAY_ADDRESS"]
def nodes(): return [{"Alive": True} for _ in Path(os.environ["NOTES"]).glob("joined.*")]
"""


def slurm_environment(folder: Path, job: int) -> dict[str, str]:
    """That of a batch script on the first of two nodes, with the stub scheduler in front."""
    stubs = folder / "bin"
    stubs.mkdir(parents=True, exist_ok=True)
    for name, text in {"srun": SRUN, "hostname": HOSTNAME}.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    environment |= {"HOME": str(folder), "PATH": f"{stubs}:{BIN}:{os.environ['PATH']}"}
    return {**environment, "SLURM_JOB_ID": str(job), "SLURM_JOB_NUM_NODES": "2"}


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two nodes with a stub of Ray. In the end nothing of the job is left."""
    environment = {**slurm_environment(tmp_path, job=os.getpid()), "NOTES": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    (tmp_path / "bin" / "ray").write_text(RAY)
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / "ray.py").write_text(RAY_MODULE)
    yield environment
    assert_nothing_is_left(environment)


def start(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    batch = ["bash", str(CLUSTER / "slurm.sh"), *command]
    return subprocess.Popen(batch, env=environment, cwd=ROOT, start_new_session=True, **pipes)


def assert_nothing_is_left(environment: dict[str, str]) -> None:
    job = environment["SLURM_JOB_ID"]
    assert not list((Path(environment["HOME"]) / ".trainyard").iterdir())
    assert not Path(f"/tmp/ty{job}").exists()
    limit = time.monotonic() + 60
    while (left := processes(job)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left


def processes(job: str) -> list[str]:
    """Command lines of those that carry a job's number in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_slurm_starts_a_head_and_workers_before_the_command(allocation: dict[str, str], tmp_path: Path) -> None:
    see = 'ls "$NOTES"/joined.*; stat -c %a "$RAY_AUTH_TOKEN_PATH"; stat -c %a "$RAY_TEMP"; echo "$RAY_ADDRESS"; exit 7'
    process = start(allocation, "bash", "-c", see)
    out, _ = process.communicate(timeout=900)
    port = 20000 + os.getpid() % 1200 * 10
    assert process.returncode == 7
    assert out.splitlines()[-5:] == [
        f"{tmp_path}/joined.0",
        f"{tmp_path}/joined.1",
        "600",
        "700",
        f"127.0.0.1:{port}",
    ]
    calls = (tmp_path / "calls").read_text().splitlines()
    (head,) = [call for call in calls if call.startswith("0 ")]
    workers = [call for call in calls if call.startswith("1 ")]
    assert len(workers) >= 2  # refused before the head was there
    assert all(" token abc 1000 start --block " in call for call in calls)
    assert f"--head --node-ip-address=127.0.0.1 --port={port} " in head
    assert f"--address=127.0.0.1:{port} --num-cpus=1 --num-gpus=0 " in workers[-1]


def test_a_signal_reaches_the_command_and_leaves_it_time_to_save(allocation: dict[str, str], tmp_path: Path) -> None:
    save = 'trap "sleep 0.5; touch $NOTES/saved; exit 130" TERM; touch "$NOTES/running"; while :; do sleep 0.1; done'
    process = start(allocation, "bash", "-c", save)
    while not (tmp_path / "running").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
    process.communicate(timeout=900)
    assert process.returncode == 130
    assert (tmp_path / "saved").exists()


def test_a_signal_before_the_command_ends_the_job(allocation: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bin" / "ray").write_text(RAY.replace('touch "$NOTES/joined', 'true "$NOTES/joined'))
    process = start(allocation, "touch", str(tmp_path / "ran"))
    while not (tmp_path / "head").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=900)
    assert process.returncode != 0
    assert not (tmp_path / "ran").exists()


def test_slurm_refuses_to_run_outside_of_a_job_or_without_a_command() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    for arguments, job in ((["true"], {}), ([], {"SLURM_JOB_ID": "1"})):
        process = start({**environment, **job}, *arguments)
        out, _ = process.communicate(timeout=900)
        assert (process.returncode, out.split(":")[0]) == (2, "usage")


@pytest.mark.slow
@pytest.mark.ray
def test_slurm_trains_on_a_real_ray_of_two_nodes(tmp_path: Path) -> None:
    environment = {
        **slurm_environment(tmp_path, job=os.getpid()),
        "PYTHONPATH": str(ROOT),
        "SLURM_MEM_PER_NODE": "1000",
    }
    train = ["python", "-m", "trainers", "train", "digits.cnn", "--epochs", "1", "--workers", "2", "--run", "two"]
    process = start(environment, *train, "--storage", str(tmp_path / "runs"))
    try:
        out, _ = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "2 of 2 nodes have joined" in out
    run = json.loads((tmp_path / "runs" / "two" / "run.json").read_text())
    assert (run["status"], run["epochs_run"], run["scale"]["workers"]) == ("finished", 1, 2)
    assert_nothing_is_left(environment)


def start_locally(tmp_path: Path, *flags: str) -> tuple[dict[str, str], str]:
    """What local.sh gives a stub of `ray start` (flag -> value), and what it says."""
    (tmp_path / "home/.ray").mkdir(parents=True)
    (tmp_path / "home/.ray/auth_token").write_text("secret")
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(CLUSTER / "local.sh"), *flags]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True, timeout=900)
    given = [word.removeprefix("--").partition("=") for word in done.stdout.split() if "=" in word]
    return {name: value for name, _, value in given}, done.stderr


def test_a_local_cluster_beside_another_ray_takes_free_ports_and_names_its_address(tmp_path: Path) -> None:
    taken = {"port": 6379, "dashboard-port": 8265, "ray-client-server-port": 10001}
    with contextlib.ExitStack() as stack:
        for port in taken.values():
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # another program has it already
                listener.bind(("127.0.0.1", port))
                listener.listen()
        flags, said = start_locally(tmp_path)
        for name, port in taken.items():
            assert int(flags[name]) != port
            with socket.socket() as free:
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                free.bind(("127.0.0.1", int(flags[name])))
    assert flags["dashboard-agent-listen-port"] == "0"  # Ray takes a free one
    assert int(flags["ray-client-server-port"]) < 10002  # where the ports of Ray's workers begin
    assert f"--address 127.0.0.1:{flags['dashboard-port']}" in said


def test_ports_that_are_given_to_a_local_cluster_hold(tmp_path: Path) -> None:
    wanted = {"port": "6401", "dashboard-port": "8401", "dashboard-agent-listen-port": "8402"}
    flags, said = start_locally(tmp_path, *(f"--{name}={port}" for name, port in wanted.items()))
    assert wanted.items() <= flags.items()
    assert said == ""
