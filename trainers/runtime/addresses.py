"""The cluster that the environment names, and the token that it requires. Imports no Ray."""

from __future__ import annotations

import os

from trainers.recipe import Scale

START = "start a cluster there (bash cluster/local.sh), or correct RAY_ADDRESS, or unset it to do without one"
"""What to do where nothing answers."""


def cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names, which Ray sets in a job, too; None: Ray is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def default_workers(scale: Scale) -> int:
    """Of a training where nobody gave a number: 1 on the cluster that the environment names, or where what is asked for
    is Ray's to give; else 0, this process: to start Ray takes longer than many a training on one machine, and there is
    nothing to scale."""
    asked = (scale.data_mode == "stream", scale.gpus_per_worker is not None, scale.accelerator_type, scale.resources)
    return 1 if cluster_address() is not None or any(asked) else 0


def host_of(address: str | None) -> str | None:
    """The host in an address of Ray's, such as ray://head:10001 or [::1]:6379."""
    return None if address is None else address.rpartition("://")[2].rpartition(":")[0].strip("[]") or None


def refuse_other_servers(address: str) -> None:
    """Raises ValueError where RAY_ADDRESS names a dashboard: its job server takes `submit` alone."""
    if not address.startswith(("http://", "https://")):
        return
    raise ValueError(
        f"RAY_ADDRESS={address} is the address of a dashboard: on a host of the cluster give that of its head, "
        f"HEAD:6379; from elsewhere send the command there: python -m cluster submit --address {address} -- COMMAND"
    )


def token_origin() -> str | None:
    """The variable or file that Ray's token comes from; None: there is no token."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    file = os.path.expanduser("~/.ray/auth_token")
    return file if os.path.exists(file) else None


def use_token() -> None:
    """Turn Ray's token authentication on where there is a token. Call it before Ray is imported."""
    if token_origin():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
