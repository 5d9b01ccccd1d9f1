"""
Processes of services.

A service needs a second of processor time to load its modules, and nothing else of its start takes as long. So each
process of pytest has one launcher, which loads all modules and forks for each service. A forked service has its own
session, environment, working directory and log, takes signals and ends like any process.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: The program of the launcher. A request is a line of JSON: [arguments, directory, environment, log] starts a service
#: and is answered by its process id; a process id is answered by its exit code, null while it runs.
_LAUNCHER = """
import gc, json, os, runpy, socket, sys
import tokentrace_standalone.cli, tokentrace_standalone.pipeline

def begin(arguments, directory, environment, log):
    os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(written, number)
    os.close(written)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)

gc.freeze()
requests = socket.socket(fileno=int(sys.argv[1]))
service = None
for line in requests.makefile("r"):
    request = json.loads(line)
    if isinstance(request, int):
        pid, status = os.waitpid(request, os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if not answer:
            service = request
            break
    requests.sendall(json.dumps(answer).encode() + b"\\n")
requests.close()
if service:
    begin(*service)
"""


class Service:
    """A running service, with those methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, launcher: _Launcher, pid: int) -> None:
        self._launcher, self.pid = launcher, pid
        self._handle = os.pidfd_open(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while the process runs; a negative code is the signal that ended it."""
        if self.returncode is None:
            self.returncode = self._launcher.ask(self.pid)
            if self.returncode is not None:
                os.close(self._handle)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait for the end of the process and return its exit code.

        Raises:
            subprocess.TimeoutExpired: The process has not ended within *timeout* seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(["service"], timeout or 0)
            ended = select.poll()
            ended.register(self._handle, select.POLLIN)
            ended.poll(None if left is None else left * 1000)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Launcher:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCHER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # A thread of a library at the time of a fork would be missing in the service.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._socket = ours
        self._answers = ours.makefile("r")
        self._lock = threading.Lock()
        atexit.register(self._stop)

    def ask(self, request: Any) -> Any:
        """Send a request and return its answer."""
        with self._lock:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._answers.readline()
        assert line, "the launcher of services has ended"
        return json.loads(line)

    def _stop(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()


_launcher: _Launcher | None = None


def start_service(
    module: str, arguments: Sequence[str], *, directory: Path, env: Mapping[str, str], log: Path
) -> Service | subprocess.Popen[bytes]:
    """
    Start ``python -m module arguments`` in *directory* in its own session; its output is appended to *log*.

    A process with another PYTHONPATH than this one, or with a library to preload, loads everything itself.
    """
    global _launcher
    if any(env.get(name) != os.environ.get(name) for name in ("PYTHONPATH", "LD_PRELOAD")):
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdout=output,
                stderr=output,
                cwd=directory,
                env=env,
                start_new_session=True,
            )
    if _launcher is None:
        _launcher = _Launcher()
    return Service(_launcher, _launcher.ask([[module, *arguments], str(directory), dict(env), str(log)]))
