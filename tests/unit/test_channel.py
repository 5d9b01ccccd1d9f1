"""Parsing of deliveries, and the bodies, labels, keys, signatures and pauses of deliveries."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tokentrace_alerter.rules import State, decide, parse_rule

#: 2026-09-21T14:00:00Z, a whole hour.
START_NS = 497_222 * HOUR
URL = "https://example.org/hook"
FIRED, OVER = "2026-09-21T14:00:00.000Z", "2026-09-21T14:05:00.000Z"
TEN_KEYS = {"alert", "fired_at", "metric", "op", "value", "threshold", "window", "span_count", "filter", "rule_id"}


def make_event(**overrides: Any) -> AlertEvent:
    fields: dict[str, Any] = {
        "alert": "hourly-cost-spike",
        "fired_at": FIRED,
        "metric": "total_cost",
        "op": "gt",
        "value": 12.47,
        "threshold": 10.0,
        "window": "1h",
        "span_count": 312,
        "filter": {},
        "rule_id": "alert_7f3a1c2b",
        "level": "critical",
        "message": "total_cost > 12.47 (threshold: 10)",
        "starts_at": FIRED,
        **overrides,
    }
    return AlertEvent(**fields)


def make_resolved(**overrides: Any) -> AlertEvent:
    return make_event(status="resolved", fired_at=OVER, ends_at=OVER, value=1.5, **overrides)


# --- written deliveries and defaults


def test_without_a_delivery_there_is_no_channel() -> None:
    assert parse_channel(None, "rule.delivery") is None


@pytest.mark.parametrize("kind", ["http", "webhook"])
def test_every_key_of_a_webhook_is_accepted(kind: str) -> None:
    given = {
        "type": kind,
        "url": URL,
        "timeout": "1500ms",
        "headers": {"Authorization": "Bearer x", "X-Team": "search"},
        "max_retries": 2,
        "send_resolved": True,
        "secret": "shh",
        "format": "alertmanager",
    }
    assert parse_channel(given, "delivery") == Channel(
        type=kind,
        url=URL,
        timeout_ns=1500 * SECOND // 1000,
        headers={"Authorization": "Bearer x", "X-Team": "search"},
        max_retries=2,
        send_resolved=True,
        secret="shh",
        format="alertmanager",
    )


def test_a_webhook_with_only_a_url_has_the_documented_defaults() -> None:
    channel = parse_channel({"type": "http", "url": URL}, "delivery")
    assert channel is not None
    assert (channel.timeout_ns, channel.headers, channel.send_resolved) == (5 * SECOND, {}, False)
    assert (channel.secret, channel.format) == ("", "tokentrace")


def test_every_key_of_the_other_types_is_accepted() -> None:
    assert parse_channel({"type": "stdout", "send_resolved": True}, "d") == Channel(type="stdout", send_resolved=True)
    custom = {"type": "custom", "target": "shop.alerts:Pager.deliver", "max_retries": 0, "send_resolved": True}
    assert parse_channel(custom, "d") == Channel(
        type="custom", target="shop.alerts:Pager.deliver", max_retries=0, send_resolved=True
    )
    manager = {"type": "alertmanager", "url": "http://am:9093/", "timeout": "1m", "headers": {"a": "b"}}
    assert parse_channel({**manager, "max_retries": 100}, "d") == Channel(
        type="alertmanager", url="http://am:9093", timeout_ns=MINUTE, headers={"a": "b"}, max_retries=100
    )


def test_a_key_whose_value_is_null_counts_as_absent() -> None:
    given = {"type": "http", "url": URL, "secret": None, "headers": None, "target": None, "timeout": None}
    assert parse_channel(given, "d") == Channel(type="http", url=URL)


VALID = {
    "stdout": {"type": "stdout"},
    "http": {"type": "http", "url": URL},
    "webhook": {"type": "webhook", "url": URL},
    "alertmanager": {"type": "alertmanager", "url": "http://am:9093"},
    "custom": {"type": "custom", "target": "shop:page"},
}
ALLOWED = {
    "stdout": {"send_resolved"},
    "http": {"url", "timeout", "headers", "max_retries", "send_resolved", "secret", "format"},
    "webhook": {"url", "timeout", "headers", "max_retries", "send_resolved", "secret", "format"},
    "alertmanager": {"url", "timeout", "headers", "max_retries"},
    "custom": {"target", "max_retries", "send_resolved"},
}
VALUES: dict[str, Any] = {
    "url": URL,
    "target": "a.b:c",
    "timeout": "2s",
    "headers": {"a": "b"},
    "max_retries": 3,
    "send_resolved": True,
    "secret": "shh",
    "format": "tokentrace",
    "colour": "red",
    "URL": URL,
}


@pytest.mark.parametrize("kind", sorted(VALID))
@pytest.mark.parametrize("key", sorted(VALUES))
def test_a_type_accepts_its_keys_and_refuses_others_by_name(kind: str, key: str) -> None:
    given = {**VALID[kind], key: VALUES[key]}
    if key in ALLOWED[kind]:
        assert parse_channel(given, "rule.delivery") is not None
        return
    with pytest.raises(ConfigError, match=rf"^rule\.delivery\.{key}: ") as caught:
        parse_channel(given, "rule.delivery")
    for allowed in ALLOWED[kind]:
        assert allowed in str(caught.value)


@pytest.mark.parametrize("given", ["stdout", 3, True, [], [{"type": "stdout"}]])
def test_a_delivery_that_is_not_a_map_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^rule\.delivery: "):
        parse_channel(given, "rule.delivery")


@pytest.mark.parametrize("kind", [None, "", "slack", "HTTP", "Stdout", 3, True, [], {}, ["http"]])
def test_an_unknown_type_is_refused_with_the_list_of_types(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"^d\.type: .*stdout, http, webhook, alertmanager, custom"):
        parse_channel({"type": kind, "url": URL}, "d")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *(
            (kind, "url", url)
            for kind in ("http", "webhook", "alertmanager")
            for url in (
                "",
                None,
                3,
                [URL],
                "example.org",
                "//example.org",
                "ftp://example.org",
                "file:///etc/passwd",
                "http://",
                "http:///path",
                "http://:80",
                "http://a b/",
                "http://a/\n",
                "http://a/\x00",
                "http://a:0/",
                "http://a:65536/",
                "http://a:x/",
                "http://[::1",
                "javascript:alert(1)",
            )
        ),
        ("alertmanager", "url", "http://a:9093/?token=x"),
        ("alertmanager", "url", "http://a:9093/#x"),
        *(("http", "timeout", text) for text in ("", "0", "0s", "9ms", "9999999ns", "60001ms", "1h", "5", 5, -1, [])),
        ("http", "timeout", True),
        ("http", "timeout", {}),
        *(("http", "headers", given) for given in ("a: b", [], ["a"], 3, {"": "x"}, {3: "x"}, {"a b": "x"})),
        *(("http", "headers", {"a": value}) for value in (3, None, True, "ü", "x\r\ny: z", "x\x00", "\t", ["x"])),
        *(("http", "headers", {name: "x"}) for name in ("a:", "a\n", "ä", "(a)", "a/b", '"a"', "a\r\nb")),
        *(("http", "max_retries", given) for given in (-1, 101, 1.0, "3", True, [], math.inf)),
        *(("custom", "max_retries", given) for given in (-1, 101, "3")),
        *(("stdout", "send_resolved", given) for given in ("yes", 1, 0, [], "true")),
        *(("http", "format", given) for given in ("", "Alertmanager", "v4", 4, [], {}, True)),
        *(("http", "secret", given) for given in (["shh"], {"a": "b"}, True)),
        *(
            ("custom", "target", given)
            for given in ("", None, 3, "module", "module:", ":name", "a b:c", "a:b c", "a:b()", "os.system;x:y", "a:1b")
        ),
    ],
)
def test_an_invalid_value_of_a_delivery_is_refused_with_its_key(kind: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^rule\.delivery\.{key}[.:]"):
        parse_channel({**VALID[kind], key: value}, "rule.delivery")


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://a.example:8443/x/y?z=1#f",
        "http://user:password@a/",
        "http://127.0.0.1:65535",
        "http://[::1]:9093/",
        "HTTPS://EXAMPLE.ORG/",
        "http://a/%20b",
    ],
)
def test_a_url_is_kept_as_written(url: str) -> None:
    channel = parse_channel({"type": "http", "url": url}, "d")
    assert channel is not None
    assert (channel.url, channel.destination) == (url, url)


@pytest.mark.parametrize(("text", "ns"), [("10ms", SECOND // 100), ("1m", MINUTE), ("60s", MINUTE), ("5s", 5 * SECOND)])
def test_the_shortest_and_the_longest_timeout_are_accepted(text: str, ns: int) -> None:
    channel = parse_channel({"type": "http", "url": URL, "timeout": text}, "d")
    assert channel is not None
    assert channel.timeout_ns == ns


def test_an_error_text_never_contains_a_secret() -> None:
    for said in ({"secret": "hunter2"}, {"headers": {"Authorization": "Bearer hunter2\n"}}):
        with pytest.raises(ConfigError) as caught:
            parse_channel({"type": "alertmanager", "url": "http://am", **said}, "d")
        assert "hunter2" not in str(caught.value)


def test_a_channel_wants_firings_and_resolutions_only_if_asked_for() -> None:
    firing, resolved = make_event(), make_resolved()
    for kind in ("stdout", "http", "webhook", "custom"):
        assert Channel(type=kind).wants(firing)
        assert not Channel(type=kind).wants(resolved)
        assert Channel(type=kind, send_resolved=True).wants(resolved)
    manager = Channel(type="alertmanager")
    assert manager.wants(firing)
    assert manager.wants(resolved)


def test_the_destination_is_the_url_the_target_or_the_type() -> None:
    assert Channel(type="http", url="http://a/1").destination != Channel(type="http", url="http://a/2").destination
    assert Channel(type="custom", target="a:b").destination == "a:b"
    assert Channel(type="stdout").destination == "stdout"


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


@pytest.mark.parametrize("status", ["firing", "resolved"])
def test_with_format_alertmanager_the_body_is_its_payload_of_version_4(status: str) -> None:
    """The keys and types are those of the Alertmanager's documentation of webhook_config."""
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


def test_the_fingerprint_depends_on_the_labels_and_not_on_the_time() -> None:
    def fingerprint(event: AlertEvent) -> str:
        channel = Channel(type="webhook", url=URL, format="alertmanager")
        found: str = msgspec.json.decode(webhook_body(channel, event))["alerts"][0]["fingerprint"]
        return found

    one = make_event(group={"user": "alice"})
    assert fingerprint(one) == fingerprint(make_resolved(group={"user": "alice"}))
    assert fingerprint(one) == fingerprint(msgspec.structs.replace(one, value=99.0, span_count=1))
    assert fingerprint(one) != fingerprint(make_event(group={"user": "bob"}))
    assert fingerprint(one) != fingerprint(make_event(group={"caller": "alice"}))


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


def test_a_filter_never_overwrites_a_label_of_ours() -> None:
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
    one, other = (alertmanager_labels(make_event(filter=filter_, group={key: value})) for value in values)
    assert (one == other) == (values[0] == values[1])
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in one)


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
def test_a_header_name_that_is_there_twice_is_refused(names: tuple[str, str]) -> None:
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


def test_the_idempotency_key_is_rule_and_instant() -> None:
    assert idempotency_key(make_event()) == f"alert_7f3a1c2b@{FIRED}"


def test_every_instant_status_and_instance_has_its_own_key() -> None:
    events = [
        make(group=group, fired_at=fired_at)
        for make in (make_event,)
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
    """Test vector 2 of RFC 4231."""
    assert signature("Jefe", b"what do ya want for nothing?") == (
        "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_pauses_double_from_half_a_second_to_a_minute() -> None:
    pauses = [backoff_ns(attempt) / SECOND for attempt in range(1, 11)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("attempt", [20, 21, 22, 100, 10**6])
def test_no_pause_is_longer_than_a_minute(attempt: int) -> None:
    assert backoff_ns(attempt) == MINUTE
