"""
A channel: the compiled form of a rule's delivery; also the key and the pauses that all deliveries share.

``tokentrace.config.Delivery`` is the schema of the form in the configuration. Here its values are checked and its
timeout becomes nanoseconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from tokentrace.config import (
    DELIVERY_MAX_RETRIES,
    DELIVERY_TIMEOUT,
    AlertmanagerDelivery,
    CustomDelivery,
    Delivery,
    HttpDelivery,
    StdoutDelivery,
    WebhookDelivery,
    parse_delivery,
)
from tokentrace.errors import ConfigError, Rejected, quoted
from tokentrace.records import AlertEvent
from tokentrace.shown import shown_url
from tokentrace.units import MINUTE, SECOND, parse_duration

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Headers that the HTTP client sets.
_RESERVED_HEADERS = frozenset({"content-length", "transfer-encoding", "host", "connection"})
_MIN_TIMEOUT_NS, _MAX_TIMEOUT_NS = SECOND // 100, MINUTE
#: The pause after the first attempt, nanoseconds. Each pause is twice the one before, up to a minute.
BACKOFF_NS = SECOND // 2
MAX_BACKOFF_NS = MINUTE
#: More attempts than any rule allows.
_MOST_ATTEMPTS = 1000


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where the events of a rule are delivered.

    Attributes:
        url: The URL of the webhook, or of the Alertmanager without ``/api/v2/alerts``; "" for other types.
        target: ``package.module:name`` of a function, or of an object with a method ``deliver``; "" for other types.
        timeout_ns: Limit for one attempt, nanoseconds.
        max_retries: Limit of attempts after the first one.
        send_resolved: True = resolutions are delivered as well; an Alertmanager gets them in any case.
        secret: Key that signs the body of a webhook; "" = not signed.
        format: Body of a webhook: the event of tokentrace, or the webhook payload of an Alertmanager, version 4.
    """

    type: Literal["stdout", "http", "webhook", "alertmanager", "custom"]
    url: str = ""
    target: str = ""
    timeout_ns: int = parse_duration(DELIVERY_TIMEOUT)
    headers: dict[str, str] = {}
    max_retries: int = DELIVERY_MAX_RETRIES
    send_resolved: bool = False
    secret: str = ""
    format: Literal["tokentrace", "alertmanager"] = "tokentrace"

    @property
    def destination(self) -> str:
        """The URL, the target or the type. Channels with the same destination share a limit of deliveries."""
        return self.url or self.target or self.type

    @property
    def shown_destination(self) -> str:
        """The destination without secrets: of a URL only scheme, host and port."""
        return shown_url(self.url) if self.url else self.destination

    @property
    def sends_resolved(self) -> bool:
        """Whether resolutions are delivered as well."""
        return self.send_resolved or self.type == "alertmanager"

    def wants(self, event: AlertEvent) -> bool:
        """Return True for a firing, and for a resolution if ``send_resolved`` is set or this is an Alertmanager."""
        return event.status == "firing" or self.sends_resolved


def parse_channel(written: object, where: str) -> Channel | None:
    """
    Return the channel for *written*, a delivery decoded from JSON or YAML; None if that is None.

    Args:
        where: Prefix of the key in error texts, such as ``alerts[2].delivery``.

    Raises:
        ConfigError: A key or value is invalid; the text names the key.
    """
    return None if written is None else compile_channel(parse_delivery(written, where), where)


def compile_channel(delivery: Delivery, where: str) -> Channel:
    """
    Return the compiled form of *delivery*.

    Args:
        where: As for ``parse_channel``.

    Raises:
        ConfigError: A value is invalid; the text names the key.
    """
    match delivery:
        case StdoutDelivery():
            return Channel(type="stdout", send_resolved=delivery.send_resolved)
        case CustomDelivery():
            if not _TARGET.fullmatch(delivery.target):
                raise ConfigError(f"{where}.target: {quoted(delivery.target)} is not package.module:name")
            return Channel(
                type="custom",
                target=delivery.target,
                max_retries=delivery.max_retries,
                send_resolved=delivery.send_resolved,
            )
        case AlertmanagerDelivery():
            _check_url(delivery.url, where)
            if any(mark in delivery.url for mark in "?#"):
                raise ConfigError(
                    f"{where}.url: {quoted(shown_url(delivery.url))} must end before /api/v2/alerts and have no query"
                )
            return Channel(
                type="alertmanager",
                url=delivery.url.rstrip("/"),
                timeout_ns=_timeout(delivery.timeout, where),
                headers=_checked_headers(delivery.headers, where),
                max_retries=delivery.max_retries,
            )
        case WebhookDelivery():
            _check_url(delivery.url, where)
            return Channel(
                type="http" if isinstance(delivery, HttpDelivery) else "webhook",
                url=delivery.url,
                timeout_ns=_timeout(delivery.timeout, where),
                headers=_checked_headers(delivery.headers, where),
                max_retries=delivery.max_retries,
                send_resolved=delivery.send_resolved,
                secret=delivery.secret,
                format=delivery.format,
            )


def _check_url(url: str, where: str) -> None:
    valid = url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        valid = valid and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"{where}.url: {quoted(shown_url(url))} is not an http or https URL")


def _timeout(text: str | int, where: str) -> int:
    try:
        timeout_ns = parse_duration(str(text))
    except Rejected as exc:
        raise ConfigError(f"{where}.timeout: {exc}") from exc
    if not _MIN_TIMEOUT_NS <= timeout_ns <= _MAX_TIMEOUT_NS:
        raise ConfigError(f"{where}.timeout: {quoted(text)} is not between 10ms and 1m")
    return timeout_ns


def _checked_headers(headers: Mapping[str, str], where: str) -> dict[str, str]:
    names = [name.lower() for name in headers]
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{where}.headers: {quoted(name)} is not the name of a header")
        if name.lower() in _RESERVED_HEADERS:
            raise ConfigError(f"{where}.headers.{name}: the HTTP client sets this header, so it cannot be configured")
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise ConfigError(f"{where}.headers.{name}: the value is not printable ASCII without spaces around it")
    for name in headers:
        if names.count(name.lower()) > 1:
            raise ConfigError(f"{where}.headers.{name}: this header is given twice")
    return dict(headers)


def idempotency_key(event: AlertEvent) -> str:
    """Return the ``Idempotency-Key`` of *event*, which is the same in every attempt of every alerter."""
    group = "".join(f"@{value}" for value in event.group.values())
    suffix = f"@{hashlib.sha256(group.encode()).hexdigest()[:16]}" if group else ""
    key = f"{event.rule_id}@{event.fired_at}{suffix}"
    return key if event.status == "firing" else f"{key}@resolved"


def backoff_ns(attempt: int) -> int:
    """Return the pause after attempt number *attempt* (from 1), nanoseconds."""
    return int(min(BACKOFF_NS << min(attempt - 1, 20), MAX_BACKOFF_NS))


def pause_ns(attempt: int, retry_after_s: float | None) -> int:
    """
    Return the pause after attempt number *attempt* (from 1), nanoseconds.

    Args:
        retry_after_s: How long the receiver asked to wait, seconds, which may be longer; None = it did not.
    """
    return max(backoff_ns(attempt), round((retry_after_s or 0) * SECOND))


def attempts_within(elapsed_ns: int) -> int:
    """Return how many attempts without an answer are over *elapsed_ns* nanoseconds after the first one."""
    attempts, passed_ns = 0, 0
    while passed_ns <= elapsed_ns - BACKOFF_NS and attempts < _MOST_ATTEMPTS:
        attempts += 1
        passed_ns += backoff_ns(attempts)
    return attempts
