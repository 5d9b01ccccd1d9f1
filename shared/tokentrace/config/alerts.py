"""
The schema of alert rules and of their deliveries, as people write them.

It is the only schema: ``tokentrace.yml``, ``POST /alerts`` and ``tokentrace rules check`` use it. The alerter compiles
an ``AlertRule`` into the form that it evaluates, and checks then what the types of the keys cannot express.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from tokentrace.config.section import Section
from tokentrace.errors import ConfigError, quoted, shorten

#: A duration such as ``90s`` or ``2h30m``; 0 is accepted too, which is a number in YAML if it is not quoted.
DurationText = str | Literal[0]
#: Defaults of a delivery: the timeout of one attempt, and the maximum number of attempts after the first one.
DELIVERY_TIMEOUT = "5s"
DELIVERY_MAX_RETRIES = 12


class StdoutDelivery(Section, frozen=True, kw_only=True, tag="stdout"):
    """Events are written to the alerter's standard output, one JSON object per line."""

    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False


class WebhookDelivery(Section, frozen=True, kw_only=True, tag="webhook"):
    """
    Events are posted to a URL.

    Attributes:
        timeout: Timeout of one attempt, 10ms to 1m.
        max_retries: Maximum number of attempts after the first one.
        secret: Key of the HMAC-SHA256 in ``X-Tokentrace-Signature``; "" = the body is not signed.
        format: Form of the body: tokentrace = the event; alertmanager = Alertmanager's webhook payload, version 4.
    """

    url: Annotated[str, Meta(description="URL of the webhook.")]
    timeout: Annotated[DurationText, Meta(description="Timeout of one attempt, 10ms to 1m.")] = DELIVERY_TIMEOUT
    headers: Annotated[dict[str, str], Meta(description="Headers of each request.")] = msgspec.field(
        default_factory=dict
    )
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Maximum number of attempts after the first one.")] = (
        DELIVERY_MAX_RETRIES
    )
    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False
    secret: Annotated[
        str, Meta(description="Key of the signature in the header X-Tokentrace-Signature; empty = no signature.")
    ] = ""
    format: Annotated[
        Literal["tokentrace", "alertmanager"],
        Meta(
            description="Form of the body. tokentrace: the event; alertmanager: Alertmanager's webhook payload, "
            "version 4."
        ),
    ] = "tokentrace"


class HttpDelivery(WebhookDelivery, frozen=True, kw_only=True, tag="http"):
    """The older name of a delivery of type webhook."""


class AlertmanagerDelivery(Section, frozen=True, kw_only=True, tag="alertmanager"):
    """
    Alerts are pushed to a Prometheus Alertmanager.

    Attributes:
        url: URL of the Alertmanager, without ``/api/v2/alerts``.
        timeout: Timeout of one attempt, 10ms to 1m.
        max_retries: Maximum number of attempts after the first one.
    """

    url: Annotated[str, Meta(description="URL of the Alertmanager, without /api/v2/alerts.")]
    timeout: Annotated[DurationText, Meta(description="Timeout of one attempt, 10ms to 1m.")] = DELIVERY_TIMEOUT
    headers: Annotated[dict[str, str], Meta(description="Headers of each request.")] = msgspec.field(
        default_factory=dict
    )
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Maximum number of attempts after the first one.")] = (
        DELIVERY_MAX_RETRIES
    )


class CustomDelivery(Section, frozen=True, kw_only=True, tag="custom"):
    """
    Events are passed to a Python callable.

    Attributes:
        target: ``package.module:name`` of a callable, or of an object with a method ``deliver``.
        max_retries: Maximum number of attempts after the first one.
    """

    target: Annotated[str, Meta(description="Function, or object with deliver, as package.module:name.")]
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Maximum number of attempts after the first one.")] = (
        DELIVERY_MAX_RETRIES
    )
    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False


#: How the events of a rule are delivered besides the alert subject; the key ``type`` chooses the class.
Delivery = StdoutDelivery | HttpDelivery | WebhookDelivery | AlertmanagerDelivery | CustomDelivery
DELIVERIES: Mapping[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Delivery)}


class AlertRule(Section, frozen=True, kw_only=True):
    """
    An alert rule.

    Attributes:
        metric: Name or alias of a built-in metric, or the name of a custom metric.
        window: Duration from 1s to 31d.
        eval_interval: Duration between two evaluations; None = a tenth of the window, at least 30 s, or 1 s for windows
            under 5 minutes.
        cooldown: Shortest time between two firings of one episode; None = ``alert_cooldown``, or the window if that is
            not set.
        min_spans: With fewer spans in the window, but at least one, the rule neither fires nor is resolved.
        filter: Dimension or attribute -> value. A span must have all of them.
        for_: How long the condition must hold before the rule fires; written ``for``.
        recovery_threshold: Replaces the threshold while the rule fires; None = the threshold is not replaced.
        no_data: What a window without data does. ignore = it resolves a firing rule; fire = the rule fires; keep = the
            state stays.
        unpriced: Whether a rule on money also fires while the window has spans of unknown cost: ignore or fire.
        group_by: Dimension or attribute; the rule is evaluated separately for each of its values.
        change: The condition is about the difference from the window before: absolute = as a number; percent = in
            percent of the value before; None = about the metric itself.
    """

    name: Annotated[str, Meta(min_length=1, max_length=128, description="Name of the rule.")]
    metric: Annotated[str, Meta(description="Name of a metric whose value is one number, built-in or custom.")]
    op: Annotated[
        Literal["gt", "gte", "lt", "lte", ">", ">=", "<", "<="], Meta(description="How the value is compared.")
    ]
    threshold: Annotated[float, Meta(description="What the value is compared with.")]
    window: Annotated[DurationText, Meta(description="Window of the metric, such as 1h.")]
    eval_interval: Annotated[
        DurationText | None,
        Meta(
            description="How often the rule is evaluated; by default a tenth of the window, at least 30 s, "
            "or 1 s for windows under 5 minutes."
        ),
    ] = None
    cooldown: Annotated[
        DurationText | None,
        Meta(description="Time for which a firing rule does not fire again; by default the window."),
    ] = None
    min_spans: Annotated[
        int,
        Meta(
            ge=0,
            description="With fewer spans in the window, but at least one, the rule neither fires nor is resolved.",
        ),
    ] = 0
    filter: Annotated[
        dict[str, str], Meta(description="Dimensions and attributes with the values that a span must have.")
    ] = msgspec.field(default_factory=dict)
    delivery: Annotated[Delivery | None, Meta(description="Where events are delivered besides the subject.")] = None
    level: Annotated[Literal["warning", "critical"], Meta(description="Severity of the rule's events.")] = "warning"
    silenced: Annotated[bool, Meta(description="Evaluate the rule, but publish no events.")] = False
    for_: Annotated[
        DurationText | None, Meta(description="How long the condition must hold before the rule fires.")
    ] = msgspec.field(default=None, name="for")
    recovery_threshold: Annotated[
        float | None, Meta(description="Replaces the threshold while the rule fires; by default the threshold.")
    ] = None
    no_data: Annotated[
        Literal["ignore", "fire", "keep"],
        Meta(
            description="What happens without data. ignore: a firing rule is resolved; fire: the rule fires; "
            "keep: its state stays."
        ),
    ] = "ignore"
    unpriced: Annotated[
        Literal["ignore", "fire"],
        Meta(
            description="What spans of unknown cost do to a rule on money. ignore: they are left out of the value; "
            "fire: the rule fires while the window has such spans."
        ),
    ] = "ignore"
    group_by: Annotated[
        str, Meta(max_length=256, description="Dimension or attribute; each of its values is evaluated separately.")
    ] = ""
    change: Annotated[
        Literal["absolute", "percent"] | None,
        Meta(description="Compare the difference from the window before, as a number or in percent."),
    ] = None


def parse_alert_rule(written: Mapping[str, Any], where: str) -> AlertRule:
    """
    Return *written* as a rule; the alerter checks its durations, its metric and its delivery when it compiles the rule.

    Args:
        written: The rule as decoded from JSON or YAML. A key whose value is null counts as absent.
        where: Prefix of the key in error texts, such as ``alerts[2]``.

    Raises:
        ConfigError: A key is unknown or missing, or its value is of the wrong type or out of range; the text names the
            key.
    """
    tidy = _without_nulls(written)
    try:
        return msgspec.convert(tidy, AlertRule)
    except msgspec.ValidationError as exc:
        raise ConfigError(_explain(str(exc), tidy, AlertRule, where)) from exc


def parse_delivery(written: object, where: str) -> Delivery:
    """
    Return *written* as a delivery.

    Args:
        written: The delivery as decoded from JSON or YAML. A key whose value is null counts as absent.
        where: Prefix of the key in error texts, such as ``alerts[2].delivery``.

    Raises:
        ConfigError: As ``parse_alert_rule``.
    """
    tidy = _without_nulls({"delivery": written})["delivery"]
    try:
        delivery: Delivery = msgspec.convert(tidy, Delivery)
    except msgspec.ValidationError as exc:
        raise ConfigError(_explain(str(exc), tidy, None, where)) from exc
    return delivery


def tidy_alerts(alerts: object) -> object:
    """
    Return the ``alerts`` of a configuration file without null values, and with ``type: stdout`` where it is missing.

    A value that is not a list, and an item that is not a map, is returned as it is: decoding names the error later.
    """
    if not isinstance(alerts, list):
        return alerts
    return [_with_type(_without_nulls(rule)) if isinstance(rule, Mapping) else rule for rule in alerts]


#: Keys of a rule for which an empty value means absent.
_EMPTY_IS_ABSENT = frozenset({"min_spans", "silenced", "no_data", "unpriced", "change", "group_by"})


def _without_nulls(rule: Mapping[str, Any]) -> dict[str, Any]:
    tidy = {
        key: value for key, value in rule.items() if value is not None and not (key in _EMPTY_IS_ABSENT and not value)
    }
    delivery = tidy.get("delivery")
    if isinstance(delivery, Mapping):
        tidy["delivery"] = {key: value for key, value in delivery.items() if value is not None}
    return tidy


def _with_type(rule: dict[str, Any]) -> dict[str, Any]:
    if isinstance(rule.get("delivery"), Mapping):
        rule["delivery"] = {"type": "stdout", **rule["delivery"]}
    return rule


# -- error texts

_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_EXPECTED = re.compile(r"Expected `([^`]+)`(?:, got .*| of length ([<>]= \d+)| ([<>]= \d+))?")
#: Keys whose values may be secrets; no error text repeats these values.
_SECRET = frozenset({"secret", "headers", "url"})
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "object": "a map",
}


def _explain(message: str, written: Any, schema: type[msgspec.Struct] | None, where: str) -> str:
    """
    Rewrite a validation error of msgspec: first the key, then what is wrong or what is allowed.

    Args:
        message: The error text of msgspec, such as ``Expected `float`, got `str` - at `$.threshold```.
        written: The map that was decoded.
        schema: The Struct of *written*; None = *written* is a delivery, whose ``type`` chooses the Struct.
    """
    reason, _, at = message.partition(" - at `")
    in_key = at.startswith("key")
    parts = [part for part in re.split(r"[.\[\]]+", at.rpartition("$")[2].rstrip("`")) if part not in ("", "...")]
    value = written
    for part in parts:
        if part == "delivery" and schema is AlertRule:
            schema = None
        value = value.get(part) if isinstance(value, Mapping) else None
    holder = written.get("delivery") if isinstance(written, Mapping) and parts[:1] == ["delivery"] else written
    if schema is None and isinstance(holder, Mapping):
        kind = holder.get("type")
        schema = DELIVERIES.get(kind) if isinstance(kind, str) else None
    path = ".".join([where, *parts])

    unknown = _UNKNOWN.match(reason)
    if unknown is not None and schema is not None:
        of = "" if schema is AlertRule else f" for {schema.__struct_config__.tag}"
        return (
            f"{path}.{shorten(unknown[1])}: unknown key{of}; allowed are {', '.join(schema.__struct_encode_fields__)}"
        )
    missing = _MISSING.match(reason)
    if missing is not None:
        allowed = _metric_names() if missing[1] == "metric" else _allowed(schema, missing[1])
        return f"{path}.{missing[1]}: required" + (f", one of {', '.join(allowed)}" if allowed else "")
    if in_key:
        return f"{path}: a key in it is not text"
    key = parts[-1] if parts else ""
    shown = "" if key in _SECRET or "[...]" in at else f"{quoted(value)} "
    allowed = _allowed(schema, key)
    if allowed:
        return f"{path}: {shown}is none of {', '.join(allowed)}"
    if reason.startswith("Invalid enum value"):
        return f"{path}: {shown}is not a duration such as 90s"
    expected = _EXPECTED.match(reason)
    if expected is None:
        return f"{path}: {shown}is out of range" if "out of range" in reason else f"{path}: {shown}is not valid"
    if expected[2] == ">= 1":
        return f"{path}: required, and must not be empty"
    if expected[2]:
        return f"{path}: its length must be {expected[2]} characters"
    kinds = [_KINDS.get(kind, kind) for kind in expected[1].split(" | ") if kind != "null"]
    if kinds == ["a whole number", "text"]:
        kinds = ["a duration such as 90s"]
    what = " or ".join(kinds) + (f" {expected[3]}" if expected[3] else "")
    if "[...]" in at and isinstance(value, Mapping):
        # msgspec does not name the key inside a map. All values must be text, so name the first that is not.
        name = next((name for name, item in value.items() if not isinstance(item, str)), "")
        return f"{path}.{shorten(name)}: is not {what}"
    return f"{path}: {shown}is not {what}"


def _metric_names() -> list[str]:
    from tokentrace.metrics import METRICS

    return list(METRICS)


def _allowed(schema: type[msgspec.Struct] | None, key: str) -> list[str]:
    """Return the texts that *key* may have as its value; [] if its type does not list them."""
    if key == "type":
        return list(DELIVERIES)
    for field in msgspec.structs.fields(schema) if schema is not None else ():
        if field.encode_name == key:
            kind = field.type.__origin__ if hasattr(field.type, "__metadata__") else field.type
            choices = [kind, *get_args(kind)]
            literals = [get_args(choice) for choice in choices if getattr(choice, "__origin__", None) is Literal]
            return [str(value) for values in literals for value in values if isinstance(value, str)]
    return []
