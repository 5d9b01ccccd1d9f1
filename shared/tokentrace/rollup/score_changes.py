"""
Scores given after the fact: what each takes away where the span counts, and what it adds.

Whoever folds one needs not know the span, and may fold it before the span or in another shard: a part of the numbers
may then be below zero, and all parts together are right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from tokentrace.dialect.docs import score_of
from tokentrace.records import Score, Span, event_time
from tokentrace.rollup.quantile import Ints
from tokentrace.units import SECOND, int_to_score, is_number, score_to_int

#: The one that is a span's ``score``.
SCORE = "eval.score"


class ScoreDelta(NamedTuple):
    """
    One side of a score given after the fact.

    Attributes:
        sign: -1 = the span as it was, which counts no more; 1 = as it is now.
        span: Its dimensions, instants, attributes and ``score``; nothing else is known of it. Another attribute that
            changed leaves the score as it was, and may put it into another group.
    """

    sign: int
    span: Span


def changes_in(scores: Iterable[Score]) -> list[ScoreDelta]:
    """Both sides of each of *scores*, in order."""
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
    )


def _with(attributes: Mapping[str, Any], name: str, value: int | None) -> dict[str, Any]:
    """*attributes* in which the one called *name* is *value* in 1e-9; None = there is none, not even a nested one."""
    if value is not None:
        given = attributes.get(name)
        # An integer of the caller's keeps its text: filters compare with that.
        same = is_number(given) and 0 <= given <= 1 and score_to_int(given) == value
        return {**attributes, name: given if same else int_to_score(value)}
    first, _, rest = name.partition(".")
    left = {key: held for key, held in attributes.items() if key != name}
    if rest and isinstance(left.get(first), dict):
        left[first] = _with(left[first], rest, None)
    return left


def change_rows(
    changes: Iterable[ScoreDelta],
    number_of: Callable[[Span], int | None],
    value_of: Callable[[Span], int | None],
    arrived_ns: int,
) -> Ints:
    """
    Rows of what *changes* take away and add; what goes and comes again is left out.

    Args:
        number_of: The cell of a span; None = it has none.
        value_of: What is counted of a span; None = nothing.
        arrived_ns: Stream time of the message.

    Returns:
        int64 array of shape (n, 5).
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
    """As ``change_rows``, of what is everybody's score."""
    return change_rows(changes, number_of, attrgetter("score"), arrived_ns)
