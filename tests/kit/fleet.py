"""Any number of service processes on one broker, for example two apis."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kit.broker import Broker
from kit.environment import PATIENCE
from kit.pipeline import Answer, free_port, http
from kit.services import Service, start_service


class Fleet:
    """
    Service processes on one real broker, each with its own port and its own data directory.

    An api forwards spans to the first ingest in *names*, if there is one.

    Args:
        directory: Holds the data of the broker and of all services, and their common log ``fleet.log``.
        names: One name for each process: the service, and a suffix if there are several, such as ``api-a``.
        env: Environment variables besides those of the test process.

    Attributes:
        ports: Name -> HTTP port.
        running: Name -> process.
    """

    def __init__(self, directory: Path, names: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.directory, self.env = directory, {**os.environ, "TOKENTRACE_SNAPSHOT_INTERVAL": "1s", **(env or {})}
        self.broker = Broker(directory / "nats")
        self.ports = {name: free_port() for name in names}
        #: Name -> environment variables of that process alone.
        self.own_env: dict[str, Mapping[str, str]] = {}
        self.running: dict[str, Service | subprocess.Popen[bytes]] = {}
        self.log = directory / "fleet.log"
        directory.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Start the broker and all services, and wait until each is ready."""
        self.broker.start()
        for name in self.ports:
            self.start_one(name)
        for name in self.ports:
            self.until(partial(self.is_ready, name), f"{name} ready", 60)

    def is_ready(self, name: str) -> bool:
        """Return True if ``/readyz`` of the service answers 200."""
        return self.get(name, "/readyz").status == 200

    def start_one(self, name: str) -> None:
        """Start one service and return at once."""
        ingest = next((port for other, port in self.ports.items() if other.startswith("ingest")), None)
        env = self.env
        if name.startswith("api") and ingest is not None:
            env = {**env, "TOKENTRACE_INGEST_URL": f"http://127.0.0.1:{ingest}"}
        env = {**env, **self.own_env.get(name, {})}
        flags = ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}"]
        self.running[name] = start_service(
            f"tokentrace_{name.partition('-')[0]}",
            [*flags, "--data-dir", str(self.data_of(name))],
            directory=self.directory,
            env=env,
            log=self.log,
        )

    def data_of(self, name: str) -> Path:
        """Return the data directory of one service."""
        return self.directory / f"data-{name}"

    def terminate(self, name: str) -> int:
        """Send SIGTERM to one service and return its exit code."""
        self.running[name].send_signal(signal.SIGTERM)
        return self.running[name].wait(40)

    def kill(self, name: str) -> None:
        """Send SIGKILL to one service."""
        self.running[name].kill()
        self.running[name].wait()

    def stop(self) -> dict[str, int]:
        """Send SIGTERM to all services, stop the broker, and return name -> exit code."""
        for process in self.running.values():
            if process.poll() is None:
                process.terminate()
        codes = {name: process.wait(40) for name, process in self.running.items()}
        self.broker.stop()
        return codes

    def url(self, name: str) -> str:
        """Return the base URL of one service."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def get(self, name: str, path: str) -> Answer:
        """Send a GET request to one service."""
        return http("GET", self.url(name) + path)

    def send(self, name: str, method: str, path: str, body: Any = None) -> Answer:
        """Send a request to one service; *body* is encoded as JSON."""
        data = None if body is None else json.dumps(body).encode()
        return http(method, self.url(name) + path, data, {"Content-Type": "application/json"})

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
        """Wait until *condition* holds (an OSError or KeyError is false); fail after *seconds* times ``PATIENCE``."""
        deadline = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, KeyError):
                if condition():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not {what} within {seconds} s:\n{self.log.read_text()[-3000:]}")
