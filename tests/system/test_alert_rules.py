"""Rules that are created, silenced and deleted over HTTP while the pipeline runs."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.pipeline import Pipeline, http
from kit.receiver import (
    CALL,
    HOOKS,
    SECRETS,
    SERVED,
    Receiver,
    Reply,
    assert_holds_at_once,
    delete,
    events,
    kept,
    make_rule,
    path_of,
    read,
)
from tokentrace.bus import subjects

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def webhooks() -> Iterator[Receiver]:
    with Receiver(lambda sent: Reply(404 if sent.path.startswith("/refused") else 200)) as receiver:
        yield receiver


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, webhooks: Receiver) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("served")
    (directory / "hooks.py").write_text(HOOKS)
    (directory / "tokentrace.yml").write_text(SERVED.format(host=f"127.0.0.1:{webhooks.port}"))
    serving = Pipeline(directory, env={"TOKENTRACE_LOG_LEVEL": "debug"})
    serving.start()
    yield serving
    serving.stop()


def send(pipeline: Pipeline, caller: str, count: int = 1) -> None:
    """Post *count* calls that end now."""
    assert pipeline.post("/spans", [{**CALL, "caller": caller}] * count).status == 202


def status_of(pipeline: Pipeline, name: str) -> Any:
    """Return the status of the rule; None = there is no such rule."""
    answer = pipeline.get(path_of(name, "/status"))
    assert answer.status in (200, 404), answer.body
    return answer.json() if answer.status == 200 else None


def make(pipeline: Pipeline, name: str, **given: Any) -> None:
    """Post a rule and wait until its status is shown."""
    answer = pipeline.post("/alerts", make_rule(name, **given))
    assert answer.status == 201, answer.body
    pipeline.until(lambda: status_of(pipeline, name) is not None, f"{name!r} there", 10)


def counter(pipeline: Pipeline, name: str, rule: str) -> float:
    """Return the counter *name* of *rule*."""
    page = pipeline.get("/metrics/prometheus").body.decode()
    families = text_string_to_metric_families(page)
    samples = (sample for family in families for sample in family.samples)
    (value,) = [sample.value for sample in samples if sample.name == name and sample.labels == {"rule": rule}]
    return float(value)


def failed(pipeline: Pipeline, rule: str) -> float:
    return counter(pipeline, "tokentrace_alert_delivery_failed_total", rule)


def test_the_counters_of_a_rule_begin_at_0_before_it_fires(pipeline: Pipeline) -> None:
    make(pipeline, "never fires")
    for name in ("tokentrace_alert_firings_total", "tokentrace_alert_delivery_failed_total"):
        assert counter(pipeline, name, "never fires") == 0
    assert delete(pipeline, "never fires").status == 204


def test_a_failed_delivery_is_counted_and_recorded_without_secrets(pipeline: Pipeline, webhooks: Receiver) -> None:
    send(pipeline, "webhooks")
    pipeline.until(lambda: pipeline.get("/alerts/refused/deliveries").json()["count"] == 1, "given up", 15)
    (sent,) = [one for one in webhooks.sent if one.path.startswith("/refused")]
    assert sent.path == "/refused?token=geheim-query"
    assert sent.header("X-Token") == "geheim-header"
    assert (sent.header("Authorization") or "").startswith("Basic ")
    (record,) = pipeline.get("/alerts/refused/deliveries").json()["deliveries"]
    assert (record["rule"], record["outcome"], record["attempt"]) == ("refused", "dead", 1)
    assert (record["key"], record["error"]) == (sent.key, "HTTP 404")
    assert set(record) >= {"rule", "fired_at", "status", "key", "channel", "destination", "outcome", "attempt", "at"}
    assert read(pipeline, subjects.DELIVERIES, "refused") == [record]
    assert failed(pipeline, "refused") == 1
    assert pipeline.get("/metrics").json()["alerts"]["delivery_failed"]["refused"] == 1
    pages = "".join(
        pipeline.get(page).body.decode()
        for page in ("/alerts", "/alerts/refused/status", "/alerts/refused/deliveries", "/metrics", "/health")
    )
    texts = pages + pipeline.log.read_text()
    assert [secret for secret in SECRETS if secret in texts] == []


def test_a_custom_callable_of_the_configuration_is_called(pipeline: Pipeline) -> None:
    send(pipeline, "webhooks")
    pipeline.until(lambda: len(kept(pipeline.directory, "waits")) == 1, "called", 15)
    assert kept(pipeline.directory, "waits") == events(pipeline, "own function")
    (record,) = pipeline.get(path_of("own function", "/deliveries")).json()["deliveries"]
    assert (record["channel"], record["destination"], record["outcome"]) == ("custom", "hooks:waits", "delivered")


def test_a_custom_callable_in_a_posted_rule_is_refused(pipeline: Pipeline) -> None:
    answer = pipeline.post("/alerts", make_rule("custom", {"type": "custom", "target": "os:system"}))
    assert answer.status == 400
    assert "custom" in answer.json()["error"]
    assert "configuration" in answer.json()["error"]
    assert status_of(pipeline, "custom") is None


def test_a_rule_is_created_shown_silenced_and_deleted(pipeline: Pipeline) -> None:
    answer = pipeline.post(
        "/alerts", make_rule("Ein Ding", {"type": "stdout"}, level="critical", filter={"caller": "x"})
    )
    assert answer.status == 201
    made = answer.json()
    assert set(made) == {"rule_id", "name"}
    assert made["name"] == "Ein Ding"
    assert re.fullmatch(r"alert_[0-9a-f]{8}", made["rule_id"])
    pipeline.until(lambda: status_of(pipeline, "Ein Ding") is not None, "there", 10)
    shown = status_of(pipeline, "Ein Ding")
    assert (shown["rule_id"], shown["metric"], shown["op"]) == (made["rule_id"], "span_count", "gte")
    assert (shown["threshold"], shown["window"], shown["level"]) == (1, "1h", "critical")
    assert (shown["silenced"], shown["silenced_until"], shown["last_fired"]) == (False, None, None)
    assert (shown["eval_interval"], shown["cooldown"]) == ("6m", "1h")

    before = time.time()
    answer = pipeline.post(path_of("Ein Ding", "/silence"), {"duration": "2h"})
    assert answer.status == 200
    (until,) = answer.json().items()
    assert until[0] == "silenced_until"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", until[1])
    assert before + 7199 < datetime.fromisoformat(until[1]).timestamp() < time.time() + 7201
    pipeline.until(lambda: status_of(pipeline, "Ein Ding")["silenced_until"] == until[1], "silenced", 10)
    assert status_of(pipeline, "Ein Ding")["silenced"] is True

    answer = pipeline.get(path_of("Ein Ding", "/deliveries"))
    assert (answer.status, answer.json()) == (200, {"deliveries": [], "count": 0})
    answer = delete(pipeline, "Ein Ding")
    assert (answer.status, answer.body) == (204, b"")
    pipeline.until(lambda: status_of(pipeline, "Ein Ding") is None, "gone", 10)
    assert "Ein Ding" not in [rule["name"] for rule in pipeline.get("/alerts").json()]
    assert delete(pipeline, "Ein Ding").status == 404


def test_an_acknowledged_change_holds_for_the_next_request(pipeline: Pipeline) -> None:
    assert_holds_at_once(pipeline)


REFUSALS = [
    ({"metric": "latency_p42"}, ["metric", "latency_p42", "total_cost", "latency_p95"]),
    ({"metric": None}, ["metric", "total_cost"]),
    ({"op": "!="}, ["op", "gt", "gte", "lt", "lte"]),
    ({"op": None}, ["op"]),
    ({"threshold": "ten"}, ["threshold"]),
    ({"threshold": None}, ["threshold"]),
    ({"threshold": True}, ["threshold"]),
    ({"window": "an hour"}, ["window"]),
    ({"window": "1ms"}, ["window", "1s", "31d"]),
    ({"window": "400d"}, ["window", "1s", "31d"]),
    ({"window": 3600}, ["window"]),
    ({"window": None}, ["window"]),
    ({"eval_interval": "1ms"}, ["eval_interval", "1s"]),
    ({"cooldown": "-1s"}, ["cooldown"]),
    ({"for": "soon"}, ["for"]),
    ({"min_spans": -1}, ["min_spans"]),
    ({"min_spans": 1.5}, ["min_spans"]),
    ({"threshold": 10**400}, []),
    ({"threshold": 2**70 * 10**300}, []),
    ({"level": "info"}, ["level", "warning", "critical"]),
    ({"no_data": "panic"}, ["no_data", "ignore", "fire", "keep"]),
    ({"change": "relative"}, ["change", "absolute", "percent"]),
    ({"recovery_threshold": 2}, ["recovery_threshold"]),
    ({"group_by": 5}, ["group_by"]),
    ({"filter": ["a"]}, ["filter"]),
    ({"filter": {"model": 5}}, ["filter"]),
    ({"silenced": "yes"}, ["silenced"]),
    ({"name": ""}, ["name"]),
    ({"name": None}, ["name"]),
    ({"name": 5}, ["name"]),
    ({"name": "x" * 129}, ["name", "128"]),
    ({"colour": "red"}, ["colour", "metric", "threshold", "group_by"]),
    ({"delivery": "stdout"}, ["delivery"]),
    ({"delivery": {}}, ["delivery.type", "stdout", "http", "webhook", "alertmanager"]),
    ({"delivery": {"type": "pager"}}, ["delivery.type", "pager", "stdout", "http"]),
    ({"delivery": {"type": "http"}}, ["delivery.url"]),
    ({"delivery": {"type": "http", "url": "ftp://h/"}}, ["delivery.url", "http"]),
    ({"delivery": {"type": "http", "url": "http://"}}, ["delivery.url"]),
    ({"delivery": {"type": "http", "url": "http://h:0/"}}, ["delivery.url"]),
    ({"delivery": {"type": "http", "url": "http://h:99999/"}}, ["delivery.url"]),
    ({"delivery": {"type": "http", "url": 5}}, ["delivery.url"]),
    ({"delivery": {"type": "http", "url": "http://h", "timeout": "0s"}}, ["delivery.timeout"]),
    ({"delivery": {"type": "http", "url": "http://h", "timeout": "1h"}}, ["delivery.timeout"]),
    ({"delivery": {"type": "http", "url": "http://h", "headers": {"a b": "x"}}}, ["delivery.headers"]),
    ({"delivery": {"type": "http", "url": "http://h", "headers": {"a": "x\r\nb: y"}}}, ["delivery.headers"]),
    ({"delivery": {"type": "http", "url": "http://h", "headers": {"a": 5}}}, ["delivery.headers"]),
    ({"delivery": {"type": "http", "url": "http://h", "max_retries": -1}}, ["delivery.max_retries"]),
    ({"delivery": {"type": "http", "url": "http://h", "max_retries": "3"}}, ["delivery.max_retries"]),
    ({"delivery": {"type": "http", "url": "http://h", "format": "slack"}}, ["delivery.format", "alertmanager"]),
    ({"delivery": {"type": "http", "url": "http://h", "send_resolved": 1}}, ["delivery.send_resolved"]),
    ({"delivery": {"type": "http", "url": "http://h", "secret": 5}}, ["delivery.secret"]),
    ({"delivery": {"type": "http", "url": "http://h", "colour": 1}}, ["colour", "url", "timeout", "headers"]),
    ({"delivery": {"type": "stdout", "url": "http://h"}}, ["url", "stdout"]),
    ({"delivery": {"type": "alertmanager", "url": "http://h/?token=x"}}, ["delivery.url"]),
]


@pytest.mark.parametrize(("wrong", "named"), REFUSALS, ids=lambda value: str(value)[:60])
def test_an_invalid_posted_rule_is_refused_with_its_key(
    pipeline: Pipeline, wrong: dict[str, Any], named: list[str]
) -> None:
    answer = pipeline.post("/alerts", {**make_rule("senseless"), **wrong})
    if answer.status == 201:
        delete(pipeline, answer.json()["name"])
    assert answer.status == 400, answer.body
    assert set(answer.json()) == {"error"}
    assert [word for word in named if word not in answer.json()["error"]] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/alerts", b"{", 400),
        ("POST", "/alerts", b"", 400),
        ("POST", "/alerts", b"[]", 400),
        ("POST", "/alerts", b'"rule"', 400),
        ("POST", "/alerts", b"null", 400),
        ("POST", "/alerts", b"[" * 20_000, 400),
        ("POST", "/alerts", b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}", 400),
        ("POST", "/alerts", b"\xff\xfe{}", 400),
        ("POST", "/alerts", b" " * (1 << 20) + b"{}", 413),
        ("POST", "/alerts?colour=red", b"{}", 400),
        ("POST", "/alerts/unknown/silence", b'{"duration": "2h"}', 404),
        ("POST", "/alerts/configured/silence", b'{"duration": "soon"}', 400),
        ("POST", "/alerts/configured/silence", b'{"duration": "0s"}', 400),
        ("POST", "/alerts/configured/silence", b'{"duration": "-2h"}', 400),
        ("POST", "/alerts/configured/silence", b'{"duration": 5}', 400),
        ("POST", "/alerts/configured/silence", b'{"duration": null}', 400),
        ("POST", "/alerts/configured/silence", b'{"duration": "99999d"}', 400),
        ("POST", "/alerts/configured/silence", b"{}", 400),
        ("POST", "/alerts/configured/silence", b"[]", 400),
        ("POST", "/alerts/configured/silence", b'{"duration": "2h", "why": "x"}', 400),
        ("POST", "/alerts/configured/silence", b"nonsense", 400),
        ("DELETE", "/alerts/unknown", None, 404),
        ("DELETE", "/alerts/", None, 404),
        ("GET", "/alerts/unknown/status", None, 404),
        ("GET", "/alerts/unknown/deliveries", None, 404),
        ("GET", "/alerts/configured/deliveries?limit=-1", None, 400),
        ("GET", "/alerts/configured/deliveries?limit=many", None, 400),
        ("GET", "/alerts/configured/deliveries?colour=red", None, 400),
        ("GET", "/alerts/configured/deliveries?limit=1", None, 200),
        ("PUT", "/alerts/configured", b"{}", 400),
        ("PATCH", "/alerts/configured", b"{}", 405),
        ("DELETE", "/alerts/configured/silence", None, 204),
        ("DELETE", "/alerts/unknown/silence", None, 404),
        ("DELETE", "/alerts/configured/silence?colour=red", None, 400),
    ],
)
def test_other_requests_have_the_expected_status(
    pipeline: Pipeline, method: str, path: str, body: bytes | None, expected: int
) -> None:
    answer = http(method, pipeline.url + path, body, JSON)
    assert answer.status == expected, answer.body
    if expected >= 400:
        assert set(answer.json()) == {"error"}


NAMES = [
    "a/b",
    "a//b/",
    "/",
    "..",
    ".",
    "status",
    "x/status",
    "x/silence",
    "x/deliveries",
    "with spaces  in it ",
    "über 日本 💩",
    "50 %2F of %",
    "a.b.*.>",
    "?q=1#f&x",
    "'\"\\",
    "ü" * 128,
    "\x00\x1f\x7f",
    "line\nbreak",
    "ends\n",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_accepted_name_can_be_shown_silenced_and_deleted(pipeline: Pipeline, name: str) -> None:
    """A name is either refused when the rule is posted, or the rule can be shown, silenced and deleted by it."""
    other = name.strip()
    answer = pipeline.post("/alerts", make_rule(name))
    if answer.status == 400:
        assert "name" in answer.json()["error"]
        return
    assert (answer.status, answer.json()["name"]) == (201, name)
    if other != name:
        make(pipeline, other)
    pipeline.until(lambda: name in [rule["name"] for rule in pipeline.get("/alerts").json()], "there", 5)
    try:
        shown = pipeline.get(path_of(name, "/status"))
        assert (shown.status, shown.json().get("name")) == (200, name)
        assert pipeline.get(path_of(name, "/deliveries")).status == 200
        assert pipeline.post(path_of(name, "/silence"), {"duration": "1h"}).status == 200
        assert pipeline.post("/alerts", make_rule(name)).status == 409
    finally:
        gone = delete(pipeline, name).status
    assert gone == 204
    pipeline.until(lambda: name not in [rule["name"] for rule in pipeline.get("/alerts").json()], "gone", 5)
    if other != name:
        assert status_of(pipeline, other) is not None, "the rule with the stripped name was deleted instead"


def test_of_twenty_concurrent_posts_of_a_name_one_succeeds(pipeline: Pipeline) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: pipeline.post("/alerts", make_rule("many hands")), range(20)))
    assert Counter(answer.status for answer in answers) == {201: 1, 409: 19}
    assert all(set(answer.json()) == {"error"} for answer in answers if answer.status == 409)
    pipeline.until(lambda: status_of(pipeline, "many hands") is not None, "there", 5)
    with ThreadPoolExecutor(20) as pool:
        gone = list(pool.map(lambda _: delete(pipeline, "many hands").status, range(20)))
    assert set(gone) <= {204, 404}
    assert 204 in gone


def test_a_posted_rule_cannot_take_the_name_of_a_configured_one(pipeline: Pipeline) -> None:
    assert pipeline.post("/alerts", make_rule("configured")).status == 409


def test_a_posted_rule_counts_earlier_calls(pipeline: Pipeline) -> None:
    send(pipeline, "early", 50)
    pipeline.until(lambda: pipeline.get("/traces?caller=early&limit=1").json()["total"] >= 1, "stored", 10)
    make(pipeline, "early", threshold=50, eval_interval="1s", filter={"caller": "early"})
    pipeline.until(lambda: len(events(pipeline, "early")) == 1, "fired", 10)
    (event,) = events(pipeline, "early")
    assert (event["value"], event["span_count"]) == (50, 50)
    assert delete(pipeline, "early").status == 204


def make_many(pipeline: Pipeline, names: list[str], **given: Any) -> None:
    """Post rules one after the other."""
    for name in names:
        assert pipeline.post("/alerts", make_rule(name, threshold=1e12, eval_interval="1s", **given)).status == 201


def assert_values(pipeline: Pipeline, names: list[str], expected: Callable[[], float]) -> None:
    """Check that every rule shows the expected value in the end."""

    def values() -> Counter[Any]:
        shown = {rule["name"]: rule for rule in pipeline.get("/alerts").json()}
        return Counter(shown[name]["current_value"] if name in shown else "missing" for name in names)

    deadline = time.monotonic() + 60
    while values() != {expected(): len(names)} and time.monotonic() < deadline:
        time.sleep(0.2)
    assert values() == {expected(): len(names)}


def delete_all(pipeline: Pipeline, names: list[str]) -> None:
    """Delete the rules, including those that were never created."""
    for name in names:
        assert delete(pipeline, name).status in (204, 404)


def test_many_rules_posted_during_traffic_count_every_call_once(pipeline: Pipeline) -> None:
    stopping = threading.Event()

    def busy() -> None:
        while not stopping.is_set():
            send(pipeline, "busy", 5)

    sending = threading.Thread(target=busy)
    sending.start()
    names = [f"busy {number}" for number in range(80)]
    try:
        make_many(pipeline, names)
        stopping.set()
        sending.join()
        assert_values(pipeline, names, lambda: pipeline.metrics("1h")["span_count"])
    finally:
        stopping.set()
        sending.join()
        delete_all(pipeline, names)


def test_80_rules_with_the_same_filter_count_earlier_calls(pipeline: Pipeline) -> None:
    for _ in range(8):
        send(pipeline, "alike", 500)
    names = [f"alike {number}" for number in range(80)]
    try:
        make_many(pipeline, names, filter={"caller": "alike"})
        assert_values(pipeline, names, lambda: 4000)
    finally:
        delete_all(pipeline, names)


def test_a_rule_whose_condition_holds_during_a_silence_fires_when_the_silence_is_over(pipeline: Pipeline) -> None:
    make(pipeline, "hush", threshold=1, eval_interval="1s", cooldown="1s", filter={"caller": "hush"})
    silence = pipeline.post("/alerts/hush/silence", {"duration": "3s"})
    assert silence.status == 200
    silenced_until = datetime.fromisoformat(silence.json()["silenced_until"])
    send(pipeline, "hush")
    pipeline.until(lambda: status_of(pipeline, "hush")["firing"] is True, "breached", 10)
    shown = status_of(pipeline, "hush")
    assert (shown["silenced"], shown["why_not_fired"]) == (True, "silenced")
    assert events(pipeline, "hush") == []
    pipeline.until(lambda: len(events(pipeline, "hush")) >= 1, "fired", 10)
    first = events(pipeline, "hush")[0]
    assert datetime.fromisoformat(first["fired_at"]) >= silenced_until
    assert status_of(pipeline, "hush")["silenced"] is False
    assert delete(pipeline, "hush").status == 204


def test_changes_survive_a_kill_and_deleted_configured_rules_come_back(pipeline: Pipeline) -> None:
    send(pipeline, "webhooks")
    pipeline.until(lambda: pipeline.get("/alerts/refused/deliveries").json()["count"] == 1, "given up", 15)
    given: dict[str, Any] = {"eval_interval": "1s", "cooldown": "1h", "filter": {"caller": "kept"}, "level": "critical"}
    make(pipeline, "kept/ü", threshold=7.5, group_by="model", **{"for": "1s"}, **given)
    make(pipeline, "to go", **given)
    until = {
        name: pipeline.post(path_of(name, "/silence"), {"duration": "3h"}).json()["silenced_until"]
        for name in ("kept/ü", "refused")
    }
    for name in ("to go", "configured"):
        assert delete(pipeline, name).status == 204
    shape = ("threshold", "group_by", "for", "level", "filter", "cooldown", "eval_interval", "rule_id")
    before = {key: status_of(pipeline, "kept/ü")[key] for key in shape}
    assert pipeline.post("/alerts", make_rule("last word", **given)).status == 201
    pipeline.kill()
    pipeline.start()
    assert {key: status_of(pipeline, "kept/ü")[key] for key in shape} == before
    assert {name: status_of(pipeline, name)["silenced_until"] for name in until} == until
    assert status_of(pipeline, "last word") is not None
    assert status_of(pipeline, "to go") is None
    assert status_of(pipeline, "configured") is not None
    assert status_of(pipeline, "configured")["silenced_until"] is None
    pipeline.until(lambda: pipeline.get("/alerts/refused/deliveries").json()["count"] == 1, "remembered", 5)
    assert failed(pipeline, "refused") == 1
    for name in ("kept/ü", "last word"):
        assert delete(pipeline, name).status == 204


def test_a_rule_deleted_while_firing_starts_without_an_episode_when_created_again(pipeline: Pipeline) -> None:
    given = {"eval_interval": "1s", "cooldown": "1h", "filter": {"caller": "again"}}
    make(pipeline, "again", threshold=1, **given)
    send(pipeline, "again")
    pipeline.until(lambda: len(events(pipeline, "again")) == 1, "fired", 10)
    assert delete(pipeline, "again").status == 204
    pipeline.until(lambda: status_of(pipeline, "again") is None, "gone", 5)
    make(pipeline, "again", threshold=1000, **given)

    def story() -> tuple[Any, ...]:
        pipeline.until(lambda: status_of(pipeline, "again")["current_value"] == 1, "evaluated", 10)
        time.sleep(1.5)
        shown = status_of(pipeline, "again")
        ended = [event["ended_by"] in ("deleted", "replaced") for event in events(pipeline, "again", "resolved")]
        return shown["last_fired"], shown["starts_at"], ended

    assert story() == (None, None, [True])
    pipeline.kill()
    pipeline.start()
    assert story() == (None, None, [True]), "the episode of the deleted rule is shown"
    assert delete(pipeline, "again").status == 204


def test_the_log_of_these_tests_has_no_traceback(pipeline: Pipeline) -> None:
    assert "Traceback" not in pipeline.log.read_text()
