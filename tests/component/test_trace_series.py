"""Traces over time: every step, and the whole, equals what plain Python adds up from the list of the same traces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import NOW_NS, first_tellings, untimed
from kit.trace_oracle import PATHS, expected, find_attribute, matches, searches, spans, stored, text_of
from tokentrace.records import Span
from tokentrace.units import DAY, SECOND
from tokentrace_api.reads import Search, Sums, TraceRow, TraceSums, attributes_of, find_page, trace_series
from tokentrace_api.reads.series import LENGTHS_NS, MOST_STEPS, USUAL_STEPS


def added(rows: Sequence[TraceRow]) -> TraceSums:
    """Return the sum of *rows*, with a cost of 0 if none is known."""
    known = sum(row.sums.cost_nusd or 0 for row in rows)
    unpriced = sum(row.sums.unpriced for row in rows)
    return TraceSums(
        len(rows),
        sum(row.status != "ok" for row in rows),
        Sums(
            known,
            unpriced,
            sum(row.sums.partly_priced for row in rows),
            sum(row.sums.total_tokens for row in rows),
            sum(row.sums.spans for row in rows),
        ),
    )


def alike(found: TraceSums, rows: Sequence[TraceRow]) -> bool:
    """Return True if *found* is the sum of *rows*. Its cost may be unknown only if no row has one that is over 0."""
    wanted = added(rows)
    if found.sums.cost_nusd is None:
        assert wanted.sums.unpriced > 0
        assert all(not row.sums.cost_nusd for row in rows)
        found = found._replace(sums=found.sums._replace(cost_nusd=0))
    elif rows and all(row.sums.cost_nusd is None for row in rows):
        return False
    return found == wanted


@untimed(60)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked=st.lists(st.tuples(searches, st.sampled_from((1, 2, 3, 100))), min_size=3, max_size=6),
    most=st.sampled_from((10**6, 10**6, 9, 1)),
    now_ns=st.sampled_from((4, NOW_NS)),
)
def test_every_step_is_the_sum_of_the_traces_that_the_list_shows(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked: list[tuple[Search, int]],
    most: int,
    now_ns: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, step_ns in asked:
            series = trace_series(store, search, step_ns, now_ns, most)
            floor_ns = series.searched_until_ns
            assert floor_ns is None or sum(matches(span, search) for span in sent) > most
            rows = [row for row in expected(sent, search) if floor_ns is None or row.started_ns > floor_ns]
            if floor_ns is None:
                assert rows == find_page(store, search, 200, 0, None, NOW_NS).rows
            if series.step_ns is None:
                assert series.from_ns is not None
                assert series.to_ns is not None
                assert (series.to_ns - series.from_ns) // step_ns + 1 >= MOST_STEPS
                continue
            assert alike(series.total, rows)
            assert sum(step.traces.traces for step in series.steps) == len(rows)
            starts = [step.start_ns // step_ns for step in series.steps]
            assert starts == list(range(starts[0], starts[0] + len(starts))) if starts else not rows
            for number, step in zip(starts, series.steps, strict=True):
                assert alike(step.traces, [row for row in rows if row.started_ns // step_ns == number])
                first, last = number * step_ns, (number + 1) * step_ns - 1
                since, until = search.since_ns, search.until_ns
                is_cut = last >= now_ns or (until is not None and last > until) or (since is not None and first < since)
                assert step.partial == (is_cut or (floor_ns is not None and first <= floor_ns))
    finally:
        store.close()


@untimed(20)
@given(starts=st.lists(st.integers(0, 60 * 365 * DAY), min_size=1, max_size=6))
def test_a_chosen_step_gives_enough_steps_and_not_too_many(directories: Iterator[Path], starts: list[int]) -> None:
    sent = [make_span(trace_id=f"t{at}", started_ns=start, ended_ns=start) for at, start in enumerate(starts)]
    store = stored(next(directories), sent, [])
    try:
        series = trace_series(store, Search(), None, max(starts) + 1)
        assert (series.from_ns, series.to_ns) == (min(starts), max(starts))
        assert series.step_ns in LENGTHS_NS
        assert 1 <= len(series.steps) <= USUAL_STEPS + 2
        shorter = [length for length in LENGTHS_NS if length < series.step_ns]
        assert all(length * USUAL_STEPS < max(starts) - min(starts) for length in shorter)
        assert series.total.traces == len(starts)
    finally:
        store.close()


@untimed(40)
@given(
    sent=st.lists(spans, max_size=12),
    cuts=st.lists(st.integers(0, 11), max_size=2),
    keys=st.lists(st.sampled_from((*PATHS, "user_id")), min_size=1, max_size=3, unique=True),
)
def test_a_row_shows_the_attributes_of_its_root_or_else_of_the_first_span_that_has_them(
    directories: Iterator[Path], sent: list[Span], cuts: list[int], keys: list[str]
) -> None:
    traces: dict[str, list[Span]] = {}
    for span in sorted(first_tellings(sent), key=lambda span: span.started_ns):
        traces.setdefault(span.trace_id, []).append(span)
    store = stored(next(directories), sent, cuts)
    try:
        shown = attributes_of(store, [*traces, "absent"], keys, NOW_NS)
        assert shown.pop("absent") == dict.fromkeys(keys)
        for trace_id, trace in traces.items():
            roots_first = sorted(trace, key=lambda span: span.parent_span_id is not None)
            for key in keys:
                texts = [held_text(span, key) for span in roots_first]
                assert shown[trace_id][key] == next((text for text in texts if text), None)
        assert attributes_of(store, [*traces], [], NOW_NS) == {trace_id: {} for trace_id in traces}
    finally:
        store.close()


def held_text(span: Span, key: str) -> str | None:
    if key == "user_id" and span.user_id:
        return span.user_id
    return text_of(find_attribute(span.attributes, key))


def test_a_window_ends_now_and_an_empty_store_has_no_range(directories: Iterator[Path]) -> None:
    empty = stored(next(directories), [], [])
    assert trace_series(empty, Search(), None, NOW_NS)[:4] == (None, None, LENGTHS_NS[0], [])
    empty.close()
    sent = [make_span(trace_id="t", started_ns=NOW_NS - SECOND, ended_ns=NOW_NS)]
    store = stored(next(directories), sent, [])
    try:
        search = Search(since_ns=NOW_NS - 60 * SECOND)
        series = trace_series(store, search, SECOND, NOW_NS)
        assert (series.from_ns, series.to_ns) == (NOW_NS - 60 * SECOND, NOW_NS)
        assert [step.traces.traces for step in series.steps][-3:].count(1) == 1
        assert series.steps[-1].partial
        assert not series.steps[10].partial
        assert trace_series(store, search._replace(since_ns=0), SECOND, NOW_NS).step_ns is None
    finally:
        store.close()
