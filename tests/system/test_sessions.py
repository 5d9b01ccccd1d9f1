"""Sessions over HTTP: the shapes of SPEC B.3, what Cost Katana's local service would answer, 5,000 spans at once."""

from __future__ import annotations

import http.client
import json
import math
import random
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.fleet import Fleet
from kit.pipeline import Answer, Pipeline

NUMBER = (int, float)
KINDS = {"llm", "embedding", "tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain"}
ROLLUPS = {"http", "agent", "workflow", "chain"}

# The TypeScript interfaces of SPEC A.4-A.7 and B.3. "?" = optional; there null says the same as nothing.
TOKENS = {"input": NUMBER, "output": NUMBER}
ERROR = {"message": str, "stack?": str}
NODE = {
    "id": str,
    "parentId?": str,
    "sessionId": str,
    "name": str,
    "type": KINDS,
    "status": {"pending", "ok", "error", "timeout", "abandoned"},
    "error?": ERROR,
    "model?": str,
    "tokens?": TOKENS,
    "costUSD?": NUMBER,
    "tool?": str,
    "resourceIds?": [str],
    "metadata?": dict,
    "startedAt": datetime,
    "endedAt?": datetime,
    "duration?": NUMBER,
    "depth": NUMBER,
    "label": str,
    "start": datetime,
    "end?": datetime,
    "aiModel?": str,
}
GRAPH = {"nodes": [NODE], "edges": [{"from": str, "to": str}]}
MESSAGE = {
    "sessionId": str,
    "traceId": str,
    "role": {"user", "assistant", "system", "tool"},
    "content": str,
    "redactedContent?": str,
    "isRedacted": bool,
    "metadata?": dict,
    "createdAt": datetime,
    "messageId": str,
    "contentPreview": str,
    "fullContentStored": bool,
    "timestamp": datetime,
}
DETAILS = {
    "sessionId": str,
    "userId?": str,
    "label?": str,
    "status": {"active", "completed", "error"},
    "totalSpans": NUMBER,
    "totalCostUSD": NUMBER,
    "totalInputTokens": NUMBER,
    "totalOutputTokens": NUMBER,
    "startedAt": datetime,
    "endedAt?": datetime,
    "messages": [MESSAGE],
    "duration?": NUMBER,
    "source": str,
    "error?": ERROR,
    "hasErrors": bool,
    "errorCount": NUMBER,
    "summary": {"totalSpans": NUMBER, "totalDuration": NUMBER, "totalCost": NUMBER, "totalTokens": TOKENS},
    "openSpans": NUMBER,
}
LISTED = {
    "sessions": [DETAILS],
    "total": NUMBER,
    "page": NUMBER,
    "limit": NUMBER,
    "pages": NUMBER,
    "totalPages": NUMBER,
}
SUMMARY = {
    "totalSessions": NUMBER,
    "activeSessions": NUMBER,
    "completedSessions": NUMBER,
    "errorSessions": NUMBER,
    "totalCost": NUMBER,
    "totalTokens": TOKENS,
    "avgDuration": NUMBER,
    "averageDuration": NUMBER,
    "errorRate": NUMBER,
}


def check(shape: Any, value: Any, where: str = "answer") -> None:
    """*value* is what *shape* says, and has nothing that *shape* does not know."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        known = {key.removesuffix("?") for key in shape}
        assert value.keys() <= known, f"{where}: {value.keys() - known}"
        for key, part in shape.items():
            name = key.removesuffix("?")
            if key.endswith("?") and value.get(name) is None:
                continue
            assert name in value, f"{where}.{name} is missing"
            check(part, value[name], f"{where}.{name}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check(shape[0], item, f"{where}[{index}]")
    elif isinstance(shape, set):
        assert value in shape, f"{where}: {value!r}"
    elif shape is datetime:
        assert isinstance(value, str), where
        assert value.endswith("Z"), where
        datetime.fromisoformat(value)
    else:
        assert isinstance(value, shape), f"{where}: {value!r}"
        assert shape is bool or not isinstance(value, bool), where


def instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("sessions"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def ingest(pipeline: Pipeline, *spans: Mapping[str, Any]) -> None:
    answer = pipeline.post("/api/traces/ingest", {"spans": list(spans)})
    assert answer.status < 300, answer.body


def details(pipeline: Pipeline, session: str) -> Any:
    answer = pipeline.get(f"/api/sessions/{quote(session, safe='')}/details")
    assert answer.status == 200, answer.body
    check(DETAILS, answer.json())
    return answer.json()


def graph(pipeline: Pipeline, session: str) -> Any:
    answer = pipeline.get(f"/api/sessions/{quote(session, safe='')}/graph")
    assert answer.status == 200, answer.body
    check(GRAPH, answer.json())
    return answer.json()


def listed(pipeline: Pipeline, **given: Any) -> Any:
    answer = pipeline.get(f"/api/sessions?{urlencode(given)}")
    assert answer.status == 200, answer.body
    check(LISTED, answer.json())
    return answer.json()


def summary(pipeline: Pipeline, **given: Any) -> Any:
    answer = pipeline.get(f"/api/sessions/summary?{urlencode(given)}")
    assert answer.status == 200, answer.body
    check(SUMMARY, answer.json())
    return answer.json()


def refused(answer: Answer, status: int) -> str:
    assert answer.status == status, (answer.status, answer.body)
    body = answer.json()
    assert body.keys() == {"error", "message"}
    assert body["error"] == body["message"]
    return str(body["message"])


def until_spans(pipeline: Pipeline, session: str, spans: int, *, open_spans: int = 0) -> None:
    def there() -> bool:
        shown = pipeline.get(f"/api/sessions/{quote(session, safe='')}/details").json()
        return (shown["totalSpans"], shown["openSpans"]) == (spans, open_spans)

    pipeline.until(there, f"{spans} spans of {session}", 20)


class TestLife:
    def test_a_session_is_active_then_completed_and_ending_it_twice_changes_nothing(self, pipeline: Pipeline) -> None:
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
    def test_any_span_that_failed_makes_it_an_error_and_its_end_keeps_that(
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
        assert shown["error"] == {"message": "no luck"}
        ended = pipeline.post(f"/api/sessions/{session}/end", {}).json()
        assert ended["status"] == "error"
        assert ended["endedAt"] is not None
        nodes = {node["name"]: node for node in graph(pipeline, session)["nodes"]}
        assert nodes["b"]["error"] == {"message": "no luck", "stack": "at line 1"}
        assert nodes["a"]["status"] == "pending"

    def test_it_can_be_ended_with_an_error_of_its_own(self, pipeline: Pipeline) -> None:
        session = fresh("own")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        ended = pipeline.post(f"/api/sessions/{session}/end", {"error": "gave up"}).json()
        assert (ended["status"], ended["error"], ended["hasErrors"]) == ("error", {"message": "gave up"}, True)
        assert ended["errorCount"] == 0

    def test_many_ends_at_once_are_one(self, pipeline: Pipeline) -> None:
        session = fresh("race")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: pipeline.post(f"/api/sessions/{session}/end", {}), range(8)))
        assert [answer.status for answer in answers] == [200] * 8
        assert details(pipeline, session)["status"] == "completed"
        ended = details(pipeline, session)["endedAt"]
        assert ended == min(answer.json()["endedAt"] for answer in answers)

    def test_who_is_not_known_is_told_so_in_both_words(self, pipeline: Pipeline) -> None:
        for path in ("/graph", "/details"):
            assert refused(pipeline.get(f"/api/sessions/of-nobody{path}"), 404) == "Session of-nobody not found"
        assert refused(pipeline.post("/api/sessions/of-nobody/end", {}), 404) == "Session of-nobody not found"

    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"error": 5}', b'{"error": {"message": 5}}', b"\xff", b'"x"'])
    def test_an_end_that_makes_no_sense_ends_nothing(self, pipeline: Pipeline, body: bytes) -> None:
        session = fresh("whole")
        pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        assert refused(pipeline.post(f"/api/sessions/{session}/end", body), 400)
        assert details(pipeline, session)["status"] == "active"

    @pytest.mark.parametrize("session", ["a/b", "ünïcode no", "a/graph", "100%", "summary"])
    def test_an_id_may_have_anything_that_is_printable(self, pipeline: Pipeline, session: str) -> None:
        session = f"{fresh('odd')}{session}" if session != "summary" else session
        answer = pipeline.post("/api/traces/start", {"name": "a", "sessionId": session})
        if not session.isascii():
            assert answer.status == 400
            return
        assert details(pipeline, session)["sessionId"] == session
        assert [node["sessionId"] for node in graph(pipeline, session)["nodes"]] == [session]


class TestMessages:
    def test_messages_are_listed_by_time_without_secrets_in_what_is_redacted(self, pipeline: Pipeline) -> None:
        session = fresh("talk")
        span = pipeline.post("/api/traces/start", {"name": "a", "sessionId": session}).json()["traceId"]
        said = [
            ("user", "second, mail me a@b.io", "2026-01-01T00:00:02.000Z"),
            ("system", "first", "2026-01-01T00:00:01.000Z"),
            ("tool", "third" * 200, "2026-01-01T00:00:03.000Z"),
        ]
        for role, content, at in said:
            body = {"sessionId": session, "traceId": span, "role": role, "content": content, "createdAt": at}
            assert pipeline.post("/api/traces/messages", body).status == 200
        pipeline.until(lambda: len(details(pipeline, session)["messages"]) == 3, "all said", 20)
        first, second, third = details(pipeline, session)["messages"]
        assert [one["role"] for one in (first, second, third)] == ["system", "user", "tool"]
        assert (first["isRedacted"], "redactedContent" in first) == (False, False)
        assert second["isRedacted"] is True
        assert second["redactedContent"] == "second, mail me [EMAIL_REDACTED]"
        assert "a@b.io" not in json.dumps(second)
        assert (third["content"], third["contentPreview"]) == ("third" * 200, "third" * 100)
        assert (first["fullContentStored"], third["fullContentStored"]) == (True, False)
        assert listed(pipeline, limit=100)["sessions"]
        ended = pipeline.post(f"/api/sessions/{session}/end", {}).json()
        assert [one["role"] for one in ended["messages"]] == ["system", "user", "tool"]


class TestDocsSpans:
    def test_documented_spans_make_sessions_by_their_attribute(self, pipeline: Pipeline) -> None:
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

    def test_ids_that_are_only_unique_in_their_trace_do_not_mix_up_the_depth(self, pipeline: Pipeline) -> None:
        session, first, second = fresh("mix"), fresh("t"), fresh("t")

        def span(trace: str, own: str, parent: str | None, at: int) -> dict[str, Any]:
            return {
                "trace_id": trace,
                "span_id": own,
                "parent_span_id": parent,
                "name": f"{trace}/{own}",
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

    def test_a_parent_in_another_trace_of_the_session_counts(self, pipeline: Pipeline) -> None:
        session, trace, parent = fresh("across"), fresh("t"), fresh("parent")
        one = {"trace_id": trace, "span_id": parent, "name": "a", "kind": "tool", "session_id": session}
        two = {**one, "trace_id": fresh("t"), "span_id": "c", "parent_span_id": parent, "name": "b"}
        assert pipeline.post("/spans", [one, two]).status == 202
        until_spans(pipeline, session, 2)
        assert {node["name"]: node["depth"] for node in graph(pipeline, session)["nodes"]} == {"a": 0, "b": 1}

    def test_an_edge_leads_to_a_parent_that_nobody_knows(self, pipeline: Pipeline) -> None:
        session = fresh("orphan")
        spans = [
            {"trace_id": fresh("t"), "span_id": "c", "parent_span_id": "gone", "kind": "tool", "session_id": session}
        ]
        assert pipeline.post("/spans", spans).status == 202
        drawn = graph(pipeline, session)
        assert drawn["edges"] == [{"from": "gone", "to": "c"}]
        assert drawn["nodes"][0]["depth"] == 0


class TestPending:
    def test_what_was_never_ended_is_pending_for_a_day_then_abandoned(self, pipeline: Pipeline) -> None:
        session, now = fresh("open"), datetime.now(UTC)
        young, old = fresh("young"), fresh("old")
        for own, hours in ((young, 23), (old, 25)):
            at = instant(now - timedelta(hours=hours))
            ingest(pipeline, {"name": own, "traceId": own, "sessionId": session, "startedAt": at, "metadata": {"n": 1}})
        until_spans(pipeline, session, 2, open_spans=2)
        nodes = graph(pipeline, session)["nodes"]
        assert [(node["id"], node["status"]) for node in nodes] == [(old, "abandoned"), (young, "pending")]
        assert {(node["endedAt"], node["duration"], node["costUSD"]) for node in nodes} == {(None, None, None)}
        for own, status in ((young, "pending"), (old, "abandoned")):
            docs = pipeline.get(f"/traces/{own}").json()
            (span,) = docs["spans"]
            assert (span["status"], span["ended_at"], span["attributes"]) == (status, None, {"n": 1})
            assert (docs["span_count"], docs["ended_at"], docs["total_cost_usd"]) == (0, None, 0)
            (shown,) = pipeline.get(f"/traces/{own}?format=mist").json()["spans"]
            assert (shown["operation"], shown["end_ns"], shown["status"]) == (own, 0, "")
            (row,) = pipeline.get(f"/traces/{own}/timeline").json()["rows"]
            assert (row["name"], row["status"], row["duration_ms"]) == (own, status, None)
        # Its end is all it takes to be counted after all.
        assert pipeline.post(f"/api/traces/{old}/end", {"status": "ok", "metadata": {"m": 2}}).status == 200
        until_spans(pipeline, session, 2, open_spans=1)
        ended = pipeline.get(f"/traces/{old}").json()["spans"]
        assert [(span["status"], span["attributes"]) for span in ended] == [("ok", {"n": 1, "m": 2})]

    def test_open_and_ended_spans_of_a_trace_stand_side_by_side(self, pipeline: Pipeline) -> None:
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
    def test_what_makes_no_sense_is_refused_by_name(self, pipeline: Pipeline, query: str, named: str) -> None:
        assert refused(pipeline.get(f"/api/sessions?{query}"), 400).startswith(named)

    @pytest.mark.parametrize("text", ["ΟΔΟΣ", "οδοσ", "straße", "İSTANBUL", "a%", "_b"])
    def test_a_label_is_found_by_a_part_of_it_whatever_the_case_and_script(self, pipeline: Pipeline, text: str) -> None:
        user, label = fresh("label"), "ΟΔΟΣ Straße İSTANBUL a%c _b"
        ingest(pipeline, {"name": "x", "sessionId": fresh("s"), "metadata": {"userId": user, "label": label}})
        pipeline.until(lambda: listed(pipeline, userId=user)["total"] == 1, "there", 20)
        assert listed(pipeline, userId=user, label=text)["total"] == 1
        assert listed(pipeline, userId=user, label=f"{text}?")["total"] == 0

    @pytest.mark.parametrize("page", [10**6, 10**17, 10**18 - 1])
    def test_a_page_behind_the_last_is_empty(self, pipeline: Pipeline, page: int) -> None:
        session = fresh("page")
        ingest(pipeline, {"name": "x", "sessionId": session, "metadata": {"userId": session}})
        until_spans(pipeline, session, 1, open_spans=1)
        shown = listed(pipeline, userId=session, page=page, limit=100)
        assert (shown["sessions"], shown["total"], shown["page"], shown["pages"]) == ([], 1, page, 1)

    def test_the_limit_is_20_unless_said_and_never_over_100(self, pipeline: Pipeline) -> None:
        user = fresh("many")
        ingest(pipeline, *[{"name": "x", "sessionId": fresh("s"), "userId": user} for _ in range(105)])
        pipeline.until(lambda: listed(pipeline, userId=user)["total"] == 105, "all there", 20)
        for asked, limit, pages in (({}, 20, 6), ({"limit": 1000}, 100, 2), ({"limit": 7}, 7, 15)):
            shown = listed(pipeline, userId=user, **asked)
            assert (len(shown["sessions"]), shown["limit"], shown["pages"]) == (limit, limit, pages)
            assert shown["totalPages"] == pages
        assert len(listed(pipeline, userId=user, page=6)["sessions"]) == 5

    @pytest.mark.parametrize("path", ["/graph", "/details", "/end"])
    def test_other_routes_take_no_parameters(self, pipeline: Pipeline, path: str) -> None:
        url = f"/api/sessions/x{path}?a=1"
        assert "unknown parameter" in refused(pipeline.post(url, {}) if path == "/end" else pipeline.get(url), 400)

    def test_a_summary_takes_only_its_time(self, pipeline: Pipeline) -> None:
        answer = pipeline.get("/api/sessions/summary?userId=x")
        assert refused(answer, 400) == "userId: unknown parameter; allowed are from, to"


# -- against an oracle: what Cost Katana's LocalTraceService would say, in plain Python


class Made(NamedTuple):
    """A span that a test sends."""

    session: int
    kind: str
    at_ms: int
    ms: int | None
    status: str
    cost: float
    tokens: tuple[int, int]
    label: str | None
    way: str


class World(NamedTuple):
    """What a test sends: spans, who is ended, and what was said (session, content)."""

    spans: list[Made]
    ends: set[int]
    said: list[tuple[int, str]]


LABELS = ["Support chat", "support", "BILLING 50%", "x_y", "a'b"]
spans_made = st.builds(
    Made,
    session=st.integers(0, 4),
    kind=st.sampled_from(["llm", "tool", "agent", "custom", "chain"]),
    at_ms=st.integers(0, 50_000),
    ms=st.one_of(st.none(), st.integers(0, 5000)),
    status=st.sampled_from(["ok", "ok", "ok", "error", "timeout"]),
    cost=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    tokens=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    label=st.one_of(st.none(), st.sampled_from(LABELS)),
    way=st.sampled_from(["costkatana", "costkatana", "spans"]),
)
worlds = st.builds(
    World,
    spans=st.lists(spans_made, min_size=1, max_size=15, unique_by=lambda made: made.at_ms),
    ends=st.sets(st.integers(0, 4)),
    said=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["hi", "mail a@b.io", "ünï", ""])), max_size=5),
)
_minutes = iter(range(10**6))


def is_open(made: Made) -> bool:
    return made.ms is None and made.way == "costkatana"


def expected(made: Sequence[Made], ended: bool) -> dict[str, Any]:
    """What a session comes to, from nothing but SPEC A.5."""
    by_start = sorted(made, key=lambda one: one.at_ms)
    closed = [one for one in made if not is_open(one)]
    errors = sum(one.status != "ok" for one in closed)
    return {
        "label": next((one.label for one in by_start if one.label is not None), None),
        "source": by_start[0].way,
        "status": "error" if errors else "completed" if ended else "active",
        "totalSpans": len(made),
        "openSpans": len(made) - len(closed),
        "totalCostUSD": sum(one.cost for one in closed if one.kind not in ROLLUPS),
        "totalInputTokens": sum(one.tokens[0] for one in closed),
        "totalOutputTokens": sum(one.tokens[1] for one in closed),
        "errorCount": errors,
        "hasErrors": errors > 0,
    }


def send(pipeline: Pipeline, world: World, user: str, begin: datetime) -> dict[int, str]:
    """Number -> id of the sessions that there are then, every one of *user*."""
    ids = {number: f"{user}-{number}" for number in {made.session for made in world.spans}}
    katana, docs = [], []
    for made in world.spans:
        at = begin + timedelta(milliseconds=made.at_ms)
        attributes = {"label": made.label} if made.label is not None else {}
        if made.way == "costkatana":
            span: dict[str, Any] = {
                "name": "x",
                "type": made.kind,
                "sessionId": ids[made.session],
                "startedAt": instant(at),
                "metadata": {"userId": user, **attributes},
            }
            if made.ms is not None:
                span["endedAt"] = instant(at + timedelta(milliseconds=made.ms))
                span["tokens"] = dict(zip(("input", "output"), made.tokens, strict=True))
                span |= {"status": made.status, "costUSD": made.cost}
            katana.append(span)
        else:
            docs.append(
                {
                    "name": "x",
                    "model": "m",
                    "trace_id": fresh("t"),
                    "kind": made.kind,
                    "started_at": instant(at),
                    "ended_at": instant(at + timedelta(milliseconds=made.ms or 0)),
                    "status": made.status,
                    "cost_usd": made.cost,
                    "prompt_tokens": made.tokens[0],
                    "comp_tokens": made.tokens[1],
                    "attributes": {"session_id": ids[made.session], "user_id": user, **attributes},
                }
            )
    if katana:
        ingest(pipeline, *katana)
    if docs:
        assert pipeline.post("/spans", docs).status == 202
    for number, content in world.said:
        if number in ids:
            body = {"sessionId": ids[number], "role": "user", "content": content}
            assert pipeline.post("/api/traces/messages", body).status == 200
    said = sum(number in ids for number, _ in world.said)

    def there() -> bool:
        found = listed(pipeline, userId=user, limit=100)["sessions"]
        spans = sum(one["totalSpans"] for one in found)
        closed = sum(one["totalSpans"] - one["openSpans"] for one in found)
        wanted = sum(not is_open(made) for made in world.spans)
        return (spans, closed, sum(len(one["messages"]) for one in found)) == (len(world.spans), wanted, said)

    pipeline.until(there, "everything stored", 20)
    for number in world.ends & ids.keys():
        assert pipeline.post(f"/api/sessions/{ids[number]}/end", {}).status == 200
    return ids


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds, pick=st.randoms(use_true_random=False))
def test_lists_and_sums_are_what_the_local_service_would_say(
    pipeline: Pipeline, world: World, pick: random.Random
) -> None:
    user = fresh("user")
    # A minute of its own for each world, so that the summary, which knows no user, sees nobody else.
    begin = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=next(_minutes))
    ids = send(pipeline, world, user, begin)
    oracle = {}
    for number, session in ids.items():
        made = [one for one in world.spans if one.session == number]
        start = instant(begin + timedelta(milliseconds=min(one.at_ms for one in made)))
        oracle[session] = expected(made, number in world.ends) | {"userId": user, "startedAt": start}
    newest_first = sorted(oracle, key=lambda session: oracle[session]["startedAt"], reverse=True)
    found = listed(pipeline, userId=user, limit=100)["sessions"]
    assert [one["sessionId"] for one in found] == newest_first
    for one in found:
        wanted = oracle[one["sessionId"]]
        assert {name: one.get(name) for name in wanted} == wanted
        assert (one.get("endedAt") is not None) == (int(one["sessionId"].rpartition("-")[2]) in world.ends)
        number = int(one["sessionId"].rpartition("-")[2])
        shown = [message.get("redactedContent", message["content"]) for message in one["messages"]]
        said = [content.replace("a@b.io", "[EMAIL_REDACTED]") for at, content in world.said if at == number]
        assert shown == said
        assert one == details(pipeline, one["sessionId"])
    for _ in range(6):
        _compare_filtered(pipeline, user, oracle, pick)
    bounds = {"from": instant(begin), "to": instant(begin + timedelta(seconds=59))}
    ended = [one for one in found if one.get("endedAt")]
    lasted = [
        (datetime.fromisoformat(one["endedAt"]) - datetime.fromisoformat(one["startedAt"])).total_seconds() * 1000
        for one in ended
    ]
    sums = summary(pipeline, **bounds)
    states = [one["status"] for one in oracle.values()]
    assert sums["avgDuration"] == pytest.approx(sum(lasted) / len(lasted) if lasted else 0, abs=2)
    assert {name: sums[name] for name in sums if "Duration" not in name} == {
        "totalSessions": len(oracle),
        "activeSessions": states.count("active"),
        "completedSessions": states.count("completed"),
        "errorSessions": states.count("error"),
        "totalCost": sum(one["totalCostUSD"] for one in oracle.values()),
        "totalTokens": {
            "input": sum(one["totalInputTokens"] for one in oracle.values()),
            "output": sum(one["totalOutputTokens"] for one in oracle.values()),
        },
        "errorRate": states.count("error") / len(states),
    }


def _compare_filtered(pipeline: Pipeline, user: str, oracle: Mapping[str, Any], pick: random.Random) -> None:
    """A random question, answered by the oracle and by the service."""
    starts = sorted(one["startedAt"] for one in oracle.values())
    costs = sorted({one["totalCostUSD"] for one in oracle.values()})
    tests: dict[str, tuple[Any, Any]] = {
        "label": (
            label := pick.choice(["SUPPORT", "support c", "50%", "_", "\\'", "nothing"]),
            lambda one: label.lower() in (one["label"] or "").lower(),
        ),
        "status": (
            status := pick.choice(["active", "completed", "error"]),
            lambda one: one["status"] == status,
        ),
        "source": (source := pick.choice(["costkatana", "spans", "x"]), lambda one: one["source"] == source),
        "from": (since := pick.choice(starts), lambda one: one["startedAt"] >= since),
        "to": (until := pick.choice(starts), lambda one: one["startedAt"] <= until),
        "minCost": (least := pick.choice(costs), lambda one: one["totalCostUSD"] >= least),
        "maxCost": (most := pick.choice(costs), lambda one: one["totalCostUSD"] <= most),
        "minSpans": (few := pick.randint(0, 4), lambda one: one["totalSpans"] >= few),
        "maxSpans": (many := pick.randint(0, 4), lambda one: one["totalSpans"] <= many),
    }
    asked = pick.sample(sorted(tests), pick.randint(1, 3))
    limit, page = pick.randint(1, 3), pick.randint(1, 3)
    wanted = [session for session, one in oracle.items() if all(tests[name][1](one) for name in asked)]
    wanted.sort(key=lambda session: oracle[session]["startedAt"], reverse=True)
    given = {name: tests[name][0] for name in asked}
    shown = listed(pipeline, userId=user, limit=limit, page=page, **given)
    assert [one["sessionId"] for one in shown["sessions"]] == wanted[(page - 1) * limit : page * limit], given
    assert (shown["total"], shown["pages"]) == (len(wanted), math.ceil(len(wanted) / limit))


# -- 5,000 spans in 12 levels, by many hands


class Caller:
    """A connection of each thread to each replica."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.own = fleet, threading.local()
        self.opened: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        for connection in self.opened:
            connection.close()

    def post(self, name: str, path: str, body: Any) -> Any:
        held: dict[str, http.client.HTTPConnection] = self.own.__dict__
        if name not in held:
            held[name] = http.client.HTTPConnection("127.0.0.1", self.fleet.ports[name], timeout=60)
            self.opened.append(held[name])
        held[name].request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = held[name].getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return json.loads(data)


LEVELS, SPANS = 12, 5000


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("fleet"), ["ingest-a", "ingest-b", "aggregator", "api"])
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def test_a_session_of_5000_spans_in_12_levels_started_here_and_ended_there(fleet: Fleet) -> None:
    rng, caller = random.Random(12), Caller(fleet)
    session, root = fresh("big"), fresh("root")
    names = ["ingest-a", "ingest-b"]
    begin = datetime.now(UTC) - timedelta(hours=2)
    sizes = [1] + [(SPANS - 1) // (LEVELS - 1)] * (LEVELS - 1)
    sizes[-1] += SPANS - sum(sizes)
    levels: list[list[dict[str, Any]]] = []
    number = 0
    for depth, size in enumerate(sizes):
        level = []
        for _ in range(size):
            parent = rng.choice(levels[-1])["id"] if levels else None
            level.append(
                {
                    "id": root if parent is None else f"{root}.{number}",
                    "parent": parent,
                    "depth": depth,
                    "type": rng.choice(["llm", "tool", "agent", "retrieval", "chain"]),
                    "at": begin + timedelta(milliseconds=number),
                    "ms": rng.randint(1, 60_000),
                    "home": number % 2,
                    # Of hundred spans seven stay open, and eight are ended a second time.
                    "fate": "open" if depth and number % 100 < 7 else "twice" if number % 100 < 15 else "once",
                    "cost": rng.randint(0, 10**6) / 10**9,
                    "tokens": {"input": rng.randint(0, 5000), "output": rng.randint(0, 900)},
                }
            )
            number += 1
        levels.append(level)
    plan = [one for level in levels for one in level]

    def start(one: dict[str, Any]) -> None:
        body = {
            "name": f"n{one['depth']}",
            "type": one["type"],
            "traceId": one["id"],
            "sessionId": session,
            "startedAt": instant(one["at"]),
            "metadata": {"n": 1, "label": "big"},
            **({"parentId": one["parent"]} if one["parent"] else {}),
        }
        shown = caller.post(names[one["home"]], "/api/traces/start", body)
        assert shown == {"traceId": one["id"], "sessionId": session}

    def end(one: dict[str, Any]) -> None:
        other = names[1 - one["home"]]
        body = {
            "status": "ok",
            "tokens": one["tokens"],
            "costUSD": one["cost"],
            "endedAt": instant(one["at"] + timedelta(milliseconds=one["ms"])),
            "metadata": {"m": 2},
        }
        caller.post(other, f"/api/traces/{one['id']}/end", body)
        if one["fate"] == "twice":
            again = {"status": "error", "tokens": {"input": 9, "output": 9}, "costUSD": 9, "metadata": {"m": 3, "l": 4}}
            caller.post(names[one["home"]], f"/api/traces/{one['id']}/end", again)

    with ThreadPoolExecutor(24) as pool:
        for level in levels:
            list(pool.map(start, level))
        ended = [one for one in plan if one["fate"] != "open"]
        list(pool.map(end, rng.sample(ended, len(ended))))
    caller.close()

    money = [one for one in ended if one["type"] not in ROLLUPS]
    twice = {one["id"] for one in ended if one["fate"] == "twice"}

    def shown() -> Any:
        return fleet.get("api", f"/api/sessions/{session}/details").json()

    fleet.until(lambda: (shown()["totalSpans"], shown()["openSpans"]) == (SPANS, SPANS - len(ended)), "stored")
    fleet.until(lambda: fleet.get("api", f"/traces?session={session}&attr.m=3").json()["total"] == 1, "merged")

    def merged() -> bool:
        spans = fleet.get("api", f"/traces/{root}").json()["spans"]
        return {span["span_id"] for span in spans if span["attributes"].get("m") == 3} == twice

    fleet.until(merged, "everything merged")
    cost = round(sum(round(one["cost"] * 1e9) for one in money)) / 1e9
    check(DETAILS, shown())
    assert {name: shown()[name] for name in ("status", "label", "totalCostUSD", "startedAt", "errorCount")} == {
        "status": "active",
        "label": "big",
        "totalCostUSD": cost,
        "startedAt": instant(begin),
        "errorCount": 0,
    }
    assert shown()["totalInputTokens"] == sum(one["tokens"]["input"] for one in ended)
    assert shown()["totalOutputTokens"] == sum(one["tokens"]["output"] for one in ended)

    drawn = fleet.get("api", f"/api/sessions/{session}/graph").json()
    check(GRAPH, drawn)
    by_id = {node["id"]: node for node in drawn["nodes"]}
    assert len(drawn["nodes"]) == len(by_id) == SPANS
    assert [node["id"] for node in drawn["nodes"]] == [one["id"] for one in plan]
    edges = [{"from": one["parent"], "to": one["id"]} for one in plan if one["parent"]]
    assert sorted(drawn["edges"], key=lambda edge: edge["to"]) == sorted(edges, key=lambda edge: edge["to"])
    for one in plan:
        node, closed = by_id[one["id"]], one["fate"] != "open"
        assert (node["depth"], node["type"]) == (one["depth"], one["type"])
        assert node["status"] == ("ok" if closed else "pending")
        assert node["duration"] == (one["ms"] if closed else None)
        assert node["costUSD"] == (one["cost"] if closed else None)
        assert node["tokens"] == (one["tokens"] if closed else {"input": 0, "output": 0})
        added = {} if not closed else {"m": 3, "l": 4} if one["id"] in twice else {"m": 2}
        assert node["metadata"] == {"n": 1, "label": "big", **added}

    timeline = fleet.get("api", f"/traces/{root}/timeline").json()
    assert timeline["duration_ms"] == max((one["at"] - begin) / timedelta(milliseconds=1) + one["ms"] for one in ended)
    assert [
        (row["span_id"], row["parent_span_id"], row["depth"], row["start_ms"], row["duration_ms"])
        for row in timeline["rows"]
    ] == [
        (
            one["id"],
            one["parent"],
            one["depth"],
            (one["at"] - begin) / timedelta(milliseconds=1),
            one["ms"] if one["fate"] != "open" else None,
        )
        for one in plan
    ]
    trace = fleet.get("api", f"/traces/{root}").json()
    assert (trace["span_count"], trace["total_cost_usd"]) == (len(ended), cost)
    assert trace["total_tokens"] == sum(sum(one["tokens"].values()) for one in ended)
    metrics = fleet.get("api", "/metrics?window=24h").json()
    calls = sum(one["type"] == "llm" for one in ended)
    assert (metrics["span_count"], metrics["cost"]["total_usd"]) == (calls, cost)
