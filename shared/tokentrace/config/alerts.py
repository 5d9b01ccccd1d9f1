"""
The schema of alert rules and of their deliveries, as people write them.

It is the only schema: ``tokentrace.yml``, ``POST /alerts`` and ``tokentrace rules check`` use it. The alerter compiles
an ``AlertRule`` into the form that it evaluates, and checks there what needs more than the type of one key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from tokentrace.config.section import Section
from tokentrace.errors import ConfigError, shorten

#: A duration such as ``90s`` or ``2h30m``. The number 0 is accepted too, because people write 0 without quotes.
DurationText = str | Literal[0]
#: Defaults of a delivery: for one attempt, and attempts after the first one.
DELIVERY_TIMEOUT = "5s"
DELIVERY_MAX_RETRIES = 12


class StdoutDelivery(Section, frozen=True, kw_only=True, tag="stdout"):
    """Events are written to the alerter's standard output, one JSON object a line."""

    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False


class WebhookDelivery(Section, frozen=True, kw_only=True, tag="webhook"):
    """
    Events are posted to a URL.

    Attributes:
        timeout: For one attempt, 10ms to 1m.
        max_retries: Attempts after the first one.
        secret: Key of the HMAC-SHA256 in ``X-Tokentrace-Signature``; "" = the body is not signed.
        format: The body is our event, or the webhook payload of an Alertmanager, version 4.
    """

    url: Annotated[str, Meta(description="URL of a webhook, or of an Alertmanager without /api/v2/alerts.")]
    timeout: Annotated[DurationText, Meta(description="Timeout of one attempt, 10ms to 1m.")] = DELIVERY_TIMEOUT
    headers: Annotated[dict[str, str], Meta(description="Headers of each request.")] = msgspec.field(
        default_factory=dict
    )
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Attempts after the first one.")] = DELIVERY_MAX_RETRIES
    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False
    secret: Annotated[str, Meta(description="Key of the signature in the header X-Tokentrace-Signature.")] = ""
    format: Annotated[Literal["tokentrace", "alertmanager"], Meta(description="Form of the body.")] = "tokentrace"


class HttpDelivery(WebhookDelivery, frozen=True, kw_only=True, tag="http"):
    """The same as ``WebhookDelivery`` under its older name."""


class AlertmanagerDelivery(Section, frozen=True, kw_only=True, tag="alertmanager"):
    """
    Alerts are pushed to a Prometheus Alertmanager.

    Attributes:
        url: Without ``/api/v2/alerts``.
        timeout: For one attempt, 10ms to 1m.
        max_retries: Attempts after the first one.
    """

    url: Annotated[str, Meta(description="URL of a webhook, or of an Alertmanager without /api/v2/alerts.")]
    timeout: Annotated[DurationText, Meta(description="Timeout of one attempt, 10ms to 1m.")] = DELIVERY_TIMEOUT
    headers: Annotated[dict[str, str], Meta(description="Headers of each request.")] = msgspec.field(
        default_factory=dict
    )
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Attempts after the first one.")] = DELIVERY_MAX_RETRIES


class CustomDelivery(Section, frozen=True, kw_only=True, tag="custom"):
    """
    Events are passed to a Python callable.

    Attributes:
        target: ``package.module:name`` of a callable, or of an object with a method ``deliver``.
        max_retries: Attempts after the first one.
    """

    target: Annotated[str, Meta(description="Function, or object with deliver, as package.module:name.")]
    max_retries: Annotated[int, Meta(ge=0, le=100, description="Attempts after the first one.")] = DELIVERY_MAX_RETRIES
    send_resolved: Annotated[bool, Meta(description="Also deliver the end of an episode.")] = False


#: Where the events of a rule go besides the alert subject; ``type`` says which one it is.
Delivery = StdoutDelivery | HttpDelivery | WebhookDelivery | AlertmanagerDelivery | CustomDelivery
DELIVERIES: Mapping[str, type[msgspec.Struct]] = {str(kind.__struct_config__.tag): kind for kind in get_args(Delivery)}


class AlertRule(Section, frozen=True, kw_only=True):
    """
    A rule.

    Attributes:
        metric: Name or alias of a built-in metric, or the name of a custom metric.
        window: Duration from 1s to 31d.
        eval_interval: Duration between two evaluations; None = a tenth of the window, within limits.
        cooldown: Shortest time between two firings of one episode; None = the common cooldown, else the window.
        min_spans: With fewer spans in the window, the condition does not hold.
        filter: Dimension or attribute -> value. A span must have all of them.
        for_: How long the condition must hold before the rule fires; written ``for``.
        recovery_threshold: A firing rule is resolved when the value is back over this; None = the threshold.
        no_data: A window without data: resolves the rule; fires it; keeps it as it was.
        group_by: Dimension or attribute. Each of its values is evaluated on its own.
        change: Compare with the window before: the difference, or the difference in percent.
    """

    name: Annotated[str, Meta(min_length=1, max_length=128, description="Name of the rule.")]
    metric: Annotated[str, Meta(description="Any number of GET /metrics/{name}, or a custom metric.")]
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
    min_spans: Annotated[int, Meta(ge=0, description="The rule decides nothing on fewer spans than this.")] = 0
    filter: Annotated[dict[str, str], Meta(description="Dimensions and attributes that a span must have.")] = (
        msgspec.field(default_factory=dict)
    )
    delivery: Annotated[Delivery | None, Meta(description="Where events are delivered besides the subject.")] = None
    level: Annotated[Literal["warning", "critical"], Meta(description="Severity of the events.")] = "warning"
    silenced: Annotated[bool, Meta(description="Evaluate the rule and publish nothing.")] = False
    for_: Annotated[
        DurationText | None, Meta(description="How long the condition must hold before the rule fires.")
    ] = msgspec.field(default=None, name="for")
    recovery_threshold: Annotated[
        float | None, Meta(description="Value at which a firing rule is resolved; by default the threshold.")
    ] = None
    no_data: Annotated[
        Literal["ignore", "fire", "keep"],
        Meta(
            description="What happens without data. ignore: a firing rule is resolved; fire: the rule fires; "
            "keep: its state stays."
        ),
    ] = "ignore"
    group_by: Annotated[
        str, Meta(max_length=256, description="Dimension or attribute; each of its values has a state of its own.")
    ] = ""
    change: Annotated[
        Literal["absolute", "percent"] | None,
        Meta(description="Compare the difference to the window before, as a number or in percent."),
    ] = None


def parse_alert_rule(written: Mapping[str, Any], where: str) -> AlertRule:
    """
    Return the rule that *written* is; its durations, its metric and its delivery are checked when it is compiled.

    Args:
        written: As decoded from JSON or YAML. A key whose value is null counts as absent.
        where: Prefix of the key in error texts, such as ``alerts[2]``.

    Raises:
        ConfigError: A key is unknown, missing or of the wrong type. The text names the key and what is allowed.
    """
    tidy = _without_nulls(written)
    try:
        return msgspec.convert(tidy, AlertRule)
    except msgspec.ValidationError as exc:
        raise ConfigError(_explain(str(exc), tidy, AlertRule, where)) from exc


def parse_delivery(written: object, where: str) -> Delivery:
    """
    Return the delivery that *written* is, as ``parse_alert_rule`` does for a rule.

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

    What is not a list of maps is returned as it is: decoding it against the schema names the error.
    """
    if not isinstance(alerts, list):
        return alerts
    return [_with_type(_without_nulls(rule)) if isinstance(rule, Mapping) else rule for rule in alerts]


#: Keys of a rule for which an empty value means absent.
_EMPTY_IS_ABSENT = frozenset({"min_spans", "silenced", "no_data", "change", "group_by"})


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
#: Values of these keys may be secrets, so that no error text repeats them.
_SECRET = frozenset({"secret", "headers"})
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "object": "a map",
}


def _explain(message: str, written: Any, schema: type[msgspec.Struct] | None, where: str) -> str:
    """
    Return the text of a validation error of msgspec with the key first and with what is allowed.

    Args:
        message: Of msgspec, such as ``Expected `float`, got `str` - at `$.threshold```.
        written: What was decoded.
        schema: Its Struct; None = a delivery, whose ``type`` names the Struct.
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
    shown = "" if key in _SECRET or "[...]" in at else f"{shorten(value)!r} "
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
        # msgspec does not name the key inside a map. All values must be text, so the first other one is meant.
        name = next((name for name, item in value.items() if not isinstance(item, str)), "")
        return f"{path}.{shorten(name)}: is not {what}"
    return f"{path}: {shown}is not {what}"


def _metric_names() -> list[str]:
    from tokentrace.metrics import METRICS

    return list(METRICS)


def _allowed(schema: type[msgspec.Struct] | None, key: str) -> list[str]:
    """Return the values that *key* may have if they are few; [] otherwise."""
    if key == "type":
        return list(DELIVERIES)
    for field in msgspec.structs.fields(schema) if schema is not None else ():
        if field.encode_name == key:
            kind = field.type.__origin__ if hasattr(field.type, "__metadata__") else field.type
            choices = [kind, *get_args(kind)]
            literals = [get_args(choice) for choice in choices if getattr(choice, "__origin__", None) is Literal]
            return [str(value) for values in literals for value in values if isinstance(value, str)]
    return []
