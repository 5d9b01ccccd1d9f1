"""What every service does to the broker before it begins: streams, buckets, the shard count."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from tokentrace.bus import MIN_STREAM_BYTES, Bus, Stream, StreamState, subjects
from tokentrace.config import Settings
from tokentrace.errors import ConfigError, Conflict, Rejected, shorten
from tokentrace.service.retry import until_available

log = logging.getLogger(__name__)

_SHARDS = "shards"
#: At most this much is left to a stream beyond what it holds, where the disk has too little room for all.
_REST_BYTES = 64 * 1024 * 1024
_COUNT = re.compile(r"[1-9][0-9]{0,5}")


async def bootstrap(bus: Bus, settings: Settings, *, room_bytes: int | None = None) -> None:
    """
    Make or update everything of DESIGN 2; safe to do from any number of services at once.

    Args:
        room_bytes: What all streams may take together, where that is known: ceilings over it are cut, because the
            broker sets aside what a stream may grow to, and are raised again when there is more room.

    Raises:
        ConfigError: The streams were made for another number of shards.
    """
    nats = settings.nats
    wanted = subjects.streams(
        raw_bytes=nats.raw_max_bytes,
        spans_bytes=nats.spans_max_bytes,
        spans_age_ns=nats.spans_max_age,
        duplicate_window_ns=nats.duplicate_window,
    )
    sizes = await _sizes(bus, wanted)
    asked = wanted if room_bytes is None else fit(wanted, room_bytes, sizes)
    # What gets smaller first: all together are never more than before, or than there is room for.
    asked = sorted(
        asked, key=lambda stream: stream.max_bytes - (sizes[stream.name].max_bytes if stream.name in sizes else 0)
    )
    changed: dict[str, list[str]] = {}
    for stream in asked:
        instead = await until_available(partial(bus.ensure, stream, resize=room_bytes is not None))
        if instead:
            changed.setdefault(instead, []).append(stream.name)
    _tell(wanted, asked, room_bytes, changed)
    await _agree_on_shards(bus, nats.shards)


async def _sizes(bus: Bus, streams: Sequence[Stream]) -> dict[str, StreamState]:
    """Those of *streams* that are there, by name."""
    sizes = {}
    for stream in streams:
        with contextlib.suppress(Rejected):
            sizes[stream.name] = await until_available(partial(bus.state, stream.name))
    return sizes


def fit(streams: Sequence[Stream], room_bytes: int, sizes: Mapping[str, StreamState] | None = None) -> list[Stream]:
    """
    *streams* with ceilings that together stay within *room_bytes*, as far as that is possible.

    They are cut in proportion, but none below what it needs: what it holds now, half as much again, and a rest that
    lasts until a reader that is behind is noticed.

    Args:
        sizes: Those that are there already, by name; the others are new.
    """
    if sum(stream.max_bytes for stream in streams) <= room_bytes:
        return list(streams)
    least = [_least_bytes(stream, (sizes or {}).get(stream.name)) for stream in streams]

    def cut(part: float) -> list[int]:
        return [max(int(stream.max_bytes * part), low) for stream, low in zip(streams, least, strict=True)]

    fits, too_much = 0.0, 1.0
    for _ in range(50):
        middle = (fits + too_much) / 2
        fits, too_much = (middle, too_much) if sum(cut(middle)) <= room_bytes else (fits, middle)
    return [replace(stream, max_bytes=size) for stream, size in zip(streams, cut(fits), strict=True)]


def _least_bytes(stream: Stream, state: StreamState | None) -> int:
    rest = min(max(stream.max_bytes // 128, MIN_STREAM_BYTES), _REST_BYTES, stream.max_bytes)
    if state is None or state.max_bytes <= 0:
        return rest
    needed = min(state.bytes + max(state.bytes // 2, rest), stream.max_bytes)
    # Never more than it has reserved already, which the disk may not have; apart from the rest.
    return max(min(needed, state.max_bytes), rest)


def _tell(
    wanted: Sequence[Stream], asked: Sequence[Stream], room_bytes: int | None, changed: Mapping[str, Sequence[str]]
) -> None:
    """Say in one sentence what there is no room for, if anything."""
    total, made = sum(stream.max_bytes for stream in wanted), sum(stream.max_bytes for stream in asked)
    said = []
    if room_bytes is not None and made < total:
        said.append(
            f"the disk has room for {room_bytes >> 20} MiB of streams, not for the configured {total >> 20} MiB: "
            f"they get {made >> 20} MiB"
        )
    if changed:
        streams = "; ".join(f"{', '.join(names)}: {instead}" for instead, names in sorted(changed.items()))
        said.append(f"the broker has no room for all that is configured: {streams}")
    if said:
        log.warning("%s", "; ".join(said))


async def _agree_on_shards(bus: Bus, shards: int) -> None:
    meta = bus.kv(subjects.META)
    # Read first: a full disk cannot be written.
    entry = await until_available(partial(meta.get, _SHARDS))
    if entry is None:
        try:
            await until_available(partial(meta.create, _SHARDS, str(shards).encode()))
        except Conflict:
            entry = await until_available(partial(meta.get, _SHARDS))
    stored = entry.value.decode("ascii", "replace") if entry else str(shards)
    if entry is not None and not _COUNT.fullmatch(stored):
        # It names no number of shards, so nobody was promised one.
        reason = f"number of shards: {shorten(stored)!r} is none; {shards}, as configured, is written in its place"
        bus.set_aside.note(subjects.META, f"key {_SHARDS} revision {entry.revision}", reason)
        await until_available(lambda: meta.put(_SHARDS, str(shards).encode()))
        return
    if stored != str(shards):
        raise ConfigError(
            f"nats.shards: {shards}, but the streams were made for {stored}, and state is kept per shard. "
            f"Set it back to {stored}; or, to reshard, stop all services, delete the key '{_SHARDS}' of the bucket "
            f"{subjects.META} and the objects of {subjects.SNAPSHOTS}, and start again: state is rebuilt from what "
            f"{subjects.SPANS} still holds"
        )
