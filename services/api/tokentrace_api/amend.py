"""What is said of a span after it ended: scores and annotations, which change its attributes and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from tokentrace.dialect.docs import score_of
from tokentrace.records import Batch, Span
from tokentrace.units import int_to_score

Key = tuple[str, str]
SCORE = "eval.score"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """
    Attributes to be set, and others to be taken away.

    Attributes:
        given: Merged over those the span has.
        gone: Names of those it loses.
    """

    given: dict[str, Any] = {}
    gone: list[str] = []

    def then(self, later: Change) -> Change:
        """Both, *later* last."""
        given = {key: value for key, value in self.given.items() if key not in later.gone} | later.given
        gone = [key for key in self.gone if key not in later.given]
        return Change(given, [*gone, *(key for key in later.gone if key not in gone)])

    def apply(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """*attributes* afterwards."""
        return {key: value for key, value in attributes.items() if key not in self.gone} | self.given

    @property
    def rescores(self) -> bool:
        """The score that everybody counts is another one."""
        return SCORE in self.given or SCORE in self.gone

    def amended(self, span: Span) -> Span:
        """*span* afterwards."""
        attributes = self.apply(span.attributes)
        return replace(span, attributes=attributes, score=score_of(attributes) if self.rescores else span.score)


def changes_of(batches: Iterable[Batch]) -> dict[Key, Change]:
    """(Trace, span) -> what *batches*, in order, say of it."""
    found: dict[Key, Change] = {}

    def note(key: Key, change: Change) -> None:
        found[key] = found[key].then(change) if key in found else change

    for batch in batches:
        for annotation in batch.annotations:
            note((annotation.trace_id, annotation.span_id), Change(dict(annotation.attributes)))
        for score in batch.scores:
            named = {} if score.value is None else {score.name: int_to_score(score.value)}
            note((score.trace_id, score.span_id), Change(named, [] if named else [score.name]))
    return found
