"""How deep a span lies below the roots of what it is shown with."""

from __future__ import annotations

from collections.abc import Sequence

from tokentrace.records import Span, Started

#: (Trace, span): an id is unique in its trace only.
Key = tuple[str, str]


def depths(spans: Sequence[Span | Started]) -> dict[Key, int]:
    """
    Span -> how many of its ancestors are there; spans that are their own ancestors count from 0.

    A parent is looked for in the span's own trace, then in the others.
    """
    elsewhere = {span.span_id: _key(span) for span in spans}
    known = {_key(span) for span in spans}

    def parent_of(span: Span | Started) -> Key | None:
        if span.parent_span_id is None:
            return None
        own = (span.trace_id, span.parent_span_id)
        return own if own in known else elsewhere.get(span.parent_span_id)

    parents = {_key(span): parent_of(span) for span in spans}
    found: dict[Key, int] = {}
    for own in parents:
        chain: list[Key] = []
        passed: set[Key] = set()
        at: Key | None = own
        while at is not None and at not in found and at not in passed:
            chain.append(at)
            passed.add(at)
            at = parents[at]
        below = found[at] + 1 if at is not None and at in found else 0
        for offset, one in enumerate(reversed(chain)):
            found[one] = below + offset
    return found


def _key(span: Span | Started) -> Key:
    return span.trace_id, span.span_id
