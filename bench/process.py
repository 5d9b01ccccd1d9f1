"""Real processes for the rows that need them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.row import Failed
from bench.table import quantity
from tokentrace_standalone.broker import find_binary

#: How long a service may take to come up, or to answer while it is behind, before its rows are FAILED.
WAIT_S = 120.0


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fsync_s(directory: Path) -> float:
    """What one write and fsync take there, seconds: the floor of everything acknowledged."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(100):
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / 100


def fsync_note(directory: Path) -> str:
    """What an fsync takes there, in words, for the note of a durable row."""
    return f"fsync {quantity(fsync_s(directory), 's')}"


def pinned(cores: set[int]) -> Callable[[], None]:
    """For ``preexec_fn``: keep a process to *cores*, or to what it may use if it may use none of them."""

    def pin() -> None:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores & allowed or allowed)

    return pin


@contextlib.contextmanager
def started(
    words: Sequence[str], url: str | None = None, *, cores: set[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """
    A process, once *url* answers 200; stopped at the end, with all that it started.

    Raises:
        Failed: It ended, or did not answer in time; the text has the last line that it wrote.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=log,
            preexec_fn=pinned(cores) if cores else None,
            start_new_session=True,
        )
        try:
            if url is not None:
                try:
                    wait_for(url, process)
                except Failed as exc:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").strip().splitlines()
                    raise Failed(f"{exc}; last line: {lines[-1] if lines else 'none'}") from None
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = WAIT_S) -> None:
    """
    Return once *url* answers 200.

    Raises:
        Failed: *process* ended, or *url* did not answer for *seconds*.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError as exc:
            if process.poll() is not None:
                raise Failed(f"{_short(process)} ended with {process.returncode}") from None
            if time.monotonic() > deadline:
                raise Failed(f"{_short(process)} was not ready after {seconds:.0f} s: {exc}") from None
            time.sleep(0.05)


def ask(url: str, seconds: float = WAIT_S) -> Any:
    """
    The JSON that *url* answers, asked again while it answers with an error: behind is no reason to give up.

    Raises:
        Failed: It has not answered 200 for *seconds*.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=20) as response:
                return json.load(response)
        except OSError as exc:
            if time.monotonic() > deadline:
                raise Failed(
                    f"GET {url.partition('://')[2].partition('/')[2]}: no answer for {seconds:.0f} s: {exc}"
                ) from None
            time.sleep(0.1)


def _short(process: subprocess.Popen[bytes]) -> str:
    words = [str(word) for word in process.args] if isinstance(process.args, list) else [str(process.args)]
    return words[2] if words[1:2] == ["-m"] else Path(words[0]).name


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
                raise Failed("nats-server does not listen after 20 s")
            time.sleep(0.02)
        yield f"nats://127.0.0.1:{port}"


def python(*words: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, "-m", *words]
