"""A real Alertmanager process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from kit.debian import program
from kit.pipeline import free_port, http
from kit.receiver import Receiver

ZERO = "0001-01-01T00:00:00Z"
#: Debian's Alertmanager reads its templates from this directory, even if its package was unpacked elsewhere.
TEMPLATES = "/usr/share/prometheus/alertmanager"


def movable(binary: Path, directory: Path) -> Path:
    """Return *binary*, or if its templates are not installed, a patched copy in *directory* that finds them."""
    data = binary.read_bytes()
    if Path(TEMPLATES).is_dir() or TEMPLATES.encode() not in data:
        return binary
    # The new path must have the same length; it is relative to the working directory.
    here = "./" * (len(TEMPLATES) // 2 - 1) + "am"
    (directory / "am").symlink_to(binary.parents[1] / "share" / "prometheus" / "alertmanager")
    copy = directory / binary.name
    copy.write_bytes(data.replace(TEMPLATES.encode(), here.encode()))
    copy.chmod(0o755)
    return copy


class Alertmanager:
    """An Alertmanager process that sends all notifications to ``/own`` of *receiver*."""

    def __init__(self, directory: Path, receiver: Receiver) -> None:
        self._directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._binary = movable(program("prometheus-alertmanager", "prometheus-alertmanager"), directory)
        self.log = directory / "alertmanager.log"
        self._config = directory / "alertmanager.yml"
        route = {"receiver": "local", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"}
        local = {"name": "local", "webhook_configs": [{"url": receiver.url + "/own", "send_resolved": True}]}
        self._config.write_text(json.dumps({"route": route, "receivers": [local]}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={self._config}",
                    f"--storage.path={self._directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--cluster.listen-address=",
                ],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if http("GET", self.url + "/-/ready").status == 200:
                    return
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.05)
        raise AssertionError(self.log.read_text()[-2000:])

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def alerts(self, name: str) -> list[Any]:
        """Return the alerts called *name* that have not ended."""
        answer = http("GET", self.url + "/api/v2/alerts")
        assert answer.status == 200, answer.body
        return [alert for alert in answer.json() if alert["labels"]["alertname"] == name]
