"""A user is found, counted, alerted on and deleted as one and the same user, whichever way the calls came in."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.json_spans import fresh
from kit.nats_client import RAW, on_nats, publish
from kit.pipeline import Pipeline, http
from kit.receiver import Receiver
from tokentrace import Reporter, Span
from tokentrace.bus import subjects
from tokentrace.records import Batch, encode_batches

#: Tokens of a call to gpt-4o that costs 6 USD, and of one that costs 0.01 USD.
DEAR, CHEAP = 2_400_000, 4_000
RULE = """
alerts:
  - name: a user spends too much
    metric: total_cost
    op: gt
    threshold: 5
    window: 24h
    eval_interval: 1s
    group_by: attr.user_id
    delivery: {{ type: http, url: "{url}", send_resolved: true }}
  - name: by field
    metric: total_cost
    op: gt
    threshold: 5
    window: 24h
    eval_interval: 1s
    group_by: user_id
alert_delivery: {{ allow_hosts: ["127.0.0.1"] }}
"""
WAYS = ("reporter", "spans", "attributes", "nats", "mist", "costkatana")


def send(pipeline: Pipeline, way: str, calls: list[tuple[str | int, int]]) -> None:
    """Send one call for each (user, prompt tokens)."""
    base: dict[str, Any] = {"name": "answer", "model": "gpt-4o", "provider": "openai"}
    if way == "reporter":
        with Reporter("who", pipeline.nats_url) as reporter:
            for user, tokens in calls:
                reporter.report(Span(**base, user_id=str(user), prompt_tokens=tokens, latency_ns=10**6))
            assert reporter.flush(30)
            assert reporter.stats().failed == 0
    elif way in ("spans", "nats"):
        body = json.dumps([{**base, "user_id": str(user), "prompt_tokens": tokens} for user, tokens in calls]).encode()
        if way == "nats":
            publish(pipeline, (RAW, body))
        else:
            assert pipeline.post("/spans", body).status == 202
    elif way == "attributes":
        spans = [{**base, "prompt_tokens": tokens, "attributes": {"user_id": user}} for user, tokens in calls]
        assert pipeline.post("/spans", spans).status == 202
    elif way == "mist":
        for user, tokens in calls:
            attrs = {"model": "gpt-4o", "provider": "openai", "tokens_in": tokens, "tokens_out": 0, "user_id": user}
            now_ns = time.time_ns()
            payload: dict[str, Any] = {
                "trace_id": fresh("m"),
                "span_id": "1",
                "operation": "answer",
                "start_ns": now_ns - 10**6,
            }
            payload |= {"end_ns": now_ns, "status": "ok", "attrs": attrs}
            envelope = {"version": "1", "type": "trace.span", "source": "tool", "payload": payload}
            assert pipeline.post("/mist", envelope).status in (200, 202)
    else:
        for user, tokens in calls:
            whole: dict[str, Any] = {
                "name": "answer",
                "type": "llm",
                "sessionId": fresh("s"),
                "traceId": fresh("k"),
                "status": "ok",
            }
            whole |= {"model": "gpt-4o", "tokens": {"input": tokens, "output": 0}}
            whole |= {"metadata": {"userId": str(user), "provider": "openai"}}
            assert pipeline.post("/api/traces/ingest", {"spans": [whole]}).status in (200, 201, 202)


class Running:
    """A running pipeline with rules by user, and the receiver of their events."""

    def __init__(self, directory: Path) -> None:
        self.receiver = Receiver()
        file = directory / "tokentrace.yml"
        file.write_text(RULE.format(url=self.receiver.url))
        self.pipeline = Pipeline(directory / "run", "--config", str(file))

    def get(self, path: str) -> Any:
        return self.pipeline.get(path).json()

    def instances(self, rule: str) -> dict[str, str]:
        """Return the instances that the rule shows, with their states."""
        status = self.get(f"/alerts/{rule.replace(' ', '%20')}/status")
        return {instance["group"]: instance["state"] for instance in status["instances"]}

    def fires(self, rule: str, user: str) -> bool:
        return user in self.firing(rule)

    def firing(self, rule: str) -> set[str]:
        return {user for user, state in self.instances(rule).items() if state == "firing"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    started = Running(tmp_path_factory.mktemp("who"))
    with started.receiver:
        started.pipeline.start()
        yield started
        assert started.pipeline.stop() == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_rule_by_user_fires_for_the_one_user_over_the_limit_on_every_way_in(running: Running, way: str) -> None:
    spender: str | int = 700_000 + WAYS.index(way) if way == "attributes" else fresh(f"spender-{way}")
    others = [fresh(f"thrifty-{way}") for _ in range(5)]
    send(running.pipeline, way, [(user, CHEAP) for user in others] + [(spender, DEAR)])
    rules = ("a user spends too much", "by field")
    for rule in rules:
        running.pipeline.until(partial(running.fires, rule, str(spender)), f"{rule} fires", 30)
    # All other users are known to the rule, and none fires.
    assert all({*others} <= running.instances(rule).keys() for rule in rules)
    assert not {*others} & {user for rule in rules for user in running.firing(rule)}
    running.pipeline.until(lambda: running.get(f"/traces?user={spender}")["total"] == 1, "stored")
    for question in ("user", "user_id", "attr.user_id"):
        assert running.get(f"/metrics/total_cost?window=1h&{question}={spender}")["value"] == pytest.approx(6)
        assert running.get(f"/traces?{question}={spender}")["total"] == 1
        assert len(running.pipeline.get(f"/export?{question}={spender}").body.splitlines()) == 1
    for path in ("total_cost?window=1h&groupby=user_id", "total_cost?window=1h&groupby=attr.user_id"):
        assert running.get(f"/metrics/{path}")["by_user_id"][str(spender)] == pytest.approx(6)
    by_user = running.get("/metrics/cost_by_attribute?window=1h&key=user_id")["value"]
    assert by_user[str(spender)] == pytest.approx(6)
    assert by_user[others[0]] == pytest.approx(0.01)


def test_three_thousand_users_under_the_limit_do_not_fire(running: Running) -> None:
    before = {event["group"]["attr.user_id"] for event in (sent.json() for sent in running.receiver.sent)}
    users = [fresh("crowd") for _ in range(3_000)]
    for start in range(0, 3_000, 500):
        send(running.pipeline, "spans", [(user, CHEAP) for user in users[start : start + 500]])
    counted = "/alerts/by%20field/status"
    running.pipeline.until(lambda: running.get(counted)["spans_considered"] >= 3_000, "considered", 60)
    running.pipeline.until(lambda: running.get(counted)["overflow"]["span_count"] > 2_000, "overflow", 30)
    time.sleep(2)
    status = running.get(counted)
    assert status["overflow"]["current_value"] > 5
    assert not {user for user in running.firing("by field") if user.startswith("crowd")}
    assert "other" not in running.instances("by field")
    after = {event["group"]["attr.user_id"] for event in (sent.json() for sent in running.receiver.sent)}
    assert after == before


def test_two_different_values_for_the_same_user_are_refused(running: Running) -> None:
    for path in ("/traces", "/metrics/total_cost", "/export"):
        answer = running.pipeline.get(f"{path}?user=a&user_id=b")
        assert (answer.status, answer.json()["error"]) == (400, "user_id: 'b' differs from user, which means the same")
        assert running.pipeline.get(f"{path}?user=a&user_id=a&attr.user_id=a").status == 200


def test_an_empty_user_is_nobody_in_every_list(running: Running) -> None:
    named, nobody, session = fresh("trace"), fresh("trace"), fresh("session")
    base = {"model": "gpt-4o", "prompt_tokens": 1, "name": session}
    spans = [{**base, "trace_id": named, "user_id": "x", "session_id": fresh("named")}]
    spans.append({**base, "trace_id": nobody, "session_id": session})
    assert running.pipeline.post("/spans", spans).status == 202
    running.pipeline.until(lambda: running.get(f"/traces?name={session}")["total"] == 2, "stored")
    assert running.get(f"/traces?name={session}&user=")["trace_ids"] == [nobody]
    sessions = running.get("/api/sessions?userId=&limit=100")["sessions"]
    assert session in {shown["sessionId"] for shown in sessions}
    assert all(not shown.get("userId") for shown in sessions)


def everything(running: Running, user: str) -> dict[str, bytes]:
    """Return the answers of every route that might name a user."""
    paths = ["/traces/recent?limit=10000", "/export", "/export?format=csv", "/api/sessions?limit=100", "/health"]
    paths += ["/stats", "/metrics?window=24h&groupby=user_id", "/metrics/cost_by_attribute?window=24h&key=user_id"]
    for rule in ("a%20user%20spends%20too%20much", "by%20field"):
        paths += [f"/alerts/{rule}/status", f"/alerts/{rule}/deliveries"]
    paths += ["/alerts", "/rejected?limit=200", "/metrics/prometheus", f"/traces?user={user}"]
    return {path: running.pipeline.get(path).body for path in paths}


def in_stream(running: Running, stream: str, needle: bytes) -> int:
    """Return how many messages of *stream* contain *needle*."""

    async def count(client: Any) -> int:
        js = client.jetstream()
        state = (await js.stream_info(stream)).state
        found = 0
        for sequence in range(state.first_seq, state.last_seq + 1):
            try:
                message = await js.get_msg(stream, sequence)
            except Exception:  # noqa: BLE001 - erased messages are missing
                continue
            found += needle in (message.data or b"")
        return found

    return on_nats(running.pipeline, count)


def is_erased(running: Running, stream: str, needle: bytes) -> bool:
    return in_stream(running, stream, needle) == 0


@pytest.mark.story
def test_after_a_deletion_no_answer_alert_delivery_or_dead_letter_names_the_user(running: Running) -> None:
    user, other = fresh("canary"), fresh("stays")
    needle = user.encode()
    send(running.pipeline, "spans", [(user, DEAR), (other, DEAR)])
    rule = "a user spends too much"
    running.pipeline.until(lambda: {user, other} <= running.firing(rule), "firing", 30)

    def received(status: str, of: str) -> bool:
        events = [sent.json() for sent in running.receiver.sent]
        return any(event["status"] == status and event["group"] == {"attr.user_id": of} for event in events)

    running.pipeline.until(lambda: received("firing", user) and received("firing", other), "delivered")
    # A span without tokens is refused, and its dead letter shows its fields.
    bad = Span(trace_id=fresh("bad"), span_id="1", name="x", model="gpt-4o", user_id=user)
    publish(running.pipeline, (RAW, encode_batches([Batch(id=fresh("foreign.who"), spans=[bad])])))
    running.pipeline.until(lambda: in_stream(running, subjects.REJECTED, needle) == 1, "dead letter")
    assert in_stream(running, subjects.ALERTS, needle) >= 1
    running.pipeline.until(lambda: needle in everything(running, user)["/alerts/by%20field/status"], "shown")

    answer = http("DELETE", f"{running.pipeline.url}/api/users/{user}").json()
    assert answer["span_count"] == 1
    places = {"answers", "alerts", "deliveries", "dead_letters", "log", "store", "open_spans"}
    assert answer["clean_by"].keys() == places
    # The receiver is told that the episode is over.
    running.pipeline.until(lambda: received("resolved", user), "resolved", 30)

    def clean() -> bool:
        answers = everything(running, user)
        return all(needle not in body for path, body in answers.items() if not path.endswith(user))

    running.pipeline.until(clean, "clean answers", 90)
    for stream in (subjects.ALERTS, subjects.DELIVERIES, subjects.REJECTED):
        running.pipeline.until(partial(is_erased, running, stream, needle), f"{stream} erased", 90)
    assert running.get(f"/traces?user={user}")["total"] == 0
    # The other user's episode is still open, and the rule still publishes.
    assert other in running.firing(rule)
    later = fresh("later")
    send(running.pipeline, "spans", [(later, DEAR)])
    running.pipeline.until(lambda: received("firing", later), "a later event is published", 30)


#: The places that hold the id of a deleted user until the times in the answer (log and store), and the blocks of
#: snapshots and of raw messages, which NATS has discarded and overwrites later.
LATER = ("TT_SPANS", "TT_RAW", "data/spans/spans-", "OBJ_tt_snapshots")


@pytest.mark.story
def test_after_a_deletion_no_file_names_the_user_but_those_that_the_answer_lists(running: Running) -> None:
    user = fresh("canary")
    send(running.pipeline, "spans", [(user, DEAR)])
    running.pipeline.until(lambda: user in running.firing("by field"), "firing", 30)
    assert http("DELETE", f"{running.pipeline.url}/api/users/{user}").status == 200
    for stream in (subjects.ALERTS, subjects.DELIVERIES):
        running.pipeline.until(partial(is_erased, running, stream, user.encode()), f"{stream} erased", 90)
    wal = list(running.pipeline.data.rglob("spans-*.wal"))
    assert not any(user.encode() in file.read_bytes() for file in wal)
    time.sleep(3)
    assert running.pipeline.stop() == 0
    files = [file for file in running.pipeline.directory.rglob("*") if file.is_file()]
    held = [str(file) for file in files if user.encode() in file.read_bytes()]
    assert [name for name in held if not any(place in name for place in LATER)] == []


KEY = "a key of sixteen or more"


def test_with_hash_ids_nothing_shows_the_id_and_the_id_still_finds_deletes_and_groups(tmp_path: Path) -> None:
    settings = {"redaction": {"hash_ids": True, "hash_key": KEY}}
    (tmp_path / "tokentrace.yml").write_text(json.dumps(settings))
    pipeline = Pipeline(tmp_path / "run", "--config", str(tmp_path / "tokentrace.yml"))
    users = {way: f"{fresh(way)}@x.io" for way in WAYS}
    pipeline.start()
    try:
        for way, user in users.items():
            send(pipeline, way, [(user, CHEAP)])
        pipeline.until(lambda: pipeline.get("/traces").json()["total"] == len(WAYS), "stored")
        exported = pipeline.get("/export").body
        by_user = pipeline.get("/metrics/total_cost?window=1h&groupby=user_id").json()["by_user_id"]
        for way, user in users.items():
            hashed = "h_" + hmac.digest(KEY.encode(), user.encode(), "sha256").hex()[:32]
            assert user.encode() not in exported, way
            assert by_user[hashed] == pytest.approx(0.01), way
            for question in (f"user={user}", f"attr.user_id={user}", f"user={hashed}"):
                assert pipeline.get(f"/traces?{question}").json()["total"] == 1, (way, question)
        deleted = http("DELETE", f"{pipeline.url}/api/users/{users['spans']}")
        assert (deleted.status, deleted.json()["span_count"]) == (200, 1)
        assert deleted.json()["user_id"].startswith("h_")
        assert pipeline.get(f"/traces?user={users['spans']}").json()["total"] == 0
    finally:
        assert pipeline.stop() == 0
