"""``GET /alerts/events`` agrees with the streams and with what the receivers got."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from kit.pipeline import Pipeline, http
from kit.receiver import CALL, Receiver, Reply, delete, make_rule, path_of, read
from tokentrace.bus import subjects


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    answers = {"/good": 200, "/bad": 500, "/refuses": 400}
    with Receiver(lambda sent: Reply(answers[sent.path.partition("?")[0]])) as serving:
        yield serving


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        yield serving
    finally:
        assert serving.stop() == 0


def listed(pipeline: Pipeline, **asked: Any) -> list[dict[str, Any]]:
    """Return the events of all pages."""
    found: list[dict[str, Any]] = []
    while True:
        answer = pipeline.get(f"/alerts/events?{urlencode(asked)}")
        assert answer.status == 200
        page = answer.json()
        assert page["count"] == len(page["events"])
        found += page["events"]
        if page["next_cursor"] is None:
            return found
        asked["cursor"] = page["next_cursor"]


def test_the_listed_events_are_those_of_the_stream_with_what_became_of_them(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    deliveries: dict[str, Any] = {
        "good": {"type": "webhook", "url": f"{receiver.url}/good?token=geheim", "send_resolved": True},
        "bad": {"type": "webhook", "url": f"{receiver.url}/bad", "max_retries": 12},
        "refuses": {"type": "webhook", "url": f"{receiver.url}/refuses"},
        "wakes nothing": None,
    }
    for name, delivery in deliveries.items():
        rule = make_rule(name, delivery, eval_interval="1s", group_by="attr.user_id")
        assert pipeline.post("/alerts", rule).status == 201
    spans = [{**CALL, "attributes": {"user_id": user}} for user in ("ann", "bob")]
    assert pipeline.post("/spans", spans).status == 202

    def outcomes() -> dict[str, list[str]]:
        by_rule: dict[str, list[str]] = {}
        for event in listed(pipeline):
            by_rule.setdefault(event["alert"], []).append(event["delivery"]["outcome"])
        return by_rule

    expected = {
        "good": ["delivered"] * 2,
        "bad": ["retry"] * 2,
        "refuses": ["dead"] * 2,
        # It waits in the queue behind the events that are retried, but there is nothing to wait for.
        "wakes nothing": ["none"] * 2,
    }
    pipeline.until(lambda: outcomes() == expected, "each event has its outcome")
    delete(pipeline, "good")
    pipeline.until(lambda: len(outcomes()["good"]) == 4, "the episodes of the deleted rule are ended")
    pipeline.until(lambda: outcomes()["good"] == ["delivered"] * 4, "their ends are delivered")
    for name in expected:
        events = listed(pipeline, rule=name, limit=1)
        stored = read(pipeline, subjects.ALERTS, name)
        assert [{key: event[key] for key in event if key != "delivery"} for event in events] == stored[::-1]
        records = read(pipeline, subjects.DELIVERIES, name)
        for event in events:
            own = [one for one in records if all(one[key] == event[key] for key in ("fired_at", "status", "group"))]
            told = event["delivery"]
            if not own:
                assert told == {
                    "outcome": "none",
                    "attempts": 0,
                    "channel": None,
                    "destination": None,
                    "error": "",
                    "at": None,
                }
                continue
            # Of an event that is retried, another attempt may have been made meanwhile.
            assert 1 <= told["attempts"] <= own[-1]["attempt"]
            same = own[told["attempts"] - 1]
            assert told == {key: same[key] for key in ("outcome", "channel", "destination", "error", "at")} | {
                "attempts": same["attempt"]
            }
            assert "geheim" not in str(event)
    ends = [event for event in listed(pipeline, rule="good") if event["status"] == "resolved"]
    assert {(event["group"]["attr.user_id"], event["ended_by"]) for event in ends} == {
        ("ann", "deleted"),
        ("bob", "deleted"),
    }
    assert sum(sent.path.startswith("/good") for sent in receiver.sent) == 4
    newest = listed(pipeline)[0]["fired_at"]
    assert {event["fired_at"] for event in listed(pipeline, since=newest)} == {newest}


def test_a_wrong_parameter_of_the_list_of_events_is_named(pipeline: Pipeline) -> None:
    for query, error in (
        ("cursor=x", "cursor: 'x' is not a cursor of an earlier answer"),
        ("since=now", "since: "),
        ("limit=-1", "limit: '-1' is not a whole number"),
        ("user=a", "user: unknown parameter; allowed are cursor, limit, outcome, rule, since, status, until"),
    ):
        answer = pipeline.get(f"/alerts/events?{query}")
        assert answer.status == 400
        assert error in answer.json()["error"]


def test_a_rule_shows_its_destination_without_secrets_and_who_silenced_it_and_what_that_held_back(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    url = receiver.url.replace("//", "//geheim:geheim@") + "/good/geheim?token=geheim"
    rule = make_rule("noisy", {"type": "webhook", "url": url, "send_resolved": True}, eval_interval="1s", cooldown="1h")
    assert pipeline.post("/alerts", rule).status == 201
    silence = {"duration": "2h", "by": "ann", "comment": "load test"}
    assert pipeline.post(path_of("noisy", "/silence"), silence).status == 200
    assert pipeline.post("/spans", [CALL]).status == 202

    def shown() -> dict[str, Any]:
        return dict(pipeline.get(path_of("noisy", "/status")).json())

    pipeline.until(lambda: shown()["held_back"] == 1, "one firing is held back")
    rule = shown()
    assert (rule["silenced_by"], rule["silence_comment"]) == ("ann", "load test")
    assert rule["silenced_at"] < rule["silenced_until"]
    assert (rule["destination"], rule["send_resolved"]) == (f"{receiver.url}/...", True)
    assert "geheim" not in str(rule)
    assert (listed(pipeline), receiver.sent) == ([], [])
    assert http("DELETE", pipeline.url + path_of("noisy", "/silence")).status == 204
    pipeline.until(lambda: len(receiver.sent) == 1, "the rule fires after the silence")
    rule = shown()
    assert (rule["silenced_by"], rule["silence_comment"], rule["silenced_at"]) == (None, None, None)
    assert rule["held_back"] == 1
    for body in ({}, {"by": "ann"}, {"duration": "1h", "reason": "x"}, {"duration": "1h", "by": 5}, ["1h"]):
        answer = pipeline.post(path_of("noisy", "/silence"), body)
        assert answer.status == 400
        assert answer.json()["error"].partition(":")[0] in ("body", "by")


def test_a_preview_finds_what_the_rule_found_and_the_series_its_last_value(pipeline: Pipeline) -> None:
    rule = make_rule("burst", threshold=3, window="5s", eval_interval="1s", cooldown="0s")
    assert pipeline.post("/alerts", rule).status == 201
    for _ in range(2):
        assert pipeline.post("/spans", [CALL] * 4).status == 202
        pipeline.until(lambda: listed(pipeline)[:1] != [] and listed(pipeline)[0]["status"] == "firing", "it fires")
        pipeline.until(lambda: listed(pipeline)[0]["status"] == "resolved", "it is resolved")
    preview = pipeline.post("/alerts/preview?window=1h", {**rule, "name": "not yet", "silenced": True})
    assert preview.status == 200
    found = preview.json()
    live = [(event["fired_at"], event["status"], event["value"]) for event in reversed(listed(pipeline))]
    assert [(event["fired_at"], event["status"], event["value"]) for event in found["events"]] == live
    assert (found["firings"] + found["resolutions"], found["complete"], found["name"]) == (len(live), True, "not yet")
    series = pipeline.get(path_of("burst", "/series?window=1h")).json()
    assert (series["threshold"], series["op"], series["metric"]) == (3, "gte", "span_count")
    assert max(point["value"] or 0 for point in series["points"]) == 4
    by_instant = {point["at"]: point for point in series["points"]}
    assert {by_instant[at]["value"] for at, status, _ in live if status == "firing" and at in by_instant} == {4}
    assert [one["name"] for one in pipeline.get("/alerts").json()] == ["burst"]
    for method, path, body, status, error in (
        ("POST", "/alerts/preview", {**rule, "metric": "x"}, 400, "metric"),
        ("POST", "/alerts/preview?window=31d", rule, 400, "window: is over 30d"),
        ("POST", "/alerts/preview?history=1h", rule, 400, "history: unknown parameter"),
        ("GET", "/alerts/absent/series", None, 404, "no rule is called 'absent'"),
        ("GET", "/alerts/burst/series?window=0s", None, 400, "window: '0s' is shorter than 1s"),
    ):
        answer = pipeline.post(path, body) if method == "POST" else pipeline.get(path)
        assert answer.status == status, path
        assert error in answer.json()["error"]
