"""
The tee: what ingest accepted is also published to the streams of the targets of ``otlp.forward``.

A request of OTLP is taken apart no further than redaction needs: it is sent on with everything that its sender put into
it. Spans that came in another way are encoded as stored. ``forwarder`` takes the messages from the streams and sends
them.

*Messages.* The payload is a request in protobuf, compressed with gzip; the signal is the last part of the subject. The
id depends on the input alone, so a repetition within the broker's duplicate window is stored once.

*Loops.* Each resource lists the pipelines that have sent it on. What this pipeline has sent on before is left out, so
two pipelines that send to each other do not send for ever.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from tokentrace.bus import HEADROOM_BYTES, Bus, subjects
from tokentrace.dialect.otlp.encode import export_spans
from tokentrace.dialect.otlp.messages import Encoding, Signal, read_request
from tokentrace.dialect.otlp.protobuf_encode import encode_traces
from tokentrace.errors import Conflict, Rejected
from tokentrace.records import Batch, Span
from tokentrace.redact import Redactor
from tokentrace.service.health import Sample
from tokentrace_ingest.forward.redaction import redact_request
from tokentrace_ingest.forward.requests import mark, split
from tokentrace_ingest.forward.targets import Target

T = TypeVar("T")

#: Key, in ``tt_meta``, of the id by which this pipeline recognises what it has sent on.
_PIPELINE = "forward.pipeline"
#: A request is cut into messages of at most so many bytes before compression.
_MESSAGE_BYTES = 1024 * 1024
#: Fast: a lower level saves little time, and a higher one little space.
_LEVEL = 1
#: So few spans are encoded at once, more of them in the thread.
_INLINE_SPANS = 16
_HELP = {
    "queued": "Requests that were queued for a target of otlp.forward.",
    "looped": "Records that were not sent on again, because this pipeline has sent them on before.",
    "too_large": "Requests that no message of the broker can hold, and that were not sent on.",
}


class Outgoing(NamedTuple):
    """A message for a target; *records* = how many spans, log records or metrics it holds."""

    target: str
    signal: Signal
    payload: bytes
    id: str


class Tee:
    """
    Publishes what ingest accepted.

    Args:
        redactor: Removes secrets for the targets that ask for it.
    """

    def __init__(self, bus: Bus, targets: Sequence[Target], redactor: Redactor) -> None:
        self._bus, self._redactor = bus, redactor
        self._takers = {
            signal: [target for target in targets if signal in target.signals]
            for signal in ("traces", "logs", "metrics")
        }
        self._spans_to = [target for target in self._takers["traces"] if target.spans]
        self._pipeline = ""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tee")
        self._counts: Counter[tuple[str, str]] = Counter()

    def takes(self, signal: Signal) -> bool:
        """Return True if requests of *signal* are sent on."""
        return bool(self._takers[signal])

    async def request(self, signal: Signal, encoding: Encoding, body: bytes, key: str) -> None:
        """
        Queue a request of OTLP for the targets that take it; return once the broker has acknowledged all of it.

        Args:
            key: The same for a repetition of the request, and for no other one.

        Raises:
            Unavailable: Not everything was acknowledged; send the same request again.
        """
        targets = self._takers[signal]
        if targets:
            pipeline = await self._known_pipeline()
            read = partial(read_request, signal, encoding, body)
            await self._publish(*await self._in_thread(partial(self._prepare, targets, signal, read, key, pipeline)))

    async def batches(self, batches: Sequence[Batch]) -> None:
        """
        Queue the spans of clean *batches*, which did not come by OTLP, for the targets that want them.

        Raises:
            Unavailable: As ``request``.
        """
        spans = [span for batch in batches for span in batch.spans] if self._spans_to else []
        if not spans:
            return
        pipeline = await self._known_pipeline()
        names = [f"{batch.id}:{batch.sequence}:{batch.part}" for batch in batches if batch.spans]
        key = hashlib.sha256("\n".join(names).encode()).hexdigest()
        prepare = partial(self._prepare, self._spans_to, "traces", partial(_export, spans), key, pipeline, clean=True)
        await self._publish(*(prepare() if len(spans) <= _INLINE_SPANS else await self._in_thread(prepare)))

    def samples(self) -> Iterator[Sample]:
        """Yield the counters."""
        for (what, target), count in sorted(self._counts.items()):
            labels = {"target": target} if target else {}
            yield Sample(f"tokentrace_forward_{what}_total", _HELP[what], count, labels)

    async def _known_pipeline(self) -> str:
        if not self._pipeline:
            meta = self._bus.kv(subjects.META)
            entry = await meta.get(_PIPELINE)
            if entry is None:
                try:
                    await meta.create(_PIPELINE, uuid.uuid4().hex.encode())
                except Conflict:
                    pass  # Another process has made it at the same time, and it is read below.
                entry = await meta.get(_PIPELINE)
            self._pipeline = entry.value.decode("ascii", "replace") if entry is not None else ""
        return self._pipeline

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _prepare(
        self,
        targets: Sequence[Target],
        signal: Signal,
        read: Callable[[], Any],
        key: str,
        pipeline: str,
        *,
        clean: bool = False,
    ) -> tuple[list[Outgoing], int]:
        """
        Return the messages for *targets*, and the number of records that were sent on before.

        Args:
            read: Returns the request.
            clean: True = it holds no secrets any more.
        """
        request = read()
        looped = mark(request, pipeline)
        limit = min(_MESSAGE_BYTES, self._bus.max_payload - HEADROOM_BYTES)
        outgoing: list[Outgoing] = []
        # The unchanged request first, because redaction changes it in place.
        for redact in (False, True):
            wanting = [target.name for target in targets if (target.redact and not clean) == redact]
            if not wanting:
                continue
            if redact:
                redact_request(request, self._redactor, {})
            for number, (data, _) in enumerate(split(request, limit)):
                payload = gzip.compress(data, _LEVEL, mtime=0)
                outgoing += [Outgoing(name, signal, payload, f"{key}.{number}") for name in wanting]
        return outgoing, looped

    async def _publish(self, outgoing: Sequence[Outgoing], looped: int) -> None:
        results = await asyncio.gather(*map(self._publish_one, outgoing), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._counts["looped", ""] += looped

    async def _publish_one(self, message: Outgoing) -> None:
        subject = subjects.forward(message.target, message.signal)
        try:
            ack = await self._bus.publish(subject, message.payload, id=message.id)
        except Rejected:
            self._counts["too_large", message.target] += 1
            return
        self._counts["queued", message.target] += not ack.duplicate


def _export(spans: Sequence[Span]) -> Any:
    return read_request("traces", "protobuf", encode_traces(export_spans(spans)))
