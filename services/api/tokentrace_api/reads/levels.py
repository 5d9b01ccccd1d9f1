"""The levels of a trace: which of its spans are shown at once if it has very many, and which lie below a span."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokentrace_api.reads.outlines import SpanRow
from tokentrace_api.reads.tree import Key


class Levels(NamedTuple):
    """
    The spans that are shown.

    Attributes:
        rows: They in the order in which they were given.
        hidden: Key of a span whose descendants are not shown -> number of these.
    """

    rows: list[SpanRow]
    hidden: dict[Key, int]


def below(rows: Sequence[SpanRow], depth_of: Mapping[Key, int], span_id: str) -> list[SpanRow] | None:
    """
    Return the descendants of a span of one trace, in the order of *rows*; None if no span has the id.

    Args:
        rows: All spans of the trace.
        depth_of: Their depths. In a circle of parents, the span of depth 0 is the ancestor of the others.
    """
    if not any(row.span_id == span_id for row in rows):
        return None
    parent_of = _parents(rows, depth_of)
    inside: dict[Key, bool] = {}
    for row in rows:
        chain: list[Key] = []
        at: Key | None = row.key
        while at is not None and at not in inside:
            chain.append(at)
            if at[1] == span_id:
                inside[at] = True
                break
            at = parent_of.get(at)
        is_inside = at is not None and inside[at]
        for key in chain:
            inside[key] = is_inside
    return [row for row in rows if row.span_id != span_id and inside[row.key]]


def top_levels(rows: Sequence[SpanRow], depth_of: Mapping[Key, int], most: int) -> Levels:
    """
    Return the spans of as many whole levels, from the top, as have at most *most* spans together, at least of one.

    Args:
        rows: Spans of one trace: all of them, or all below a span.
        depth_of: Depths of all spans of the trace, see ``below``.
    """
    if len(rows) <= most:
        return Levels(list(rows), {})
    sizes = Counter(depth_of[row.key] for row in rows)
    shown, last = 0, min(sizes)
    for depth in sorted(sizes):
        shown += sizes[depth]
        if shown > most and depth > min(sizes):
            break
        last = depth
    parent_of = _parents(rows, depth_of)
    # From the deepest level upwards, so that the number of a span is complete when it is added to that of its parent.
    sums: Counter[Key] = Counter()
    for row in sorted(rows, key=lambda row: -depth_of[row.key]):
        if depth_of[row.key] <= last:
            break
        sums[parent_of[row.key]] += 1 + sums.pop(row.key, 0)
    return Levels([row for row in rows if depth_of[row.key] <= last], dict(sums))


def _parents(rows: Sequence[SpanRow], depth_of: Mapping[Key, int]) -> dict[Key, Key]:
    """Return child -> parent, for spans of one trace; a span of depth 0 has none."""
    return {
        row.key: (row.trace_id, row.parent_span_id)
        for row in rows
        if row.parent_span_id is not None and depth_of[row.key] > 0
    }
