"""Random messages on every subject that the product listens on: raw batches, queries, and the streams it follows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

from kit.builders import make_batch, make_span
from kit.random_values import changed, damaged, encode, odd_text, unreadable
from tokentrace.metrics import Query, encode_query
from tokentrace.records import encode_batches

SPAN: dict[str, Any] = {
    "name": "answer",
    "model": "gpt-4o",
    "provider": "openai",
    "caller": "a publisher",
    "prompt_tokens": 512,
    "comp_tokens": 128,
    "latency_ms": 820,
    "status": "ok",
    "trace_id": "t",
    "span_id": "s",
    "session_id": "se",
    "user_id": "alice",
    "attributes": {"team": "search", "eval.score": 0.9},
    "usage": {"web_searches": 2},
}
_EVENT: dict[str, Any] = {
    "alert": "r",
    "fired_at": "2026-03-15T14:23:01Z",
    "starts_at": "2026-03-15T14:23:01Z",
    "status": "firing",
    "metric": "span_count",
    "op": "gte",
    "value": 1,
    "threshold": 1,
    "window": "1h",
    "span_count": 1,
    "filter": {},
    "group": {},
    "rule_id": "alert_00000000",
    "message": "span_count >= 1",
}
_RECORD: dict[str, Any] = {
    "rule": "r",
    "fired_at": "2026-03-15T14:23:01Z",
    "status": "firing",
    "group": {},
    "key": "r@1",
    "channel": "http",
    "destination": "http://127.0.0.1:9/",
    "outcome": "retry",
    "attempt": 1,
    "error": "HTTP 500",
    "at": "2026-03-15T14:23:01Z",
    "took_ms": 1.5,
}
_LETTER: dict[str, Any] = {"reason": "model: required", "batch": "b", "index": 0, "kind": "span", "record": SPAN}
_ASKED: list[dict[str, Any]] = [
    {"ask": "list"},
    {"ask": "create", "rule": {"name": "r1", "metric": "error_rate", "op": "gt", "threshold": 1, "window": "1h"}},
    {"ask": "delete", "name": "r1"},
    {"ask": "silence", "name": "r", "duration": "2h"},
]
_QUERY = Query(what="window", from_s=1_773_584_000, to_s=1_773_587_600, now_s=1_773_587_600, by_model=True)
_HEADERS = (
    *(b"", b"garbage\r\n\r\n", b"NATS/1.0", b"NATS/1.0 503 \xff\xfe\r\n\r\n", b"NATS/1.0\r\n\xff: \xff\r\n\r\n"),
    b"NATS/1.0\r\nNats-Msg-Id: %d\r\n\r\n",
    b"NATS/1.0\r\nNats-Msg-Id: \xff\x01\r\n\r\n",
    b"NATS/1.0\r\nNats-Msg-Id: " + b"x" * 3000 + b"\r\n\r\n",
    b"NATS/1.0\r\nnats-msg-id: a\r\nNats-Msg-Id: b\r\nNats-Msg-Id: c\r\n\r\n",
    b"NATS/1.0\r\nTokentrace-Part: a b c\r\n\r\n",
    b"NATS/1.0\r\nTokentrace-Part: x 0 999999999\r\n\r\n",
)


class NatsCase(NamedTuple):
    """
    A message.

    Attributes:
        headers: The header block; None = the message has none.
        asks: Whether the message has a subject for replies.
    """

    subject: str
    payload: bytes
    headers: bytes | None
    asks: bool


def nats_case(dice: random.Random) -> NatsCase:
    """Return the next message of *dice*."""
    (make,) = dice.choices([make for make, _ in _KINDS], [weight for _, weight in _KINDS])
    subject, payload = make(dice)
    headers = None
    if dice.random() < 0.2:
        headers = dice.choice(_HEADERS).replace(b"%d", b"%d" % dice.randrange(50))
    return NatsCase(subject, payload, headers, asks=dice.random() < 0.8 or subject.startswith("tokentrace.query"))


def _json(value: Any, dice: random.Random) -> bytes:
    """Return *value* as JSON, changed in a few places, or something else."""
    if dice.random() < 0.1:
        return unreadable(dice)
    for _ in range(dice.choice((0, 1, 1, 2, 5))):
        value = changed(value, dice)
    body = encode(value)
    return damaged(body, dice) if dice.random() < 0.1 else body


def _batches(dice: random.Random) -> bytes:
    """Return batches as a reporter sends them, mostly damaged."""
    odd = {"name": odd_text(dice), "model": odd_text(dice), "prompt_tokens": dice.choice((0, 1, 2**40, 2**62))}
    spans = [
        make_span(**(odd if dice.random() < 0.5 else {}), trace_id="t") for _ in range(dice.choice((0, 1, 3, 300)))
    ]
    source = f"{dice.randrange(20):032x}"
    batch = make_batch(*spans, id=f"default.web.{source}", sequence=dice.choice((0, 1, 2, dice.randrange(2**40))))
    payload = encode_batches([batch] * dice.choice((1, 1, 2)))
    return damaged(payload, dice) if dice.random() < 0.8 else payload


def _raw(dice: random.Random) -> tuple[str, bytes]:
    subjects = ("tokentrace.raw.default.0",) * 6 + (
        "tokentrace.raw.default.7",
        "tokentrace.raw.x",
        "tokentrace.raw.a.b.c",
    )
    subject = dice.choice(
        (*subjects, "tokentrace.raw.=FF.0", "tokentrace.raw.\u00fc.0", "tokentrace.raw." + "x" * 3000)
    )
    if dice.random() < 0.6:
        return subject, _json(SPAN if dice.random() < 0.5 else [SPAN] * dice.choice((1, 2, 20)), dice)
    return subject, _batches(dice)


def _query(dice: random.Random) -> tuple[str, bytes]:
    if dice.random() < 0.5:
        payload = encode_query(_QUERY)
        return "tokentrace.query.metrics", damaged(payload, dice) if dice.random() < 0.9 else payload
    subject = dice.choice(("tokentrace.query.alerts",) * 6 + ("tokentrace.query.x", "tokentrace.query.metrics"))
    return subject, _json(dice.choice(_ASKED), dice)


def _spans(dice: random.Random) -> tuple[str, bytes]:
    subjects = ("tokentrace.spans.default.0",) * 4 + (
        "tokentrace.spans.default.9",
        "tokentrace.spans.x",
        "tokentrace.spans.a.b.c",
    )
    return dice.choice(subjects), unreadable(dice) if dice.random() < 0.3 else damaged(
        encode_batches([make_batch()]), dice
    )


def _alerts(dice: random.Random) -> tuple[str, bytes]:
    subjects = (
        "tokentrace.alerts.default.r",
        "tokentrace.alerts.default.r1",
        "tokentrace.alerts.x",
        "tokentrace.alerts.a.b.c",
    )
    return dice.choice(subjects), _json(_EVENT, dice)


def _deliveries(dice: random.Random) -> tuple[str, bytes]:
    return dice.choice(("tokentrace.deliveries.default.r", "tokentrace.deliveries.x")), _json(_RECORD, dice)


def _rejected(dice: random.Random) -> tuple[str, bytes]:
    return dice.choice(("tokentrace.rejected.default", "tokentrace.rejected.a.b")), _json(_LETTER, dice)


def _refused(dice: random.Random) -> tuple[str, bytes]:
    return "tokentrace.refused.default.0123", _json([{"index": 0, "error": "x"}], dice)


_KINDS: tuple[tuple[Callable[[random.Random], tuple[str, bytes]], int], ...] = (
    (_raw, 45),
    (_query, 30),
    (_spans, 8),
    (_alerts, 6),
    (_deliveries, 4),
    (_rejected, 4),
    (_refused, 3),
)
