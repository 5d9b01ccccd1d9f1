"""Carries batches to NATS. Imported at the first connection, because nats-py is slow to load."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tokentrace.bus import jetstream, subjects
from tokentrace.client.reporter.destination import Answer, Carrier, Destination, OnNotice
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.records import decode_notice

_CONNECT_TIMEOUT_S = 5.0


@contextlib.asynccontextmanager
async def open_nats(destination: Destination, id: str, on_notice: OnNotice) -> AsyncIterator[Carrier]:
    """Connect, as ``open_carrier`` says."""
    async with (
        jetstream.connect(
            destination.url,
            name=destination.name,
            inbox_prefix=destination.inbox_prefix,
            wait_s=_CONNECT_TIMEOUT_S,
            access=destination.access,
        ) as bus,
        _listening(bus, destination.project, id, on_notice),
    ):
        yield _NatsCarrier(bus, destination.project, destination.shards)


@contextlib.asynccontextmanager
async def _listening(bus: jetstream.JetStream, project: str, id: str, on_notice: OnNotice) -> AsyncIterator[None]:
    """Pass the notices for this reporter on, as far as the broker lets it subscribe."""

    async def take(payload: bytes) -> AsyncIterator[bytes]:
        with contextlib.suppress(Rejected):  # anyone may publish here
            on_notice(decode_notice(payload))
        return
        yield b""

    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(TokentraceError):  # refusals are then only in the counters of ingest
            await stack.enter_async_context(bus.serve(subjects.refused(project, id), take))
        yield


class _NatsCarrier:
    def __init__(self, bus: jetstream.JetStream, project: str, shards: int) -> None:
        self._bus, self._project, self._shards = bus, project, shards

    async def send(self, payload: bytes, id: str, sequence: int, project: str | None = None) -> Answer:
        await self._bus.publish(subjects.raw(project or self._project, sequence % self._shards), payload, id=id)
        return Answer()
