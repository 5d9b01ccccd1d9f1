"""A real Prometheus process."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kit.debian import program
from kit.environment import PATIENCE
from kit.pipeline import free_port, http


class PrometheusServer:
    """
    A Prometheus in its own process group; without one, the calling test is skipped.

    Args:
        directory: Holds its configuration, its log and its data.
        config: The text of its configuration.
        targets: Number of targets in *config*.
    """

    def __init__(self, directory: Path, config: str, targets: int) -> None:
        self._binary = program("prometheus", "prometheus")
        self._directory, self._config, self._targets, self._port = directory, config, targets, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "prometheus.log"

    def start(self) -> None:
        """Start the process, and return once all targets have been scraped."""
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "prometheus.yml"
        config.write_text(self._config, encoding="utf-8")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30 * PATIENCE
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            # Prometheus needs seconds to discover its targets.
            with contextlib.suppress(OSError, ValueError):
                if len(self.query("up == 1")) == self._targets:
                    return
            time.sleep(0.05)
        raise AssertionError(f"{self.problems()}\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Kill the process and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, parameters: Mapping[str, str | float] | None = None) -> Any:
        """Return ``data`` of the answer at *path* below ``/api/v1``; fail if it is an error."""
        answer = http("GET", f"http://127.0.0.1:{self._port}/api/v1/{path}?{urlencode(parameters or {})}").json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of *expression* now."""
        return list(self.ask("query", {"query": expression})["result"])

    def query_range(
        self, expression: str, start_s: float, end_s: float, step_s: float
    ) -> list[tuple[dict[str, str], dict[float, float]]]:
        """Return (labels, time in Unix seconds -> value) of each series of *expression*."""
        parameters: dict[str, str | float] = {"query": expression, "start": start_s, "end": end_s, "step": step_s}
        found = self.ask("query_range", parameters)["result"]
        return [(one["metric"], {at: float(value) for at, value in one["values"]}) for one in found]

    def problems(self) -> list[str]:
        """Return the error of the last scrape of each target; "" = none."""
        return [target["lastError"] for target in self.ask("targets")["activeTargets"]]
