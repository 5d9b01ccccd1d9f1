"""Alerts pushed to a real Alertmanager: labels, renewal, end, and the webhooks that the Alertmanager sends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kit.alertmanager import ZERO, Alertmanager
from kit.environment import PATIENCE
from kit.pipeline import Pipeline
from kit.receiver import DeliveryRun, Receiver, Reply, Sent, make_end, make_event, make_rule
from tokentrace.records import AlertEvent
from tokentrace.units import MINUTE, SECOND
from tokentrace_alerter.delivery import alertmanager, payload

pytestmark = pytest.mark.story


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.fixture(scope="module")
def told() -> Iterator[Receiver]:
    """Start a receiver: the Alertmanager sends its webhooks to /own, and tokentrace to other paths."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory, told: Receiver) -> Iterator[Alertmanager]:
    alertmanager = Alertmanager(tmp_path_factory.mktemp("alertmanager"), told)
    try:
        alertmanager.start()
        yield alertmanager
    finally:
        alertmanager.stop()


def own(told: Receiver, name: str, status: str) -> list[Any]:
    """Return the payloads that the Alertmanager sent about the alert *name* with *status*."""
    payloads = [sent.json() for sent in told.sent if sent.path == "/own"]
    return [one for one in payloads if one["groupLabels"]["alertname"] == name and one["status"] == status]


# --- from a call to the alert that an Alertmanager shows

RULES = """
alerts:
  - name: short
    metric: span_count
    op: gte
    threshold: 1
    window: 3s
    eval_interval: 1s
    cooldown: 1s
    level: critical
    group_by: caller
    filter: {{model: gpt-4o, team: on call}}
    delivery: {{type: alertmanager, url: "{url}/"}}
  - name: lasting
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    cooldown: 1h
    filter: {{caller: lasting}}
    delivery: {{type: alertmanager, url: "{url}"}}
"""
CALL = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128}


class Watched(Pipeline):
    """A pipeline with the rules ``short`` and ``lasting``."""

    lasts_since = 0.0

    def call(self, caller: str) -> None:
        assert self.post("/spans", [{**CALL, "caller": caller, "attributes": {"team": "on call"}}]).status == 202


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, manager: Alertmanager) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("pipeline")
    (directory / "tokentrace.yml").write_text(RULES.format(url=manager.url))
    serving = Watched(directory)
    try:
        serving.start()
        serving.call("lasting")
        serving.until(lambda: len(manager.alerts("lasting")) == 1, "pushed", 10)
        serving.lasts_since = time.monotonic()
        yield serving
    finally:
        serving.stop()


def test_a_firing_is_active_in_the_alertmanager_until_its_episode_ends(
    pipeline: Watched, manager: Alertmanager, told: Receiver
) -> None:
    for _ in range(2):
        for caller in ("chat", "später"):
            pipeline.call(caller)
        pipeline.until(lambda: len(manager.alerts("short")) == 2, "both active", 10)
    alerts = {alert["labels"]["caller"]: alert for alert in manager.alerts("short")}
    assert set(alerts) == {"chat", "später"}
    alert = alerts["chat"]
    assert alert["status"]["state"] == "active"
    assert alert["labels"] == {
        "alertname": "short",
        "metric": "span_count",
        "severity": "critical",
        "rule_id": alert["labels"]["rule_id"],
        "model": "gpt-4o",
        "team": "on call",
        "caller": "chat",
    }
    assert alert["annotations"]["summary"].startswith("span_count >= ")
    assert 230 < instant(alert["endsAt"]) - time.time() < 245

    pipeline.until(lambda: manager.alerts("short") == [], "ended", 15)
    pipeline.until(lambda: len(own(told, "short", "resolved")) >= 1, "end notified", 10)
    last = own(told, "short", "resolved")[-1]["alerts"]
    assert {one["status"] for one in last} == {"resolved"}
    assert {instant(one["startsAt"]) for one in last} <= {instant(one["startsAt"]) for one in alerts.values()}
    for one in last:
        assert instant(one["endsAt"]) <= time.time()
        assert instant(one["endsAt"]) - instant(one["startsAt"]) < 20


# --- pushed alerts


def accepted(manager: Alertmanager, *events: AlertEvent) -> list[Any]:
    """Push *events*, all of one rule, and return the alerts of this rule that the Alertmanager shows."""

    async def give() -> list[str]:
        rule = make_rule(events[0].alert, {"type": "alertmanager", "url": manager.url, "max_retries": 0})
        async with DeliveryRun(rule) as run:
            await run.publish(*events)
            await run.done()
        return [record["error"] or record["outcome"] for record in run.records()]

    assert asyncio.run(give()) == ["delivered"] * len(events)
    return manager.alerts(events[0].alert)


def test_the_alertmanager_accepts_the_labels_of_an_unusual_filter_and_group(manager: Alertmanager) -> None:
    odd = {
        "caller": 'a "quoted" \\ value\nof 日本',
        "attr.step.name": "synthesize",
        "1st": "digit",
        "日本": "letters",
        "a b": "1",
        "a.b": "2",
        "alertname": "another alert",
        "severity": "none",
        "rule_id": "x",
        "status": "",
        "x" * 200: "y" * 2000,
    }
    (alert,) = accepted(manager, make_event("odd labels", filter=odd, group={"attr.user": "u-1"}, level="critical"))
    labels = alert["labels"]
    assert (labels["alertname"], labels["severity"], labels["metric"]) == ("odd labels", "critical", "span_count")
    assert labels["rule_id"].startswith("alert_")
    assert (labels["caller"], labels["step_name"], labels["user"]) == (odd["caller"], "synthesize", "u-1")
    assert set(odd.values()) - {""} <= set(labels.values())


def test_each_instance_is_a_separate_alert(manager: Alertmanager) -> None:
    cases = ["a", "b", "A", "a ", "", "a.b", "a_b", "日本"]
    alerts = accepted(manager, *(make_event("instances", group={"attr.case": case}) for case in cases))
    assert sorted(alert["labels"].get("case", "") for alert in alerts) == sorted(cases)


@pytest.mark.parametrize("key", ["attr.", "attr.1", "__", "é", "²", "_", "a" * 256])
def test_the_alertmanager_accepts_the_label_of_an_unusual_key(manager: Alertmanager, key: str) -> None:
    (alert,) = accepted(manager, make_event(f"key {key[:20]}", filter={key: "x"}))
    assert "x" in alert["labels"].values()


@pytest.mark.parametrize("key", ["a b", "metric", "filter_metric", "alertname"])
def test_a_group_named_like_a_filter_still_distinguishes_instances(manager: Alertmanager, key: str) -> None:
    """Keys that become the same label name must not merge two instances into one alert."""
    same = {"a.b": "x", "a-b": "y", "metric": "z"}
    events = [make_event(f"same {key}", filter=same, group={key: case}) for case in ("1", "2")]
    assert len(accepted(manager, *events)) == 2


def test_an_event_without_a_value_is_accepted(manager: Alertmanager) -> None:
    (alert,) = accepted(manager, make_event("no data", value=None, span_count=0))
    assert alert["annotations"].get("value", "") == ""


def test_the_path_prefix_of_an_alertmanager_url_is_kept() -> None:
    async def give(url: str) -> None:
        async with DeliveryRun(
            make_rule(delivery={"type": "alertmanager", "url": url, "headers": {"X-A": "b"}})
        ) as run:
            await run.publish(make_event())
            await run.done()

    with Receiver() as receiver:
        asyncio.run(give(receiver.url + "/prefix/"))
    (sent,) = receiver.sent
    assert sent.path == "/prefix/api/v2/alerts"
    assert (sent.header("X-A"), sent.header("Content-Type")) == ("b", "application/json")
    (pushed,) = sent.json()
    assert set(pushed) == {"labels", "annotations", "startsAt", "endsAt"}


# --- renewal while an episode lasts, and its end


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the alerter renew alerts every second, with an end four seconds ahead."""
    assert alertmanager.RENEW_EVERY_NS == MINUTE
    assert payload.ALERTMANAGER_LASTS_NS == 4 * MINUTE
    monkeypatch.setattr(alertmanager, "RENEW_EVERY_NS", SECOND)
    monkeypatch.setattr(payload, "ALERTMANAGER_LASTS_NS", 4 * SECOND)


async def watch(manager: Alertmanager, name: str, seconds: float) -> list[list[Any]]:
    """Poll the Alertmanager for *seconds* and return the alerts called *name* at each poll."""
    seen = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen.append(await asyncio.to_thread(manager.alerts, name))
        await asyncio.sleep(0.1)
    return seen


@pytest.mark.usefixtures("quick")
async def test_an_alert_is_renewed_while_its_episode_lasts_and_ended_after_it(manager: Alertmanager) -> None:
    async with DeliveryRun(make_rule("reminded", {"type": "alertmanager", "url": manager.url})) as run:
        event = make_event("reminded")
        run.open_episodes = [event]
        await run.publish(event)
        await run.done()
        seen = await watch(manager, "reminded", 6)
        assert {len(alerts) for alerts in seen} == {1}
        ends = [instant(alerts[0]["endsAt"]) for alerts in seen]
        assert ends == sorted(ends)
        assert len(set(ends)) >= 3
        assert ends[-1] - ends[0] > 3
        assert {alerts[0]["startsAt"] for alerts in seen} == {seen[0][0]["startsAt"]}
        assert instant(seen[0][0]["startsAt"]) == instant(event.starts_at)
        run.open_episodes = []
        await run.publish(make_end(event))
        await run.done()
        assert {len(alerts) for alerts in await watch(manager, "reminded", 2.5)} == {0}


@pytest.mark.usefixtures("quick")
async def test_a_restarted_alerter_renews_the_alert_of_an_open_episode_which_ends_when_the_alerter_stops(
    manager: Alertmanager,
) -> None:
    async with DeliveryRun(make_rule("taken over", {"type": "alertmanager", "url": manager.url})) as run:
        run.open_episodes = [make_event("taken over")]
        await run.until(lambda: len(manager.alerts("taken over")) == 1, "renewed", 5)
    seen = await watch(manager, "taken over", 5)
    assert (len(seen[0]), len(seen[-1])) == (1, 0)


async def test_a_retry_after_the_end_of_the_episode_does_not_reopen_the_alert(tmp_path: Path, told: Receiver) -> None:
    """The Alertmanager starts after three failed deliveries, and the episode ends before the next one."""
    late = Alertmanager(tmp_path / "late", told)
    try:
        async with DeliveryRun(make_rule("late", {"type": "alertmanager", "url": late.url})) as run:
            event = make_event("late")
            run.open_episodes = [event]
            await run.publish(event)
            await run.until(lambda: len(run.outcomes()) == 3, "tried three times")
            await asyncio.to_thread(late.start)
            run.open_episodes = []
            end = make_end(event)
            await run.publish(end)
            await run.until(lambda: run.waiting == 0, "done", 10)
            assert {record["outcome"] for record in run.records() if record["status"] == "resolved"} == {"delivered"}
            seen = await watch(late, "late", 1)
            assert {len(alerts) for alerts in seen} == {0}, "the late delivery reopened the alert"
    finally:
        late.stop()


async def test_a_late_event_of_an_earlier_episode_does_not_end_the_current_one(manager: Alertmanager) -> None:
    """The Alertmanager takes both episodes for one alert, because their labels are equal."""
    now = time.time_ns()
    old, new = make_event("two episodes", now - 30 * SECOND), make_event("two episodes", now)
    async with DeliveryRun(make_rule("two episodes", {"type": "alertmanager", "url": manager.url})) as run:
        run.open_episodes = [new]
        await run.publish(new)
        await run.done()
        await run.publish(old, make_end(old, now - 20 * SECOND))
        await run.done()
        (alert,) = manager.alerts("two episodes")
    assert instant(alert["startsAt"]) == instant(new.starts_at)
    assert sorted(run.outcomes()) == ["delivered", "expired", "expired"]


@pytest.mark.usefixtures("quick")
async def test_an_alertmanager_that_hangs_delays_no_renewal_in_another(manager: Alertmanager) -> None:
    with Receiver(lambda sent: Reply(after_s=30)) as hung:
        rules = (
            make_rule("hung", {"type": "alertmanager", "url": hung.url, "timeout": "1s"}),
            make_rule("beside it", {"type": "alertmanager", "url": manager.url}),
        )
        async with DeliveryRun(*rules) as run:
            event = make_event("beside it")
            run.open_episodes = [*(make_event("hung", group={"case": str(n)}) for n in range(10)), event]
            await run.publish(event)
            await run.done()
            seen = await watch(manager, "beside it", 7)
    assert {len(alerts) for alerts in seen} == {1}, "the alert was not renewed in time"


@pytest.mark.usefixtures("quick")
async def test_a_delayed_renewal_does_not_reopen_an_alert(manager: Alertmanager) -> None:
    with Receiver(lambda sent: Reply(after_s=30)) as hung:
        rules = (
            make_rule("hung", {"type": "alertmanager", "url": hung.url, "timeout": "2s"}),
            make_rule("held up", {"type": "alertmanager", "url": manager.url}),
        )
        async with DeliveryRun(*rules) as run:
            event = make_event("held up")
            run.open_episodes = [make_event("hung"), event]
            await run.publish(event)
            await run.until(lambda: hung.at_once == 1, "waiting for the Alertmanager that hangs")
            await asyncio.sleep(0.2)
            run.open_episodes = run.open_episodes[:1]
            await run.publish(make_end(event))
            await run.done()
            seen = await watch(manager, "held up", 3)
    assert {len(alerts) for alerts in seen[3:]} == {0}, "the renewal reopened the alert"


# --- the webhook payload of version 4


class _Alert(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    status: str
    labels: dict[str, str]
    annotations: dict[str, str]
    startsAt: datetime  # noqa: N815
    endsAt: datetime  # noqa: N815
    generatorURL: str  # noqa: N815
    fingerprint: str


class Payload(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The webhook payload of version 4; decoding refuses unknown fields."""

    version: str
    groupKey: str  # noqa: N815
    truncatedAlerts: int  # noqa: N815
    status: str
    receiver: str
    groupLabels: dict[str, str]  # noqa: N815
    commonLabels: dict[str, str]  # noqa: N815
    commonAnnotations: dict[str, str]  # noqa: N815
    externalURL: str  # noqa: N815
    alerts: list[_Alert]


def shape(value: Any) -> Any:
    """Return *value* with everything in it except mappings and lists replaced by the name of its type."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(value).__name__


@pytest.mark.parametrize("name", ["same alert", 'odd "name" \\ {x="y"}, 日本'])
async def test_the_payload_of_tokentrace_has_the_form_of_an_alertmanagers_payload(
    manager: Alertmanager, told: Receiver, name: str
) -> None:
    """The Alertmanager and tokentrace send the same alert, firing and ended, to the same receiver."""
    ours = {"type": "webhook", "url": told.url + "/ours", "format": "alertmanager", "send_resolved": True}
    event = make_event(name, filter={"caller": "chat"}, group={"model": "gpt-4o"}, level="critical")
    end = make_end(event)
    pairs = []
    for one in (event, end):
        before = len(told.sent)
        for delivery in (ours, {"type": "alertmanager", "url": manager.url}):
            async with DeliveryRun(make_rule(name, delivery)) as run:
                await run.publish(one)
                await run.done()
        await until(partial(lambda status: bool(own(told, name, status)), one.status), "webhook of the Alertmanager")
        (sent,) = [sent for sent in told.sent[before:] if sent.path == "/ours"]
        pairs.append((sent, own(told, name, one.status)[0]))
    for (sent, theirs), one in zip(pairs, (event, end), strict=True):
        mine = sent.json()
        assert shape(mine) == shape(theirs)
        assert mine["version"] == theirs["version"] == "4"
        assert mine["groupKey"] == theirs["groupKey"]
        same = ("status", "groupLabels", "commonLabels", "commonAnnotations", "truncatedAlerts")
        assert {key: mine[key] for key in same} == {key: theirs[key] for key in same}
        (my_alert,), (their_alert,) = mine["alerts"], theirs["alerts"]
        assert my_alert["labels"] == their_alert["labels"]
        assert my_alert["annotations"] == their_alert["annotations"]
        assert my_alert["status"] == their_alert["status"] == one.status
        assert instant(my_alert["startsAt"]) == instant(their_alert["startsAt"]) == instant(event.starts_at)
        assert instant_or_zero(my_alert["endsAt"]) == instant_or_zero(their_alert["endsAt"])
        assert (my_alert["endsAt"] == ZERO) == (one.status == "firing")
        assert len(my_alert["fingerprint"]) == len(their_alert["fingerprint"]) == 16
        payload = msgspec.json.decode(sent.body, type=Payload)
        assert payload.alerts[0].startsAt == datetime.fromisoformat(event.starts_at).astimezone(UTC)
    prints = {sent.json()["alerts"][0]["fingerprint"] for sent, _ in pairs}
    assert len(prints) == 1, "an alert keeps its fingerprint"


def instant_or_zero(text: str) -> float:
    return 0.0 if text == ZERO else instant(text)


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def test_a_payload_of_version_4_has_a_signature_and_an_idempotency_key(told: Receiver) -> None:
    answers: list[Sent] = []
    given = {"type": "http", "url": told.url + "/signature", "format": "alertmanager", "secret": "s"}
    async with DeliveryRun(make_rule(delivery=given)) as run:
        await run.publish(make_event(value=None, span_count=0))
        await run.done()
    answers += [sent for sent in told.sent if sent.path == "/signature"]
    (sent,) = answers
    assert sent.key.startswith("alert_")
    assert (sent.header("X-Tokentrace-Signature") or "").startswith("sha256=")
    assert msgspec.json.decode(sent.body, type=Payload).alerts[0].annotations["value"] == ""


# --- this test is last, because the renewal comes a minute after the start of the pipeline


def test_after_a_minute_the_alert_of_an_open_episode_is_renewed(pipeline: Watched, manager: Alertmanager) -> None:
    (first,) = manager.alerts("lasting")
    assert first["status"]["state"] == "active"
    pipeline.until(lambda: manager.alerts("lasting")[0]["endsAt"] > first["endsAt"], "renewed", 70)
    (later,) = manager.alerts("lasting")
    assert 55 < instant(later["endsAt"]) - instant(first["endsAt"]) < 75
    assert later["startsAt"] == first["startsAt"]
    assert later["fingerprint"] == first["fingerprint"]
    assert 225 < instant(later["endsAt"]) - time.time() < 245
