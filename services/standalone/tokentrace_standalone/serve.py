"""``tokentrace serve``: every service in one process, and a nats-server of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from starlette.routing import BaseRoute

from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.config import Settings, load
from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.service import main
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.health import Health, Sample
from tokentrace.service.listen import bind, parse_addr
from tokentrace.service.openapi import make_documented_app
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

DEFAULT_ADDR, DEFAULT_ALSO = ":8700", ":9090"
_PROBE_EVERY_S = 2.0
#: So many looks in a row that find trouble, with room on the disk: JetStream is stuck.
_STUCK = 3
_ROOM_BYTES = 64 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``serve``."""
    parser.add_argument("--addr", default=DEFAULT_ADDR, metavar="HOST:PORT", help="where to listen (default :8700)")
    parser.add_argument(
        "--also", default=None, metavar="HOST:PORT|none", help="a second address (default :9090 when it is free)"
    )
    parser.add_argument("--max-spans", type=int, metavar="N", help="spans kept for /traces; 0 = no limit (default)")
    parser.add_argument("--data-dir", metavar="DIR", help="where everything is kept (default ./tokentrace-data)")
    parser.add_argument("--config", metavar="FILE", help="tokentrace.yml (default: ./tokentrace.yml if it is there)")
    parser.add_argument("--nats", metavar="URL", help="use this NATS server instead of a private one")
    parser.add_argument("--nats-port", type=int, default=4222, metavar="PORT", help="of the private one (default 4222)")


class Configs(NamedTuple):
    """What each service has to know: made, and so checked, before anything is started."""

    ingest: IngestConfig
    aggregator: AggregatorConfig
    alerter: AlerterConfig
    api: ApiConfig

    @classmethod
    def of(cls, settings: Settings) -> Configs:
        """Everybody's part of *settings*."""
        return cls(
            IngestConfig.of(settings), AggregatorConfig.of(settings), AlerterConfig.of(settings), ApiConfig.of(settings)
        )


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

    def health(self) -> Health:
        """Ready when every service is."""
        missing: list[str] = []
        details: dict[str, object] = {}
        for service in self._services:
            health = service.health()
            missing += [item for item in health.missing if item not in missing]
            details |= health.details
        return Health(missing, details)

    def samples(self) -> Iterator[Sample]:
        """Everybody's own metrics."""
        for service in self._services:
            yield from service.samples()

    @property
    def routes(self) -> list[BaseRoute]:
        """The routes of all services, all on one port."""
        return [route for app in self._apps for route in app.routes]

    @property
    def hot(self) -> HotPaths:
        """Return the hot paths of all services."""
        return {key: endpoint for app in self._apps for key, endpoint in app.hot.items()}

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until *stopping* is set."""
        async with asyncio.TaskGroup() as tasks:
            for service in self._services:
                tasks.create_task(service.run(stopping))

    async def ready(self) -> None:
        """Return once every service is."""
        while self.health().missing:
            await asyncio.sleep(0.02)


async def serve(given: argparse.Namespace, stopping: asyncio.Event) -> None:
    """Run the pipeline until *stopping* is set."""
    settings = load(
        given.config,
        overrides={"nats.url": given.nats, "storage.dir": given.data_dir, "retention.max_spans": given.max_spans},
    )
    configs = Configs.of(settings)
    sockets = _sockets(given.addr, given.also)
    async with contextlib.AsyncExitStack() as stack:
        nats_port = given.nats_port if given.nats is None else None
        broker, bus, url = await unless_stopped(stopping, _connect(stack, settings, nats_port))
        pipeline = Pipeline(bus, configs)
        async with asyncio.TaskGroup() as tasks:
            app = main.App(pipeline, pipeline.routes, pipeline.hot, make_documented_app)
            running = tasks.create_task(main.serve(app, bus, settings, sockets, stopping, name="serve"))
            announcing = tasks.create_task(_announce(pipeline, sockets, url, settings))
            watching = tasks.create_task(_unstick(bus, broker)) if broker is not None else None
            await running
            announcing.cancel()
            if watching is not None:
                watching.cancel()


async def _connect(
    stack: contextlib.AsyncExitStack, settings: Settings, nats_port: int | None
) -> tuple[Broker | None, Bus, str]:
    """A private broker on *nats_port*, or none; a connection to it, with every stream there is; its URL."""
    broker: Broker | None = None
    url = settings.nats.url
    if nats_port is not None:
        broker = await stack.enter_async_context(private_broker(Path(settings.storage.dir) / "nats", nats_port))
        url = broker.url
    bus = await stack.enter_async_context(jetstream.connect(url, name="tokentrace serve"))
    await bootstrap(bus, settings, room_bytes=None if broker is None else broker.room_bytes)
    return broker, bus, url


def _sockets(addr: str, also: str | None) -> list[socket.socket]:
    sockets = [bind(parse_addr(addr, 8700))]
    if also == "none":
        return sockets
    try:
        sockets.append(bind(parse_addr(also or DEFAULT_ALSO, 9090)))
    except Unavailable as exc:
        if also is not None:
            raise
        print(f"tokentrace: {exc}; serving on the first address only", file=sys.stderr)
    return sockets


async def _announce(pipeline: Pipeline, sockets: list[socket.socket], url: str, settings: Settings) -> None:
    await pipeline.ready()
    names = [f"http://{host}:{port}" for host, port, *_ in (sock.getsockname() for sock in sockets)]
    print(f"tokentrace: spans to {url}, data in {settings.storage.dir}", flush=True)
    print(f"tokentrace listening on {' and '.join(names)}", flush=True)


async def _unstick(bus: Bus, broker: Broker) -> None:
    """After a full disk JetStream goes on failing although there is room again: start it anew then."""
    failed = 0
    while True:
        await asyncio.sleep(_PROBE_EVERY_S)
        # A stream nobody writes to now is not missed; what the probe is stored on is as good as any for a start.
        with contextlib.suppress(TokentraceError):
            await bus.kv(subjects.META).put("probe", b"")
        room = shutil.disk_usage(broker.directory).free
        failed = failed + 1 if bus.connected and bus.problems and room > _ROOM_BYTES else 0
        if failed >= _STUCK:
            log.error("%s, although the disk has room; starting it again", "; ".join(bus.problems))
            failed = 0
            await broker.restart()
