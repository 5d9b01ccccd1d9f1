"""Random streams of spans, a rollup that folds them, and a recount of the spans."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st

from tokentrace.records import MAX_COST_NUSD, MAX_INSTANT_NS, MAX_LATENCY_NS, MAX_TOKENS, Span
from tokentrace.rollup import (
    DIMENSIONS,
    FIELDS,
    RELATIVE_ERROR,
    RESOLUTIONS,
    Rollup,
    SeriesTable,
    Stretch,
    Summary,
    Sums,
    add_by,
    cover,
    rows_of,
)
from tokentrace.units import DAY, HOUR, MINUTE, SCORE_ONE, SECOND

NOON_S = 1_800_057_600  # a whole number of days
QUANTILES = (0.0, 0.1, 0.5, 0.95, 0.99, 1.0)
#: Lengths of time, seconds, at and near the width of buckets and the time for which they are kept.
EDGES_S = sorted(
    {
        max(0, base + off)
        for resolution in RESOLUTIONS
        for base in (resolution.width_s, resolution.keep_s)
        for off in (-resolution.width_s, -1, 0, 1, resolution.width_s)
    }
)
SHAPES = (
    ("llm", "m1", "p1", "a", "x", "ok"),
    ("llm", "m2", "p1", "a", "y", "error"),
    ("tool", "", "", "b", "x", "timeout"),
    ("llm", "m1", "p1", "b", "", "ok"),
)

SPREAD_S = st.one_of(
    st.integers(0, 90),
    st.sampled_from(EDGES_S),
    st.integers(0, 2 * 3600),
    st.integers(0, 3 * 86400),
    st.integers(0, 40 * 86400),
)
NOW_NS = st.builds(
    lambda second, ns: (NOON_S + second) * SECOND + ns,
    st.one_of(st.just(0), st.sampled_from(EDGES_S), st.integers(0, 7200)),
    st.sampled_from([0, 1, SECOND // 3, SECOND - 1]),
)
WINDOW_NS = st.one_of(
    st.sampled_from([seconds * SECOND for seconds in EDGES_S if 0 < seconds <= 31 * 86400]),
    st.sampled_from([HOUR, 6 * HOUR, DAY, 7 * DAY, 30 * DAY, 31 * DAY]),
    st.integers(SECOND, MINUTE),
    st.integers(SECOND, 4 * HOUR),
    st.integers(SECOND, 31 * DAY),
)


class Stream(NamedTuple):
    """Spans in order of arrival, each with the stream time of its message; none arrives after *now_ns*."""

    spans: list[Span]
    arrived_ns: list[int]
    now_ns: int


def make_span(shape: int = 0, size: int = 1, **fields: Any) -> Span:
    """Return a span of the series SHAPES[*shape*] whose numbers follow from *size*; *fields* are added."""
    dimensions: dict[str, Any] = dict(zip(DIMENSIONS, SHAPES[shape], strict=True))
    return Span(
        **dimensions,
        latency_ns=size * 7919 % MAX_LATENCY_NS if size % 4 else 0,
        ttft_ns=size % MAX_LATENCY_NS if size % 3 == 0 else 0,
        prompt_tokens=size % (MAX_TOKENS + 1),
        completion_tokens=size // 3 % 5000,
        total_tokens=size % (MAX_TOKENS + 1) + size // 3 % 5000,
        cost_nusd=None if size % 5 == 0 else size * 104_729 % MAX_COST_NUSD,
        cost_source="partly_priced" if size % 7 == 0 else "priced",
        score=None if size % 2 else size * 31 % SCORE_ONE,
        **fields,
    )


@st.composite
def streams(draw: st.DrawFn, most: int = 40) -> Stream:
    now_ns = draw(NOW_NS)
    arrival = st.tuples(
        SPREAD_S,  # seconds since its arrival
        # Seconds from its end to its arrival; negative = it ended in the future.
        st.one_of(st.just(0), st.integers(0, 5), st.integers(-900, 0), SPREAD_S),
        st.sampled_from([0, 1, SECOND // 2, SECOND - 1]),
        st.integers(0, len(SHAPES) - 1),
        st.one_of(st.integers(0, 40), st.integers(0, MAX_TOKENS)),
        st.sampled_from([1, 1, 1, 1, 30]),  # many spans at the same time
        st.sampled_from([-5, 0, 3, 10**6]),  # ended - started, s
    )
    arrivals, drawn = [], []
    least = draw(st.sampled_from([0, most // 2, most]))
    for ago, late, ns, shape, size, times, wall in draw(st.lists(arrival, min_size=least, max_size=most)):
        arrived = now_ns - ago * SECOND
        ended = min(max(arrived - late * SECOND - ns, 0), MAX_INSTANT_NS)
        started = max(0, ended - wall * SECOND)
        for n in range(times):
            arrivals.append(arrived)
            drawn.append(make_span(shape, size + 13 * n, started_ns=started, ended_ns=ended, arrived_ns=arrived))
    order = sorted(range(len(drawn)), key=lambda n: arrivals[n])
    return Stream([drawn[n] for n in order], [arrivals[n] for n in order], now_ns)


# ---- the expected numbers, from the spans


def event_second(span: Span) -> int:
    accepted = span.ended_ns - span.arrived_ns <= 5 * MINUTE
    return (span.ended_ns if accepted else span.arrived_ns) // SECOND


def within(spans: Iterable[Span], stretches: Sequence[Stretch]) -> list[Span]:
    from_s, to_s = stretches[0].start_s, stretches[-1].end_s
    return [span for span in spans if from_s <= event_second(span) < to_s]


def recount(spans: Sequence[Span]) -> Sums:
    return Sums(
        spans=len(spans),
        errors=sum(s.status == "error" for s in spans),
        timeouts=sum(s.status == "timeout" for s in spans),
        unpriced=sum(s.cost_nusd is None for s in spans),
        partly_priced=sum(s.cost_source == "partly_priced" for s in spans),
        latency_n=sum(s.latency_ns > 0 for s in spans),
        ttft_n=sum(s.ttft_ns > 0 for s in spans),
        score_n=sum(s.score is not None for s in spans),
        cost=sum(s.cost_nusd or 0 for s in spans),
        prompt=sum(s.prompt_tokens for s in spans),
        completion=sum(s.completion_tokens for s in spans),
        total=sum(s.total_tokens for s in spans),
        cache_read=sum(s.cache_read_tokens for s in spans),
        cache_write=sum(s.cache_write_tokens for s in spans),
        cache_write_1h=sum(s.cache_write_1h_tokens for s in spans),
        reasoning=sum(s.reasoning_tokens for s in spans),
        latency=sum(s.latency_ns for s in spans),
        ttft=sum(s.ttft_ns for s in spans),
        score=sum(s.score or 0 for s in spans),
        wall=sum(max(0, s.ended_ns - s.started_ns) for s in spans),
    )


VALUES: dict[str, Callable[[Span], int | None]] = {
    "latency": lambda s: s.latency_ns or None,
    "ttft": lambda s: s.ttft_ns or None,
    "prompt": lambda s: s.prompt_tokens if s.prompt_tokens or s.completion_tokens else None,
    "completion": lambda s: s.completion_tokens if s.prompt_tokens or s.completion_tokens else None,
    "score": lambda s: s.score,
}


def assert_reads(reading: Reading, spans: Sequence[Span]) -> None:
    """Check that *reading* has the sums and quantiles of *spans*; quantiles must be exact up to 100 values."""
    assert reading.sums == recount(spans)
    assert set(reading.summaries) == set(FIELDS)
    for name, summary in reading.summaries.items():
        values = [value for value in map(VALUES[name], spans) if value is not None]
        assert_summarises(summary, values)


def assert_summarises(summary: Summary, values: list[int]) -> None:
    assert summary.count == len(values)
    assert summary.exact == (len(values) <= 100)
    if not values:
        assert summary.quantile(0.5) is None
        return
    error = 0 if summary.exact else RELATIVE_ERROR + 1e-9
    assert all(min(values) <= (summary.quantile(q) or 0) <= max(values) for q in QUANTILES)
    for q, want in zip(QUANTILES, np.quantile(np.array(values, np.float64), QUANTILES).tolist(), strict=True):
        assert summary.quantile(q) == pytest.approx(want, rel=error + 1e-12, abs=1e-12 * max(values))


def asked(now_ns: int, window_ns: int) -> list[Stretch]:
    return cover((now_ns - window_ns) // SECOND, now_ns // SECOND + 1, now_ns // SECOND)


class Reading(NamedTuple):
    """Sums of some series in an interval, and the requested distributions."""

    sums: Sums
    summaries: dict[str, Summary]


def readings_of(
    rollup: Rollup, stretches: Sequence[Stretch], groups: Any, size: int, fields: Sequence[str]
) -> list[Reading]:
    """Return one reading for each of *size* groups of series."""
    _, series, totals = rollup.totals([stretches])
    sums = add_by(groups[series], totals, size)
    summaries = rollup.summaries([stretches], dict.fromkeys(fields, groups), size)
    return [
        Reading(Sums.of(sums, n), {name: summaries[name].get(n, Summary()) for name in fields}) for n in range(size)
    ]


class FoldedRollup:
    """A rollup and its table of series."""

    def __init__(self) -> None:
        self.table = SeriesTable()
        self.rollup = Rollup(self.table)

    def fold(self, spans: Sequence[Span], arrived_ns: int) -> None:
        self.rollup.fold(rows_of(spans, self.table, arrived_ns))

    def read(self, stretches: Sequence[Stretch]) -> Reading:
        [reading] = readings_of(self.rollup, stretches, np.zeros(len(self.table), np.int64), 1, list(FIELDS))
        return reading

    def read_by(self, stretches: Sequence[Stretch], dimension: str) -> dict[str, Reading]:
        values = sorted({getattr(key, dimension) for key in self.table.series})
        groups = np.array([values.index(getattr(key, dimension)) for key in self.table.series], np.int64)
        return dict(zip(values, readings_of(self.rollup, stretches, groups, len(values), list(FIELDS)), strict=True))

    def restarted(self) -> FoldedRollup:
        rollup, parts = self.rollup.snapshot({})
        made = {name: part.encode() for name, part in parts.items() if part.encode}
        saved = msgspec.msgpack.encode({"cells": self.table.series, "rollup": rollup, "parts": made})
        state = msgspec.msgpack.decode(saved)
        folded = FoldedRollup()
        folded.table = SeriesTable(state["cells"])
        folded.rollup = Rollup.restore(folded.table, state["rollup"], state["parts"])
        return folded


def whole(rollup: Rollup) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a snapshot: (state, the encoded parts)."""
    state, parts = rollup.snapshot({})
    return state, {name: part.encode() for name, part in parts.items() if part.encode}


Meanwhile = Callable[[FoldedRollup], FoldedRollup | None]


def fold_all(stream: Stream, random: Random | None = None, meanwhile: Meanwhile | None = None) -> FoldedRollup:
    """
    Return a rollup of *stream*.

    Args:
        random: Cuts the stream into batches; None = one batch for each time of arrival.
        meanwhile: Called after each batch; the rollup that it returns replaces the one that was folded so far.
    """
    folded, at = FoldedRollup(), 0
    while at < len(stream.spans):
        end = at + 1
        while end < len(stream.spans) and (
            random.random() < 0.7 if random else stream.arrived_ns[end] == stream.arrived_ns[at]
        ):
            end += 1
        # A message arrives with the last of its spans.
        folded.fold(stream.spans[at:end], stream.arrived_ns[end - 1])
        at = end
        if random and random.random() < 0.3:
            folded.rollup.settle()
        if meanwhile:
            folded = meanwhile(folded) or folded
    return folded


def at(event_s: int, arrived_s: int, **fields: Any) -> Span:
    return make_span(started_ns=event_s * SECOND, ended_ns=event_s * SECOND, arrived_ns=arrived_s * SECOND, **fields)
