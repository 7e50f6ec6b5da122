"""A job server that answers as Ray's does, and fails as asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeCluster:
    """Jobs that write `log` and end. The attributes may be changed while it runs."""

    log: str = "hello\n"
    exit_code: int = 0
    drops: list[int] = field(default_factory=list)
    """Connections that bring a log are cut after so many characters each; those after them stay."""
    failures: list[tuple[str, int, str]] = field(default_factory=list)
    """What is answered once instead: how the request begins, status (0: none, though it is done) and text."""
    on_log: Callable[[], None] = lambda: None
    """Called when a log has been sent while the job runs."""
    runs_until_stopped: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    address: str = ""
    closed: bool = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {request.path}"
        self.requests.append(line)
        failure = next((failure for failure in self.failures if line.startswith(failure[0])), None)
        if failure:
            self.failures.remove(failure)
            if failure[1]:
                return web.Response(status=failure[1], text=failure[2])
        done = await self._do(request, line)
        if failure:
            assert request.transport is not None
            request.transport.abort()
        return done

    async def _do(self, request: web.Request, line: str) -> web.StreamResponse:
        if line == "GET /api/version":
            return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": ""})
        if "/api/packages/" in line:
            return await self._package(request)
        if line == "POST /api/jobs/":
            return self._start(await request.json())
        if line == "GET /api/jobs/":
            return web.json_response(list(self.jobs.values()))
        name, *what = request.path.removeprefix("/api/jobs/").split("/", 1)
        if name not in self.jobs:
            return web.Response(status=404, text=f"Job {name} does not exist")
        if what == ["logs/tail"]:
            return await self._tail(request, name)
        if what == ["logs"]:
            return web.json_response({"logs": self.jobs[name]["log"]})
        if what == ["stop"]:
            self._end(name, "STOPPED")
            return web.json_response({"stopped": True})
        if request.method == "DELETE":
            del self.jobs[name]
            return web.json_response({"deleted": True})
        return web.json_response({key: value for key, value in self.jobs[name].items() if key != "log"})

    async def _package(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.packages[request.path] = await request.read()
        return web.Response(status=200 if request.path in self.packages else 404)

    def _start(self, asked: dict[str, Any]) -> web.Response:
        name = asked["submission_id"]
        if name in self.jobs:
            return web.Response(
                status=500, text=f"Traceback:\nValueError: Job with submission_id {name} already exists."
            )
        self.jobs[name] = {
            **{"type": "SUBMISSION", "submission_id": name, "status": "RUNNING", "log": self.log},
            **{key: asked[key] for key in ("entrypoint", "runtime_env", "metadata")},
            **{"start_time": 1_000_000_000_000, "end_time": None, "driver_exit_code": None, "message": ""},
        }
        return web.json_response({"job_id": name, "submission_id": name})

    async def _tail(self, request: web.Request, name: str) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        text = self.jobs[name]["log"]
        cut = self.drops.pop(0) if self.drops else len(text)
        for start in range(0, cut, 50):
            await socket.send_str(text[start : min(cut, start + 50)])
        if cut < len(text):
            await asyncio.sleep(0.05)  # what was sent arrives
            assert request.transport is not None
            request.transport.abort()
            return socket
        self.on_log()
        while self.runs_until_stopped and self.jobs[name]["status"] == "RUNNING" and not self.closed:
            await asyncio.sleep(0.02)
        if self.jobs[name]["status"] == "RUNNING":
            self._end(name, "FAILED" if self.exit_code else "SUCCEEDED")
        await socket.close()
        return socket

    def _end(self, name: str, status: str) -> None:
        code = None if status == "STOPPED" else self.exit_code
        self.jobs[name] |= {"status": status, "driver_exit_code": code, "end_time": 1_000_000_062_000}


@contextmanager
def serve(fake: FakeCluster) -> Iterator[FakeCluster]:
    """Answer on a port of loopback, in a thread."""
    loop, started = asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=100 * 2**20)  # as Ray's dashboard
        app.router.add_route("*", "/{path:.*}", fake.answer)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.address = "http://127.0.0.1:{1}".format(*runner.addresses[0])
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield fake
    finally:
        fake.closed = True
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
