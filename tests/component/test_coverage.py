"""What is known of the senders of calls equals what plain Python finds in the spans that they sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, Log, open_store, stored_span, untimed
from tokentrace.pricing import Pricer
from tokentrace.records import Span
from tokentrace.units import DAY, HOUR, MINUTE, SECOND
from tokentrace_api import coverage_query
from tokentrace_api.coverage_query import Coverage, Sender, cover
from tokentrace_api.reads import Quiet, Rhythm, rhythm, told
from tokentrace_api.store import Store

PRICER = Pricer()
CALLS = ("llm", "embedding")
SCOPES = ["", "openlit.openai", "litellm"]
#: What a call of gpt-4o with 512 and 128 tokens costs, nano-dollars.
PRICE = 2_560_000


def ended(ns: int, **fields: Any) -> Span:
    """Return a call of a second that ended at *ns*."""
    return stored_span("t", **{"started_ns": ns - SECOND, "ended_ns": ns, "latency_ns": SECOND, **fields})


def store_of_a_week(directory: Path, sent: Sequence[Span]) -> Store:
    store, log = open_store(directory, shards=1, keep_ns=7 * DAY), Log()
    if sent:
        store.append([log.spans(*sent)])
    return store


spans = st.builds(
    lambda ns, usage, number, has_id, **fields: ended(
        NOW_NS - ns, number=number, response_id=f"resp-{number:020}" if has_id else "", **usage, **fields
    ),
    st.integers(0, 9).map(lambda n: n * MINUTE),
    st.sampled_from(
        [
            {"prompt_tokens": 0, "completion_tokens": 0, "unpriced_reason": "no_usage", "cost_source": "unpriced"},
            {"prompt_tokens": 0, "completion_tokens": 0, "cost_nusd": 0, "unpriced_reason": "cache_hit"},
            {"prompt_tokens": 0, "completion_tokens": 0, "cost_nusd": 5, "cost_source": "reported"},
            {"prompt_tokens": 9, "cache_read_tokens": 4},
            {"prompt_tokens": 9, "cache_write_tokens": 4},
            {"prompt_tokens": 9, "cache_write_tokens": 4, "cache_write_1h_tokens": 1},
            {"cost_nusd": 7, "cost_source": "reported"},
        ]
    ),
    number=st.integers(0, 10**9),
    caller=st.sampled_from(["a", "b", ""]),
    scope=st.sampled_from(SCOPES),
    source=st.sampled_from(["otlp", "reporter"]),
    kind=st.sampled_from([*CALLS, "llm", "tool", "chain"]),
    status=st.sampled_from(["ok", "ok", "error", "timeout"]),
    ttft_ns=st.sampled_from([0, 5]),
    session_id=st.sampled_from([None, "", "s"]),
    user_id=st.sampled_from([None, "u"]),
    has_id=st.booleans(),
)


def tells_usage(span: Span) -> bool:
    if span.total_tokens:
        return True
    return span.unpriced_reason != "no_usage" and not (span.cost_source == "reported" and span.cost_nusd)


def count(spans: Sequence[Span], test: Callable[[Span], object]) -> int:
    return sum(bool(test(span)) for span in spans)


@untimed(60)
@given(
    sent=st.lists(spans, max_size=25, unique_by=lambda span: span.span_id),
    start=st.integers(0, 10),
    end=st.integers(0, 10),
    caller=st.sampled_from([None, None, "a", ""]),
    limit=st.integers(1, 6),
)
def test_the_sums_of_each_sender_are_those_of_its_spans(
    directories: Iterator[Path], sent: list[Span], start: int, end: int, caller: str | None, limit: int
) -> None:
    from_ns, to_ns = NOW_NS - start * MINUTE, NOW_NS - end * MINUTE
    store = store_of_a_week(next(directories), sent)
    groups: dict[tuple[str, str, str], list[Span]] = {}
    for span in sent:
        if span.kind in CALLS and from_ns <= span.ended_ns < to_ns and caller in (None, span.caller):
            groups.setdefault((span.caller, span.scope, span.source), []).append(span)
    expected = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    try:
        rows, more = told(store, from_ns, to_ns, caller, limit, NOW_NS)
    finally:
        store.close()
    assert more == (len(expected) > limit)
    assert [row[:17] for row in rows] == [
        (
            *key,
            len(calls),
            count(calls, lambda span: span.status == "ok"),
            count(calls, lambda span: span.status == "ok" and tells_usage(span)),
            count(calls, lambda span: span.total_tokens),
            count(calls, lambda span: span.cache_read_tokens or span.cache_write_tokens),
            count(calls, lambda span: span.cache_write_tokens),
            count(calls, lambda span: span.cache_write_1h_tokens),
            count(calls, lambda span: span.ttft_ns),
            count(calls, lambda span: span.session_id),
            count(calls, lambda span: span.user_id),
            count(calls, lambda span: span.status == "ok" and span.response_id),
            count(calls, lambda span: span.cost_source == "reported" and span.cost_nusd),
            min(span.ended_ns for span in calls),
            max(span.ended_ns for span in calls),
        )
        for key, calls in expected[:limit]
    ]


def covered(directory: Path, sent: Sequence[Span], from_ns: int = 0, to_ns: int = NOW_NS) -> Coverage:
    store = store_of_a_week(directory, sent)
    try:
        return cover(store, PRICER, from_ns, to_ns, None, 10, NOW_NS)
    finally:
        store.close()


def only(coverage: Coverage) -> Sender:
    [sender] = coverage.senders
    return sender


def numbered(times: Sequence[int], first: int = 0, **fields: Any) -> list[Span]:
    """Return a call that ended at each of *times*."""
    return [ended(ns, number=first + number, **fields) for number, ns in enumerate(times)]


def silent_since(times: Sequence[int], step_ns: int, to_ns: int) -> int | None:
    """Return when the last of *times* was, if nothing has come for over twice the longest pause before."""
    steps = sorted({ns // step_ns for ns in times if ns < to_ns})
    if len(steps) < 3:
        return None
    longest = max(after - before for before, after in itertools.pairwise(steps))
    last = max(ns for ns in times if ns < to_ns)
    return last if to_ns - last > 2 * longest * step_ns else None


minutes = st.lists(st.integers(0, 7 * 24 * 60 - 1), min_size=1, max_size=12)


@untimed(40)
@given(
    called=st.dictionaries(st.sampled_from("abc"), minutes, min_size=1),
    others=st.lists(st.integers(0, 7 * 24 * 60 - 1), max_size=3),
    end=st.integers(0, 3 * 24 * 60),
    most=st.integers(1, 20),
)
def test_a_caller_is_silent_after_twice_its_longest_pause(
    directories: Iterator[Path], called: dict[str, list[int]], others: list[int], end: int, most: int
) -> None:
    times = {caller: [NOW_NS - minute * MINUTE - 1 for minute in ago] for caller, ago in called.items()}
    sent = [
        span for number, caller in enumerate(times) for span in numbered(times[caller], number * 100, caller=caller)
    ]
    sent += numbered([NOW_NS - minute * MINUTE - 1 for minute in others], 1000, caller="a", kind="tool")
    to_ns = NOW_NS - end * MINUTE
    store = store_of_a_week(next(directories), sent)
    try:
        found: Rhythm = rhythm(store, to_ns, None, NOW_NS)
    finally:
        store.close()
    expected = {
        caller: since for caller in times if (since := silent_since(times[caller], found.step_ns, to_ns)) is not None
    }
    assert {quiet.caller: quiet.last_ns for quiet in found.silent} == expected
    assert [quiet.last_ns for quiet in found.silent] == sorted(expected.values(), reverse=True)
    for quiet in found.silent:
        spans_of = [span.ended_ns for span in sent if span.caller == quiet.caller and span.ended_ns < to_ns]
        assert quiet.last_span_ns == max(spans_of)
    before = [ns for ago in times.values() for ns in ago if ns < to_ns]
    floor = found.floor(0, most)
    looked_at = [ns for ns in before if ns >= floor]
    assert len(looked_at) <= most or len({ns // found.step_ns for ns in looked_at}) == 1
    missed = [ns for ns in before if ns < floor]
    if missed:
        # One step more would be too many.
        assert len([ns for ns in before if ns // found.step_ns >= max(missed) // found.step_ns]) > most


def test_an_instrumentation_that_falls_silent_is_named_while_its_service_calls(directories: Iterator[Path]) -> None:
    every = [NOW_NS - 1 - minute * MINUTE for minute in range(0, 20 * 60, 10)]
    before = [ns for ns in every if ns < NOW_NS - 4 * HOUR]
    going = numbered(every, scope="openlit.openai", source="otlp")
    gone = numbered(before, 500, scope="openinference.openai", source="otlp")
    coverage = covered(next(directories), [*going, *gone])
    step_ns = 7 * DAY // 1000
    assert coverage.silent == [Quiet("", "openinference.openai", max(before), step_ns * 1, max(before))]
    # What another one tells first is still told.
    again = numbered([ns for ns in every if ns not in before], 900, scope="openinference.openai", kind="chain")
    assert covered(next(directories), [*going, *gone, *again]).silent == []


def test_calls_that_stream_are_looked_at_for_their_first_token(directories: Iterator[Path]) -> None:
    streams = numbered([NOW_NS - 9] * 2, attributes={"gen_ai.request.stream": True}, ttft_ns=5)
    streams += numbered([NOW_NS - 9], 10, attributes={"llm.is_streaming": "True"})
    streams += numbered([NOW_NS - 9], 20, attributes={"ai.operationId": "ai.streamText.doStream"}, ttft_ns=5)
    others = numbered([NOW_NS - 9] * 3, 30, attributes={"gen_ai.request.stream": False}, ttft_ns=5)
    others += numbered([NOW_NS - 9], 40, attributes={"ai.operationId": "ai.generateText.doGenerate"})
    others += numbered([NOW_NS - 9], 50, attributes={})
    sender = only(covered(next(directories), [*streams, *others]))
    assert (sender.looked.streamed, sender.looked.streamed_ttft, sender.told.ttft) == (4, 3, 6)


def test_reported_costs_are_compared_with_the_price(directories: Iterator[Path]) -> None:
    costs = [PRICE, PRICE * 101 // 100, PRICE * 99 // 100, PRICE * 102 // 100, PRICE // 2, 1]
    sent = [ended(NOW_NS - 1, number=n, cost_nusd=cost, cost_source="reported") for n, cost in enumerate(costs)]
    unknown = ended(NOW_NS - 1, number=90, cost_nusd=5, cost_source="reported", model="acme-writer-7b")
    priced = ended(NOW_NS - 1, number=91, cost_nusd=PRICE, cost_source="priced")
    looked = only(covered(next(directories), [*sent, unknown, priced])).looked
    assert (looked.compared, looked.differing) == (6, 3)


def test_a_reported_cost_that_does_not_count_is_compared_too(directories: Iterator[Path]) -> None:
    told_usd = [0.00256, 0.00250, 0, "much"]
    sent = [
        ended(NOW_NS - 1, number=n, cost_nusd=PRICE, cost_source="priced", attributes={"cost.reported_usd": usd})
        for n, usd in enumerate(told_usd)
    ]
    looked = only(covered(next(directories), sent)).looked
    assert (looked.compared, looked.differing) == (2, 1)


def test_calls_that_two_instrumentations_tell_without_an_id_are_shown_in_both_rows(
    directories: Iterator[Path],
) -> None:
    times = [NOW_NS - n * MINUTE for n in range(1, 6)]
    outer = numbered(times, scope="openllmetry", status="error")
    inner = numbered([ns - 9 for ns in times[:4]], 50, scope="com.anthropic.sdk", status="error")
    elsewhere = numbered(times, 90, scope="litellm", status="error", caller="other")
    senders = covered(next(directories), [*outer, *inner, *elsewhere]).senders
    assert {(sender.told.caller, sender.told.scope): sender.looked.pairs for sender in senders} == {
        ("", "openllmetry"): (("com.anthropic.sdk", 4),),
        ("", "com.anthropic.sdk"): (("openllmetry", 4),),
        ("other", "litellm"): (),
    }


def test_only_so_many_of_the_newest_calls_are_added_up(directories: Iterator[Path], monkeypatch: Any) -> None:
    monkeypatch.setattr(coverage_query, "MOST_CALLS", 2)
    times = [NOW_NS - n * HOUR for n in range(1, 6)]
    coverage = covered(next(directories), numbered(times))
    assert only(coverage).told.calls == 2
    assert coverage.searched_from_ns is not None
    assert times[2] < coverage.searched_from_ns <= times[1]
    monkeypatch.setattr(coverage_query, "MOST_CALLS", 5)
    assert covered(next(directories), numbered(times)).searched_from_ns is None
