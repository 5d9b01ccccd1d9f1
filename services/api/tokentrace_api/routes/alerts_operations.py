"""The part of the OpenAPI document that describes the routes of rules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Path as PathName
from msgspec import UNSET, Meta, UnsetType
from pydantic import Field

from tokentrace.config import AlertRule
from tokentrace.records import DeliveryRecord
from tokentrace.service.contract import Answer, Content, Params, operation
from tokentrace_api.parameters import Count, Text
from tokentrace_api.routes.answers import InstantText, Natural

MAX_DELIVERIES = 200
MAX_INSTANCES = 100
RuleName = Annotated[
    str, PathName(description="Name of the rule, or its `rule_id` if no rule has that name.", examples=["slow"])
]
State = Literal["inactive", "pending", "firing", "resolved", "no_data", "warming"]


class DeliveriesParams(Params):
    """The parameter of the list of deliveries."""

    limit: Count = Field(100, description=f"Most deliveries to list; over {MAX_DELIVERIES} counts as {MAX_DELIVERIES}.")


class ListParams(Params):
    """How much is listed of each rule."""

    instances: Count = Field(
        MAX_INSTANCES,
        description=f"Most instances to list of a grouped rule; over {MAX_INSTANCES} counts as {MAX_INSTANCES}.",
    )


class RuleNameParams(Params):
    """The parameter that names a rule."""

    name: Text = Field(None, description="Name of the rule.", examples=[".."])


class RuleInstance(msgspec.Struct):
    """
    An instance of a rule: its state for one value of ``group_by``.

    Attributes:
        group: The value.
        starts_at: When its episode began; null = it does not fire.
        why_not_fired: Why the last evaluation published nothing; null = it published an event, or there was none.
        unpriced_span_count: For a rule on money: spans that the value leaves out because their cost is unknown.
    """

    group: str
    state: State
    current_value: float | None
    span_count: Natural
    starts_at: InstantText | None
    last_fired: InstantText | None
    why_not_fired: str | None
    unpriced_span_count: Natural | UnsetType = UNSET


class Overflow(msgspec.Struct):
    """The metric over the spans of all instances over the limit together, and their number."""

    current_value: float | None
    span_count: Natural


class LastDelivery(msgspec.Struct):
    """
    What became of the newest event of a rule that was delivered or tried.

    Attributes:
        outcome: retry = another attempt follows; dead = no attempt succeeded; expired = it was too old.
        in_a_row: Number of the newest such events that have this outcome, as far as the last 200 attempts tell.
        attempts: Number of attempts for the newest one.
        error: Why the last attempt failed; "" = it did not fail.
        at: When the last attempt was made.
    """

    outcome: Literal["delivered", "retry", "dead", "expired"]
    in_a_row: Natural
    attempts: Natural
    error: str
    at: InstantText


class RuleState(msgspec.Struct, kw_only=True):
    """
    A rule and its state. For a grouped rule, the state is that of the worst instance: firing before pending.

    Attributes:
        last_fired: When any instance last fired; null = never.
        current_value: The metric at the last evaluation, in its documented unit; null without data.
        firing: An episode lasts, for at least one instance (state ``firing``), or would if the rule were not silenced.
        delivery: Type of the delivery; null = events are only published.
        destination: Where events are delivered: of a URL only scheme, host and port.
        send_resolved: Whether resolutions are delivered too.
        last_delivery: What became of the newest event that was delivered or tried; null = there was none.
        silenced_at: When the silence was made; null = there is none, or that is not known.
        silenced_by, silence_comment: Who made the silence, and why; null = there is none, or that was not said.
        silence_ended: When the last silence ended; null = the rule is silenced, or has not been.
        held_back: Number of firings that the present or last silence has held back, of all instances. A rule that its
            key ``silenced`` silences counts from the start of its evaluation.
        span_count: Number of spans that contributed to the value.
        unpriced: ignore, or fire = a rule on money also fires while the window has spans of unknown cost.
        unpriced_span_count: For a rule on money: spans that the value leaves out because their cost is unknown.
        spans_considered: Number of spans that matched the filter since the alerter began to evaluate the rule.
        late_spans: Number of those spans that arrived too late to be counted.
        why_not_fired: Why the last evaluation published nothing; null = it published an event, or there was none.
        starts_at: When its episode began, that of the worst instance; null = it does not fire.
        instance_count, firing_instance_count: Number of instances of a grouped rule, and of those that fire.
        worst_group: The instance of a grouped rule that the value, the start and the state are about; absent without
            instances.
        instances: Up to 100 instances of a grouped rule, firing ones first.
        overflow: Spans of instances over the limit, which are not compared with the threshold; absent without any.
        recent_values: The metric at the last evaluations, up to 30, oldest first, `eval_interval` apart: the last one
            is that of `last_evaluated`. Of a grouped rule, of the instance furthest on the side of the threshold.
        breached: The condition held at the last evaluation, for at least one instance, whether or not the rule fired.
        misses_late_scores: The rule selects or groups spans by a score, and ignores scores that are given later.
        source: file = from the configuration; created = made at run time.
        hides_rule_of_file: The configuration has a rule of that name too, which is not evaluated.
    """

    name: str
    metric: str
    op: Literal["gt", "gte", "lt", "lte"]
    threshold: float
    window: str
    last_evaluated: InstantText | None
    last_fired: InstantText | None
    current_value: float | None
    firing: bool
    silenced: bool
    silenced_until: InstantText | None
    silenced_at: InstantText | None
    silenced_by: str | None
    silence_comment: str | None
    silence_ended: InstantText | None
    held_back: Natural
    rule_id: str
    level: str
    filter: dict[str, str]
    min_spans: Natural
    cooldown: str
    eval_interval: str
    for_: str = msgspec.field(name="for")
    recovery_threshold: float | None
    no_data: str
    unpriced: str
    group_by: str | None
    change: str | None
    delivery: str | None
    destination: str | None
    send_resolved: bool | None
    last_delivery: LastDelivery | None
    next_evaluation: InstantText | None
    span_count: Natural
    unpriced_span_count: Natural | UnsetType = UNSET
    spans_considered: int
    late_spans: int
    state: State
    starts_at: InstantText | None
    why_not_fired: str | None
    instance_count: Natural | UnsetType = UNSET
    firing_instance_count: Natural | UnsetType = UNSET
    worst_group: str | UnsetType = UNSET
    instances: list[RuleInstance] | UnsetType = UNSET
    overflow: Overflow | UnsetType = UNSET
    recent_values: Annotated[list[float | None], Meta(max_length=30)]
    breached: bool
    misses_late_scores: bool
    source: Literal["file", "created"]
    hides_rule_of_file: bool


class RuleCreated(msgspec.Struct):
    """The id and the name of a rule."""

    rule_id: Annotated[str, Meta(pattern="^alert_[0-9a-f]{8}$")]
    name: str


class SilenceInput(msgspec.Struct, forbid_unknown_fields=True):
    """
    A silence.

    Attributes:
        duration: How long the rule is silenced, such as ``2h``; at most ``366d``.
        by: Who silences it.
        comment: Why.
    """

    duration: str
    by: Annotated[str, Meta(max_length=200)] = ""
    comment: Annotated[str, Meta(max_length=2000)] = ""


class Silenced(msgspec.Struct):
    """The instant until which the rule publishes nothing."""

    silenced_until: InstantText


class Deliveries(msgspec.Struct):
    """
    Attempts to deliver the events of a rule, newest first.

    Attributes:
        count: Number of attempts that are kept, at most 200; up to ``limit`` of them are listed.
    """

    deliveries: list[DeliveryRecord]
    count: Natural


RULE_EXAMPLE: dict[str, Any] = {
    "name": "slow",
    "metric": "latency_p95",
    "op": "gt",
    "threshold": 3000,
    "window": "5m",
    "cooldown": "10m",
    "min_spans": 20,
    "filter": {"caller": "checkout"},
    "delivery": {"type": "http", "url": "https://hooks.example.com/x"},
}
_STATE_EXAMPLE: dict[str, Any] = {
    "name": "slow",
    "metric": "latency_p95",
    "op": "gt",
    "threshold": 3000,
    "window": "5m",
    "last_evaluated": "2026-03-15T14:23:00.000Z",
    "last_fired": None,
    "current_value": 2140.0,
    "firing": False,
    "silenced": False,
    "silenced_until": None,
    "silenced_at": None,
    "silenced_by": None,
    "silence_comment": None,
    "silence_ended": None,
    "held_back": 0,
    "rule_id": "alert_a1b2c3d4",
    "level": "warning",
    "filter": {"caller": "checkout"},
    "min_spans": 20,
    "cooldown": "10m",
    "eval_interval": "30s",
    "for": "0s",
    "recovery_threshold": None,
    "no_data": "ignore",
    "unpriced": "ignore",
    "group_by": None,
    "change": None,
    "delivery": "http",
    "destination": "https://hooks.example.com/...",
    "send_resolved": False,
    "last_delivery": {
        "outcome": "dead",
        "in_a_row": 5,
        "attempts": 13,
        "error": "HTTP 500",
        "at": "2026-03-15T13:02:11.020Z",
    },
    "next_evaluation": "2026-03-15T14:23:30.000Z",
    "span_count": 312,
    "spans_considered": 312,
    "late_spans": 0,
    "state": "inactive",
    "starts_at": None,
    "why_not_fired": "ok",
    "recent_values": [1980.0, None, 2140.0],
    "breached": False,
    "misses_late_scores": False,
    "source": "file",
    "hides_rule_of_file": False,
}
_DELIVERY_EXAMPLE: dict[str, Any] = {
    "rule": "slow",
    "fired_at": "2026-03-15T14:23:00.000Z",
    "status": "firing",
    "group": {},
    "key": "slow.2026-03-15T14:23:00.000Z",
    "channel": "http",
    "destination": "https://hooks.example.com/...",
    "outcome": "delivered",
    "attempt": 1,
    "error": "",
    "at": "2026-03-15T14:23:00.120Z",
    "took_ms": 41.5,
    "retry_after_s": None,
}
NO_PARAMETERS = {400: "limit: unknown parameter; allowed are none"}
_NOT_FOUND = {404: "no rule is called 'slow'"}
_AWAY = {503: "no alerter answers"}
BODY_ERRORS = {
    413: "body: over 65536 bytes, which is the limit after decompression",
    415: "Content-Encoding: 'br' is not supported, only gzip is",
}
LIST_RULES = operation(
    "listAlerts",
    "List rules and their state",
    "Every rule: those of the configuration file and those created at run time.",
    Answer(list[RuleState], "The rules.", [_STATE_EXAMPLE]),
    errors={400: "instances: 'x' is not a whole number >= 0 of at most 18 digits", **_AWAY},
)
CREATE_RULE = operation(
    "createAlert",
    "Create a rule",
    "The rule is kept across restarts. Its first evaluation includes the spans of its window that the log still holds.",
    Answer(RuleCreated, "The rule is created.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}, status=201),
    body=[Content(AlertRule, {"rule": RULE_EXAMPLE})],
    errors={
        400: "rule: metric: 'latency' is not known",
        409: "a rule is called 'slow' already",
        **BODY_ERRORS,
        **_AWAY,
    },
)
GET_RULE_STATUS = operation(
    "getAlertStatus",
    "Get the state of a rule",
    "The rule as `GET /alerts` shows it.",
    Answer(RuleState, "The rule.", _STATE_EXAMPLE),
    errors={**NO_PARAMETERS, **_NOT_FOUND, **_AWAY},
)
LIST_DELIVERIES = operation(
    "listAlertDeliveries",
    "List the deliveries of a rule",
    "The last attempts to deliver events of the rule, newest first; up to 200 are kept.",
    Answer(Deliveries, "The attempts.", {"deliveries": [_DELIVERY_EXAMPLE], "count": 1}),
    errors={400: "limit: 'x' is not a whole number >= 0 of at most 18 digits", **_NOT_FOUND, **_AWAY},
)
SILENCE_RULE = operation(
    "silenceAlert",
    "Silence a rule",
    "The rule is still evaluated, but publishes nothing until the silence ends.",
    Answer(Silenced, "The rule is silenced.", {"silenced_until": "2026-03-15T17:00:00.000Z"}),
    body=[
        Content(
            SilenceInput,
            {
                "two hours": {"duration": "2h"},
                "with a reason": {"duration": "2h", "by": "ann", "comment": "load test, see ticket 41"},
            },
        )
    ],
    errors={
        400: "duration: 'x' is not a duration such as 90s, 2h30m or 7d",
        **_NOT_FOUND,
        409: "rule 'slow' is being changed",
        **BODY_ERRORS,
        **_AWAY,
    },
)
PUT_RULE = operation(
    "putAlert",
    "Replace or create a rule",
    """
    Replaces a rule that was made at run time, or creates one. If only `cooldown`, `eval_interval`, `silenced` and
    `delivery` change, the rule continues its episode, which is delivered where it began. Any other change ends an open
    episode with a `resolved` event, and the rule starts anew. A silence stays.
    """,
    Answer(RuleCreated, "The rule is replaced.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}),
    Answer(RuleCreated, "The rule is created.", {"rule_id": "alert_a1b2c3d4", "name": "slow"}, status=201),
    body=[Content(AlertRule, {"rule": RULE_EXAMPLE})],
    errors={
        400: "rule.name: 'fast' is not 'slow', the name in the path",
        409: "rule 'slow' is in the configuration; change it there, or delete it first",
        **BODY_ERRORS,
        **_AWAY,
    },
)
LIFT_SILENCE = operation(
    "liftAlertSilence",
    "Lift the silence of a rule",
    "Ends a silence now; without one, nothing changes. What the silence held back is published at the next evaluation.",
    Answer(None, "The rule is not silenced.", status=204),
    errors={
        **NO_PARAMETERS,
        **_NOT_FOUND,
        409: "rule 'slow' is silenced by its key silenced, not by a silence",
        **_AWAY,
    },
)
DELETE_RULE = operation(
    "deleteAlert",
    "Delete a rule",
    "An open episode is ended with a `resolved` event. A rule of the configuration file comes back at the next start.",
    Answer(None, "The rule is deleted.", status=204),
    errors={**NO_PARAMETERS, **_NOT_FOUND, 409: "rule 'slow' is being changed", **_AWAY},
)
DELETE_RULE_BY_NAME = operation(
    "deleteAlertByName",
    "Delete a rule by a parameter",
    "As `DELETE /alerts/{name}`, for a name that a path cannot hold, such as `..`.",
    Answer(None, "The rule is deleted.", status=204),
    errors={400: "name: is missing", **_NOT_FOUND, 409: "rule 'slow' is being changed", **_AWAY},
)
