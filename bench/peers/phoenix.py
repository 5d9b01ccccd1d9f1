"""
The same OTLP requests posted to Arize Phoenix and to ``tokentrace serve``, one after the other, on all cores.

``python -m bench.peers.phoenix [DIRECTORY]`` prints how many spans a second each accepts and stores, and the ratio.
Phoenix is installed into DIRECTORY, by default a new one that is removed at the end; it keeps its data in SQLite.
It answers before a span is stored, so the rate until all spans are stored is the one to compare.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.process import free_port, python, started
from bench.spans import make_otlp

_SPANS, _REQUESTS, _CONNECTIONS = 512, 40, 4
_WAIT_S = 300.0


class Rates(NamedTuple):
    """Spans a second until all were acknowledged, and until all were stored."""

    acknowledged: float
    stored: float


def _post(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/x-protobuf"}
    request = urllib.request.Request(f"{url}/v1/traces", data=body, headers=headers, method="POST")
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=60):
                return
        except urllib.error.HTTPError as exc:
            # A server that is behind asks to wait.
            if exc.code not in (429, 503):
                raise
            time.sleep(0.1)
    raise RuntimeError(f"{url} does not accept spans")


def _rates(url: str, stored: Callable[[], int]) -> Rates:
    bodies = [make_otlp(_SPANS, seed=seed) for seed in range(_REQUESTS)]
    total, before, began = _SPANS * _REQUESTS, stored(), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(lambda body: _post(url, body), bodies))
    acknowledged = time.monotonic() - began
    while (found := stored() - before) < total:
        if time.monotonic() > began + _WAIT_S:
            raise RuntimeError(f"{url}: {found} of {total} spans are stored after {_WAIT_S:.0f} s")
        time.sleep(0.05)
    return Rates(total / acknowledged, total / (time.monotonic() - began))


def _ours(directory: Path) -> Rates:
    port, nats = free_port(), free_port()
    flags = ["--addr", f"127.0.0.1:{port}", "--also", "none", "--nats-port", str(nats), "--data-dir", str(directory)]
    url = f"http://127.0.0.1:{port}"

    def stored() -> int:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            return int(json.load(answer)["stored_spans"])

    with started(python("tokentrace_standalone", "serve", *flags), f"{url}/readyz"):
        return _rates(url, stored)


def _phoenix(environment: Path, directory: Path) -> tuple[str, Rates]:
    command = environment / "bin" / "phoenix"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", "arize-phoenix"], check=True)
    code = "import importlib.metadata as m; print(m.version('arize-phoenix'))"
    version = subprocess.check_output([environment / "bin" / "python", "-c", code], text=True).strip()
    port = free_port()
    settings = {
        "PHOENIX_WORKING_DIR": str(directory),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
        "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
    }
    url = f"http://127.0.0.1:{port}"

    def stored() -> int:
        with sqlite3.connect(f"file:{directory / 'phoenix.db'}?mode=ro", uri=True, timeout=60) as database:
            return int(database.execute("select count(*) from spans").fetchone()[0])

    words = ["env", *(f"{name}={value}" for name, value in settings.items()), str(command), "serve"]
    with started(words, f"{url}/healthz"):
        return version, _rates(url, stored)


def main() -> None:
    """Measure both and print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        environment = Path(os.path.abspath(sys.argv[1])) if len(sys.argv) > 1 else directory / "environment"
        (directory / "phoenix").mkdir()
        version, theirs = _phoenix(environment, directory / "phoenix")
        ours = _ours(directory / "ours")
    print(f"{_REQUESTS} requests of {_SPANS} spans, {_CONNECTIONS} at a time")
    print(f"{'':<26}{'acknowledged':>14}{'stored':>14}  spans/s")
    for label, rates in ((f"Arize Phoenix {version}", theirs), ("tokentrace serve", ours)):
        print(f"{label:<26}{rates.acknowledged:>14,.0f}{rates.stored:>14,.0f}")
    print(f"{'ratio':<26}{ours.acknowledged / theirs.acknowledged:>14.2f}{ours.stored / theirs.stored:>14.2f}")


if __name__ == "__main__":
    main()
