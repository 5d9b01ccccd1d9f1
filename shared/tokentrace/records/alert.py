"""What the alerter publishes: events on ``tokentrace.alerts.>``, what became of them on ``tokentrace.deliveries.>``."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import reading
from tokentrace.errors import Rejected
from tokentrace.records.span import MAX_INSTANT_NS, MIN_INSTANT_NS
from tokentrace.units import parse_instant


class AlertEvent(msgspec.Struct, frozen=True, kw_only=True):
    """
    A rule began, kept or stopped firing; JSON with the ten documented keys and a few more.

    Attributes:
        alert: The rule's name.
        fired_at: The instant that was evaluated, RFC 3339 with milliseconds.
        value: The metric at that instant, in its documented unit; None when there was no data.
        window: As the rule wrote it, such as ``1h``.
        span_count: Spans that contributed to value.
        rule_id: ``alert_`` and 8 hex digits.
        message: ``<metric> <op> <value> (threshold: <threshold>)``.
        starts_at, ends_at: The episode's, RFC 3339; ends_at is None while it lasts.
        group: Which instance of a grouped rule; empty for a plain one.
    """

    alert: str
    fired_at: str
    metric: str
    op: Literal["gt", "gte", "lt", "lte"]
    value: float | None
    threshold: float
    window: str
    span_count: int
    filter: dict[str, str]
    rule_id: str
    level: str = "warning"
    message: str = ""
    status: Literal["firing", "resolved"] = "firing"
    starts_at: str = ""
    ends_at: str | None = None
    group: dict[str, str] = {}


class DeliveryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    One attempt to deliver an event, and its outcome; JSON.

    Attributes:
        key: The ``Idempotency-Key`` of every attempt.
        destination: Where to, without secrets.
        outcome: delivered; retry, it will be tried again; dead, it will not; expired, it came too late to wake anybody.
        attempt: Which one, from 1.
        at: When, RFC 3339. took_ms: How long it took.
    """

    rule: str
    fired_at: str
    status: Literal["firing", "resolved"]
    group: dict[str, str]
    key: str
    channel: str
    destination: str
    outcome: Literal["delivered", "retry", "dead", "expired"]
    attempt: int
    error: str
    at: str
    took_ms: float | None


_events = msgspec.json.Decoder(AlertEvent)
_deliveries = msgspec.json.Decoder(DeliveryRecord)


def decode_event(payload: bytes) -> AlertEvent:
    """
    An event of the alert subjects; one that does not say when its episode began is its beginning.

    Raises:
        Rejected: Not one, or an instant of it is none between the years 2000 and 2100.
    """
    with reading("alert event"):
        event = _events.decode(payload)
        if not event.starts_at:
            event = replace(event, starts_at=event.fired_at)
        for field in ("fired_at", "starts_at", "ends_at"):
            text = getattr(event, field)
            if text is not None:
                _check_instant(field, text)
        return event


def _check_instant(field: str, text: str) -> None:
    try:
        instant_ns = parse_instant(text)
    except Rejected as exc:
        raise Rejected(f"alert event: {field}: {exc}") from exc
    if not MIN_INSTANT_NS <= instant_ns <= MAX_INSTANT_NS:
        raise Rejected(f"alert event: {field}: not between the years 2000 and 2100")


def decode_delivery(payload: bytes) -> DeliveryRecord:
    """
    What became of an event, from the delivery subjects.

    Raises:
        Rejected: Not that.
    """
    with reading("record of a delivery"):
        return _deliveries.decode(payload)
