"""Deliveries: bodies, labels, idempotency keys, signatures, and the pauses between attempts."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.alert_events import FIRED, OVER, START_NS, TEN_KEYS, URL, make_event, make_resolved
from tokentrace.errors import ConfigError
from tokentrace.records import AlertEvent
from tokentrace.units import HOUR, MINUTE, SECOND, parse_instant, render_instant
from tokentrace_alerter.delivery import (
    Channel,
    alertmanager_alert,
    alertmanager_labels,
    backoff_ns,
    idempotency_key,
    parse_channel,
    signature,
    webhook_body,
)
from tokentrace_alerter.links import linked
from tokentrace_alerter.rules import State, decide, parse_rule

# --- the body of a webhook


def test_the_body_of_a_webhook_is_the_documented_event() -> None:
    shown = msgspec.json.decode(webhook_body(Channel(type="http", url=URL), make_event(filter={"model": "o3"})))
    assert set(shown) >= TEN_KEYS | {"level", "message", "status", "starts_at", "ends_at"}
    assert {key: shown[key] for key in TEN_KEYS} == {
        "alert": "hourly-cost-spike",
        "fired_at": FIRED,
        "metric": "total_cost",
        "op": "gt",
        "value": 12.47,
        "threshold": 10.0,
        "window": "1h",
        "span_count": 312,
        "filter": {"model": "o3"},
        "rule_id": "alert_7f3a1c2b",
    }


@pytest.mark.parametrize("url", ["https://traces.example.com", "https://traces.example.com/", ""])
def test_each_body_links_to_the_rule_on_the_page_if_its_url_is_known(url: str) -> None:
    event = linked(make_event(alert="50 % / of <all>?"), url)
    body, payload = (
        msgspec.json.decode(webhook_body(Channel(type="webhook", url=URL, format=form), event))
        for form in ("tokentrace", "alertmanager")
    )
    pushed = alertmanager_alert(event, START_NS)
    [alert] = payload["alerts"]
    if not url:
        assert "link" not in body
        assert (payload["externalURL"], alert["generatorURL"]) == ("", "")
        assert "generatorURL" not in pushed
        return
    begin = render_instant(parse_instant(event.starts_at) - HOUR)
    link = f"https://traces.example.com/#/alerts/50%20%25%20%2F%20of%20%3Call%3E%3F?from={begin}&to={FIRED}"
    assert (body["link"], alert["generatorURL"], pushed["generatorURL"]) == (link, link, link)
    assert alert["annotations"]["link"] == pushed["annotations"]["link"] == link
    assert payload["externalURL"] == "https://traces.example.com/"
    ended = linked(make_resolved(window="no window"), url)
    assert str(ended.link).partition("?")[2] == f"from={ended.starts_at}&to={ended.ends_at}"


@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_with_format_alertmanager_the_body_is_its_payload_of_version_4(status: str) -> None:
    """The expected keys and types are those that the Alertmanager documents for ``webhook_config``."""
    group = {"user": "alice"}
    event = make_event(group=group) if status == "firing" else make_resolved(group=group)
    shown = msgspec.json.decode(webhook_body(Channel(type="webhook", url=URL, format="alertmanager"), event))
    (alert,) = shown.pop("alerts")
    labels = {
        "alertname": "hourly-cost-spike",
        "metric": "total_cost",
        "severity": "critical",
        "rule_id": "alert_7f3a1c2b",
        "user": "alice",
    }
    annotations = {
        "summary": "total_cost > 12.47 (threshold: 10)",
        "value": "12.47" if status == "firing" else "1.5",
        "threshold": "10.0",
        "window": "1h",
        "span_count": "312",
    }
    group_key = shown.pop("groupKey")
    assert isinstance(group_key, str)
    assert "hourly-cost-spike" in group_key
    assert shown == {
        "version": "4",
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "tokentrace",
        "groupLabels": {"alertname": "hourly-cost-spike"},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
    }
    assert re.fullmatch(r"[0-9a-f]{16}", alert.pop("fingerprint"))
    assert alert == {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": FIRED,
        # An alert that has not ended has Go's zero time.
        "endsAt": OVER if status == "resolved" else "0001-01-01T00:00:00Z",
        "generatorURL": "",
    }


def test_the_fingerprint_depends_on_the_labels_and_not_on_time_or_value() -> None:
    def fingerprint(event: AlertEvent) -> str:
        channel = Channel(type="webhook", url=URL, format="alertmanager")
        value: str = msgspec.json.decode(webhook_body(channel, event))["alerts"][0]["fingerprint"]
        return value

    event = make_event(group={"user": "alice"})
    assert fingerprint(event) == fingerprint(make_resolved(group={"user": "alice"}))
    assert fingerprint(event) == fingerprint(msgspec.structs.replace(event, value=99.0, span_count=1))
    assert fingerprint(event) != fingerprint(make_event(group={"user": "bob"}))
    assert fingerprint(event) != fingerprint(make_event(group={"caller": "alice"}))


# --- labels


def test_filter_and_instance_become_labels() -> None:
    event = make_event(filter={"model": "o3", "attr.step_name": "plan"}, group={"user": "alice"})
    assert alertmanager_labels(event) == {
        "alertname": "hourly-cost-spike",
        "metric": "total_cost",
        "severity": "critical",
        "rule_id": "alert_7f3a1c2b",
        "model": "o3",
        "step_name": "plan",
        "user": "alice",
    }


def test_a_filter_never_overwrites_a_fixed_label() -> None:
    taken = {"alertname": "a", "metric": "b", "severity": "c", "rule_id": "d"}
    labels = alertmanager_labels(make_event(filter=taken))
    assert labels["alertname"] == "hourly-cost-spike"
    assert labels["severity"] == "critical"
    assert set(taken.values()) <= set(labels.values())


@pytest.mark.parametrize("key", ["a.b.c", "step-name", "2fast", "ünïcode", "with space", "a:b", "{}", "severity"])
def test_any_key_becomes_a_valid_label_name(key: str) -> None:
    labels = alertmanager_labels(make_event(group={key: "here"}))
    assert "here" in labels.values()
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in labels)


keys = st.text(min_size=1, max_size=12).filter(lambda key: key.removeprefix("attr.") != "")


@given(filter_=st.dictionaries(keys, st.text(max_size=5), max_size=4), key=keys, values=st.tuples(st.text(), st.text()))
def test_two_instances_of_a_rule_have_different_labels(
    filter_: dict[str, str], key: str, values: tuple[str, str]
) -> None:
    first, second = (alertmanager_labels(make_event(filter=filter_, group={key: value})) for value in values)
    assert (first == second) == (values[0] == values[1])
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in first)


# --- alerts pushed to an Alertmanager


def test_a_pushed_firing_ends_four_minutes_from_now() -> None:
    now = START_NS + 90 * SECOND
    alert = alertmanager_alert(make_event(group={"user": "alice"}), now)
    assert set(alert) <= {"labels", "annotations", "startsAt", "endsAt", "generatorURL"}
    assert alert["labels"]["alertname"] == "hourly-cost-spike"
    assert alert["labels"]["user"] == "alice"
    assert all(isinstance(text, str) for text in (*alert["labels"].values(), *alert["annotations"].values()))
    assert (alert["startsAt"], alert["endsAt"]) == (FIRED, render_instant(now + 4 * MINUTE))


def test_a_pushed_firing_whose_episode_is_over_ends_now() -> None:
    now = START_NS + 90 * SECOND
    assert alertmanager_alert(make_event(), now, over=True)["endsAt"] == render_instant(now)


@pytest.mark.parametrize("names", [("X-A", "x-a"), ("Authorization", "AUTHORIZATION")])
def test_a_header_name_that_occurs_twice_is_refused(names: tuple[str, str]) -> None:
    given = {"type": "http", "url": URL, "headers": dict.fromkeys(names, "x")}
    with pytest.raises(ConfigError, match=rf"headers\.{names[0]}.*twice"):
        parse_channel(given, "delivery")


def test_a_pushed_resolution_ends_when_the_episode_ended() -> None:
    alert = alertmanager_alert(make_resolved(), START_NS + HOUR)
    assert (alert["startsAt"], alert["endsAt"]) == (FIRED, OVER)
    assert parse_instant(alert["endsAt"]) <= START_NS + HOUR


def test_a_firing_and_its_resolution_have_the_same_labels() -> None:
    """An Alertmanager identifies an alert by its labels, so nothing that changes with time may be a label."""
    firing = make_event(group={"user": "a"}, filter={"model": "o3"})
    again = msgspec.structs.replace(firing, fired_at=OVER, value=99.0, span_count=7, message="m")
    over = make_resolved(group={"user": "a"}, filter={"model": "o3"})
    labels = [alertmanager_alert(event, START_NS)["labels"] for event in (firing, again, over)]
    assert labels[0] == labels[1] == labels[2]


@pytest.mark.parametrize("value", [None, 0, 0.1 + 0.2, 1e300, -3])
def test_any_value_becomes_an_annotation(value: float | None) -> None:
    alert = alertmanager_alert(make_event(value=value), START_NS)
    shown = alert["annotations"]["value"]
    assert shown == "" if value is None else float(shown) == value
    msgspec.json.encode(alert)


# --- Idempotency-Key


def test_the_idempotency_key_is_rule_id_and_instant() -> None:
    assert idempotency_key(make_event()) == f"alert_7f3a1c2b@{FIRED}"


def test_every_instant_status_and_instance_has_its_own_key() -> None:
    events = [
        make_event(group=group, fired_at=fired_at)
        for group in ({}, {"user": ""}, {"user": "alice"}, {"user": "bob"}, {"user": "alice@bob"}, {"user": "@"})
        for fired_at in (FIRED, OVER)
    ]
    events += [msgspec.structs.replace(event, status="resolved") for event in events]
    events += [make_event(rule_id="alert_00000000")]
    assert len({idempotency_key(event) for event in events}) == len(events)


def test_every_attempt_has_the_same_idempotency_key() -> None:
    event = make_event(group={"user": "alice"})
    other = msgspec.structs.replace(event, value=1.0, message="x", level="warning", filter={"a": "b"}, starts_at=OVER)
    assert idempotency_key(event) == idempotency_key(other)


@given(group=st.text(), status=st.sampled_from(["firing", "resolved"]))
def test_an_idempotency_key_is_a_valid_header_value_for_any_instance(group: str, status: Any) -> None:
    key = idempotency_key(make_event(group={"user": group}, status=status))
    assert key.isascii()
    assert key.isprintable()
    assert " " not in key
    assert len(key) <= 128


def test_two_firings_of_an_episode_have_different_keys() -> None:
    rule = parse_rule(
        {
            "name": "Kosten/h > 5 €",
            "metric": "total_cost",
            "op": "gt",
            "threshold": 5,
            "window": "1m",
            "cooldown": "1s",
        },
        "rule",
    )
    first = decide(rule, State(), START_NS, 6.0, 1).event
    state = State(firing=True, fired_ns=START_NS, starts_ns=START_NS, event_ns=START_NS)
    second = decide(rule, state, START_NS + SECOND, 6.0, 1).event
    assert first is not None
    assert second is not None
    assert first.starts_at == second.starts_at
    assert idempotency_key(first) != idempotency_key(second)


# --- signatures and pauses


@pytest.mark.parametrize("secret", ["shh", "", "ünïcode", "x" * 200])
@pytest.mark.parametrize("body", [b"", b"{}", bytes(range(256))])
def test_the_signature_is_an_hmac_of_the_body(secret: str, body: bytes) -> None:
    assert signature(secret, body) == "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def test_the_signature_matches_a_test_vector_of_rfc_4231() -> None:
    """The key, the data and the digest are those of test case 2."""
    assert signature("Jefe", b"what do ya want for nothing?") == (
        "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_pauses_double_from_half_a_second_to_a_minute() -> None:
    pauses = [backoff_ns(attempt) / SECOND for attempt in range(1, 11)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("attempt", [20, 21, 22, 100, 10**6])
def test_no_pause_is_longer_than_a_minute(attempt: int) -> None:
    assert backoff_ns(attempt) == MINUTE
