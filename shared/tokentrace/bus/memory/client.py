"""``Bus`` and ``Delivery`` on a broker in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

from tokentrace.bad_data import SetAside
from tokentrace.bus.clock import BrokerClock
from tokentrace.bus.contract import Chunk, Handler, Message, PubAck, Stream, StreamState, WaitPolicy
from tokentrace.bus.memory.broker import MemoryBroker, StoredLog, matches
from tokentrace.bus.memory.buckets import MemoryKeyValue, MemoryObjects
from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.records import Position
from tokentrace.units import SECOND

MAX_PAYLOAD = 8 * 1024 * 1024
_BATCH = 256


class MemoryBus:
    """``Bus`` on a ``MemoryBroker``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.clock = BrokerClock(host_ns=broker.now_ns, elapsed_ns=broker.now_ns)
        self.clock.note(broker.now_ns(), broker.now_ns())
        self.set_aside = SetAside(self.clock.now_ns)

    @property
    def connected(self) -> bool:
        """As ``Bus.connected``."""
        return self._broker.up

    @property
    def problems(self) -> list[str]:
        """As ``Bus.problems``; a broker in memory fails only as a whole."""
        return [] if self.connected else ["nats"]

    @property
    def max_payload(self) -> int:
        """As ``Bus.max_payload``."""
        return MAX_PAYLOAD

    async def ensure(self, stream: Stream, *, resize: bool = False) -> str:
        """As ``Bus.ensure``."""
        self._broker.check()
        log = self._broker.logs.get(stream.name)
        if log is None:
            self._broker.logs[stream.name] = StoredLog(stream, self._broker.now_ns())
        else:
            log.spec = stream
        return ""

    async def state(self, stream: str) -> StreamState:
        """As ``Bus.state``."""
        log = self._broker.log(stream)
        first = next(iter(log.messages), log.last_sequence + 1)
        first_time = log.messages[first].time_ns if log.messages else 0
        return StreamState(
            log.created_ns, first, log.last_sequence, len(log.messages), log.bytes, log.spec.max_bytes, first_time
        )

    async def position_at(self, stream: str, time_ns: int) -> Position:
        """As ``Bus.position_at``."""
        log = self._broker.log(stream)
        first = next((number for number, message in log.messages.items() if message.time_ns >= time_ns), None)
        return Position(log.created_ns, log.last_sequence if first is None else first - 1)

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        id: str | None = None,
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """As ``Bus.publish``."""
        await asyncio.sleep(0)
        if len(payload) > MAX_PAYLOAD:
            raise Rejected(f"publish {subject}: the message is larger than the broker accepts", status=413)
        log = self._broker.log_for(subject)
        now = self._broker.now_ns()
        log.forget_old(now)
        if id is not None and id in log.ids:
            return PubAck(log.ids[id][0], duplicate=True)
        if expect_last is not None:
            last = log.last_of(subject)
            if (last.sequence if last else 0) != expect_last:
                raise Conflict(f"wrong last sequence: {last.sequence if last else 0}")
        self._make_room(log, subject, len(payload))
        log.append(Message(subject, bytes(payload), log.last_sequence + 1, now, dict(headers or {})), id)
        self._broker.ring()
        return PubAck(log.last_sequence, duplicate=False)

    def _make_room(self, log: StoredLog, subject: str, size: int) -> None:
        spec = log.spec
        if spec.per_subject == 1:
            last = log.last_of(subject)
            if last is not None:
                log.remove(last.sequence)
        while spec.max_bytes > 0 and log.bytes + size > spec.max_bytes:
            if spec.refuses or not log.messages:
                raise Unavailable("maximum bytes exceeded")
            log.remove(next(iter(log.messages)))

    async def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """As ``Bus.follow``."""
        position = after
        announce = True
        while True:
            changed = self._broker.changed
            if not self._broker.up or stream not in self._broker.logs:
                await changed.wait()
                continue
            log = self._broker.logs[stream]
            start = position.sequence if position is not None else 0
            rewound = position is not None and (log.created_ns != position.created_ns or log.last_sequence < start)
            start = 0 if rewound else start
            first = next(iter(log.messages), log.last_sequence + 1)
            missing = (start + 1, first - 1) if first > start + 1 and not rewound and announce else None
            unread = [
                message
                for message in log.after(start)
                if any(matches(pattern, message.subject) for pattern in subjects)
            ]
            if unread or rewound or missing or announce:
                announce = False
                chunk = Chunk(unread[:_BATCH], max(len(unread) - _BATCH, 0), log.created_ns, missing, rewound)
                yield chunk
                position = chunk.after(position)
                continue
            await changed.wait()

    async def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[MemoryDelivery], None]:
        """As ``Bus.consume``; *durable* is ignored: all consumers of a stream in memory share its messages."""
        while True:
            changed = self._broker.changed
            log = self._broker.logs.get(stream) if self._broker.up else None
            now = self._broker.now_ns() / SECOND
            taken: list[MemoryDelivery] = []
            if log is not None:
                for sequence, message in log.messages.items():
                    due, deliveries = log.pending.get(sequence, (0.0, 0))
                    if due <= now and len(taken) < batch and sequence not in log.done:
                        log.pending[sequence] = (now + ack_wait_s, deliveries + 1)
                        log.delivered = max(log.delivered, sequence)
                        taken.append(MemoryDelivery(self._broker, log, message, deliveries + 1, ack_wait_s))
            if taken:
                yield taken
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await changed.wait()

    async def notify(self, subject: str, payload: bytes) -> None:
        """As ``Bus.notify``."""
        self._broker.check()
        told_groups: set[str] = set()
        for served, group, handler in list(self._broker.servers):
            if matches(served, subject) and (not group or group not in told_groups):
                told_groups.add(group)
                await self._answer(handler, payload, asyncio.Queue())

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """As ``Bus.request``."""
        answers = await self.request_many(subject, payload, lambda answers: 0 if answers else timeout_s)
        if not answers:
            raise Unavailable(f"{subject}: no answer")
        return answers[0]

    async def request_many(self, subject: str, payload: bytes, wait_policy: WaitPolicy) -> list[bytes]:
        """As ``Bus.request_many``."""
        self._broker.check()
        answers: list[bytes] = []
        asked_groups: set[str] = set()
        arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        tasks = []
        for served, group, handler in self._broker.servers:
            if matches(served, subject) and (not group or group not in asked_groups):
                asked_groups.add(group)
                tasks.append(asyncio.create_task(self._answer(handler, payload, arrived)))
        began, busy = asyncio.get_running_loop().time(), len(tasks)
        until, wait_s = 0.0, wait_policy(answers)
        try:
            while busy and wait_s > until:
                until = wait_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(began + until):
                        answer = await arrived.get()
                    if answer is None:
                        busy -= 1
                    else:
                        answers.append(answer)
                    # There may be more replies before that time.
                    until = 0.0
                wait_s = wait_policy(answers)
        finally:
            for task in tasks:
                task.cancel()
        for task in tasks:
            if task.done():
                task.result()
        return answers

    async def _answer(self, handler: Handler, payload: bytes, arrived: asyncio.Queue[bytes | None]) -> None:
        try:
            with contextlib.suppress(TokentraceError):
                async for answer in handler(payload):
                    arrived.put_nowait(answer)
        finally:
            arrived.put_nowait(None)

    @contextlib.asynccontextmanager
    async def serve(self, subject: str, handler: Handler, *, group: str = "") -> AsyncIterator[None]:
        """As ``Bus.serve``."""
        entry = (subject, group, handler)
        self._broker.servers.append(entry)
        try:
            yield
        finally:
            self._broker.servers.remove(entry)

    async def done_up_to(self, stream: str, durable: str) -> int:
        """As ``Bus.done_up_to``; *durable* is ignored, as in ``consume``."""
        log = self._broker.log(stream)
        open_ones = (sequence for sequence in log.messages if sequence not in log.done)
        return next(open_ones, log.last_sequence + 1) - 1

    async def delivered_up_to(self, stream: str, durable: str) -> int | None:
        """As ``Bus.delivered_up_to``; *durable* is ignored, as in ``consume``."""
        return self._broker.log(stream).delivered

    async def erase(self, stream: str, sequence: int) -> None:
        """As ``Bus.erase``."""
        self._broker.check()
        log = self._broker.logs[stream]
        if sequence in log.messages:
            log.remove(sequence)

    def kv(self, bucket: str) -> MemoryKeyValue:
        """As ``Bus.kv``."""
        return MemoryKeyValue(self, self._broker, bucket)

    def objects(self, bucket: str) -> MemoryObjects:
        """As ``Bus.objects``."""
        return MemoryObjects(self, self._broker, bucket)


class MemoryDelivery:
    """``Delivery`` of a work queue in memory."""

    def __init__(
        self, broker: MemoryBroker, log: StoredLog, message: Message, deliveries: int, ack_wait_s: float
    ) -> None:
        self._broker, self._log, self._ack_wait_s = broker, log, ack_wait_s
        self.message = message
        self.deliveries = deliveries

    async def ack(self) -> None:
        """As ``Delivery.ack``."""
        self._broker.check()
        self._log.finish(self.message.sequence)

    async def nak(self, delay_s: float = 0.0) -> None:
        """As ``Delivery.nak``."""
        self._postpone(delay_s)

    async def term(self, reason: str) -> None:
        """As ``Delivery.term``."""
        self._broker.check()
        self._log.finish(self.message.sequence)

    async def in_progress(self) -> None:
        """As ``Delivery.in_progress``."""
        self._postpone(self._ack_wait_s)

    def _postpone(self, delay_s: float) -> None:
        self._broker.check()
        if self.message.sequence in self._log.messages:
            self._log.pending[self.message.sequence] = (self._broker.now_ns() / SECOND + delay_s, self.deliveries)
            self._broker.ring()
