"""What test modules share."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.hosts import Hosts
    from helpers.small import Slow


# Tests run beside tests. Threads of OpenMP wait for each other in a busy loop, in which a small training takes four
# times the processor's time; and Ray's workers, at niceness 15 by default, stand still as long as any does so.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported, here or in children
os.environ.setdefault("RAY_worker_niceness", "0")


BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, metavar="N", help="skip tests that would begin after N seconds or more")


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item: pytest.Item) -> None:
    """On a slow machine the tests that there is time for are run, and the others named."""
    seconds = item.config.getoption("--seconds")
    if seconds is not None and time.monotonic() - BEGAN > seconds:
        pytest.skip(f"{seconds:.0f} s were given for all tests")


@pytest.hookimpl(trylast=True)  # of those that were chosen
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: they take longest, and the other processes would have no work at the end."""
    first = {item.path for item in items if any(item.iter_markers("cluster")) or any(item.iter_markers("ray"))}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="module", autouse=True)
def figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drawing takes most of the time of a small run: figures stay empty but in modules that are marked `figures`."""
    if request.node.get_closest_marker("figures"):
        yield
        return
    from PIL import Image

    Image.new("L", (1, 1)).save(pixel := io.BytesIO(), "PNG")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(pixel.getvalue()))
        yield


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Three, with a Ray cluster: on each there is room for one worker ON_DISK, one IN_STORE, and one more."""
    from helpers.hosts import Hosts

    with Hosts(tmp_path_factory.mktemp("hosts")) as made:
        for host in made.all:
            host.resolve_to_loopback()  # where Gloo would bind to by itself
        made.start_cluster(3, '--resources={"disk": 1, "store": 1}')
        yield made


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the runs of a module; all test hosts see it, as a shared disk."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def store(hosts: Hosts) -> str:
    """An object store that all hosts reach."""
    return hosts.start_store()


@pytest.fixture
def slow(tmp_path_factory: pytest.TempPathFactory) -> Slow:
    """A model whose epochs take seconds."""
    from helpers.small import Slow

    return Slow(tmp_path_factory.mktemp("model"))
