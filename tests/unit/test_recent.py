"""Spans that arrive again are counted, as long as their ids are remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace_api.reads import RecentSpans


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12), max_size=30))
def test_every_repetition_of_a_remembered_span_is_counted(appends: list[list[tuple[int, int]]]) -> None:
    recent, seen, repeated = RecentSpans(block=5, blocks=100), set(), 0
    for ids in appends:
        recent.add([make_span(trace_id=f"t{trace}", span_id=f"s{span}") for trace, span in ids])
        for key in ids:
            repeated += key in seen
            seen.add(key)
    assert recent.repeated == repeated


def test_spans_that_arrived_too_long_ago_are_forgotten() -> None:
    recent = RecentSpans(block=2, blocks=2)
    for number in range(8):
        recent.add([make_span(span_id=f"{number}")])
    recent.add([make_span(span_id="0"), make_span(span_id="7")])
    assert recent.repeated == 1
