"""
A rule: what it watches, when it is looked at, and what its state makes of a value. Pure: time is an argument.

A rule's state is what its events say. ``decide`` looks at one instant; what it wants published becomes the state once
the stream has taken it, so any number of alerters that decide the same come to the same state.
"""

from __future__ import annotations

import hashlib
import math
import operator
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

import msgspec

from tokentrace.errors import ConfigError, Rejected, shorten
from tokentrace.metrics import METRICS, CustomMetric, Metric, find_metric
from tokentrace.records import AlertEvent
from tokentrace.rollup import OTHER
from tokentrace.units import HOUR, MINUTE, SECOND, is_number, parse_duration, render_instant
from tokentrace_alerter.delivery import Channel, parse_channel

_OPERATORS = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_SYMBOLS = {name: symbol for symbol, name in _OPERATORS.items()}
LEVELS = ("warning", "critical")
_MAX_THRESHOLD = 1e300
#: Spans arrive a little after they end, or up to five minutes before they say they do.
_SLACK_NS = 6 * MINUTE
MAX_WINDOW_NS = 31 * 24 * HOUR
#: A falling value is judged this much later: spans that are still on their way would have kept it up.
LAGGING_NS = 5 * SECOND

Op = Literal["gt", "gte", "lt", "lte"]
Reason = Literal["", "ok", "cooldown", "min_spans", "no_data", "silenced", "pending", "warming"]
NoData = Literal["ignore", "fire", "keep"]
ChangeMode = Literal["", "absolute", "percent"]
#: Values that grow with every span: too small as long as a window is not covered.
_GROWING = frozenset(
    {
        "total_cost",
        "unpriced_span_count",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "error_count",
        "timeout_count",
        "span_count",
    }
)
#: So many values of what a rule is grouped by are told apart; the rest is ``other``.
MAX_GROUPS = 1000


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is watched (SPEC D.1).

    Attributes:
        metric: A name of ``metric.registry.METRICS``, or of *custom*.
        custom: The metric of one's own that it watches; None = everybody's.
        window: As written; window_ns the same in nanoseconds.
        filter: Dimension or attribute -> value, all of which a span must have.
        for_ns: How long the condition must hold before it fires.
        recovery_threshold: What a firing rule has to get back over; None = the threshold.
        no_data: What no data means: what fired is over; a breach; what was stays.
        group_by: Dimension or attribute: each of its values is an instance with a state of its own; "" = one for all.
        change: The value is the difference to the window before, as it is or in percent of it; "" = it is not.
        delivery: Where its events go besides the alert subject; None = nowhere.
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
    group_by: str = ""
    change: ChangeMode = ""
    delivery: Channel | None = None

    @property
    def rule_id(self) -> str:
        """``alert_`` and 8 hex digits of the name."""
        return f"alert_{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"

    @property
    def fingerprint(self) -> str:
        """The same as long as what it watches and keeps is the same."""
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
    def bucket_s(self) -> int:
        """
        Width of its ring's buckets, seconds.

        The widest that windows can begin and end at, unless that makes over a hundred of them; then a hundredth of
        the window, and its edges are read from buckets of a second.
        """
        hundredth = max(1, self.window_ns // SECOND // 100)
        common_ns = math.gcd(self.window_ns, self.eval_interval_ns)
        return common_ns // SECOND if common_ns % SECOND == 0 and common_ns >= hundredth * SECOND else hundredth

    @property
    def window_s(self) -> int:
        """The window in whole seconds, never shorter than asked."""
        return -(-self.window_ns // SECOND)

    @property
    def lag_ns(self) -> int:
        """How far behind the broker's clock it is judged."""
        return LAGGING_NS if self.op in ("lt", "lte") or self.no_data == "fire" else 0

    @property
    def covers_ns(self) -> int:
        """How far back it looks."""
        return 2 * self.window_ns if self.change else self.window_ns

    @property
    def reaches_ns(self) -> int:
        """How far back the log has to be read to know what its windows hold."""
        return self.covers_ns + self.lag_ns + _SLACK_NS

    @property
    def trusts_half_a_window(self) -> bool:
        """What it watches means the same although its window is not covered yet."""
        growing = self.custom.type in ("sum", "count") if self.custom else self.metric in _GROWING
        return not self.change and not (growing and self.op in ("lt", "lte"))

    def of(self) -> Metric:
        """The metric it watches."""
        return METRICS[self.metric]


def parse_rule(
    given: Mapping[str, Any],
    where: str,
    default_cooldown_ns: int | None = None,
    customs: Mapping[str, CustomMetric] = {},
) -> Rule:
    """
    A rule from its documented form, checked.

    Args:
        given: The keys of SPEC D.1.
        where: For the error, such as ``alerts[2]``.
        customs: Metrics of one's own, by name.
        default_cooldown_ns: For a rule that names none; None = its window.

    Raises:
        ConfigError: Names the key and what is allowed.
    """

    def duration(key: str, default: int) -> int:
        text = given.get(key)
        if text is None:
            return default
        try:
            return parse_duration(str(text))
        except Rejected as exc:
            raise ConfigError(f"{where}.{key}: {exc}") from exc

    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise ConfigError(f"{where}.{shorten(unknown[0])}: unknown key; allowed are {', '.join(KEYS)}")
    name = given.get("name") or ""
    if not isinstance(name, str):
        raise ConfigError(f"{where}.name: {shorten(name)!r} is not text")
    if not name:
        raise ConfigError(f"{where}.name: required")
    if len(name) > 128:
        raise ConfigError(f"{where}.name: longer than 128 characters")
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in name):
        raise ConfigError(f"{where}.name: {shorten(name)!r} has a control character in it")
    metric = str(given.get("metric") or "")
    custom = customs.get(metric)
    found = find_metric(metric)
    if found is None and custom is None:
        raise ConfigError(f"{where}.metric: {shorten(metric)!r} is none of {', '.join([*METRICS, *customs])}")
    written = str(given.get("op"))
    op = _OPERATORS.get(written, written)
    if op not in _COMPARE:
        raise ConfigError(f"{where}.op: {shorten(written)!r} is none of {', '.join([*_COMPARE, *_OPERATORS])}")
    threshold = given.get("threshold")
    if not is_number(threshold) or abs(threshold) > _MAX_THRESHOLD:
        raise ConfigError(f"{where}.threshold: {shorten(threshold)!r} is not a finite number")
    level = given.get("level")
    level = "warning" if level is None else level
    if level not in LEVELS:
        raise ConfigError(f"{where}.level: {shorten(level)!r} is none of {', '.join(LEVELS)}")
    if given.get("window") is None:
        raise ConfigError(f"{where}.window: required, such as 1h")
    window_ns = duration("window", HOUR)
    if not SECOND <= window_ns <= MAX_WINDOW_NS:
        raise ConfigError(f"{where}.window: must be between 1s and 31d")
    interval = duration("eval_interval", default_interval(window_ns))
    if interval < SECOND:
        raise ConfigError(f"{where}.eval_interval: must be 1s or more")
    cooldown = duration("cooldown", window_ns if default_cooldown_ns is None else default_cooldown_ns)
    min_spans = given.get("min_spans") or 0
    if not isinstance(min_spans, int) or isinstance(min_spans, bool) or min_spans < 0:
        raise ConfigError(f"{where}.min_spans: must be a whole number, 0 or more")
    recovery = given.get("recovery_threshold")
    if recovery is not None:
        if not is_number(recovery) or abs(recovery) > _MAX_THRESHOLD:
            raise ConfigError(f"{where}.recovery_threshold: {shorten(recovery)!r} is not a finite number")
        if recovery != threshold and _COMPARE[op](recovery, threshold):
            raise ConfigError(f"{where}.recovery_threshold: {recovery} is itself {written} {threshold}")
    no_data = given.get("no_data") or "ignore"
    if no_data not in get_args(NoData):
        raise ConfigError(f"{where}.no_data: {shorten(no_data)!r} is none of {', '.join(get_args(NoData))}")
    change = given.get("change") or ""
    if change not in get_args(ChangeMode):
        raise ConfigError(f"{where}.change: {shorten(change)!r} is neither absolute nor percent")
    group_by = given.get("group_by") or ""
    if not isinstance(group_by, str) or len(group_by) > 256:
        raise ConfigError(f"{where}.group_by: {shorten(group_by)!r} is not a dimension or an attribute")
    if change and window_ns > MAX_WINDOW_NS // 2:
        raise ConfigError(f"{where}.window: at most 15d12h with change, which looks at the window before as well")
    silenced = given.get("silenced") or False
    if not isinstance(silenced, bool):
        raise ConfigError(f"{where}.silenced: {shorten(silenced)!r} is neither true nor false")
    return Rule(
        name=name,
        metric=metric if found is None else found[0],
        custom=custom,
        op=cast(Op, op),
        threshold=float(threshold),
        window=str(given["window"]),
        window_ns=window_ns,
        eval_interval_ns=interval,
        cooldown_ns=cooldown,
        min_spans=min_spans,
        filter=_filter(given.get("filter"), where),
        level=level,
        silenced=silenced,
        for_ns=duration("for", 0),
        recovery_threshold=None if recovery is None else float(recovery),
        no_data=cast(NoData, no_data),
        group_by=group_by,
        change=cast(ChangeMode, change),
        delivery=parse_channel(given.get("delivery"), f"{where}.delivery"),
    )


def _filter(given: object, where: str) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}.filter: {shorten(given)!r} is not a map of keys to values")
    for key, value in given.items():
        if not isinstance(key, str) or not key or not isinstance(value, str):
            raise ConfigError(f"{where}.filter: {shorten(key)!r}: {shorten(value)!r} is not text")
    return dict(given)


def default_interval(window_ns: int) -> int:
    """A tenth of the window, at least 30 s; for windows under five minutes at least a second."""
    least = 30 * SECOND if window_ns >= 5 * MINUTE else SECOND
    return max(window_ns // 10, least)


#: What a rule may say.
KEYS = (
    "name",
    "metric",
    "op",
    "threshold",
    "window",
    "eval_interval",
    "cooldown",
    "min_spans",
    "filter",
    "delivery",
    "level",
    "silenced",
    "for",
    "recovery_threshold",
    "no_data",
    "group_by",
    "change",
)


class State(msgspec.Struct):
    """
    What the events of a rule, or of one instance of it, say, and what was seen last.

    Attributes:
        pending_ns: Since when the condition holds and has not fired; 0 = it does not.
        firing: The last event was a firing.
        fired_ns, starts_ns: Of the last firing and its episode; 0 = never.
        event_ns: Instant of the last event of any kind; what lies before it has been decided.
        evaluated_ns: Last instant looked at; 0 = none.
        value, span_count: At that instant.
        breached: The condition held then, whatever was published.
        why: Why nothing was published then.
    """

    firing: bool = False
    fired_ns: int = 0
    starts_ns: int = 0
    event_ns: int = 0
    evaluated_ns: int = 0
    value: float | None = None
    span_count: int = 0
    breached: bool = False
    why: Reason = ""
    pending_ns: int = 0


class Decision(NamedTuple):
    """
    What is to be published, or why nothing is.

    Attributes:
        pending_ns: As ``State.pending_ns`` from now on.
    """

    event: AlertEvent | None
    why: Reason
    pending_ns: int = 0


class Reading(NamedTuple):
    """What was found at an instant: the value and how many spans it was made of; None and 0 without data."""

    value: float | None
    span_count: int


def decide(
    rule: Rule,
    state: State,
    instant_ns: int,
    value: float | None,
    span_count: int,
    *,
    silenced: bool = False,
    warming: bool = False,
    group: str = "",
) -> Decision:
    """
    What *rule* does at *instant_ns*.

    A breach fires once it has lasted for ``for``, unless the last firing is less than a cooldown ago; while it lasts it
    fires again after each cooldown with the same start; once it is over what fired is resolved.

    Args:
        silenced: It is, at this instant, for whatever reason.
        warming: What it looks at reaches back further than what it knows.
        group: Which instance.
    """
    if instant_ns <= state.event_ns:
        return Decision(None, "ok")
    quiet = rule.silenced or silenced
    no_data = value is None or span_count == 0
    if no_data and rule.no_data == "keep":
        return Decision(None, "no_data", state.pending_ns)
    if not no_data and span_count < rule.min_spans:
        return Decision(None, "min_spans")
    if not breaches(rule, value, span_count, firing=state.firing):
        if not state.firing or quiet:
            return Decision(None, "no_data" if no_data else "ok")
        shown = None if no_data else value
        return Decision(_event(rule, "resolved", instant_ns, shown, span_count, state.starts_ns, group), "")
    if warming and (no_data or not rule.trusts_half_a_window):
        return Decision(None, "warming")
    since = (state.pending_ns or instant_ns) if rule.for_ns and not state.firing else 0
    if quiet:
        return Decision(None, "silenced", since)
    if since and instant_ns < since + rule.for_ns:
        return Decision(None, "pending", since)
    if state.fired_ns and instant_ns < state.fired_ns + rule.cooldown_ns:
        return Decision(None, "cooldown", since)
    starts = state.starts_ns if state.firing else instant_ns
    return Decision(_event(rule, "firing", instant_ns, value, span_count, starts, group), "")


def leave(rule: Rule, state: State, instant_ns: int, group: str) -> AlertEvent:
    """The end of the episode of an instance that is not told apart any more."""
    event = _event(rule, "resolved", instant_ns, None, 0, state.starts_ns, group)
    said = f"{rule.group_by} {shorten(group)!r} is counted with {OTHER!r} from now on"
    return msgspec.structs.replace(event, message=said)


def breaches(rule: Rule, value: float | None, span_count: int, *, firing: bool = False) -> bool:
    """The condition holds; of a *firing* rule, it has not recovered."""
    if value is None or span_count == 0:
        return rule.no_data == "fire" or (rule.no_data == "keep" and firing)
    limit = rule.threshold if not firing or rule.recovery_threshold is None else rule.recovery_threshold
    return span_count >= rule.min_spans and _COMPARE[rule.op](value, limit)


def _event(
    rule: Rule,
    status: Literal["firing", "resolved"],
    instant_ns: int,
    value: float | None,
    span_count: int,
    starts_ns: int,
    group: str,
) -> AlertEvent:
    shown = "no data" if value is None else f"{value:.4g}"
    return AlertEvent(
        alert=rule.name,
        fired_at=render_instant(instant_ns),
        metric=rule.metric,
        op=rule.op,
        value=value,
        threshold=rule.threshold,
        window=rule.window,
        span_count=span_count,
        filter=rule.filter,
        rule_id=rule.rule_id,
        level=rule.level,
        message=f"{rule.metric} {_SYMBOLS[rule.op]} {shown} (threshold: {rule.threshold:.4g})",
        status=status,
        starts_at=render_instant(starts_ns),
        ends_at=render_instant(instant_ns) if status == "resolved" else None,
        group={rule.group_by: group} if rule.group_by else {},
    )
