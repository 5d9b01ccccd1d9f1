"""Where the events of a rule go besides the alert subject, and what is said there. Pure; ``deliver`` carries it."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import msgspec

from tokentrace.errors import ConfigError, Rejected, shorten
from tokentrace.records import AlertEvent
from tokentrace.units import HOUR, MINUTE, SECOND, parse_duration, render_instant

Type = Literal["stdout", "http", "webhook", "alertmanager", "custom"]
Format = Literal["tokentrace", "alertmanager"]
#: What a channel of each type may say besides its type.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "stdout": ("send_resolved",),
    "http": ("url", "timeout", "headers", "max_retries", "send_resolved", "secret", "format"),
    "webhook": ("url", "timeout", "headers", "max_retries", "send_resolved", "secret", "format"),
    "alertmanager": ("url", "timeout", "headers", "max_retries"),
    "custom": ("target", "max_retries", "send_resolved"),
}
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
TIMEOUT_NS = 5 * SECOND
#: The first pause between attempts; each is twice the one before, up to a minute.
BACKOFF_NS = SECOND // 2
MAX_BACKOFF_NS = MINUTE
MAX_RETRIES = 12
#: A firing that is older, and whose episode is over, wakes nobody any more.
EXPIRES_NS = HOUR
#: How long an Alertmanager believes in an alert that nobody renews, and how often one is renewed.
ALERTMANAGER_LASTS_NS = 4 * MINUTE
ALERTMANAGER_EVERY_NS = MINUTE


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where to.

    Attributes:
        url: Of a webhook, or of an Alertmanager without ``/api/v2/alerts``.
        target: ``package.module:name`` of a callable, or of an object with ``deliver``, that takes the payload.
        max_retries: Attempts after the first, before a delivery is given up.
        secret: Signs the body of a webhook.
        format: What a webhook is told: our event, or an Alertmanager's payload of version 4.
    """

    type: Type
    url: str = ""
    target: str = ""
    timeout_ns: int = TIMEOUT_NS
    headers: dict[str, str] = {}
    max_retries: int = MAX_RETRIES
    send_resolved: bool = False
    secret: str = ""
    format: Format = "tokentrace"

    @property
    def destination(self) -> str:
        """What shares a limit of deliveries at once."""
        return self.url or self.target or self.type

    def wants(self, event: AlertEvent) -> bool:
        """*event* is for this channel."""
        return event.status == "firing" or self.send_resolved or self.type == "alertmanager"


def parse_channel(given: object, where: str) -> Channel | None:
    """
    A channel from its documented form, checked; None when there is none.

    Raises:
        ConfigError: Names the key and what is allowed.
    """
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {shorten(given)!r} is not a map")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in get_args(Type):
        raise ConfigError(f"{where}.type: {shorten(kind)!r} is none of {', '.join(get_args(Type))}")
    said = {key: value for key, value in given.items() if value is not None and key != "type"}
    for key in said:
        if key not in _KEYS[kind]:
            raise ConfigError(f"{where}.{shorten(key)}: unknown for {kind}; allowed are {', '.join(_KEYS[kind])}")
    url, target = said.get("url", ""), said.get("target", "")
    if "url" in _KEYS[kind] and not _is_url(url):
        raise ConfigError(f"{where}.url: {shorten(url)!r} is not an http or https address")
    if kind == "alertmanager" and any(mark in url for mark in "?#"):
        raise ConfigError(f"{where}.url: {shorten(url)!r} is to end before /api/v2/alerts, without a query")
    if kind == "custom" and not (isinstance(target, str) and _TARGET.fullmatch(target)):
        raise ConfigError(f"{where}.target: {shorten(target)!r} is not package.module:name")
    secret = said.get("secret", "")
    if not isinstance(secret, str):
        raise ConfigError(f"{where}.secret: is not text")
    retries = said.get("max_retries", MAX_RETRIES)
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= 100:
        raise ConfigError(f"{where}.max_retries: {shorten(retries)!r} is not a whole number from 0 to 100")
    form = said.get("format", "tokentrace")
    if form not in get_args(Format):
        raise ConfigError(f"{where}.format: {shorten(form)!r} is none of {', '.join(get_args(Format))}")
    resolved = said.get("send_resolved", False)
    if not isinstance(resolved, bool):
        raise ConfigError(f"{where}.send_resolved: {shorten(resolved)!r} is neither true nor false")
    return Channel(
        type=cast(Type, kind),
        url=url.rstrip("/") if kind == "alertmanager" else url,
        target=target,
        timeout_ns=_timeout(said.get("timeout", "5s"), where),
        headers=_headers(said.get("headers", {}), where),
        max_retries=retries,
        send_resolved=resolved,
        secret=secret,
        format=cast(Format, form),
    )


def _is_url(url: object) -> bool:
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _timeout(text: object, where: str) -> int:
    try:
        timeout = parse_duration(str(text))
    except Rejected as exc:
        raise ConfigError(f"{where}.timeout: {exc}") from exc
    if not SECOND // 100 <= timeout <= MINUTE:
        raise ConfigError(f"{where}.timeout: {shorten(text)!r} is not between 10ms and 1m")
    return timeout


def _headers(given: object, where: str) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}.headers: {shorten(given)!r} is not a map")
    for name, value in given.items():
        if not (isinstance(name, str) and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)):
            raise ConfigError(f"{where}.headers: {shorten(name)!r} is not the name of a header")
        if name.lower() in ("content-length", "transfer-encoding", "host", "connection"):
            raise ConfigError(f"{where}.headers.{name}: is not yours to set")
        if not (isinstance(value, str) and value.isascii() and value.isprintable() and value == value.strip()):
            raise ConfigError(f"{where}.headers.{name}: is not printable ASCII without spaces around it")
    names = [name.lower() for name in given]
    for name in given:
        if names.count(name.lower()) > 1:
            raise ConfigError(f"{where}.headers.{name}: is there twice")
    return dict(given)


def key_of(event: AlertEvent) -> str:
    """``Idempotency-Key``: the same for every attempt, of whomever, to deliver *event*."""
    group = "".join(f"@{value}" for value in event.group.values())
    own = f"{event.rule_id}@{event.fired_at}" + (f"@{hashlib.sha256(group.encode()).hexdigest()[:16]}" if group else "")
    return own if event.status == "firing" else f"{own}@resolved"


def body_of(channel: Channel, event: AlertEvent) -> bytes:
    """What a webhook is sent."""
    if channel.format == "alertmanager":
        return msgspec.json.encode(_version_4(event))
    return msgspec.json.encode(event)


def signed(secret: str, body: bytes) -> str:
    """Value of ``X-Tokentrace-Signature``: HMAC-SHA256 of *body*."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def labels_of(event: AlertEvent) -> dict[str, str]:
    """What tells one alert from another in an Alertmanager."""
    labels = {"alertname": event.alert, "metric": event.metric, "severity": event.level, "rule_id": event.rule_id}
    for key, value in (*event.filter.items(), *event.group.items()):
        name = re.sub(r"[^A-Za-z0-9_]", "_", key.removeprefix("attr.") or key)
        labels[name if name not in labels and not name[:1].isdigit() else f"filter_{name}"] = value
    return labels


def _annotations(event: AlertEvent) -> dict[str, str]:
    return {
        "summary": event.message,
        "value": "" if event.value is None else repr(event.value),
        "threshold": repr(event.threshold),
        "window": event.window,
        "span_count": str(event.span_count),
    }


def _version_4(event: AlertEvent) -> dict[str, Any]:
    """An Alertmanager's webhook payload (its documentation, ``webhook_config``, version 4)."""
    labels, annotations = labels_of(event), _annotations(event)
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
        "externalURL": "",
        "alerts": [
            {
                "status": event.status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": event.starts_at,
                "endsAt": ends,
                "generatorURL": "",
                "fingerprint": hashlib.sha256(msgspec.json.encode(sorted(labels.items()))).hexdigest()[:16],
            }
        ],
    }


def _quoted(text: str) -> str:
    """As an Alertmanager writes the value of a label."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def pushed(event: AlertEvent, now_ns: int, *, over: bool = False) -> dict[str, Any]:
    """
    An alert as an Alertmanager is told of it at ``/api/v2/alerts``: it lasts four minutes from now, or has ended.

    Args:
        over: Its episode has ended, although it is a firing.
    """
    lasts_until = now_ns if over else now_ns + ALERTMANAGER_LASTS_NS
    return {
        "labels": labels_of(event),
        "annotations": _annotations(event),
        "startsAt": event.starts_at,
        "endsAt": event.ends_at or render_instant(lasts_until),
    }


def backoff_ns(attempt: int) -> int:
    """The pause after attempt number *attempt*, from 1."""
    return int(min(BACKOFF_NS << min(attempt - 1, 20), MAX_BACKOFF_NS))
