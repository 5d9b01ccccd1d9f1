"""Two ingest processes that may end each other's spans, an api, and the log and the bucket that they write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kit.fleet import Fleet
from kit.pipeline import Answer, http
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.records import Annotation, Batch, ChatMessage, Span, Started, decode_batches
from tokentrace_ingest.open_spans import OpenSpan

T = TypeVar("T")

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: The headers that the SDK sends.
HEADERS = {"Authorization": "Bearer ck-any-key", "X-Project-ID": "shop", "Content-Type": "application/json"}
NAMES = ("ingest-0", "ingest-1", "api")


class Replicas(Fleet):
    """A fleet of *names* whose requests have the form of Cost Katana; ingest is chosen by its number."""

    def __init__(self, directory: Path, env: Mapping[str, str] | None = None, *, names: Sequence[str] = NAMES) -> None:
        super().__init__(directory, names, env)

    def await_ready(self, name: str) -> None:
        """Wait until a process is ready that was started or whose broker was away."""
        self.until(lambda: self.get(name, "/readyz").status == 200, f"{name} ready", 60)

    def restart(self, name: str) -> None:
        """Kill one process, start it again and wait until it is ready."""
        self.kill(name)
        self.start_one(name)
        self.await_ready(name)

    def post(self, path: str, body: Any, replica: int | str = 0, headers: Mapping[str, str] | None = None) -> Answer:
        """Post *body* to an ingest, or to the api if *replica* is its name."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return http("POST", self.url_of(replica) + path, data, {**HEADERS, **(headers or {})})

    def url_of(self, replica: int | str = 0) -> str:
        """The base URL of an ingest by its number, or of the api by its name."""
        return self.url(replica if isinstance(replica, str) else f"ingest-{replica}")

    def start_span(self, replica: int | str = 0, **fields: Any) -> tuple[str, str]:
        """Start a span and return its (traceId, sessionId)."""
        answer = self.post("/api/traces/start", {"name": "x", "type": "custom", **fields}, replica)
        assert answer.status == 200, answer.body
        shown = answer.json()
        assert shown.keys() == {"traceId", "sessionId"}
        return shown["traceId"], shown["sessionId"]

    def end_span(self, span_id: str, replica: int | str = 0, **fields: Any) -> None:
        """End a span."""
        answer = self.post(f"/api/traces/{span_id}/end", {"status": "ok", **fields}, replica)
        assert answer.status == 200, answer.body

    def with_bus(self, ask: Callable[[Bus], Awaitable[T]]) -> T:
        """Run *ask* with a new connection and return its result."""

        async def run() -> T:
            async with jetstream.connect(self.broker.url, name="test") as bus:
                return await ask(bus)

        return asyncio.run(run())

    def batches(self) -> list[Batch]:
        """All batches of the log in its order, repetitions included."""

        async def read(bus: Bus) -> list[Batch]:
            batches: list[Batch] = []
            if not (await bus.state(subjects.SPANS)).messages:
                return batches
            async with contextlib.aclosing(bus.follow(subjects.SPANS, [subjects.ALL_SPANS], None)) as feed:
                async for chunk in feed:
                    for message in chunk.messages:
                        batches += decode_batches(message.payload)
                    if not chunk.pending:
                        break
            return batches

        return self.with_bus(read)

    def batches_of(self, span_id: str) -> list[Batch]:
        """The batches of the log whose id names the span."""
        return [batch for batch in self.batches() if span_id in batch.id]

    def read(self) -> Log:
        """The log as it is now."""
        return Log(self.batches())

    def open_spans(self) -> dict[str, OpenSpan]:
        """Span id -> what the bucket holds of the span."""
        return {opened.started.span_id: opened for opened in self._entries().values()}

    def rewrite(self, span_id: str, change: Callable[[OpenSpan], OpenSpan]) -> None:
        """Change the entry of a span in the bucket, for example to what a killed process leaves."""
        key = next(key for key, opened in self._entries().items() if opened.started.span_id == span_id)

        async def write(bus: Bus) -> None:
            bucket = bus.kv(subjects.OPEN_SPANS)
            entry = await bucket.get(key)
            assert entry is not None
            opened = change(msgspec.msgpack.decode(entry.value, type=OpenSpan))
            await bucket.update(key, msgspec.msgpack.encode(opened), entry.revision)

        self.with_bus(write)

    def _entries(self) -> dict[str, OpenSpan]:
        async def read(bus: Bus) -> dict[str, OpenSpan]:
            items = await bus.kv(subjects.OPEN_SPANS).items()
            opened = {key: entry for key, entry in items.items() if not key.startswith("place.")}
            return {key: msgspec.msgpack.decode(entry.value, type=OpenSpan) for key, entry in opened.items()}

        return self.with_bus(read)


class Log:
    """
    The log as a reader folds it: of a batch that occurs several times, only the first counts.

    Attributes:
        batches: All batches, repetitions included.
        spans, started, messages, annotations: The records of the batches that count.
    """

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches
        first: dict[tuple[str, int], Batch] = {}
        for batch in batches:
            first.setdefault((batch.id, batch.part), batch)
        self.spans: list[Span] = [span for batch in first.values() for span in batch.spans]
        self.started: list[Started] = [started for batch in first.values() for started in batch.started]
        self.messages: list[ChatMessage] = [message for batch in first.values() for message in batch.messages]
        self.annotations: list[Annotation] = [added for batch in first.values() for added in batch.annotations]

    def is_ended(self, span_id: str) -> bool:
        """Return True if the log holds the end of the span."""
        return any(span.span_id == span_id for span in self.spans)

    def span(self, span_id: str) -> Span:
        """Return the finished span, of which there must be one record."""
        (span,) = [span for span in self.spans if span.span_id == span_id]
        return span

    def start(self, span_id: str) -> Started:
        """Return the start of the span, of which there must be one record."""
        (started,) = [started for started in self.started if started.span_id == span_id]
        return started

    def attributes(self, span_id: str) -> dict[str, Any]:
        """Return the attributes of the span, its later annotations included."""
        merged = dict(self.span(span_id).attributes)
        for annotation in self.annotations:
            if annotation.span_id == span_id:
                merged.update(annotation.attributes)
        return merged
