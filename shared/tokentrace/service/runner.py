"""
The loop around a machine: restore, follow, fold, tick, perform, save.

The stream clock
----------------
A machine does not read a clock; ``tick`` receives the time. It is the broker's time and never that of the host, whose
clock may be wrong. For most services it is the time now (``clock="broker"``). The alerter needs a stricter time: a rule
may be evaluated for 12:00 only when every message that was stored before 12:00 is folded. Otherwise the rule would miss
spans, and could fire or resolve wrongly. A chunk with nothing pending does not prove this: a process that was suspended
or lost its connection may have received the chunk before newer messages arrived at the broker.

With ``clock="stream"`` the runner asks the broker five times a second for the last sequence of the stream, and notes
before it asks a time that the broker's clock has passed. As soon as the machine has folded that sequence, every message
stored before that time is folded, and that time becomes the machine's time. If the machine lags, its clock lags too, so
rules are evaluated later but with the same result. Until the first such sequence is folded, ``tick`` receives 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal

import msgspec
import structlog

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Chunk, StreamState, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.service.call_readers import calls_key, encode_calls
from tokentrace.service.follow import Follower
from tokentrace.service.machine import Effect, Machine
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace.service.retry import until_available
from tokentrace.service.snapshots import Snapshots
from tokentrace.service.stopping import Stopped, unless_stopped

log = structlog.stdlib.get_logger(__name__)

#: A snapshot is due after this many seconds, or after this many bytes of messages.
SAVE_EVERY_S = 60.0
SAVE_EVERY_BYTES = 256 * 1024 * 1024
#: How often a reader publishes its position, seconds.
TELL_EVERY_S = 2.0
#: How long a loop may run before other tasks get a turn, seconds.
TURN_S = 0.005
_LOOK_EVERY_S = 0.2


class Progress(msgspec.Struct):
    """
    How far a runner has read, for ``/readyz`` and ``/health``.

    Attributes:
        loading: True while the snapshot is loaded, at the start.
        caught_up: True once the machine has folded everything that the stream held at some time; never False again.
        pending: Number of messages still to be read.
        problem: What is wrong with the snapshots; "" = nothing.
        rejected: Number of messages that could not be decoded.
    """

    loading: bool = False
    caught_up: bool = False
    pending: int = 0
    problem: str = ""
    rejected: int = 0


class Runner:
    """
    Runs one machine on one stream.

    Args:
        stream, filters: The stream and the subjects to follow.
        service, shard: The name of the snapshots and of the reader's position.
        perform: Carries out one effect. Unavailable is retried; Rejected is logged and the effect dropped.
        save_every_s: Time between two snapshots, seconds.
        on_caught_up: Called whenever the machine has folded everything that the stream held.
        on_loaded: Called once, after the machine was restored and before it folds a message.
        clock: "broker" = ``tick`` receives the broker's time; "stream" = ``tick`` receives the time up to which every
            stored message has been folded.

    Attributes:
        progress: How far the runner has read.
    """

    def __init__(
        self,
        bus: Bus,
        machine: Machine,
        *,
        stream: str,
        filters: Sequence[str],
        service: str,
        shard: int,
        perform: Callable[[Effect], Awaitable[None]] | None = None,
        save_every_s: float = SAVE_EVERY_S,
        on_caught_up: Callable[[], None] = lambda: None,
        on_loaded: Callable[[], None] = lambda: None,
        clock: Literal["broker", "stream"] = "broker",
    ) -> None:
        self._bus, self._machine, self._stream, self._filters = bus, machine, stream, filters
        self._perform = perform
        self._performing = asyncio.Lock()
        self._on_caught_up, self._on_loaded = on_caught_up, on_loaded
        self._snapshots = Snapshots(bus, service, shard)
        self._meta = bus.kv(subjects.META)
        self._reader, self._calls = reader_key(service, shard), calls_key(service, shard)
        self._log = log.bind(reader=self._reader)
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self._unsaved_bytes = 0
        self._unsaved = False
        self._follows_stream_clock = clock == "stream"
        self._stream_clock_ns = 0
        #: The check of the stream whose last message is not folded yet: (broker's time before it, state of the stream).
        self._check: tuple[int, StreamState] | None = None
        #: Number of messages that the stream held at the start and that are not folded yet; None = not known yet.
        self._held: int | None = None
        self.progress = Progress()

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until *stopping* is set, then save a last snapshot."""
        loading = until_available(lambda: self._snapshots.load_into(self._machine))
        self.progress.loading = True
        try:
            problem = await unless_stopped(stopping, loading)
        except Stopped:
            return
        finally:
            self.progress.loading = False
        self.progress.problem = problem or ""
        self._on_loaded()
        tasks = [
            asyncio.create_task(self._follow(), name=f"follow {self._reader}"),
            asyncio.create_task(self._tick_often(), name=f"tick {self._reader}"),
            asyncio.create_task(self._save_often(), name=f"save {self._reader}"),
        ]
        stop = asyncio.create_task(stopping.wait())
        try:
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in [*tasks, stop]:
                task.cancel()
            await asyncio.gather(*tasks, stop, return_exceptions=True)
        for task in done:
            task.result()
        if self._unsaved:
            try:
                await self._save()
            except TokentraceError as exc:
                self._log.info("the last snapshot was not saved: %s", exc)

    async def _follow(self) -> None:
        async with Follower(
            self._bus,
            self._stream,
            self._filters,
            self._machine.position,
            reader=self._reader,
            needs_every_message=True,
        ) as chunks:
            async for chunk in chunks:
                await self._apply(chunk)

    async def _apply(self, chunk: Chunk) -> None:
        machine, progress = self._machine, self.progress
        if chunk.rewound:
            machine.rewound(chunk.created_ns)
            self._held = None
        if chunk.missing is not None:
            machine.lost(*chunk.missing, chunk.created_ns)
        turn = time.perf_counter() + TURN_S
        for message in chunk.messages:
            try:
                machine.fold(message, chunk.created_ns)
            except BAD_DATA as exc:
                if not isinstance(exc, Rejected):
                    self._log.exception("message %d could not be folded", message.sequence)
                progress.rejected += 1
                self._bus.set_aside.note(self._stream, f"message {message.sequence}", exc)
            self._unsaved_bytes += len(message.payload)
            if time.perf_counter() > turn:
                await asyncio.sleep(0)
                turn = time.perf_counter() + TURN_S
        self._unsaved = self._unsaved or bool(chunk.messages)
        progress.pending = chunk.pending
        self._held = chunk.pending if self._held is None else self._held - len(chunk.messages)
        if self._follows_stream_clock:
            self._advance_stream_clock()
        elif self._held <= 0 or chunk.pending == 0:
            # While spans arrive faster than they are folded, something is always pending.
            self._caught_up()
        await self._tick()

    def _caught_up(self) -> None:
        self.progress.caught_up = True
        self._on_caught_up()

    async def _tick(self) -> None:
        # Perform one effect at a time and in order: an event must not overtake one that is still being retried.
        async with self._performing:
            now_ns = self._stream_clock_ns if self._follows_stream_clock else self._bus.clock.now_ns()
            for effect in self._machine.tick(now_ns):
                if self._perform is None:
                    raise AssertionError(f"{self._reader}: there is nothing to perform {effect}")
                try:
                    await until_available(partial(self._perform, effect))
                except Rejected as exc:
                    self._log.error("an effect was refused and is dropped: %s", exc)
                self._machine.performed(effect)

    async def _check_stream(self) -> None:
        """Ask what the stream holds; once its last message is folded, everything stored before this call is folded."""
        asked_ns = self._bus.clock.passed_ns()
        try:
            state = await self._bus.state(self._stream)
        except TokentraceError as exc:
            self._log.debug("the state of the stream is unknown: %s", exc)
            return
        before = self._check[1] if self._check is not None else None
        # Keep a check whose last message is not folded yet: a machine that lags would never reach one that moves on.
        if before is None or before.created_ns != state.created_ns or before.last_sequence > state.last_sequence:
            self._check = asked_ns, state
        self._advance_stream_clock()

    def _advance_stream_clock(self) -> None:
        if self._check is None:
            return
        asked_ns, state = self._check
        position = self._machine.position
        folded = position.sequence if position is not None and position.created_ns == state.created_ns else 0
        if folded >= state.last_sequence:
            self._check = None
            self._stream_clock_ns = max(self._stream_clock_ns, asked_ns)
            self._caught_up()

    async def _tick_often(self) -> None:
        """Tick every 0.2 s and publish the position every 2 s, also while no message arrives."""
        published_at = 0.0
        while True:
            if self._follows_stream_clock:
                await self._check_stream()
            await self._tick()
            await asyncio.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            try:
                if now - published_at >= TELL_EVERY_S and self._machine.position is not None:
                    await self._meta.put(
                        self._reader, encode_position(self._machine.position, self._bus.clock.now_ns())
                    )
                    await self._meta.put(self._calls, encode_calls(self._machine.digests))
                    published_at = now
            except TokentraceError as exc:
                self._log.info("the position was not published: %s", exc)

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            is_due = time.monotonic() - self._saved_at >= self._save_every_s
            if self._unsaved and (is_due or self._unsaved_bytes >= SAVE_EVERY_BYTES):
                try:
                    await self._save()
                except TokentraceError as exc:
                    self._log.info("a snapshot was not saved: %s", exc)

    async def _save(self) -> None:
        self._unsaved, self._unsaved_bytes, self._saved_at = False, 0, time.monotonic()
        try:
            await self._snapshots.refresh()
            await self._snapshots.save(self._machine.snapshot(self._snapshots.revisions))
        except BaseException:
            self._unsaved = True
            raise
