"""A nats-server process for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

BINARY = Path(sysconfig.get_path("scripts")) / "nats-server"


class Broker:
    """
    A nats-server process with JetStream in *directory*; a restart keeps the port and the data.

    Args:
        room: Limit of JetStream's disk space, as nats-server's configuration writes it.
        extra: Lines that are added to the configuration.
    """

    def __init__(self, directory: Path, room: str = "40GB", extra: str = "") -> None:
        self.directory, self.room, self.extra = directory, room, extra
        self.port = -1
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def command(self) -> list[str]:
        """The command that starts this broker again, on the same port and with the same data."""
        self._configure()
        return [str(BINARY), "-c", str(self.directory / "nats.conf")]

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("*.ports"):
            old.unlink()
        config = self._configure()
        self.process = subprocess.Popen([str(BINARY), "-c", str(config)], start_new_session=True)
        ports = self.directory / f"nats-server_{self.process.pid}.ports"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
                return
            time.sleep(0.01)
        raise AssertionError((self.directory / "nats.log").read_text()[-2000:])

    def _configure(self) -> Path:
        config = self.directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.directory}/js", sync_interval: always, max_file_store: {self.room} }}\n'
            f'max_payload: 8MB\nports_file_dir: "{self.directory}"\nlog_file: "{self.directory}/nats.log"\n'
            f"{self.extra}"
        )
        return config

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
