"""The further addresses at which OTLP is taken: one for HTTP, with no other route, and one for gRPC."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute, Route

from tokentrace.config import Settings
from tokentrace.errors import ConfigError
from tokentrace.service.admit import Admission, Door
from tokentrace.service.listen import bind, parse_addr, serve_http
from tokentrace.service.otlp_answers import OTLP_PATHS
from tokentrace.service.otlp_exports import Exports
from tokentrace.service.web import HotPathApp, HotPaths, make_app

if TYPE_CHECKING:
    from tokentrace.service.otlp_grpc import GrpcServer

HTTP_PORT, GRPC_PORT = 4318, 4317


class OtlpListeners:
    """
    The sockets of these addresses.

    Attributes:
        sockets: The bound socket for HTTP; empty if there is no such address.
        grpc: The server for gRPC, which is bound and not started; None if there is no such address.
    """

    def __init__(self, sockets: list[socket.socket], grpc: GrpcServer | None) -> None:
        self.sockets, self.grpc = sockets, grpc

    @classmethod
    def bind(cls, settings: Settings) -> OtlpListeners:
        """
        Bind the addresses in *settings*, in a running event loop.

        Raises:
            ConfigError: An address is wrong, or the extra for gRPC is not installed.
            Unavailable: An address is in use.
        """
        otlp = settings.otlp
        with _named("otlp.http_addr"):
            sockets = [bind(parse_addr(otlp.http_addr, HTTP_PORT))] if otlp.http_addr else []
        if not otlp.grpc_addr:
            return cls(sockets, None)
        if find_spec("grpc") is None:
            raise ConfigError("otlp.grpc_addr: needs the extra 'grpc': pip install 'tokentrace[grpc]'")
        from tokentrace.service.otlp_grpc import GrpcServer

        with _named("otlp.grpc_addr"):
            addr = parse_addr(otlp.grpc_addr, GRPC_PORT)
        return cls(sockets, GrpcServer(addr, otlp.max_body_bytes))

    def __str__(self) -> str:
        """Return the addresses, for the log; "" = there are none."""
        shown = [f"HTTP at http://{host}:{port}" for host, port, *_ in (sock.getsockname() for sock in self.sockets)]
        if self.grpc is not None:
            shown.append(f"gRPC at {self.grpc.addr}")
        return " and over ".join(shown)

    async def serve(
        self,
        exports: Exports,
        routes: Sequence[BaseRoute],
        hot: HotPaths,
        admission: Admission,
        stopping: asyncio.Event,
    ) -> None:
        """Take requests until *stopping* is set; of *routes* and *hot* only those of OTLP are served."""
        async with asyncio.TaskGroup() as tasks:
            if self.sockets:
                shown = [route for route in routes if isinstance(route, Route) and route.path in OTLP_PATHS]
                found = {key: endpoint for key, endpoint in hot.items() if key[1] in OTLP_PATHS}
                app = Door(HotPathApp(make_app(shown), found), admission)
                tasks.create_task(serve_http(app, self.sockets, stopping=stopping))
            if self.grpc is not None:
                tasks.create_task(self.grpc.serve(exports, admission, stopping))


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Put *key* in front of the text of a ``ConfigError``."""
    try:
        yield
    except ConfigError as exc:
        raise ConfigError(f"{key}: {str(exc).removeprefix('addr: ')}") from exc
