"""Applies scores and annotations to spans that have ended; they change the attributes and the score of a span."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import replace

from tokentrace.dialect.attributes import score_of
from tokentrace.records import Batch, Span
from tokentrace.units import int_to_score
from tokentrace_api.store.columns import Telling, attributes_json, nullable, span_of, trace_hash
from tokentrace_api.store.database import Database
from tokentrace_api.store.segment import Segment

#: (Trace id, span id).
Key = tuple[str, str]
#: Segment -> (ordinal, span) of stored rows.
Versions = dict[Segment, list[tuple[int, Span]]]
SCORE = "eval.score"
#: Most tellings of a span that are stored. A sender that uses one id for everything would make every append read and
#: compare all that it has sent; what is not stored is still counted, by the memory of calls.
MAX_TELLINGS = 20


class SpanUpdate(msgspec.Struct, frozen=True, array_like=True):
    """
    A change of the attributes of one span; while the span has not arrived, it is stored in the table ``amendments``.

    Attributes:
        values: Attributes to set.
        removed: Names of attributes to remove.
        arrived_ns: When the last part of the update arrived, Unix nanoseconds.
    """

    values: dict[str, Any] = {}
    removed: list[str] = []
    arrived_ns: int = 0

    def then(self, later: SpanUpdate) -> SpanUpdate:
        """Return one update with the effect of this one followed by *later*."""
        values = {key: value for key, value in self.values.items() if key not in later.removed} | later.values
        removed = [key for key in self.removed if key not in later.values]
        removed += [key for key in later.removed if key not in removed]
        return SpanUpdate(values, removed, max(self.arrived_ns, later.arrived_ns))

    @property
    def is_empty(self) -> bool:
        """True if the update changes nothing."""
        return not (self.values or self.removed)

    @property
    def changes_score(self) -> bool:
        """True if the update sets or removes ``eval.score``, from which quality is computed."""
        return SCORE in self.values or SCORE in self.removed

    def applied_to(self, span: Span) -> Span:
        """Return *span* with this update applied."""
        kept = {key: value for key, value in span.attributes.items() if key not in self.removed}
        attributes = kept | self.values
        return replace(span, attributes=attributes, score=score_of(attributes) if self.changes_score else span.score)


def updates_of(batches: Iterable[Batch]) -> dict[Key, SpanUpdate]:
    """Collect the scores and annotations of *batches*, in order, into one update for each span."""
    updates: dict[Key, SpanUpdate] = {}

    def add(key: Key, update: SpanUpdate) -> None:
        updates[key] = updates[key].then(update) if key in updates else update

    for batch in batches:
        for annotation in batch.annotations:
            key = (annotation.trace_id, annotation.span_id)
            add(key, SpanUpdate(dict(annotation.attributes), [], batch.arrived_ns))
        for score in batch.scores:
            values = {} if score.value is None else {score.name: int_to_score(score.value)}
            add((score.trace_id, score.span_id), SpanUpdate(values, [] if values else [score.name], batch.arrived_ns))
    return updates


class Content(NamedTuple):
    """
    What a batch holds that was not folded before.

    Attributes:
        tellings: The spans of the batch, in order.
        others: A batch with its other records.
        origin: (Stream sequence, shard) of its message.
    """

    tellings: list[Telling]
    others: Batch
    origin: tuple[int, int]


def without_repetitions(contents: Sequence[Content], versions: Versions) -> list[Content]:
    """
    Return *contents* without the tellings that say nothing new about a known span, or are more than ``MAX_TELLINGS``.

    Args:
        versions: The stored tellings of the spans that are told again.
    """
    if all(telling.counted for content in contents for telling in content.tellings):
        return list(contents)
    known: dict[Key, list[Span]] = {}
    for rows in versions.values():
        for _, span in rows:
            known.setdefault((span.trace_id, span.span_id), []).append(span)
    kept_contents = []
    for content in contents:
        kept = []
        for telling in content.tellings:
            earlier = known.setdefault(telling.key, [])
            if telling.counted or (
                len(earlier) < MAX_TELLINGS and not any(_repeats(telling.span, span) for span in earlier)
            ):
                earlier.append(telling.span)
                kept.append(telling)
        kept_contents.append(content._replace(tellings=kept))
    return kept_contents


def _repeats(span: Span, earlier: Span) -> bool:
    """Return True if *span* says nothing that *earlier*, to which updates may have added attributes, does not say."""
    same = replace(span, arrived_ns=earlier.arrived_ns, attributes=earlier.attributes, score=earlier.score) == earlier
    return same and span.attributes.items() <= earlier.attributes.items() and span.score in (None, earlier.score)


class UpdatedSpans(NamedTuple):
    """
    The result of ``apply_updates``.

    Attributes:
        tellings: The tellings of the contents in order, with their updates applied.
        updates: Updates for spans that were stored before.
        waiting: Updates for spans that have not arrived.
        touched: Keys whose entry in ``waiting`` was added, changed or removed.
    """

    tellings: list[Telling]
    updates: dict[Key, SpanUpdate]
    waiting: dict[Key, SpanUpdate]
    touched: set[Key]


def apply_updates(
    contents: Sequence[Content], known: Collection[Key], waiting: Mapping[Key, SpanUpdate]
) -> UpdatedSpans:
    """
    Fold *contents* in order, the spans of each before its scores and annotations.

    An update changes every telling of its span that has arrived, not only the one that counts: that one may later be
    deleted with its user while another one stays.

    Args:
        known: Keys of the stored spans, at least of those that *contents* update.
        waiting: Earlier updates that wait for their span.
    """
    tellings: list[Telling] = []
    if not waiting and not any(content.others.scores or content.others.annotations for content in contents):
        for content in contents:
            tellings += content.tellings
        return UpdatedSpans(tellings, {}, {}, set())
    updates: dict[Key, SpanUpdate] = {}
    still_waiting, touched, places = dict(waiting), set[Key](), dict[Key, list[int]]()
    for content in contents:
        for telling in content.tellings:
            update = still_waiting.pop(telling.key, None)
            if update is not None:
                touched.add(telling.key)
                telling = telling._replace(span=update.applied_to(telling.span))
            places.setdefault(telling.key, []).append(len(tellings))
            tellings.append(telling)
        for key, update in updates_of([content.others]).items():
            for place in places.get(key, ()):
                tellings[place] = tellings[place]._replace(span=update.applied_to(tellings[place].span))
            if key in known:
                updates[key] = updates[key].then(update) if key in updates else update
            elif key not in places:
                still_waiting[key] = still_waiting[key].then(update) if key in still_waiting else update
                touched.add(key)
    return UpdatedSpans(tellings, updates, still_waiting, touched)


# -- stored rows


def stored_versions(database: Database, segments: Sequence[Segment], keys: Collection[Key]) -> Versions:
    """Return every stored version of the spans with *keys*, by segment."""
    versions: Versions = {}
    if not keys:
        return versions
    wanted = {
        "hash": np.array([trace_hash(trace_id) for trace_id, _ in keys], np.uint32),
        "id": np.array([span_id for _, span_id in keys], dtype=object),
    }
    with database.registered("wanted", wanted):
        for segment in segments:
            # The ids are compared here too, so that an update of one span does not decode all spans of a large trace.
            rows = database.run(
                f"SELECT * FROM {segment.name}.spans WHERE trace_hash IN (SELECT DISTINCT hash FROM wanted) "
                "AND span_id IN (SELECT DISTINCT id FROM wanted)"
            )
            spans = [(int(row[0]), span_of(row)) for row in rows]
            versions[segment] = [(ordinal, span) for ordinal, span in spans if (span.trace_id, span.span_id) in keys]
    return versions


def changed_columns(versions: Versions, updates: Mapping[Key, SpanUpdate]) -> dict[Segment, dict[str, Any]]:
    """Return, for each segment with rows to update, the ordinals and new values of these rows as numpy columns."""
    changes = {}
    for segment, rows in versions.items():
        updated = [
            (ordinal, updates[span.trace_id, span.span_id].applied_to(span))
            for ordinal, span in rows
            if (span.trace_id, span.span_id) in updates
        ]
        if updated:
            changes[segment] = {
                "ordinal": np.array([ordinal for ordinal, _ in updated], np.int64),
                "attributes": np.array([attributes_json(span.attributes) for _, span in updated], dtype=object),
                "score": nullable([span.score for _, span in updated]),
            }
    return changes


def set_columns(database: Database, segment: Segment, columns: Mapping[str, Any]) -> None:
    """Update the rows of *segment* with the values that ``changed_columns`` returned for it."""
    with database.registered("columns", columns):
        database.run(
            f"UPDATE {segment.name}.spans AS held SET attributes = columns.attributes, score = columns.score "
            "FROM columns WHERE held.ordinal = columns.ordinal"
        )
