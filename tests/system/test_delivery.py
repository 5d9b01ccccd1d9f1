"""Delivery of events to webhooks and standard output, and events that are too old."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import logging
import re
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kit.pipeline import free_port
from kit.receiver import (
    SECRETS,
    DeliveryRun,
    Receiver,
    Reply,
    make_end,
    make_event,
    make_rule,
)
from tokentrace.bus import subjects
from tokentrace.errors import ConfigError
from tokentrace.units import HOUR, MINUTE, SECOND
from tokentrace_alerter.delivery import backoff_ns, worker
from tokentrace_alerter.rules import parse_rule

JSON = {"Content-Type": "application/json"}


def rendered(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- webhooks and standard output


async def test_a_webhook_request_has_event_key_signature_and_configured_headers() -> None:
    with Receiver() as receiver:
        headers = {"Authorization": "Bearer t", "X-Team": "on call"}
        given = {"type": "http", "url": receiver.url + "/hook/1?team=a%20b", "headers": headers, "secret": "geheim"}
        async with DeliveryRun(make_rule(delivery=given)) as run:
            event = make_event()
            await run.publish(event)
            await run.done()
    (sent,) = receiver.sent
    assert sent.path == "/hook/1?team=a%20b"
    assert sent.json() == msgspec.to_builtins(event)
    assert sent.header("Content-Type") == "application/json"
    assert (sent.header("Authorization"), sent.header("X-Team")) == ("Bearer t", "on call")
    assert sent.key == f"{event.rule_id}@{event.fired_at}"
    expected = "sha256=" + hmac.new(b"geheim", sent.body, hashlib.sha256).hexdigest()
    assert sent.header("X-Tokentrace-Signature") == expected
    (record,) = run.records()
    assert (record["rule"], record["fired_at"], record["status"]) == ("rule", event.fired_at, "firing")
    assert (record["key"], record["channel"], record["outcome"]) == (sent.key, "http", "delivered")
    assert (record["attempt"], record["error"]) == (1, "")
    assert record["took_ms"] > 0
    assert run.delivery_worker.delivered == 1


async def test_without_a_secret_there_is_no_signature() -> None:
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "webhook", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
    assert receiver.sent[0].header("X-Tokentrace-Signature") is None


@pytest.mark.parametrize("name", ["content-type", "USER-AGENT", "idempotency-key", "x-tokentrace-signature"])
async def test_a_header_is_sent_once_however_the_rule_writes_its_name(name: str) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "headers": {name: "mine"}, "secret": "s"}
        async with DeliveryRun(make_rule(delivery=given)) as run:
            await run.publish(make_event())
            await run.done()
    assert len(receiver.sent[0].every(name)) == 1


async def test_each_instance_and_each_resolution_has_its_own_key() -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "send_resolved": True}
        async with DeliveryRun(make_rule(delivery=given, group_by="case")) as run:
            now = time.time_ns()
            begun = [make_event(at_ns=now, group={"case": case}) for case in ("a", "b", "", "ü", "a@b")]
            await run.publish(*begun, *(make_end(event, now) for event in begun))
            await run.done()
    assert len({sent.key for sent in receiver.sent}) == 10
    assert all(re.fullmatch(r"[!-~]+", sent.key) for sent in receiver.sent)


def test_the_timeout_is_five_seconds_unless_the_rule_sets_it() -> None:
    given = {"type": "http", "url": "http://h"}
    channel = parse_rule(make_rule(delivery=given), "rule").delivery
    assert channel is not None
    assert channel.timeout_ns == 5 * SECOND
    channel = parse_rule(make_rule(delivery={**given, "timeout": "250ms"}), "rule").delivery
    assert channel is not None
    assert channel.timeout_ns == SECOND // 4


async def test_a_timeout_is_retried_with_the_same_key() -> None:
    with Receiver(lambda sent: Reply(after_s=2) if len(receiver.sent) == 1 else Reply()) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url, "timeout": "200ms"})) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "delivered"]
    late, fine = run.records()
    assert "0.2 s" in late["error"]
    assert late["took_ms"] > 150
    assert (late["attempt"], fine["attempt"]) == (1, 2)
    assert receiver.sent[0].key == receiver.sent[1].key
    assert receiver.sent[0].body == receiver.sent[1].body


async def test_a_slow_response_body_does_not_fail_the_delivery() -> None:
    with Receiver(lambda sent: Reply(dribble_s=2, body=b"late")) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url, "timeout": "200ms"})) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["delivered"]


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422, 499])
async def test_a_refused_event_is_not_retried(status: int) -> None:
    with Receiver(lambda sent: Reply(status)) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
    assert len(receiver.sent) == 1
    (record,) = run.records()
    assert (record["outcome"], record["error"]) == ("dead", f"HTTP {status}")
    assert run.delivery_worker.failed == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    with Receiver(lambda sent: Reply(status, {"Location": receiver.url + "/elsewhere"})) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url + "/hook"})) as run:
            await run.publish(make_event())
            await run.done()
    assert [sent.path for sent in receiver.sent] == ["/hook"]
    assert run.outcomes() == ["dead"]


async def test_a_failing_receiver_is_retried_after_growing_pauses() -> None:
    replies = [Reply(500), Reply(0), Reply(503), Reply()]
    with Receiver(lambda sent: replies[len(receiver.sent) - 1]) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "retry", "retry", "delivered"]
    times = [sent.at for sent in receiver.sent]
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    # A busy machine makes a pause longer, and nothing makes it shorter.
    assert all(pause > least - 0.1 for pause, least in zip(pauses, (0.5, 1.0, 2.0), strict=True)), pauses
    assert len({sent.key for sent in receiver.sent}) == 1
    assert "HTTP 500" in run.records()[0]["error"]
    assert run.records()[1]["error"] not in ("", "HTTP 500")


def test_a_pause_is_a_minute_at_most() -> None:
    pauses = [backoff_ns(attempt) for attempt in range(1, 101)]
    assert pauses == sorted(pauses)
    assert (pauses[0], max(pauses)) == (SECOND // 2, MINUTE)


@pytest.mark.parametrize("retries", [0, 2])
async def test_an_event_that_failed_all_retries_is_dead_and_one_of_another_rule_is_delivered(retries: int) -> None:
    port = free_port()
    given = {"type": "http", "url": f"http://127.0.0.1:{port}", "max_retries": retries}
    with Receiver() as receiver:
        fine = {"type": "http", "url": receiver.url}
        async with DeliveryRun(make_rule(delivery=given), make_rule("fine", delivery=fine)) as run:
            await run.publish(make_event(), make_event("fine"))
            await run.done()
    assert run.outcomes("rule") == ["retry"] * retries + ["dead"]
    # On a busy machine the first try may take too long.
    assert run.outcomes("fine")[-1] == "delivered"
    assert f"{retries + 1} attempts" in run.records("rule")[-1]["error"]


@pytest.mark.parametrize("resolved", [False, True])
async def test_a_resolution_is_delivered_only_with_send_resolved(resolved: bool) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "send_resolved": resolved}
        async with DeliveryRun(make_rule(delivery=given)) as run:
            event = make_event()
            await run.publish(event, make_end(event))
            await run.done()
    statuses = sorted(sent.json()["status"] for sent in receiver.sent)
    assert statuses == (["firing", "resolved"] if resolved else ["firing"])


async def test_a_destination_gets_at_most_eight_concurrent_requests() -> None:
    with Receiver(lambda sent: Reply(after_s=0.5)) as receiver:
        given = {"type": "http", "url": receiver.url + "/a"}
        async with DeliveryRun(make_rule(delivery=given), make_rule("same", delivery=given)) as run:
            for name in ("rule", "same"):
                await run.publish(*(make_event(name, group={"case": str(number)}) for number in range(30)))
            await run.done()
    assert receiver.most_at_once == 8
    assert len(receiver.sent) == 60


async def test_destinations_that_hang_delay_no_other_destination() -> None:
    """15 destinations that hang, with 8 requests each, need more than 100 connections."""
    with Receiver(lambda sent: Reply(after_s=30)) as dead, Receiver() as alive:
        rules = [make_rule(f"dead {n}", {"type": "http", "url": f"{dead.url}/{n}"}) for n in range(15)]
        async with DeliveryRun(*rules, make_rule("alive", {"type": "http", "url": alive.url, "timeout": "2s"})) as run:
            cases = [{"case": str(number)} for number in range(8)]
            await run.publish(*(make_event(f"dead {n}", group=case) for n in range(15) for case in cases))
            await run.until(lambda: dead.at_once >= 100, "a hundred at once")
            await run.publish(make_event("alive"))
            await run.until(lambda: run.outcomes("alive") != [], "tried", 5)
    assert run.outcomes("alive") == ["delivered"]


async def test_a_long_queue_for_one_destination_delays_no_other() -> None:
    """1,200 events wait for a receiver that hangs, and an event for another receiver is delivered."""
    with Receiver(lambda sent: Reply(after_s=30)) as dead, Receiver() as alive:
        rules = [
            make_rule("dead", {"type": "http", "url": dead.url}),
            make_rule("alive", {"type": "http", "url": alive.url}),
        ]
        async with DeliveryRun(*rules) as run:
            now = time.time_ns()
            await run.publish(*(make_event("dead", now, group={"case": str(number)}) for number in range(1200)))
            await run.publish(make_event("alive"))
            await run.until(lambda: run.outcomes("alive") == ["delivered"], "delivered", 4)


@pytest.mark.parametrize(
    ("host", "reply"),
    [
        ("", Reply()),
        ("", Reply(500)),
        ("", Reply(400)),
        ("", Reply(0)),
        ("", Reply(302)),
        ("127.0.0.1:9", Reply()),
        ("ü..example", Reply()),
    ],
)
async def test_no_record_or_log_line_of_a_delivery_contains_a_secret(
    host: str, reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with Receiver(lambda sent: reply) as receiver:
        given = {
            "type": "http",
            "url": f"http://geheim-user:geheim-word@{host or f'127.0.0.1:{receiver.port}'}/hook?token=geheim-query",
            "headers": {"X-Token": "geheim-header"},
            "secret": "geheim-key",
            "max_retries": 0,
        }
        async with DeliveryRun(make_rule(delivery=given)) as run:
            await run.publish(make_event())
            await run.done()
    assert len(run.records()) == 1
    texts = json.dumps(run.records(), ensure_ascii=False) + caplog.text
    assert [secret for secret in SECRETS if secret in texts] == []


@pytest.mark.parametrize("value", ["Bearer ", " x", "a\tb"])
def test_a_header_that_cannot_be_sent_is_refused_with_the_rule(value: str) -> None:
    with pytest.raises(ConfigError, match=r"delivery\.headers"):
        parse_rule(make_rule(delivery={"type": "http", "url": "http://h", "headers": {"Authorization": value}}), "rule")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(headers={"Content-Encoding": "gzip"}, body=b"not gzip at all"),
        Reply(headers={"Content-Encoding": "deflate"}, body=b"neither"),
        Reply(headers={"Content-Type": "text/plain; charset=nonsense"}, body=b"\xff\xfe"),
        Reply(headers={"Content-Length": "1000000"}, body=b"cut"),
        Reply(204),
        Reply(500, headers={"Content-Encoding": "gzip"}, body=b"x"),
    ],
)
async def test_an_invalid_http_response_does_not_stop_the_worker(reply: Reply) -> None:
    with Receiver(lambda sent: reply) as odd, Receiver() as fine:
        given = {"type": "http", "url": odd.url, "max_retries": 0, "timeout": "1s"}
        async with DeliveryRun(make_rule("odd", given), make_rule("fine", {"type": "http", "url": fine.url})) as run:
            await run.publish(make_event("odd"))
            await run.until(lambda: run.outcomes("odd") != [], "recorded")
            await run.publish(make_event("fine"))
            await run.done()
    assert run.outcomes("fine") == ["delivered"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "1"},
        {"Content-Length": "9999"},
        {"content-length": "x"},
        {"Transfer-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked"},
        {"Connection": "Upgrade", "Upgrade": "websocket"},
        {"Expect": "100-continue"},
        {"Host": "a b"},
        {"A": ""},
    ],
    ids=str,
)
async def test_an_unusual_header_is_refused_or_does_not_stop_the_worker(headers: dict[str, str]) -> None:
    with Receiver() as receiver:
        given = {"type": "http", "url": receiver.url, "max_retries": 0, "timeout": "1s", "headers": headers}
        with contextlib.suppress(ConfigError):
            async with DeliveryRun(make_rule(delivery=given)) as run:
                await run.publish(make_event())
                await run.done()


async def test_cookies_are_not_kept() -> None:
    with Receiver(lambda sent: Reply(headers={"Set-Cookie": "session=a; Path=/"})) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
            await run.publish(make_event(number=1))
            await run.done()
    assert receiver.sent[1].header("Cookie") is None


async def test_invalid_events_and_events_of_removed_rules_are_skipped() -> None:
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url}), make_rule("silent")) as run:
            await run.bus.publish(subjects.alerts("default", "rule"), b"{")
            await run.publish(make_event("gone"), make_event("silent"), make_event())
            await run.done()
    assert len(receiver.sent) == 1
    assert run.outcomes() == ["delivered"]


async def test_stdout_gets_a_line_for_each_event_but_resolutions_only_with_send_resolved(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rules = make_rule("plain", {"type": "stdout"}), make_rule("both", {"type": "stdout", "send_resolved": True})
    async with DeliveryRun(*rules) as run:
        plain, both = make_event("plain", filter={"a": "line\nbreak ü"}), make_event("both")
        await run.publish(plain, make_end(plain), both, make_end(both))
        await run.done()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted((line["alert"], line["status"]) for line in lines) == [
        ("both", "firing"),
        ("both", "resolved"),
        ("plain", "firing"),
    ]
    assert msgspec.to_builtins(plain) in lines


async def test_a_line_that_stdout_does_not_take_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class FailsOnce:
        def write(self, text: str) -> None:
            written.append(text)
            if len(written) == 1:
                raise BrokenPipeError("Broken pipe")

        def flush(self) -> None:
            pass

    async with DeliveryRun(make_rule(delivery={"type": "stdout"})) as run:
        monkeypatch.setattr(worker, "sys", SimpleNamespace(stdout=FailsOnce()))
        await run.publish(make_event())
        await run.done()
    assert run.outcomes() == ["retry", "delivered"]
    assert written[0] == written[1]


# --- old events


@pytest.mark.parametrize(
    ("age_ns", "lasts", "expected"),
    [
        (HOUR - SECOND, False, "delivered"),
        (HOUR + SECOND, False, "expired"),
        (HOUR + SECOND, True, "delivered"),
        (30 * HOUR, False, "expired"),
        (30 * HOUR, True, "delivered"),
    ],
)
async def test_a_firing_older_than_an_hour_is_delivered_only_while_its_episode_lasts(
    age_ns: int, lasts: bool, expected: str
) -> None:
    now = time.time_ns()
    event = make_event(at_ns=now - age_ns)
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            run.now_ns = event_ns(event) + age_ns
            run.open_episodes = [event] if lasts else []
            await run.publish(event)
            await run.done()
    assert run.outcomes() == [expected]
    assert len(receiver.sent) == (expected == "delivered")
    assert run.delivery_worker.expired == (expected == "expired")


def event_ns(event: Any) -> int:
    return int(datetime.fromisoformat(event.fired_at).timestamp() * 1000) * 1_000_000


async def test_an_old_firing_expires_although_a_later_episode_is_open() -> None:
    """A firing older than an hour whose episode has ended is recorded as expired and not sent."""
    now = time.time_ns()
    old, new = make_event(at_ns=now - 5 * HOUR), make_event(at_ns=now)
    with Receiver() as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            run.open_episodes = [new]
            await run.publish(old, make_end(old, now - 4 * HOUR), new)
            await run.done()
    assert [sent.json()["fired_at"] for sent in receiver.sent] == [new.fired_at]
    assert run.outcomes() == ["expired", "delivered"]


async def test_an_open_episode_of_one_instance_does_not_keep_another_from_expiring() -> None:
    now = time.time_ns()
    old = make_event(at_ns=now - 2 * HOUR, group={"case": "a"})
    async with DeliveryRun(make_rule(delivery={"type": "stdout"}, group_by="case")) as run:
        run.open_episodes = [make_event(at_ns=now, group={"case": "b"})]
        await run.publish(old)
        await run.done()
    assert run.outcomes() == ["expired"]


async def test_an_event_that_failed_until_it_was_an_hour_old_expires() -> None:
    event = make_event()
    with Receiver(lambda sent: Reply(500)) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(event)
            await run.until(lambda: run.outcomes() == ["retry"], "tried")
            run.now_ns = event_ns(event) + HOUR + SECOND
            await run.done()
    assert run.outcomes() == ["retry", "expired"]
    assert run.records()[-1]["attempt"] == 2
