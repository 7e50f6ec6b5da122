"""A real S3 API server on loopback, moto's, and a proxy before it that fails as networks and stores do."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "a-secret-that-nobody-may-read"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": SECRET}


@contextlib.contextmanager
def moto() -> Iterator[int]:
    """moto's server with an empty bucket "runs"; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as one:
                one.request("PUT", "/runs")
                assert one.getresponse().status == 200
                break
            time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


def address(port: int, folder: str = "") -> str:
    """Of a folder in the bucket."""
    return f"s3://runs/{folder}?endpoint_override=http://127.0.0.1:{port}&region=us-east-1"


class Flaky:
    """A proxy before a store. Its attributes say how it fails; they may change at any time."""

    def __init__(self, port: int, seed: int = 0) -> None:
        """Proxy the store that listens at `port`."""
        self.behind = port
        self.share = 0.0
        """Of requests that are answered with 500."""
        self.down_until = 0.0
        """Time (monotonic) up to which every connection is closed without an answer."""
        self.full = False
        """Whether what is written is refused with 507."""
        self.put_seconds = 0.0
        """How long each write takes more."""
        self.requests: list[str] = []
        """METHOD path of all requests that arrived."""
        self.random = random.Random(seed)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"flaky": self}))
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Flaky:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def down(self, seconds: float) -> None:
        self.down_until = time.monotonic() + seconds


class _Handler(BaseHTTPRequestHandler):
    flaky: Flaky
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        flaky = self.flaky
        flaky.requests.append(f"{self.command} {self.path}")
        body = self._body()
        writes = self.command in ("PUT", "POST")
        if time.monotonic() < flaky.down_until:
            self.close_connection = True
        elif flaky.random.random() < flaky.share:
            self._answer(500, [], b"")
        elif writes and flaky.full:
            self._answer(507, [], b"")
        else:
            time.sleep(flaky.put_seconds if writes else 0)
            self._pass_on(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _pass_on(self, body: bytes) -> None:
        headers = {name: text for name, text in self.headers.items() if name.lower() not in _OWN_HEADERS}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.flaky.behind)) as store:
            store.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
            got = store.getresponse()
            kept = [pair for pair in got.getheaders() if pair[0].lower() not in _OWN_HEADERS]
            length = got.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(got.status, kept, got.read(), length)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
        with contextlib.suppress(OSError):  # a client that was killed
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


_OWN_HEADERS = ("connection", "transfer-encoding", "content-length", "expect")


def contents(port: int) -> dict[str, bytes]:
    """Everything that the store holds, by path."""
    from pyarrow import fs

    from trainers.storage.store import Store

    store = Store(address(port))
    found = store._fs.get_file_info(fs.FileSelector("runs", recursive=True))
    files = [info.path for info in found if info.type == fs.FileType.File]
    return {path: store.read(path.removeprefix("runs/")) for path in files}
