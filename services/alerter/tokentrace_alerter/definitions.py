"""
The definition of a rule as ``GET /alerts/{name}/definition`` shows it, without secrets, and as ``PUT`` takes it back.

Of a URL only scheme, host and port are shown, and ``<hidden>`` stands for a secret and for the value of a header. When
a rule is replaced, what is shown so stands for what is kept, so a client can change a rule whose secrets it cannot
read. A secret is kept for the URL that it belongs to only: otherwise it could be sent to the author of the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokentrace.errors import Rejected, quoted
from tokentrace.shown import shown_url
from tokentrace.units import render_duration
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.rules import Rule

HIDDEN = "<hidden>"
_SHORTENED = "/..."


def as_written(rule: Rule) -> dict[str, Any]:
    """Return *rule* in the form in which people write it; a value that is the default is left out."""
    fields: dict[str, Any] = {
        "name": rule.name,
        "metric": rule.metric,
        "op": rule.op,
        "threshold": rule.threshold,
        "window": rule.window,
        "eval_interval": render_duration(rule.eval_interval_ns),
        "cooldown": render_duration(rule.cooldown_ns),
    }
    further: dict[str, tuple[Any, Any]] = {
        "level": (rule.level, "warning"),
        "filter": (rule.filter, {}),
        "group_by": (rule.group_by, ""),
        "min_spans": (rule.min_spans, 0),
        "for": (rule.for_ns and render_duration(rule.for_ns), 0),
        "recovery_threshold": (rule.recovery_threshold, None),
        "change": (rule.change, ""),
        "no_data": (rule.no_data, "ignore"),
        "unpriced": (rule.unpriced, "ignore"),
        "silenced": (rule.silenced, False),
    }
    fields |= {key: value for key, (value, default) in further.items() if value != default}
    return fields if rule.delivery is None else {**fields, "delivery": _written_channel(rule.delivery)}


def _written_channel(channel: Channel) -> dict[str, Any]:
    fields: dict[str, Any] = {"type": channel.type}
    if channel.url:
        fields |= {"url": channel.url, "timeout": render_duration(channel.timeout_ns)}
    if channel.target:
        fields["target"] = channel.target
    if channel.type != "stdout":
        fields["max_retries"] = channel.max_retries
    for key, value in (("headers", channel.headers), ("secret", channel.secret)):
        if value:
            fields[key] = value
    if channel.format != "tokentrace":
        fields["format"] = channel.format
    if channel.send_resolved and channel.type != "alertmanager":
        fields["send_resolved"] = True
    return fields


def shown(rule: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return *rule*, as it is written, without secrets, and the keys whose values are not shown."""
    delivery = rule.get("delivery")
    if not isinstance(delivery, Mapping):
        return dict(rule), []
    safe, hidden = dict(delivery), []
    if isinstance(delivery.get("url"), str):
        safe["url"] = shown_url(delivery["url"])
        # Without a path there is nothing that is not shown.
        if safe["url"] != delivery["url"].rstrip("/"):
            hidden.append("delivery.url")
    if delivery.get("secret"):
        safe["secret"] = HIDDEN
        hidden.append("delivery.secret")
    if isinstance(delivery.get("headers"), Mapping):
        safe["headers"] = dict.fromkeys(delivery["headers"], HIDDEN)
        hidden += [f"delivery.headers.{name}" for name in delivery["headers"]]
    return {**rule, "delivery": safe}, hidden


def completed(sent: object, before: Mapping[str, Any] | None) -> object:
    """
    Return *sent*, a rule as it was sent, with what it does not show taken from *before*, the rule that it replaces.

    Args:
        sent: What is no rule is returned as it is.
        before: As it is written, with its secrets; None = there is no such rule.

    Raises:
        Rejected: *sent* has a value that only stands for a kept one, and there is none for that URL.
    """
    delivery = sent.get("delivery") if isinstance(sent, dict) else None
    if not isinstance(sent, dict) or not isinstance(delivery, dict):
        return sent
    kept = before.get("delivery") if before is not None else None
    kept = kept if isinstance(kept, Mapping) else {}
    full, kept_url = dict(delivery), kept.get("url")
    url = delivery.get("url")
    if isinstance(url, str):
        if isinstance(kept_url, str) and url == shown_url(kept_url):
            full["url"] = kept_url
        elif url.endswith(_SHORTENED) and url == shown_url(url):
            raise Rejected(f"rule.delivery.url: {quoted(url)} is shortened; write the whole URL")
    is_same = isinstance(kept_url, str) and full.get("url") == kept_url
    if delivery.get("secret") == HIDDEN:
        full["secret"] = _kept(kept, "secret", is_same, "secret")
    if isinstance(delivery.get("headers"), Mapping):
        kept_headers = kept.get("headers")
        headers = kept_headers if isinstance(kept_headers, Mapping) else {}
        full["headers"] = {
            name: _kept(headers, name, is_same, f"headers.{name}") if value == HIDDEN else value
            for name, value in delivery["headers"].items()
        }
    return {**sent, "delivery": full}


def _kept(kept: Mapping[str, Any], key: str, is_same: bool, where: str) -> Any:
    if not is_same:
        raise Rejected(f"rule.delivery.{where}: {HIDDEN} stands for the value kept for another URL; write it anew")
    if not kept.get(key):
        raise Rejected(f"rule.delivery.{where}: {HIDDEN} stands for a kept value, and there is none")
    return kept[key]
