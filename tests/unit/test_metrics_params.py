"""The intervals and filters of both sides that the parameters of a request for metrics describe."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.errors import Rejected
from tokentrace.rollup import cover
from tokentrace_api.metrics_params import MetricsParams, MetricsQuery, parse_metrics_query

NOW_S = 1_790_000_123
DAY_S = 86_400
WINDOWS = st.integers(1, 31 * DAY_S)
#: Seconds before now at which an interval begins, and its length.
PAST = st.tuples(st.integers(1, 400 * DAY_S), st.integers(1, 40 * DAY_S))


def parsed(**query: str) -> MetricsQuery:
    items = [(name.replace("__", ".").removesuffix("_"), value) for name, value in query.items()]
    return parse_metrics_query(MetricsParams.of(items), NOW_S * 10**9 + 5)


def instant(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def interval(question: MetricsQuery) -> tuple[int, int]:
    return question.query.from_s, question.query.to_s


@given(WINDOWS)
def test_the_interval_before_a_window_touches_it_and_is_as_long(window_s: int) -> None:
    question = parsed(window=f"{window_s}s", compare="before")
    assert question.before is not None
    (from_s, to_s), (earlier_s, until_s) = interval(question), interval(question.before)
    assert (from_s, to_s) == (NOW_S - window_s, NOW_S + 1)
    covered_s = cover(from_s, to_s, NOW_S)[0].start_s
    assert until_s == covered_s <= from_s
    assert until_s - earlier_s == to_s - covered_s
    assert (question.is_exact, question.before.is_exact) == (False, True)


@given(PAST, st.sampled_from([("before", None), ("yesterday", DAY_S), ("last_week", 7 * DAY_S)]))
def test_an_interval_of_the_past_is_compared_with_one_of_its_length(
    past: tuple[int, int], compared: tuple[str, int | None]
) -> None:
    from_s = NOW_S - past[0]
    to_s = from_s + past[1]
    question = parsed(from_=instant(from_s), to=instant(to_s), compare=compared[0])
    end_s = min(to_s, NOW_S + 1)
    assert interval(question) == (from_s, end_s)
    assert question.window is None
    assert question.before is not None
    shift_s = compared[1] or end_s - from_s
    assert interval(question.before) == (from_s - shift_s, end_s - shift_s)


@given(PAST)
def test_buckets_answer_only_where_they_hardly_widen_the_interval(past: tuple[int, int]) -> None:
    from_s = NOW_S - past[0]
    question = parsed(from_=instant(from_s), to=instant(from_s + past[1]))
    from_s, to_s = interval(question)
    if past[0] > 31 * DAY_S:
        assert question.is_beyond_buckets
        return
    stretches = cover(from_s, to_s, NOW_S)
    widened = stretches[-1].end_s - stretches[0].start_s - (to_s - from_s)
    assert question.is_beyond_buckets == (100 * widened > to_s - from_s)


def test_a_filter_of_the_other_side_replaces_the_one_of_the_same_meaning() -> None:
    question = parsed(user="a", model="m", attr__team="red", compare__user_id="b", compare__attr__team="")
    before = question.before
    assert before is not None
    assert (question.query.filters, dict(question.filters)) == ({"model": "m"}, {"team": "red", "user_id": "a"})
    assert (before.query.filters, dict(before.filters)) == ({"model": "m"}, {"team": "", "user_id": "b"})
    assert interval(question) == interval(before)
    other = parsed(kind="tool", compare__kind="all", compare__model="").before
    assert other is not None
    assert (other.query.kind, other.query.only_kind) == ("all", False)
    assert other.query.filters == {"model": "unknown"}


@pytest.mark.parametrize("groupby", ["user_id", "attr.user_id", "user"])
def test_every_name_of_a_user_groups_by_the_same(groupby: str) -> None:
    assert parsed(groupby=groupby).groupby == "user_id"


def test_an_end_without_its_beginning_is_refused() -> None:
    with pytest.raises(Rejected, match="compare_to: needs compare_from"):
        parsed(compare_to=instant(NOW_S))
