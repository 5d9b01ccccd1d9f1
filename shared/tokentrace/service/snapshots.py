"""Snapshots in the object store: each is a small manifest that names pieces, most of which the next one shares."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, subjects
from tokentrace.errors import Rejected, Unavailable
from tokentrace.service.machine import Machine
from tokentrace.state import Saved
from tokentrace.units import DAY, MINUTE

log = structlog.stdlib.get_logger(__name__)

KEEP_SNAPSHOTS = 3
_LOADS_AT_ONCE = 8
#: Pieces younger than this may belong to a snapshot that another process is still writing.
_WRITING_NS = 10 * MINUTE
#: The name of a snapshot that is dated further ahead than this is corrupt; later snapshots need not sort after it.
_MAX_AHEAD_NS = 366 * DAY


class _Manifest(msgspec.Struct, frozen=True):
    """The names of the pieces of a snapshot: that of the state, and those of its parts by name of the part."""

    state: str
    parts: dict[str, str] = {}

    def objects(self) -> set[str]:
        """Return the names of all pieces."""
        return {self.state, *self.parts.values()}


class Snapshots:
    """
    The last three saved states of one shard of a service; they share the parts that did not change.

    Args:
        service: The service, such as ``aggregator``; a part of every object's name.

    Attributes:
        revisions: Name of a part -> the revision of it that is saved.
    """

    def __init__(self, bus: Bus, service: str, shard: int) -> None:
        self._objects, self._set_aside, self._clock = bus.objects(subjects.SNAPSHOTS), bus.set_aside, bus.clock
        self._prefix = f"{service}.{shard}."
        self._pieces = f"{self._prefix}piece."
        self._log = log.bind(service=service, shard=shard)
        self._stored: dict[str, str] = {}
        self._manifests: dict[str, _Manifest] = {}
        self.revisions: dict[str, int] = {}

    async def load_into(self, machine: Machine) -> str | None:
        """
        Restore *machine* from the newest snapshot that can be read.

        Returns:
            What is wrong with the oldest damaged snapshot that was tried; None if no damaged one was tried.
        """
        problem = None
        for name in reversed(self._snapshots_in(await self._objects.names())):
            try:
                manifest = await self._manifest(name)
                if manifest is None:
                    continue
                state, parts = await self._contents(manifest, machine.decode_part)
                with reading("cannot be read"):
                    machine.restore(state, parts)
            except Rejected as exc:
                problem = f"snapshot {name}: {exc}"
                self._log.error("%s; falling back to the one before", problem)
                self._set_aside.note(subjects.SNAPSHOTS, f"object {name}", exc)
                continue
            self._stored = dict(manifest.parts)
            self.revisions = dict.fromkeys(manifest.parts, 0)
            return problem
        return problem

    async def _manifest(self, name: str) -> _Manifest | None:
        manifest = self._manifests.get(name)
        if manifest is None:
            data = await self._objects.get(name)
            if data is None:
                return None
            with reading("cannot be read"):
                manifest = self._manifests[name] = msgspec.msgpack.decode(data, type=_Manifest)
        return manifest

    async def _contents(self, manifest: _Manifest, decode: Callable[[str, bytes], Any]) -> tuple[bytes, dict[str, Any]]:
        """Return (the state, part -> what *decode* returns for its name and its bytes)."""
        turns = asyncio.Semaphore(_LOADS_AT_ONCE)

        async def load(name: str, decode_piece: Callable[[bytes], Any]) -> Any:
            # The turn lasts until the piece is decoded, so that only a few pieces are in memory twice.
            async with turns:
                data = await self._objects.get(name)
                if data is None:
                    raise Rejected(f"object {name} is gone")
                return await asyncio.to_thread(_unpack, name, data, decode_piece)

        tasks = [asyncio.ensure_future(load(manifest.state, bytes))]
        tasks += [asyncio.ensure_future(load(name, partial(decode, part))) for part, name in manifest.parts.items()]
        try:
            state, *parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return state, dict(zip(manifest.parts, parts, strict=True))

    async def refresh(self) -> None:
        """Forget saved parts that no longer exist: another process with the same shard may have removed them."""
        existing = set(await self._objects.names())
        self._stored = {part: name for part, name in self._stored.items() if name in existing}
        self.revisions = {part: value for part, value in self.revisions.items() if part in self._stored}

    async def save(self, saved: Saved) -> None:
        """
        Write a new snapshot under new names, then remove all but the last three.

        Raises:
            Unavailable: The broker is unreachable, or another process removed a piece meanwhile; save again.
        """
        now_ns = self._clock.now_ns()
        times_ns = [int(name.removeprefix(self._prefix)) for name in self._snapshots_in(await self._objects.names())]
        # If the clock was set back, the new snapshot must still sort as the newest.
        now_ns = max([now_ns, *(at + 1 for at in times_ns if at < now_ns + _MAX_AHEAD_NS)])
        stored = {name: self._stored[name] for name, part in saved.parts.items() if part.encode is None}
        changed = [(name, part.encode) for name, part in saved.parts.items() if part.encode is not None]
        for number, (name, encode) in enumerate(changed, start=1):
            stored[name] = await self._put(f"{now_ns:020d}.{number}", encode)
        manifest = _Manifest(await self._put(f"{now_ns:020d}.0", saved.state), stored)
        name = f"{self._prefix}{now_ns:020d}"
        await self._objects.put(name, msgspec.msgpack.encode(manifest))
        names = await self._objects.names()
        if not manifest.objects() <= set(names):
            await self._objects.delete(name)
            await self.refresh()
            raise Unavailable(f"snapshot {name}: another process removed a piece of it meanwhile")
        self._manifests[name] = manifest
        self._stored = stored
        self.revisions = {part: value.revision for part, value in saved.parts.items()}
        await self._clean(names, now_ns)

    async def _put(self, name: str, encode: Callable[[], bytes]) -> str:
        data = await asyncio.to_thread(lambda: zlib.compress(encode(), level=1))
        await self._objects.put(self._pieces + name, data)
        return self._pieces + name

    async def _clean(self, names: Sequence[str], now_ns: int) -> None:
        """Remove all snapshots but the last three that can be read, and older pieces that none of these uses."""
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
        too_young = f"{self._pieces}{now_ns - _WRITING_NS:020d}"
        for name in names:
            if name.startswith(self._pieces) and name not in needed and name < too_young:
                await self._objects.delete(name)

    def _snapshots_in(self, names: Sequence[str]) -> list[str]:
        return sorted(
            name for name in names if name.startswith(self._prefix) and name.removeprefix(self._prefix).isdigit()
        )


def _unpack(name: str, data: bytes, decode: Callable[[bytes], Any]) -> Any:
    with reading(f"object {name} cannot be read"):
        try:
            piece = zlib.decompress(data)
        except zlib.error as exc:
            raise Rejected(str(exc)) from exc
        return decode(piece)
