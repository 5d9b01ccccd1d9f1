"""What the API says about a rule beside its state: its definition, its silences, its deliveries and its past."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from kit.pipeline import Answer, Pipeline, http
from kit.receiver import CALL, Receiver, Reply, make_rule, path_of
from tokentrace.units import SECOND, parse_instant, render_instant

RULES = """
alerts:
  - name: of the file
    metric: latency_p95
    op: ">"
    threshold: 3000
    window: 5m
    delivery: {type: webhook, url: "http://127.0.0.1:1/geheim", headers: {X-Key: geheim}}
alert_delivery: {allow_hosts: ["127.0.0.1"]}
http_server:
  public_url: https://traces.example.com/
"""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver(lambda sent: Reply({"/good": 200}.get(sent.path, 400))) as serving:
        yield serving


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("described")
    (directory / "tokentrace.yml").write_text(RULES)
    serving = Pipeline(directory)
    serving.start()
    try:
        yield serving
    finally:
        assert serving.stop() == 0


def put(pipeline: Pipeline, name: str, rule: Any) -> Answer:
    return http("PUT", pipeline.url + path_of(name), json.dumps(rule).encode(), {"Content-Type": "application/json"})


def listed(pipeline: Pipeline, **asked: Any) -> list[dict[str, Any]]:
    answer = pipeline.get(f"/alerts/events?{urlencode(asked)}")
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json()["events"]
    return found


def test_a_definition_has_no_secret_and_put_back_changes_the_rest(pipeline: Pipeline, receiver: Receiver) -> None:
    of_file = pipeline.get(path_of("of the file", "/definition")).json()
    assert of_file["source"] == "file"
    assert of_file["hidden"] == ["delivery.url", "delivery.headers.X-Key"]
    assert of_file["rule"]["delivery"]["url"] == "http://127.0.0.1:1/..."
    delivery = {"type": "webhook", "url": f"{receiver.url}/good", "secret": "geheim", "headers": {"X-Key": "geheim"}}
    rule = make_rule("edited", delivery, threshold=1e6, eval_interval="1s")
    assert pipeline.post("/alerts", rule).status == 201
    shown = pipeline.get(path_of("edited", "/definition"))
    assert b"geheim" not in shown.body
    definition = shown.json()["rule"]
    assert put(pipeline, "edited", {**definition, "threshold": 1}).status == 200
    assert pipeline.post("/spans", CALL).status == 202
    pipeline.until(lambda: [sent for sent in receiver.sent if sent.path == "/good"] != [], "it is delivered")
    [sent] = [sent for sent in receiver.sent if sent.path == "/good"]
    assert sent.header("X-Key") == "geheim"
    assert sent.header("X-Tokentrace-Signature") is not None
    elsewhere = {**definition, "delivery": {**definition["delivery"], "url": f"{receiver.url}/other"}}
    answer = put(pipeline, "edited", elsewhere)
    assert (answer.status, b"rule.delivery.secret: <hidden>" in answer.body) == (400, True)
    assert b"is shortened" in pipeline.post("/alerts", {**definition, "name": "copy"}).body
    assert pipeline.get(path_of("absent", "/definition")).status == 404
    event = sent.json()
    begin = render_instant(parse_instant(event["starts_at"]) - 3600 * SECOND)
    assert event["link"] == f"https://traces.example.com/#/alerts/edited?from={begin}&to={event['fired_at']}"


def test_each_silence_is_listed_with_who_made_it_why_and_when_it_ended(pipeline: Pipeline) -> None:
    assert pipeline.post("/alerts", make_rule("quiet", threshold=1e6)).status == 201
    silences = path_of("quiet", "/silences")
    assert pipeline.get(silences).json() == {"silences": [], "count": 0}
    for body in ({"duration": "1h", "by": "ann", "comment": "load test"}, {"duration": "2h"}):
        assert pipeline.post(path_of("quiet", "/silence"), body).status == 200
    assert http("DELETE", pipeline.url + path_of("quiet", "/silence")).status == 204
    second, first = pipeline.get(silences).json()["silences"]
    assert (first["by"], first["comment"]) == ("ann", "load test")
    assert (second["by"], second["comment"]) == (None, None)
    assert first["at"] <= first["until"] == second["at"] <= second["until"]
    status = pipeline.get(path_of("quiet", "/status")).json()
    assert (status["silenced"], status["silence_ended"]) == (False, second["until"])
    assert pipeline.post(path_of("quiet", "/silence"), {"duration": "1s"}).status == 200
    assert pipeline.get(path_of("quiet", "/status")).json()["silence_ended"] is None
    pipeline.until(lambda: pipeline.get(path_of("quiet", "/status")).json()["silence_ended"], "the silence is over")
    assert pipeline.get(silences).json()["count"] == 3


def test_dead_deliveries_are_counted_in_the_list_and_found_by_their_outcome(
    pipeline: Pipeline, receiver: Receiver
) -> None:
    began = render_instant(time.time_ns() - SECOND)
    delivery = {"type": "webhook", "url": f"{receiver.url}/refuses"}
    rule = make_rule("dead", delivery, eval_interval="1s", group_by="user_id")
    assert pipeline.post("/alerts", rule).status == 201
    assert pipeline.post("/alerts", make_rule("mute", eval_interval="1s")).status == 201
    assert pipeline.post("/spans", [{**CALL, "user_id": user} for user in ("ann", "bob", "cy")]).status == 202

    def row(name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(
            rule for rule in pipeline.get("/alerts?instances=1").json() if rule["name"] == name
        )
        return found

    pipeline.until(lambda: (row("dead")["last_delivery"] or {}).get("in_a_row") == 3, "three are dead")
    dead = row("dead")
    assert (dead["last_delivery"]["outcome"], dead["last_delivery"]["error"]) == ("dead", "HTTP 400")
    assert (dead["instance_count"], dead["firing_instance_count"], len(dead["instances"])) == (3, 3, 1)
    assert dead["recent_values"][-1] == 1.0
    assert row("mute")["last_delivery"] is None
    assert {event["alert"] for event in listed(pipeline, outcome="dead")} == {"dead"}
    assert {event["alert"] for event in listed(pipeline, outcome="none", since=began)} == {"mute"}
    assert {event["alert"] for event in listed(pipeline, outcome="none,dead", since=began)} == {"mute", "dead"}
    assert len(listed(pipeline, outcome="dead", limit=2)) == 2
    assert listed(pipeline, rule="dead", status="resolved") == []
    at = listed(pipeline, rule="dead")[0]["fired_at"]
    assert len(listed(pipeline, rule="dead", since=at, until=at)) == 3
    assert listed(pipeline, rule="dead", until=began) == []
    assert b"outcome: 'x' is none of" in pipeline.get("/alerts/events?outcome=dead,x").body


def test_a_series_and_a_preview_may_end_in_the_past(pipeline: Pipeline) -> None:
    rule = make_rule("past", eval_interval="1s", window="5s", filter={"caller": "past"})
    assert pipeline.post("/alerts", rule).status == 201
    assert pipeline.post("/spans", {**CALL, "caller": "past"}).status == 202
    pipeline.until(lambda: pipeline.get(path_of("past", "/status")).json()["last_fired"], "it fires")
    fired = pipeline.get(path_of("past", "/status")).json()["last_fired"]
    period = urlencode({"from": render_instant(parse_instant(fired) - 4 * SECOND), "to": fired})
    series = pipeline.get(path_of("past", f"/series?{period}")).json()
    assert (series["to"], series["complete"]) == (fired, True)
    assert (series["points"][-1]["at"], series["points"][-1]["value"]) == (fired, 1.0)
    preview = pipeline.post(f"/alerts/preview?{period}", rule).json()
    assert preview["points"] == series["points"]
    assert [event["fired_at"] for event in preview["events"]] == [fired]
    for query, error in (
        ("from=2026-03-15T13:00:00Z", b"to: is missing"),
        (f"window=1h&{period}", b"window: cannot stand beside from and to"),
        (f"from={fired}&to={fired}", b"to: is not at least 1s after from"),
        ("from=2026-01-01T00:00:00Z&to=2026-03-01T00:00:00Z", b"to: is over 30d after from"),
        ("window=31d", b"window: is over 30d"),
    ):
        assert error in pipeline.get(path_of("past", f"/series?{query}")).body
