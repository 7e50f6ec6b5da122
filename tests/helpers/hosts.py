"""Several hosts on one machine: Linux namespaces, each with its own network address, host name, processes, /dev/shm
and view of the file system, joined by a switch. Needs root.

A host is one process, the first of its process namespace: killing it ends everything on the host, as a lost machine
would, and it ends by itself when the process that made it does.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from helpers.object_store import CREDENTIALS
from helpers.small import last_weights

from trainers.storage.store import Store
from trainers.training.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]
PORT, DASHBOARD = 6379, 8265
SWITCH = "10.77.0.1"
"""The address of the switch, where servers for all hosts may listen."""
STORE_PORT = 9000
STORE = f"s3://runs/team?endpoint_override=http://{SWITCH}:{STORE_PORT}&region=us-east-1"
"""A folder of the object store on the switch, whose keys are in every host's home."""
HEALTH = {  # as the cluster shapes set it: a host that hangs is noticed after 12 s
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
SECONDS, TRAINING_SECONDS = 600, 900
ON_DISK = ["--cpus-per-worker", "1", "--resources", "disk=1"]
IN_STORE = ["--cpus-per-worker", "1", "--resources", "store=1"]
"""One worker on a host."""
_MAKE_BUCKET = f"""
import time, urllib.request
for _ in range(100):
    try:
        urllib.request.urlopen(urllib.request.Request("http://{SWITCH}:{STORE_PORT}/runs", method="PUT"))
        break
    except OSError:
        time.sleep(0.3)
"""
_FETCH = """
import sys
from trainers.storage.store import Store

run, here = Store(sys.argv[1]) / sys.argv[2], Store(sys.argv[3])
for name in ("run.json", "metrics.jsonl"):
    here.write(name, run.read(name))
for step in (run / "checkpoints").names():
    for name in (run / "checkpoints" / step).names():
        (here / "checkpoints" / step).write(name, (run / "checkpoints" / step).read(name))
"""
_DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
"""Not even a test run that is killed leaves anything behind."""


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    probe = "ip link add br0 type bridge && mount -t tmpfs tmpfs /dev/shm"
    command = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"namespaces cannot be made here: {error}"
    return f"namespaces cannot be made here: {done.stderr.strip()}" if done.returncode else None


class Host:
    """A machine of its own, as its processes see it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        """Boot a host; `folder` holds its home, its log, and what Ray keeps while it runs."""
        self.name, self.address, self.folder = name, address, folder
        self.home, self.ray_folder = folder / "home", folder / "ray"
        for path in (self.home, self.ray_folder):
            path.mkdir(parents=True, exist_ok=True)
        self.boot()

    def boot(self) -> None:
        """Switch it on."""
        setup = [
            f"hostname {self.name}",
            "mount -t tmpfs -o size=2g tmpfs /dev/shm",
            "mkdir -p /tmp/ray",
            f"mount --bind {shlex.quote(str(self.ray_folder))} /tmp/ray",
            "ip link set lo up",
            # The first process takes in the orphans: they are not to stay as zombies.
            "trap '' HUP; while :; do sleep 1000 & wait; done",
        ]
        flags = "--net --mount --uts --pid --fork --kill-child --mount-proc".split()
        self._outer = subprocess.Popen([*_DIES_WITH_US, "unshare", *flags, "bash", "-c", "; ".join(setup)])
        self.pid = _first_child(self._outer.pid)

    def down(self) -> None:
        """Power off: all its processes are killed at once."""
        self._outer.kill()
        self._outer.wait()

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` on this host."""
        return ["nsenter", "-t", str(self.pid), "--net", "--mount", "--uts", "--pid", "--", *command]

    def start(self, *command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> subprocess.Popen[str]:
        """Start a command on this host; it dies with the caller."""
        pipe = subprocess.PIPE
        words = ["env", *(f"{name}={value}" for name, value in self.environment(env).items()), *command]
        words = ["sh", "-c", f"cd {shlex.quote(str(cwd))} && exec {shlex.join(words)}"]
        words = [*_DIES_WITH_US, *self.enter(*_DIES_WITH_US, *words)]  # nsenter forks: both halves
        return subprocess.Popen(words, text=True, stdout=pipe, stderr=pipe)

    def run(self, *command: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
        """Run a command on this host to its end; returns what it printed."""
        process = self.start(*command, env=env, cwd=cwd)
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        assert process.returncode == 0, f"{shlex.join(command)} on {self.name}: {out}{err}"
        return out

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        own = {
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "RAY_AUTH_MODE": "token",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `python` of jobs
            "OMP_NUM_THREADS": "1",
        }
        return {**own, **(more or {})}

    def hide(self, path: Path) -> None:
        """An empty folder of its own in place of `path`."""
        self.run("mount", "-t", "tmpfs", "tmpfs", str(path), cwd=Path("/"))

    def resolve_to_loopback(self) -> None:
        """Its own name becomes 127.0.0.1, as /etc/hosts of many machines says."""
        own = self.folder / "hosts"
        own.write_text(f"127.0.0.1 localhost {self.name}\n")
        self.run("mount", "--bind", str(own), "/etc/hosts", cwd=Path("/"))

    def freeze(self) -> None:
        """It hangs: every process stops, no connection closes."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def processes(self) -> list[int]:
        """Process numbers, as this machine counts them, of everything on the host but its first process."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/pid") == mine:
                    found.append(int(path.name))
            except OSError:
                continue
        return [number for number in found if number != self.pid]

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


class Hosts:
    """Some hosts on a switch of their own, with a Ray cluster: the first is its head."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder = folder
        flags = "--net --mount --uts --pid --fork --kill-child --mount-proc".split()
        command = [*_DIES_WITH_US, "unshare", *flags, "bash", "-c", "while :; do sleep 1000 & wait; done"]
        self._outer = subprocess.Popen(command)
        self._switch = _first_child(self._outer.pid)
        # Its own address: else it takes that of a port, and is not found for a while where that goes down.
        self._on_switch(
            "ip link add br0 address 02:00:00:00:00:01 type bridge",
            f"ip addr add {SWITCH}/24 dev br0",
            "ip link set br0 up",
        )
        self._on_switch("ip link set lo up")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._token = secrets.token_hex(32)
        self.all: list[Host] = []
        self.others: list[Host] = []
        self.trainings: list[Training] = []
        for index in range(count):
            self.all.append(self._add(f"host{index + 1}", f"10.77.0.{index + 11}"))
        self.head = self.all[0]

    def add_outsider(self) -> Host:
        """A machine on the same network, with the token, that runs no Ray."""
        self.others.append(self._add("outside", "10.77.0.100"))
        return self.others[-1]

    def _add(self, name: str, address: str) -> Host:
        host = Host(name, address, self.folder / name)
        token = host.home / ".ray" / "auth_token"
        token.parent.mkdir(exist_ok=True)
        token.write_text(self._token)
        token.chmod(0o600)
        (host.home / ".aws").mkdir()
        keys = [f"{name.lower()} = {value}" for name, value in CREDENTIALS.items()]
        (host.home / ".aws" / "credentials").write_text("\n".join(["[default]", *keys, ""]))
        self.plug(host)
        return host

    def plug(self, host: Host) -> None:
        """Connect a host that was booted."""
        port = f"to-{host.name}"
        subprocess.run(self._at_switch("ip", "link", "del", port), capture_output=True)  # of before it was down
        number = host.address.rsplit(".", 1)[1]  # the same card as before: others remember it
        card = f"address 02:00:00:00:00:{int(number):02x}"
        self._on_switch(f"ip link add {port} type veth peer name eth0 {card} netns {host.pid}")
        self._on_switch(f"ip link set {port} master br0 up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0", cwd=Path("/"))
        host.run("ip", "link", "set", "eth0", "up", cwd=Path("/"))

    def cut(self, host: Host) -> None:
        """Drop all traffic of this host; no side is notified."""
        self._on_switch(f"ip link set to-{host.name} nomaster")

    def fix(self, host: Host) -> None:
        self._on_switch(f"ip link set to-{host.name} master br0")

    def start_ray(self, host: Host, cpus: int = 1, *flags: str) -> None:
        """The head, or a worker that joins it."""
        own = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--disable-usage-stats", *flags]
        own += ["--object-store-memory=150000000"]
        if host is self.head:
            own += ["--head", f"--port={PORT}", f"--dashboard-host={host.address}", f"--dashboard-port={DASHBOARD}"]
        else:
            own += [f"--address={self.address}"]
        host.run("ray", "start", *own, env=HEALTH)

    def start_cluster(self, cpus: int = 1, *flags: str) -> None:
        """Ray on every host, now and whenever one comes back."""
        self._of_each = (cpus, *flags)
        for host in self.all:
            self.start_ray(host, *self._of_each)

    @property
    def address(self) -> str:
        """RAY_ADDRESS of a driver."""
        return f"{self.head.address}:{PORT}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.head.address}:{DASHBOARD}"

    def restart(self, host: Host) -> None:
        """A host that is down comes back, as a machine whose services start by themselves."""
        host.boot()
        self.plug(host)
        self.start_ray(host, *self._of_each)

    def start_store(self) -> str:
        """An object store on the switch, with an empty bucket; returns STORE."""
        server = f"from moto.server import main; main(['-H', '{SWITCH}', '-p', '{STORE_PORT}'])"
        enter = ["nsenter", "-t", str(self._switch), "--net", "--pid", "--mount", "--"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._servers.append(
            subprocess.Popen([*_DIES_WITH_US, *enter, *_DIES_WITH_US, sys.executable, "-c", server], **quiet)
        )
        self.head.run("python", "-c", _MAKE_BUCKET)
        return STORE

    def fetch(self, store: str, run: str, folder: Path) -> None:
        """Copy what matters of a run from the object store, which only the hosts reach, into a folder."""
        self.head.run("python", "-c", _FETCH, store, run, str(folder))

    def close(self) -> None:
        for host in (*self.all, *self.others):
            host.down()
        for training in self.trainings:
            training.kill()
        for process in (*self._servers, self._outer):
            process.kill()
            process.wait()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at_switch(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._switch), "--net", "--", *command]

    def _on_switch(self, *commands: str) -> None:
        for command in commands:
            subprocess.run(
                self._at_switch(*command.split()), check=True, capture_output=True, text=True, timeout=SECONDS
            )


class Training:
    """A `train` or `tune_spaces` command on the head, whose messages can be waited for; or as a job, submitted by
    another host."""

    def __init__(
        self,
        hosts: Hosts,
        storage: Path | str,
        run: str,
        *flags: str,
        command: Sequence[str] = ("trainers", "train", "digits.cnn"),
        env: Mapping[str, str] | None = None,
        submitted_by: Host | None = None,
    ) -> None:
        """Start the command.

        Args:
            hosts: A cluster that runs.
            storage: Of the run, as its hosts see it.
            run: Its name.
            *flags: Of the command.
            command: Module, subcommand, and recipe or space.
            env: Further variables; not of a job.
            submitted_by: The host that submits it as a job; None: the head runs it.
        """
        self.folder = Store(storage) / run
        command = ["python", "-m", *command, "--run", run, "--storage", str(storage), *flags]
        if submitted_by is None:
            self.process = hosts.head.start(*command, env={"RAY_ADDRESS": hosts.address, **(env or {})})
        else:
            submit = ["python", "-m", "cluster", "submit", "--address", hosts.dashboard, "--"]
            self.process = submitted_by.start(*submit, *command, cwd=submitted_by.home)
        self.lines: list[str] = []
        self._new: queue.Queue[str] = queue.Queue()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        hosts.trainings.append(self)

    def wait_for(self, text: str, seconds: float = TRAINING_SECONDS) -> str:
        """Until a new line has this text; returns it."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and not (self.process.poll() is not None and self._new.empty()):
            try:
                line = self._new.get(timeout=0.2)
            except queue.Empty:
                continue
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not printed within {seconds} s:\n" + "\n".join(self.lines))

    def wait_for_the_middle_of_an_epoch(self, steps: int) -> None:
        """Until a checkpoint lies there, where an epoch has so many steps."""
        checkpoints, limit = Checkpoints(self.folder), time.monotonic() + TRAINING_SECONDS
        while time.monotonic() < limit:
            if checkpoints.latest_step() % steps:
                return
            time.sleep(0.05)
        raise AssertionError("no checkpoint within an epoch was written:\n" + "\n".join(self.lines))

    def end(self, seconds: float = TRAINING_SECONDS, code: int = 0) -> str:
        """Wait for it, which must end with this exit code; returns all that it printed."""
        try:
            self.process.wait(seconds)
        finally:
            out = self.kill()
        printed = "\n".join([*self.lines, *self._new.queue, out])
        assert self.process.returncode == code, printed
        return printed

    def kill(self) -> str:
        """Returns what it printed, and closes its pipes; again, it does nothing."""
        self.process.kill()
        self._reading.join()
        return self.process.communicate()[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._new.put(line.rstrip())


def history(folder: Path | Store) -> list[dict[str, float]]:
    return [json.loads(line) for line in Store(folder).read("metrics.jsonl").splitlines()]


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """Equal up to rounding, which the number of workers changes; each sample of each epoch was counted once.

    In float64, 1e-16 has room to grow to 1e-6 over all steps of the run; a step that is lost or made twice moves
    weights by 1e-3.
    """
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "finished"
    weights, expected = last_weights(run), last_weights(undisturbed)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-8)
    seen = [round(line["images_per_second"] * line["seconds"]) for line in history(run)]
    assert seen == [1438] * info["recipe"]["epochs"]


def _first_child(pid: int) -> int:
    """The process that an unshare forked, once it has its namespaces."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if found and os.readlink(f"/proc/{found[0]}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            time.sleep(0.1)  # the host's own mounts
            return int(found[0])
        time.sleep(0.01)
    raise TimeoutError("no namespace was made")
