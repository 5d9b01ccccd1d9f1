"""The way from ingest to other backends, on any bus: settings, what a backend received, and a tee with a forwarder."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from kit.environment import PATIENCE
from kit.receiver import Sent
from tokentrace.bus import Bus, Stream, subjects
from tokentrace.config import Settings, build
from tokentrace.dialect.otlp.messages import read_request
from tokentrace.dialect.otlp.own_names import VIA
from tokentrace_ingest.forward.forwarder import Forwarder
from tokentrace_ingest.forward.targets import Forwarding
from tokentrace_ingest.forward.tee import Tee

#: In a URL, a header and a request: none of them may be shown or, in the request, sent on.
URL_SECRET, HEADER_SECRET = "geheim-path", "geheim-header"
KEY = "sk-proj-" + "Ab3dEf6hIj9lMn2pQr5tUv8x" * 2


def settings_of(*targets: Mapping[str, Any], allow_hosts: Sequence[str] | None = ("127.0.0.1",)) -> Settings:
    """Return the settings with *targets*."""
    otlp: dict[str, Any] = {"forward": [dict(target) for target in targets]}
    if allow_hosts is not None:
        otlp["forward_allow_hosts"] = list(allow_hosts)
    return build({"otlp": otlp}, "test.yml")


def streams_of(settings: Settings) -> list[Stream]:
    """Return the streams that a service with *settings* makes."""
    queues = [subjects.ForwardQueue(target.name, target.max_bytes, target.max_age) for target in settings.otlp.forward]
    return subjects.streams(forward=queues)


def signal_of(sent: Sent) -> str:
    """Return the signal of a request that a backend received."""
    return sent.path.rpartition("/")[2]


def request_in(sent: Sent) -> Any:
    """Return what a backend received, as a message of ``opentelemetry-proto``."""
    assert sent.header("Content-Type") == "application/x-protobuf"
    assert sent.header("Content-Encoding") == "gzip"
    signal: Any = signal_of(sent)
    return read_request(signal, "protobuf", gzip.decompress(sent.body))


def without_mark(request: Any) -> Any:
    """Return *request* after removing from each resource which pipelines have sent it on; there is at least one."""
    for _, parts in request.ListFields():
        for part in parts:
            attributes = part.resource.attributes
            marks = [pair for pair in attributes if pair.key == VIA]
            assert len(marks) == 1
            attributes.remove(marks[0])
            if not part.resource.ListFields():
                part.ClearField("resource")  # There was none.
    return request


def names_in(sent: Sequence[Sent]) -> list[str]:
    """Return the names of all spans in *sent*, sorted."""
    return sorted(
        span.name
        for one in sent
        for part in request_in(one).resource_spans
        for group in part.scope_spans
        for span in group.spans
    )


class Forwards:
    """
    A tee and a forwarder with one set of settings.

    Attributes:
        stopping: Set it to stop the forwarder as SIGTERM does, and wait for ``ended``.
    """

    def __init__(self, bus: Bus, settings: Settings, forwarding: Forwarding | None = None) -> None:
        self.bus = bus
        forwarding = Forwarding.of(settings) if forwarding is None else forwarding
        redactor = settings.redaction.redactor
        self.tee = Tee(bus, forwarding.targets, redactor)
        self.forwarder = Forwarder(bus, forwarding, redactor)
        self.stopping = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Forwards]:
        """Run the forwarder."""
        self._work = asyncio.create_task(self.forwarder.run(self.stopping))
        try:
            yield self
        finally:
            self._work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._work

    async def ended(self) -> None:
        """Stop the forwarder as SIGTERM does, and return once it has ended."""
        assert self._work is not None
        self.stopping.set()
        async with asyncio.timeout(30 * PATIENCE):
            await self._work

    async def waiting(self, target: str) -> int:
        """Return the number of messages that are not acknowledged."""
        return (await self.bus.state(subjects.forward_stream(target))).messages

    async def sent_all(self, target: str) -> None:
        """Return once every message for *target* is acknowledged."""
        async with asyncio.timeout(20 * PATIENCE):
            while await self.waiting(target):
                assert self._work is not None
                assert not self._work.done(), self._work.exception()
                await asyncio.sleep(0.02)
