"""What is said of a span after it ended: scores and annotations, which change its attributes and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from tokentrace.dialect.docs import score_of
from tokentrace.records import Batch, Span
from tokentrace.units import int_to_score

Key = tuple[str, str]
SCORE = "eval.score"


class SpanUpdate(msgspec.Struct, frozen=True, array_like=True):
    """
    Attributes to be set, and others to be taken away.

    Attributes:
        given: Merged over those the span has.
        gone: Names of those it loses.
        arrived_ns: When the last of it arrived, Unix nanoseconds.
    """

    given: dict[str, Any] = {}
    gone: list[str] = []
    arrived_ns: int = 0

    def then(self, later: SpanUpdate) -> SpanUpdate:
        """Both, *later* last."""
        given = {key: value for key, value in self.given.items() if key not in later.gone} | later.given
        gone = [key for key in self.gone if key not in later.given]
        gone += [key for key in later.gone if key not in gone]
        return SpanUpdate(given, gone, max(self.arrived_ns, later.arrived_ns))

    def apply(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """*attributes* afterwards."""
        return {key: value for key, value in attributes.items() if key not in self.gone} | self.given

    @property
    def says_something(self) -> bool:
        """It changes any span at all."""
        return bool(self.given or self.gone)

    @property
    def rescores(self) -> bool:
        """The score that everybody counts is another one."""
        return SCORE in self.given or SCORE in self.gone

    def amended(self, span: Span) -> Span:
        """*span* afterwards."""
        attributes = self.apply(span.attributes)
        return replace(span, attributes=attributes, score=score_of(attributes) if self.rescores else span.score)


def updates_of(batches: Iterable[Batch]) -> dict[Key, SpanUpdate]:
    """(Trace, span) -> what *batches*, in order, say of it."""
    found: dict[Key, SpanUpdate] = {}

    def note(key: Key, change: SpanUpdate) -> None:
        found[key] = found[key].then(change) if key in found else change

    for batch in batches:
        for annotation in batch.annotations:
            note(
                (annotation.trace_id, annotation.span_id), SpanUpdate(dict(annotation.attributes), [], batch.arrived_ns)
            )
        for score in batch.scores:
            named = {} if score.value is None else {score.name: int_to_score(score.value)}
            note((score.trace_id, score.span_id), SpanUpdate(named, [] if named else [score.name], batch.arrived_ns))
    return found


class UpdatedSpans(NamedTuple):
    """
    What becomes of batches.

    Attributes:
        spans: Theirs, in order, with what was said of them.
        updates: What is said of spans that were stored before.
        waiting: What is said of spans that are not there yet.
        touched: Spans for which something else waits than before.
    """

    spans: list[Span]
    updates: dict[Key, SpanUpdate]
    waiting: dict[Key, SpanUpdate]
    touched: set[Key]


def apply_updates(batches: Sequence[Batch], known: Collection[Key], waiting: Mapping[Key, SpanUpdate]) -> UpdatedSpans:
    """
    Fold *batches* in their order, each its spans first: what is said of a span changes the versions that are there.

    All of them, for the last one may be deleted with its user while the one before stays.

    Args:
        known: Those of the spans *batches* speak about that are stored.
        waiting: What was said before of spans that were not there.
    """
    spans: list[Span] = []
    if not waiting and not any(batch.scores or batch.annotations for batch in batches):
        for batch in batches:
            spans += batch.spans
        return UpdatedSpans(spans, {}, {}, set())
    updates: dict[Key, SpanUpdate] = {}
    left, touched, places = dict(waiting), set[Key](), dict[Key, list[int]]()
    for batch in batches:
        for span in batch.spans:
            key = (span.trace_id, span.span_id)
            change = left.pop(key, None)
            if change is not None:
                touched.add(key)
                span = change.amended(span)
            places.setdefault(key, []).append(len(spans))
            spans.append(span)
        for key, change in updates_of([batch]).items():
            for place in places.get(key, ()):
                spans[place] = change.amended(spans[place])
            if key in known:
                updates[key] = updates[key].then(change) if key in updates else change
            elif key not in places:
                left[key] = left[key].then(change) if key in left else change
                touched.add(key)
    return UpdatedSpans(spans, updates, left, touched)
