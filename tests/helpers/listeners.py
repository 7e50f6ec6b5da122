"""What a process and all below it listen on."""

from __future__ import annotations

from collections.abc import Mapping

import psutil


def listeners(process: psutil.Process) -> dict[str, set[str]]:
    """Name of a process, of this one and all below it -> addresses that it listens on."""
    found: dict[str, set[str]] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            opened = each.net_connections("inet")
            own = {entry.laddr.ip.removeprefix("::ffff:") for entry in opened if entry.status == psutil.CONN_LISTEN}
            found.setdefault(each.name(), set()).update(own)
        except psutil.Error:  # it has ended
            continue
    return found


def beyond_loopback(seen: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Those of them that other machines reach."""
    return {name: addresses for name, addresses in seen.items() if addresses - {"127.0.0.1", "::1"}}
