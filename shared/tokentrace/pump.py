"""The loop around a machine: restore, follow, fold, tick, perform, save."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from tokentrace.bus import Bus, Chunk, Position, StreamState, subjects
from tokentrace.errors import Rejected, TokentraceError, Unavailable
from tokentrace.machine import Effect, Machine, Saved
from tokentrace.units import DAY, MINUTE

log = logging.getLogger("tokentrace.pump")

SAVE_EVERY_S = 60.0
SAVE_EVERY_BYTES = 256 * 1024 * 1024
KEEP_SNAPSHOTS = 3
TELL_EVERY_S = 2.0
_LOADS_AT_ONCE = 8
_WRITING_NS = 10 * MINUTE
#: A snapshot named further ahead than this was named by no clock at all.
_ANY_CLOCK_NS = 366 * DAY
_COMPLAIN_EVERY_S = 5.0
_READER = "reader."
#: How long the loop may be held before others get a turn.
TURN_S = 0.005


class _Manifest(msgspec.Struct, frozen=True):
    """What a snapshot is made of: names of objects."""

    state: str
    parts: dict[str, str] = {}

    def objects(self) -> set[str]:
        return {self.state, *self.parts.values()}


class Snapshots:
    """
    The saved states of one service's shard, the last three of them; parts that did not change are shared.

    Args:
        service: Such as ``aggregator``; part of every object's name.

    Attributes:
        revisions: Part -> the revision of it that is saved.
    """

    def __init__(self, bus: Bus, service: str, shard: int) -> None:
        self._objects = bus.objects(subjects.SNAPSHOTS)
        self._prefix = f"{service}.{shard}."
        self._pieces = f"{self._prefix}piece."
        self._stored: dict[str, str] = {}
        self._manifests: dict[str, _Manifest] = {}
        self.revisions: dict[str, int] = {}

    async def load_into(self, machine: Machine) -> str | None:
        """
        Restore the newest snapshot that can be read.

        Returns:
            What is wrong with the ones that could not; None when all is well.
        """
        trouble = None
        for name in reversed(self._snapshots_in(await self._objects.names())):
            try:
                manifest = await self._manifest(name)
                if manifest is None:
                    continue
                state, *pieces = await self._pieces_of([manifest.state, *manifest.parts.values()])
                machine.restore(state, dict(zip(manifest.parts, pieces, strict=True)))
            except Rejected as exc:
                trouble = f"snapshot {name}: {exc}"
                log.error("%s; falling back to the one before", trouble)
                continue
            self._stored = dict(manifest.parts)
            self.revisions = dict.fromkeys(manifest.parts, 0)
            return trouble
        return trouble

    async def _manifest(self, name: str) -> _Manifest | None:
        held = self._manifests.get(name)
        if held is None:
            data = await self._objects.get(name)
            if data is None:
                return None
            try:
                held = self._manifests[name] = msgspec.msgpack.decode(data, type=_Manifest)
            except (msgspec.DecodeError, ValueError, RecursionError) as exc:
                raise Rejected(f"cannot be read: {exc}") from exc
        return held

    async def _pieces_of(self, names: Sequence[str]) -> list[bytes]:
        turns = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def one(name: str) -> bytes:
            async with turns:
                data = await self._objects.get(name)
            if data is None:
                raise Rejected(f"object {name} is gone")
            try:
                return await asyncio.to_thread(zlib.decompress, data)
            except zlib.error as exc:
                raise Rejected(f"object {name} cannot be read: {exc}") from exc

        tasks = [asyncio.ensure_future(one(name)) for name in names]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def look(self) -> None:
        """Forget of what was saved what is no longer there: another worker of the same shard cleans up as well."""
        there = set(await self._objects.names())
        self._stored = {part: name for part, name in self._stored.items() if name in there}
        self.revisions = {part: value for part, value in self.revisions.items() if part in self._stored}

    async def save(self, saved: Saved) -> None:
        """
        Write a new snapshot under new names, then let the oldest go.

        Raises:
            Unavailable: The broker is away, or somebody removed a piece meanwhile: save again.
        """
        now_ns = time.time_ns()
        taken = [int(name.removeprefix(self._prefix)) for name in self._snapshots_in(await self._objects.names())]
        # A clock that was set back must not make the newest snapshot the oldest.
        now_ns = max([now_ns, *(at + 1 for at in taken if at < now_ns + _ANY_CLOCK_NS)])
        stored = {name: self._stored[name] for name, part in saved.parts.items() if part.encode is None}
        made = [(name, part.encode) for name, part in saved.parts.items() if part.encode is not None]
        for number, (name, encode) in enumerate(made, start=1):
            stored[name] = await self._put(f"{now_ns:020d}.{number}", encode)
        manifest = _Manifest(await self._put(f"{now_ns:020d}.0", saved.state), stored)
        name = f"{self._prefix}{now_ns:020d}"
        await self._objects.put(name, msgspec.msgpack.encode(manifest))
        if not manifest.objects() <= set(await self._objects.names()):
            await self._objects.delete(name)
            await self.look()
            raise Unavailable(f"snapshot {name}: a piece of it was removed meanwhile")
        self._manifests[name] = manifest
        self._stored = stored
        self.revisions = {part: value.revision for part, value in saved.parts.items()}
        await self._clean(now_ns)

    async def _put(self, name: str, encode: Callable[[], bytes]) -> str:
        data = await asyncio.to_thread(lambda: zlib.compress(encode(), level=1))
        await self._objects.put(self._pieces + name, data)
        return self._pieces + name

    async def _clean(self, now_ns: int) -> None:
        """Let go of all snapshots but the last ones, and of the pieces that none of those is made of."""
        names = await self._objects.names()
        snapshots = self._snapshots_in(names)
        kept: list[_Manifest] = []
        for name in reversed(snapshots):
            try:
                manifest = await self._manifest(name) if len(kept) < KEEP_SNAPSHOTS else None
            except Rejected:
                manifest = None
            if manifest is not None:
                kept.append(manifest)
            else:
                self._manifests.pop(name, None)
                await self._objects.delete(name)
        needed = {piece for manifest in kept for piece in manifest.objects()}
        # Another worker of the same shard may be writing pieces whose snapshot is still to come.
        too_young = f"{self._pieces}{now_ns - _WRITING_NS:020d}"
        for name in names:
            if name.startswith(self._pieces) and name not in needed and name < too_young:
                await self._objects.delete(name)

    def _snapshots_in(self, names: Sequence[str]) -> list[str]:
        return sorted(
            name for name in names if name.startswith(self._prefix) and name.removeprefix(self._prefix).isdigit()
        )


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
    ) -> None:
        self._bus, self._machine, self._stream, self._filters = bus, machine, stream, filters
        self._perform = perform
        self._performing = asyncio.Lock()
        self._on_caught_up = on_caught_up
        self._snapshots = Snapshots(bus, service, shard)
        self._meta = bus.kv(subjects.META)
        self._reader = reader_key(service, shard)
        self._save_every_s = save_every_s
        self._saved_at = time.monotonic()
        self._unsaved_bytes = 0
        self._unsaved = False
        self.progress = Progress()

    async def run(self, stopping: asyncio.Event) -> None:
        """Pump until *stopping* is set; then save once more."""
        trouble = await until_available(lambda: self._snapshots.load_into(self._machine))
        self.progress.trouble = trouble or ""
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
            with contextlib.suppress(Unavailable):
                await self._save()

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
            except Rejected as exc:
                progress.rejected += 1
                log.warning("%s: message %d: %s", self._reader, message.sequence, exc)
            self._unsaved_bytes += len(message.payload)
            if time.perf_counter() > turn:
                await asyncio.sleep(0)
                turn = time.perf_counter() + TURN_S
        self._unsaved = self._unsaved or bool(chunk.messages)
        progress.pending = chunk.pending
        if chunk.pending == 0:
            progress.caught_up = True
            self._on_caught_up()
        await self._tick()

    async def _tick(self) -> None:
        # One at a time and in order: an event must not overtake one that is still being tried.
        async with self._performing:
            for effect in self._machine.tick(time.time_ns()):
                if self._perform is None:
                    raise AssertionError(f"{self._reader}: nobody performs {effect}")
                try:
                    await until_available(partial(self._perform, effect))
                except Rejected as exc:
                    log.error("%s: %s", self._reader, exc)
                self._machine.performed(effect)

    async def _look_after(self) -> None:
        """What has to happen although no message comes: ticks, telling the position."""
        told = 0.0
        while True:
            await asyncio.sleep(0.2)
            await self._tick()
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


T = TypeVar("T")


async def until_available(attempt: Callable[[], Awaitable[T]]) -> T:
    """What *attempt* returns, tried again with growing pauses while the world is away."""
    pause = 0.05
    told = time.monotonic()
    while True:
        try:
            return await attempt()
        except Unavailable as exc:
            if time.monotonic() - told > _COMPLAIN_EVERY_S:
                told = time.monotonic()
                log.warning("still trying: %s", exc)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)


def reader_key(service: str, shard: int) -> str:
    """Where a reader's position stands in ``tt_meta``."""
    return f"{_READER}{service}.{shard}"


def encode_position(position: Position) -> bytes:
    """A reader's position as it stands in ``tt_meta`` under ``reader_key``."""
    return msgspec.json.encode([position.created_ns, position.sequence, time.time_ns()])


def backlog(state: StreamState, positions: dict[str, bytes], now_ns: int, forget_ns: int = 7 * DAY) -> dict[str, float]:
    """
    How much of the stream each reader has still to read, as a fraction of its ceiling in bytes.

    Args:
        positions: reader -> ``encode_position``.
        forget_ns: A reader that has told nothing for this long is gone.
    """
    if state.max_bytes <= 0 or state.messages == 0:
        return {}
    full = state.bytes / state.max_bytes
    span = max(state.last_sequence - state.first_sequence + 1, 1)
    behind = {}
    for reader, value in positions.items():
        try:
            created_ns, sequence, told_ns = msgspec.json.decode(value, type=tuple[int, int, int])
        except msgspec.DecodeError:
            continue
        if told_ns < now_ns - forget_ns:
            continue
        read = sequence if created_ns == state.created_ns else 0
        unread = max(state.last_sequence - max(read, state.first_sequence - 1), 0)
        behind[reader] = full * unread / span
    return behind


async def read_backlog(bus: Bus) -> tuple[StreamState, dict[str, float]]:
    """
    The span log, and how far each reader is behind in it.

    Raises:
        Unavailable: The broker is away.
    """
    state = await bus.state(subjects.SPANS)
    entries = await bus.kv(subjects.META).items()
    readers = {key: entry.value for key, entry in entries.items() if key.startswith(_READER)}
    return state, backlog(state, readers, time.time_ns())
