"""Fixtures that start real things: a nats-server for each test that asks, on a port of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import loopback_only
import pytest

ROOT = Path(__file__).parent.parent
GUARD = ROOT / "tests" / "guard"
#: What every process of a test may deliver alerts to.
ALLOWED = {"TOKENTRACE_ALERT_ALLOW_HOSTS": "127.0.0.0/8,::1,localhost"}
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


def pytest_unconfigure() -> None:
    if not _worker:
        shutil.rmtree(_told.parent, ignore_errors=True)


def plain_environment() -> dict[str, str]:
    """The environment without settings of tokentrace, but for those that keep a test on this machine."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TOKENTRACE_")} | ALLOWED


@pytest.fixture(autouse=True)
def _nothing_left_loopback() -> Iterator[None]:
    yield
    told = loopback_only.refusals()
    assert not told, told


BINARY = Path(sysconfig.get_path("scripts")) / "nats-server"


class Broker:
    """A real nats-server with JetStream in *directory*; a restart keeps the port and the data."""

    def __init__(self, directory: Path, room: str = "40GB", extra: str = "") -> None:
        self.directory, self.room, self.extra = directory, room, extra
        self.port = -1
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("*.ports"):
            old.unlink()
        config = self.directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.directory}/js", sync_interval: always, max_file_store: {self.room} }}\n'
            f'max_payload: 8MB\nports_file_dir: "{self.directory}"\nlog_file: "{self.directory}/nats.log"\n'
            f"{self.extra}"
        )
        self.process = subprocess.Popen([str(BINARY), "-c", str(config)], start_new_session=True)
        ports = self.directory / f"nats-server_{self.process.pid}.ports"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
                return
            time.sleep(0.01)
        raise AssertionError((self.directory / "nats.log").read_text()[-2000:])

    def kill(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


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
