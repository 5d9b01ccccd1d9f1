"""The loop around a machine: restore, follow, fold, tick, perform, save."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Chunk, StreamState, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.service.machine import Effect, Machine
from tokentrace.service.reader_positions import encode_position, reader_key
from tokentrace.service.retry import until_available
from tokentrace.service.snapshots import Snapshots
from tokentrace.service.stopping import Stopped, unless_stopped

log = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
SAVE_EVERY_BYTES = 256 * 1024 * 1024
TELL_EVERY_S = 2.0
#: How long the loop may be held before others get a turn.
TURN_S = 0.005


class Progress(msgspec.Struct):
    """
    How far a pump is, for /readyz, /health and the broker's guard.

    Attributes:
        caught_up: It has applied everything there was when it last looked.
        pending: Messages still to come.
        trouble: What went wrong and has not been mended; "" = nothing.
    """

    caught_up: bool = False
    pending: int = 0
    trouble: str = ""
    rejected: int = 0


class Pump:
    """
    Runs one machine on one stream.

    Args:
        stream, filters: What to follow.
        service, shard: Name of the snapshots and of the reader's position.
        perform: Carries out one effect; Unavailable is tried again, Rejected is logged and dropped.
        on_caught_up: Called whenever everything has been read.
        on_loaded: Called once the machine is what its snapshot saw, before it takes anything in.
        settles: ``tick`` is told up to when everything stored has been taken in, instead of what time it is. That
            nothing more is on its way is no proof: whoever stood still, or lost its connection, reads old news first.
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
        settles: bool = False,
    ) -> None:
        self._bus, self._machine, self._stream, self._filters = bus, machine, stream, filters
        self._perform = perform
        self._performing = asyncio.Lock()
        self._on_caught_up, self._on_loaded = on_caught_up, on_loaded
        self._snapshots = Snapshots(bus, service, shard)
        self._meta = bus.kv(subjects.META)
        self._reader = reader_key(service, shard)
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self._unsaved_bytes = 0
        self._unsaved = False
        self._settles = settles
        self._settled_ns = 0
        #: When the stream was asked, and what it held then.
        self._asked: tuple[int, StreamState] | None = None
        self.progress = Progress()

    async def run(self, stopping: asyncio.Event) -> None:
        """Pump until *stopping* is set; then save once more."""
        loading = until_available(lambda: self._snapshots.load_into(self._machine))
        try:
            trouble = await unless_stopped(stopping, loading)
        except Stopped:
            return
        self.progress.trouble = trouble or ""
        self._on_loaded()
        tasks = [
            asyncio.create_task(self._follow(), name=f"follow {self._reader}"),
            asyncio.create_task(self._look_after(), name=f"look after {self._reader}"),
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
                log.info("%s: %s", self._reader, exc)

    async def _follow(self) -> None:
        feed = self._bus.follow(self._stream, self._filters, self._machine.position)
        async with contextlib.aclosing(feed):
            async for chunk in feed:
                await self._apply(chunk)

    async def _apply(self, chunk: Chunk) -> None:
        machine, progress = self._machine, self.progress
        if chunk.rewound:
            log.warning("%s: the stream was made anew or lost its end; reading it from the first message", self._reader)
            machine.rewound(chunk.created_ns)
        if chunk.missing is not None:
            log.error("%s: messages %d to %d are gone from %s", self._reader, *chunk.missing, self._stream)
            machine.lost(*chunk.missing, chunk.created_ns)
        turn = time.perf_counter() + TURN_S
        for message in chunk.messages:
            try:
                machine.fold(message, chunk.created_ns)
            except BAD_DATA as exc:
                if not isinstance(exc, Rejected):
                    log.exception("%s: message %d", self._reader, message.sequence)
                progress.rejected += 1
                self._bus.set_aside.note(self._stream, f"message {message.sequence}", exc)
            self._unsaved_bytes += len(message.payload)
            if time.perf_counter() > turn:
                await asyncio.sleep(0)
                turn = time.perf_counter() + TURN_S
        self._unsaved = self._unsaved or bool(chunk.messages)
        progress.pending = chunk.pending
        if self._settles:
            self._settle()
        elif chunk.pending == 0:
            self._caught_up()
        await self._tick()

    def _caught_up(self) -> None:
        self.progress.caught_up = True
        self._on_caught_up()

    async def _tick(self) -> None:
        # One at a time and in order: an event must not overtake one that is still being tried.
        async with self._performing:
            for effect in self._machine.tick(self._settled_ns if self._settles else time.time_ns()):
                if self._perform is None:
                    raise AssertionError(f"{self._reader}: nobody performs {effect}")
                try:
                    await until_available(partial(self._perform, effect))
                except Rejected as exc:
                    log.error("%s: %s", self._reader, exc)
                self._machine.performed(effect)

    async def _ask(self) -> None:
        """Ask what the stream holds now: once that is taken in, everything up to now is."""
        asked_ns = time.time_ns()
        try:
            state = await self._bus.state(self._stream)
        except TokentraceError as exc:
            log.debug("%s: %s", self._reader, exc)
            return
        before = self._asked[1] if self._asked is not None else None
        # What was asked before is still to be reached: whoever lags a little would never get to what is asked anew.
        if before is None or before.created_ns != state.created_ns or before.last_sequence > state.last_sequence:
            self._asked = asked_ns, state
        self._settle()

    def _settle(self) -> None:
        if self._asked is None:
            return
        asked_ns, state = self._asked
        position = self._machine.position
        there = position.sequence if position is not None and position.created_ns == state.created_ns else 0
        if there >= state.last_sequence:
            self._asked = None
            self._settled_ns = max(self._settled_ns, asked_ns)
            self._caught_up()

    async def _look_after(self) -> None:
        """What has to happen although no message comes: ticks, telling the position."""
        told = 0.0
        while True:
            if self._settles:
                await self._ask()
            await self._tick()
            await asyncio.sleep(0.2)
            now = time.monotonic()
            try:
                if now - told >= TELL_EVERY_S and self._machine.position is not None:
                    await self._meta.put(self._reader, encode_position(self._machine.position))
                    told = now
            except TokentraceError as exc:
                log.info("%s: %s", self._reader, exc)

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            late = time.monotonic() - self._saved_at >= self._save_every_s
            if self._unsaved and (late or self._unsaved_bytes >= SAVE_EVERY_BYTES):
                try:
                    await self._save()
                except TokentraceError as exc:
                    log.info("%s: %s", self._reader, exc)

    async def _save(self) -> None:
        self._unsaved, self._unsaved_bytes, self._saved_at = False, 0, time.monotonic()
        try:
            await self._snapshots.look()
            await self._snapshots.save(self._machine.snapshot(self._snapshots.revisions))
        except BaseException:
            self._unsaved = True
            raise
