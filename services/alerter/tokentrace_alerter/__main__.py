"""``python -m tokentrace_alerter``: this service alone."""

from __future__ import annotations

import asyncio
import sys

from tokentrace.bus import jetstream
from tokentrace.http import bind, health_routes, make_app, parse_addr, serve_http
from tokentrace.program import run_service
from tokentrace.provision import provision
from tokentrace.settings import Settings
from tokentrace_alerter.service import Alerter, Config

DEFAULT_PORT = 8702


async def run(settings: Settings, addr: str, stopping: asyncio.Event) -> None:
    """Serve until *stopping* is set."""
    config = Config.of(settings)
    sock = bind(parse_addr(addr, DEFAULT_PORT))
    async with jetstream.connect(settings.nats.url, name="alerter", wait_s=60) as bus:
        await provision(bus, settings)
        service = Alerter(bus, config)
        routes = [*service.routes(), *health_routes(service.health, service.samples)]
        app = make_app(routes, token=settings.http_server.auth_token, open_paths=settings.open_paths)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(stopping))
            tasks.create_task(serve_http(app, [sock], stopping=stopping))


def main() -> int:
    """The program; returns its exit code."""
    return run_service("tokentrace_alerter", "The alerter service of tokentrace.", run, port=DEFAULT_PORT)


if __name__ == "__main__":
    sys.exit(main())
