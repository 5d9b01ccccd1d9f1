"""
Records scores of spans that have ended. A score counts once, however many clients record it and however often.

The current value of a score is an entry of the bucket ``tt_scores``, changed with compare-and-set. So each change knows
the value that it replaces, and gets a batch id that all readers recognise if the batch is published twice. If an api
dies between the change and its publication, the next request for the same score publishes the batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, Entry, KeyValue, subjects
from tokentrace.errors import Conflict, Unavailable
from tokentrace.records import Batch, Natural, Score, Span
from tokentrace.units import SCORE_ONE, is_number, score_to_int
from tokentrace_api.interfaces import Publisher, StoreReader
from tokentrace_api.reads import shards_of

#: How often a change is tried if other requests change the same score at the same time.
_TRIES = 16


class _StoredScore(msgspec.Struct, frozen=True, kw_only=True):
    """
    The entry of a score in the bucket.

    Attributes:
        value: Current value in 10⁻⁹; None = no score.
        previous: Value before the last change in 10⁻⁹; None = there was no score.
        number: Number of the last change; it rises with every change.
        published: True if the batch of the last change is known to be in the log.
    """

    value: Annotated[int, Meta(ge=0, le=SCORE_ONE)] | None
    previous: Annotated[int, Meta(ge=0, le=SCORE_ONE)] | None
    number: Natural
    published: bool = False


class Scoring(NamedTuple):
    """
    What ``record_score`` uses.

    Attributes:
        bus: Holds the bucket ``tt_scores``.
        store: Finds the shard on which a span arrived.
        publisher: Publishes the batch of a score.
    """

    bus: Bus
    store: StoreReader
    publisher: Publisher


async def record_score(scoring: Scoring, span: Span, name: str, value: int | None) -> None:
    """
    Set the score *name* of *span*; return when it is stored.

    Args:
        name: The attribute that holds the score, such as ``eval.score``.
        value: The score in 10⁻⁹; None = remove it.

    Raises:
        Unavailable: The broker or the store failed, or other requests changed the score during every try. The score may
            or may not have been recorded; the call may be repeated.
    """
    scores, key = scoring.bus.kv(subjects.SCORES), _key(span, name)
    for _ in range(_TRIES):
        entry = await scores.get(key)
        stored = None if entry is None else _decode(scoring, key, entry)
        if stored is not None and not stored.published:
            await _publish(scoring, span, name, stored)
        before = _score_of_span(span, name) if stored is None else stored.value
        if value == before:
            if stored is not None and entry is not None and not stored.published:
                await _mark_published(scores, key, stored, entry.revision)
            return
        # The number in an unreadable entry is unknown, but it is not above the revision of the entry.
        number = stored.number + 1 if stored is not None else 1 if entry is None else entry.revision + 1
        changed = _StoredScore(value=value, previous=before, number=number)
        try:
            data = msgspec.json.encode(changed)
            revision = await (scores.create(key, data) if entry is None else scores.update(key, data, entry.revision))
        except Conflict:
            continue
        await _publish(scoring, span, name, changed)
        await _mark_published(scores, key, changed, revision)
        return
    raise Unavailable(f"score {name}: other requests changed it during each of {_TRIES} tries")


def _decode(scoring: Scoring, key: str, entry: Entry) -> _StoredScore | None:
    """Decode *entry*; return None if it is unreadable, and the caller then uses the score of the stored span."""
    with scoring.bus.set_aside.guard(subjects.SCORES, f"key {key} revision {entry.revision}"), reading("score"):
        return msgspec.json.decode(entry.value, type=_StoredScore)
    return None


def _score_of_span(span: Span, name: str) -> int | None:
    """Return the score *name* that *span* holds, in 10⁻⁹; None if it holds none from 0 to 1."""
    value = span.attributes.get(name)
    if name == "eval.score" and span.score is not None:
        return span.score
    return score_to_int(value) if is_number(value) and 0 <= value <= 1 else None


def _key(span: Span, name: str) -> str:
    """
    Return the key of a score: a hash, because a key of a bucket cannot contain every character of an id.

    The hash includes the arrival time, so that a span that is deleted and sent again starts without the old score.
    """
    parts = (span.trace_id, span.span_id, str(span.arrived_ns), name)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


async def _publish(scoring: Scoring, span: Span, name: str, stored: _StoredScore) -> None:
    score = Score(
        trace_id=span.trace_id,
        span_id=span.span_id,
        name=name,
        value=stored.value,
        previous=stored.previous,
        kind=span.kind,
        model=span.model,
        provider=span.provider,
        caller=span.caller,
        span_name=span.name,
        status=span.status,
        ended_ns=span.ended_ns,
        arrived_ns=span.arrived_ns,
        attributes=span.attributes,
        session_id=span.session_id,
        user_id=span.user_id,
    )
    now_ns = scoring.store.now_ns()
    # A score goes to the shard of its span, so that every reader folds the span first.
    shards = await scoring.store.read(lambda store: shards_of(store, span.trace_id, span.span_id, now_ns))
    [shard] = shards or [0]
    batch_id = f"score.{_key(span, name)}.{stored.number}"
    await scoring.publisher.publish(Batch(id=batch_id, arrived_ns=now_ns, scores=[score]), shard)


async def _mark_published(scores: KeyValue, key: str, stored: _StoredScore, revision: int) -> None:
    """Mark *stored* as published; if another request has changed the entry since, it has published the batch itself."""
    with contextlib.suppress(Conflict):
        await scores.update(key, msgspec.json.encode(msgspec.structs.replace(stored, published=True)), revision)
