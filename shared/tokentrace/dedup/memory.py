"""
The memory of the newest calls of one shard: exact, first in first out, in a fixed amount of memory.

How it works. The identities of the newest *capacity* calls stand in a ring, numbered in the order of the log. ``_head``
maps a slot, which is the first bits of a key, to the newest call with these bits; ``_previous`` maps a place in the
ring to the next older call of the same slot. A call that the ring has overwritten is not removed from these lists: its
number says that it is too old, and the list ends there. So nothing is ever deleted, rehashed or rebuilt, and a whole
batch of new calls is found absent and is added by a few operations on arrays. At 2^20 calls the arrays take 44 MiB.

A call that is found is neither added again nor moved to the front, so what the memory holds depends only on the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tokentrace.dedup.identity import IDENTITY, SHORT, START_SHIFT, WAY_MASK, WAY_SHIFT
from tokentrace.errors import Rejected
from tokentrace.records import LONG_MS, SHORT_MS
from tokentrace.state import Part

#: Number of calls that all shards of a deployment remember together, and the least that one shard remembers.
TOTAL_CALLS = 2**20
LEAST_CALLS = 2**16
#: Number of consecutive calls in one part of a snapshot.
PIECE = 4096
#: A batch of at most this many spans is compared one by one, because operations on arrays have a fixed cost.
_FEW = 6
_MASK, _MASK64 = 2**32 - 1, 2**64 - 1
_MIX = 0xBF58476D1CE4E5B9
_MIX_64, _HALF = np.uint64(_MIX), np.uint64(31)
#: The values of one ``IDENTITY``, in its order.
_Entry = tuple[int, int, int, int, int, int]


def capacity_for(shards: int) -> int:
    """Return the number of calls that one of *shards* shards remembers: a power of two."""
    capacity = TOTAL_CALLS
    while capacity * shards > TOTAL_CALLS and capacity > LEAST_CALLS:
        capacity //= 2
    return capacity


class Verdict(NamedTuple):
    """
    What the memory says about the spans of a batch.

    Attributes:
        counted: True for each span that is the first telling of its call.
        conflicting: Indices of the spans that are not counted and whose usage or cost differs from the first telling.
        reused: Number of counted spans whose response id belonged to another call.
    """

    counted: Any
    conflicting: list[int]
    reused: int


class CallMemory:
    """
    The newest calls of one shard.

    Args:
        capacity: Number of calls that are remembered, a power of two.

    Attributes:
        added: Number of calls that were ever added; the newest call has this number, the first one has number 1.
        digest: A hash of the calls that are remembered, 64 bits; equal memories have equal digests.
    """

    def __init__(self, capacity: int = TOTAL_CALLS) -> None:
        if capacity < 1 or capacity & (capacity - 1):
            raise ValueError(f"capacity: {capacity} is not a power of two")
        self.capacity = capacity
        self.added = 0
        self.digest = 0
        self._bits = max(capacity.bit_length(), 4)
        self._shift = np.uint64(64 - self._bits)
        self._ring: Any = np.zeros(capacity, IDENTITY)
        self._previous: Any = np.zeros(capacity, np.uint32)
        self._head: Any = np.zeros(1 << self._bits, np.uint32)
        self._pieces: dict[int, int] = {}
        self._view()

    def _view(self) -> None:
        # Reading one element of a memoryview takes a third of the time of reading one of an array.
        self._numbers = self._ring.view(np.uint64)
        self._words = memoryview(self._numbers)
        self._previous_view, self._head_view = memoryview(self._previous), memoryview(self._head)

    def __len__(self) -> int:
        """Return the number of calls that are remembered."""
        return min(self.added, self.capacity)

    @property
    def nbytes(self) -> int:
        """The size of all arrays, bytes."""
        return int(self._ring.nbytes + self._previous.nbytes + self._head.nbytes)

    @property
    def oldest_start_ms(self) -> int:
        """When the oldest remembered call started, Unix milliseconds; 0 = no call is remembered."""
        if not self.added:
            return 0
        oldest = (self.added - len(self) + 1) & (self.capacity - 1)
        return int(self._ring["start"][oldest]) >> START_SHIFT

    def take(self, identities: Any) -> Verdict:
        """
        Compare the spans of a batch, in order, with the calls before them, and remember those that are new.

        Args:
            identities: Array of ``IDENTITY``.
        """
        count = len(identities)
        half = max(self.capacity // 2, 1)
        if count > half:
            return _joined([self.take(identities[at : at + half]) for at in range(0, count, half)], half)
        if count <= _FEW:
            return self._take_each(identities)
        keys = np.ascontiguousarray(identities["key"])
        found = self._suspects(keys)
        if found is None:
            self._append(identities)
            return Verdict(np.ones(count, np.bool_), [], 0)
        return self._take_with_suspects(identities, *found)

    def _take_with_suspects(self, identities: Any, suspects: Any, firsts: Any) -> Verdict:
        """Decide on the *suspects* one by one and on all other spans at once; the arguments are as of ``_suspects``."""
        counted = np.ones(len(identities), np.bool_)
        conflicting: list[int] = []
        reused = repeated = 0
        #: Key -> the spans of this batch that count, newest last.
        earlier: dict[int, list[_Entry]] = {}
        for index in np.flatnonzero(suspects | firsts).tolist():
            entry: _Entry = identities[index].item()
            if suspects[index]:
                same, known = self._find(entry, earlier.get(entry[0], ()), index - repeated)
                if same is not None:
                    counted[index] = False
                    repeated += 1
                    if entry[2:4] != same:
                        conflicting.append(index)
                    continue
                reused += known
            earlier.setdefault(entry[0], []).append(entry)
        if repeated < len(identities):
            self._append(identities[counted] if repeated else identities)
        return Verdict(counted, conflicting, reused)

    def _suspects(self, keys: Any) -> tuple[Any, Any] | None:
        """
        Return which of *keys* are remembered or occur earlier in *keys*, and which of them occur again later.

        Most batches have neither, which is found without ordering their keys: None.
        """
        remembered = self._remembered(keys)
        ascending = np.sort(keys)
        if remembered is None and not np.count_nonzero(ascending[1:] == ascending[:-1]):
            return None
        found = np.zeros(len(keys), np.bool_)
        if remembered is not None:
            found[remembered] = True
        order = np.argsort(keys, kind="stable")
        ascending = keys[order]
        same = ascending[1:] == ascending[:-1]
        found[order[1:][same]] = True
        again = np.zeros(len(keys), np.bool_)
        again[order[:-1][same]] = True
        return found, again

    def _remembered(self, keys: Any) -> Any:
        """Return the indices of those of *keys* that are remembered, some of them several times; None = none is."""
        newest, limit = np.uint32(self.added & _MASK), len(self)
        numbers = self._head[(keys >> self._shift).view(np.int64)]
        ages = newest - numbers
        at = (ages < limit).nonzero()[0]
        found = []
        own, last = self._ring["key"], np.uint32(self.capacity - 1)
        if len(at):
            numbers, ages, wanted = numbers[at], ages[at], keys[at]
        while len(at):
            places = numbers & last
            same = own[places] == wanted
            if np.count_nonzero(same):
                found.append(at[same])
            numbers = self._previous[places]
            older = newest - numbers
            go_on = ((older > ages) & (older < limit)).nonzero()[0]
            at, numbers, ages, wanted = at[go_on], numbers[go_on], older[go_on], wanted[go_on]
        return np.concatenate(found) if found else None

    def _take_each(self, identities: Any) -> Verdict:
        counted = np.ones(len(identities), np.bool_)
        conflicting = []
        reused = 0
        for index in range(len(identities)):
            entry: _Entry = identities[index].item()
            same, known = self._find(entry, (), 0)
            if same is None:
                reused += known
                self._add(entry)
                continue
            counted[index] = False
            if entry[2:4] != same:
                conflicting.append(index)
        return Verdict(counted, conflicting, reused)

    def _find(self, entry: _Entry, earlier: Sequence[_Entry], waiting: int) -> tuple[tuple[int, int] | None, bool]:
        """
        Return (usage and cost of the call that a span belongs to, or None; whether its response id is in use).

        Args:
            earlier: Calls of the same batch with the same key, which are not in the ring yet, newest last.
            waiting: Number of calls of the same batch that are not in the ring yet.
        """
        key, own, usage, _, _, _ = entry
        known = False
        for held in reversed(earlier):
            # A span without usage never stands in the way of a later telling with usage.
            if held[2] or not usage:
                if held[1] == own or _is_same_response(held, entry):
                    return held[2:4], False
                known = True
        added, last = self.added + waiting, self.capacity - 1
        limit = min(self.capacity, added)
        words = self._words
        number, age_before = self._head_view[key >> (64 - self._bits)], -1
        while True:
            age = (added - number) & _MASK
            if age >= limit or age <= age_before:
                return None, known
            place = number & last
            if words[4 * place] == key:
                held = self._at(place)
                if held[2] or not usage:
                    if held[1] == own or _is_same_response(held, entry):
                        return held[2:4], known
                    known = True
            number, age_before = self._previous_view[place], age

    def _at(self, place: int) -> _Entry:
        key, ids_and_usage, cost_and_duration, start = self._words[4 * place : 4 * place + 4]
        return (
            key,
            ids_and_usage & _MASK,
            ids_and_usage >> 32,
            cost_and_duration & _MASK,
            cost_and_duration >> 32,
            start,
        )

    def _add(self, entry: _Entry) -> None:
        self.added += 1
        number = self.added & _MASK
        place = number & (self.capacity - 1)
        if self.added > self.capacity:
            self.digest -= _mixed(self._words[4 * place])
        self.digest = self.digest + _mixed(entry[0]) & _MASK64
        key, own, usage, cost, duration, start = entry
        words = self._words
        words[4 * place], words[4 * place + 1] = key, usage << 32 | own
        words[4 * place + 2], words[4 * place + 3] = duration << 32 | cost, start
        slot = entry[0] >> (64 - self._bits)
        self._previous_view[place] = self._head_view[slot]
        self._head_view[slot] = number
        self._pieces[place // PIECE] = self.added

    def _append(self, identities: Any) -> None:
        """Add calls that are known to be new; at most half of *capacity*."""
        count, place = len(identities), (self.added + 1) & (self.capacity - 1)
        room = self.capacity - place
        if count > room:
            self._append(identities[:room])
            self._append(identities[room:])
            return
        stretch = slice(place, place + count)
        keys = np.ascontiguousarray(identities["key"])
        self.digest += _mixed_sum(keys)
        unused = max(self.capacity - self.added, 0)
        if unused < count:
            self.digest -= _mixed_sum(self._ring["key"][place + unused : place + count])
        self.digest &= _MASK64
        # Copying words takes a fifth of the time of copying records field by field.
        self._numbers[4 * place : 4 * (place + count)] = np.ascontiguousarray(identities).view(np.uint64)
        numbers = np.arange(count, dtype=np.uint32) + np.uint32(self.added + 1 & _MASK)
        slots = (keys >> self._shift).view(np.int64)
        heads = self._head[slots]
        self._previous[stretch] = heads
        self._head[slots] = numbers
        lost = self._head[slots] != numbers
        if np.count_nonzero(lost):
            self._chain(np.flatnonzero(np.isin(slots, slots[lost])), slots, heads, place, numbers)
        self.added += count
        for piece in range(place // PIECE, (place + count - 1) // PIECE + 1):
            self._pieces[piece] = self.added

    def _chain(self, indices: Any, slots: Any, heads: Any, place: int, numbers: Any) -> None:
        """Link calls of one batch that have the same slot; the first call of the batch is at *place*."""
        newest: dict[int, int] = {}
        for at in indices.tolist():
            slot = int(slots[at])
            self._previous[place + at] = newest.get(slot, int(heads[at]))
            newest[slot] = int(numbers[at])
        for slot, number in newest.items():
            self._head[slot] = number

    # -- what is saved

    def entries_after(self, number: int) -> Any:
        """Return the calls after *number*, oldest first, as an array of ``IDENTITY``; those still remembered."""
        first = max(number, self.added - len(self))
        return self._ring[np.arange(first + 1, self.added + 1) & (self.capacity - 1)]

    def snapshot(self, prefix: str, saved: Mapping[str, int]) -> tuple[list[int], dict[str, Part]]:
        """
        Capture the memory.

        Args:
            prefix: First characters of the names of the parts.
            saved: Name of a part -> the revision of it that is saved already.

        Returns:
            (State for ``restore``, name -> part of at most ``PIECE`` calls).
        """
        parts = {}
        for piece in range(self._piece_count(self.added)):
            name, revision = f"{prefix}{piece}", self._pieces.get(piece, 0)
            parts[name] = Part(revision, None if saved.get(name) == revision else self._encoder(piece))
        return [self.capacity, self.added, self.digest], parts

    def _piece_count(self, added: int) -> int:
        """Return the number of pieces that hold a call once *added* calls were added."""
        return min(added, self.capacity - 1) // PIECE + 1

    def _encoder(self, piece: int) -> Callable[[], bytes]:
        captured = self._ring[piece * PIECE : (piece + 1) * PIECE].copy()
        return lambda: bytes(captured.data)

    def restore(self, state: Any, parts: Mapping[str, bytes], prefix: str) -> None:
        """
        Take over what ``snapshot`` captured.

        Raises:
            Rejected: A part is missing, or the state is of another capacity.
        """
        capacity, added, digest = msgspec.convert(state, tuple[int, int, int])
        if capacity != self.capacity:
            raise Rejected(f"memory of calls: it holds {capacity} calls, this reader remembers {self.capacity}")
        ring = np.zeros(capacity, IDENTITY)
        for piece in range(self._piece_count(added)):
            data = parts.get(f"{prefix}{piece}")
            if data is None or len(data) != min(PIECE, capacity) * IDENTITY.itemsize:
                raise Rejected(f"memory of calls: part {piece} is missing or has the wrong size")
            ring[piece * PIECE : (piece + 1) * PIECE] = np.frombuffer(data, IDENTITY)
        self._fill(ring, added, digest)

    def restore_entries(self, entries: Any, added: int, digest: int) -> None:
        """Take over *entries*, the newest calls in order, of which the last has the number *added*."""
        entries = entries[-self.capacity :]
        ring = np.zeros(self.capacity, IDENTITY)
        places = np.arange(added - len(entries) + 1, added + 1, dtype=np.int64) & (self.capacity - 1)
        ring[places] = entries
        if len(entries) < min(added, self.capacity):
            raise Rejected(f"memory of calls: {len(entries)} calls instead of {min(added, self.capacity)}")
        self._fill(ring, added, digest)

    def _fill(self, ring: Any, added: int, digest: int) -> None:
        """Take over *ring* and build the lists of the slots."""
        self._ring = ring
        self.added, self.digest = added, digest
        self._pieces = {}
        # Pages of new arrays take no memory until they are written, which most are not while few calls are remembered.
        self._head, self._previous = np.zeros_like(self._head), np.zeros_like(self._previous)
        numbers = np.arange(added - len(self) + 1, added + 1, dtype=np.uint64)
        places = (numbers & np.uint64(self.capacity - 1)).astype(np.int64)
        slots = ring["key"][places] >> self._shift
        # Sorting slot and index as one number takes half the time of a stable argsort of the slots.
        both = slots << np.uint64(32) | np.arange(len(slots), dtype=np.uint64)
        both.sort()
        order = (both & np.uint64(_MASK)).astype(np.int64)
        sorted_slots, sorted_numbers = both >> np.uint64(32), (numbers[order] & np.uint64(_MASK)).astype(np.uint32)
        sorted_places = places[order]
        same = sorted_slots[1:] == sorted_slots[:-1]
        self._previous[sorted_places[1:][same]] = sorted_numbers[:-1][same]
        # Of several calls with one slot the newest is assigned last.
        last = np.append(~same, True) if len(order) else np.empty(0, np.bool_)
        self._head[sorted_slots[last].astype(np.int64)] = sorted_numbers[last]
        self._view()


def _is_same_response(held: _Entry, told: _Entry) -> bool:
    """Return True if two spans with one response id are one call; their intervals and usage decide."""
    short = told[5] & SHORT
    gap = SHORT_MS if short else LONG_MS
    held_start, told_start = held[5] >> START_SHIFT, told[5] >> START_SHIFT
    if told_start - gap > held_start + held[4] or held_start - gap > told_start + told[4]:
        return False
    return not short or (held[2] == told[2] and _way(held[5]) != _way(told[5]))


def _mixed(key: int) -> int:
    product = key * _MIX & _MASK64
    return product ^ product >> 31


def _mixed_sum(keys: Any) -> int:
    products = keys * _MIX_64
    return int(np.add.reduce(products ^ products >> _HALF))


def _way(start: int) -> int:
    return start >> WAY_SHIFT & WAY_MASK


def _joined(verdicts: list[Verdict], size: int) -> Verdict:
    """Return one verdict for a batch that was taken in runs of *size* spans."""
    conflicting = [number * size + at for number, verdict in enumerate(verdicts) for at in verdict.conflicting]
    counted = np.concatenate([verdict.counted for verdict in verdicts])
    return Verdict(counted, conflicting, sum(verdict.reused for verdict in verdicts))
