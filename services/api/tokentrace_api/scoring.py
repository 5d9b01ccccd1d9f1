"""
Scores after the fact, each counted once whoever records it and whenever it is said again.

What a score is now stands in ``tt_scores``, written with compare-and-set: so every change knows what it replaces, and
its batch has an id of its own that every reader knows. A batch that a crash kept back is published by whoever comes
next.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
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

_TRIES = 16


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """
    A score now.

    Attributes:
        value, previous: In 1e-9; None = there is, was none.
        number: How often it has been changed.
        published: Its batch is in the log for certain.
    """

    value: Annotated[int, Meta(ge=0, le=SCORE_ONE)] | None
    previous: Annotated[int, Meta(ge=0, le=SCORE_ONE)] | None
    number: Natural
    published: bool = False


class Scoring(NamedTuple):
    """
    What recording a score takes.

    Attributes:
        bus: Holds the bucket ``tt_scores``.
        store: Says on which shard a span came.
        publisher: Publishes the batch of a score.
    """

    bus: Bus
    store: StoreReader
    publisher: Publisher


async def record_score(scoring: Scoring, span: Span, name: str, value: int | None) -> None:
    """
    Make *value*, in 1e-9 or None for none, the score *name* of *span*; returns once it is stored and can be seen.

    Raises:
        Unavailable: Perhaps not recorded; saying it again does no harm.
    """
    scores, key = scoring.bus.kv(subjects.SCORES), _key(span, name)
    for _ in range(_TRIES):
        entry = await scores.get(key)
        held = None if entry is None else _decode(scoring, key, entry)
        if held is not None and not held.published:
            await _publish(scoring, span, name, held)
        before = _given(span, name) if held is None else held.value
        if value == before:
            if held is not None and entry is not None and not held.published:
                await _settle(scores, key, held, entry.revision)
            return
        # A bucket's revision is over every number that an entry which cannot be read may have had.
        number = held.number + 1 if held is not None else 1 if entry is None else entry.revision + 1
        now = _Held(value=value, previous=before, number=number)
        try:
            data = msgspec.json.encode(now)
            revision = await (scores.create(key, data) if entry is None else scores.update(key, data, entry.revision))
        except Conflict:
            continue
        await _publish(scoring, span, name, now)
        await _settle(scores, key, now, revision)
        return
    raise Unavailable("score: is being changed by many at once")


def _decode(scoring: Scoring, key: str, entry: Entry) -> _Held | None:
    """None: it cannot be read, and the score is what the stored span says."""
    with scoring.bus.set_aside.guard(subjects.SCORES, f"key {key} revision {entry.revision}"), reading("score"):
        return msgspec.json.decode(entry.value, type=_Held)
    return None


def _given(span: Span, name: str) -> int | None:
    """The score that the span came with."""
    value = span.attributes.get(name)
    if name == "eval.score" and span.score is not None:
        return span.score
    return score_to_int(value) if is_number(value) and 0 <= value <= 1 else None


def _key(span: Span, name: str) -> str:
    """A key that any bucket takes, whatever the ids are; a span that is sent anew after it was deleted has another."""
    parts = (span.trace_id, span.span_id, str(span.arrived_ns), name)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


async def _publish(scoring: Scoring, span: Span, name: str, held: _Held) -> None:
    score = Score(
        trace_id=span.trace_id,
        span_id=span.span_id,
        name=name,
        value=held.value,
        previous=held.previous,
        kind=span.kind,
        model=span.model,
        provider=span.provider,
        caller=span.caller,
        span_name=span.name,
        status=span.status,
        ended_ns=span.ended_ns,
        arrived_ns=span.arrived_ns,
        attributes=span.attributes,
    )
    # On the shard of its span: there the span has been folded, and whoever knows the score knows the span.
    [shard] = await scoring.store.read(lambda store: shards_of(store, span.trace_id, span.span_id, time.time_ns())) or [
        0
    ]
    batch_id = f"score.{_key(span, name)}.{held.number}"
    await scoring.publisher.publish(Batch(id=batch_id, arrived_ns=time.time_ns(), scores=[score]), shard)


async def _settle(scores: KeyValue, key: str, held: _Held, revision: int) -> None:
    """Note that its batch is in the log; who changed it meanwhile has seen to that as well."""
    with contextlib.suppress(Conflict):
        await scores.update(key, msgspec.json.encode(msgspec.structs.replace(held, published=True)), revision)
