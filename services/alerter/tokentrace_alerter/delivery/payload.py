"""The bodies that webhooks and Alertmanagers receive."""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Any

import msgspec

from tokentrace.records import AlertEvent
from tokentrace.units import MINUTE, render_instant
from tokentrace_alerter.delivery.channel import Channel

#: An Alertmanager resolves an alert by itself if it is not renewed for this long, nanoseconds.
ALERTMANAGER_LASTS_NS = 4 * MINUTE


def webhook_body(channel: Channel, event: AlertEvent) -> bytes:
    """Return the body of a webhook: the event as JSON, or an Alertmanager's payload if the channel asks for it."""
    if channel.format == "alertmanager":
        return msgspec.json.encode(_version_4(event))
    return msgspec.json.encode(event)


def signature(secret: str, body: bytes) -> str:
    """Return the value of ``X-Tokentrace-Signature``: ``sha256=`` and the HMAC-SHA256 of *body* in hex."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def alertmanager_alert(event: AlertEvent, now_ns: int, *, over: bool = False) -> dict[str, Any]:
    """
    Return the alert that is pushed to ``/api/v2/alerts`` of an Alertmanager.

    The alert of a firing ends four minutes after *now_ns*, unless it is renewed; that of a resolution has ended.

    Args:
        now_ns: Unix nanoseconds.
        over: True = *event* is a firing whose episode has ended, so the alert ends at *now_ns*.
    """
    ends_ns = now_ns if over else now_ns + ALERTMANAGER_LASTS_NS
    return {
        "labels": alertmanager_labels(event),
        "annotations": _annotations(event),
        "startsAt": event.starts_at,
        "endsAt": event.ends_at or render_instant(ends_ns),
        **({} if event.link is msgspec.UNSET else {"generatorURL": event.link}),
    }


def alertmanager_labels(event: AlertEvent) -> dict[str, str]:
    """Return the labels by which an Alertmanager tells alerts apart: the same for all events of one instance."""
    labels = {"alertname": event.alert, "metric": event.metric, "severity": event.level, "rule_id": event.rule_id}
    for key, value in (*event.filter.items(), *event.group.items()):
        name = re.sub(r"[^A-Za-z0-9_]", "_", key.removeprefix("attr.") or key)
        labels[name if name not in labels and not name[:1].isdigit() else f"filter_{name}"] = value
    return labels


def _annotations(event: AlertEvent) -> dict[str, str]:
    annotations = {
        "summary": event.message,
        "value": "" if event.value is None else repr(event.value),
        "threshold": repr(event.threshold),
        "window": event.window,
        "span_count": str(event.span_count),
    }
    if event.unpriced_span_count is not msgspec.UNSET:
        annotations["unpriced_span_count"] = str(event.unpriced_span_count)
    if event.link is not msgspec.UNSET:
        annotations["link"] = event.link
    return annotations


def _version_4(event: AlertEvent) -> dict[str, Any]:
    """Return the payload that an Alertmanager posts to webhooks (its documentation: ``webhook_config``, version 4)."""
    labels, annotations = alertmanager_labels(event), _annotations(event)
    link = "" if event.link is msgspec.UNSET else event.link
    ends = event.ends_at or "0001-01-01T00:00:00Z"
    return {
        "version": "4",
        "groupKey": "{}:{alertname=" + _quoted(event.alert) + "}",
        "truncatedAlerts": 0,
        "status": event.status,
        "receiver": "tokentrace",
        "groupLabels": {"alertname": event.alert},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": link.partition("#")[0],
        "alerts": [
            {
                "status": event.status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": event.starts_at,
                "endsAt": ends,
                "generatorURL": link,
                "fingerprint": hashlib.sha256(msgspec.json.encode(sorted(labels.items()))).hexdigest()[:16],
            }
        ],
    }


def _quoted(text: str) -> str:
    """Return *text* quoted as an Alertmanager quotes the value of a label."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
