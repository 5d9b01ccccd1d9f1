"""What the alerter publishes: events on ``tokentrace.alerts.>`` and delivery records on ``tokentrace.deliveries.>``."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from tokentrace.bad_data import reading
from tokentrace.errors import Rejected, shorten
from tokentrace.records.span import MAX_INSTANT_NS, MIN_INSTANT_NS
from tokentrace.shown import shown_url
from tokentrace.units import MINUTE, SECOND, parse_instant

#: An event is stored after the instant that it is about. This is left for brokers whose clocks differ, nanoseconds.
MAX_AHEAD_NS = MINUTE


class AlertEvent(msgspec.Struct, frozen=True, kw_only=True):
    """
    A rule started firing, fires again or is resolved. Encoded as a JSON object.

    Attributes:
        alert: The name of the rule.
        fired_at: The instant for which the rule was evaluated, RFC 3339 with milliseconds.
        metric: The name of the metric.
        op: How the value is compared with the threshold.
        value: The metric at that instant, in the metric's unit; None if there was no data.
        threshold: The limit in the rule, in the metric's unit.
        window: The window as the rule states it, such as ``1h``.
        span_count: How many spans contributed to *value*.
        filter: The dimensions and attributes, with their values, that select the rule's spans.
        rule_id: ``alert_`` and 8 hex digits.
        level: The severity of the rule: warning or critical.
        message: Of a firing ``<metric> <op> <value> (threshold: <threshold>)``; of a resolution what ended the episode.
        status: Whether the rule fires or is resolved.
        starts_at: When the episode began, RFC 3339.
        ends_at: When the episode ended, RFC 3339; None while it lasts.
        group: The value of ``group_by`` that this event is about; empty for a rule without groups.
        unpriced_span_count: For a rule on money: spans that *value* leaves out because their cost is unknown. Absent
            for other rules.
        ended_by: What ended the episode. recovered: the condition does not hold; no_data: there is no data any more;
            deleted, replaced, changed, removed: what happened to the rule; overflow: the instance is over the limit;
            user_deleted. Later versions may add others. Absent for a firing.
        link: URL of the rule on the page of the api, with the time from the window of the first firing to this event.
            Absent unless ``http_server.public_url`` is set.
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
    unpriced_span_count: int | msgspec.UnsetType = msgspec.UNSET
    ended_by: str | msgspec.UnsetType = msgspec.UNSET
    link: str | msgspec.UnsetType = msgspec.UNSET


class DeliveryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    One attempt to deliver an event, and its outcome. Encoded as a JSON object.

    Attributes:
        rule, fired_at, status, group: Those of the event: its ``alert``, ``fired_at``, ``status`` and ``group``.
        key: The ``Idempotency-Key``, which is the same for all attempts.
        channel: The kind of delivery, such as ``webhook``.
        destination: Where the event is delivered, without secrets: of a URL only scheme, host and port.
        outcome: delivered; retry = another attempt follows; dead = no further attempt; expired = the event was too
            old to be delivered.
        attempt: The number of the attempt, from 1.
        error: Why the attempt failed; "" if it did not.
        at: When the attempt was made, RFC 3339.
        took_ms: How long the attempt took, milliseconds; None if nothing was sent.
        retry_after_s: How long the receiver asked to wait with everything, seconds; None if it did not.
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
    retry_after_s: float | None = None


_events = msgspec.json.Decoder(AlertEvent)
_deliveries = msgspec.json.Decoder(DeliveryRecord)


def encode_event(event: AlertEvent) -> bytes:
    """Return *event* as JSON."""
    return msgspec.json.encode(event)


def decode_event(payload: bytes, stored_ns: int | None = None) -> AlertEvent:
    """
    Decode an event of the alert subjects; without ``starts_at``, its episode starts at ``fired_at``.

    Args:
        stored_ns: When the broker stored the event, Unix nanoseconds; None = it is not stored yet.

    Raises:
        Rejected: *payload* is not an event, or an instant in it is not RFC 3339 or not between the years 2000 and 2100,
            or the event is about an instant over a minute after *stored_ns*. No rule has been evaluated for it, and no
            event would be published until then.
    """
    with reading("alert event"):
        event = _events.decode(payload)
        if not event.starts_at:
            event = replace(event, starts_at=event.fired_at)
        for field in ("fired_at", "starts_at", "ends_at"):
            text = getattr(event, field)
            if text is not None:
                _check_instant(field, text)
        ahead_ns = 0 if stored_ns is None else parse_instant(event.fired_at) - stored_ns
        if ahead_ns > MAX_AHEAD_NS:
            raise Rejected(f"alert event: fired_at: {event.fired_at} is {ahead_ns // SECOND} s after it was stored")
        return event


def _check_instant(field: str, text: str) -> None:
    try:
        instant_ns = parse_instant(text)
    except Rejected as exc:
        raise Rejected(f"alert event: {field}: {exc}") from exc
    if not MIN_INSTANT_NS <= instant_ns <= MAX_INSTANT_NS:
        raise Rejected(f"alert event: {field}: {shorten(text)} is not between the years 2000 and 2100")


def decode_delivery(payload: bytes) -> DeliveryRecord:
    """
    Decode a record of the delivery subjects.

    Versions before this one wrote the path of the URL too, which is removed here.

    Raises:
        Rejected: *payload* is not a delivery record.
    """
    with reading("delivery record"):
        record = _deliveries.decode(payload)
        return replace(record, destination=shown_url(record.destination)) if "://" in record.destination else record
