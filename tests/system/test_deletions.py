"""Deleted records are no longer in the responses of either api, also after a store is rebuilt from the log."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from kit.builders import make_batch, make_span
from kit.fleet import Fleet
from kit.json_spans import fresh, json_span
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


def get(fleet: Fleet, path: str, name: str = "api-a") -> Any:
    return fleet.get(name, path).json()


def send(fleet: Fleet, *spans: dict[str, Any]) -> None:
    """Send *spans* and wait until both apis have stored them."""
    assert fleet.send("ingest", "POST", "/spans", list(spans)).status == 202
    for name in APIS:
        for span in spans:
            fleet.until(partial(shown, fleet, span, name), "stored")


def shown(fleet: Fleet, span: dict[str, Any], name: str = "api-a") -> bool:
    answer = fleet.get(name, f"/traces/{span['trace_id']}")
    return answer.status == 200 and span["span_id"] in [shown["span_id"] for shown in answer.json()["spans"]]


def delete(fleet: Fleet, path: str, name: str = "api-a") -> Any:
    answer = fleet.send(name, "DELETE", path)
    assert answer.status == 200, answer.body
    return answer.json()


def exported(fleet: Fleet, query: str, name: str = "api-a") -> set[str]:
    """Return the ids of the exported spans."""
    lines = fleet.get(name, f"/export?{query}").body.splitlines()
    return {json.loads(line)["span_id"] for line in lines}


def katana(fleet: Fleet, path: str, **body: Any) -> Answer:
    return fleet.send("ingest", "POST", path, body)


def open_keys(fleet: Fleet) -> set[str]:
    async def run() -> set[str]:
        async with jetstream.connect(fleet.broker.url, name="test") as bus:
            return set(await bus.kv(subjects.OPEN_SPANS).items())

    return asyncio.run(run())


def test_a_deleted_trace_is_in_no_response_and_sums_still_include_it(fleet: Fleet) -> None:
    caller, session, user, model = fresh("caller"), fresh("session"), fresh("user"), "gpt-4o-mini"
    dims = {"caller": caller, "session_id": session, "user_id": user, "model": model}
    gone = json_span(name="needle", attributes={"team": "gone"}, status="error", error="haystack", **dims)
    # Other tokens than its parent's: with equal ones the two would be one call.
    inside = {"trace_id": gone["trace_id"], "parent_span_id": gone["span_id"], "prompt_tokens": 7}
    below = json_span(**inside, attributes={"team": "gone"}, **dims)
    kept = json_span(attributes={"team": "kept"}, **dims)
    send(fleet, gone, below, kept)
    fleet.until(lambda: get(fleet, f"/metrics?window=24h&caller={caller}")["span_count"] == 3, "counted")
    score = {"trace_id": gone["trace_id"], "value": 0.5}
    assert fleet.send("api-a", "POST", "/scores", score).status == 202
    fleet.until(lambda: get(fleet, f"/metrics/quality?window=24h&caller={caller}")["score_avg"] == 0.5, "scored")
    before, stats = get(fleet, f"/metrics?window=24h&caller={caller}"), get(fleet, "/stats")

    requested = datetime.now(UTC)
    answer = delete(fleet, f"/traces/{gone['trace_id']}")
    assert answer["log_expires_at"] == answer["log_aged_out_by"]
    del answer["log_aged_out_by"]
    aged_out = datetime.fromisoformat(answer.pop("log_expires_at"))
    clean_by = {place: datetime.fromisoformat(time) - requested for place, time in answer.pop("clean_by").items()}
    week = timedelta(days=7)
    wanted = {"answers": timedelta(), "open_spans": timedelta(days=3), "log": week, "store": week + timedelta(days=1)}
    assert clean_by.keys() == wanted.keys()
    assert all(timedelta(seconds=-1) <= clean_by[place] - wanted[place] <= timedelta(minutes=1) for place in wanted)
    assert answer == {"deleted": True, "trace_id": gone["trace_id"], "span_count": 2}
    assert timedelta(days=7) - timedelta(seconds=1) <= aged_out - requested <= timedelta(days=7, minutes=1)

    def check_gone(name: str) -> None:
        trace, span = gone["trace_id"], gone["span_id"]
        for path in ("", "?format=mist", "/timeline", f"/spans/{span}", f"/spans/{span}/receipt"):
            assert fleet.get(name, f"/traces/{trace}{path}").status == 404, path
        filters = ("name=needle", "q=haystack", "status=error", f"session={session}", f"user={user}", "attr.team=gone")
        for query in (*filters, f"model={model}", "attr.eval.score=0.5", "min_cost=0.1", "kind=llm", "limit=200"):
            page = get(fleet, f"/traces?caller={caller}&{query}", name)
            assert trace not in page["trace_ids"], query
            assert page["total"] == len(page["trace_ids"]), query
        recent = get(fleet, "/traces/recent?limit=10000", name)["spans"]
        assert trace not in {span["trace_id"] for span in recent}
        assert exported(fleet, f"caller={caller}", name) == {kept["span_id"]}
        details = get(fleet, f"/api/sessions/{session}/details", name)
        assert (details["totalSpans"], details["totalCostUSD"], details["status"]) == (1, 0.5, "active")
        nodes = get(fleet, f"/api/sessions/{session}/graph", name)["nodes"]
        assert [node["id"] for node in nodes] == [kept["span_id"]]
        assert get(fleet, f"/api/sessions?userId={user}", name)["sessions"][0]["totalSpans"] == 1
        scored = fleet.send(name, "POST", "/scores", {"span_id": span, "value": 1})
        assert scored.status == 404

    check_gone("api-a")
    # The other api reads the deletion within a second.
    time.sleep(1)
    check_gone("api-b")
    after = get(fleet, f"/metrics?window=24h&caller={caller}")
    assert (after["span_count"], after["cost"], after["tokens"]) == (3, before["cost"], before["tokens"])
    assert after["quality"] == before["quality"]
    assert get(fleet, "/stats") == stats
    for name in APIS:
        cost = get(fleet, f"/metrics/cost?window=24h&caller={caller}", name)
        exemplars = cost.get("exemplars", [])
        assert {exemplar["trace_id"] for exemplar in exemplars} <= {kept["trace_id"]}
    by_attribute = get(
        fleet, f"/metrics/total_cost?window=24h&caller={caller}&attr.session_id={session}&attr.team=gone"
    )
    assert by_attribute["span_count"] == 0

    # Spans of the same trace that arrive later are shown and can be scored.
    late = json_span(trace_id=gone["trace_id"], caller=caller)
    send(fleet, late, {**gone, "name": "again"})
    for name in APIS:
        trace = get(fleet, f"/traces/{gone['trace_id']}", name)
        assert {span["span_id"] for span in trace["spans"]} == {late["span_id"], gone["span_id"]}
        assert {span["attributes"]["team"] for span in trace["spans"] if span["name"] == "again"} == {"gone"}
        assert not any("eval.score" in span.get("attributes", {}) for span in trace["spans"])
    again = {"trace_id": gone["trace_id"], "span_id": gone["span_id"], "value": 0.5}
    assert fleet.send("api-a", "POST", "/scores", again).status == 202
    fleet.until(lambda: get(fleet, f"/traces?caller={caller}&attr.eval.score=0.5")["total"] == 1, "scored anew")
    fleet.until(
        lambda: get(fleet, f"/metrics/quality?window=24h&caller={caller}")["scored_span_count"] == 2, "counted anew"
    )


def test_deleting_an_unknown_target_is_a_404(fleet: Fleet) -> None:
    for path, text in (("/traces/unknown", "trace not found"), ("/api/users/unknown", "user not found")):
        answer = fleet.send("api-a", "DELETE", path)
        assert (answer.status, answer.json()["error"]) == (404, text)
    assert fleet.send("api-a", "DELETE", "/api/users/unknown").json()["message"] == "user not found"
    span = json_span()
    send(fleet, span)
    delete(fleet, f"/traces/{span['trace_id']}")
    assert fleet.send("api-a", "DELETE", f"/traces/{span['trace_id']}").status == 404
    refused = fleet.send("api-a", "DELETE", f"/traces/{span['trace_id']}?really=1")
    assert (refused.status, refused.json()["error"][:25]) == (400, "really: unknown parameter")
    assert fleet.send("api-a", "GET", "/api/users/x").status == 405
    assert fleet.send("api-a", "PUT", "/traces/x").status == 405


def test_a_started_span_is_deleted_too_and_its_end_restores_nothing(fleet: Fleet) -> None:
    root, child, session = fresh("root"), fresh("child"), fresh("session")
    secret = {"metadata": {"note": "private"}}
    assert katana(fleet, "/api/traces/start", name="r", traceId=root, sessionId=session, **secret).status == 200
    assert katana(fleet, "/api/traces/start", name="c", traceId=child, parentId=root, **secret).status == 200
    message = {"sessionId": session, "traceId": child, "role": "user", "content": "private"}
    assert katana(fleet, "/api/traces/messages", **message).status == 200
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
    # A later session with the same id starts empty.
    assert katana(fleet, "/api/traces/start", name="new", sessionId=session).status == 200
    new_session = get(fleet, f"/api/sessions/{session}/details")
    assert (new_session["totalSpans"], new_session["messages"]) == (1, [])


def test_deleting_a_user_deletes_records_without_a_user_in_their_sessions_and_keeps_others(fleet: Fleet) -> None:
    user, other = fresh("user"), fresh("other")
    alone, shared = fresh("alone"), fresh("shared")
    mine = json_span(session_id=alone, user_id=user)
    unnamed = json_span(session_id=alone)
    loose = json_span(user_id=user)
    below = json_span(trace_id=loose["trace_id"], parent_span_id=loose["span_id"], prompt_tokens=7)
    in_shared = json_span(session_id=shared, user_id=user)
    of_other = json_span(session_id=shared, user_id=other)
    both = json_span(user_id=user)
    both_other = json_span(trace_id=both["trace_id"], user_id=other)
    gone, kept = [mine, unnamed, loose, below, in_shared, both], [of_other, both_other]
    send(fleet, *gone, *kept)
    for session in (alone, shared):
        message = {"sessionId": session, "role": "user", "content": "hello"}
        assert katana(fleet, "/api/traces/messages", **message).status == 200
    started = fresh("started")
    begun = {"name": "r", "traceId": started, "metadata": {"userId": user}}
    assert katana(fleet, "/api/traces/start", **begun).status == 200
    fleet.until(lambda: len(get(fleet, f"/api/sessions/{shared}/details")["messages"]) == 1, "message stored")
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


def test_a_rebuilt_store_never_shows_deleted_records(fleet: Fleet) -> None:
    caller, user = fresh("caller"), fresh("user")
    kept = [json_span(caller=caller) for _ in range(300)]
    gone = [json_span(caller=caller) for _ in range(5)] + [json_span(caller=caller, user_id=user)]
    send(fleet, *gone)
    assert fleet.send("ingest", "POST", "/spans", kept).status == 202
    opened = fresh("open")
    assert katana(fleet, "/api/traces/start", name="r", traceId=opened, metadata={"userId": user}).status == 200
    fleet.until(lambda: get(fleet, f"/traces?caller={caller}")["total"] == 306, "stored")
    fleet.until(lambda: fleet.get("api-a", f"/traces/{opened}").status == 200, "begun")
    for span in gone[:-1]:
        delete(fleet, f"/traces/{span['trace_id']}")
    delete(fleet, f"/api/users/{user}")
    late = json_span(trace_id=gone[0]["trace_id"], caller=caller)
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
    assert not any(ids & exported_ids for exported_ids in seen)
    for span in gone[1:]:
        assert fleet.get("api-a", f"/traces/{span['trace_id']}").status == 404
    assert fleet.get("api-a", f"/traces/{opened}").status == 404
    assert {span["span_id"] for span in get(fleet, f"/traces/{late['trace_id']}")["spans"]} == {late["span_id"]}


def test_an_api_that_was_down_during_a_deletion_never_shows_the_deleted_trace(fleet: Fleet) -> None:
    caller = fresh("caller")
    gone, kept = json_span(caller=caller), json_span(caller=caller)
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


def test_a_span_whose_arrival_time_is_ahead_of_the_clock_of_the_api_is_deleted_too(fleet: Fleet) -> None:
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


def test_a_deletion_while_spans_arrive_hides_those_that_were_accepted_before_it(fleet: Fleet) -> None:
    trace = fresh("stream")
    first = json_span(trace_id=trace)
    send(fleet, first)
    early = [json_span(trace_id=trace) for _ in range(200)]
    assert fleet.send("ingest", "POST", "/spans", early).status == 202
    # The deletion also applies to accepted spans that may not be stored yet.
    delete(fleet, f"/traces/{trace}")
    late = json_span(trace_id=trace)
    send(fleet, late)
    for name in APIS:
        assert [span["span_id"] for span in get(fleet, f"/traces/{trace}", name)["spans"]] == [late["span_id"]]
