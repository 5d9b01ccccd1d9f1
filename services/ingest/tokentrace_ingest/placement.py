"""
The shard of every record: that of the call which it belongs to, so that all tellings of a call reach the same reader.

A batch is split into one batch for each shard. The split is a function of the records, so a batch that is sent again is
split in the same way, and readers recognise the parts by their numbers.

*Layouts.* In earlier versions the id of a batch decided its shard (layout 0). Readers of these versions divide batch
numbers by the shard count and would take the parts of layout 1 for repetitions. So ingest uses layout 1 only for
batches that arrive after an instant in ``tt_meta``, which is set once all readers have published that they understand
it (``layout``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.dedup import hash64, identities_of, keys_of, select_identities, shard_of_key, span_key
from tokentrace.records import Annotation, Batch, ChatMessage, SessionEnd, Span, Started, shard_of

#: Lists of a batch whose records follow their span or session.
_FOLLOWING = ("started", "messages", "annotations", "session_ends")


class Placed(NamedTuple):
    """A batch and the shard to which it is published."""

    shard: int
    batch: Batch


def place(batch: Batch, project: str, shards: int, *, by_call: bool, made: Collection[str] = ()) -> list[Placed]:
    """
    Return the batches into which *batch* is split, with the identities of their spans.

    Args:
        batch: A clean batch; ``part`` is the number of its run of spans.
        by_call: True = layout 1; False = layout 0, in which the batch is not split.
        made: Ids of the spans to which ingest gave all ids. They stay together, in the shard of the batch's id, unless
            they have a response id.
    """
    identities = identities_of(batch.spans, project)
    if not by_call:
        spans = [_for_earlier_readers(span) for span in batch.spans]
        return [Placed(shard_of(batch, shards), replace(batch, spans=spans, identities=identities))]
    if shards == 1:
        return [Placed(0, replace(batch, layout=1, identities=identities))]
    home = shard_of_key(hash64(project, "", "", batch.id), shards)
    members: dict[int, list[int]] = {}
    for index, key in enumerate(keys_of(identities)):
        span = batch.spans[index]
        own = span.span_id in made and key == span_key(project, span.trace_id, span.span_id)
        members.setdefault(home if own else shard_of_key(key, shards), []).append(index)
    following = _following(batch, project, shards)
    places = sorted(members.keys() | following.keys())
    if not places:
        places = [home]
    # The figures of the reporter must arrive once. They follow the batch's id if that costs no further message.
    with_figures = home if home in places else places[0]
    return [
        Placed(
            shard,
            Batch(
                id=batch.id,
                sequence=batch.sequence,
                part=batch.part * shards + shard,
                arrived_ns=batch.arrived_ns,
                source=batch.source,
                spans=[batch.spans[index] for index in members.get(shard, ())],
                reporter=batch.reporter if shard == with_figures else None,
                scores=batch.scores if shard == with_figures else [],
                tombstones=batch.tombstones if shard == with_figures else [],
                layout=1,
                identities=select_identities(identities, members.get(shard, [])),
                **following.get(shard, {}),
            ),
        )
        for shard in places
    ]


def _for_earlier_readers(span: Span) -> Span:
    """Return *span* without a value that earlier versions cannot decode; its cost is 0 in either case."""
    return replace(span, cost_source="reported") if span.cost_source == "free" else span


def _following(batch: Batch, project: str, shards: int) -> dict[int, dict[str, list[Any]]]:
    """Return the records of *batch* that follow a span or a session, by shard and list."""
    places: dict[int, dict[str, list[Any]]] = {}
    for name in _FOLLOWING:
        for record in getattr(batch, name):
            shard = shard_of_key(_key(record, project), shards)
            places.setdefault(shard, {}).setdefault(name, []).append(record)
    return places


def _key(record: Started | ChatMessage | Annotation | SessionEnd, project: str) -> int:
    if isinstance(record, SessionEnd) or (isinstance(record, ChatMessage) and not (record.trace_id and record.span_id)):
        return hash64(project, "", "", record.session_id)
    return span_key(project, record.trace_id or "", record.span_id or "")
