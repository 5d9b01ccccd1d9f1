"""Sums since the stream began, for ``/stats`` and Prometheus, in groups of the series of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokentrace.metrics import Counter, ToldTwice
from tokentrace.records import MAX_COST_NUSD, Span, counts_as_cost, duplicate_of
from tokentrace.rollup import (
    ADDED,
    COST_SUMS,
    COUNTED,
    TOKEN_SUMS,
    CumulativeCounters,
    Ints,
    IntSums,
    SeriesTable,
    Sums,
    add_by,
)

_NAMES = (*COUNTED, *ADDED)
_COST = np.isin(_NAMES, COST_SUMS)
_OF_CALLS = np.isin(_NAMES, (*COST_SUMS, *TOKEN_SUMS))
_SPANS, _ERRORS = _NAMES.index("spans"), _NAMES.index("errors")
_LABELS = ("model", "provider", "caller", "status")


def with_told_twice(before: ToldTwice, spans: Sequence[Span]) -> ToldTwice:
    """Return *before* with those of *spans* that OTLP requests told a second time, as ``dialect.otlp`` marks them."""
    calls, nusd = before.calls, before.nusd
    for span in spans:
        if duplicate_of(span):
            cost = span.attributes.get("rollup.cost_nusd", 0)
            calls += 1
            if isinstance(cost, int) and 0 < cost <= MAX_COST_NUSD:
                nusd += cost
    return before if calls == before.calls else ToldTwice(calls=calls, nusd=nusd)


def total_of(table: SeriesTable, cumulative: CumulativeCounters) -> Sums:
    """Return the sums over all kinds of span; those of cost and tokens leave roll-up kinds out."""
    totals = cumulative.totals
    paying = _of_kinds(table, len(totals), paying=True)
    return Sums.of(add_by(np.zeros(len(totals), np.int64), _shown(totals, paying[:, None] | ~_OF_CALLS), 1))


def by_operation(table: SeriesTable, cumulative: CumulativeCounters) -> dict[str, tuple[int, int]]:
    """Return name of a span -> (number of spans, number of spans with status error)."""
    totals = cumulative.totals
    codes, known = table.column("name")
    counts = add_by(codes[: len(totals)], _columns(totals, [_SPANS, _ERRORS]), len(known))
    # A series that only has the score of a span that another shard counted has no spans.
    return {name: (spans, errors) for name, (spans, errors) in zip(known, counts.all_numbers(), strict=True) if spans}


def counters_of(table: SeriesTable, cumulative: CumulativeCounters) -> list[Counter]:
    """Return the sums by model, provider, caller and status, as ``metrics.Counter`` describes them."""
    totals = cumulative.totals
    size = len(totals)
    if not size:
        return []
    columns = [table.column(label) for label in _LABELS]
    keys = np.zeros(size, np.int64)
    for codes, known in columns:
        keys = keys * len(known) + codes[:size]
    distinct, firsts, groups = np.unique(keys, return_index=True, return_inverse=True)
    llm, paying = _of_kinds(table, size, paying=False), _of_kinds(table, size, paying=True)
    counted = llm[:, None] | (paying[:, None] & _COST)
    sums = add_by(groups, _shown(totals, counted), len(distinct))
    return [
        Counter(
            model=(key := table.series[first]).model,
            provider=key.provider,
            caller=key.caller,
            status=key.status,
            sums=Sums(row),
        )
        for first, row in zip(firsts.tolist(), sums.all_numbers(), strict=True)
    ]


def histograms_of(table: SeriesTable, cumulative: CumulativeCounters) -> dict[str, list[list[int]]]:
    """Return the Prometheus histograms of spans of the kind llm, by model."""
    histograms = cumulative.histograms
    codes, known = table.column("model")
    llm = np.flatnonzero(_of_kinds(table, len(histograms), paying=False))
    if not len(llm):
        return {}
    order = llm[np.argsort(codes[llm], kind="stable")]
    models = codes[order]
    starts = np.flatnonzero(np.diff(models, prepend=-1))
    added, names = np.add.reduceat(histograms[order], starts, axis=0), list(known)
    return {names[code]: rows for code, rows in zip(models[starts].tolist(), added.tolist(), strict=True)}


def _of_kinds(table: SeriesTable, size: int, *, paying: bool) -> NDArray[np.bool_]:
    """Return a mask of the first *size* series: of kinds that count as cost, or else of the kind llm."""
    codes, known = table.column("kind")
    wanted = [counts_as_cost(kind) if paying else kind == "llm" for kind in known]
    mask: NDArray[np.bool_] = np.array(wanted, bool)[codes[:size]]
    return mask


def _shown(totals: IntSums, counted: NDArray[Any]) -> IntSums:
    """Return *totals* with 0 where *counted*, a mask of their shape, is False."""
    return IntSums(totals.low * counted, None if totals.high is None else totals.high * counted)


def _columns(totals: IntSums, columns: list[int]) -> IntSums:
    high: Ints | None = None if totals.high is None else totals.high[:, columns]
    return IntSums(totals.low[:, columns], high)
