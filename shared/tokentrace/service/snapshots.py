"""Snapshots in the object store: a small manifest and the pieces it names, most of which the next one shares."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Sequence

import msgspec

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.machine import Machine
from tokentrace.state import Saved
from tokentrace.units import DAY, MINUTE

log = logging.getLogger(__name__)

KEEP_SNAPSHOTS = 3
_LOADS_AT_ONCE = 8
_WRITING_NS = 10 * MINUTE
#: A snapshot named further ahead than this was named by no clock at all.
_ANY_CLOCK_NS = 366 * DAY


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
        self._objects, self._set_aside = bus.objects(subjects.SNAPSHOTS), bus.set_aside
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
                with reading("cannot be read"):
                    machine.restore(state, dict(zip(manifest.parts, pieces, strict=True)))
            except Rejected as exc:
                trouble = f"snapshot {name}: {exc}"
                log.error("%s; falling back to the one before", trouble)
                self._set_aside.note(subjects.SNAPSHOTS, f"object {name}", exc)
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
            with reading("cannot be read"):
                held = self._manifests[name] = msgspec.msgpack.decode(data, type=_Manifest)
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
        names = await self._objects.names()
        if not manifest.objects() <= set(names):
            await self._objects.delete(name)
            await self.look()
            raise Unavailable(f"snapshot {name}: a piece of it was removed meanwhile")
        self._manifests[name] = manifest
        self._stored = stored
        self.revisions = {part: value.revision for part, value in saved.parts.items()}
        await self._clean(names, now_ns)

    async def _put(self, name: str, encode: Callable[[], bytes]) -> str:
        data = await asyncio.to_thread(lambda: zlib.compress(encode(), level=1))
        await self._objects.put(self._pieces + name, data)
        return self._pieces + name

    async def _clean(self, names: Sequence[str], now_ns: int) -> None:
        """Of *names* let go of all snapshots but the last ones, and of the pieces that none of those is made of."""
        snapshots = self._snapshots_in(names)
        kept: list[_Manifest] = []
        for name in reversed(snapshots):
            try:
                manifest = await self._manifest(name) if len(kept) < KEEP_SNAPSHOTS else None
            except Rejected as exc:
                self._set_aside.note(subjects.SNAPSHOTS, f"object {name}", exc)
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
