"""Fixtures that start real things: a nats-server for each test that asks, on a port of its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import loopback_only
import pytest

from kit.broker import Broker
from kit.environment import ALLOWED, GUARD
from kit.examples import PROFILE, load_profile

#: A worker of pytest-xdist keeps its file beside that of the process which started it, which removes them all.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
_told = (
    Path(os.environ[loopback_only.LOG]).with_name(_worker)
    if _worker
    else Path(tempfile.mkdtemp(prefix="loopback-only-")) / "main"
)


def _stay_on_loopback() -> None:
    """Nothing leaves this machine, from here or from a process that is started from here."""
    _told.touch()
    os.environ.update(ALLOWED)
    os.environ[loopback_only.LOG] = str(_told)
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(GUARD))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(GUARD), *others])
    loopback_only.install()


# Before the first test module is imported.
_stay_on_loopback()
load_profile()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the fast profile, leave out what needs a broker: the contract is tested on the bus in memory only."""
    if PROFILE != "fast":
        return
    with_broker = [item for item in items if _needs_broker(item)]
    config.hook.pytest_deselected(items=with_broker)
    items[:] = [item for item in items if item not in set(with_broker)]


def _needs_broker(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    params = getattr(getattr(item, "callspec", None), "params", {})
    return "broker" in names or "jetstream" in params.values()


def pytest_unconfigure() -> None:
    if not _worker:
        shutil.rmtree(_told.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_left_loopback() -> Iterator[None]:
    yield
    told = loopback_only.refusals()
    assert not told, told


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A private nats-server."""
    server = Broker(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def python() -> str:
    """The interpreter the tests run in."""
    return sys.executable
