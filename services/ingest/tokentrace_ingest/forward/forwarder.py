"""
The forwarder: sends what waits for the targets of ``otlp.forward``.

Each target has a stream with a durable consumer, which the forwarders of all ingest processes share. A forwarder takes
a few messages of a target at a time, and tries each until the target has taken it or refused it for good. Only then is
the message acknowledged. Meanwhile the broker is told that it is in progress. If the process is killed, the broker
gives it to another one after ``_ACK_WAIT_S``; if it is stopped, it gives it back itself. So a target gets every request
at least once, unless the stream has discarded it.

When a target cannot be reached or asks to wait, all attempts at it pause: as long as it asks, at most an hour, else
twice as long as the time before, up to a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import zlib
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, cast

import structlog
from google.protobuf.message import DecodeError

from tokentrace.bus import Bus, Delivery, subjects
from tokentrace.dialect.otlp.messages import Signal, read_request
from tokentrace.errors import Rejected, TokentraceError, shorten
from tokentrace.redact import Redactor
from tokentrace.service.forward_state import ForwardState
from tokentrace.service.health import Sample
from tokentrace.units import render_instant
from tokentrace_ingest.forward.outcome import Outcome
from tokentrace_ingest.forward.requests import halves
from tokentrace_ingest.forward.targets import Forwarding, Target
from tokentrace_ingest.forward.waiting import Waiting

if TYPE_CHECKING:
    from tokentrace_ingest.forward.sender import Sender

log = structlog.stdlib.get_logger(__name__)

#: Limit of concurrent requests of one process to one target.
AT_ONCE = 4
#: Seconds after which the broker gives the messages of a killed process to another one.
_ACK_WAIT_S = 10.0
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.5, 60.0
#: Part of a pause by which it is longer at most, so that processes do not all try at the same time.
_JITTER = 0.1
_MEASURE_S = 2.0
#: How long a stopped process waits for the requests that are under way, seconds.
_DRAIN_S = 10.0
#: Most bytes of a message after decompression; the tee makes none that is larger but for one large record.
_MAX_BYTES = 64 * 1024 * 1024
_HELP = {
    "sent_total": "Requests that a target of otlp.forward took.",
    "refused_total": "Requests that a target of otlp.forward refused for good.",
    "rejected_records_total": "Records that a target of otlp.forward refused of requests that it took.",
    "lost_requests": "Requests that were discarded before they were sent, as too many or too old; the same in all "
    "processes.",
    "waiting_requests": "Requests that wait for a target of otlp.forward; the same in all processes.",
    "lag_seconds": "How long the oldest of them has waited.",
    "failing": "1 = the last request to the target was not sent and is tried again.",
}


class Forwarder:
    """
    Sends to all targets.

    Args:
        redactor: Removes secrets from what targets answer.
    """

    def __init__(self, bus: Bus, forwarding: Forwarding, redactor: Redactor) -> None:
        self._bus, self._allowed = bus, forwarding.allowed
        self._lines = [_Line(bus, target, redactor) for target in forwarding.targets]

    async def run(self, stopping: asyncio.Event) -> None:
        """Send until *stopping* is set; then finish the requests under way and give all other messages back."""
        if not self._lines:
            return
        # Here, because a service without targets starts faster without an HTTP client.
        from tokentrace_ingest.forward.sender import Sender

        async with Sender(self._allowed, self._bus.clock) as sender, asyncio.TaskGroup() as tasks:
            for line in self._lines:
                tasks.create_task(line.run(sender, stopping))

    def states(self) -> dict[str, ForwardState]:
        """Return target -> its state."""
        return {line.target.name: line.state() for line in self._lines}

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics of each target."""
        for name, state in self.states().items():
            values = {
                "sent_total": state.sent,
                "refused_total": state.refused,
                "rejected_records_total": state.rejected_records,
                "lost_requests": state.lost,
                "waiting_requests": state.waiting,
                "lag_seconds": state.lag_s,
                "failing": int(bool(state.failing)),
            }
            for what, value in values.items():
                yield Sample(f"tokentrace_forward_{what}", _HELP[what], value, {"target": name})


class _Pause:
    """Until when nothing is sent to a target; times are those of the event loop, seconds."""

    def __init__(self) -> None:
        self._failures, self._until = 0, 0.0

    def remaining(self, now: float) -> float:
        return self._until - now

    def failed(self, now: float, asked_s: float | None) -> None:
        if asked_s is not None:
            self._until = max(self._until, now + max(asked_s, _MIN_PAUSE_S))
        elif now >= self._until:
            # Requests that were under way at the same time fail together and count once.
            self._failures += 1
            pause = min(_MIN_PAUSE_S * 2.0 ** min(self._failures - 1, 10), _MAX_PAUSE_S)
            self._until = now + pause * random.uniform(1.0, 1.0 + _JITTER)

    def succeeded(self) -> None:
        self._failures, self._until = 0, 0.0


class _Line:
    """The way to one target."""

    def __init__(self, bus: Bus, target: Target, redactor: Redactor) -> None:
        self._bus, self.target, self._redactor = bus, target, redactor
        self._waiting = Waiting(bus, target.name, target.max_age_ns)
        self._pause = _Pause()
        self._sent = self._refused = self._rejected = 0
        self._failing = self._last_error = self._last_error_at = ""
        self._attempting: set[asyncio.Task[None]] = set()
        self._stopping = False

    def state(self) -> ForwardState:
        return ForwardState(
            to=self.target.shown,
            waiting=self._waiting.messages,
            lag_s=round(self._waiting.lag_s, 3),
            sent=self._sent,
            refused=self._refused,
            rejected_records=self._rejected,
            lost=self._waiting.lost,
            failing=self._failing,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
        )

    async def run(self, sender: Sender, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(self._measure())
            workers = [tasks.create_task(self._work(sender)) for _ in range(AT_ONCE)]
            await stopping.wait()
            self._stopping = True
            measuring.cancel()
            for worker in workers:
                if worker not in self._attempting:
                    worker.cancel()
            await asyncio.wait(workers, timeout=min(self.target.timeout_s, _DRAIN_S))
            for worker in workers:
                worker.cancel()

    async def _measure(self) -> None:
        while True:
            with contextlib.suppress(TokentraceError):
                await self._waiting.measure()
            await asyncio.sleep(_MEASURE_S)

    async def _work(self, sender: Sender) -> None:
        # One message at a time: what is requested ahead would wait here and be given to others meanwhile.
        feed = self._bus.consume(self.target.stream, subjects.FORWARDER, batch=1, ack_wait_s=_ACK_WAIT_S)
        async with contextlib.aclosing(feed):
            while not self._stopping:
                if await self._rest() or self._waiting.near_limits:
                    with contextlib.suppress(TokentraceError):
                        await self._waiting.measure()
                for delivery in await anext(feed):
                    await self._deliver(sender, delivery)

    async def _rest(self) -> bool:
        """Wait for the end of the pause; return True if there was one."""
        rested = False
        while (left := self._pause.remaining(asyncio.get_running_loop().time())) > 0:
            rested = True
            await asyncio.sleep(left)
        return rested

    async def _deliver(self, sender: Sender, delivery: Delivery) -> None:
        """Send one message until it is taken or refused; give it back if this process is stopped before."""
        holding = asyncio.create_task(self._hold(delivery))
        finished: Awaitable[None] | None = None
        try:
            signal = self._signal(delivery)
            finished = (
                delivery.term("not of a signal") if signal is None else await self._send(sender, signal, delivery)
            )
        finally:
            # Before the answer: "in progress" after it would delay the next delivery.
            holding.cancel()
            await asyncio.wait([holding])
            with contextlib.suppress(TokentraceError):
                # If this is lost, the message is delivered again, and the target gets it twice.
                await (delivery.nak() if finished is None else finished)

    def _signal(self, delivery: Delivery) -> Signal | None:
        signal = subjects.parse_signal(delivery.message.subject)
        if signal in ("traces", "logs", "metrics"):
            return cast(Signal, signal)
        which = f"message {delivery.message.sequence}"
        self._bus.set_aside.note(self.target.stream, which, "its subject is not of traces, logs or metrics")
        return None

    async def _hold(self, delivery: Delivery) -> None:
        while True:
            await asyncio.sleep(_ACK_WAIT_S / 3)
            with contextlib.suppress(TokentraceError):
                await delivery.in_progress()

    async def _send(self, sender: Sender, signal: Signal, delivery: Delivery) -> Awaitable[None] | None:
        """Return how the message is finished; None = it is to be given back."""
        while not self._stopping:
            outcome = await self._attempt(sender, signal, delivery.message.payload)
            if outcome.kind == "too_large":
                outcome = await self._cut(signal, delivery)
            if outcome.kind == "again":
                self._pause.failed(asyncio.get_running_loop().time(), outcome.retry_after_s)
                self._fail(outcome.reason, failing=True)
                await self._rest()
                continue
            self._pause.succeeded()
            self._failing = ""
            if outcome.kind == "refused":
                self._refused += 1
                self._fail(f"{outcome.reason}, so a request of {signal} is not sent again", failing=False)
                return delivery.term("refused")
            self._note_partial(outcome)
            return delivery.ack()
        return None

    async def _attempt(self, sender: Sender, signal: Signal, payload: bytes) -> Outcome:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._attempting.add(task)
        try:
            outcome = await sender.post(self.target, signal, payload)
        finally:
            self._attempting.discard(task)
        self._sent += outcome.kind == "sent"
        return outcome

    async def _cut(self, signal: Signal, delivery: Delivery) -> Outcome:
        """Queue the two halves of a request that the target finds too large."""
        parts = await asyncio.to_thread(_halves, signal, delivery.message.payload)
        if not parts:
            return Outcome("refused", "HTTP 413 for a single record")
        try:
            for number, part in enumerate(parts):
                # The same ids if the message is delivered again before it is acknowledged.
                id = f"half.{delivery.message.time_ns}.{delivery.message.sequence}.{number}"
                await self._bus.publish(delivery.message.subject, part, id=id)
        except TokentraceError as exc:
            return Outcome("again", f"the halves of a large request cannot be queued: {exc}")
        return Outcome("sent")

    def _note_partial(self, outcome: Outcome) -> None:
        rejected, message = outcome.partial
        self._rejected += rejected
        if rejected or message:
            said = shorten(self._redactor.text(message, {}), 200)
            self._fail(f"{rejected} records of a request were refused: {said}", failing=False)

    def _fail(self, reason: str, *, failing: bool) -> None:
        if failing and not self._failing:
            log.warning("the target %s of otlp.forward takes nothing: %s", self.target.name, reason)
        self._failing = reason if failing else ""
        self._last_error, self._last_error_at = reason, render_instant(self._bus.clock.now_ns())


def _halves(signal: Signal, payload: bytes) -> list[bytes]:
    """Return the halves of a compressed request; [] if it holds one record or cannot be read."""
    try:
        decompressor = zlib.decompressobj(31)
        data = decompressor.decompress(payload, _MAX_BYTES)
        first, second = halves(read_request(signal, "protobuf", data))
    except (zlib.error, Rejected, DecodeError):
        return []
    parts = [first.SerializeToString(), second.SerializeToString()]
    return [gzip.compress(part, 1, mtime=0) for part in parts] if all(parts) else []
