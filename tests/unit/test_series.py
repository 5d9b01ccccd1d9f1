"""Series, compared with plain counting: numbering, overflow into ``other``, and exact integer sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from tokentrace.records import KINDS, MAX_COST_NUSD, MAX_INSTANT_NS, MAX_LATENCY_NS, MAX_TOKENS, Span
from tokentrace.rollup import (
    ADDED,
    ARRIVED,
    COUNTED,
    DIMENSIONS,
    FOLDABLE,
    SECOND_OF,
    SERIES,
    WIDTH,
    IntSums,
    SeriesTable,
    Sums,
    add_by,
    rows_of,
    series,
    sums_of,
)
from tokentrace.units import DAY, MINUTE, SCORE_ONE, SECOND

NOW = 1_800_000_000 * SECOND
STATUSES = ("ok", "error", "timeout")
Key = tuple[str, str, str, str, str, str]
KEY = st.tuples(
    st.sampled_from(["llm", "tool"]),
    st.sampled_from(["", "unknown", "m1", "other"]),
    st.sampled_from(["", "p1"]),
    st.sampled_from(["", "a", "b", "other", "unknown"]),
    st.sampled_from(["", "other", *(f"n{n}" for n in range(12))]),
    st.sampled_from(STATUSES),
)
STREAM = st.lists(KEY, max_size=80)


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Replace ``MAX_SERIES`` by *limit*."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "MAX_SERIES", limit)
        yield


def named(key: Key) -> Key:
    """Return *key* with ``unknown`` in place of empty values."""
    kind, model, provider, caller, name, status = key
    return kind, model or "unknown", provider or "unknown", caller or "unknown", name or "unknown", status


def make_span(**fields: Any) -> Span:
    return Span(**({"started_ns": NOW - SECOND, "ended_ns": NOW, "arrived_ns": NOW} | fields))


def span_of(key: Key, **fields: Any) -> Span:
    return make_span(**dict(zip(DIMENSIONS, key, strict=True)), **fields)


def sums_by(
    spans: Sequence[Span], table: SeriesTable, groups_of: dict[int, int] | None = None, size: int = 1
) -> list[Sums]:
    """Return the sums of *spans* for each of *size* groups; *groups_of* is series -> group, by default group 0."""
    rows = rows_of(spans, table, NOW)
    groups = np.array([(groups_of or {}).get(int(n), 0) for n in rows[:, SERIES]], np.int64)
    return added(groups, rows, size)


def added(groups: Any, rows: Any, size: int) -> list[Sums]:
    """Return the sums of *rows* for each of *size* groups; *groups* is the group of each row, -1 = none."""
    totals = add_by(groups, IntSums(sums_of(rows)), size)
    return [Sums.of(totals, number) for number in range(size)]


def as_dict(sums: Sums) -> dict[str, int]:
    return {name: getattr(sums, name) for name in sums.__slots__}


# ---- numbering


@settings(deadline=None)
@given(STREAM, st.integers(1, 12))
def test_the_number_of_a_series_never_changes(stream: list[Key], limit: int) -> None:
    with at_most(limit):
        table = SeriesTable()
        numbers: dict[Key, int] = {}
        for key in stream:
            assert table.number(key) == numbers.setdefault(key, table.number(key))
        assert [table.number(key) for key in stream] == [numbers[key] for key in stream]


@settings(deadline=None)
@given(STREAM, STREAM, st.integers(1, 12))
def test_a_table_restored_from_its_series_numbers_as_before(before: list[Key], after: list[Key], limit: int) -> None:
    with at_most(limit):
        table = SeriesTable()
        numbers = [table.number(key) for key in before]
        rebuilt = SeriesTable(msgspec.msgpack.decode(msgspec.msgpack.encode(table.series)))
        assert [rebuilt.number(key) for key in before] == numbers
        assert [rebuilt.number(key) for key in after] == [table.number(key) for key in after]
        assert rebuilt.series == table.series
        assert len(rebuilt) == len(table)


@settings(deadline=None)
@given(STREAM)
def test_below_the_limit_every_combination_is_a_separate_series(stream: list[Key]) -> None:
    table = SeriesTable()
    assert [table.series[table.number(key)] for key in stream] == [named(key) for key in stream]
    assert table.series == list(dict.fromkeys(named(key) for key in stream))


@settings(deadline=None)
@given(STREAM)
def test_separate_counts_the_values_of_a_dimension(stream: list[Key]) -> None:
    table = SeriesTable()
    for key in stream:
        table.number(key)
    for dimension in FOLDABLE:
        values = {named(key)[DIMENSIONS.index(dimension)] for key in stream} - {"other"}
        assert table.separate(dimension) == len(values)


# ---- overflow


@settings(deadline=None)
@given(STREAM, st.integers(1, 12))
def test_only_name_and_then_caller_become_other(stream: list[Key], limit: int) -> None:
    with at_most(limit):
        table = SeriesTable()
        for key in stream:
            counted = table.series[table.number(key)]
            kind, model, provider, caller, name, status = named(key)
            assert (counted.kind, counted.model, counted.provider, counted.status) == (kind, model, provider, status)
            assert (counted.caller, counted.name) in {(caller, name), (caller, "other"), ("other", "other")}


@settings(deadline=None)
@given(STREAM, st.integers(1, 12))
def test_the_table_is_bounded_by_its_limit_plus_the_combinations_that_are_always_kept(
    stream: list[Key], limit: int
) -> None:
    with at_most(limit):
        table = SeriesTable()
        for key in stream:
            table.number(key)
        kept = {(kind, model, provider, status) for kind, model, provider, _, _, status in map(named, stream)}
        assert len(table) <= limit + len(kept)


def test_names_become_other_before_their_caller_does() -> None:
    # 50 names of one caller in 8 series: some names become other, and the caller is kept.
    with at_most(8):
        table = SeriesTable()
        numbers = [table.number(("llm", "m", "p", "checkout", f"name-{n}", "ok")) for n in range(50)]
        assert {table.series[n].caller for n in numbers} == {"checkout"}
        assert "other" in {table.series[n].name for n in numbers}


def test_a_caller_that_comes_after_many_names_is_still_counted_separately() -> None:
    # The names of the caller a fill three quarters of the 40 series, then the callers b and c appear.
    with at_most(40):
        table = SeriesTable()
        for n in range(200):
            table.number(("llm", "m", "p", "a", f"name-{n}", "ok"))
        late = [table.number(("llm", "m", "p", caller, "x", "ok")) for caller in ("b", "c")]
        assert [table.series[n].caller for n in late] == ["b", "c"]


def test_callers_become_other_only_when_the_table_is_full_without_their_names() -> None:
    with at_most(8):
        table = SeriesTable()
        numbers = [table.number(("llm", "m", "p", f"caller-{n}", "x", "ok")) for n in range(50)]
        assert table.series[numbers[-1]] == ("llm", "m", "p", "other", "other", "ok")
        assert table.series[numbers[0]] == ("llm", "m", "p", "caller-0", "x", "ok")


@settings(deadline=None)
@given(st.lists(st.tuples(KEY, st.integers(0, MAX_COST_NUSD)), min_size=1, max_size=60), st.integers(1, 6))
def test_sums_by_kind_model_provider_and_status_are_exact_after_overflow(
    stream: list[tuple[Key, int]], limit: int
) -> None:
    with at_most(limit):
        table = SeriesTable()
        spans = [span_of(key, cost_nusd=cost) for key, cost in stream]
        rows = rows_of(spans, table, NOW)
        for dimension in ("kind", "model", "provider", "status"):
            values = sorted({getattr(c, dimension) for c in table.series})
            group = {n: values.index(getattr(c, dimension)) for n, c in enumerate(table.series)}
            groups = np.array([group[n] for n in rows[:, SERIES].tolist()])
            want: Counter[str] = Counter()
            for key, cost in stream:
                want[named(key)[DIMENSIONS.index(dimension)]] += cost
            by_value = added(groups, rows, len(values))
            assert {value: by_value[n].cost for n, value in enumerate(values)} == dict(want)
            assert sum(sums.spans for sums in by_value) == len(stream)


# ---- what a row adds


FIELDS = {
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "total": "total_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "reasoning_tokens",
    "latency": "latency_ns",
    "ttft": "ttft_ns",
}
EDGES = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, MAX_TOKENS])
TOKENS = st.one_of(EDGES, st.integers(0, MAX_TOKENS))
TIME = st.one_of(st.sampled_from([0, 1, MAX_LATENCY_NS]), st.integers(0, MAX_LATENCY_NS))
SPANS = st.lists(
    st.builds(
        make_span,
        kind=st.sampled_from(KINDS),
        status=st.sampled_from(STATUSES),
        cost_nusd=st.none() | st.sampled_from([0, 1, MAX_COST_NUSD]) | st.integers(0, MAX_COST_NUSD),
        cost_source=st.sampled_from(["", "reported", "priced", "partly_priced", "unpriced"]),
        score=st.none() | st.sampled_from([0, 1, SCORE_ONE]),
        started_ns=st.sampled_from([0, NOW - 40 * DAY, NOW - 1, NOW, NOW + 1, MAX_INSTANT_NS]),
        **{field: TIME if field.endswith("_ns") else TOKENS for field in FIELDS.values()},
    ),
    max_size=30,
)


def recount(spans: Sequence[Span]) -> dict[str, int]:
    """Return the sums of *spans*, added up as Python integers."""
    return {name: sum(getattr(s, field) for s in spans) for name, field in FIELDS.items()} | {
        "spans": len(spans),
        "errors": sum(s.status == "error" for s in spans),
        "timeouts": sum(s.status == "timeout" for s in spans),
        "unpriced": sum(s.cost_nusd is None for s in spans),
        "partly_priced": sum(s.cost_source == "partly_priced" for s in spans),
        "latency_n": sum(s.latency_ns != 0 for s in spans),
        "ttft_n": sum(s.ttft_ns != 0 for s in spans),
        "score_n": sum(s.score is not None for s in spans),
        "cost": sum(s.cost_nusd or 0 for s in spans),
        "score": sum(s.score or 0 for s in spans),
        "wall": sum(max(0, s.ended_ns - s.started_ns) for s in spans),
    }


@settings(max_examples=examples(60), deadline=None)
@given(SPANS)
def test_every_sum_is_exact(spans: list[Span]) -> None:
    [sums] = sums_by(spans, SeriesTable())
    assert as_dict(sums) == recount(spans)


@pytest.mark.long
def test_a_quarter_of_a_million_of_the_largest_spans_add_up_exactly() -> None:
    largest = make_span(
        cost_nusd=MAX_COST_NUSD,
        score=SCORE_ONE,
        started_ns=0,
        ended_ns=MAX_INSTANT_NS,
        arrived_ns=MAX_INSTANT_NS,
        **{field: MAX_LATENCY_NS if field.endswith("_ns") else MAX_TOKENS for field in FIELDS.values()}
        | {"total_tokens": 2 * MAX_TOKENS},
    )
    table, times = SeriesTable(), 250_000
    rows = np.repeat(rows_of([largest], table, NOW), times, axis=0)
    [sums] = added(np.zeros(times, np.int64), rows, 1)
    assert as_dict(sums) == {name: value * times for name, value in recount([largest]).items()}


@given(SPANS, st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=examples(40), deadline=None)
def test_sums_of_parts_add_up_to_the_sum_of_the_whole(spans: list[Span], parts: int, random: Any) -> None:
    owner = [random.randrange(-1, parts) for _ in spans]
    table, total = SeriesTable(), Sums()
    rows = rows_of(spans, table, NOW)
    for number, sums in enumerate(added(np.array(owner, np.int64), rows, parts)):
        mine = [span for span, part in zip(spans, owner, strict=True) if part == number]
        assert as_dict(sums) == recount(mine)
        total.add(sums)
    assert as_dict(total) == recount([s for s, part in zip(spans, owner, strict=True) if part >= 0])


def test_a_span_that_ended_before_it_started_has_no_duration() -> None:
    [sums] = sums_by([make_span(started_ns=NOW, ended_ns=NOW - DAY), make_span(started_ns=NOW - 7)], SeriesTable())
    assert (sums.spans, sums.wall) == (2, 7)


def test_unpriced_adds_no_cost_and_unscored_no_score() -> None:
    [sums] = sums_by([make_span(), make_span(cost_nusd=0, score=0), make_span(cost_nusd=5, score=9)], SeriesTable())
    assert (sums.cost, sums.unpriced, sums.score, sums.score_n) == (5, 1, 9, 2)


def test_a_latency_or_time_to_first_token_of_zero_is_unset() -> None:
    [sums] = sums_by([make_span(), make_span(latency_ns=1, ttft_ns=1)], SeriesTable())
    assert (sums.spans, sums.latency_n, sums.ttft_n) == (2, 1, 1)


def test_no_spans_make_no_rows() -> None:
    rows = rows_of([], SeriesTable(), NOW)
    assert rows.shape == (0, 18)
    assert sums_of(rows).shape == (0, WIDTH)
    assert added(np.empty(0, np.int64), rows, 2) == [Sums(), Sums()]


def test_sums_have_the_fields_of_the_columns_in_the_same_order() -> None:
    assert [*COUNTED, *ADDED] == list(Sums.__slots__)


# ---- when a row counts


@pytest.mark.parametrize(
    ("ended", "second"),
    [
        (NOW, NOW),
        (NOW - 1, NOW - SECOND),  # the nanosecond before is in the second before
        (NOW - 40 * DAY, NOW - 40 * DAY),
        (NOW + 5 * MINUTE, NOW + 5 * MINUTE),  # up to five minutes ahead is accepted
        (NOW + 5 * MINUTE + 1, NOW),  # beyond that the span counts at its arrival
        (MAX_INSTANT_NS, NOW),
        (0, 0),
    ],
)
def test_a_span_counts_in_the_second_it_ended_or_if_that_is_too_far_ahead_when_it_arrived(
    ended: int, second: int
) -> None:
    [row] = rows_of([make_span(ended_ns=ended)], SeriesTable(), NOW + 3 * SECOND)
    assert row[SECOND_OF] == second // SECOND
    assert row[ARRIVED] == NOW // SECOND + 3
