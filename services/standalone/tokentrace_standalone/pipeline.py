"""The whole pipeline in one process, with a private nats-server: what ``tokentrace serve`` runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from starlette.routing import BaseRoute

from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.config import HttpServer, Nats, Settings, load
from tokentrace.errors import ConfigError, TokentraceError, Unavailable
from tokentrace.service import main
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.health import Health, Sample
from tokentrace.service.listen import bind, parse_addr
from tokentrace.service.openapi import make_documented_app
from tokentrace.service.otlp_exports import Exports
from tokentrace.service.otlp_listen import OtlpListeners
from tokentrace.service.stopping import unless_stopped
from tokentrace.service.web import HotPaths
from tokentrace_aggregator import app as aggregator_app
from tokentrace_aggregator.service import Config as AggregatorConfig
from tokentrace_alerter import app as alerter_app
from tokentrace_alerter.service import Config as AlerterConfig
from tokentrace_api import app as api_app
from tokentrace_api.service import Config as ApiConfig
from tokentrace_ingest import app as ingest_app
from tokentrace_ingest.service import Config as IngestConfig
from tokentrace_standalone.broker import Broker, private_broker

log = logging.getLogger("tokentrace.serve")

_DEFAULT_ALSO = HttpServer().addr
_NATS_PORT = 4222
_PROBE_INTERVAL_S = 2.0
#: JetStream counts as stuck after this many probes in a row that find a problem although the disk has room.
_STUCK_AFTER = 3
#: Most probes between two restarts of the NATS server.
_MOST_PROBES = 30
#: The disk has room if more than this is free.
_ROOM_BYTES = 64 * 1024 * 1024
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})


class Flags(NamedTuple):
    """
    The flags of ``tokentrace serve``; None = the flag was not given.

    Attributes:
        also: The second address; ``none`` = there is no second one.
        nats: URL of a running NATS server; None = start one on *nats_port*, by default 4222.
    """

    addr: str
    also: str | None
    max_spans: int | None
    data_dir: str | None
    config: str | None
    nats: str | None
    nats_port: int | None


class Configs(NamedTuple):
    """The configuration of each service. All are checked before anything is started."""

    ingest: IngestConfig
    aggregator: AggregatorConfig
    alerter: AlerterConfig
    api: ApiConfig

    @classmethod
    def of(cls, settings: Settings) -> Configs:
        """
        Return each service's part of *settings*.

        Raises:
            ConfigError: A value is invalid; the text names its key.
        """
        api = replace(ApiConfig.of(settings), spans_path=settings.http_server.ingest_path)
        return cls(IngestConfig.of(settings), AggregatorConfig.of(settings), AlerterConfig.of(settings), api)


class Pipeline:
    """All services on one bus."""

    def __init__(self, bus: Bus, configs: Configs) -> None:
        self._apps = (
            ingest_app.compose(bus, configs.ingest),
            aggregator_app.compose(bus, configs.aggregator),
            alerter_app.compose(bus, configs.alerter),
            api_app.compose(bus, configs.api),
        )
        self._services = [app.service for app in self._apps]
        names = ("ingest", "aggregator", "alerter", "api")
        #: Name -> health of each service.
        self.parts = {name: service.health for name, service in zip(names, self._services, strict=True)}

    def health(self) -> Health:
        """Return the health of all services together: ready if each of them is."""
        missing: list[str] = []
        details: dict[str, object] = {}
        for service in self._services:
            health = service.health()
            missing += [item for item in health.missing if item not in missing]
            details |= health.details
        return Health(missing, details)

    def samples(self) -> Iterator[Sample]:
        """Yield the own metrics of each service."""
        for service in self._services:
            yield from service.samples()

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of all services, for one port."""
        return [route for app in self._apps for route in app.routes]

    @property
    def hot(self) -> HotPaths:
        """The endpoints of all services that are found by method and path, without routing."""
        return {key: endpoint for app in self._apps for key, endpoint in app.hot.items()}

    @property
    def otlp(self) -> Exports | None:
        """Takes requests of OTLP."""
        return self._apps[0].otlp

    async def run(self, stopping: asyncio.Event) -> None:
        """Run all services until *stopping* is set."""
        async with asyncio.TaskGroup() as tasks:
            for service in self._services:
                tasks.create_task(service.run(stopping))

    async def ready(self) -> None:
        """Return once every service is ready."""
        while self.health().missing:
            await asyncio.sleep(0.02)


async def serve(flags: Flags, stopping: asyncio.Event) -> None:
    """
    Run the pipeline until *stopping* is set.

    Raises:
        ConfigError: The configuration or a flag is wrong.
        Unavailable: An address or the data directory cannot be used, or NATS cannot be reached or started.
    """
    if flags.nats is not None and flags.nats_port is not None:
        raise ConfigError("--nats-port: has no effect with --nats, which names a running NATS server")
    settings = load(
        flags.config,
        overrides={"nats.url": flags.nats, "storage.dir": flags.data_dir, "retention.max_spans": flags.max_spans},
    )
    if flags.nats is None and settings.nats.url != Nats().url:
        log.warning("nats.url: has no effect without --nats: serve starts a NATS server of its own")
    configs = Configs.of(settings)
    sockets = _sockets(flags.addr, flags.also, settings.http_server.addr)
    otlp = OtlpListeners.bind(settings)
    async with contextlib.AsyncExitStack() as stack:
        nats_port = (flags.nats_port or _NATS_PORT) if flags.nats is None else None
        broker, bus, url = await unless_stopped(stopping, _connect(stack, settings, nats_port))
        pipeline = Pipeline(bus, configs)
        async with asyncio.TaskGroup() as tasks:
            app = main.App(pipeline, pipeline.routes, pipeline.hot, make_documented_app, pipeline.otlp)
            running = tasks.create_task(
                main.serve(app, bus, settings, sockets, stopping, name="serve", parts=pipeline.parts, otlp=otlp)
            )
            announcing = tasks.create_task(_announce(pipeline, sockets, otlp, url, settings))
            watching = tasks.create_task(_unstick(bus, broker)) if broker is not None else None
            await running
            announcing.cancel()
            if watching is not None:
                watching.cancel()


async def _connect(
    stack: contextlib.AsyncExitStack, settings: Settings, nats_port: int | None
) -> tuple[Broker | None, Bus, str]:
    """
    Connect to the broker and create the streams.

    Args:
        stack: Closes the connection, and stops a private broker.
        nats_port: Port on which a private broker is started; None = connect to ``nats.url``.

    Returns:
        The private broker or None, the connection, and the URL of the broker.
    """
    broker: Broker | None = None
    url = settings.nats.url
    if nats_port is not None:
        broker = await stack.enter_async_context(private_broker(Path(settings.storage.dir) / "nats", nats_port))
        url = broker.url
    bus = await stack.enter_async_context(jetstream.connect(url, name="tokentrace serve"))
    await bootstrap(bus, settings, room_bytes=None if broker is None else broker.room_bytes)
    return broker, bus, url


def _sockets(addr: str, also: str | None, addr_setting: str) -> list[socket.socket]:
    """
    Bind the addresses to listen on.

    The second address is *also*, or else *addr_setting*. If the user has chosen neither and the default :9090 cannot be
    used, only the first one is bound.
    """
    sockets = [bind(parse_addr(addr, 8700))]
    if also == "none":
        return sockets
    second = also or addr_setting
    chosen = also is not None or addr_setting != _DEFAULT_ALSO
    try:
        sock = bind(parse_addr(second, 9090))
        if _overlap(sockets[0].getsockname(), sock.getsockname()):
            sock.close()
            key = "--also" if also is not None else "http_server.addr"
            raise (ConfigError if chosen else Unavailable)(f"{key}: {second} is where --addr listens already")
        sockets.append(sock)
    except Unavailable as exc:
        if chosen:
            raise
        print(f"tokentrace: {exc}; serving on the first address only", file=sys.stderr)
    return sockets


def _overlap(first: tuple[str, int], second: tuple[str, int]) -> bool:
    """Return True if two bound sockets cannot both listen, which ``bind`` does not report."""
    return first[1] == second[1] and (first[0] == second[0] or bool(_ANY_ADDRESS & {first[0], second[0]}))


async def _announce(
    pipeline: Pipeline, sockets: list[socket.socket], otlp: OtlpListeners, url: str, settings: Settings
) -> None:
    # Asked before anything is awaited, because a server that cannot start closes its sockets.
    names = [f"http://{host}:{port}" for host, port, *_ in (sock.getsockname() for sock in sockets)]
    await pipeline.ready()
    print(f"tokentrace: spans to {jetstream.shown_urls(url)}, data in {settings.storage.dir}", flush=True)
    if str(otlp):
        print(f"tokentrace: OTLP over {otlp}", flush=True)
    print(f"tokentrace listening on {' and '.join(names)}", flush=True)


async def _unstick(bus: Bus, broker: Broker) -> None:
    """
    Restart *broker* if JetStream keeps failing although the disk has room, as it may after a full disk.

    A broker on a slow machine needs time to load its streams, so before each further restart it gets twice the probes.
    """
    failed, patience = 0, _STUCK_AFTER
    while True:
        await asyncio.sleep(_PROBE_INTERVAL_S)
        # A write to any stream shows whether JetStream can write, and this bucket always exists.
        with contextlib.suppress(TokentraceError):
            await bus.kv(subjects.META).put("probe", b"")
        room_bytes = shutil.disk_usage(broker.directory).free
        failed = failed + 1 if bus.connected and bus.problems and room_bytes > _ROOM_BYTES else 0
        if failed == 0 and not bus.problems:
            patience = _STUCK_AFTER
        if failed >= patience:
            log.error("%s, although the disk has room; restarting the NATS server", "; ".join(bus.problems))
            failed, patience = 0, min(2 * patience, _MOST_PROBES)
            await broker.restart()
