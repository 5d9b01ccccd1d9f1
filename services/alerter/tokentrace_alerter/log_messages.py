"""What a message of the log tells the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokentrace.bus import Message, subjects
from tokentrace.dedup import Deduplicator
from tokentrace.errors import Rejected
from tokentrace.records import Batch, decode_batches


def counted_in(message: Message, dedup: Mapping[int, Deduplicator]) -> Iterator[tuple[Batch, int]]:
    """
    Yield what counts of each batch of *message*, and the number of spans in it that its reporter sent.

    What is yielded is remembered in the memory of its shard.
    """
    shard = subjects.shard_of_spans(message.subject)
    if shard is None:
        return
    own = dedup.get(shard)
    if own is None:
        raise Rejected(f"subject: {message.subject!r} is of a shard beyond the shard count")
    project = subjects.parse_project(message.subject)
    for batch, taken in own.taken_from(message.payload, message.sequence, message.time_ns, project):
        sent = len(batch.spans) if batch.sequence and not taken.skipped else 0
        if taken.batch is not None:
            yield taken.batch, sent
        elif sent:
            yield Batch(id=batch.id, sequence=batch.sequence), sent


def deleted_users(message: Message) -> list[str]:
    """Return the ids of the users that *message* deletes."""
    if subjects.shard_of_spans(message.subject) is not None:
        return []
    batches = decode_batches(message.payload)
    return [tombstone.id for batch in batches for tombstone in batch.tombstones if tombstone.target == "user"]
