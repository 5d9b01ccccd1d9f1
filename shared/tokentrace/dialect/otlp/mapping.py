"""The mapping of a request: each span alone, then each call once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.dialect.otlp.fold import Price, Program, Reading, program_of, read_span
from tokentrace.dialect.otlp.model import OtlpSpan
from tokentrace.dialect.otlp.once import count_once, heir, loser
from tokentrace.dialect.otlp.own import read_own
from tokentrace.dialect.otlp.own_names import SCOPE
from tokentrace.errors import Rejected
from tokentrace.records import Span, check_span, fit_span


class Mapped(NamedTuple):
    """
    The spans of a request as records.

    Attributes:
        spans: Records that pass ``fit_span`` and ``check_span``, in the order of the request. Spans that only say that
            a call began are not among them. A call need not name its model.
        readings: What was made of each span of the request, and why, in its order.
        bad: (Place in the request, reason) of the spans that cannot be a record.
        saved: What counting each call once left out: ``calls``, and ``nusd``, their cost in nano-dollars.
        disagreements: Scope -> number of calls whose reported cost and price differ by more than 1 %.
    """

    spans: list[Span]
    readings: list[Reading]
    bad: list[tuple[int, str]]
    saved: dict[str, int]
    disagreements: dict[str, int]


def _unpriced(_span: Span) -> int | None:
    return None


def map_spans(spans: Sequence[OtlpSpan], price: Price = _unpriced) -> Mapped:
    """
    Map the spans of one request.

    Args:
        price: Returns the cost of a record in nano-dollars, None if it cannot be priced. It is asked for calls that are
            told twice, and for calls whose cost is reported.
    """
    programs: dict[int, Program] = {}
    readings: list[Reading] = []
    for span in spans:
        if span.scope == SCOPE and (own := read_own(span)) is not None:
            readings.append(Reading(SCOPE, "tokentrace.kind", own.kind, span=fit_span(own)))
            continue
        # The spans of a program share one object.
        program = programs.get(id(span.resource)) or programs.setdefault(id(span.resource), program_of(span.resource))
        readings.append(read_span(span, program, price))
    kept = [place for place, reading in enumerate(readings) if reading.span is not None]
    records = [record for reading in readings if (record := reading.span) is not None]
    losses = count_once(records)
    costs = {index: _cost(records[index], price) for index in losses}
    saved = {"calls": len(costs), "nusd": sum(costs.values())}
    for index, loss in losses.items():
        records[loss.winner] = heir(records[loss.winner], records[index])
    for index, loss in losses.items():
        records[index] = loser(records[index], records[loss.winner], costs[index])
        place = kept[index]
        readings[place] = readings[place]._replace(duplicate_of=records[loss.winner].span_id, why_duplicate=loss.why)
    good: list[Span] = []
    bad: list[tuple[int, str]] = []
    for place, record in zip(kept, records, strict=True):
        try:
            check_span(record, needs_model=False)
            good.append(record)
        except Rejected as exc:
            bad.append((place, str(exc)))
            readings[place] = readings[place]._replace(span=None)
            continue
        if record is not readings[place].span:
            readings[place] = readings[place]._replace(span=record)
    return Mapped(good, readings, bad, saved, _disagreements(good, price))


def _disagreements(spans: Sequence[Span], price: Price) -> dict[str, int]:
    counts: dict[str, int] = {}
    for span in spans:
        if span.cost_nusd:
            priced = price(replace(span, cost_nusd=None))
            if priced is not None and 100 * abs(span.cost_nusd - priced) > max(span.cost_nusd, priced):
                counts[span.scope] = counts.get(span.scope, 0) + 1
    return counts


def _cost(span: Span, price: Price) -> int:
    cost = span.cost_nusd if span.cost_nusd else price(span)
    return cost or 0
