"""Which requests go through the proxies of the environment."""

from __future__ import annotations

import os

import pytest
import requests.utils

from trainers.runtime.proxies import ask_directly, proxy_of

PROXY = "http://proxy.example:3128"


@pytest.fixture
def behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.setenv("NO_PROXY", "intranet.example")


@pytest.mark.parametrize(
    ("head", "url", "directly"),
    [
        (None, "http://127.0.0.1:8265", True),
        (None, "http://localhost:8265", True),
        (None, "http://[::1]:8265", True),
        (None, "http://intranet.example/", True),  # as the user says
        ("10.1.2.3", "http://10.1.2.3:8265", True),
        ("192.168.0.4", "https://192.168.0.4", True),
        ("head", "http://head:8265", True),
        ("head.internal", "http://head.internal:8265", True),
        ("8.8.4.4", "http://8.8.4.4:8265", False),
        ("head.example.com", "http://head.example.com:8265", False),
        (None, "https://download.example/data.zip", False),
        ("10.1.2.3", "http://10.1.2.4:8265", False),
    ],
)
@pytest.mark.usefixtures("behind_a_proxy")
def test_loopback_and_inner_heads_are_asked_directly(head: str | None, url: str, directly: bool) -> None:
    ask_directly(head)
    ask_directly(head)  # again changes nothing
    assert proxy_of(url) == (None if directly else PROXY)
    used = requests.utils.get_environ_proxies(url)
    assert bool(used) != directly
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]
    assert len(set(entries := os.environ["no_proxy"].split(","))) == len(entries)


def test_without_a_proxy_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    before = dict(os.environ)
    ask_directly("10.1.2.3")
    assert dict(os.environ) == before
