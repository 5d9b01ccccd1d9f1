"""Sessions over HTTP: lifecycle, messages, spans that have not ended, parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.json_spans import fresh
from kit.pipeline import Pipeline
from kit.sessions import DETAILS, check, details, graph, ingest, instant, listed, refused, until_spans


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("sessions"))
    serving.start()
    yield serving
    assert serving.stop() == 0


class TestLifecycle:
    def test_a_session_is_active_then_completed_and_a_second_end_changes_nothing(self, pipeline: Pipeline) -> None:
        session = fresh("life")
        started = pipeline.post("/api/traces/start", {"name": "ask", "type": "agent", "sessionId": session}).json()
        assert details(pipeline, session)["status"] == "active"
        pipeline.post(f"/api/traces/{started['traceId']}/end", {"status": "ok"})
        until_spans(pipeline, session, 1)
        assert details(pipeline, session)["status"] == "active"
        first = pipeline.post(f"/api/sessions/{session}/end", b"")
        assert first.status == 200
        check(DETAILS, first.json())
        assert first.json()["status"] == "completed"
        again = pipeline.post(f"/api/sessions/{session}/end", {"error": {"message": "too late"}})
        assert again.json() == first.json() == details(pipeline, session)

    @pytest.mark.parametrize("status", ["error", "timeout"])
    def test_a_failed_span_makes_the_session_an_error_and_an_end_keeps_that(
        self, pipeline: Pipeline, status: str
    ) -> None:
        session = fresh("bad")
        root = pipeline.post("/api/traces/start", {"name": "a", "type": "agent", "sessionId": session}).json()
        child = {"name": "b", "type": "llm", "sessionId": session, "parentId": root["traceId"]}
        below = pipeline.post("/api/traces/start", child).json()
        end = {"status": status, "error": {"message": "no luck", "stack": "at line 1"}}
        pipeline.post(f"/api/traces/{below['traceId']}/end", end)
        until_spans(pipeline, session, 2, open_spans=1)
        shown = details(pipeline, session)
        assert (shown["status"], shown["hasErrors"], shown["errorCount"]) == ("error", True, 1)
        nodes = {node["name"]: node for node in graph(pipeline, session)["nodes"]}
        origin = {"trace_id": nodes["b"]["trace_id"], "span_id": below["traceId"]}
        assert shown["error"] == {"message": "no luck", "stack": "at line 1", **origin}
        ended = pipeline.post(f"/api/sessions/{session}/end", {}).json()
        assert ended["status"] == "error"
        assert ended["endedAt"] is not None
        nodes = {node["name"]: node for node in graph(pipeline, session)["nodes"]}
        assert nodes["b"]["error"] == {"message": "no luck", "stack": "at line 1"}
        assert nodes["a"]["status"] == "pending"

    def test_an_end_with_an_error_makes_the_session_an_error(self, pipeline: Pipeline) -> None:
        session = fresh("own")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        ended = pipeline.post(f"/api/sessions/{session}/end", {"error": "gave up"}).json()
        assert (ended["status"], ended["error"], ended["hasErrors"]) == ("error", {"message": "gave up"}, True)
        assert ended["errorCount"] == 0

    def test_concurrent_ends_count_as_one(self, pipeline: Pipeline) -> None:
        session = fresh("race")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: pipeline.post(f"/api/sessions/{session}/end", {}), range(8)))
        assert [answer.status for answer in answers] == [200] * 8
        assert details(pipeline, session)["status"] == "completed"
        ended = details(pipeline, session)["endedAt"]
        assert ended == min(answer.json()["endedAt"] for answer in answers)

    def test_an_unknown_session_is_a_404_in_both_error_fields(self, pipeline: Pipeline) -> None:
        for path in ("/graph", "/details"):
            assert refused(pipeline.get(f"/api/sessions/unknown{path}"), 404) == "Session unknown not found"
        assert refused(pipeline.post("/api/sessions/unknown/end", {}), 404) == "Session unknown not found"

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"error": 5}', b'{"error": {"message": 5}}', b"\xff", b'"x"'])
    def test_an_invalid_end_is_refused_and_ends_nothing(self, pipeline: Pipeline, body: bytes) -> None:
        session = fresh("whole")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        assert refused(pipeline.post(f"/api/sessions/{session}/end", body), 400)
        assert details(pipeline, session)["status"] == "active"

    @pytest.mark.parametrize("session", ["a/b", "ünïcode no", "a/graph", "100%", "summary"])
    def test_an_id_may_contain_unusual_ascii_characters_and_no_others(self, pipeline: Pipeline, session: str) -> None:
        session = f"{fresh('odd')}{session}" if session != "summary" else session
        answer = pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        if not session.isascii():
            assert answer.status == 400
            return
        assert details(pipeline, session)["sessionId"] == session
        assert [node["sessionId"] for node in graph(pipeline, session)["nodes"]] == [session]


class TestMessages:
    def test_messages_are_listed_by_time_and_show_redacted_content_only(self, pipeline: Pipeline) -> None:
        session = fresh("talk")
        span = pipeline.post("/api/traces/start", {"name": "a", "sessionId": session}).json()["traceId"]
        messages = [
            ("user", "second, mail me a@b.io", "2026-01-01T00:00:02.000Z"),
            ("system", "first", "2026-01-01T00:00:01.000Z"),
            ("tool", "third" * 200, "2026-01-01T00:00:03.000Z"),
        ]
        for role, content, at in messages:
            body = {"sessionId": session, "traceId": span, "role": role, "content": content, "createdAt": at}
            assert pipeline.post("/api/traces/messages", body).status == 200
        pipeline.until(lambda: len(details(pipeline, session)["messages"]) == 3, "all stored", 20)
        first, second, third = details(pipeline, session)["messages"]
        assert [message["role"] for message in (first, second, third)] == ["system", "user", "tool"]
        assert (first["isRedacted"], "redactedContent" in first) == (False, False)
        assert second["isRedacted"] is True
        assert second["redactedContent"] == "second, mail me [EMAIL_REDACTED]"
        assert "a@b.io" not in json.dumps(second)
        assert (third["content"], third["contentPreview"]) == ("third" * 200, "third" * 100)
        assert (first["fullContentStored"], third["fullContentStored"]) == (True, False)
        assert listed(pipeline, limit=100)["sessions"]
        ended = pipeline.post(f"/api/sessions/{session}/end", {}).json()
        assert [message["role"] for message in ended["messages"]] == ["system", "user", "tool"]


class TestDocsSpans:
    def test_documented_spans_form_sessions_by_their_attribute(self, pipeline: Pipeline) -> None:
        session, user = fresh("docs"), fresh("user")
        attributes = {"session_id": session, "user_id": user, "label": "From Docs"}
        spans = [
            {
                "trace_id": fresh("t"),
                "span_id": "1",
                "name": f"call {number}",
                "model": "gpt-4o",
                "prompt_tokens": 10,
                "comp_tokens": 2,
                "cost_usd": 0.25,
                "started_at": f"2026-03-15T14:00:0{number}.000Z",
                "ended_at": f"2026-03-15T14:00:0{number}.500Z",
                "attributes": attributes,
            }
            for number in range(3)
        ]
        assert pipeline.post("/spans", spans).status == 202
        until_spans(pipeline, session, 3)
        shown = details(pipeline, session)
        assert (shown["userId"], shown["label"], shown["source"]) == (user, "From Docs", "spans")
        assert (shown["totalCostUSD"], shown["totalInputTokens"], shown["totalOutputTokens"]) == (0.75, 30, 6)
        assert (shown["startedAt"], shown["duration"]) == ("2026-03-15T14:00:00.000Z", 2500)
        assert [session["sessionId"] for session in listed(pipeline, userId=user)["sessions"]] == [session]
        drawn = graph(pipeline, session)
        assert ([node["depth"] for node in drawn["nodes"]], drawn["edges"]) == ([0, 0, 0], [])

    def test_depths_are_right_if_span_ids_repeat_in_other_traces(self, pipeline: Pipeline) -> None:
        session, first, second = fresh("mix"), fresh("t"), fresh("t")

        def span(trace: str, span_id: str, parent: str | None, at: int) -> dict[str, Any]:
            return {
                "trace_id": trace,
                "span_id": span_id,
                "parent_span_id": parent,
                "name": f"{trace}/{span_id}",
                "kind": "tool",
                "session_id": session,
                "started_at": f"2026-03-15T14:00:0{at}.000Z",
                "ended_at": f"2026-03-15T14:00:0{at}.500Z",
            }

        spans = [
            span(first, "1", None, 0),
            span(first, "2", "1", 1),
            span(first, "3", "2", 2),
            span(second, "3", None, 3),
            span(second, "2", "3", 4),
            span(second, "1", "2", 5),
        ]
        assert pipeline.post("/spans", spans).status == 202
        until_spans(pipeline, session, 6)
        assert [node["depth"] for node in graph(pipeline, session)["nodes"]] == [0, 1, 2, 0, 1, 2]

    def test_a_parent_in_another_trace_of_the_session_counts_for_the_depth(self, pipeline: Pipeline) -> None:
        session, trace, parent = fresh("across"), fresh("t"), fresh("parent")
        first = {"trace_id": trace, "span_id": parent, "name": "a", "kind": "tool", "session_id": session}
        second = {**first, "trace_id": fresh("t"), "span_id": "c", "parent_span_id": parent, "name": "b"}
        assert pipeline.post("/spans", [first, second]).status == 202
        until_spans(pipeline, session, 2)
        assert {node["name"]: node["depth"] for node in graph(pipeline, session)["nodes"]} == {"a": 0, "b": 1}

    def test_an_edge_leads_to_a_parent_that_is_not_stored(self, pipeline: Pipeline) -> None:
        session = fresh("orphan")
        spans = [
            {"trace_id": fresh("t"), "span_id": "c", "parent_span_id": "gone", "kind": "tool", "session_id": session}
        ]
        assert pipeline.post("/spans", spans).status == 202
        drawn = graph(pipeline, session)
        assert drawn["edges"] == [{"from": "gone", "to": "c"}]
        assert drawn["nodes"][0]["depth"] == 0


class TestPending:
    def test_a_span_that_has_not_ended_is_pending_for_a_day_and_then_abandoned(self, pipeline: Pipeline) -> None:
        session, now = fresh("open"), datetime.now(UTC)
        young, old = fresh("young"), fresh("old")
        for span_id, hours in ((young, 23), (old, 25)):
            at = instant(now - timedelta(hours=hours))
            ingest(
                pipeline,
                {"name": span_id, "traceId": span_id, "sessionId": session, "startedAt": at, "metadata": {"n": 1}},
            )
        until_spans(pipeline, session, 2, open_spans=2)
        nodes = graph(pipeline, session)["nodes"]
        assert [(node["id"], node["status"]) for node in nodes] == [(old, "abandoned"), (young, "pending")]
        assert {(node["endedAt"], node["duration"], node["costUSD"]) for node in nodes} == {(None, None, None)}
        for span_id, status in ((young, "pending"), (old, "abandoned")):
            docs = pipeline.get(f"/traces/{span_id}").json()
            (span,) = docs["spans"]
            assert (span["status"], span["ended_at"], span["attributes"]) == (status, None, {"n": 1})
            assert (docs["span_count"], docs["ended_at"], docs["total_cost_usd"]) == (0, None, 0)
            (shown,) = pipeline.get(f"/traces/{span_id}?format=mist").json()["spans"]
            assert (shown["operation"], shown["end_ns"], shown["status"]) == (span_id, 0, "")
            (row,) = pipeline.get(f"/traces/{span_id}/timeline").json()["rows"]
            assert (row["name"], row["status"], row["duration_ms"]) == (span_id, status, None)
        # An abandoned span can still be ended.
        assert pipeline.post(f"/api/traces/{old}/end", {"status": "ok", "metadata": {"m": 2}}).status == 200
        until_spans(pipeline, session, 2, open_spans=1)
        ended = pipeline.get(f"/traces/{old}").json()["spans"]
        assert [(span["status"], span["attributes"]) for span in ended] == [("ok", {"n": 1, "m": 2})]

    def test_a_trace_shows_open_and_ended_spans_together(self, pipeline: Pipeline) -> None:
        session, root = fresh("both"), fresh("root")
        at = datetime(2026, 3, 15, 14, tzinfo=UTC)
        done = {"startedAt": instant(at + timedelta(seconds=1)), "endedAt": instant(at + timedelta(seconds=2))}
        ingest(
            pipeline,
            {"name": "root", "traceId": root, "sessionId": session, "startedAt": instant(at)},
            {"name": "child", "traceId": fresh("child"), "parentId": root, "costUSD": 0.5, **done},
        )
        until_spans(pipeline, session, 2, open_spans=1)
        trace = pipeline.get(f"/traces/{root}").json()
        assert {span["name"]: (span["depth"], span["status"]) for span in trace["spans"]} == {
            "root": (0, "abandoned"),
            "child": (1, "ok"),
        }
        assert (trace["name"], trace["span_count"], trace["total_cost_usd"]) == ("root", 1, 0.5)
        assert (trace["started_at"], trace["ended_at"]) == (instant(at), done["endedAt"])
        rows = pipeline.get(f"/traces/{root}/timeline").json()["rows"]
        assert [(row["name"], row["start_ms"], row["duration_ms"]) for row in rows] == [
            ("root", 0, None),
            ("child", 1000, 1000),
        ]


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "named"),
        [
            ("status=done", "status"),
            ("page=-1", "page"),
            ("page=x", "page"),
            ("limit=1.5", "limit"),
            ("minCost=-1", "minCost"),
            ("maxCost=nan", "maxCost"),
            ("maxCost=1e400", "maxCost"),
            ("minSpans=x", "minSpans"),
            ("from=yesterday", "from"),
            ("to=2026-02-30T00:00:00Z", "to"),
            ("user_id=x", "user_id: unknown parameter; allowed are from, label, limit"),
            ("page=1&page=2", "page: given twice"),
        ],
    )
    def test_an_invalid_parameter_is_refused_by_name(self, pipeline: Pipeline, query: str, named: str) -> None:
        assert refused(pipeline.get(f"/api/sessions?{query}"), 400).startswith(named)

    @pytest.mark.parametrize("text", ["ΟΔΟΣ", "οδοσ", "straße", "İSTANBUL", "a%", "_b"])
    def test_a_label_is_found_by_a_part_of_it_in_any_case_and_script(self, pipeline: Pipeline, text: str) -> None:
        user, label = fresh("label"), "ΟΔΟΣ Straße İSTANBUL a%c _b"
        ingest(pipeline, {"name": "x", "sessionId": fresh("s"), "metadata": {"userId": user, "label": label}})
        pipeline.until(lambda: listed(pipeline, userId=user)["total"] == 1, "stored", 20)
        assert listed(pipeline, userId=user, label=text)["total"] == 1
        assert listed(pipeline, userId=user, label=f"{text}?")["total"] == 0

    @pytest.mark.parametrize("page", [10**6, 10**17, 10**18 - 1])
    def test_a_page_behind_the_last_one_is_empty(self, pipeline: Pipeline, page: int) -> None:
        session = fresh("page")
        ingest(pipeline, {"name": "x", "sessionId": session, "metadata": {"userId": session}})
        until_spans(pipeline, session, 1, open_spans=1)
        shown = listed(pipeline, userId=session, page=page, limit=100)
        assert (shown["sessions"], shown["total"], shown["page"], shown["pages"]) == ([], 1, page, 1)

    def test_the_limit_is_20_by_default_and_100_at_most(self, pipeline: Pipeline) -> None:
        user = fresh("many")
        ingest(pipeline, *[{"name": "x", "sessionId": fresh("s"), "userId": user} for _ in range(105)])
        pipeline.until(lambda: listed(pipeline, userId=user)["total"] == 105, "all stored", 20)
        for parameters, limit, pages in (({}, 20, 6), ({"limit": 1000}, 100, 2), ({"limit": 7}, 7, 15)):
            shown = listed(pipeline, userId=user, **parameters)
            assert (len(shown["sessions"]), shown["limit"], shown["pages"]) == (limit, limit, pages)
            assert shown["totalPages"] == pages
        assert len(listed(pipeline, userId=user, page=6)["sessions"]) == 5

    @pytest.mark.parametrize("path", ["/graph", "/details", "/end"])
    def test_other_routes_take_no_parameters(self, pipeline: Pipeline, path: str) -> None:
        url = f"/api/sessions/x{path}?a=1"
        assert "unknown parameter" in refused(pipeline.post(url, {}) if path == "/end" else pipeline.get(url), 400)

    def test_the_summary_takes_the_filters_of_the_list_and_no_page(self, pipeline: Pipeline) -> None:
        assert pipeline.get("/api/sessions/summary?userId=absent").json()["totalSessions"] == 0
        assert refused(pipeline.get("/api/sessions/summary?page=2"), 400).startswith("page: unknown parameter")
