"""The ``delivery`` of a rule: its keys, defaults, limits and error texts."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest

from kit.alert_events import URL, make_event, make_resolved
from tokentrace.errors import ConfigError
from tokentrace.units import MINUTE, SECOND
from tokentrace_alerter.delivery import (
    Channel,
    parse_channel,
)


def test_without_a_delivery_there_is_no_channel() -> None:
    assert parse_channel(None, "rule.delivery") is None


@pytest.mark.parametrize("kind", ["http", "webhook"])
def test_every_key_of_a_webhook_is_accepted(kind: Literal["http", "webhook"]) -> None:
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
def test_a_type_of_delivery_accepts_its_keys_and_refuses_others_by_name(kind: str, key: str) -> None:
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


def each(kind: str, key: str, *values: object) -> list[tuple[str, str, object]]:
    return [(kind, key, value) for value in values]


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
        *each("http", "timeout", "", "0", "0s", "9ms", "9999999ns", "60001ms", "1h", "5", 5, -1, []),
        ("http", "timeout", True),
        ("http", "timeout", {}),
        *each("http", "headers", "a: b", [], ["a"], 3, {"": "x"}, {3: "x"}, {"a b": "x"}),
        *(("http", "headers", {"a": value}) for value in (3, None, True, "ü", "x\r\ny: z", "x\x00", "\t", ["x"])),
        *(("http", "headers", {name: "x"}) for name in ("a:", "a\n", "ä", "(a)", "a/b", '"a"', "a\r\nb")),
        *each("http", "max_retries", -1, 101, 1.0, "3", True, [], math.inf),
        *each("custom", "max_retries", -1, 101, "3"),
        *each("stdout", "send_resolved", "yes", 1, 0, [], "true"),
        *each("http", "format", "", "Alertmanager", "v4", 4, [], {}, True),
        *each("http", "secret", ["shh"], {"a": "b"}, True),
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


def test_an_error_text_contains_no_secret() -> None:
    for fields in ({"secret": "hunter2"}, {"headers": {"Authorization": "Bearer hunter2\n"}}):
        with pytest.raises(ConfigError) as caught:
            parse_channel({"type": "alertmanager", "url": "http://am", **fields}, "d")
        assert "hunter2" not in str(caught.value)


def test_resolutions_go_to_alertmanagers_and_to_channels_that_ask_for_them() -> None:
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
