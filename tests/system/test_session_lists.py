"""Lists and sums of sessions equal those of an oracle, which computes them as the local service of Cost Katana does."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from kit.json_spans import fresh
from kit.pipeline import Pipeline
from kit.sessions import details, ingest, instant, listed, summary
from kit.store_log import ROLLUPS


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("sessions"))
    serving.start()
    yield serving
    assert serving.stop() == 0


class SentSpan(NamedTuple):
    """
    A span that a test sends.

    Attributes:
        session: Number of its session in the example.
        at_ms: Start of the span after the start of the example, milliseconds.
        ms: Duration, milliseconds; None = the span has no end.
        tokens: (input tokens, output tokens).
        source: costkatana = it is sent to ``/api/traces/ingest``; spans = to ``/spans``.
    """

    session: int
    kind: str
    at_ms: int
    ms: int | None
    status: str
    cost: float
    tokens: tuple[int, int]
    label: str | None
    source: str


class Example(NamedTuple):
    """Spans that a test sends, the sessions that it ends, and messages as (session, content); sessions by number."""

    spans: list[SentSpan]
    ends: set[int]
    messages: list[tuple[int, str]]


LABELS = ["Support chat", "support", "BILLING 50%", "x_y", "a'b"]
sent_spans = st.builds(
    SentSpan,
    session=st.integers(0, 4),
    kind=st.sampled_from(["llm", "tool", "agent", "custom", "chain"]),
    at_ms=st.integers(0, 50_000),
    ms=st.one_of(st.none(), st.integers(0, 5000)),
    status=st.sampled_from(["ok", "ok", "ok", "error", "timeout"]),
    cost=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    tokens=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    label=st.one_of(st.none(), st.sampled_from(LABELS)),
    source=st.sampled_from(["costkatana", "costkatana", "spans"]),
)
sessions_sent = st.builds(
    Example,
    spans=st.lists(sent_spans, min_size=1, max_size=15, unique_by=lambda span: span.at_ms),
    ends=st.sets(st.integers(0, 4)),
    messages=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["hi", "mail a@b.io", "ünï", ""])), max_size=5),
)
_minutes = iter(range(10**6))


def is_open(span: SentSpan) -> bool:
    return span.ms is None and span.source == "costkatana"


def cost_of(spans: Sequence[SentSpan]) -> tuple[float | None, int]:
    """Return (cost, number of unknown costs): those of spans of a model that say 0, which means not given."""
    calls = [span for span in spans if span.kind not in ROLLUPS and not is_open(span)]
    unknown = [span for span in calls if not span.cost and (span.kind == "llm" or span.source == "spans")]
    return None if calls and len(unknown) == len(calls) else sum(span.cost for span in calls), len(unknown)


def expected(spans: Sequence[SentSpan], ended: bool) -> dict[str, Any]:
    """Compute a session from its spans, as the local service of Cost Katana does but for unknown costs."""
    by_start = sorted(spans, key=lambda span: span.at_ms)
    closed = [span for span in spans if not is_open(span)]
    errors = sum(span.status != "ok" for span in closed)
    cost, unknown = cost_of(spans)
    calls = [span for span in closed if span.kind not in ROLLUPS]
    return {
        "label": next((span.label for span in by_start if span.label is not None), None),
        "source": by_start[0].source,
        "status": "error" if errors else "completed" if ended else "active",
        "totalSpans": len(spans),
        "openSpans": len(spans) - len(closed),
        "totalCostUSD": cost,
        "unpricedSpanCount": unknown,
        "totalInputTokens": sum(span.tokens[0] for span in calls),
        "totalOutputTokens": sum(span.tokens[1] for span in calls),
        "errorCount": errors,
        "hasErrors": errors > 0,
    }


def send(pipeline: Pipeline, example: Example, user: str, begin: datetime) -> dict[int, str]:
    """Send *example* as *user*, wait until it is stored, and return number -> id of its sessions."""
    ids = {number: f"{user}-{number}" for number in {sent.session for sent in example.spans}}
    katana, docs = [], []
    for sent in example.spans:
        at = begin + timedelta(milliseconds=sent.at_ms)
        attributes = {"label": sent.label} if sent.label is not None else {}
        if sent.source == "costkatana":
            span: dict[str, Any] = {
                "name": "x",
                "type": sent.kind,
                "sessionId": ids[sent.session],
                "startedAt": instant(at),
                "metadata": {"userId": user, **attributes},
            }
            if sent.ms is not None:
                span["endedAt"] = instant(at + timedelta(milliseconds=sent.ms))
                span["tokens"] = dict(zip(("input", "output"), sent.tokens, strict=True))
                span |= {"status": sent.status, "costUSD": sent.cost}
            katana.append(span)
        else:
            docs.append(
                {
                    "name": "x",
                    "model": "m",
                    "trace_id": fresh("t"),
                    "kind": sent.kind,
                    "started_at": instant(at),
                    "ended_at": instant(at + timedelta(milliseconds=sent.ms or 0)),
                    "status": sent.status,
                    "cost_usd": sent.cost,
                    "prompt_tokens": sent.tokens[0],
                    "comp_tokens": sent.tokens[1],
                    "attributes": {"session_id": ids[sent.session], "user_id": user, **attributes},
                }
            )
    if katana:
        ingest(pipeline, *katana)
    if docs:
        assert pipeline.post("/spans", docs).status == 202
    for number, content in example.messages:
        if number in ids:
            body = {"sessionId": ids[number], "role": "user", "content": content}
            assert pipeline.post("/api/traces/messages", body).status == 200
    messages = sum(number in ids for number, _ in example.messages)

    def is_stored() -> bool:
        shown = listed(pipeline, userId=user, limit=100)["sessions"]
        spans = sum(session["totalSpans"] for session in shown)
        closed = sum(session["totalSpans"] - session["openSpans"] for session in shown)
        stored_messages = sum(session["messageCount"] for session in shown)
        ended = sum(not is_open(sent) for sent in example.spans)
        return (spans, closed, stored_messages) == (len(example.spans), ended, messages)

    pipeline.until(is_stored, "everything stored", 20)
    for number in example.ends & ids.keys():
        assert pipeline.post(f"/api/sessions/{ids[number]}/end", {}).status == 200
    return ids


@settings(max_examples=examples(10), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(example=sessions_sent, pick=st.randoms(use_true_random=False))
def test_lists_and_sums_of_sessions_equal_those_of_the_local_service(
    pipeline: Pipeline, example: Example, pick: random.Random
) -> None:
    user = fresh("user")
    # Each example has its own minute, by which the summary is bounded.
    begin = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=next(_minutes))
    ids = send(pipeline, example, user, begin)
    oracle = {}
    for number, session in ids.items():
        spans = [sent for sent in example.spans if sent.session == number]
        start = instant(begin + timedelta(milliseconds=min(sent.at_ms for sent in spans)))
        oracle[session] = expected(spans, number in example.ends) | {"userId": user, "startedAt": start}
    newest_first = sorted(oracle, key=lambda session: oracle[session]["startedAt"], reverse=True)
    shown = listed(pipeline, userId=user, limit=100)["sessions"]
    assert [session["sessionId"] for session in shown] == newest_first
    for order, field in (("cost", "totalCostUSD"), ("spans", "totalSpans")):
        largest_first = sorted(oracle, key=lambda session: (-(oracle[session][field] or 0), session))
        unknown_last = sorted(largest_first, key=lambda session: oracle[session][field] is None)
        in_order = listed(pipeline, userId=user, limit=100, order=order)["sessions"]
        assert [session["sessionId"] for session in in_order] == unknown_last
    sizes: dict[str, Callable[[Any], float]] = {
        "duration": lambda session: session["duration"],
        "tokens": lambda session: session["totalInputTokens"] + session["totalOutputTokens"],
    }
    for order, size in sizes.items():
        in_order = listed(pipeline, userId=user, limit=100, order=order)["sessions"]
        assert [session["sessionId"] for session in in_order] == [
            session["sessionId"] for session in sorted(shown, key=lambda each: (-size(each), each["sessionId"]))
        ]
    for session in shown:
        fields = oracle[session["sessionId"]]
        assert {name: session.get(name) for name in fields} == fields
        number = int(session["sessionId"].rpartition("-")[2])
        assert (session.get("endedAt") is not None) == (number in example.ends)
        alone = details(pipeline, session["sessionId"])
        assert [message.get("redactedContent", message["content"]) for message in alone["messages"]] == [
            content.replace("a@b.io", "[EMAIL_REDACTED]") for of, content in example.messages if of == number
        ]
        assert session == alone | {"messages": []}
    for _ in range(6):
        _compare_filtered(pipeline, user, oracle, pick)
    bounds = {"from": instant(begin), "to": instant(begin + timedelta(seconds=59))}
    durations_ms = [
        (datetime.fromisoformat(session["endedAt"]) - datetime.fromisoformat(session["startedAt"])).total_seconds()
        * 1000
        for session in shown
        if session.get("endedAt")
    ]
    sums = summary(pipeline, **bounds)
    states = [fields["status"] for fields in oracle.values()]
    mean_ms = sum(durations_ms) / len(durations_ms) if durations_ms else 0
    assert sums["avgDuration"] == pytest.approx(mean_ms, abs=2)
    cost, unknown = cost_of(example.spans)
    assert {name: sums[name] for name in sums if "Duration" not in name} == {
        "totalSessions": len(oracle),
        "activeSessions": states.count("active"),
        "completedSessions": states.count("completed"),
        "errorSessions": states.count("error"),
        "totalCost": cost,
        "unpricedSpanCount": unknown,
        "partlyPricedSpanCount": 0,
        "totalTokens": {
            "input": sum(fields["totalInputTokens"] for fields in oracle.values()),
            "output": sum(fields["totalOutputTokens"] for fields in oracle.values()),
        },
        "errorRate": states.count("error") / len(states),
        "endedSessions": len(durations_ms),
    }
    assert summary(pipeline, userId=user) == sums
    for order in ("started", "cost"):
        exported = pipeline.get(f"/api/sessions/export?userId={user}&order={order}").json()
        assert exported == listed(pipeline, userId=user, limit=100, order=order)["sessions"]


def _compare_filtered(pipeline: Pipeline, user: str, oracle: Mapping[str, Any], pick: random.Random) -> None:
    """Check that a page of sessions with random filters equals that of the oracle."""
    starts = sorted(session["startedAt"] for session in oracle.values())
    costs = sorted({session["totalCostUSD"] or 0.0 for session in oracle.values()})

    def is_within(session: Mapping[str, Any], least: float, most: float) -> bool:
        return session["totalCostUSD"] is not None and least <= session["totalCostUSD"] <= most

    tests: dict[str, tuple[Any, Any]] = {
        "label": (
            label := pick.choice(["SUPPORT", "support c", "50%", "_", "\\'", "nothing"]),
            lambda session: label.lower() in (session["label"] or "").lower(),
        ),
        "status": (
            status := pick.choice(["active", "completed", "error"]),
            lambda session: session["status"] == status,
        ),
        "source": (source := pick.choice(["costkatana", "spans", "x"]), lambda session: session["source"] == source),
        "from": (since := pick.choice(starts), lambda session: session["startedAt"] >= since),
        "to": (until := pick.choice(starts), lambda session: session["startedAt"] <= until),
        "minCost": (least := pick.choice(costs), lambda session: is_within(session, least, math.inf)),
        "maxCost": (most := pick.choice(costs), lambda session: is_within(session, 0, most)),
        "minSpans": (few := pick.randint(0, 4), lambda session: session["totalSpans"] >= few),
        "maxSpans": (many := pick.randint(0, 4), lambda session: session["totalSpans"] <= many),
    }
    names = pick.sample(sorted(tests), pick.randint(1, 3))
    limit, page = pick.randint(1, 3), pick.randint(1, 3)
    ids = [session_id for session_id, session in oracle.items() if all(tests[name][1](session) for name in names)]
    ids.sort(key=lambda id: oracle[id]["startedAt"], reverse=True)
    parameters = {name: tests[name][0] for name in names}
    shown = listed(pipeline, userId=user, limit=limit, page=page, **parameters)
    assert [session["sessionId"] for session in shown["sessions"]] == ids[(page - 1) * limit : page * limit], parameters
    assert (shown["total"], shown["pages"]) == (len(ids), math.ceil(len(ids) / limit))
