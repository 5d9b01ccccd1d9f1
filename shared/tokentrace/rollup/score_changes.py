"""
Late scores: the value that a late score removes, and the value that it adds.

A late score is sent apart from its span. A reader may fold it without the span, before the span, or in another shard.
The numbers of one shard may then be negative; the sum over all shards is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from tokentrace.dialect.attributes import score_of
from tokentrace.records import Score, Span, event_time
from tokentrace.rollup.quantile import Ints
from tokentrace.units import SECOND, int_to_score, is_number, score_to_int

#: Name of the score that sets ``Span.score``.
SCORE = "eval.score"


class ScoreDelta(NamedTuple):
    """
    One side of a changed score.

    Attributes:
        sign: -1 = subtract the span as it was before the change; 1 = add the span as it is after the change.
        span: Only ids, dimensions, instants, attributes and ``score`` are set. If a score other than ``eval.score``
            changed, ``score`` is the same on both sides, but the span may belong to another group.
    """

    sign: int
    span: Span


def changes_in(scores: Iterable[Score]) -> list[ScoreDelta]:
    """Return both sides of each of *scores*: what it subtracts, then what it adds."""
    return [
        ScoreDelta(sign, _scored(score, value))
        for score in scores
        for sign, value in ((-1, score.previous), (1, score.value))
    ]


def _scored(score: Score, value: int | None) -> Span:
    return Span(
        trace_id=score.trace_id,
        span_id=score.span_id,
        name=score.span_name,
        kind=score.kind,
        caller=score.caller,
        model=score.model,
        provider=score.provider,
        status=score.status,
        ended_ns=score.ended_ns,
        arrived_ns=score.arrived_ns,
        score=value if score.name == SCORE else score_of(score.attributes),
        attributes=_with(score.attributes, score.name, value),
        session_id=score.session_id,
        user_id=score.user_id,
    )


def _with(attributes: Mapping[str, Any], name: str, value: int | None) -> dict[str, Any]:
    """Return *attributes* with *name* set to *value*, units of 1e-9; None = without *name*, nested or not."""
    if value is not None:
        held = attributes.get(name)
        # Keep the caller's number if it is equal: filters compare the text, and 1 and 1.0 are different texts.
        same = is_number(held) and 0 <= held <= 1 and score_to_int(held) == value
        return {**attributes, name: held if same else int_to_score(value)}
    first, _, rest = name.partition(".")
    remaining = {key: item for key, item in attributes.items() if key != name}
    if rest and isinstance(remaining.get(first), dict):
        remaining[first] = _with(remaining[first], rest, None)
    return remaining


def change_rows(
    changes: Iterable[ScoreDelta],
    number_of: Callable[[Span], int | None],
    value_of: Callable[[Span], int | None],
    arrived_ns: int,
) -> Ints:
    """
    Return one row for each value that *changes* remove or add; a value both removed and added is left out.

    Args:
        number_of: Span -> number of its series; None = the span is not counted.
        value_of: Span -> its value; None = no value.
        arrived_ns: Stream time of the message, Unix nanoseconds.

    Returns:
        int64 array of shape (number of rows, 5); the columns are SERIES, SECOND_OF, ARRIVED, SIGN and CHANGED.
    """
    net: Counter[tuple[int, int, int]] = Counter()
    for sign, span in changes:
        value = value_of(span)
        number = None if value is None else number_of(span)
        if value is not None and number is not None:
            net[number, event_time(span) // SECOND, value] += sign
    arrived_s = arrived_ns // SECOND
    rows = [
        (number, second, arrived_s, 1 if times > 0 else -1, value)
        for (number, second, value), times in net.items()
        for _ in range(abs(times))
    ]
    return np.array(rows, np.int64).reshape(len(rows), 5)


def score_rows(changes: Iterable[ScoreDelta], number_of: Callable[[Span], int | None], arrived_ns: int) -> Ints:
    """Return the rows for changed scores: ``change_rows`` with ``Span.score`` as the value."""
    return change_rows(changes, number_of, attrgetter("score"), arrived_ns)
