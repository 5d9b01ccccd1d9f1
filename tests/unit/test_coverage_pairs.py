"""Pairs of calls that may be one call told twice."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tokentrace.units import MS, SECOND
from tokentrace_api.reads import SLACK_NS, Call, count_pairs


def call(scope: str, start: int = 0, end: int = SECOND, **fields: Any) -> Call:
    return Call(
        **{
            "caller": "shop",
            "scope": scope,
            "provider": "openai",
            "model": "gpt-4o",
            "status": "ok",
            "started_ns": start,
            "ended_ns": end,
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "has_id": False,
            **fields,
        }
    )


def may_be_same(one: Call, other: Call) -> bool:
    """The definition, in other words."""
    outer, inner = sorted((one, other), key=lambda each: each.started_ns - each.ended_ns)
    is_inside = outer.started_ns - 5 * MS <= inner.started_ns and inner.ended_ns <= outer.ended_ns + 5 * MS
    alike = [(each.caller, each.provider, each.model, each.status) for each in (one, other)]
    used = [each[7:9] for each in (one, other) if each[7:9] != (0, 0)]
    has_one_id = not (one.has_id and other.has_id)
    return is_inside and alike[0] == alike[1] and len(set(used)) <= 1 and has_one_id and one.scope != other.scope


def most_pairs(calls: list[Call]) -> int:
    """Return the largest number of pairs without a call in two of them, by trying all."""
    best = 0
    for one, other in combinations(range(len(calls)), 2):
        if may_be_same(calls[one], calls[other]):
            rest = [each for place, each in enumerate(calls) if place > one and place != other]
            best = max(best, 1 + most_pairs(rest))
    return best


times = st.tuples(st.integers(0, 40), st.integers(0, 20)).map(lambda t: (t[0] * MS, (t[0] + t[1]) * MS))
calls = st.builds(
    lambda when, **fields: call(start=when[0], end=when[1], **fields),
    times,
    scope=st.sampled_from("AB"),
    caller=st.sampled_from(["shop", "shop", "mail"]),
    status=st.sampled_from(["ok", "ok", "error"]),
    prompt_tokens=st.sampled_from([0, 10]),
    completion_tokens=st.just(0),
    has_id=st.booleans(),
)


@given(st.lists(calls, max_size=7))
def test_pairs_are_disjoint_and_each_may_be_one_call(sent: list[Call]) -> None:
    pairs = count_pairs(sent)
    found, most = sum(pairs.values()), most_pairs(sent)
    # Choosing the partner that began last may miss the largest number of pairs, by half at most.
    assert most <= 2 * found
    assert found <= most
    assert all(key in {("shop", "A", "B"), ("mail", "A", "B")} for key in pairs)


@given(st.lists(calls, max_size=7))
def test_the_order_of_the_calls_does_not_matter(sent: list[Call]) -> None:
    assert sum(count_pairs(sent).values()) == sum(count_pairs(sent[::-1]).values())


def test_every_call_that_is_told_twice_is_found_among_many_at_the_same_time() -> None:
    sent = [call(scope, n * MS, n * MS + SECOND, prompt_tokens=n + 1) for n in range(500) for scope in ("A", "B")]
    assert count_pairs(sent) == Counter({("shop", "A", "B"): 500})


def test_a_call_with_an_id_pairs_with_one_without() -> None:
    assert count_pairs([call("A", has_id=True), call("B")]) == Counter({("shop", "A", "B"): 1})
    assert count_pairs([call("A", has_id=True), call("B", has_id=True)]) == Counter()


def test_the_inner_interval_may_exceed_the_outer_one_by_five_milliseconds() -> None:
    inner = call("A", -SLACK_NS, SECOND + SLACK_NS)
    assert count_pairs([inner, call("B")]) == Counter({("shop", "A", "B"): 1})
    assert count_pairs([call("A", SECOND - SLACK_NS, 2 * SECOND), call("B")]) == Counter()
    # Three instrumentations tell one call: it is one pair, and a call that is left over.
    assert count_pairs([call("A"), call("B"), call("C")]).total() == 1
