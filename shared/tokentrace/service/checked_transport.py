"""
HTTP connections to allowed hosts only.

A name is resolved once, each of its addresses is checked, and the connection goes to a checked address. So a name
server cannot give a harmless address to the check and another one to the connection (DNS rebinding).

With a configured proxy, connections go to the proxy, whose own address is checked in this way. The name of the receiver
is still compared with the allowed hosts, but the proxy resolves it. A proxy that the environment names is not used.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import httpcore
import httpx

from tokentrace.errors import ConfigError, Rejected, quoted
from tokentrace.service.allowed_hosts import AllowedHosts, is_global, parse_address
from tokentrace.shown import shown_url

#: Seconds after which the next address of a name is tried. The last address has the whole timeout.
_NEXT_ADDRESS_S = 1.0
#: Most hosts in private networks that are remembered; one that is forgotten is noted again when it is connected to.
_MOST_PRIVATE = 10_000


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to allowed hosts. For any other host it raises ``Rejected`` before it opens a socket."""

    def __init__(self, allowed: AllowedHosts) -> None:
        self._allowed = allowed
        self._backend = httpcore.AnyIOBackend()
        self._private: set[str] = set()

    def is_private(self, host: str) -> bool:
        """Return True if *host* was found on this machine or in a private network, and no setting lists hosts."""
        return host in self._private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """
        Connect to *host*, a name or an address; *timeout* in seconds, None = no limit.

        Raises:
            Rejected: The host is not allowed, or none of its addresses is.
            httpcore.ConnectError, httpcore.ConnectTimeout: The host cannot be resolved or reached.
        """
        *others, last = await self._addresses(host, port)
        for address in others:
            limit_s = _NEXT_ADDRESS_S if timeout is None else min(timeout, _NEXT_ADDRESS_S)
            try:
                return await self._backend.connect_tcp(address, port, limit_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._backend.connect_tcp(last, port, timeout, local_address, socket_options)

    async def _addresses(self, host: str, port: int) -> list[str]:
        address = self._allowed.check_host(host, port)
        if address is not None:
            self._note(host, [str(address)])
            return [str(address)]
        try:
            resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        usable = self._allowed.usable(host, (cast(str, sockaddr[0]) for *_, sockaddr in resolved))
        self._note(host, usable)
        return usable

    def note_address(self, host: str) -> None:
        """Note that *host*, if it is an address, is called through a proxy; ``is_private`` then knows of it."""
        address = parse_address(host)
        if address is not None:
            self._note(host, [str(address)])

    def _note(self, host: str, addresses: list[str]) -> None:
        if self._allowed.entries is None and not all(map(is_global, addresses)):
            if len(self._private) >= _MOST_PRIVATE:
                self._private.clear()
            self._private.add(host)

    async def sleep(self, seconds: float) -> None:
        """Sleep for *seconds*; the interface of httpcore requires this method."""
        await asyncio.sleep(seconds)


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class CheckedTransport(httpx.AsyncBaseTransport):
    """
    The transport of an ``httpx.AsyncClient`` that connects to allowed hosts only, and reuses connections.

    The transport of httpx accepts no network backend. So this one passes requests to a pool of httpcore, as httpx does.

    Args:
        allowed: The hosts that may be called, the proxy's among them.
        proxy: URL of the HTTP proxy, with user and password if it needs them; "" = none.
    """

    def __init__(self, allowed: AllowedHosts, proxy: str = "") -> None:
        self._allowed, self._proxied = allowed, bool(proxy)
        self._backend = CheckedBackend(allowed)
        self._pool = _pool(self._backend, proxy)

    def is_private(self, url: str) -> bool:
        """Return True if the host of *url* is one of ``CheckedBackend.is_private``."""
        try:
            return self._backend.is_private(httpx.URL(url).raw_host.decode("ascii"))
        except (httpx.InvalidURL, ValueError):
            return False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send *request* and return the response.

        Raises:
            Rejected: The host, or that of the proxy, is not allowed, or none of its addresses is.
            httpx.TransportError: There was no answer.
        """
        url = request.url
        if self._proxied:
            # Without a proxy, the backend checks the host, and its addresses too.
            self._allowed.check_url(str(url))
            self._backend.note_address(url.raw_host.decode("ascii"))
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except (
            httpcore.TimeoutException,
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.ProxyError,
            httpcore.UnsupportedProtocol,
        ) as exc:
            # Each exception of httpcore has one of the same name in httpx.
            raise getattr(httpx, type(exc).__name__, httpx.TransportError)(str(exc)) from exc
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


def check_proxy(proxy: str, allowed: AllowedHosts, key: str) -> None:
    """
    Check the URL of a proxy, without resolving its name.

    Args:
        proxy: The value of the setting *key*; "" = no proxy.

    Raises:
        ConfigError: It is not the URL of an HTTP proxy, or its host is not allowed; the text names the key.
    """
    if not proxy:
        return
    try:
        url = httpx.URL(proxy)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port != 0 and url.raw_path == b"/"
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise ConfigError(
            f"{key}: {quoted(shown_url(proxy))} is not the URL of an HTTP proxy, such as http://proxy.example.com:3128"
        )
    try:
        allowed.check_url(proxy)
    except Rejected as exc:
        raise ConfigError(f"{key}: {exc}") from exc


def _pool(backend: CheckedBackend, proxy: str) -> httpcore.AsyncConnectionPool:
    url = httpx.Proxy(proxy) if proxy else None
    options: dict[str, Any] = {
        "ssl_context": httpx.create_ssl_context(trust_env=False),
        "max_connections": None,
        "max_keepalive_connections": 100,
        "keepalive_expiry": 5.0,
        "network_backend": backend,
    }
    if url is None:
        return httpcore.AsyncConnectionPool(**options)
    return httpcore.AsyncHTTPProxy(
        httpcore.URL(scheme=url.url.raw_scheme, host=url.url.raw_host, port=url.url.port, target="/"),
        proxy_auth=url.raw_auth,
        proxy_ssl_context=httpx.create_ssl_context(trust_env=False) if url.url.scheme == "https" else None,
        **options,
    )
