"""Requests to a cluster that a proxy would carry elsewhere: company networks set http_proxy for everything."""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.0/8", "127.0.0.1", "::1")
"""As no_proxy has them: some clients know networks, some only addresses."""


def ask_directly(host: str | None = None) -> None:
    """Let no request of this process and its children to loopback, or to an inner host, go through a proxy.

    Nothing is changed where no proxy is set.

    Args:
        host: Name or address of a cluster's head. It is asked directly if it cannot be outside: a private address, a
            name without a dot.
    """
    if not urllib.request.getproxies():
        return
    wanted = [*LOOPBACK, *([host] if host and is_inner(host) else [])]
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    known = [entry.strip() for entry in given.split(",") if entry.strip()]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*known, *wanted]))


def is_inner(host: str) -> bool:
    """Whether no proxy can be needed to reach a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localdomain"))


def proxy_of(url: str) -> str | None:
    """The proxy that a request to an address goes through; None: it is asked directly."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    if urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")
