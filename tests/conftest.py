"""Setup of all tests: nothing leaves the machine, the profile is loaded, and there are fixtures for common needs."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import loopback_only
import pytest

from kit.broker import Broker
from kit.environment import ALLOWED, GUARD
from kit.examples import FAST, LONG_CPU_S, PROFILE, SEED, left_out, load_profile, long_ones

#: Refused connections are written to this file. Workers of pytest-xdist put theirs into the directory of the main
#: process, which removes it at the end.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
_refusals_file = (
    Path(os.environ[loopback_only.LOG]).with_name(_worker)
    if _worker
    else Path(tempfile.mkdtemp(prefix="loopback-only-")) / "main"
)


def _stay_on_loopback() -> None:
    """Refuse connections that would leave the machine, in this process and in Python processes started from it."""
    _refusals_file.touch()
    os.environ.update(ALLOWED)
    os.environ[loopback_only.LOG] = str(_refusals_file)
    other_paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(GUARD))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(GUARD), *other_paths])
    loopback_only.install()


def _keep_bytecode() -> None:
    """Keep what is compiled, here and in processes started from this one, whatever the environment says."""
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# Before the first test module is imported.
_stay_on_loopback()
_keep_bytecode()
load_profile()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect a part of the stories and, in the fast profile, the tests that start a nats-server or are long."""
    stories = left_out([item.nodeid for item in items if item.get_closest_marker("story")])
    left = {item for item in items if item.nodeid in stories or (FAST and _needs_broker(item))}
    if FAST:
        rest = [item for item in items if item not in left]
        left |= long_ones([(item, str(item.path), item.get_closest_marker("long") is not None) for item in rest])
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while tests are collected, and later not among what was made then: it lives until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_report_header() -> str:
    """Say how much the long tests try."""
    return f"profile {PROFILE}; TOKENTRACE_SEED={SEED}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note for the summary how much CPU a test that is not marked as long took, with the processes that it ended."""
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        if not item.get_closest_marker("long"):
            item.user_properties.append(("cpu_s", sum(os.times()[:4]) - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that take too long for the fast profile; on a busy machine it may name a few that do not."""
    if not FAST:
        return
    for report in terminalreporter.stats.get("passed", []):
        cpu_s = dict(report.user_properties).get("cpu_s", 0.0)
        if cpu_s > LONG_CPU_S:
            terminalreporter.write_line(f"{report.nodeid} took {cpu_s:.1f} s of CPU: mark it as long")


def _needs_broker(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    params = getattr(getattr(item, "callspec", None), "params", {})
    return "broker" in names or "jetstream" in params.values() or item.get_closest_marker("broker") is not None


def pytest_unconfigure() -> None:
    if not _worker:
        shutil.rmtree(_refusals_file.parent, ignore_errors=True)


@pytest.fixture(autouse=True)
def _nothing_left_loopback() -> Iterator[None]:
    yield
    refusals = loopback_only.refusals()
    assert not refusals, refusals


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """Start a nats-server for one test."""
    server = Broker(tmp_path / "nats")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def python() -> str:
    """Return the path of the Python interpreter that runs the tests."""
    return sys.executable
