"""
The whole pipeline inside of a program: what a ``Tracer`` with ``http_server``, ``alerts`` or ``custom_metrics`` runs.

A daemon thread runs all services on a bus in memory. Spans are published to this bus, and metrics, alerts and the HTTP
API work as they do in ``tokentrace serve``. Nothing is kept: the spans are gone when the program ends.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.client import lifecycle
from tokentrace.client.reporter import Stats
from tokentrace.client.reporter.encoding import encoded
from tokentrace.client.reporter.notices import Notices
from tokentrace.client.reporter.outgoing import Outgoing
from tokentrace.client.reporter.span_queue import Put, SpanQueue, TakenBatch
from tokentrace.config import Settings, build
from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.records import Span
from tokentrace.redact import Redactor
from tokentrace.service import main
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.broker_clock import keep_measured
from tokentrace.service.listen import bind, parse_addr
from tokentrace.service.openapi import make_documented_app
from tokentrace_standalone.pipeline import Configs, Pipeline

log = logging.getLogger("tokentrace.in_process")

_MAX_QUEUE_SPANS, _MAX_QUEUE_BYTES = 100_000, 64 * 1024 * 1024
#: How much of the newest input the bus holds, which readers that start late read again, bytes.
_LOG_BYTES = 64 * 1024 * 1024
_START_S = 60.0
_PAUSE_S = 0.05
_DEFAULT_PORT = 9090
_open: weakref.WeakSet[InProcess] = weakref.WeakSet()


def settings_of(tree: Mapping[str, Any], name: str, directory: str) -> Settings:
    """
    Return the settings of a pipeline in memory.

    Args:
        tree: Keys and values as ``tokentrace.yml`` has them.
        name: What *tree* is, for errors.
        directory: Where the span store keeps its files.

    Raises:
        ConfigError: A key is unknown or missing, or its value is invalid; the message names the key.
    """
    nats = {"raw_max_bytes": _LOG_BYTES, "spans_max_bytes": _LOG_BYTES, **tree.get("nats", {})}
    # Snapshots are for a restart, and nothing survives one.
    storage = {"snapshot_interval": "1d", **tree.get("storage", {}), "dir": directory}
    return build({**tree, "nats": nats, "storage": storage}, name)


class InProcess:
    """
    A pipeline inside of this program, and the transport to it.

    Args:
        tree: The settings, as ``tokentrace.yml`` has them: ``alerts``, ``custom_metrics``, ``pricing`` and others.
        name: What *tree* is, for errors.
        addr: Where the HTTP API listens, as ``host:port`` or ``:port`` on 127.0.0.1; None = nowhere.
        source: The name of this program.
        redactor: Removes secrets from spans; None uses the default rules.

    Attributes:
        url: URL of the HTTP API; "" = none.

    Raises:
        ConfigError: A setting is invalid; the message names the key.
        Unavailable: The address is in use, or the pipeline does not start.
    """

    def __init__(
        self, tree: Mapping[str, Any], name: str, *, addr: str | None, source: str, redactor: Redactor | None = None
    ) -> None:
        self._directory = tempfile.mkdtemp(prefix="tokentrace-")
        self._sockets: list[socket.socket] = []
        try:
            self._settings = settings_of(tree, name, self._directory)
            self._configs = Configs.of(self._settings)
            if addr is not None:
                self._sockets.append(bind(parse_addr(addr, _DEFAULT_PORT)))
        except TokentraceError:
            self._remove_files()
            raise
        self.url = ""
        if self._sockets:
            host, port = self._sockets[0].getsockname()[:2]
            self.url = f"http://{host}:{port}"
        self._source, self._redactor = source, redactor or Redactor()
        self._notices = Notices(source)
        self._queue = SpanQueue(_MAX_QUEUE_SPANS, _MAX_QUEUE_BYTES)
        self._pid = os.getpid()
        self._deadline = 0.0
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        self._wake, self._stopping = asyncio.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="tokentrace-in-process", daemon=True)
        self._thread.start()
        lifecycle.register(self)
        _open.add(self)
        try:
            self._started.result(_START_S)
        except TimeoutError:
            self.close(0)
            raise Unavailable(f"the pipeline in this process did not start within {_START_S:.0f} s") from None
        except TokentraceError:
            self._thread.join(_START_S)
            self._remove_files()
            raise

    # -- called from any thread

    def send(self, spans: Sequence[Span]) -> None:
        """Queue *spans* for the pipeline. This never blocks and never raises."""
        for span in spans:
            if self._queue.put(encoded(span)) is Put.DROPPED:
                self._notices.dropping("the pipeline is closed" if self._queue.closed else "too many of them wait")
        self._call(self._wake.set)

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until the pipeline has taken every span; return False if *timeout*, seconds, passed first."""
        if not self._queue.begin_flush():
            return True
        self._call(self._wake.set)
        return self._queue.wait_until_empty(timeout)

    def close(self, timeout: float = lifecycle.CLOSE_TIMEOUT_S) -> None:
        """Hand the waiting spans over and stop the pipeline and its HTTP server within *timeout* seconds."""
        self.begin_close(timeout)
        self.finish_close()

    def stats(self) -> Stats:
        """Return the counters of this transport."""
        return self._queue.stats()

    # -- called by lifecycle

    def begin_close(self, timeout: float) -> None:
        """Close the queue and ask the pipeline to stop; return at once."""
        self._deadline = time.monotonic() + timeout
        self._queue.close()
        self._call(self._wake.set)

    def finish_close(self) -> None:
        """Wait for the end of the pipeline, and count the spans that it did not take as dropped."""
        if self._pid == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join(max(self._deadline - time.monotonic(), 0.0))
        self._queue.abandon()
        stats = self._queue.stats()
        self._notices.ended(stats.dropped, stats.failed, stats.rejected, "")
        if self._pid == os.getpid() and not self._thread.is_alive():
            self._remove_files()

    def reset(self) -> None:
        """Drop all spans from now on, in a forked child: the pipeline is the parent's."""
        self._queue.reset()
        self._queue.close()
        self._notices.reset()

    def _remove_files(self) -> None:
        for sock in self._sockets:
            sock.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _call(self, what: Any) -> None:
        if self._pid == os.getpid():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(what)

    # -- in the thread of the pipeline

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits, or logged
            error = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc
            if self._started.done():
                self._notices.fault("the pipeline in this process failed", error)
            else:
                self._started.set_exception(error)
        finally:
            # Without the pipeline nothing would empty the queue: from now on, spans are dropped and counted.
            self._queue.close()
            self._queue.abandon()
            self._loop.close()

    async def _main(self) -> None:
        bus = MemoryBus(MemoryBroker())
        await bootstrap(bus, self._settings)
        pipeline = Pipeline(bus, self._configs)
        async with asyncio.TaskGroup() as tasks:
            if self._sockets:
                app = main.App(pipeline, pipeline.routes, pipeline.hot, make_documented_app)
                tasks.create_task(
                    main.serve(
                        app,
                        bus,
                        self._settings,
                        self._sockets,
                        self._stopping,
                        name="in-process",
                        parts=pipeline.parts,
                    )
                )
            else:
                tasks.create_task(pipeline.run(self._stopping))
                tasks.create_task(keep_measured(bus, self._stopping))
            await pipeline.ready()
            self._started.set_result(None)
            await self._publish_until_closed(bus)
            self._stopping.set()

    async def _publish_until_closed(self, bus: MemoryBus) -> None:
        id = f"{self._settings.nats.project}.{self._source[:128]}.{os.urandom(16).hex()}"
        subject = subjects.raw(self._settings.nats.project, 0)
        while True:
            while self._queue.batch_is_due():
                await self._publish(bus, subject, id, self._queue.take_batch())
            if self._queue.closed and not self._queue.has_waiting:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._queue.seconds_until_due()):
                    await self._wake.wait()
            self._wake.clear()

    async def _publish(self, bus: MemoryBus, subject: str, id: str, taken: TakenBatch) -> None:
        batch = Outgoing(id, self._source, taken, self._redactor, self._notices.refused)
        while True:
            try:
                await bus.publish(subject, batch.payload, id=f"{id}:{batch.sequence}")
            except Unavailable:
                # The pipeline is behind, and the bus holds as much as it may.
                await asyncio.sleep(_PAUSE_S)
                continue
            break
        self._queue.finish(acked=batch.valid, rejected=batch.rejected, truncated=batch.truncated)


def _close_all() -> None:
    """
    Close the pipelines of this process at its end.

    This has to happen before ``atexit`` handlers run, because the thread pools that the services use are shut down
    then. ``threading`` has no public call for it.
    """
    if _open:
        lifecycle.close_sources()
    for pipeline in list(_open):
        pipeline.close()


_before_pools_shut_down = getattr(threading, "_register_atexit", None)
if _before_pools_shut_down is not None:
    # Handlers run in reverse order, and that of the pools was registered when this module imported them.
    _before_pools_shut_down(_close_all)
