"""
What one reader knows of one shard: the batches it has folded, and the newest calls.

Every reader of the log asks a ``Deduplicator`` which records of a batch count. The answer depends on the records, their
order in the log and stream time alone, so all readers give the same answer, and ``digests`` let them prove it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from tokentrace.dedup.batches import FoldedBatches
from tokentrace.dedup.identity import IDENTITY, batch_identity, decode_identities
from tokentrace.dedup.memory import TOTAL_CALLS, CallMemory
from tokentrace.records import Batch, decode_batches

#: A digest is kept for the state before the first message from each multiple of this sequence on.
DIGEST_EVERY = 256
#: Number of digests kept.
_DIGESTS = 32
_OTHER_RECORDS = ("started", "scores", "messages", "session_ends", "tombstones", "annotations")


class Taken(NamedTuple):
    """
    The part of a batch that counts.

    Attributes:
        batch: The batch with the spans that count, and with its other records unless they were folded before; None if
            nothing of it counts.
        counted: For each span of the original batch, whether it counts; None = all of them do.
        conflicting: Indices of spans that do not count and whose usage or cost differs from that of the first telling.
        skipped: True = the batch was folded before as a whole.
    """

    batch: Batch | None
    counted: Sequence[bool] | None = None
    conflicting: Sequence[int] = ()
    skipped: bool = False


class Digest(NamedTuple):
    """
    What a reader remembered before it folded the first message with this sequence or a later one.

    Attributes:
        sequence: A multiple of ``DIGEST_EVERY``.
        calls: Number of calls that were remembered.
        digest: ``CallMemory.digest``.
    """

    sequence: int
    calls: int
    digest: int


class LeftOut(msgspec.Struct, array_like=True):
    """
    What one reader left out of its sums.

    Attributes:
        repeated_batches: Number of batches skipped as a whole.
        repeated: Number of spans that told a call again.
        conflicting: Number of those with another usage or cost than the first telling.
        conflicting_nusd: Sum of the costs of the conflicting spans, nano-dollars.
        reused: Number of spans that were counted although another call had the same response id.
    """

    repeated_batches: int = 0
    repeated: int = 0
    conflicting: int = 0
    conflicting_nusd: int = 0
    reused: int = 0


def total(parts: Iterable[LeftOut]) -> LeftOut:
    """Return the sum of *parts*."""
    return LeftOut(*map(sum, zip(*map(msgspec.structs.astuple, parts), strict=True)))


class Deduplicator:
    """
    The memory of one reader for one shard.

    Args:
        shards: Shard count.
        capacity: Number of calls that are remembered, a power of two; all readers of a deployment use the same.

    Attributes:
        batches: The numbered batches that were folded.
        calls: The newest calls.
        left_out: What was left out since the log began.
    """

    def __init__(self, shards: int = 1, capacity: int = TOTAL_CALLS) -> None:
        self.batches = FoldedBatches(shards)
        self.calls = CallMemory(capacity)
        self.left_out = LeftOut()
        self._digests: list[Digest] = []

    @property
    def digests(self) -> list[Digest]:
        """The memory of calls before the last multiples of ``DIGEST_EVERY``, oldest first."""
        return list(self._digests)

    @property
    def _boundary(self) -> int:
        return self._digests[-1].sequence if self._digests else 0

    def begin(self, sequence: int) -> None:
        """Note that the message with *sequence* is folded next."""
        boundary = sequence - sequence % DIGEST_EVERY
        if boundary > self._boundary:
            self._digests = [*self._digests, Digest(boundary, len(self.calls), self.calls.digest)][-_DIGESTS:]

    def rewound(self) -> None:
        """Note that the log begins anew, so that sequences are small again."""
        self._digests = []

    def taken_from(self, payload: bytes, sequence: int, now_ns: int, project: str) -> Iterator[tuple[Batch, Taken]]:
        """
        Yield (batch, what counts of it) for each batch of a message, and remember it.

        Args:
            payload, sequence, now_ns: The message's content, number and stream time, Unix nanoseconds.
            project: The project in the subject of the message.

        Raises:
            Rejected: *payload* cannot be decoded.
        """
        self.begin(sequence)
        for batch in decode_batches(payload):
            yield batch, self.take(batch, now_ns, project)

    def take(self, batch: Batch, now_ns: int, project: str) -> Taken:
        """
        Return what counts of *batch*, and remember it.

        Args:
            now_ns: Stream time of the batch's message, Unix nanoseconds.
            project: The project in the subject of the message.
        """
        if batch.sequence and not self.batches.add(batch, now_ns):
            return self._skip(batch)
        has_others = batch.reporter is not None or any(getattr(batch, name) for name in _OTHER_RECORDS)
        if not batch.sequence:
            self.batches.forget(now_ns)
            if self.batches.holds_request(batch):
                return self._skip(batch)
            if has_others:
                known = self.calls.take(np.frombuffer(batch_identity(batch, project), IDENTITY))
                has_others = bool(known.counted[0])
        if not batch.spans:
            self.left_out.repeated_batches += not has_others
            return Taken(batch if has_others else None)
        verdict = self.calls.take(decode_identities(batch, project))
        self.left_out.reused += verdict.reused
        if verdict.counted.all() and (has_others or not any(getattr(batch, name) for name in _OTHER_RECORDS)):
            return Taken(batch)
        return self._partly(batch, verdict.counted.tolist(), verdict.conflicting, with_others=has_others)

    def _skip(self, batch: Batch) -> Taken:
        self.left_out.repeated_batches += 1
        return Taken(None, [False] * len(batch.spans), skipped=True)

    def _partly(self, batch: Batch, counted: list[bool], conflicting: list[int], *, with_others: bool) -> Taken:
        spans = [span for span, counts in zip(batch.spans, counted, strict=True) if counts]
        self.left_out.repeated += len(counted) - len(spans)
        self.left_out.conflicting += len(conflicting)
        self.left_out.conflicting_nusd += sum(batch.spans[at].cost_nusd or 0 for at in conflicting)
        if not spans and not with_others:
            self.left_out.repeated_batches += 1
            return Taken(None, counted, conflicting)
        emptied: dict[str, list[Any]] = {} if with_others else {name: [] for name in _OTHER_RECORDS}
        return Taken(replace(batch, spans=spans, **emptied), counted, conflicting)

    def forget(self, now_ns: int) -> None:
        """Forget batches that are too old at stream time *now_ns*, Unix nanoseconds."""
        self.batches.forget(now_ns)

    def snapshot(self, prefix: str, saved: Mapping[str, int]) -> tuple[Any, dict[str, Any]]:
        """Capture the state; return (state for ``restore``, name -> part), as ``CallMemory.snapshot``."""
        calls, parts = self.calls.snapshot(prefix, saved)
        state = {
            "batches": self.batches.snapshot(),
            "calls": calls,
            "left_out": list(msgspec.structs.astuple(self.left_out)),
            "boundary": self._boundary,
            "digests": self._digests,
        }
        return state, parts

    def restore(self, state: Any, parts: Mapping[str, bytes], prefix: str) -> None:
        """Take over what ``snapshot`` captured; raises ``Rejected`` if it does not fit."""
        self.batches = FoldedBatches.restore(state["batches"])
        self.calls.restore(state["calls"], parts, prefix)
        self.left_out = msgspec.convert(state["left_out"], LeftOut)
        self._digests = msgspec.convert(state["digests"], list[Digest])

    def progress(self) -> bytes:
        """Return the state without batches and calls, for a reader that keeps those in tables."""
        return msgspec.msgpack.encode((self.left_out, self._boundary, self._digests))

    def restore_progress(self, state: bytes) -> None:
        """Take over what ``progress`` returned; raises an error of msgspec if it is something else."""
        decoded = msgspec.msgpack.decode(state, type=tuple[LeftOut, int, list[Digest]])
        self.left_out, _, self._digests = decoded
