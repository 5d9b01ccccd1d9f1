"""A service as a program, which reads flags and settings, opens a connection and a socket, and runs until stopped."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn, Protocol, TypeVar

from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from tokentrace.bus import Bus, jetstream
from tokentrace.config import Settings, load
from tokentrace.service import runtime
from tokentrace.service.admit import Admission, Door
from tokentrace.service.alive import answer_alive
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.broker_clock import keep_measured
from tokentrace.service.credentials import make_credentials
from tokentrace.service.health import Health, Sample, health_routes
from tokentrace.service.listen import bind, parse_addr, serve_http
from tokentrace.service.login import Login, agreed_secret
from tokentrace.service.otlp_exports import Exports
from tokentrace.service.otlp_listen import OtlpListeners
from tokentrace.service.set_aside import publish_set_aside
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace.service.web import HotPathApp, HotPaths, make_app
from tokentrace.units import SECOND

#: How long a service waits for its first connection, seconds; in containers the broker may start after the service.
_CONNECT_S = 60.0
#: Seconds between two looks whether there is a first key.
_LOOK_S = 1.0

C = TypeVar("C")


class Service(Protocol):
    """A service that a program runs."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until *stopping* is set, then finish what is under way."""
        ...

    def health(self) -> Health:
        """Return whether the service is ready."""
        ...

    def samples(self) -> Iterable[Sample]:
        """Return the service's own metrics."""
        ...


class MakeHttp(Protocol):
    """Makes the HTTP application of a service from its routes, and adds the routes of health and metrics."""

    def __call__(
        self,
        routes: Sequence[BaseRoute],
        hot: HotPaths,
        health: Callable[[], Health],
        samples: Callable[[], Iterable[Sample]],
        admission: Admission,
    ) -> ASGIApp:
        """Return the application; the arguments are those of ``openapi.make_documented_app``."""
        ...


def make_plain_app(
    routes: Sequence[BaseRoute],
    hot: HotPaths,
    health: Callable[[], Health],
    samples: Callable[[], Iterable[Sample]],
    admission: Admission,
) -> ASGIApp:
    """Return an application without FastAPI and so without a document, which saves 15 MiB and half a second."""
    return Door(HotPathApp(make_app([*routes, *health_routes(health, samples)]), hot), admission)


class App(NamedTuple):
    """
    A service and its HTTP routes.

    Attributes:
        routes: The routes, without those of health and metrics, which ``make_http`` adds.
        hot: Endpoints that are looked up before any routing, by method and path.
        make_http: ``openapi.make_documented_app`` for a service that has *routes*.
        otlp: Takes requests of OTLP; None = the service takes none.
    """

    service: Service
    routes: Sequence[BaseRoute] = ()
    hot: HotPaths = MappingProxyType({})
    make_http: MakeHttp = make_plain_app
    otlp: Exports | None = None


def run_service(
    name: str,
    *,
    port: int,
    configure: Callable[[Settings], C],
    compose: Callable[[Bus, C], App],
    default_addr: Callable[[Settings], str] | None = None,
    takes_otlp: bool = False,
) -> int:
    """
    Run one service as ``python -m tokentrace_<name>``, with settings from flags, environment and file.

    Args:
        port: The port on which the service listens if no address, or an address without a port, is given.
        configure: Returns the service's part of the settings; raises ConfigError before anything is started.
        compose: Makes the service and its routes.
        default_addr: Returns the address if neither --addr nor TOKENTRACE_ADDR is given; None = *port* on 127.0.0.1.
        takes_otlp: The service also listens on the addresses of OTLP.

    Returns:
        The exit code, as ``runtime.run``.
    """
    tool = f"tokentrace_{name}"
    flags = _arguments(tool, f"The {name} service of tokentrace.").parse_args()

    async def run(stopping: asyncio.Event) -> None:
        settings = load(flags.config, overrides={"nats.url": flags.nats, "storage.dir": flags.data_dir})
        addr = flags.addr
        if addr is None:
            addr = os.environ.get("TOKENTRACE_ADDR") or (default_addr(settings) if default_addr else f":{port}")
        config = configure(settings)
        sock = bind(parse_addr(addr, port))
        otlp = OtlpListeners.bind(settings) if takes_otlp else None
        async with contextlib.AsyncExitStack() as stack:
            bus = await unless_stopped(stopping, _connect(stack, settings, name))
            await serve(compose(bus, config), bus, settings, [sock], stopping, name=name, otlp=otlp)

    return runtime.run(tool, run)


async def _connect(stack: contextlib.AsyncExitStack, settings: Settings, name: str) -> Bus:
    bus = await stack.enter_async_context(jetstream.connect(settings.nats.url, name=name, wait_s=_CONNECT_S))
    await bootstrap(bus, settings)
    return bus


async def serve(
    app: App,
    bus: Bus,
    settings: Settings,
    sockets: Sequence[socket.socket],
    stopping: asyncio.Event,
    *,
    name: str,
    parts: Mapping[str, Callable[[], Health]] | None = None,
    otlp: OtlpListeners | None = None,
) -> None:
    """
    Run the service of *app* and its HTTP server, with health and metrics, until *stopping* is set.

    Args:
        bus: The connection of the service.
        name: The name of the service in the key under which ``publish_set_aside`` publishes.
        parts: Name -> health of each service in this process; None = *name* is the only one.
        otlp: The further addresses of OTLP, if ``app.otlp`` takes it.
    """
    service = app.service

    def health() -> Health:
        state, totals = service.health(), bus.set_aside.totals
        return state._replace(details={**state.details, "set_aside": dict(totals)}) if totals else state

    def samples() -> Iterator[Sample]:
        yield from service.samples()
        for place, count in sorted(bus.set_aside.totals.items()):
            yield Sample("tokentrace_set_aside_total", "Data that could not be decoded.", count, {"place": place})
        skew_ns = bus.clock.skew_ns()
        if skew_ns is not None:
            text = "By how much the clock of this host is ahead of the broker's, which decides."
            yield Sample("tokentrace_clock_ahead_seconds", text, skew_ns / SECOND)

    project = settings.nats.project
    credentials = await make_credentials(settings.http_server.auth_token, project, bus, stopping)
    now = bus.clock.now_ns
    login = Login(credentials, project=project, public_url=settings.http_server.public_url, now=lambda: now() / SECOND)
    if credentials.needed:
        login.secret = await unless_stopped(stopping, agreed_secret(bus))
    listening = [*sockets, *(otlp.sockets if otlp is not None else ())]
    admission = Admission.of(settings, [sock.getsockname()[0] for sock in listening], login, credentials)
    http = app.make_http(app.routes, app.hot, health, samples, admission)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(stopping))
        tasks.create_task(publish_set_aside(bus, name, stopping))
        tasks.create_task(credentials.follow(stopping))
        tasks.create_task(_know_secret(login, bus, stopping))
        tasks.create_task(keep_measured(bus, stopping))
        tasks.create_task(answer_alive(bus, parts or {name: service.health}, stopping))
        tasks.create_task(serve_http(http, sockets, stopping=stopping))
        if otlp is not None and app.otlp is not None:
            tasks.create_task(otlp.serve(app.otlp, app.routes, app.hot, admission, stopping))


async def _know_secret(login: Login, bus: Bus, stopping: asyncio.Event) -> None:
    """Agree on the secret of the cookies once there is a key, if there was neither a token nor a key at the start."""
    with contextlib.suppress(Stopped):
        while login.secret is None:
            await unless_stopped(stopping, asyncio.sleep(_LOOK_S))
            if login.needed:
                login.secret = await unless_stopped(stopping, agreed_secret(bus))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(runtime.EXIT_CONFIG, f"{self.prog}: {runtime.one_line(message)}\n")


def _arguments(tool: str, what: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=tool, description=what)
    parser.add_argument(
        "--config", metavar="FILE", help="configuration file (default: ./tokentrace.yml, if that file exists)"
    )
    parser.add_argument("--nats", metavar="URL", help="URL of the NATS server; overrides nats.url")
    parser.add_argument("--addr", metavar="HOST:PORT", help="where to listen; without a host: 127.0.0.1")
    parser.add_argument("--data-dir", metavar="DIR", help="directory for files; overrides storage.dir")
    return parser
