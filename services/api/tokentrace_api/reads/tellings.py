"""Counts the later versions of spans: tellings of the same call that do not count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tokentrace.records import Span, same_call
from tokentrace_api.store import Store, Telling, span_of, trace_hash


def with_later_versions(store: Store, tellings: Sequence[Telling], now_ns: int) -> list[Telling]:
    """Return *tellings* with their ``later_versions`` set."""
    counted = [telling.span for telling in tellings if telling.counted]
    if not counted:
        return list(tellings)
    # Row groups in which every row counts are skipped.
    rows = store.query(
        "SELECT * FROM {spans} WHERE NOT counted AND "
        "(trace_hash IN (SELECT unnest(?::UINTEGER[])) OR response_id IN (SELECT unnest(?::VARCHAR[])))",
        [
            sorted({trace_hash(span.trace_id) for span in counted}),
            sorted({span.response_id for span in counted if span.response_id}),
        ],
        now_ns,
    )
    if not rows:
        return list(tellings)
    of_span: Counter[tuple[str, str]] = Counter()
    of_response: dict[str, list[Span]] = {}
    for later in map(span_of, rows):
        of_span[later.trace_id, later.span_id] += 1
        if later.response_id:
            of_response.setdefault(later.response_id, []).append(later)

    def count(telling: Telling) -> int:
        span = telling.span
        others = (later for later in of_response.get(span.response_id, ()) if _key(later) != telling.key)
        return of_span[telling.key] + sum(same_call(span, later) for later in others)

    return [telling._replace(later_versions=count(telling)) if telling.counted else telling for telling in tellings]


def _key(span: Span) -> tuple[str, str]:
    return span.trace_id, span.span_id
