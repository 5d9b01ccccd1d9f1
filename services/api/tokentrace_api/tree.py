"""How deep a span lies below the roots of what it is shown with."""

from __future__ import annotations

from collections.abc import Sequence

from tokentrace.records import Span, Started


def depths(spans: Sequence[Span | Started]) -> dict[str, int]:
    """Span -> how many of its ancestors are there; spans that are their own ancestors count from 0."""
    parents = {span.span_id: span.parent_span_id for span in spans}
    found: dict[str, int] = {}
    for own in parents:
        chain: list[str] = []
        passed: set[str] = set()
        at: str | None = own
        while at is not None and at in parents and at not in found and at not in passed:
            chain.append(at)
            passed.add(at)
            at = parents[at]
        below = found[at] + 1 if at is not None and at in found else 0
        for offset, one in enumerate(reversed(chain)):
            found[one] = below + offset
    return found
