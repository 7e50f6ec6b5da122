"""Jobs on a Ray cluster: Ray's job client with time limits, plain error messages, and a log that is not lost."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NotRequired, TypedDict, cast
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from trainers.progress import Progress
from trainers.runtime.addresses import token_origin
from trainers.runtime.proxies import proxy_of
from trainers.runtime.ray_internals import JOB_LOG_LINES, JOB_LOGGERS, JobClientHooks, is_known_job, lacks_agent

CONNECT_SECONDS, VERSION_SECONDS, ANSWER_SECONDS, UPLOAD_SECONDS = 5.0, 10.0, 60.0, 1800.0
START_SECONDS = 60.0
"""A cluster that has just been started may need so long to take jobs."""
SILENT_SECONDS = 60.0
"""A connection that brings no log for so long may be dead without a sign: it is opened again."""
PATIENCE_SECONDS = 600.0
"""An address that does not answer is retried for so long."""
RETRY_SECONDS, POLL_SECONDS = 2.0, 0.3
KEPT_LINES = 200

for _talkative in (*JOB_LOGGERS, "ray"):
    logging.getLogger(_talkative).setLevel(logging.ERROR)


class UnknownJob(ValueError):
    """The cluster has no job of that name."""


class RefusedRequest(OSError):
    """The cluster answers, but refuses the request."""


class RuntimeEnvironment(TypedDict):
    """Ray's runtime environment of a job."""

    working_dir: str
    excludes: list[str]
    env_vars: dict[str, str]
    py_modules: NotRequired[list[str]]
    pip: NotRequired[list[str]]
    config: NotRequired[dict[str, int]]


class Client(JobClientHooks, JobSubmissionClient):
    """Ray's job client, whose requests end in time and whose errors say what is wrong.

    Its methods raise ConnectionError where nothing answers, RefusedRequest, UnknownJob, and ValueError where the token
    is refused.
    """

    def __init__(self, address: str) -> None:
        """Connect to a cluster.

        Args:
            address: Of its dashboard, as in http://host:8265.

        Raises:
            ValueError: Something else than Ray answers, or the token cannot be used.
            ConnectionError: Nothing answers.
        """
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # counts more for Ray than the argument, as RAY_ADDRESS does
        self.where = address
        try:
            super().__init__(address)
            self.verify_certificates()
        except (RuntimeError, requests.RequestException, KeyError):
            raise ValueError(
                f"what answers at {address} is not the job server of a Ray cluster; "
                f"give the address of the head's dashboard, as in --address http://HEAD:8265{_by_proxy(address)}"
            ) from None
        except AuthenticationError as error:
            raise ValueError(f"Ray's token cannot be used: {str(error).splitlines()[0]}") from None

    def request(self, send: Callable[..., requests.Response], method: str, endpoint: str) -> requests.Response:
        # The limit to connect is also that for sending the whole body.
        answer = VERSION_SECONDS if endpoint == "/api/version" else ANSWER_SECONDS
        limits = UPLOAD_SECONDS if method == "PUT" else (CONNECT_SECONDS, answer)
        try:
            return send(timeout=limits)
        except AuthenticationError:
            origin = token_origin()
            tried = f"the token of {origin}" if origin else "a request without a token"
            raise ValueError(
                f"the cluster at {self.where} refuses {tried}; copy ~/.ray/auth_token of its head to ~/.ray/auth_token "
                "here (chmod 600), or set RAY_AUTH_TOKEN_PATH to such a file"
            ) from None
        except (requests.ConnectionError, requests.Timeout) as error:
            raise ConnectionError(
                f"no Ray cluster answers at {self.where} ({_cause(error)}); is it up, and is this the address of its "
                "dashboard? From outside the cluster: ssh -N -L 8265:127.0.0.1:8265 HEAD, and no --address"
                f"{_by_proxy(self.where)}"
            ) from None

    def refuse(self, response: requests.Response) -> None:
        if response.status_code == 404:
            raise UnknownJob(f"the cluster at {self.where} has no such job; python -m cluster status lists its jobs")
        raise RefusedRequest(
            f"the cluster at {self.where} answers {response.status_code}: {_last_line(response.text)}"
            f"{_by_proxy(self.where)}"
        )

    def send(self, job: str, command: str, environment: RuntimeEnvironment, metadata: Mapping[str, str]) -> None:
        """Upload what a job needs and start it; one whose answer got lost is not started twice.

        Args:
            job: Its name.
            command: Its shell command.
            environment: What is uploaded and set for it.
            metadata: Kept with the job.

        Raises:
            RefusedRequest: The cluster does not take the job.
            ConnectionError: Nothing answers.
        """
        limit = time.monotonic() + START_SECONDS
        while True:
            try:
                self.submit_job(
                    entrypoint=command, submission_id=job, runtime_env={**environment}, metadata=dict(metadata)
                )
                return
            except (RefusedRequest, ConnectionError) as error:
                if is_known_job(str(error), job):
                    return
                no_agent = lacks_agent(str(error))
                if time.monotonic() > limit and no_agent:
                    raise RefusedRequest(
                        f"the head at {self.where} runs no dashboard agent, which starts jobs; is its port taken? Give "
                        "ray start --dashboard-agent-listen-port another, and see dashboard_agent.log"
                    ) from None
                if time.monotonic() > limit or not (no_agent or isinstance(error, ConnectionError)):
                    raise
            time.sleep(RETRY_SECONDS)


class Log:
    """What a job has written so far; each line is shown once, however often it is received."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        """The last ones."""
        self._show = show
        self._seen = 0
        self._line = ""

    def take(self, start: int, text: str) -> int:
        """Take a part of the log.

        Args:
            start: Its position in the log, in characters.
            text: The part.

        Returns:
            Where it ends.
        """
        end = start + len(text)
        *lines, self._line = (self._line + text[max(0, self._seen - start) :]).split("\n")
        self._seen = max(self._seen, end)
        for line in lines:
            self._put(line)
        return end

    def close(self) -> None:
        """The last line may have no end."""
        line, self._line = self._line, ""
        if line:
            self._put(line)

    def _put(self, line: str) -> None:
        if not any(own in line for own in JOB_LOG_LINES):
            self.lines.append(line)
            self._show(line)


def follow(
    client: Client, job: str, log: Log, progress: Progress, enough: Callable[[], bool] = lambda: False
) -> JobDetails | None:
    """Show the log of a job; connections may break.

    Args:
        client: Of its cluster.
        job: Its name.
        log: Takes what the job writes.
        progress: Shows what is waited for.
        enough: Whether to end before the job does.

    Returns:
        The job's details at its end; None: `enough` came first.

    Raises:
        UnknownJob: The cluster does not have it (any more).
        ConnectionError: The cluster has not answered for long.
    """
    lost: float | None = None
    while not enough():
        try:
            details = client.get_job_info(job)
            if lost is not None:
                lost = None
                progress.message("connected again")
            if details.status.is_terminal():
                log.take(0, client.get_job_logs(job))
                log.close()
                return details
            _show_more(client, job, log, progress, details.status, enough)
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if lost is None:
                lost = time.monotonic()
                cause = _last_line(error).partition("; ")[0]
                progress.warning(f"the connection is lost ({cause}); the job continues, trying again...")
            if time.monotonic() - lost > PATIENCE_SECONDS:
                raise ConnectionError(f"gave up after {PATIENCE_SECONDS:.0f} s: {_last_line(error)}") from None
            time.sleep(RETRY_SECONDS)
    return None


def _show_more(
    client: Client, job: str, log: Log, progress: Progress, status: JobStatus, enough: Callable[[], bool]
) -> None:
    """Until the job's status may be another."""
    if status != JobStatus.PENDING:
        asyncio.run(_tail(client, job, log, enough))
        return
    with progress.waiting("the cluster prepares the job: its files, packages and process"):
        while client.get_job_info(job).status == JobStatus.PENDING:
            time.sleep(POLL_SECONDS)


async def _tail(client: Client, job: str, log: Log, enough: Callable[[], bool]) -> None:
    """Show what one connection brings, from the beginning of the log, until it ends or falls silent."""
    position = 0
    chunks = cast("AsyncGenerator[str, None]", client.tail_job_logs(job))
    try:
        while not enough():
            async with asyncio.timeout(SILENT_SECONDS):
                position = log.take(position, await anext(chunks))
    except (StopAsyncIteration, TimeoutError):
        return
    finally:
        await chunks.aclose()


def _by_proxy(address: str) -> str:
    """What to add to an error where a proxy stands between, which may be the one that answers."""
    proxy = proxy_of(address)
    if proxy is None:
        return ""
    shown, host = proxy.rpartition("@")[2], urlsplit(address).hostname  # without a password
    return f". It is asked through the proxy {shown}; to ask it directly, add {host} to the variable no_proxy"


def _cause(error: Exception) -> str:
    """The innermost message of an error of requests."""
    inner = getattr(error.args[0], "reason", error.args[0]) if error.args else error
    text = re.sub(r"^.*(: |\] )", "", str(inner)).rstrip(")'\" ")
    return text or type(error).__name__


def _last_line(error: Exception | str) -> str:
    """Without the traceback that Ray sends along."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
