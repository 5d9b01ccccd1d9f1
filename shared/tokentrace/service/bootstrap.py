"""Preparation of the broker at the start of a service: streams, buckets and the shard count."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import partial

import structlog
from msgspec.structs import replace

from tokentrace.bus import MIN_STREAM_BYTES, Bus, Stream, StreamState, subjects
from tokentrace.config import Settings
from tokentrace.dedup import capacity_for
from tokentrace.errors import ConfigError, Conflict, Rejected, quoted
from tokentrace.service import call_readers
from tokentrace.service.retry import until_available

log = structlog.stdlib.get_logger(__name__)

_SHARDS = "shards"
#: Largest spare amount of a stream whose size is cut to fit a small disk, bytes.
_SPARE_BYTES = 64 * 1024 * 1024
_COUNT = re.compile(r"[1-9][0-9]{0,7}")


async def bootstrap(bus: Bus, settings: Settings, *, room_bytes: int | None = None) -> None:
    """
    Create or update every stream and bucket; several services may do so at the same time.

    Args:
        room_bytes: The space for all streams together, bytes; None = unknown. The broker reserves the maximum size of a
            stream, so sizes are cut to fit, and raised again when there is more space.

    Raises:
        ConfigError: The streams were created for another number of shards.
        Rejected: The broker refuses the settings of a stream.
    """
    nats = settings.nats
    wanted = subjects.streams(
        raw_bytes=nats.raw_max_bytes,
        spans_bytes=nats.spans_max_bytes,
        spans_age_ns=nats.spans_max_age,
        duplicate_window_ns=nats.duplicate_window,
        forward=[
            subjects.ForwardQueue(target.name, target.max_bytes, target.max_age) for target in settings.otlp.forward
        ],
    )
    sizes = await _sizes(bus, wanted)
    requested = wanted if room_bytes is None else fit(wanted, room_bytes, sizes)
    # Shrink streams before others grow, so that the sum never exceeds the old sum or the space.
    requested = sorted(
        requested, key=lambda stream: stream.max_bytes - (sizes[stream.name].max_bytes if stream.name in sizes else 0)
    )
    changed: dict[str, list[str]] = {}
    for stream in requested:
        instead = await until_available(partial(bus.ensure, stream, resize=room_bytes is not None))
        if instead:
            changed.setdefault(instead, []).append(stream.name)
    _log_lack_of_space(wanted, requested, room_bytes, changed)
    await _agree_on_shards(bus, nats.shards)
    await _agree_on_calls(bus, nats.shards)


async def _sizes(bus: Bus, streams: Sequence[Stream]) -> dict[str, StreamState]:
    """Return the states of those of *streams* that exist, by name."""
    sizes = {}
    for stream in streams:
        with contextlib.suppress(Rejected):
            sizes[stream.name] = await until_available(partial(bus.state, stream.name))
    return sizes


def fit(streams: Sequence[Stream], room_bytes: int, sizes: Mapping[str, StreamState] | None = None) -> list[Stream]:
    """
    Return *streams* with maximum sizes that together stay within *room_bytes*, as far as possible.

    The sizes are cut in proportion, but not below a minimum: what the stream holds, plus half of it or a small spare
    amount, whichever is more. This gives time to notice a slow reader. An existing stream is not enlarged for this
    minimum beyond the spare amount.

    Args:
        sizes: The states of the streams that exist, by name; the others are new.
    """
    if sum(stream.max_bytes for stream in streams) <= room_bytes:
        return list(streams)
    lowest = [_least_bytes(stream, (sizes or {}).get(stream.name)) for stream in streams]

    def cut(factor: float) -> list[int]:
        return [max(int(stream.max_bytes * factor), low) for stream, low in zip(streams, lowest, strict=True)]

    fits, too_much = 0.0, 1.0
    for _ in range(50):
        middle = (fits + too_much) / 2
        fits, too_much = (middle, too_much) if sum(cut(middle)) <= room_bytes else (fits, middle)
    return [replace(stream, max_bytes=size) for stream, size in zip(streams, cut(fits), strict=True)]


def _least_bytes(stream: Stream, state: StreamState | None) -> int:
    spare = min(max(stream.max_bytes // 128, MIN_STREAM_BYTES), _SPARE_BYTES, stream.max_bytes)
    if state is None or state.max_bytes <= 0:
        return spare
    needed = min(state.bytes + max(state.bytes // 2, spare), stream.max_bytes)
    # Not more than the stream has reserved already, because the disk may not have it; the spare amount is an exception.
    return max(min(needed, state.max_bytes), spare)


def _log_lack_of_space(
    wanted: Sequence[Stream], requested: Sequence[Stream], room_bytes: int | None, changed: Mapping[str, Sequence[str]]
) -> None:
    """Log in one sentence which streams are smaller than configured, if any."""
    total, cut = sum(stream.max_bytes for stream in wanted), sum(stream.max_bytes for stream in requested)
    sentences = []
    if room_bytes is not None and cut < total:
        sentences.append(
            f"the disk has space for {room_bytes >> 20} MiB of streams, not for the configured {total >> 20} MiB: "
            f"the streams get {cut >> 20} MiB"
        )
    if changed:
        streams = "; ".join(f"{', '.join(names)}: {instead}" for instead, names in sorted(changed.items()))
        sentences.append(f"the broker has no space for the configured sizes: {streams}")
    if sentences:
        log.warning("%s", "; ".join(sentences))


async def _agree_on_shards(bus: Bus, shards: int) -> None:
    meta = bus.kv(subjects.META)
    # Read before writing, because on a full disk only reading works.
    entry = await until_available(partial(meta.get, _SHARDS))
    if entry is None:
        try:
            await until_available(partial(meta.create, _SHARDS, str(shards).encode()))
        except Conflict:
            entry = await until_available(partial(meta.get, _SHARDS))
    stored = entry.value.decode("ascii", "replace") if entry else str(shards)
    if entry is not None and not _COUNT.fullmatch(stored):
        # The stored value is not a number of shards, so no service has relied on it.
        reason = f"number of shards: {quoted(stored)} is not a number; replaced by the configured {shards}"
        bus.set_aside.note(subjects.META, f"key {_SHARDS} revision {entry.revision}", reason)
        await until_available(lambda: meta.put(_SHARDS, str(shards).encode()))
        return
    if stored != str(shards):
        raise ConfigError(
            f"nats.shards: {shards}, but the streams were created for {stored}, and state is kept per shard. "
            f"Set it back to {stored}; or, to reshard, stop all services, delete the key '{_SHARDS}' of the bucket "
            f"{subjects.META} and the objects of {subjects.SNAPSHOTS}, and start again: state is rebuilt from what "
            f"{subjects.SPANS} still holds"
        )


async def _agree_on_calls(bus: Bus, shards: int) -> None:
    """Write how many calls a shard remembers, and, if the log was never used, that batches are placed by call."""
    meta = bus.kv(subjects.META)
    state = await until_available(partial(bus.state, subjects.SPANS))
    wanted = {call_readers.CAPACITY: str(capacity_for(shards)).encode()}
    if state.last_sequence == 0:
        wanted[call_readers.LAYOUT] = call_readers.encode_layout(0)
    for key, value in wanted.items():
        if await until_available(partial(meta.get, key)) is None:
            with contextlib.suppress(Conflict):
                await until_available(partial(meta.create, key, value))


async def agreed_capacity(bus: Bus, shards: int) -> int:
    """Return how many calls a shard remembers: the number in ``tt_meta``, or that for *shards* if it is unreadable."""
    entry = await until_available(partial(bus.kv(subjects.META).get, call_readers.CAPACITY))
    if entry is not None:
        stored = entry.value.decode("ascii", "replace")
        if _COUNT.fullmatch(stored) and int(stored).bit_count() == 1:
            return int(stored)
        which = f"key {call_readers.CAPACITY} revision {entry.revision}"
        bus.set_aside.note(subjects.META, which, f"number of calls: {quoted(stored)} is not a power of two")
    return capacity_for(shards)
