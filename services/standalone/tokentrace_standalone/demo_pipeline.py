"""The pipeline that ``tokentrace demo --serve`` starts: a process with its data in a temporary directory."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokentrace.errors import Unavailable
from tokentrace.service.listen import parse_addr
from tokentrace_standalone.broker import dies_with

_PORT = 8700
_POLL_S = 0.1
#: How long the pipeline may take to stop before it is killed, seconds.
_STOP_S = 40.0
_READY = "tokentrace listening on "


class Served(NamedTuple):
    """A running pipeline: where its page and API are, and its broker."""

    url: str
    nats_url: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise ``Unavailable`` with the end of the log if the pipeline has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines() or ["no output"]
            raise Unavailable(f"tokentrace serve ended: {lines[-1]}")


@contextlib.contextmanager
def served(addr: str, stopping: Callable[[], bool]) -> Iterator[Served]:
    """
    Run ``tokentrace serve`` on *addr* until the end of the block, then stop it and remove its data.

    The block is entered once the pipeline listens, or earlier if *stopping* returns True.

    Raises:
        ConfigError: *addr* is no address.
        Unavailable: The pipeline ended, for example because *addr* is in use.
    """
    host, port = parse_addr(addr, _PORT)
    with tempfile.TemporaryDirectory(prefix="tokentrace-demo-", ignore_cleanup_errors=True) as directory:
        log = Path(directory) / "serve.log"
        nats_port = _free_port()
        flags = ["--addr", f"{host}:{port}", "--also", "none", "--nats-port", str(nats_port), "--data-dir", "data"]
        with log.open("wb") as output:
            # In a session of its own: Ctrl-C stops the demo first, and the demo stops the pipeline.
            process = subprocess.Popen(
                [sys.executable, "-m", "tokentrace_standalone", "serve", *flags],
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=dies_with(os.getpid()),
            )
        shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
        serving = Served(f"http://{shown}:{port}", f"nats://127.0.0.1:{nats_port}", process, log)
        try:
            while not stopping() and _READY not in log.read_text(errors="replace"):
                serving.check()
                time.sleep(_POLL_S)
            yield serving
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
