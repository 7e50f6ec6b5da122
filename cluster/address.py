"""Where a cluster's job server is. Imports no Ray."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:8265"
PORT = 8265


def job_server(given: str | None) -> str:
    """Find the address of the job server.

    Args:
        given: An address, or None: $RAY_API_SERVER_ADDRESS, else that of this machine.

    Returns:
        It as http://HOST:PORT, with the path if it has one.

    Raises:
        ValueError: It cannot be the address of a dashboard.
    """
    text = given or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT
    what = f"the address {text!r}"
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{what} is not that of a dashboard; give http://HOST:{PORT}, or HOST:PORT")
    try:
        port = parts.port or (443 if parts.scheme == "https" else PORT)
    except ValueError:
        raise ValueError(f"{what} has no port from 1 to 65535; give HOST:PORT, as in 127.0.0.1:{PORT}") from None
    if not parts.hostname or parts.username or " " in text:
        raise ValueError(f"{what} is not understood; give http://HOST:PORT, as in {DEFAULT}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"
