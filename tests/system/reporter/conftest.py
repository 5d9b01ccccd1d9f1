"""Fixtures for tests of the reporter: URLs of a broker without ingest, of a closed port and of a silent server."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from kit.broker import Broker
from kit.pipeline import free_port
from kit.raw_stream import create_streams
from kit.spools import refusing_port
from tokentrace import Reporter


@pytest.fixture
def url(broker: Broker) -> str:
    """Return the URL of a broker with all streams and without ingest, so that batches stay in ``TT_RAW``."""
    create_streams(broker.url)
    return broker.url


@pytest.fixture(params=["nats", "http"])
def unreachable_url(request: pytest.FixtureRequest) -> str:
    """Return a URL with a closed port."""
    return f"{request.param}://127.0.0.1:{free_port()}"


@pytest.fixture
def away_url() -> Iterator[str]:
    """Yield the URL of a broker that is away."""
    with refusing_port() as port:
        yield f"nats://127.0.0.1:{port}"


@pytest.fixture(params=["nats", "http"])
def silent_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield the URL of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"{request.param}://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def close_later() -> Iterator[Callable[[Reporter], Reporter]]:
    """Yield a function that returns its argument and closes it after the test without waiting for its spans."""
    reporters: list[Reporter] = []

    def keep(reporter: Reporter) -> Reporter:
        reporters.append(reporter)
        return reporter

    yield keep
    for reporter in reporters:
        reporter.close(0)
