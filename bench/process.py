"""Real processes for the rows that need them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokentrace_standalone.broker import find_binary


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fsync_ms(directory: Path) -> float:
    """What one write and fsync take there, milliseconds: the floor of everything acknowledged."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(100):
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) * 10


@contextlib.contextmanager
def started(
    words: Sequence[str], url: str | None = None, *, cores: set[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, once *url* answers 200; stopped at the end."""

    def pin() -> None:
        if cores:
            os.sched_setaffinity(0, cores & os.sched_getaffinity(0) or os.sched_getaffinity(0))

    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pin)
    try:
        if url is not None:
            wait_for(url)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(url: str, seconds: float = 60) -> None:
    """Return once *url* answers 200."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def nats(directory: Path) -> Iterator[str]:
    """A nats-server with ``sync_interval: always``; yields its URL."""
    port = free_port()
    config = directory / "nats.conf"
    config.write_text(
        f'listen: "127.0.0.1:{port}"\n'
        f'jetstream {{ store_dir: "{directory}/js", sync_interval: always, max_file_store: 20GB }}\nmax_payload: 8MB\n'
    )
    with started([find_binary(), "-c", str(config)]):
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError("nats-server does not answer")
            time.sleep(0.02)
        yield f"nats://127.0.0.1:{port}"


def python(*words: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, "-m", *words]
