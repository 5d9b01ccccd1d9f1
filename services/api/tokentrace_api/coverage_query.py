"""Puts together what is known of the senders of calls: sums, looks at the newest calls, silence and gaps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.pricing import Pricer
from tokentrace.records import Span, event_time
from tokentrace.units import usd_to_nusd
from tokentrace_api.coverage_emitters import Emitter, emitter_of
from tokentrace_api.coverage_gaps import Gap, Looked, gaps_of
from tokentrace_api.reads import (
    MOST_CALLS,
    MOST_PAIRED,
    Detail,
    Quiet,
    Told,
    count_pairs,
    details,
    newest_calls,
    quiet_scopes,
    reporting,
    rhythm,
    told,
)
from tokentrace_api.store import Store

#: By how much a reported cost may differ from our price: one part of so many.
_TOLERANCE = 100


class Sender(NamedTuple):
    """The calls of one caller, instrumentation and way in, and what is missing in them."""

    told: Told
    emitter: Emitter
    looked: Looked
    gaps: list[Gap]


class Coverage(NamedTuple):
    """
    What arrives.

    Attributes:
        senders: Those with the most calls first.
        more: Whether there are more senders.
        silent: Callers, and instrumentations of the callers shown, that used to call and do not any more.
        searched_from_ns: Calls before this instant were not looked at, Unix nanoseconds; None = all were.
    """

    senders: list[Sender]
    more: bool
    silent: list[Quiet]
    searched_from_ns: int | None


def cover(
    store: Store, pricer: Pricer, from_ns: int, to_ns: int, caller: str | None, limit: int, now_ns: int
) -> Coverage:
    """
    Return what arrives in [*from_ns*, *to_ns*).

    Args:
        caller: Only this one; None = all.
        limit: Number of senders.

    Raises:
        Unavailable: The store cannot be read, or a query took too long.
    """
    calls = rhythm(store, to_ns, caller, now_ns)
    floor_ns = calls.floor(from_ns, MOST_CALLS)
    rows, more = told(store, floor_ns, to_ns, caller, limit, now_ns)
    looked = _details(store, rows, now_ns)
    compared = _compared(store, pricer, rows, now_ns)
    scopes: dict[str, set[str]] = {}
    for row in rows:
        scopes.setdefault(row.caller, set()).add(row.scope)
    doubled = [name for name, found in scopes.items() if len(found - {""}) > 1]
    pairs = count_pairs(newest_calls(store, calls.floor(floor_ns, MOST_PAIRED), to_ns, doubled, now_ns))
    senders = []
    for number, row in enumerate(rows):
        others = [
            (second if row.scope == first else first, count)
            for (name, first, second), count in pairs.most_common()
            if name == row.caller and row.scope in (first, second)
        ]
        streamed = [detail for detail in looked[number] if detail.streamed]
        agreed = compared[number] + [is_near for detail in looked[number] if (is_near := _agrees(detail)) is not None]
        seen = Looked(
            streamed=len(streamed),
            streamed_ttft=sum(detail.has_ttft for detail in streamed),
            compared=len(agreed),
            differing=agreed.count(False),
            pairs=tuple(others),
        )
        emitter = emitter_of(row.source, row.scope)
        senders.append(Sender(row, emitter, seen, gaps_of(row, seen, emitter)))
    silent = [*calls.silent, *quiet_scopes(store, rows, calls.step_ns, to_ns, now_ns)]
    return Coverage(senders, more, silent, floor_ns if floor_ns > from_ns else None)


def _details(store: Store, rows: list[Told], now_ns: int) -> list[list[Detail]]:
    """Return for each of *rows* the details of its newest calls."""
    found: Mapping[int, Detail] = details(store, [ordinal for row in rows for ordinal in row.newest], now_ns)
    return [[found[ordinal] for ordinal in row.newest if ordinal in found] for row in rows]


def _agrees(detail: Detail) -> bool | None:
    """Return whether a reported cost that does not count is the cost of the call; None = one of them is unknown."""
    if not detail.cost_nusd or not detail.reported_usd or not 0 < detail.reported_usd < 1e6:
        return None
    return is_near(usd_to_nusd(detail.reported_usd), detail.cost_nusd)


def _compared(store: Store, pricer: Pricer, rows: list[Told], now_ns: int) -> list[list[bool]]:
    """Return for each of *rows* whether the costs that its newest calls report are our prices, where we have any."""
    spans = reporting(store, [ordinal for row in rows for ordinal in row.newest_reported], now_ns)
    compared = []
    for row in rows:
        priced = [
            (span.cost_nusd, price)
            for ordinal in row.newest_reported
            if (span := spans.get(ordinal)) is not None
            if span.cost_nusd and (price := _price(pricer, span)) is not None
        ]
        compared.append([is_near(reported, price) for reported, price in priced])
    return compared


def _price(pricer: Pricer, span: Span) -> int | None:
    """Return the price of a call in nano-dollars, whatever cost it reports; None if it has no complete price."""
    quote = pricer.quote(replace(span, cost_nusd=None, cost_source=""), event_time(span))
    return quote.cost_nusd if quote.source in ("priced", "overridden") else None


def is_near(reported_nusd: int, price_nusd: int) -> bool:
    """Return True if two costs differ by at most 1 % of the price."""
    return abs(reported_nusd - price_nusd) * _TOLERANCE <= price_nusd
