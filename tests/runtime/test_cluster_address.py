"""The cluster that the environment names, and why this process is not taken by it. No Ray runs here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import AuthenticationError

from trainers.__main__ import main
from trainers.recipe import Recipe, Scale
from trainers.runtime import ray_train
from trainers.runtime.addresses import (
    cluster_address,
    default_workers,
    host_of,
    refuse_other_servers,
    token_origin,
    use_token,
)


@pytest.mark.parametrize(
    ("given", "address", "host"),
    [
        ("", None, None),
        ("local", None, None),
        (" head:6379 ", "head:6379", "head"),
        ("auto", "auto", None),
        ("[::1]:6379", "[::1]:6379", "::1"),
        ("ray://head:10001", "ray://head:10001", "head"),
    ],
)
def test_the_environment_names_the_cluster(
    given: str, address: str | None, host: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster_address() == address
    assert host_of(cluster_address()) == host


@pytest.mark.parametrize(
    ("given", "scale", "workers"),
    [
        ("", {}, 0),
        ("local", {"cpus_per_worker": 2, "memory": "1GiB"}, 0),
        ("head:6379", {}, 1),
        ("", {"data_mode": "stream"}, 1),
        ("", {"gpus_per_worker": 0}, 1),
        ("", {"accelerator_type": "A100"}, 1),
        ("", {"resources": {"fast_disk": 1}}, 1),
    ],
)
def test_a_training_is_on_ray_where_there_is_a_cluster_or_ray_is_asked_for_something(
    given: str, scale: dict[str, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert default_workers(Scale(**scale)) == workers


@pytest.mark.parametrize(
    ("flags", "workers"), [((), 0), (("--workers", "2"), 2), (("--workers=1",), 1), (("--data-mode", "stream"), 1)]
)
def test_the_command_takes_the_number_of_workers_that_is_given(
    flags: tuple[str, ...], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked: list[Scale] = []

    def fit(_: Recipe, *, scale: Scale, **__: object) -> None:
        asked.append(scale)
        raise ValueError("far enough")

    monkeypatch.setattr("trainers.fitting.fit", fit)
    assert main(["train", "digits.cnn", *flags]) == 2
    assert [each.workers for each in asked] == [workers]


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head.example.com", "http://head:8265/"])
def test_the_address_of_a_dashboard_is_refused_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray's documentation of jobs sets RAY_ADDRESS to that of the dashboard."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("TRAINYARD_STORAGE", str(tmp_path))
    assert main(["train", "digits.cnn", "--run", "one"]) == 2
    said = capsys.readouterr().err
    assert f"RAY_ADDRESS={address}" in said
    assert f"python -m cluster submit --address {address} -- " in said


@pytest.mark.parametrize(
    "address", ["head:6379", "127.0.0.1:6379", "auto", "[::1]:6379", "ray://head:10001", "ray://[::1]:10001"]
)
def test_the_address_of_a_head_or_of_its_client_server_is_taken(address: str) -> None:
    refuse_other_servers(address)


@pytest.mark.parametrize("kind", ["none", "file", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_is_used_wherever_ray_would_find_it(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".ray" / "auth_token"
    if kind == "file":
        file.parent.mkdir()
        file.write_text("secret")
    elif kind != "none":
        monkeypatch.setenv(kind, "something")
    assert token_origin() == {"none": None, "file": str(file)}.get(kind, kind)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    use_token()
    assert os.environ.get("RAY_AUTH_MODE") == (None if kind == "none" else "token")


def test_a_cluster_that_requires_another_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    wrapped = ConnectionError("Failed to connect to Ray cluster at head:6379")
    wrapped.__cause__ = RuntimeError("Last connection error: ...\nray.exceptions.AuthenticationError: RPC error: ...")
    for error in (AuthenticationError("no"), wrapped):
        said = ray_train._why_not_connected(error)
        assert said.startswith("the cluster at RAY_ADDRESS=head:6379 requires another token: copy ~/.ray/auth_token of")


@pytest.mark.parametrize(
    "error", [ConnectionError("refused.\nmore"), RuntimeError("refused."), TimeoutError("refused")]
)
def test_where_nothing_answers_the_cause_and_the_remedy_are_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    said = ray_train._why_not_connected(error)
    assert said.startswith(
        "no Ray cluster answers at RAY_ADDRESS=head:6379: refused; start a cluster there (bash cluster"
    )
    assert "unset it" in said
    assert "\n" not in said
