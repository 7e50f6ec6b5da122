"""Run a command on a cluster as if it ran here: its log, its run folder, its exit code.

    python -m cluster submit -- python -m trainers train digits.cnn --workers 2
    python -m cluster status | logs JOB | stop JOB

The current folder is uploaded, without data, runs and what .gitignore lists; so are Trainyard's own packages. Others
are installed for the job where the cluster lacks them. The log goes to stderr; the last line of stdout is the run
folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO
from urllib.parse import urlsplit

import tyro

from cluster.address import DEFAULT, job_server
from cluster.job_entrypoint import HAS, LACKS
from trainers.cli import cli
from trainers.formatting import check_is_path, format_duration, format_size
from trainers.progress import Progress
from trainers.runtime.addresses import use_token
from trainers.runtime.proxies import ask_directly

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.job_client import Client, Log, RuntimeEnvironment

USAGE = "usage: python -m cluster submit [--address URL] [--detach] -- COMMAND"
STOP_SECONDS = 60
"""A job that is stopped may take so long to write its checkpoint."""
INSTALL_SECONDS = 1800
FORWARDED = ("TRAINYARD_STORAGE", "TRAINYARD_CACHE")
INTERRUPTED = 130
WIDE = 140
"""Columns of a table that does not go to a terminal."""
ERROR_LINES = 10
COMMAND = "command"
"""Where a job's metadata holds what was submitted."""
# `python` is the cluster's: that on the PATH of `ray start` if it has Ray, else that of $PPID, a process of Ray's.
_START = r"""
python -c 'import importlib.util as u; raise SystemExit(u.find_spec("ray") is None)' 2>/dev/null || {
  bin="$(sed -n 's|.* \(/.*\)/lib[0-9]*/python[^/]*/site-packages/ray/_raylet.so$|\1/bin|p' "/proc/$PPID/maps")"
  [ -z "$bin" ] || PATH="$(echo "$bin" | head -n 1):$PATH"
}
exec python -m cluster.job_entrypoint "$@"
"""


@dataclass(frozen=True, kw_only=True)
class _Address:
    address: str | None = None
    """The head's dashboard, such as http://head:8265. None: $RAY_API_SERVER_ADDRESS, else that of this machine."""


@dataclass(frozen=True, kw_only=True)
class _Submit(_Address):
    """Run a command on a cluster, as if it ran here: python -m cluster submit [...] -- COMMAND."""

    detach: bool = False
    """Print the job's name once it runs, and do not wait for its end."""


@dataclass(frozen=True, kw_only=True)
class _Job(_Address):
    """A job of the cluster."""

    job: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JOB")]
    """Its name, as `submit` and `status` print it."""


@dataclass(frozen=True, kw_only=True)
class _Jobs(_Address):
    """The jobs of the cluster."""

    job: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="JOB")] = None
    """The name of one. None: all, in a table."""


# Commands ------------------------------------------------------------------------------------------------------


def submit(argv: list[str]) -> int:
    """Run a command on the cluster.

    Args:
        argv: The words after `submit`.

    Returns:
        The command's exit code; 0 with --detach.

    Raises:
        ValueError: A flag or the command is not allowed, the folder is too large, or the token is refused.
        ConnectionError: The cluster does not answer.
    """
    cut = argv.index("--") if "--" in argv else len(argv)
    options = cli(_Submit, argv[:cut], "python -m cluster submit")
    words = argv[cut + 1 :]
    if not words:
        raise ValueError(f"submit needs a command; {USAGE}")
    _refuse_what_stays_here(words)
    client, progress, folder = _connect(options.address), Progress(), Path.cwd()
    environment = _environment(folder, progress)
    from cluster.upload import requirements

    needs = {"TRAINYARD_NEEDS": json.dumps(requirements(folder))}
    checked: RuntimeEnvironment = {**environment, "env_vars": {**environment["env_vars"], **needs}}
    job, log, details = _run(client, words, checked, progress, options.detach)
    if missing := _missing(log):
        _discard(client, job, missing)
        progress.message(
            f"the cluster lacks {', '.join(missing)}: installed for this job alone, which takes minutes the first time "
            "(runtime_env_agent.log on the head says more)"
        )
        installing: RuntimeEnvironment
        installing = {**environment, "pip": missing, "config": {"setup_timeout_seconds": INSTALL_SECONDS}}
        job, log, details = _run(client, words, installing, progress, options.detach)
    if details is None:
        progress.message(_how(client, job))
        print(job)
        return 0
    return _end(job, details, log, words, progress)


def logs(argv: list[str]) -> int:
    """Print a job's log, to its end if it still runs.

    Args:
        argv: The words after `logs`.

    Returns:
        The job's exit code.

    Raises:
        ValueError: There is no such job, or the token is refused.
        ConnectionError: The cluster does not answer.
    """
    options = cli(_Job, argv, "python -m cluster logs")
    client, progress = _connect(options.address), Progress()
    from cluster.job_client import Log

    client.get_job_info(options.job)
    details = _watch(client, options.job, Log(lambda line: _show(line, sys.stdout)), progress, lambda: False)
    assert details is not None
    return _code(details)


def stop(argv: list[str]) -> int:
    """Stop a job, with time to write its checkpoint.

    Args:
        argv: The words after `stop`.

    Returns:
        0; 1 where it still runs.

    Raises:
        ValueError: There is no such job, or the token is refused.
        ConnectionError: The cluster does not answer.
    """
    options = cli(_Job, argv, "python -m cluster stop")
    client, progress = _connect(options.address), Progress()
    details = client.get_job_info(options.job)
    if not details.status.is_terminal():
        client.stop_job(options.job)
        limit = time.monotonic() + STOP_SECONDS + 15
        with progress.waiting(f"{options.job} may take {STOP_SECONDS} s to write its checkpoint"):
            while not (details := client.get_job_info(options.job)).status.is_terminal() and time.monotonic() < limit:
                time.sleep(0.5)
    progress.message(f"{options.job}: {_outcome(details)}")
    return int(not details.status.is_terminal())


def status(argv: list[str]) -> int:
    """Print the cluster's jobs, or one of them.

    Args:
        argv: The words after `status`.

    Returns:
        0.

    Raises:
        ValueError: There is no such job, or the token is refused.
        ConnectionError: The cluster does not answer.
    """
    options = cli(_Jobs, argv, "python -m cluster status")
    client = _connect(options.address)
    if options.job is None:
        _print_table(job for job in client.list_jobs() if job.submission_id)
        return 0
    details = client.get_job_info(options.job)
    facts = {"job": options.job, "status": _outcome(details), "started": _started(details), "took": _took(details)}
    for name, value in {**facts, "command": _command(details)}.items():
        print(f"{name:10} {value}")
    if details.status == "FAILED":
        print("\n".join(["", *last_errors(str(details.message).splitlines())]))
    return 0


# What is sent --------------------------------------------------------------------------------------------------


def _connect(given: str | None) -> Client:
    address = job_server(given)
    ask_directly(urlsplit(address).hostname)
    use_token()
    from cluster.job_client import Client

    return Client(address)


def _refuse_what_stays_here(words: Sequence[str]) -> None:
    """Raises ValueError for a relative path: it would mean a temporary folder on the head. And for a password."""
    flags = {
        "--data": ("the raw data is not uploaded", "/shared/photos"),
        "--storage": ("the runs would be lost with the job's own folder", "/shared/trainyard or s3://bucket/trainyard"),
    }
    ours = {"trainers", "tune_spaces", "cluster"} & set(words)
    for flag, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = flag.partition("=")
        value = value or following
        if name == "--data" and ours:
            check_is_path(name, value)
        if name in flags and not re.match(r"/|~|\w+://", value):
            why, example = flags[name]
            raise ValueError(
                f"{name} {value} is relative to this folder, and {why}; give the path at which every host of the "
                f"cluster finds it, such as {example}"
            )
    for text in (*words, *(os.environ.get(name, "") for name in FORWARDED)):
        if re.search(r"\w+://[^/\s]*:[^/\s]*@", text):
            raise ValueError(
                "an address holds a password, which everybody who sees the cluster's jobs could read; leave it out, "
                "and give the hosts of the cluster their credentials themselves (a role, or their environment)"
            )


def _environment(folder: Path, progress: Progress) -> RuntimeEnvironment:
    """Files, packages of ours, variables. Raises ValueError."""
    from cluster.upload import WARN_BYTES, measure, modules, refuse_what_is_too_large

    upload = measure(folder)
    refuse_what_is_too_large(upload)
    if upload.size > WARN_BYTES:
        progress.warning(f"{format_size(upload.size)} of {folder} are uploaded; the largest: {upload.largest}")
    variables = {name: os.environ[name] for name in FORWARDED if os.environ.get(name)}
    # The process that watches the job on the head reads how long it may take to stop.
    variables |= {"NO_COLOR": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "TRAINYARD_START": _START}
    sent: RuntimeEnvironment
    sent = {"working_dir": str(folder), "excludes": list(upload.excludes), "env_vars": variables}
    if ours := [str(path) for path in modules(folder)]:  # Ray fails over an empty list
        sent["py_modules"] = ours
    return sent


def _run(
    client: Client, words: Sequence[str], environment: RuntimeEnvironment, progress: Progress, detach: bool
) -> tuple[str, Log, JobDetails | None]:
    """Start a job and follow it: to its end, or until its command starts. Returns its name, log and details."""
    from cluster.job_client import Log

    job = f"job-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with progress.waiting(f"sending {job} to {client.where}"):
        command = f'exec sh -c "$TRAINYARD_START" trainyard {shlex.join(words)}'
        client.send(job, command, environment, {COMMAND: shlex.join(words)})
    progress.message(f"{job} is at {client.where}")
    log = Log(lambda line: _show(line, sys.stderr))
    return job, log, _watch(client, job, log, progress, lambda: detach and _missing(log) is not None)


def _missing(log: Log) -> list[str] | None:
    """The packages that the cluster lacks; None: the log does not say yet."""
    for line in log.lines:
        if line.startswith(LACKS):
            return [str(need) for need in json.loads(line.removeprefix(LACKS))]
        if line == HAS:
            return []
    return None


def _discard(client: Client, job: str, missing: Sequence[str]) -> None:
    """Forget the job that found packages missing. Raises ValueError where they cannot be installed for a job."""
    with contextlib.suppress(OSError):
        client.delete_job(job)
    if rays := [need for need in missing if re.match(r"ray\b(?!-)", need)]:
        raise ValueError(f"the cluster runs another Ray than {rays[0]}; install that on its hosts, and restart it")


# What comes back -----------------------------------------------------------------------------------------------


def _watch(client: Client, job: str, log: Log, progress: Progress, enough: Callable[[], bool]) -> JobDetails | None:
    """Follow a job. Ctrl-C asks whether to stop it. Returns its details at its end; None: `enough` came first."""
    from cluster.job_client import UnknownJob, follow

    try:
        return follow(client, job, log, progress, enough)
    except UnknownJob:
        raise ConnectionError(
            f"the cluster at {client.where} does not know {job} any more: its head was restarted, which ended the job; "
            "submit the same command with the same --run to continue from its last checkpoint"
        ) from None
    except ConnectionError as error:
        raise ConnectionError(f"{error}; {job} may still run; {_how(client, job)}") from None
    except KeyboardInterrupt:
        if not _is_to_be_stopped(job):
            progress.message(f"{job} continues; {_how(client, job)}")
            raise
    client.stop_job(job)
    progress.message(f"{job} may take {STOP_SECONDS} s to write its checkpoint...")
    return follow(client, job, log, progress)


def _is_to_be_stopped(job: str) -> bool:
    """Ask, where there is a terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"\nstop {job}? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes", "s", "stop")
    except KeyboardInterrupt:
        return False


def _how(client: Client, job: str) -> str:
    where = "" if client.where == DEFAULT else f" --address {client.where}"
    return f"to follow: python -m cluster logs {job}{where}; to stop: python -m cluster stop {job}{where}"


def _end(job: str, details: JobDetails, log: Log, words: Sequence[str], progress: Progress) -> int:
    """Say how it ended; the run folder goes to stdout. Returns the exit code."""
    code = _code(details)
    if details.status == "FAILED":
        lines = log.lines if details.driver_exit_code is not None else str(details.message).splitlines()
        progress.message(f"error: {job} {_outcome(details)}; its last lines:")
        for line in last_errors(lines):
            progress.message(f"  {line}")
    else:
        progress.message(f"{job}: {_outcome(details)}")
    folder = run_folder(log.lines)
    if folder and ("train" in words or "tune_spaces" in words):
        storage = folder.partition("?")[0].rstrip("/").rpartition("/")[0]
        progress.message(f"to see the runs, where {storage} can be read: tensorboard --logdir {storage}")
    if folder:
        print(folder)
    return code


def _code(details: JobDetails) -> int:
    """The exit code of a job that is over, as a shell would have it."""
    if details.status == "STOPPED":
        return INTERRUPTED
    if details.status == "SUCCEEDED":
        return 0
    code = int(details.driver_exit_code or 1)
    return 128 - code if code < 0 else code


def run_folder(lines: Iterable[str]) -> str | None:
    """The path or URI that a command's output ends with."""
    for line in list(filter(str.strip, lines))[-3:][::-1]:
        if re.match(r"/|[a-z0-9]+://", line) and ": " not in line:
            return line.strip()
    return None


def last_errors(lines: Iterable[str]) -> list[str]:
    """The lines of a log, from its last error on; without one, the last."""
    said = [line for line in lines if line.strip() and not line.startswith((HAS, LACKS))]
    errors = [place for place, line in enumerate(said) if re.match(r"error: |[\w.]*(Error|Exception)\b", line.strip())]
    return said[errors[-1] :][:ERROR_LINES] if errors else said[-ERROR_LINES:]


def _show(line: str, stream: TextIO) -> None:
    if not line.startswith((HAS, LACKS)):
        print(line, file=stream, flush=True)


def _print_table(jobs: Iterable[JobDetails]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("job", "status", "started", "took", "command"):
        table.add_column(column, no_wrap=column != "command")
    for job in sorted(jobs, key=lambda job: job.start_time or 0, reverse=True):
        table.add_row(job.submission_id, _outcome(job), _started(job), _took(job), escape(_command(job)))
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def _outcome(details: JobDetails) -> str:
    """The status for people."""
    code = f" with exit code {details.driver_exit_code}" if details.driver_exit_code else ""
    return f"{details.status.value.lower()}{code}"


def _command(details: JobDetails) -> str:
    return str((details.metadata or {}).get(COMMAND, details.entrypoint))


def _started(details: JobDetails) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(details.start_time / 1000)) if details.start_time else ""


def _took(details: JobDetails) -> str:
    if not details.start_time:
        return ""
    return format_duration(((details.end_time or time.time() * 1000) - details.start_time) / 1000)
