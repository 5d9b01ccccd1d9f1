"""
The compiled rule, which the alerter evaluates.

``tokentrace.config.AlertRule`` is the schema of the rule that people write. Here its durations become nanoseconds, its
metric and operator get their standard names, and values that depend on each other are checked.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from tokentrace.config import AlertRule, parse_alert_rule
from tokentrace.errors import ConfigError, Rejected, quoted, shorten
from tokentrace.metrics import METRICS, QUALITY, CustomMetric, Metric, find_metric
from tokentrace.units import HOUR, MINUTE, SECOND, parse_duration
from tokentrace_alerter.delivery import Channel, compile_channel

Op = Literal["gt", "gte", "lt", "lte"]
NoData = Literal["ignore", "fire", "keep"]
Unpriced = Literal["ignore", "fire"]
ChangeMode = Literal["", "absolute", "percent"]

QUEUE_DEPTH = "transport_queue_depth"
#: Metrics of reporters: the spans sent, failed and dropped in the window, and those that wait at the instant.
TRANSPORT = ("transport_sent", "transport_failed", "transport_dropped", QUEUE_DEPTH)
_ATTRIBUTE = "attr."
#: What a rule on an attribute may measure of its numbers; it is written after the attribute: ``attr.documents:avg``.
_OF_ATTRIBUTE = ("count", "sum", "avg", "p50", "p95")

_OPERATORS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_MAX_THRESHOLD = 1e300
MAX_WINDOW_NS = 31 * 24 * HOUR
#: Added to how far back the log is read, nanoseconds: a span arrives later than it ends, or up to five minutes earlier.
_SLACK_NS = 6 * MINUTE
#: A rule that fires on low values is evaluated this much later, so that spans which arrive late count, nanoseconds.
LOW_VALUE_LAG_NS = 5 * SECOND
#: Metrics that no further span can lower. Over a window whose data was read only in part they may be too low.
_GROWING = frozenset(
    {
        "total_cost",
        "unpriced_span_count",
        "partly_priced_span_count",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "error_count",
        "timeout_count",
        "span_count",
        "transport_sent",
        "transport_failed",
        "transport_dropped",
    }
)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """
    A rule in the form that is evaluated.

    Attributes:
        metric: Name of a built-in metric, of a metric of reporters, or of the custom metric in *custom*.
        custom: The custom metric, or the numbers of an attribute; None = neither.
        window: The length of the window as it was written.
        window_ns: The length of the window, nanoseconds.
        eval_interval_ns: Time between two instants, nanoseconds.
        cooldown_ns: Shortest time between two firings of an instance, nanoseconds.
        min_spans: With fewer spans in the window, but at least one, nothing is published.
        filter: Dimension or attribute -> value. A span must have all of these values.
        silenced: True = the configuration silences the rule: it is evaluated and publishes nothing.
        for_ns: How long the condition must hold before the rule fires, nanoseconds.
        recovery_threshold: Replaces the threshold while the rule is firing; None = the threshold is used.
        no_data: What a window without data means. ignore: the condition does not hold; fire: it holds; keep: the state
            stays as it is.
        group_by: Dimension or attribute; each of its values is an instance with its own state; "" = one instance.
        unpriced: Whether the condition of a rule on money also holds while the window has spans of unknown cost.
        change: The value is the difference from the window before, absolute or in percent; "" = the metric itself.
        delivery: Where events go besides the alert stream; None = nowhere.
    """

    name: str
    metric: str
    op: Op
    threshold: float
    window: str
    window_ns: int
    eval_interval_ns: int
    cooldown_ns: int
    min_spans: int = 0
    filter: dict[str, str] = {}
    level: str = "warning"
    silenced: bool = False
    custom: CustomMetric | None = None
    for_ns: int = 0
    recovery_threshold: float | None = None
    no_data: NoData = "ignore"
    unpriced: Unpriced = "ignore"
    group_by: str = ""
    change: ChangeMode = ""
    delivery: Channel | None = None

    @property
    def rule_id(self) -> str:
        """The id of the rule: ``alert_`` and 8 hex digits of the SHA-256 of its name."""
        return rule_id_of(self.name)

    @property
    def is_by_user(self) -> bool:
        """Whether each instance of the rule is a user."""
        return self.group_by.removeprefix("attr.") == "user_id"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash. Rules with the same fingerprint keep the same numbers, so a snapshot fits both."""
        parts: list[Any] = [
            self.name,
            self.metric,
            self.custom,
            self.window_ns,
            self.lag_ns,
            sorted(self.filter.items()),
            self.bucket_s,
        ]
        if self.group_by or self.change:
            parts += [self.group_by, self.change]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:16]

    @property
    def misses_late_scores(self) -> bool:
        """Whether the rule selects or groups spans by a score, and does not follow a score that is given later."""
        by_score = any(key.removeprefix(_ATTRIBUTE).startswith("eval.") for key in (*self.filter, self.group_by))
        follows = self.custom.follows_scores if self.custom else self.metric in QUALITY
        return by_score and not follows

    @property
    def condition(self) -> Rule:
        """The rule without what does not change when it fires: rules with equal conditions continue one state."""
        return msgspec.structs.replace(
            self, window="", cooldown_ns=0, eval_interval_ns=0, silenced=False, delivery=None
        )

    @property
    def bucket_s(self) -> int:
        """
        Width of the rule's buckets, seconds.

        It is the greatest common divisor of window and interval, so that every window begins and ends with a bucket.
        If that makes over a hundred buckets or is no whole second, it is a hundredth of the window, and at least 1 s.
        """
        hundredth = max(1, self.window_ns // SECOND // 100)
        common_ns = math.gcd(self.window_ns, self.eval_interval_ns)
        return common_ns // SECOND if common_ns % SECOND == 0 and common_ns >= hundredth * SECOND else hundredth

    @property
    def window_s(self) -> int:
        """The window in seconds, rounded up."""
        return -(-self.window_ns // SECOND)

    @property
    def lag_ns(self) -> int:
        """How long after an instant the rule is evaluated for it, nanoseconds of stream time."""
        return LOW_VALUE_LAG_NS if self.op in ("lt", "lte") or self.no_data == "fire" else 0

    @property
    def covers_ns(self) -> int:
        """How far back from an instant the rule looks, nanoseconds."""
        return 2 * self.window_ns if self.change else self.window_ns

    @property
    def reaches_ns(self) -> int:
        """How far back the log must be read to fill the rule's windows, nanoseconds."""
        return self.covers_ns + self.lag_ns + _SLACK_NS

    @property
    def can_fire_while_warming(self) -> bool:
        """False if missing data alone may cause a breach: for a change, and for a low value of a growing metric."""
        growing = self.custom.type in ("sum", "count") if self.custom else self.metric in _GROWING
        return not self.change and not (growing and self.op in ("lt", "lte"))

    @property
    def money(self) -> bool:
        """Whether the value is a sum or mean of costs, which may leave spans out."""
        if self.custom is not None or self.about_reporters:
            return self.custom is not None and self.custom.money
        return self.builtin_metric().not_priced is not None

    @property
    def about_reporters(self) -> bool:
        """Whether the rule is about the figures of reporters and not about spans."""
        return self.custom is None and self.metric in TRANSPORT

    def builtin_metric(self) -> Metric:
        """Return the built-in metric of the rule; raise ``KeyError`` if it has another one."""
        return METRICS[self.metric]


def rule_id_of(name: str) -> str:
    """Return the id of the rule *name*."""
    return f"alert_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def parse_rule(
    written: Mapping[str, Any],
    where: str,
    default_cooldown_ns: int | None = None,
    customs: Mapping[str, CustomMetric] = {},
) -> Rule:
    """
    Return the compiled form of *written*, a rule decoded from JSON or YAML.

    Args:
        where: Prefix of the key in error texts, such as ``alerts[2]``.
        default_cooldown_ns: Cooldown of a rule that names none, nanoseconds; None = the length of its window.
        customs: Custom metrics by name.

    Raises:
        ConfigError: A key or value is invalid; the text names the key.
    """
    return compile_rule(parse_alert_rule(written, where), where, default_cooldown_ns, customs)


def compile_rule(
    rule: AlertRule,
    where: str,
    default_cooldown_ns: int | None = None,
    customs: Mapping[str, CustomMetric] = {},
) -> Rule:
    """
    Return the compiled form of *rule*.

    Args:
        where, default_cooldown_ns, customs: As for ``parse_rule``.

    Raises:
        ConfigError: A value is invalid; the text names the key.
    """
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in rule.name):
        raise ConfigError(f"{where}.name: {quoted(rule.name)} contains a control character")
    custom = customs.get(rule.metric) or _of_attribute(rule.metric, where)
    builtin = find_metric(rule.metric)
    if builtin is None and custom is None and rule.metric not in TRANSPORT:
        known = [*METRICS, *TRANSPORT, *customs, f"attr.<key>:{'|'.join(_OF_ATTRIBUTE)}"]
        raise ConfigError(f"{where}.metric: {quoted(rule.metric)} is none of {', '.join(known)}")
    if rule.metric in TRANSPORT:
        for key, value in (("filter", rule.filter), ("group_by", rule.group_by)):
            if value:
                raise ConfigError(f"{where}.{key}: {rule.metric} is about reporters, which have no dimensions")
        if rule.metric == QUEUE_DEPTH and rule.change:
            raise ConfigError(f"{where}.change: {rule.metric} has no window that could be compared")
    for key in rule.filter:
        if not key:
            raise ConfigError(f"{where}.filter: an empty key; a dimension or an attribute is expected")
    window_ns = _duration(rule.window, f"{where}.window")
    if not SECOND <= window_ns <= MAX_WINDOW_NS:
        raise ConfigError(f"{where}.window: {quoted(rule.window)} is not between 1s and 31d")
    if rule.change and window_ns > MAX_WINDOW_NS // 2:
        raise ConfigError(
            f"{where}.window: {quoted(rule.window)} is longer than 15d12h, the most for a rule with change, "
            "which reads two windows"
        )
    interval_ns = default_interval(window_ns)
    if rule.eval_interval is not None:
        interval_ns = _duration(rule.eval_interval, f"{where}.eval_interval")
    if interval_ns < SECOND:
        raise ConfigError(f"{where}.eval_interval: {quoted(rule.eval_interval)} is less than 1s")
    cooldown_ns = window_ns if default_cooldown_ns is None else default_cooldown_ns
    if rule.cooldown is not None:
        cooldown_ns = _duration(rule.cooldown, f"{where}.cooldown")
    op = cast(Op, _OPERATORS.get(rule.op, rule.op))
    _check_thresholds(rule, op, where)
    compiled = Rule(
        name=rule.name,
        metric=rule.metric if builtin is None else builtin[0],
        custom=custom,
        op=op,
        threshold=float(rule.threshold),
        window=str(rule.window),
        window_ns=window_ns,
        eval_interval_ns=interval_ns,
        cooldown_ns=cooldown_ns,
        min_spans=rule.min_spans,
        filter=rule.filter,
        level=rule.level,
        silenced=rule.silenced,
        for_ns=0 if rule.for_ is None else _duration(rule.for_, f"{where}.for"),
        recovery_threshold=None if rule.recovery_threshold is None else float(rule.recovery_threshold),
        no_data=rule.no_data,
        unpriced=rule.unpriced,
        group_by=rule.group_by,
        change=rule.change or "",
        delivery=None if rule.delivery is None else compile_channel(rule.delivery, f"{where}.delivery"),
    )
    if compiled.unpriced == "fire" and not compiled.money:
        raise ConfigError(f"{where}.unpriced: {quoted(rule.metric)} is not about money, so no span is left out")
    return compiled


def _of_attribute(metric: str, where: str) -> CustomMetric | None:
    """
    Return the numbers of an attribute as a custom metric; None if *metric* is no attribute.

    Raises:
        ConfigError: *metric* does not say which number is meant.
    """
    key, _, figure = metric.rpartition(":")
    if not metric.startswith(_ATTRIBUTE):
        return None
    if figure not in _OF_ATTRIBUTE or not key.removeprefix(_ATTRIBUTE):
        choices = ", ".join(f"{shorten(metric)}:{name}" for name in _OF_ATTRIBUTE)
        raise ConfigError(f"{where}.metric: {quoted(metric)} does not say which number; write one of {choices}")
    return CustomMetric(name=metric, type=cast(Literal["sum", "count", "avg", "p50", "p95"], figure), field=key)


def _check_thresholds(rule: AlertRule, op: Op, where: str) -> None:
    threshold, recovery = rule.threshold, rule.recovery_threshold
    for key, limit in (("threshold", threshold), ("recovery_threshold", recovery)):
        if limit is not None and not (math.isfinite(limit) and abs(limit) <= _MAX_THRESHOLD):
            raise ConfigError(f"{where}.{key}: {quoted(limit)} is not a finite number of at most 1e300")
    if recovery is not None and recovery != threshold and (recovery > threshold) == (op in ("gt", "gte")):
        raise ConfigError(
            f"{where}.recovery_threshold: {recovery} is itself {rule.op} {threshold}, "
            "so the rule could resolve while its condition holds"
        )


def _duration(text: str | int, key: str) -> int:
    try:
        return parse_duration(str(text))
    except Rejected as exc:
        raise ConfigError(f"{key}: {exc}") from exc


def default_interval(window_ns: int) -> int:
    """Return the default interval: a tenth of *window_ns*, at least 30 s, or 1 s for under five minutes."""
    least = 30 * SECOND if window_ns >= 5 * MINUTE else SECOND
    return max(window_ns // 10, least)
