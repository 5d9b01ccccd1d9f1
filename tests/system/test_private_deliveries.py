"""The log of deliveries does not show which ports of a private network are open; no test connects beyond loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kit.receiver import DeliveryRun, Receiver, Reply, make_event, make_rule

TIMEOUT_S = 0.3


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Return an open port that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


async def records_of(url: str, allow_hosts: list[str] | None, attempts: int = 2) -> tuple[list[dict[str, Any]], float]:
    """Return the records of the delivery of one event to *url*, and how long it took, seconds."""
    delivery = {"type": "http", "url": url, "timeout": f"{int(TIMEOUT_S * 1000)}ms", "max_retries": attempts - 1}
    began = time.monotonic()
    async with DeliveryRun(make_rule(delivery=delivery), allow_hosts=allow_hosts) as run:
        await run.publish(make_event())
        await run.done()
        return run.records(), time.monotonic() - began


def shown(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the records show beside the destination and the time of day."""
    return [{key: record[key] for key in ("outcome", "attempt", "error", "took_ms")} for record in records]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_closed_an_open_and_a_silent_port_leave_the_same_records(
    host: str, closed_port: int, silent_port: int
) -> None:
    with Receiver(lambda sent: Reply(404)) as refusing, Receiver(lambda sent: Reply(500)) as failing:
        ports = (closed_port, silent_port, refusing.port, failing.port)
        told = [await records_of(f"http://{host}:{port}/x", None) for port in ports]
        assert refusing.sent, "an attempt was made"
    first, *others = [shown(records) for records, _ in told]
    assert [record["outcome"] for record in first] == ["retry", "dead"]
    assert all(record["took_ms"] is None for record in first)
    assert all(other == first for other in others)
    # Every attempt takes the whole timeout.
    assert min(took for _, took in told) >= 2 * TIMEOUT_S


async def test_a_listed_host_is_told_in_full(closed_port: int) -> None:
    with Receiver(lambda sent: Reply(404)) as refusing:
        (record,), _ = await records_of(refusing.url, ["127.0.0.1"])
        assert (record["outcome"], record["error"]) == ("dead", "HTTP 404")
    records, _ = await records_of(f"http://127.0.0.1:{closed_port}/x", ["127.0.0.1"])
    assert records[0]["error"].startswith("no answer: ")


async def test_a_delivery_to_a_private_address_succeeds_as_ever() -> None:
    with Receiver() as receiver:
        (record,), _ = await records_of(receiver.url, None)
    assert (record["outcome"], record["error"]) == ("delivered", "")


@pytest.mark.parametrize("host", ["169.254.169.254", "[fd00:ec2::254]", "100.100.100.200", "[fe80::1]"])
async def test_by_default_a_metadata_address_is_never_called(host: str) -> None:
    """``tests/unit/test_allowed.py`` checks every spelling, and ``test_loopback_only.py`` that no socket is opened."""
    (record,), _ = await records_of(f"http://{host}/latest", None)
    assert (record["outcome"], record["attempt"]) == ("dead", 1)
    assert "link-local or metadata" in record["error"]
