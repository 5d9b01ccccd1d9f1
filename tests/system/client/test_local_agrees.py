"""``LocalTraceService`` and a pipeline that ``TraceClient`` talks to give the same answers about the same history."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import pytest

from kit.pipeline import Pipeline
from kit.sessions import DETAILS, GRAPH, LISTED, SUMMARY, check
from tokentrace import LocalTraceService, Rejected, TraceClient, TraceService

#: What differs between two services although the history is the same: random ids, and the times of the requests.
OWN = {"messageId", "createdAt", "timestamp"}
OWN_TIMES = {"startedAt", "endedAt", "start", "end", "duration", "totalDuration", "avgDuration", "averageDuration"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("local-agrees"))
    pipeline.start()
    yield pipeline
    pipeline.stop()


def without(value: Any, names: set[str]) -> Any:
    """Return *value* without the keys *names* at any depth."""
    if isinstance(value, dict):
        return {key: without(item, names) for key, item in value.items() if key not in names}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def history(seed: int, sessions: list[str]) -> list[dict[str, Any]]:
    """Return finished spans of *sessions* with times: all kinds, models with and without a price, errors, secrets."""
    dice = random.Random(seed)
    spans: list[dict[str, Any]] = []
    for number in range(60):
        session = dice.choice(sessions)
        above = [span["traceId"] for span in spans if span["sessionId"] == session]
        begin = 10 * number + dice.randrange(10)
        spans.append(
            {
                "traceId": f"{session}-{number}",
                "parentId": dice.choice(above) if above and dice.random() < 0.8 else None,
                "sessionId": session,
                "name": f"step {number % 5}",
                "type": dice.choice(["llm", "embedding", "tool", "retrieval", "http", "agent", "workflow", "custom"]),
                "status": dice.choice(["ok", "ok", "ok", "error", "timeout"]) if session != sessions[0] else "ok",
                "model": dice.choice(["gpt-4o", "gpt-4o-mini", "no-such-model"]),
                "tokens": {"input": dice.randrange(1, 5000), "output": dice.randrange(1, 5000)},
                "costUSD": dice.choice([None, dice.randrange(1, 10**6) / 10**6]),
                "tool": dice.choice([None, "search"]),
                "resourceIds": dice.choice([None, ["r1", "r2"]]),
                "metadata": {
                    "label": f"chat {number}",
                    "userId": "u0" if session != sessions[2] else f"u{number}",
                    "password": "hunter2",
                    "n": number,
                },
                "startedAt": f"2026-03-{10 + seed}T14:{begin // 60 % 60:02}:{begin % 60:02}.125Z",
                "endedAt": f"2026-03-{10 + seed}T15:{begin // 60 % 60:02}:{begin % 60:02}.375Z",
            }
        )
        if spans[-1]["status"] == "error":
            spans[-1]["error"] = {"message": f"mail a{number}@b.io", "stack": "at step"}
    return [{key: value for key, value in span.items() if value is not None} for span in spans]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_spans_give_the_same_graphs_details_lists_and_sums(pipeline: Pipeline, seed: int) -> None:
    sessions = [f"agree-{seed}-{name}" for name in "abc"]
    spans = history(seed, sessions)
    local = LocalTraceService()
    with TraceClient("any", "shop", pipeline.url) as remote:
        services: list[TraceService] = [local, remote]
        for service in services:
            for at in range(0, len(spans), 25):
                service.ingest_batch(spans[at : at + 25])
        assert remote.failures == 0

        def is_stored() -> bool:
            with contextlib.suppress(Rejected):
                stored = [int(remote.session_details(session)["totalSpans"]) for session in sessions]
                return sum(stored) == len(spans)
            return False

        pipeline.until(is_stored, "stored")
        for session in sessions:
            graphs = [service.session_graph(session) for service in services]
            check(GRAPH, graphs[0])
            assert graphs[0] == graphs[1]
            shown = [service.session_details(session) for service in services]
            check(DETAILS, shown[0])
            assert shown[0] == shown[1]
            assert "hunter2" not in str(graphs)
        label = local.session_details(sessions[0])["label"]
        day: dict[str, Any] = {"since": f"2026-03-{10 + seed}T00:00:00Z", "until": f"2026-03-{10 + seed}T23:59:59Z"}
        half: dict[str, Any] = {"since": local.session_details(sessions[1])["startedAt"], "until": day["until"]}
        for wanted in (day, half, {**day, "label": label}, {**day, "user_id": "u0"}, {**day, "limit": 2, "page": 2}):
            pages = [service.list_sessions(**wanted) for service in services]
            check(LISTED, pages[0])
            # A list of the api has no messages; these sessions have none.
            assert pages[0] == pages[1], wanted
            assert pages[0]["sessions"], wanted
        for period in (day, half):
            sums = [service.sessions_summary(**period) for service in services]
            check(SUMMARY, sums[0])
            assert sums[0] == sums[1]


def live(service: TraceService, session: str) -> dict[str, str]:
    """Play a conversation with starts, ends, messages and an end; return span id -> name."""
    root = service.start_span("root", "agent", session_id=session, metadata={"label": "live", "userId": "u-1"})
    call = service.start_span("call", "llm", parent_id=root.trace_id, metadata={"step": 1, "provider": "openai"})
    tool = service.start_span("tool", "tool", parent_id=call.trace_id, session_id=session)
    lost = service.start_span("lost", parent_id="unknown", session_id=session)
    service.record_message(session, call.trace_id, "user", "mail a@b.io, api-key: k-77 or 555-123-4567")
    service.record_message(session, call.trace_id, "assistant", "x" * 600, {"token": "t-1"})
    service.end_span(call.trace_id, model="gpt-4o", input_tokens=512, output_tokens=128, metadata={"step": 2})
    service.end_span(call.trace_id, metadata={"late": True})
    service.end_span(tool.trace_id, tool="search", resource_ids=["a"], error=ValueError("gone"))
    service.end_span(root.trace_id, cost_usd=0.00256)
    assert call.session_id == session
    return {root.trace_id: "root", call.trace_id: "call", tool.trace_id: "tool", lost.trace_id: "lost"}


def test_a_conversation_that_is_played_live_gives_the_same_answers_but_for_ids_and_times(pipeline: Pipeline) -> None:
    session = "live"
    local = LocalTraceService()
    with TraceClient("any", "shop", pipeline.url) as remote:
        shown: list[Any] = []
        services: list[TraceService] = [local, remote]
        for service in services:
            ids = live(service, session)

            def is_shown(service: TraceService = service) -> bool:
                with contextlib.suppress(Rejected):
                    details = service.session_details(session)
                    late = [node["metadata"].get("late") for node in service.session_graph(session)["nodes"]]
                    return (details["openSpans"], details["messageCount"], True in late) == (1, 2, True)
                return False

            pipeline.until(is_shown, "shown")
            before = service.session_details(session)["status"]
            service.end_session(session)
            details, graph = service.session_details(session), service.session_graph(session)
            text = repr(without([before, details, graph], OWN | OWN_TIMES))
            for span_id, name in ids.items():
                text = text.replace(span_id, f"<{name}>")
            shown.append(text)
        assert remote.failures == 0
    assert shown[0] == shown[1]
    assert "'error'" in shown[0]


def test_both_services_refuse_the_same_spans_and_ask_for_unknown_sessions_differently(
    pipeline: Pipeline,
) -> None:
    bad: list[dict[str, Any]] = [
        {"name": ""},
        {"name": "x", "type": "oracle"},
        {"name": "x", "status": "done"},
        {"name": "x", "startedAt": "today"},
        {"name": "x", "tokens": {"input": -1}},
        {"name": "x", "costUSD": -1},
        {"name": "x", "sessionId": "a b\n"},
        {"name": "x", "metadata": {"k": {"deep": "x"}}, "endedAt": "2026-03-15T15:00:00Z", "status": "pending"},
    ]
    local = LocalTraceService()
    with TraceClient("any", "shop", pipeline.url) as remote:
        for number, span in enumerate(bad, start=1):
            with pytest.raises(Rejected):
                local.ingest_batch([span])
            remote.ingest_batch([span])
            assert remote.failures == number, span
        for service in (local, remote):
            with pytest.raises(Rejected, match="Session absent not found") as caught:
                service.session_details("absent")
            assert caught.value.status == 404
        assert local.session_graph("absent") == {"nodes": [], "edges": []}
        with pytest.raises(Rejected, match="Session absent not found"):
            remote.session_graph("absent")
