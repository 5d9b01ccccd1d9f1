"""Addresses to listen on: a port in use is one sentence, also if it is taken between binding and listening."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from kit.pipeline import free_port
from tokentrace.errors import Unavailable
from tokentrace.service.listen import bind, serve_http


async def app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nothing asks")


def test_a_port_on_which_another_process_listens_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind(("127.0.0.1", port))


async def test_a_port_that_is_taken_after_it_was_bound_is_named() -> None:
    """Two sockets may be bound to one port until one of them listens; two programs that start at once are like that."""
    port = free_port()
    first, second = bind(("127.0.0.1", port)), bind(("127.0.0.1", port))
    with contextlib.closing(first):
        first.listen()
        with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            await serve_http(app, [second], stopping=asyncio.Event())
    second.close()
