"""Starting processes and the broker, and requests to them."""

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

#: Seconds that a service may take to become ready, or to answer while it is behind, before its rows are FAILED.
WAIT_S = 120.0


def free_port() -> int:
    """Return a TCP port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fsync_s(directory: Path) -> float:
    """Return the mean time of a write of 512 bytes with an fsync in *directory*, seconds."""
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(100):
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        return (time.perf_counter() - began) / 100


def fsync_note(directory: Path) -> str:
    """Return the time of an fsync in *directory* as a text, for the note of a row with durable writes."""
    return f"fsync {quantity(fsync_s(directory), 's')}"


def resident_mib(pid: int) -> float:
    """Return the memory that a process has now, MiB; 0 = it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def pinned(cores: set[int]) -> Callable[[], None]:
    """Return a ``preexec_fn`` that pins a process to *cores*; without effect if the process may use none of them."""

    def pin() -> None:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores & allowed or allowed)

    return pin


@contextlib.contextmanager
def started(
    words: Sequence[str], url: str | None = None, *, cores: set[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Start a process, yield it once *url* answers, and stop it at the end.

    If it does not end within 30 s of SIGTERM, it is killed with the processes that it started.

    Args:
        words: The command.
        url: An HTTP URL; None = do not wait.
        cores: As for ``pinned``; None = all.

    Raises:
        Failed: The process ended, or *url* did not answer within ``WAIT_S``; the text has the last line of stderr.
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
    Wait until *url* answers without an error.

    Raises:
        Failed: *process* ended, or *url* did not answer without an error for *seconds*.
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
    Return the JSON at *url*; after an error, ask again, because the service may be behind.

    Raises:
        Failed: *url* did not answer without an error for *seconds*.
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
    """
    Run a nats-server that syncs every message to disk; yield its URL.

    Raises:
        Failed: The server does not listen after 20 s.
    """
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
    """Return a command that runs a module, ``words[0]``, with this interpreter."""
    return [sys.executable, "-m", *words]
