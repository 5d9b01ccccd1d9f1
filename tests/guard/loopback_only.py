"""
Refuses connections, datagrams and look-ups of this process that would leave the machine, before anything is sent.

``conftest`` calls ``install`` in pytest. ``sitecustomize`` calls it in the Python processes that a test starts, because
``conftest`` puts this directory on PYTHONPATH. Each refusal is also written to a file, so that the test fails even if
the program under test catches the exception.

Sockets of Python and of uvloop are checked. Sockets that other C code or other programs open are not: nats-server,
apt-get, docker.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

#: The environment variable with the path of the file to which refusals are written, one per line.
LOG = "LOOPBACK_ONLY_LOG"
_DIRECTED = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_RESOLVING = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
_installed = False
_read = 0


class LeftLoopback(AssertionError):
    """A connection, datagram or look-up would have left the machine."""


def install() -> None:
    """Install the checks, unless they are installed; they stay until the process ends."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_on_event)
        sys.meta_path.insert(0, _UvloopFinder)


def refusals() -> list[str]:
    """Return the lines that this process and those it started have written to the file since the last call."""
    global _read
    with Path(os.environ[LOG]).open("rb") as file:
        file.seek(_read)
        lines = file.read()
        _read += len(lines)
    return lines.decode().splitlines()


def check_host(host: object, what: str) -> None:
    """
    Raise LeftLoopback unless *host* is ``localhost`` or a loopback address.

    Args:
        host: A name or an address, text or bytes.
        what: Name of the call, for the error text.
    """
    if not _is_loopback(host):
        _refuse(f"{what}: {host!r}")


def _is_loopback(host: object) -> bool:
    text = host.decode(errors="replace") if isinstance(host, bytes | bytearray) else str(host)
    if text == "localhost":
        return True
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _refuse(what: str) -> None:
    message = f"{' '.join(sys.argv[:4])}: {what} would leave loopback"
    path = os.environ.get(LOG)
    if path:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, message.replace("\n", " ").encode(errors="replace") + b"\n")
        finally:
            os.close(file)
    raise LeftLoopback(message)


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _DIRECTED:
        sock, address = arguments
        # Without an address the socket is connected, and its connection was checked.
        if address is not None and sock.family not in (socket.AF_UNIX, getattr(socket, "AF_NETLINK", None)):
            check_host(address[0], event)
    elif event in _RESOLVING and not _needs_no_look_up(arguments[0]):
        check_host(arguments[0], event)


def _needs_no_look_up(host: object) -> bool:
    """Return True if *host* is an address or empty; an address is checked when a socket connects or sends to it."""
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host))
    except ValueError:
        return host in (None, "", b"")
    return True


class _UvloopFinder:
    """An import hook that adds checks to uvloop's event loop, which connects and resolves in C without audit events."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "uvloop":
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _guard_loop(module.Loop)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _guard_loop(loop: Any) -> None:
    connect, resolve, bind = loop.create_connection, loop.getaddrinfo, loop.create_datagram_endpoint

    async def create_connection(self: Any, factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        if host is not None:
            check_host(host, "uvloop create_connection")
        return await connect(self, factory, host, port, **options)

    async def getaddrinfo(self: Any, host: Any, port: Any, **options: Any) -> Any:
        if not _needs_no_look_up(host):
            check_host(host, "uvloop getaddrinfo")
        return await resolve(self, host, port, **options)

    async def create_datagram_endpoint(
        self: Any, factory: Any, local_addr: Any = None, remote_addr: Any = None, **options: Any
    ) -> Any:
        # Without a remote address the endpoint could send anywhere, and no later call could be checked.
        check_host("any address" if remote_addr is None else remote_addr[0], "uvloop create_datagram_endpoint")
        return await bind(self, factory, local_addr, remote_addr, **options)

    loop.create_connection, loop.getaddrinfo = create_connection, getaddrinfo
    loop.create_datagram_endpoint = create_datagram_endpoint
