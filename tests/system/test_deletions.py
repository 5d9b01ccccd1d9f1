"""What is deleted is gone from every answer at once, everywhere, and stays away when all is read again."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.builders import make_batch, make_span
from kit.fleet import Fleet
from kit.pipeline import Answer
from tokentrace.bus import jetstream, subjects
from tokentrace.records import encode_batches

APIS = ("api-a", "api-b")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("deletions"), ["ingest", "aggregator", *APIS])
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


def make(**fields: Any) -> dict[str, Any]:
    made = {"kind": "llm", "model": "gpt-4o", "prompt_tokens": 10, "comp_tokens": 2, "cost_usd": 0.5, **fields}
    return {"trace_id": fresh("trace"), "span_id": fresh("span"), "name": "x", **made}


def get(fleet: Fleet, path: str, name: str = "api-a") -> Any:
    return fleet.get(name, path).json()


def send(fleet: Fleet, *spans: dict[str, Any]) -> None:
    """Stored in both apis and counted afterwards."""
    assert fleet.send("ingest", "POST", "/spans", list(spans)).status == 202
    for name in APIS:
        for span in spans:
            fleet.until(lambda name=name, span=span: shown(fleet, span, name), "stored")


def shown(fleet: Fleet, span: dict[str, Any], name: str = "api-a") -> bool:
    answer = fleet.get(name, f"/traces/{span['trace_id']}")
    return answer.status == 200 and span["span_id"] in [one["span_id"] for one in answer.json()["spans"]]


def delete(fleet: Fleet, path: str, name: str = "api-a") -> Any:
    answer = fleet.send(name, "DELETE", path)
    assert answer.status == 200, answer.body
    return answer.json()


def exported(fleet: Fleet, query: str, name: str = "api-a") -> set[str]:
    """Span ids."""
    lines = fleet.get(name, f"/export?{query}").body.splitlines()
    return {json.loads(line)["span_id"] for line in lines}


def katana(fleet: Fleet, path: str, **body: Any) -> Answer:
    return fleet.send("ingest", "POST", path, body)


def open_keys(fleet: Fleet) -> set[str]:
    async def run() -> set[str]:
        async with jetstream.connect(fleet.broker.url, name="test") as bus:
            return set(await bus.kv(subjects.OPEN_SPANS).items())

    return asyncio.run(run())


def test_a_deleted_trace_is_in_no_answer_any_more_and_the_sums_stay(fleet: Fleet) -> None:
    caller, session, user, model = fresh("caller"), fresh("session"), fresh("user"), "gpt-4o-mini"
    dims = {"caller": caller, "session_id": session, "user_id": user, "model": model}
    gone = make(name="needle", attributes={"team": "gone"}, status="error", error="haystack", **dims)
    below = make(trace_id=gone["trace_id"], parent_span_id=gone["span_id"], attributes={"team": "gone"}, **dims)
    kept = make(attributes={"team": "kept"}, **dims)
    send(fleet, gone, below, kept)
    fleet.until(lambda: get(fleet, f"/metrics?window=24h&caller={caller}")["span_count"] == 3, "counted")
    score = {"trace_id": gone["trace_id"], "value": 0.5}
    assert fleet.send("api-a", "POST", "/scores", score).status == 202
    fleet.until(lambda: get(fleet, f"/metrics/quality?window=24h&caller={caller}")["score_avg"] == 0.5, "scored")
    before, stats = get(fleet, f"/metrics?window=24h&caller={caller}"), get(fleet, "/stats")

    asked = datetime.now(UTC)
    answer = delete(fleet, f"/traces/{gone['trace_id']}")
    assert answer["log_expires_at"] == answer["log_aged_out_by"]
    del answer["log_aged_out_by"]
    aged_out = datetime.fromisoformat(answer.pop("log_expires_at"))
    assert answer == {"deleted": True, "trace_id": gone["trace_id"], "span_count": 2}
    assert timedelta(days=7) - timedelta(seconds=1) <= aged_out - asked <= timedelta(days=7, minutes=1)

    def check_gone(name: str) -> None:
        trace, span = gone["trace_id"], gone["span_id"]
        for path in ("", "?format=mist", "/timeline", f"/spans/{span}/receipt"):
            assert fleet.get(name, f"/traces/{trace}{path}").status == 404, path
        filters = ("name=needle", "q=haystack", "status=error", f"session={session}", f"user={user}", "attr.team=gone")
        for query in (*filters, f"model={model}", "attr.eval.score=0.5", "min_cost=0.1", "kind=llm", "limit=200"):
            page = get(fleet, f"/traces?caller={caller}&{query}", name)
            assert trace not in page["trace_ids"], query
            assert page["total"] == len(page["trace_ids"]), query
        recent = get(fleet, "/traces/recent?limit=10000", name)["spans"]
        assert trace not in {one["trace_id"] for one in recent}
        assert exported(fleet, f"caller={caller}", name) == {kept["span_id"]}
        details = get(fleet, f"/api/sessions/{session}/details", name)
        assert (details["totalSpans"], details["totalCostUSD"], details["status"]) == (1, 0.5, "active")
        nodes = get(fleet, f"/api/sessions/{session}/graph", name)["nodes"]
        assert [node["id"] for node in nodes] == [kept["span_id"]]
        assert get(fleet, f"/api/sessions?userId={user}", name)["sessions"][0]["totalSpans"] == 1
        found = fleet.send(name, "POST", "/scores", {"span_id": span, "value": 1})
        assert found.status == 404

    check_gone("api-a")
    # The other replica hears of it within a moment.
    time.sleep(1)
    check_gone("api-b")
    after = get(fleet, f"/metrics?window=24h&caller={caller}")
    assert (after["span_count"], after["cost"], after["tokens"]) == (3, before["cost"], before["tokens"])
    assert after["quality"] == before["quality"]
    assert get(fleet, "/stats") == stats
    for name in APIS:
        cost = get(fleet, f"/metrics/cost?window=24h&caller={caller}", name)
        exemplars = cost.get("exemplars", [])
        assert {one["trace_id"] for one in exemplars} <= {kept["trace_id"]}
    recount = get(fleet, f"/metrics/total_cost?window=24h&caller={caller}&attr.session_id={session}&attr.team=gone")
    assert recount["span_count"] == 0

    # What comes later of the same trace is new, and can be scored.
    late = make(trace_id=gone["trace_id"], caller=caller)
    send(fleet, late, {**gone, "name": "again"})
    for name in APIS:
        trace = get(fleet, f"/traces/{gone['trace_id']}", name)
        assert {one["span_id"] for one in trace["spans"]} == {late["span_id"], gone["span_id"]}
        assert {one["attributes"]["team"] for one in trace["spans"] if one["name"] == "again"} == {"gone"}
        assert not any("eval.score" in one.get("attributes", {}) for one in trace["spans"])
    again = {"trace_id": gone["trace_id"], "span_id": gone["span_id"], "value": 0.5}
    assert fleet.send("api-a", "POST", "/scores", again).status == 202
    fleet.until(lambda: get(fleet, f"/traces?caller={caller}&attr.eval.score=0.5")["total"] == 1, "scored anew")
    fleet.until(
        lambda: get(fleet, f"/metrics/quality?window=24h&caller={caller}")["scored_span_count"] == 2, "counted anew"
    )


def test_what_is_not_there_cannot_be_deleted(fleet: Fleet) -> None:
    for path, text in (("/traces/nobody", "trace not found"), ("/api/users/nobody", "user not found")):
        answer = fleet.send("api-a", "DELETE", path)
        assert (answer.status, answer.json()["error"]) == (404, text)
    assert fleet.send("api-a", "DELETE", "/api/users/nobody").json()["message"] == "user not found"
    span = make()
    send(fleet, span)
    delete(fleet, f"/traces/{span['trace_id']}")
    assert fleet.send("api-a", "DELETE", f"/traces/{span['trace_id']}").status == 404
    refused = fleet.send("api-a", "DELETE", f"/traces/{span['trace_id']}?really=1")
    assert (refused.status, refused.json()["error"][:25]) == (400, "really: unknown parameter")
    assert fleet.send("api-a", "GET", "/api/users/x").status == 405
    assert fleet.send("api-a", "PUT", "/traces/x").status == 405


def test_an_open_span_goes_too_and_its_end_brings_nothing_back(fleet: Fleet) -> None:
    root, child, session = fresh("root"), fresh("child"), fresh("session")
    secret = {"metadata": {"note": "private"}}
    assert katana(fleet, "/api/traces/start", name="r", traceId=root, sessionId=session, **secret).status == 200
    assert katana(fleet, "/api/traces/start", name="c", traceId=child, parentId=root, **secret).status == 200
    said = {"sessionId": session, "traceId": child, "role": "user", "content": "private"}
    assert katana(fleet, "/api/traces/messages", **said).status == 200
    assert katana(fleet, f"/api/traces/{child}/end", status="ok").status == 200
    fleet.until(lambda: get(fleet, f"/traces/{root}")["span_count"] == 1, "stored")
    keys = {subjects.open_span_key(root), subjects.open_span_key(child)}
    assert keys <= open_keys(fleet)
    assert delete(fleet, f"/traces/{root}")["span_count"] == 1
    assert not keys & open_keys(fleet)
    for path in (f"/traces/{root}", f"/api/sessions/{session}/details", f"/api/sessions/{session}/graph"):
        assert fleet.get("api-a", path).status == 404, path
    answer = katana(fleet, f"/api/traces/{root}/end", status="ok")
    assert (answer.status, answer.json()["message"]) == (404, f"Trace {root} not found")
    # A session of the same name starts from nothing.
    assert katana(fleet, "/api/traces/start", name="new", sessionId=session).status == 200
    fresh_one = get(fleet, f"/api/sessions/{session}/details")
    assert (fresh_one["totalSpans"], fresh_one["messages"]) == (1, [])


def test_a_user_goes_with_what_names_nobody_and_others_stay(fleet: Fleet) -> None:
    user, other = fresh("user"), fresh("other")
    alone, shared = fresh("alone"), fresh("shared")
    mine = make(session_id=alone, user_id=user)
    unnamed = make(session_id=alone)
    loose = make(user_id=user)
    below = make(trace_id=loose["trace_id"], parent_span_id=loose["span_id"])
    in_shared = make(session_id=shared, user_id=user)
    of_other = make(session_id=shared, user_id=other)
    both = make(user_id=user)
    both_other = make(trace_id=both["trace_id"], user_id=other)
    gone, kept = [mine, unnamed, loose, below, in_shared, both], [of_other, both_other]
    send(fleet, *gone, *kept)
    for session in (alone, shared):
        said = {"sessionId": session, "role": "user", "content": "hello"}
        assert katana(fleet, "/api/traces/messages", **said).status == 200
    started = fresh("started")
    begun = {"name": "r", "traceId": started, "metadata": {"userId": user}}
    assert katana(fleet, "/api/traces/start", **begun).status == 200
    fleet.until(lambda: len(get(fleet, f"/api/sessions/{shared}/details")["messages"]) == 1, "said")
    fleet.until(lambda: fleet.get("api-a", f"/traces/{started}").status == 200, "begun")
    answer = delete(fleet, f"/api/users/{user}")
    assert (answer["user_id"], answer["span_count"]) == (user, len(gone))
    for name in APIS:
        if name == "api-b":
            time.sleep(1)
        assert not any(shown(fleet, span, name) for span in gone)
        assert all(shown(fleet, span, name) for span in kept)
        assert exported(fleet, f"user={user}", name) == set()
        assert get(fleet, f"/api/sessions?userId={user}", name)["total"] == 0
        assert fleet.get(name, f"/api/sessions/{alone}/details").status == 404
        assert fleet.get(name, f"/traces/{started}").status == 404
        left = get(fleet, f"/api/sessions/{shared}/details", name)
        assert (left["totalSpans"], left["userId"], len(left["messages"])) == (1, other, 1)
    assert katana(fleet, f"/api/traces/{started}/end", status="ok").status == 404
    assert fleet.send("api-a", "DELETE", f"/api/users/{user}").status == 404


def test_a_store_that_is_made_anew_never_shows_what_was_deleted(fleet: Fleet) -> None:
    caller, user = fresh("caller"), fresh("user")
    kept = [make(caller=caller) for _ in range(300)]
    gone = [make(caller=caller) for _ in range(5)] + [make(caller=caller, user_id=user)]
    send(fleet, *gone)
    assert fleet.send("ingest", "POST", "/spans", kept).status == 202
    opened = fresh("open")
    assert katana(fleet, "/api/traces/start", name="r", traceId=opened, metadata={"userId": user}).status == 200
    fleet.until(lambda: get(fleet, f"/traces?caller={caller}")["total"] == 306, "stored")
    fleet.until(lambda: fleet.get("api-a", f"/traces/{opened}").status == 200, "begun")
    for span in gone[:-1]:
        delete(fleet, f"/traces/{span['trace_id']}")
    delete(fleet, f"/api/users/{user}")
    late = make(trace_id=gone[0]["trace_id"], caller=caller)
    send(fleet, late)
    assert fleet.terminate("api-a") == 0
    shutil.rmtree(fleet.data_of("api-a"))
    fleet.start_one("api-a")
    ids, wanted = {span["span_id"] for span in gone}, {span["span_id"] for span in [*kept, late]}
    seen: list[set[str]] = []

    def rebuilt() -> bool:
        answer = fleet.get("api-a", f"/export?caller={caller}")
        if answer.status == 200:
            seen.append({json.loads(line)["span_id"] for line in answer.body.splitlines()})
        return fleet.get("api-a", "/readyz").status == 200

    fleet.until(rebuilt, "rebuilt", 60)
    assert exported(fleet, f"caller={caller}") == wanted
    assert seen
    assert not any(ids & one for one in seen)
    for span in gone[1:]:
        assert fleet.get("api-a", f"/traces/{span['trace_id']}").status == 404
    assert fleet.get("api-a", f"/traces/{opened}").status == 404
    assert {one["span_id"] for one in get(fleet, f"/traces/{late['trace_id']}")["spans"]} == {late["span_id"]}


def test_what_was_deleted_while_a_replica_was_away_is_not_shown_by_it_for_a_moment(fleet: Fleet) -> None:
    caller = fresh("caller")
    gone, kept = make(caller=caller), make(caller=caller)
    send(fleet, gone, kept)
    fleet.kill("api-b")
    delete(fleet, f"/traces/{gone['trace_id']}")
    fleet.start_one("api-b")
    seen: list[int] = []

    def ready() -> bool:
        seen.append(fleet.get("api-b", f"/traces/{gone['trace_id']}").status)
        return fleet.get("api-b", "/readyz").status == 200

    fleet.until(ready, "ready", 60)
    assert set(seen) <= {404, 503}
    assert exported(fleet, f"caller={caller}", "api-b") == {kept["span_id"]}


def test_what_an_ingest_with_a_clock_ahead_of_ours_let_in_goes_too(fleet: Fleet) -> None:
    trace, ahead_ns = fresh("ahead"), time.time_ns() + 3600 * 10**9
    span = make_span(trace_id=trace, arrived_ns=ahead_ns)

    async def publish() -> None:
        async with jetstream.connect(fleet.broker.url, name="test") as bus:
            batch = make_batch(span, id=trace, sequence=0, arrived_ns=ahead_ns)
            await bus.publish(subjects.spans("default", 0), encode_batches([batch]))

    asyncio.run(publish())
    fleet.until(lambda: fleet.get("api-a", f"/traces/{trace}").status == 200, "stored")
    delete(fleet, f"/traces/{trace}")
    assert fleet.get("api-a", f"/traces/{trace}").status == 404


def test_a_delete_while_spans_stream_in_hides_what_came_before_it(fleet: Fleet) -> None:
    trace = fresh("stream")
    first = make(trace_id=trace)
    send(fleet, first)
    early = [make(trace_id=trace) for _ in range(200)]
    assert fleet.send("ingest", "POST", "/spans", early).status == 202
    # Accepted, and perhaps not yet stored: it is as deleted as what was.
    delete(fleet, f"/traces/{trace}")
    late = make(trace_id=trace)
    send(fleet, late)
    for name in APIS:
        assert [one["span_id"] for one in get(fleet, f"/traces/{trace}", name)["spans"]] == [late["span_id"]]
