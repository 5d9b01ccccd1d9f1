"""What the readers of the log publish about their memory of calls, and what is agreed on in ``tt_meta``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from tokentrace.bad_data import SetAside, reading
from tokentrace.bus import Entry, subjects
from tokentrace.dedup import Digest
from tokentrace.records import Natural
from tokentrace.units import DAY

#: Key of (layout, the instant from which batches are placed by call, Unix nanoseconds).
LAYOUT = "layout"
#: Key of the number of calls that each shard remembers.
CAPACITY = "calls"
#: The layout that this version understands.
LAYOUT_VERSION = 1
#: Time between the agreement on a layout and its first use, nanoseconds: every ingest reads ``tt_meta`` more often.
NOTICE_NS = 30_000_000_000
_CALLS = "calls."
_READER = "reader."


class ReaderCalls(msgspec.Struct, frozen=True):
    """
    The memory of one reader.

    Attributes:
        layout: The newest layout of batches that the reader understands.
        digests: Shard -> digests.
    """

    layout: int
    digests: dict[str, list[Digest]]


def calls_key(service: str, shard: int) -> str:
    """Return the key under which a reader publishes its memory."""
    return f"{_CALLS}{service}.{shard}"


def encode_calls(digests: Mapping[int, Iterable[Digest]]) -> bytes:
    """Return the value for ``calls_key``."""
    return msgspec.json.encode(ReaderCalls(LAYOUT_VERSION, {str(shard): list(own) for shard, own in digests.items()}))


_decoder = msgspec.json.Decoder(ReaderCalls)
_layouts = msgspec.json.Decoder(tuple[Natural, Natural])


def read_calls(entries: Mapping[str, Entry], set_aside: SetAside) -> dict[str, ReaderCalls]:
    """Return reader, such as ``aggregator.0``, -> its memory; entries that cannot be decoded are set aside."""
    calls = {}
    for key, entry in entries.items():
        if key.startswith(_CALLS):
            with set_aside.guard(subjects.META, f"key {key} revision {entry.revision}"), reading("memory of a reader"):
                calls[key.removeprefix(_CALLS)] = _decoder.decode(entry.value)
    return calls


def encode_layout(from_ns: int) -> bytes:
    """Return the value of the key ``LAYOUT``: batches that arrive from *from_ns* on are placed by call."""
    return msgspec.json.encode([LAYOUT_VERSION, from_ns])


def read_layout(entry: Entry | None, set_aside: SetAside) -> int | None:
    """Return the instant from which batches are placed by call, Unix nanoseconds; None = not agreed yet."""
    if entry is None:
        return None
    with set_aside.guard(subjects.META, f"key {LAYOUT} revision {entry.revision}"), reading("layout"):
        _, from_ns = _layouts.decode(entry.value)
        return from_ns
    return None


def waits_for(
    positions: Mapping[str, tuple[int, int, int]], calls: Mapping[str, ReaderCalls], now_ns: int
) -> list[str]:
    """
    Return the readers that do not understand layout 1 yet, as far as they have published.

    Args:
        positions: What ``reader_positions.read_positions`` returned; a reader silent for 7 days is ignored.
        calls: What ``read_calls`` returned.
    """
    known = {key.removeprefix(_READER): published_ns for key, (_, _, published_ns) in positions.items()}
    return sorted(
        reader
        for reader, published_ns in known.items()
        if published_ns >= now_ns - 7 * DAY and (reader not in calls or calls[reader].layout < LAYOUT_VERSION)
    )


def that_differ(calls: Mapping[str, ReaderCalls]) -> list[str]:
    """
    Return the readers whose memory differs from that of most other readers, as ``aggregator.0 in shard 0``.

    Readers are compared at equal sequences, and only if they remember equally many calls: a reader that began later
    remembers fewer.
    """
    told: dict[tuple[str, int, int], dict[str, int]] = {}
    for reader, state in calls.items():
        for shard, digests in state.digests.items():
            for sequence, size, digest in digests:
                told.setdefault((shard, sequence, size), {})[reader] = digest
    differing = set()
    for (shard, _, _), digests_of in told.items():
        counts = Counter(digests_of.values()).most_common(2)
        if len(counts) > 1:
            usual = counts[0][0] if counts[0][1] > counts[1][1] else None
            differing |= {(reader, shard) for reader, digest in digests_of.items() if digest != usual}
    return [f"{reader} in shard {shard}" for reader, shard in sorted(differing)]
