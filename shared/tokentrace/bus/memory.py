"""
The bus in memory: the twin of ``jetstream`` for tests and for programs of one process.

It keeps every promise of the contract but one: what it holds is gone with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokentrace.bad_data import SetAside
from tokentrace.bus.contract import Chunk, Entry, Handler, Message, PubAck, Stream, StreamState, WaitPolicy
from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.records import Position
from tokentrace.units import SECOND

MAX_PAYLOAD = 8 * 1024 * 1024


@dataclass
class _Log:
    spec: Stream
    created_ns: int
    messages: dict[int, Message] = field(default_factory=dict)
    last_sequence: int = 0
    ids: dict[str, tuple[int, int]] = field(default_factory=dict)
    bytes: int = 0
    #: Sequences given out and not acknowledged -> (when to give again, times given); of the one work queue.
    pending: dict[int, tuple[float, int]] = field(default_factory=dict)
    #: Sequences that are done with and stay, because the stream is a log for others.
    done: set[int] = field(default_factory=set)

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.spec.subjects)

    def remove(self, sequence: int) -> None:
        message = self.messages.pop(sequence, None)
        if message is not None:
            self.bytes -= len(message.payload)
        self.pending.pop(sequence, None)

    def finish(self, sequence: int) -> None:
        """The work on it is done."""
        if self.spec.work_queue:
            self.remove(sequence)
        else:
            self.pending.pop(sequence, None)
            self.done.add(sequence)

    def last_of(self, subject: str) -> Message | None:
        return next((m for m in reversed(self.messages.values()) if m.subject == subject), None)


def matches(pattern: str, subject: str) -> bool:
    """True when *subject* falls under *pattern*: ``*`` is one token, ``>`` one or more at the end."""
    want, have = pattern.split("."), subject.split(".")
    for index, token in enumerate(want):
        if token == ">":
            return len(have) > index
        if index >= len(have) or token not in ("*", have[index]):
            return False
    return len(want) == len(have)


class MemoryBroker:
    """
    What several ``MemoryBus`` share.

    Args:
        now_ns: The broker's clock, Unix nanoseconds.
    """

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.now_ns = now_ns
        self.logs: dict[str, _Log] = {}
        self.servers: list[tuple[str, str, Handler]] = []
        self.up = True
        self.changed = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody who waits for something to happen."""
        self.changed.set()
        self.changed = asyncio.Event()

    def check(self) -> None:
        """Unavailable while the broker is switched off."""
        if not self.up:
            raise Unavailable("the broker is away")

    def log(self, name: str) -> _Log:
        self.check()
        try:
            return self.logs[name]
        except KeyError:
            raise Rejected(f"stream {name}: not found") from None

    def log_for(self, subject: str) -> _Log:
        self.check()
        for log in self.logs.values():
            if log.takes(subject):
                return log
        raise Unavailable("no stream takes this subject yet")


class MemoryBus:
    """``Bus`` on a ``MemoryBroker``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.set_aside = SetAside()

    @property
    def connected(self) -> bool:
        """False while the broker is switched off."""
        return self._broker.up

    @property
    def problems(self) -> list[str]:
        """As ``Bus.troubles``: memory is never full."""
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
            self._broker.logs[stream.name] = _Log(stream, self._broker.now_ns())
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
        """As ``Bus.before``."""
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
            raise Rejected(f"publish {subject}: message is larger than the broker takes", status=413)
        log = self._broker.log_for(subject)
        now = self._broker.now_ns()
        if id is not None:
            known = log.ids.get(id)
            if known is not None and known[1] > now - log.spec.duplicate_window_ns:
                return PubAck(known[0], duplicate=True)
        if expect_last is not None:
            last = log.last_of(subject)
            if (last.sequence if last else 0) != expect_last:
                raise Conflict(f"wrong last sequence: {last.sequence if last else 0}")
        self._make_room(log, subject, len(payload))
        log.last_sequence += 1
        log.messages[log.last_sequence] = Message(subject, bytes(payload), log.last_sequence, now, dict(headers or {}))
        log.bytes += len(payload)
        if id is not None:
            log.ids[id] = (log.last_sequence, now)
        self._broker.ring()
        return PubAck(log.last_sequence, duplicate=False)

    def _make_room(self, log: _Log, subject: str, size: int) -> None:
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
            found = [
                message
                for sequence, message in log.messages.items()
                if sequence > start and any(matches(pattern, message.subject) for pattern in subjects)
            ]
            if found or rewound or missing or announce:
                announce = False
                chunk = Chunk(found[:256], max(len(found) - 256, 0), log.created_ns, missing, rewound)
                yield chunk
                position = chunk.after(position)
                continue
            await changed.wait()

    async def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[MemoryDelivery], None]:
        """As ``Bus.consume``; a memory stream has one work queue, whatever *durable* is called."""
        while True:
            changed = self._broker.changed
            log = self._broker.logs.get(stream) if self._broker.up else None
            now = self._broker.now_ns() / SECOND
            taken: list[MemoryDelivery] = []
            if log is not None:
                for sequence, message in log.messages.items():
                    due, given = log.pending.get(sequence, (0.0, 0))
                    if due <= now and len(taken) < batch and sequence not in log.done:
                        log.pending[sequence] = (now + ack_wait_s, given + 1)
                        taken.append(MemoryDelivery(self._broker, log, message, given + 1, ack_wait_s))
            if taken:
                yield taken
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await changed.wait()

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """As ``Bus.request``."""
        answers = await self.request_many(subject, payload, lambda got: 0 if got else timeout_s)
        if not answers:
            raise Unavailable(f"{subject}: nobody answers")
        return answers[0]

    async def request_many(self, subject: str, payload: bytes, patience: WaitPolicy) -> list[bytes]:
        """As ``Bus.gather``."""
        self._broker.check()
        answers: list[bytes] = []
        asked: set[str] = set()
        came: asyncio.Queue[bytes | None] = asyncio.Queue()
        tasks = []
        for served, group, handler in self._broker.servers:
            if matches(served, subject) and (not group or group not in asked):
                asked.add(group)
                tasks.append(asyncio.create_task(self._ask(handler, payload, came)))
        began, busy = asyncio.get_running_loop().time(), len(tasks)
        try:
            while busy and (wait_s := patience(answers)):
                async with asyncio.timeout_at(began + wait_s):
                    answer = await came.get()
                if answer is None:
                    busy -= 1
                else:
                    answers.append(answer)
        except TimeoutError:
            pass
        finally:
            for task in tasks:
                task.cancel()
        for task in tasks:
            if task.done():
                task.result()
        return answers

    async def _ask(self, handler: Handler, payload: bytes, came: asyncio.Queue[bytes | None]) -> None:
        try:
            with contextlib.suppress(TokentraceError):
                async for answer in handler(payload):
                    came.put_nowait(answer)
        finally:
            came.put_nowait(None)

    @contextlib.asynccontextmanager
    async def serve(self, subject: str, handler: Handler, *, group: str = "") -> AsyncIterator[None]:
        """As ``Bus.serve``."""
        entry = (subject, group, handler)
        self._broker.servers.append(entry)
        try:
            yield
        finally:
            self._broker.servers.remove(entry)

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
    """``Delivery`` of a memory work queue."""

    def __init__(self, broker: MemoryBroker, log: _Log, message: Message, deliveries: int, ack_wait_s: float) -> None:
        self._broker, self._log, self._patience_s = broker, log, ack_wait_s
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
        self._postpone(self._patience_s)

    def _postpone(self, delay_s: float) -> None:
        self._broker.check()
        if self.message.sequence in self._log.messages:
            self._log.pending[self.message.sequence] = (self._broker.now_ns() / SECOND + delay_s, self.deliveries)
            self._broker.ring()


class MemoryKeyValue:
    """``KeyValue`` on the memory stream ``KV_<bucket>``."""

    def __init__(self, bus: MemoryBus, broker: MemoryBroker, bucket: str) -> None:
        self._bus, self._broker, self._stream, self._prefix = bus, broker, f"KV_{bucket}", f"$KV.{bucket}."

    async def get(self, key: str) -> Entry | None:
        """As ``KeyValue.get``."""
        message = self._broker.log(self._stream).last_of(self._prefix + key)
        if message is None or "KV-Operation" in message.headers:
            return None
        return Entry(message.payload, message.sequence)

    async def put(self, key: str, value: bytes) -> int:
        """As ``KeyValue.put``."""
        return (await self._bus.publish(self._prefix + key, value)).sequence

    async def create(self, key: str, value: bytes) -> int:
        """As ``KeyValue.create``."""
        message = self._broker.log(self._stream).last_of(self._prefix + key)
        deleted = message is not None and "KV-Operation" in message.headers
        return await self.update(key, value, message.sequence if message is not None and deleted else 0)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """As ``KeyValue.update``."""
        return (await self._bus.publish(self._prefix + key, value, expect_last=revision)).sequence

    async def delete(self, key: str) -> None:
        """As ``KeyValue.delete``."""
        await self._bus.publish(self._prefix + key, b"", headers={"KV-Operation": "DEL"})

    async def items(self) -> dict[str, Entry]:
        """As ``KeyValue.items``."""
        keys = {
            message.subject.removeprefix(self._prefix) for message in self._broker.log(self._stream).messages.values()
        }
        entries = {key: await self.get(key) for key in sorted(keys)}
        return {key: entry for key, entry in entries.items() if entry is not None}


class MemoryObjects:
    """``Objects`` on the memory stream ``OBJ_<bucket>``."""

    def __init__(self, bus: MemoryBus, broker: MemoryBroker, bucket: str) -> None:
        self._bus, self._broker, self._stream, self._prefix = bus, broker, f"OBJ_{bucket}", f"$O.{bucket}.M."

    async def put(self, name: str, data: bytes) -> None:
        """As ``Objects.put``."""
        self._broker.log(self._stream)
        await self._bus.publish(self._prefix + name.replace(".", "%"), data)

    async def get(self, name: str) -> bytes | None:
        """As ``Objects.get``."""
        message = self._broker.log(self._stream).last_of(self._prefix + name.replace(".", "%"))
        return None if message is None else message.payload

    async def names(self) -> list[str]:
        """As ``Objects.names``."""
        messages = self._broker.log(self._stream).messages.values()
        return sorted(message.subject.removeprefix(self._prefix).replace("%", ".") for message in messages)

    async def delete(self, name: str) -> None:
        """As ``Objects.delete``."""
        message = self._broker.log(self._stream).last_of(self._prefix + name.replace(".", "%"))
        if message is not None:
            self._broker.log(self._stream).remove(message.sequence)
