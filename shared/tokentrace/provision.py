"""What every service does to the broker before it begins: streams, buckets, the shard count."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from msgspec.structs import replace

from tokentrace.bus import MIN_STREAM_BYTES, Bus, Stream, subjects
from tokentrace.errors import ConfigError, Conflict, shorten
from tokentrace.pump import until_available
from tokentrace.settings import Settings

log = logging.getLogger("tokentrace.provision")

_SHARDS = "shards"
_COUNT = re.compile(r"[1-9][0-9]{0,5}")


async def provision(bus: Bus, settings: Settings, *, room_bytes: int | None = None) -> None:
    """
    Make or update everything of DESIGN 2; safe to do from any number of services at once.

    Args:
        room_bytes: What all streams may take together, where that is known: ceilings over it are cut in proportion,
            because the broker sets aside what a stream may grow to.

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
    for stream in fit(wanted, room_bytes) if room_bytes is not None else wanted:
        await until_available(lambda stream=stream: bus.ensure(stream))  # type: ignore[misc]
    await _agree_on_shards(bus, nats.shards)


def fit(streams: Sequence[Stream], room_bytes: int) -> list[Stream]:
    """*streams* with ceilings that together stay within *room_bytes*, each at least ``MIN_STREAM_BYTES``."""
    total = sum(stream.max_bytes for stream in streams)
    if total <= room_bytes:
        return list(streams)
    cut = [max(stream.max_bytes * room_bytes // total, MIN_STREAM_BYTES) for stream in streams]
    log.warning(
        "the disk has room for %d MiB of streams, not %d: all are cut in proportion", room_bytes >> 20, total >> 20
    )
    return [replace(stream, max_bytes=size) for stream, size in zip(streams, cut, strict=True)]


async def _agree_on_shards(bus: Bus, shards: int) -> None:
    meta = bus.kv(subjects.META)
    try:
        await until_available(lambda: meta.create(_SHARDS, str(shards).encode()))
        return
    except Conflict:
        entry = await until_available(lambda: meta.get(_SHARDS))
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
