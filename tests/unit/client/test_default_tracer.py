"""What is given no tracer uses the default one, whichever that is at the moment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest

from tokentrace import BufferTransport, Tracer, WsgiTraceMiddleware, set_default_tracer


@pytest.fixture
def buffer() -> Iterator[BufferTransport]:
    buffer = BufferTransport()
    yield buffer
    set_default_tracer(None)


def test_a_middleware_without_a_tracer_uses_the_default_one_of_the_moment(buffer: BufferTransport) -> None:
    def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    app = WsgiTraceMiddleware(hello)
    set_default_tracer(Tracer(buffer))
    environ: dict[str, Any] = {"PATH_INFO": "/hello"}
    setup_testing_defaults(environ)
    body: Any = app(environ, lambda *_: None)
    assert list(body) == [b"hello"]
    body.close()
    assert [span.name for span in buffer.spans] == ["GET /hello"]
