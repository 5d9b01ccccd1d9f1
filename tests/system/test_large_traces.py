"""A trace and a session of more spans than an answer shows at once: pages, single spans, receipts and lists."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.examples import WHOLE
from kit.http_errors import refused
from kit.http_spans import assert_accepted
from kit.json_spans import fresh, json_call
from kit.pipeline import Pipeline
from kit.sessions import DETAILS, GRAPH, LISTED, check, instant
from tokentrace import TraceClient

SPANS = 20_000 if WHOLE else 2_300
#: The size of a page unless a request asks for another one.
PAGE = 1000


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("large"))
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture(scope="module")
def sent(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The spans of a trace in order of their starts: a root with children, one of four with a child of its own."""
    trace, begin = fresh("large"), datetime.now(UTC) - timedelta(hours=1)
    spans = [
        json_call(
            trace_id=trace,
            span_id=f"s{number}",
            kind="tool",
            parent_span_id=None if not number else f"s{number - 1}" if number % 4 == 2 else "s0",
            session_id=trace,
            cost_usd=(number + 1) / 1000,
            started_at=instant(begin + timedelta(milliseconds=number)),
            ended_at=instant(begin + timedelta(milliseconds=number + 500)),
            attributes={"note": "x" * 300, "number": number},
        )
        for number in range(SPANS)
    ]
    for start in range(0, SPANS, 500):
        assert_accepted(pipeline.post("/spans", spans[start : start + 500]), len(spans[start : start + 500]))
    pipeline.until(lambda: pipeline.get(f"/traces/{trace}?limit=0").json().get("span_count") == SPANS, "stored", 120)
    return spans


def followed(pipeline: Pipeline, path: str, name: str = "next_cursor", **query: str) -> list[Any]:
    """Return the answer of *path* and those of all following pages."""
    parts = "&".join(f"{key}={value}" for key, value in query.items())
    answers = [pipeline.get(f"{path}?{parts}").json()]
    while name in answers[-1]:
        answers.append(pipeline.get(f"{path}?{parts}&cursor={answers[-1][name]}").json())
        assert len(answers) <= SPANS
    return answers


def depth(number: int) -> int:
    return 0 if not number else 2 if number % 4 == 2 else 1


def test_a_large_trace_comes_in_pages_and_every_page_has_the_sums_of_all_spans(
    pipeline: Pipeline, sent: list[dict[str, Any]]
) -> None:
    trace = sent[0]["trace_id"]
    answers = followed(pipeline, f"/traces/{trace}")
    assert [len(answer["spans"]) for answer in answers[:-1]] == [PAGE] * ((SPANS - 1) // PAGE)
    shown = [span for answer in answers for span in answer["spans"]]
    assert [(span["span_id"], span["depth"], span["attributes"]["number"]) for span in shown] == [
        (f"s{number}", depth(number), number) for number in range(SPANS)
    ]
    for answer in answers:
        assert answer["span_count"] == SPANS
        assert answer["total_cost_usd"] == SPANS * (SPANS + 1) // 2 / 1000
        assert (answer["started_at"], answer["ended_at"]) == (sent[0]["started_at"], sent[-1]["ended_at"])


def test_a_trace_can_be_shown_without_attributes_in_pages_of_any_size_and_in_the_form_of_mist(
    pipeline: Pipeline, sent: list[dict[str, Any]]
) -> None:
    trace = sent[0]["trace_id"]
    bare = followed(pipeline, f"/traces/{trace}", limit="700", attributes="false")
    assert [span["span_id"] for answer in bare for span in answer["spans"]] == [span["span_id"] for span in sent]
    assert not any("attributes" in span for answer in bare for span in answer["spans"])
    mist = followed(pipeline, f"/traces/{trace}", format="mist")
    assert [span["span_id"] for answer in mist for span in answer["spans"]] == [span["span_id"] for span in sent]
    nothing = pipeline.get(f"/traces/{trace}?limit=0").json()
    assert (nothing["spans"], nothing["span_count"], "next_cursor" in nothing) == ([], SPANS, False)


def test_a_timeline_comes_in_pages_that_start_with_the_trace(pipeline: Pipeline, sent: list[dict[str, Any]]) -> None:
    answers = followed(pipeline, f"/traces/{sent[0]['trace_id']}/timeline")
    rows = [row for answer in answers for row in answer["rows"]]
    assert [(row["span_id"], row["depth"], row["start_ms"]) for row in rows] == [
        (f"s{number}", depth(number), number) for number in range(SPANS)
    ]
    assert {answer["duration_ms"] for answer in answers} == {SPANS - 1 + 500}


def test_a_timeline_in_columns_holds_the_whole_trace_at_once(pipeline: Pipeline, sent: list[dict[str, Any]]) -> None:
    path = f"/traces/{sent[0]['trace_id']}/timeline"
    answer = pipeline.get(f"{path}?format=columns").json()
    columns = answer["columns"]
    assert [columns[name] for name in ("span_id", "depth", "start_ms", "cost_usd")] == [
        [f"s{number}" for number in range(SPANS)],
        [depth(number) for number in range(SPANS)],
        list(range(SPANS)),
        [(number + 1) / 1000 for number in range(SPANS)],
    ]
    assert "hidden" not in columns
    assert "next_cursor" not in answer
    assert (answer["row_count"], answer["span_count"], answer["session_id"]) == (SPANS, SPANS, sent[0]["trace_id"])
    assert answer["total_cost_usd"] == SPANS * (SPANS + 1) // 2 / 1000
    below = pipeline.get(f"{path}?format=columns&below=s1").json()
    assert (below["columns"]["span_id"], below["row_count"]) == (["s2"], 1)
    assert [row["span_id"] for row in pipeline.get(f"{path}?below=s1").json()["rows"]] == ["s2"]
    assert refused(pipeline.get(f"{path}?below=absent"), 404) == "below: span absent not found"


def test_a_span_and_its_receipt_are_found_by_id(pipeline: Pipeline, sent: list[dict[str, Any]]) -> None:
    trace = sent[0]["trace_id"]
    for number in (0, 1, SPANS // 2, SPANS - 1):
        shown = pipeline.get(f"/traces/{trace}/spans/s{number}").json()
        assert (shown["trace_id"], shown["span_id"], shown["attributes"]["number"]) == (trace, f"s{number}", number)
        assert shown["cost_usd"] == (number + 1) / 1000
        receipt = pipeline.get(f"/traces/{trace}/spans/s{number}/receipt").json()
        assert (receipt["span_id"], receipt["total_cost_usd"]) == (f"s{number}", (number + 1) / 1000)
    for path in ("", "/receipt"):
        assert refused(pipeline.get(f"/traces/{trace}/spans/s{SPANS}{path}"), 404) == "span not found"
        assert refused(pipeline.get(f"/traces/absent/spans/s1{path}"), 404) == "span not found"


def test_an_open_span_is_found_by_id(pipeline: Pipeline) -> None:
    span = pipeline.post("/api/traces/start", {"name": "a", "metadata": {"n": 1}}).json()["traceId"]
    pipeline.until(lambda: pipeline.get(f"/traces/{span}/spans/{span}").status == 200, "stored")
    shown = pipeline.get(f"/traces/{span}/spans/{span}").json()
    assert (shown["status"], shown["ended_at"], shown["attributes"]) == ("pending", None, {"n": 1})


def test_the_graph_of_a_large_session_comes_in_pages(pipeline: Pipeline, sent: list[dict[str, Any]]) -> None:
    session = sent[0]["session_id"]
    for metadata in ("true", "false"):
        answers = followed(pipeline, f"/api/sessions/{session}/graph", "nextCursor", limit="900", metadata=metadata)
        nodes = [node for answer in answers for node in answer["nodes"]]
        assert [(node["id"], node["depth"]) for node in nodes] == [
            (f"s{number}", depth(number)) for number in range(SPANS)
        ]
        assert [edge["to"] for answer in answers for edge in answer["edges"]] == [f"s{n}" for n in range(1, SPANS)]
        assert all(bool(node["metadata"]) == (metadata == "true") for node in nodes)
        check(GRAPH, answers[0])


def test_sessions_are_listed_without_messages_and_details_show_them_in_pages(pipeline: Pipeline) -> None:
    session, user = fresh("talk"), fresh("user")
    pipeline.post("/api/traces/start", {"name": "a", "sessionId": session, "metadata": {"userId": user}})
    for number in range(12):
        body = {"sessionId": session, "role": "user", "content": f"message {number}"}
        assert pipeline.post("/api/traces/messages", body).status == 200
    path = f"/api/sessions/{session}/details"
    pipeline.until(lambda: pipeline.get(path).status == 200 and pipeline.get(path).json()["messageCount"] == 12, "all")
    page = pipeline.get("/api/sessions?limit=100").json()
    check(LISTED, page)
    [listed] = [each for each in page["sessions"] if each["sessionId"] == session]
    assert (listed["messages"], listed["messageCount"]) == ([], 12)
    whole = pipeline.get(path).json()
    check(DETAILS, whole)
    assert whole["messageCount"] == 12
    assert [message["content"] for message in whole["messages"]] == [f"message {number}" for number in range(12)]
    parts = [pipeline.get(f"{path}?limit=5&offset={offset}").json()["messages"] for offset in (0, 5, 10, 15)]
    assert [len(part) for part in parts] == [5, 5, 2, 0]
    assert [message for part in parts for message in part] == whole["messages"]


def test_the_trace_client_reads_graphs_and_messages_of_any_size(pipeline: Pipeline) -> None:
    session, nodes, messages = fresh("any"), 5_020, 1_010
    spans = [json_call(trace_id=session, span_id=f"s{n}", session_id=session, kind="tool") for n in range(nodes)]
    for start in range(0, nodes, 1000):
        assert_accepted(pipeline.post("/spans", spans[start : start + 1000]), len(spans[start : start + 1000]))

    def write(number: int) -> None:
        body = {"sessionId": session, "role": "user", "content": f"{number}"}
        assert pipeline.post("/api/traces/messages", body).status == 200

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(messages)))

    def counts() -> tuple[int, int]:
        shown = pipeline.get(f"/api/sessions/{session}/details?limit=0").json()
        return shown.get("totalSpans"), shown.get("messageCount")

    pipeline.until(lambda: counts() == (nodes, messages), "stored")
    with TraceClient("any", "shop", pipeline.url) as client:
        graph, details = client.session_graph(session), client.session_details(session)
    assert {node["id"] for node in graph["nodes"]} == {f"s{n}" for n in range(nodes)}
    assert (len(graph["nodes"]), "nextCursor" in graph) == (nodes, False)
    assert {message["content"] for message in details["messages"]} == {f"{n}" for n in range(messages)}
    assert len(details["messages"]) == messages


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limit=x", "limit: 'x' is not a whole number >= 0 of at most 18 digits"),
        ("cursor=x", "cursor: 'x' is not the next_cursor of an earlier answer"),
        ("attributes=no", "attributes: 'no' is neither true nor false"),
    ],
)
def test_a_wrong_parameter_of_a_page_is_refused(
    pipeline: Pipeline, sent: list[dict[str, Any]], query: str, text: str
) -> None:
    assert refused(pipeline.get(f"/traces/{sent[0]['trace_id']}?{query}"), 400) == text


def test_a_cursor_of_a_timeline_is_refused_by_the_trace(pipeline: Pipeline, sent: list[dict[str, Any]]) -> None:
    path = f"/traces/{sent[0]['trace_id']}"
    cursor = pipeline.get(f"{path}/timeline?limit=5").json()["next_cursor"]
    assert "another kind of answer" in refused(pipeline.get(f"{path}?cursor={cursor}"), 400)
