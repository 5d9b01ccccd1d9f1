"""``LocalTraceService`` in memory: the rules of sessions, the answers, and what is removed before it is kept."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace

from kit.sessions import DETAILS, GRAPH, LISTED, SUMMARY, check
from tokentrace import ConfigError, LocalTraceService, Rejected, StartedSpan, Tracer, TraceService, Transport

ENDED = {"status": "ok", "startedAt": "2026-03-15T14:00:00Z", "endedAt": "2026-03-15T14:00:01.500Z"}


def conversation(service: TraceService) -> dict[str, StartedSpan]:
    """Return three spans by name: a root, a call below it, and a tool below the call that has not ended."""
    root = service.start_span("root", "agent", metadata={"label": "Support", "userId": "u-7"})
    call = service.start_span("call", "llm", parent_id=root.trace_id)
    tool = service.start_span("tool", "tool", parent_id=call.trace_id)
    service.end_span(call.trace_id, model="gpt-4o", input_tokens=512, output_tokens=128, cost_usd=0.25)
    service.end_span(root.trace_id, input_tokens=512, output_tokens=128, cost_usd=0.25)
    return {"root": root, "call": call, "tool": tool}


class TestRules:
    def test_a_child_joins_the_session_of_its_parent_and_depths_follow_the_parents(self) -> None:
        service = LocalTraceService()
        spans = conversation(service)
        lost = service.start_span("lost", parent_id="unknown", session_id=spans["root"].session_id)
        assert len({one.session_id for one in [*spans.values(), lost]}) == 1
        graph = service.session_graph(lost.session_id)
        check(GRAPH, graph)
        assert [(node["name"], node["depth"], node["status"]) for node in graph["nodes"]] == [
            ("root", 0, "ok"),
            ("call", 1, "ok"),
            ("tool", 2, "pending"),
            ("lost", 0, "pending"),
        ]
        assert {(edge["from"], edge["to"]) for edge in graph["edges"]} == {
            (spans["root"].trace_id, spans["call"].trace_id),
            (spans["call"].trace_id, spans["tool"].trace_id),
            ("unknown", lost.trace_id),
        }

    def test_totals_count_every_span_and_the_money_of_rollups_once(self) -> None:
        service = LocalTraceService()
        details = service.session_details(conversation(service)["root"].session_id)
        check(DETAILS, details)
        assert (details["totalSpans"], details["openSpans"], details["totalCostUSD"]) == (3, 1, 0.25)
        assert (details["totalInputTokens"], details["totalOutputTokens"]) == (512, 128)
        assert (details["label"], details["userId"], details["status"]) == ("Support", "u-7", "active")

    @pytest.mark.parametrize(
        ("status", "error", "end_error", "shown"),
        [
            ("ok", None, None, "completed"),
            ("error", None, None, "error"),
            ("timeout", None, None, "error"),
            (None, "gone", None, "error"),
            (None, None, "gave up", "error"),
        ],
    )
    def test_a_session_is_an_error_if_any_span_or_its_end_is(
        self, status: Any, error: str | None, end_error: str | None, shown: str
    ) -> None:
        service = LocalTraceService()
        root = service.start_span("root")
        child = service.start_span("child", parent_id=root.trace_id)
        service.end_span(child.trace_id, status, error=error)
        service.end_span(root.trace_id)
        service.end_session(root.session_id, end_error)
        service.end_session(root.session_id, "a second end changes nothing")
        details = service.session_details(root.session_id)
        assert details["status"] == shown
        assert "endedAt" in details
        told = details.get("error")
        assert (told and told["message"]) == (end_error or error)

    def test_a_second_end_adds_metadata_and_counts_nothing(self) -> None:
        service = LocalTraceService()
        root = service.start_span("root", metadata={"a": 1, "b": 1})
        service.end_span(root.trace_id, input_tokens=5, cost_usd=1.0, metadata={"b": 2})
        service.end_span(root.trace_id, "error", input_tokens=7, cost_usd=2.0, metadata={"c": 3})
        (node,) = service.session_graph(root.session_id)["nodes"]
        assert (node["status"], node["tokens"]["input"], node["costUSD"]) == ("ok", 5, 1.0)
        assert node["metadata"] == {"a": 1, "b": 2, "c": 3}

    def test_the_session_that_was_inserted_first_goes_with_its_spans_and_messages(self) -> None:
        service = LocalTraceService(max_sessions=2)
        first, second = service.start_span("first"), service.start_span("second")
        service.record_message(first.session_id, first.trace_id, "user", "hi")
        service.start_span("more", session_id=first.session_id)
        third = service.start_span("third")
        assert {one["sessionId"] for one in service.list_sessions()["sessions"]} == {
            second.session_id,
            third.session_id,
        }
        for call in (
            lambda: service.session_details(first.session_id),
            lambda: service.end_span(first.trace_id),
            lambda: service.record_message(first.session_id, "", "user", "hi"),
            lambda: service.end_session(first.session_id),
        ):
            with pytest.raises(Rejected, match=r"^(Session|Trace) \S+ not found$") as caught:
                call()
            assert caught.value.status == 404
        assert service.session_graph(first.session_id) == {"nodes": [], "edges": []}

    def test_a_batch_with_one_bad_span_stores_nothing(self) -> None:
        service = LocalTraceService()
        with pytest.raises(Rejected, match=r"^span 1: endedAt: before startedAt$"):
            service.ingest_batch([{"name": "a"}, {"name": "b", **ENDED, "endedAt": "2026-03-15T13:00:00Z"}])
        assert service.list_sessions()["total"] == 0

    def test_a_batch_ends_what_was_started_and_keeps_the_times_that_it_names(self) -> None:
        service = LocalTraceService()
        open_span = service.start_span("open")
        service.ingest_batch(
            [
                {"traceId": open_span.trace_id, "name": "open", "status": "ok", "tokens": {"input": 3, "output": 4}},
                {"traceId": "own", "name": "own", "sessionId": "s-1", **ENDED},
                {"name": "below", "parentId": "own", **ENDED, "status": "error"},
            ]
        )
        assert service.session_details(open_span.session_id)["totalInputTokens"] == 3
        details = service.session_details("s-1")
        assert (details["startedAt"], details["duration"], details["errorCount"]) == (
            "2026-03-15T14:00:00.000Z",
            1500,
            1,
        )

    def test_a_span_without_a_cost_is_priced_and_an_unknown_model_stays_unknown(self) -> None:
        service = LocalTraceService()
        root = service.start_span("root")
        for model in ("gpt-4o", "no-such-model"):
            call = service.start_span(model, "llm", session_id=root.session_id, metadata={"provider": "openai"})
            service.end_span(call.trace_id, model=model, input_tokens=512, output_tokens=128)
        nodes = {node["name"]: node["costUSD"] for node in service.session_graph(root.session_id)["nodes"]}
        assert nodes == {"root": None, "gpt-4o": 0.00256, "no-such-model": None}
        details = service.session_details(root.session_id)
        assert (details["totalCostUSD"], details["unpricedSpanCount"]) == (0.00256, 1)

    def test_parents_that_form_a_circle_are_shown(self) -> None:
        service = LocalTraceService()
        service.ingest_batch([{"traceId": "a", "parentId": "b", "sessionId": "s", "name": "a", **ENDED}])
        service.ingest_batch([{"traceId": "b", "parentId": "a", "sessionId": "s", "name": "b", **ENDED}])
        assert [node["depth"] for node in service.session_graph("s")["nodes"]] == [1, 1]


class TestQueries:
    def test_sessions_are_found_by_user_label_and_time_newest_first_in_pages(self) -> None:
        service = LocalTraceService()
        service.ingest_batch(
            [
                {
                    "name": f"s{number}",
                    "sessionId": f"s{number}",
                    "status": "error" if number == 3 else "ok",
                    "startedAt": f"2026-03-15T14:0{number}:00Z",
                    "endedAt": f"2026-03-15T14:0{number}:01Z",
                    "metadata": {"label": f"Chat {number}", "userId": f"u{number % 2}"},
                }
                for number in range(5)
            ]
        )
        service.record_message("s4", "", "user", "hi")

        def found(**wanted: Any) -> list[str]:
            page = service.list_sessions(**wanted)
            check(LISTED, page)
            return [one["sessionId"] for one in page["sessions"]]

        assert found() == ["s4", "s3", "s2", "s1", "s0"]
        assert found(user_id="u1") == ["s3", "s1"]
        assert found(label="Chat 2") == ["s2"]
        assert found(label="hat") == ["s4", "s3", "s2", "s1", "s0"]
        assert found(label="chat") == []
        assert found(since="2026-03-15T14:01:00Z", until="2026-03-15T14:03:00Z") == ["s3", "s2", "s1"]
        assert found(limit=2, page=3) == ["s0"]
        page = service.list_sessions(limit=2, page=2)
        assert (page["total"], page["page"], page["pages"], page["limit"]) == (5, 2, 3, 2)
        assert [len(one["messages"]) for one in service.list_sessions(limit=2)["sessions"]] == [1, 0]
        with pytest.raises(Rejected, match=r"^instant: 'today' is not RFC 3339"):
            service.list_sessions(since="today")

    def test_the_summary_averages_over_sessions_that_were_ended(self) -> None:
        service = LocalTraceService()
        empty = service.sessions_summary()
        check(SUMMARY, empty)
        assert (empty["totalSessions"], empty["errorRate"], empty["avgDuration"], empty["totalCost"]) == (0, 0, 0, 0)
        for name in ("active", "completed", "failed"):
            started = service.start_span(name)
            service.end_span(started.trace_id, error="gone" if name == "failed" else None, cost_usd=0.5)
            if name != "active":
                service.end_session(started.session_id)
        summary = service.sessions_summary()
        check(SUMMARY, summary)
        assert [summary[f"{status}Sessions"] for status in ("active", "completed", "error")] == [1, 1, 1]
        assert (summary["totalCost"], summary["errorRate"]) == (1.5, 1 / 3)


class TestRedaction:
    def test_secrets_are_removed_before_anything_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRACE_REDACT_KEYS", "order, staff_no")
        service = LocalTraceService()
        root = service.start_span("mail a@b.io", metadata={"deep": {"password": "hunter2"}, "order": "o-55"})
        service.end_span(root.trace_id, error="call 555-123-4567", metadata={"apiKey": "k-123"})
        service.record_message(root.session_id, root.trace_id, "user", "mail me a@b.io; token = t-9, staff_no: 77")
        service.record_message(root.session_id, root.trace_id, "assistant", "done", {"ssn": "x"})
        first, second = service.session_details(root.session_id)["messages"]
        assert first["content"] == "mail me [EMAIL_REDACTED]; token = [REDACTED], staff_no: [REDACTED]"
        assert (first["isRedacted"], first["redactedContent"]) == (True, first["content"])
        assert (second["isRedacted"], "redactedContent" in second, second["metadata"]) == (
            False,
            False,
            {"ssn": "[REDACTED]"},
        )
        everything = json.dumps([service.list_sessions(), service.session_graph(root.session_id)])
        for secret in ("hunter2", "o-55", "a@b.io", "555-123", "k-123", "t-9", "77,"):
            assert secret not in everything, secret

    @pytest.mark.parametrize(
        ("keys", "text"),
        [
            (["order"], "order: [REDACTED] password: b a@b.io 555-123-4567"),
            (["email"], "order: a password: b [EMAIL_REDACTED] 555-123-4567"),
            (["PHONE"], "order: a password: b a@b.io [PHONE_REDACTED]"),
            ([], "order: a password: b a@b.io 555-123-4567"),
            (None, "order: a password: [REDACTED] [EMAIL_REDACTED] [PHONE_REDACTED]"),
        ],
    )
    def test_a_list_of_keys_replaces_the_usual_ones(
        self, keys: list[str] | None, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TRACE_REDACT_KEYS", raising=False)
        service = LocalTraceService(redact_keys=keys)
        root = service.start_span("x")
        service.record_message(root.session_id, root.trace_id, "user", "order: a password: b a@b.io 555-123-4567")
        assert service.session_details(root.session_id)["messages"][0]["content"] == text


class TestTransport:
    def test_a_tracer_keeps_its_spans_in_the_sessions_beside_those_of_the_service(self) -> None:
        service = LocalTraceService()
        assert isinstance(service, Transport)
        tracer = Tracer(service)
        with tracer.trace("answer", session_id="s-1", user_id="u-7") as trace, trace.span("root", kind="http") as root:
            own = service.start_span("own", session_id="s-1", parent_id=root.span_id)
            service.end_span(own.trace_id)
            root.span("call", model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128).end()
        graph = service.session_graph("s-1")
        check(GRAPH, graph)
        assert {node["name"]: (node["depth"], node["status"]) for node in graph["nodes"]} == {
            "root": (0, "ok"),
            "own": (1, "ok"),
            "call": (1, "ok"),
        }
        details = service.session_details("s-1")
        assert (details["totalCostUSD"], details["userId"], details["totalSpans"]) == (0.00256, "u-7", 3)
        assert tracer.flush()
        assert (tracer.stats().acked, tracer.stats().queue_depth) == (2, 0)
        tracer.close()

    def test_a_span_without_a_session_has_one_of_its_trace_and_the_first_telling_counts(self) -> None:
        service = LocalTraceService()
        tracer = Tracer(service)
        with tracer.trace("answer") as trace:
            span = trace.record(model="gpt-4o", provider="openai", prompt_tokens=512, completion_tokens=128)
        service.send([replace(span, prompt_tokens=9), replace(span, span_id="bad", started_ns=-1)])
        details = service.session_details(trace.id)
        assert (details["totalSpans"], details["totalInputTokens"]) == (1, 512)
        assert (service.stats().acked, service.stats().rejected) == (2, 1)

    def test_secrets_of_spans_are_removed(self) -> None:
        service = LocalTraceService()
        with Tracer(service).trace("answer", session_id="s") as trace:
            trace.record_error("mail a@b.io", attributes={"password": "hunter2"})
        text = json.dumps(service.session_graph("s"))
        assert "hunter2" not in text
        assert "a@b.io" not in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"storage_mode": "cloud"}, "^storage_mode: 'cloud' is none of memory, file$"),
        ({"max_sessions": 0}, "^max_sessions: 0 is not at least 1$"),
        ({"auto_save_interval_ms": 0}, "^auto_save_interval_ms: 0 is not at least 1$"),
        ({"storage_mode": "file", "storage_dir": "/dev/null/x"}, "^storage_dir: "),
    ],
)
def test_an_argument_that_cannot_be_used_is_an_error_at_once(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LocalTraceService(**arguments)


def test_a_wrong_word_is_an_error_that_names_the_words() -> None:
    service = LocalTraceService()
    wrong: Any = "oracle"
    for call in (
        lambda: service.start_span("x", wrong),
        lambda: service.end_span("x", wrong),
        lambda: service.record_message("s", "x", wrong, "hi"),
    ):
        with pytest.raises(Rejected, match=r"^(type|status|role): 'oracle' is none of "):
            call()


def test_threads_may_share_a_service() -> None:
    service = LocalTraceService()
    root = service.start_span("root")

    def work(number: int) -> None:
        span = service.start_span(f"n{number}", parent_id=root.trace_id)
        service.record_message(root.session_id, span.trace_id, "user", str(number))
        service.end_span(span.trace_id, input_tokens=number, output_tokens=1)
        service.session_details(root.session_id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(100)))
    details = service.session_details(root.session_id)
    assert (details["totalSpans"], details["totalInputTokens"], details["messageCount"]) == (101, 4950, 100)
