"""``/alerts/preview`` and ``/alerts/{name}/series``: what a rule finds in the stored log, asked of the alerters."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query as QueryParams
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bus import Bus
from tokentrace.config import AlertRule
from tokentrace.errors import Rejected
from tokentrace.records import AlertEvent, PreviewRule, RuleSeries
from tokentrace.service.contract import Answer, Content, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import DAY, HOUR, SECOND
from tokentrace_api.alerter_client import ask, rule_named
from tokentrace_api.parameters import Moment, OptionalDuration, Window
from tokentrace_api.routes.alerts import read_rule
from tokentrace_api.routes.alerts_operations import BODY_ERRORS, RULE_EXAMPLE, RuleName
from tokentrace_api.routes.answers import InstantText, Natural

#: An alerter waits 5 s for its turn and replays for 15 s at most.
_TIMEOUT_S = 30.0
_MAX_WINDOW_NS = 30 * DAY


class _PeriodParams(Params):
    """The time that is replayed: the last `window`, or `from` and `to`."""

    from_: Moment = Field(
        None, alias="from", description="Beginning of the time; with `to` only.", examples=["2026-03-15T13:00:00Z"]
    )
    to: Moment = Field(
        None,
        description="End of the time, at most 30d after `from`; one in the future is now.",
        examples=["2026-03-15T14:00:00Z"],
    )


class RuleSeriesParams(_PeriodParams):
    """The time of a series."""

    window: OptionalDuration = Field(
        None, description="How far back, at most 30d; 1h without `from` and `to`.", examples=["24h"]
    )


class RulePreviewParams(_PeriodParams):
    """The time of a preview."""

    window: OptionalDuration = Field(
        None, description="How far back, at most 30d; 24h without `from` and `to`.", examples=["24h"]
    )


class RulePoint(msgspec.Struct):
    """
    What a rule found at an instant; of a grouped rule, of its instance furthest on the side of the threshold.

    Attributes:
        at: The instant at which it was evaluated.
        value: The metric, in its documented unit; null without data.
        span_count: Number of spans that contributed.
        breached: Number of instances for which the condition held; of a rule without groups 0 or 1.
        instances: Number of instances.
    """

    at: InstantText
    value: float | None
    span_count: Natural
    breached: Natural
    instances: Natural


class AlertSeries(msgspec.Struct, kw_only=True):
    """
    The value of a rule over time, with its threshold.

    Attributes:
        recovery_threshold: The threshold that ends an episode; null = the threshold.
        from_, to: The time that was asked for; ``from`` is later if the log begins later.
        until: The points reach up to here; before ``to`` if the replay took too long.
        complete: Whether they reach ``to``.
        step_s: A point stands for the instants of so many seconds: it is the one furthest on the side of the threshold.
        points: Up to 501 points, oldest first.
    """

    name: str
    metric: str
    op: Literal["gt", "gte", "lt", "lte"]
    threshold: float
    recovery_threshold: float | None
    from_: InstantText = msgspec.field(name="from")
    to: InstantText
    until: InstantText
    complete: bool
    step_s: float
    points: list[RulePoint]


class AlertPreview(AlertSeries, kw_only=True):
    """
    What a rule would have done, and its value over time.

    Attributes:
        firings, resolutions: Number of events that it would have published.
        events: The first 1000 of them, oldest first.
    """

    firings: Natural
    resolutions: Natural
    events: list[AlertEvent]


_SERIES_EXAMPLE: dict[str, Any] = {
    "name": "slow",
    "metric": "latency_p95",
    "op": "gt",
    "threshold": 3000.0,
    "recovery_threshold": None,
    "from": "2026-03-14T14:23:00.000Z",
    "to": "2026-03-15T14:23:00.000Z",
    "until": "2026-03-15T14:23:00.000Z",
    "complete": True,
    "step_s": 180.0,
    "points": [{"at": "2026-03-15T14:23:00.000Z", "value": 3410.0, "span_count": 312, "breached": 1, "instances": 1}],
}
_PREVIEW_EXAMPLE: dict[str, Any] = {
    **_SERIES_EXAMPLE,
    "firings": 1,
    "resolutions": 0,
    "events": [
        {
            "alert": "slow",
            "fired_at": "2026-03-15T14:23:00.000Z",
            "metric": "latency_p95",
            "op": "gt",
            "value": 3410.0,
            "threshold": 3000.0,
            "window": "5m",
            "span_count": 312,
            "filter": {"caller": "checkout"},
            "rule_id": "alert_a1b2c3d4",
            "level": "warning",
            "message": "latency_p95 > 3410 (threshold: 3000)",
            "status": "firing",
            "starts_at": "2026-03-15T14:23:00.000Z",
            "ends_at": None,
            "group": {},
        }
    ],
}
_BUSY = {503: "another rule is being replayed; try again"}
_SERIES = operation(
    "getAlertSeries",
    "Get the value of a rule over time",
    """
    What the rule found at its instants, made again from the log of spans, without silences. One rule is replayed at a
    time, for 15 seconds at most.
    """,
    Answer(AlertSeries, "The points, and the threshold.", _SERIES_EXAMPLE),
    errors={
        400: "window: '0s' is shorter than 1s",
        404: "no rule is called 'slow'",
        **_BUSY,
    },
)
_PREVIEW = operation(
    "previewAlert",
    "Preview a rule",
    """
    What a rule, in the form of `POST /alerts`, would have done in the time that is asked for. Nothing is kept,
    published or delivered; a key `silenced` is left out. One rule is replayed at a time, for 15 seconds at most.
    """,
    Answer(AlertPreview, "The events and the points.", _PREVIEW_EXAMPLE),
    body=[Content(AlertRule, {"rule": RULE_EXAMPLE})],
    errors={400: "rule: metric: 'latency' is not known", **BODY_ERRORS, **_BUSY},
)


def router(bus: Bus) -> Router:
    """Return the routes."""
    routes = Router("alerts")

    @routes.post("/alerts/preview", **_PREVIEW)
    async def preview(request: Request, params: Annotated[RulePreviewParams, QueryParams()]) -> Response:
        window_ns, to_ns = _period(params.window, params.from_, params.to, 24 * HOUR)
        return reply(await ask(bus, PreviewRule(await read_rule(request), window_ns, to_ns), _TIMEOUT_S))

    @routes.get("/alerts/{name:path}/series", **_SERIES)
    async def series(name: RuleName, params: Annotated[RuleSeriesParams, QueryParams()]) -> Response:
        window_ns, to_ns = _period(params.window, params.from_, params.to, HOUR)
        answer = await ask(bus, RuleSeries(await rule_named(bus, name), window_ns, to_ns), _TIMEOUT_S)
        return reply({key: value for key, value in answer.items() if key not in ("firings", "resolutions", "events")})

    return routes


def _period(window: Window | None, from_ns: int | None, to_ns: int | None, default_ns: int) -> tuple[int, int]:
    """Return the length of the time that is asked for and its end, 0 = now; nanoseconds."""
    if from_ns is None and to_ns is None:
        length_ns = default_ns if window is None else window.ns
        if length_ns > _MAX_WINDOW_NS:
            raise Rejected("window: is over 30d")
        return length_ns, 0
    if window is not None:
        raise Rejected("window: cannot stand beside from and to")
    if from_ns is None or to_ns is None:
        raise Rejected(f"{'from' if from_ns is None else 'to'}: is missing; from and to belong together")
    if to_ns - from_ns < SECOND:
        raise Rejected("to: is not at least 1s after from")
    if to_ns - from_ns > _MAX_WINDOW_NS:
        raise Rejected("to: is over 30d after from")
    return to_ns - from_ns, to_ns
