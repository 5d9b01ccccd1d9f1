"""``TraceClient`` reads sessions as the SDK of Cost Katana does, and never stops the program that it traces."""

from __future__ import annotations

import contextlib
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from kit.pipeline import free_port, http
from kit.replicas import HEADERS, UUID4, Replicas
from kit.sessions import DETAILS, GRAPH, LISTED, SUMMARY, check, refused
from tokentrace.client.sessions import TraceClient
from tokentrace.errors import ConfigError, Rejected, Unavailable

SPANS = 1000


class Conversation(NamedTuple):
    """A session: its id, and span name -> span id."""

    session_id: str
    ids: dict[str, str]


@pytest.fixture(scope="module")
def client(replicas: Replicas) -> Iterator[TraceClient]:
    with TraceClient("any", "shop", replicas.url_of("api")) as client:
        yield client


@pytest.fixture(scope="module")
def conversation(replicas: Replicas, client: TraceClient) -> Conversation:
    """Four spans and two messages that were sent to two replicas, and that the api shows."""
    label = f"support {uuid.uuid4()}"
    root, session = replicas.start_span(0, name="root", type="agent", metadata={"label": label, "userId": "u-42"})
    ids = {"root": root}
    for replica, name, kind, parent in (
        (1, "call", "llm", "root"),
        (0, "look", "tool", "call"),
        (1, "wait", "custom", "absent"),
    ):
        parent_id = ids.get(parent, "no-such-span")
        ids[name] = replicas.start_span(replica, name=name, type=kind, parentId=parent_id, sessionId=session)[0]
    error = {"message": "gone", "stack": "at look"}
    replicas.end_span(ids["look"], 1, status="error", error=error, tool="search", resourceIds=["a", "b"])
    tokens = {"input": 512, "output": 128}
    replicas.end_span(ids["call"], 0, model="gpt-4o", tokens=tokens, costUSD=0.5, metadata={"step": 1})
    replicas.end_span(root, 1)
    replicas.end_span(root, 0, metadata={"statusCode": 200})
    for role, content in (("user", "mail me: a@example.com"), ("assistant", "done")):
        body = {"sessionId": session, "traceId": ids["call"], "role": role, "content": content}
        assert replicas.post("/api/traces/messages", body, 1).status == 200

    def is_shown() -> bool:
        with contextlib.suppress(Rejected):
            nodes = client.session_graph(session)["nodes"]
            merged = any(node["metadata"].get("statusCode") for node in nodes)
            return len(nodes) == 4 and merged and len(client.session_details(session)["messages"]) == 2
        return False

    replicas.until(is_shown, "shown", 60)
    return Conversation(session, ids)


class TestReading:
    """The answers have the types that the SDK declares."""

    def test_the_graph_has_all_spans_and_edges(self, client: TraceClient, conversation: Conversation) -> None:
        session, ids = conversation
        graph = client.session_graph(session)
        check(GRAPH, graph)
        nodes = {node["name"]: node for node in graph["nodes"]}
        assert {name: node["id"] for name, node in nodes.items()} == ids
        assert {name: node["depth"] for name, node in nodes.items()} == {"root": 0, "call": 1, "look": 2, "wait": 0}
        assert sorted((edge["from"], edge["to"]) for edge in graph["edges"]) == sorted(
            [(ids["root"], ids["call"]), (ids["call"], ids["look"]), ("no-such-span", ids["wait"])]
        )
        assert {name: node["status"] for name, node in nodes.items()} == {
            "root": "ok",
            "call": "ok",
            "look": "error",
            "wait": "pending",
        }
        assert nodes["look"]["error"] == {"message": "gone", "stack": "at look"}
        assert (nodes["look"]["tool"], nodes["look"]["resourceIds"]) == ("search", ["a", "b"])
        call = nodes["call"]
        assert (call["model"], call["tokens"], call["costUSD"]) == ("gpt-4o", {"input": 512, "output": 128}, 0.5)
        assert call["metadata"] == {"step": 1}
        assert nodes["root"]["metadata"]["statusCode"] == 200
        assert nodes["root"]["metadata"]["userId"] == "u-42"

    def test_the_details_have_the_totals_and_the_redacted_messages(
        self, client: TraceClient, conversation: Conversation
    ) -> None:
        session, ids = conversation
        details = client.session_details(session)
        check(DETAILS, details)
        assert (details["sessionId"], details["userId"], details["status"]) == (session, "u-42", "error")
        assert details["label"].startswith("support ")
        assert details["totalSpans"] == 4
        assert (details["totalInputTokens"], details["totalOutputTokens"]) == (512, 128)
        assert details["totalCostUSD"] == 0.5
        assert [(message["role"], message["content"], message["isRedacted"]) for message in details["messages"]] == [
            ("user", "mail me: [EMAIL_REDACTED]", True),
            ("assistant", "done", False),
        ]
        assert {message["traceId"] for message in details["messages"]} == {ids["call"]}

    def test_the_list_finds_a_session_by_label_user_and_time(
        self, client: TraceClient, conversation: Conversation
    ) -> None:
        session, _ = conversation
        details = client.session_details(session)
        listed = client.list_sessions(label=details["label"], user_id="u-42")
        check(LISTED, listed)
        assert (listed["total"], listed["page"], listed["pages"]) == (1, 1, 1)
        assert [shown["sessionId"] for shown in listed["sessions"]] == [session]
        shown = listed["sessions"][0]
        assert (shown["messages"], shown["messageCount"]) == ([], len(details["messages"]))
        assert client.list_sessions(label=details["label"], user_id="u-43")["total"] == 0
        started = details["startedAt"]
        for since, until, total in ((started, None, 1), (None, "2020-01-01T00:00:00Z", 0)):
            bounded = client.list_sessions(label=details["label"], since=since, until=until)
            assert bounded["total"] == total
        assert client.list_sessions(limit=1, page=2)["page"] == 2

    def test_the_summary_counts_sessions_within_bounds_of_time(
        self, client: TraceClient, conversation: Conversation
    ) -> None:
        summary = client.sessions_summary()
        check(SUMMARY, summary)
        assert summary["totalSessions"] >= 1
        assert 0 < summary["errorRate"] <= 1
        assert client.sessions_summary(until="2020-01-01T00:00:00Z")["totalSessions"] == 0

    def test_an_unknown_session_is_a_404(self, replicas: Replicas, client: TraceClient) -> None:
        for part in ("graph", "details"):
            answer = http("GET", f"{replicas.url_of('api')}/api/sessions/absent/{part}", None, HEADERS)
            assert refused(answer, 404) == "Session absent not found"
        with pytest.raises(Rejected, match=r"^Trace API error: Session absent not found$") as caught:
            client.session_details("absent")
        assert caught.value.status == 404


def test_a_session_sent_in_batches_to_two_replicas_is_shown_whole(replicas: Replicas, client: TraceClient) -> None:
    """Each level is shuffled; most spans end in a batch at the other replica, some by a request of their own."""
    dice = random.Random(12)
    session = f"long-{uuid.uuid4()}"
    level: dict[str, int] = {}
    parent: dict[str, str | None] = {}
    by_level: list[list[str]] = [[] for _ in range(12)]
    for number in range(SPANS):
        depth = number if number < 12 else dice.randrange(1, 12)
        span_id = f"{session}-{number}"
        level[span_id], parent[span_id] = depth, dice.choice(by_level[depth - 1]) if depth else None
        by_level[depth].append(span_id)
    sent: dict[str, dict[str, Any]] = {
        span_id: {
            "traceId": span_id,
            "parentId": parent[span_id],
            "sessionId": session,
            "name": f"step {number % 7}",
            "type": dice.choice(["llm", "tool", "retrieval", "custom"]),
            "status": "error" if number % 100 == 99 else "ok",
            "tokens": {"input": dice.randrange(1000), "output": dice.randrange(1000)},
            "costUSD": dice.randrange(1, 10**6) / 10**6,
            "metadata": {"number": number},
        }
        for number, span_id in enumerate(level)
    }
    starting = [sent[span_id] for ids in by_level for span_id in dice.sample(ids, len(ids))]
    starts = [{key: span[key] for key in ("traceId", "parentId", "sessionId", "name", "type")} for span in starting]
    ending = dice.sample(starting, len(starting))
    for at in range(0, SPANS, 200):
        assert replicas.post("/api/traces/ingest", starts[at : at + 200], 0).status == 200
    for at in range(0, SPANS - 100, 150):
        assert replicas.post("/api/traces/ingest", {"spans": ending[at : min(at + 150, SPANS - 100)]}, 1).status == 200
    for span in ending[SPANS - 100 :]:
        end = {key: span[key] for key in ("status", "tokens", "costUSD", "metadata")}
        replicas.end_span(span["traceId"], dice.randrange(2), **end)

    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        graph = client.session_graph(session)
        if len(graph["nodes"]) == SPANS and all(node["status"] != "pending" for node in graph["nodes"]):
            break
        time.sleep(0.3)
    check(GRAPH, graph)
    assert {node["id"]: node["depth"] for node in graph["nodes"]} == level
    assert {(edge["from"], edge["to"]) for edge in graph["edges"]} == {
        (above, span_id) for span_id, above in parent.items() if above
    }
    for node in graph["nodes"]:
        expected = sent[node["id"]]
        assert {key: node[key] for key in ("name", "type", "status", "tokens", "costUSD", "metadata")} == {
            key: expected[key] for key in ("name", "type", "status", "tokens", "costUSD", "metadata")
        }
    details = client.session_details(session)
    assert details["totalSpans"] == SPANS
    assert details["totalInputTokens"] == sum(span["tokens"]["input"] for span in sent.values())
    assert details["totalOutputTokens"] == sum(span["tokens"]["output"] for span in sent.values())
    assert round(details["totalCostUSD"] * 10**6) == sum(round(span["costUSD"] * 10**6) for span in sent.values())
    assert details["status"] == "error"
    trace = http("GET", f"{replicas.url_of('api')}/traces/{session}-0").json()
    assert trace["span_count"] == SPANS
    rows = http("GET", f"{replicas.url_of('api')}/traces/{session}-0/timeline").json()["rows"]
    assert {row["span_id"]: (row["depth"], row["name"]) for row in rows} == {
        span_id: (depth, sent[span_id]["name"]) for span_id, depth in level.items()
    }
    begin = min(node["startedAt"] for node in graph["nodes"])
    first = {row["span_id"] for row in rows if row["start_ms"] == 0}
    assert first
    assert {node["startedAt"] for node in graph["nodes"] if node["id"] in first} == {begin}


class TestWriting:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"api_key": "", "project_id": "p"}, "^api_key is empty"),
            ({"api_key": "k", "project_id": ""}, "^project_id is empty"),
            ({"api_key": "k", "project_id": "p", "api_url": "ftp://x"}, "^api_url: 'ftp://x' is not http"),
            ({"api_key": "k", "project_id": "p", "api_url": "http://x:port"}, "^api_url: the host or port"),
            ({"api_key": "k", "project_id": "p", "api_url": "http://x", "timeout_ms": 0}, "^timeout_ms: 0 is not"),
            ({"api_key": "k", "project_id": "p"}, "^api_url and TOKENTRACE_API_URL are empty"),
        ],
    )
    def test_an_invalid_argument_is_an_error_at_once(
        self, fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TOKENTRACE_API_URL", raising=False)
        with pytest.raises(ConfigError, match=message):
            TraceClient(**fields)

    def test_a_wrong_word_is_an_error_at_once_and_nothing_is_sent(self) -> None:
        with TraceClient("any", "shop", f"http://127.0.0.1:{free_port()}") as client:
            calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = [
                ("type: 'oracle' is none of llm, embedding, ", client.start_span, ("x", "oracle")),
                ("status: 'done' is none of ok, error, timeout", client.end_span, ("span", "done")),
                ("role: 'robot' is none of user, assistant, ", client.record_message, ("s", "span", "robot", "hi")),
            ]
            for text, method, arguments in calls:
                with pytest.raises(Rejected, match=f"^{text}"):
                    method(*arguments)
            assert client.failures == 0

    def test_the_variable_names_the_service_and_an_error_text_makes_a_span_an_error(
        self, replicas: Replicas, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOKENTRACE_API_URL", replicas.url_of("api"))
        with TraceClient("any", "shop") as client:
            ids = [client.start_span("x").trace_id for _ in range(4)]
            client.end_span(ids[0], error="gone")
            client.end_span(ids[1], "timeout", error="late")
            client.end_span(ids[2], "ok", error={"message": "gone"})
            client.end_span(ids[3])
            assert client.failures == 0
        log = replicas.read()
        ended = [(log.span(span_id).status, log.span(span_id).error) for span_id in ids]
        assert ended == [("error", "gone"), ("timeout", "late"), ("error", "gone"), ("ok", "")]

    def test_a_session_is_ended_once_and_keeps_the_error_of_its_spans(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url_of("api")) as client:
            sessions = [client.start_span(f"s{number}") for number in range(3)]
            client.end_span(sessions[0].trace_id)
            client.end_span(sessions[1].trace_id, error="gone")
            client.end_span(sessions[2].trace_id)

            def all_shown() -> bool:
                with contextlib.suppress(Rejected):
                    return all(not client.session_details(one.session_id)["openSpans"] for one in sessions)
                return False

            replicas.until(all_shown, "shown", 60)
            for started, error in zip(sessions, (None, None, "gave up"), strict=True):
                client.end_session(started.session_id, error)
            shown = [client.session_details(started.session_id) for started in sessions]
            assert [one["status"] for one in shown] == ["completed", "error", "error"]
            of_span = {"message": "gone", "trace_id": shown[1]["error"]["trace_id"], "span_id": sessions[1].trace_id}
            assert [one.get("error") for one in shown] == [None, of_span, {"message": "gave up"}]
            assert all("endedAt" in one for one in shown)
            assert client.failures == 0
            client.end_session("absent")
            assert client.failures == 1

    def test_spans_messages_and_batches_are_stored(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url_of("api"), headers={"X-Service-Name": "py"}) as client:
            root = client.start_span("answer", "agent", metadata={"label": "support"})
            child = client.start_span("call", "llm", parent_id=root.trace_id)
            client.record_message(root.session_id, child.trace_id, "user", "hi", {"n": 1})
            client.end_span(child.trace_id, model="gpt-4o", input_tokens=5, output_tokens=6, cost_usd=0.25)
            try:
                raise KeyError("gone")
            except KeyError as exc:
                client.end_span(root.trace_id, "error", error=exc, tool="t", resource_ids=["r"], metadata={"x": client})
            client.ingest_batch([{"name": "old", "status": "ok", "sessionId": root.session_id}])
            assert client.failures == 0
        assert child.session_id == root.session_id
        log = replicas.read()
        call, answer = log.span(child.trace_id), log.span(root.trace_id)
        assert (call.trace_id, call.model, call.cost_nusd, call.caller) == (root.trace_id, "gpt-4o", 250_000_000, "py")
        assert (call.prompt_tokens, call.completion_tokens) == (5, 6)
        assert (answer.kind, answer.status, answer.error) == ("agent", "error", "'gone'")
        assert "KeyError: 'gone'" in answer.error_stack
        assert (answer.attributes["tool"], answer.attributes["resource_ids"]) == ("t", ["r"])
        assert [message.content for message in log.messages if message.span_id == child.trace_id] == ["hi"]
        assert {span.name for span in log.spans if span.session_id == root.session_id} == {"answer", "call", "old"}

    def test_threads_may_share_a_client(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url_of()) as client, ThreadPoolExecutor(8) as pool:

            def trace(number: int) -> str:
                started = client.start_span(f"t{number}")
                client.end_span(started.trace_id, metadata={"n": number})
                return started.trace_id

            ids = list(pool.map(trace, range(80)))
        assert client.failures == 0
        log = replicas.read()
        assert [log.span(span_id).attributes["n"] for span_id in ids] == list(range(80))

    def test_a_connection_that_a_restart_closed_is_opened_again(self, replicas: Replicas) -> None:
        client = TraceClient("any", "shop", replicas.url_of())
        started = client.start_span("x")
        replicas.restart("ingest-0")
        client.end_span(started.trace_id)
        assert client.failures == 0
        assert replicas.read().span(started.trace_id).status == "ok"
        client.close()

    def test_an_unreachable_service_raises_in_no_method_that_writes(self) -> None:
        client = TraceClient("any", "shop", f"http://127.0.0.1:{free_port()}")
        first, second = client.start_span("x"), client.start_span("y", session_id="known")
        assert UUID4.fullmatch(first.trace_id)
        assert UUID4.fullmatch(first.session_id)
        assert first.trace_id != second.trace_id
        assert second.session_id == "known"
        child = client.start_span("z", parent_id=first.trace_id)
        assert UUID4.fullmatch(child.session_id)
        client.end_span(first.trace_id, error=ValueError())
        client.record_message("known", second.trace_id, "user", "hi")
        client.ingest_batch([{"name": "x"}])
        assert client.failures == 6
        reads: list[Callable[[], object]] = [
            client.sessions_summary,
            client.list_sessions,
            lambda: client.session_graph("s"),
        ]
        for read in reads:
            with pytest.raises(Unavailable, match=r"^Trace API error: "):
                read()

    def test_values_that_json_cannot_hold_raise_in_no_method_that_writes(self, replicas: Replicas) -> None:
        with TraceClient("any", "shop", replicas.url_of()) as client:
            started = client.start_span("x", metadata={"bad": "\ud800"})
            assert UUID4.fullmatch(started.trace_id)
            endless: dict[str, Any] = {}
            endless["self"] = endless
            client.end_span(started.trace_id, metadata=endless)
            assert client.failures == 2

    def test_a_refusal_is_logged_with_the_text_of_the_service(
        self, replicas: Replicas, caplog: pytest.LogCaptureFixture
    ) -> None:
        with TraceClient("any", "shop", replicas.url_of()) as client:
            client.start_span("")
            assert client.failures == 1
            assert "Trace API error: name: " in caplog.text
            client.end_span("absent/has?this")
            assert "Trace API error: Trace absent/has?this not found" in caplog.text
            with pytest.raises(Rejected, match=r"^Trace API error: ") as caught:
                client.session_details("an absent")
            assert caught.value.status == 404

    def test_a_service_that_does_not_answer_is_a_timeout(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            client = TraceClient("any", "shop", url, timeout_ms=100, read_timeout_ms=100)
            with pytest.raises(Unavailable, match=r"^Trace API request timeout$"):
                client.list_sessions(user_id="u", page=2)
            assert UUID4.fullmatch(client.start_span("x").trace_id)
            assert client.failures == 1
            client.close()
