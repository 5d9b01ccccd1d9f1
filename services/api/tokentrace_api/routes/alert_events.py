"""``GET /alerts/events``: firings and resolutions, and what became of their deliveries."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec
from fastapi import Query as QueryParams
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from tokentrace.bus import Bus
from tokentrace.errors import Rejected, TokentraceError, quoted
from tokentrace.records import AlertEvent, ListRules
from tokentrace.service.contract import Answer, Params, Router, operation, parsed
from tokentrace.service.web import reply
from tokentrace_api.alert_history import AlertHistory, Outcome, StoredEvent
from tokentrace_api.alerter_client import ask
from tokentrace_api.parameters import Count, LastMoment, Moment, Text, choice
from tokentrace_api.routes.answers import InstantText, Natural

DEFAULT_LIMIT, MAX_LIMIT = 50, 200


OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


def _parse_outcomes(text: str) -> frozenset[str]:
    names = text.split(",")
    for name in names:
        if name not in OUTCOMES:
            raise Rejected(f"{quoted(name)} is none of {', '.join(OUTCOMES)}")
    return frozenset(names)


_Outcome = Annotated[
    frozenset[str] | None,
    parsed(_parse_outcomes),
    WithJsonSchema({"type": "string", "pattern": f"^({'|'.join(OUTCOMES)})(,({'|'.join(OUTCOMES)}))*$"}),
]
_Status: Any = choice(("firing", "resolved"))


class AlertEventsParams(Params):
    """Which events are listed, and which page of them."""

    rule: Text = Field(None, description="Only events of the rule of this name.", examples=["slow"])
    since: Moment = Field(None, description="Only events at or after this instant.", examples=["2026-03-15T14:00:00Z"])
    until: LastMoment = Field(
        None,
        description="Only events at or before this instant; one of whole milliseconds includes its millisecond.",
        examples=["2026-03-15T15:00:00Z"],
    )
    status: _Status = Field(None, description="Only `firing` or only `resolved` events.", examples=["firing"])
    outcome: _Outcome = Field(
        None,
        description="Only events whose delivery has this `outcome`; several are separated by commas: `retry,dead`.",
        examples=["dead"],
    )
    limit: Count = Field(DEFAULT_LIMIT, description=f"Events on a page; over {MAX_LIMIT} counts as {MAX_LIMIT}.")
    cursor: Text = Field(None, description="`next_cursor` of the previous page.")


class EventDelivery(msgspec.Struct, kw_only=True):
    """
    What became of the delivery of an event.

    Attributes:
        outcome: none = the rule does not ask for a delivery; pending = nothing was tried yet; retry = all attempts
            failed, and another one follows; delivered; dead = no attempt succeeded; expired = too old to be delivered;
            unknown = the records of that time are not kept any more.
        attempts: Number of attempts so far.
        channel: Type of the delivery, such as webhook; null without an attempt.
        destination: Where the event is delivered, of a URL only scheme, host and port; null without an attempt.
        error: Why the last attempt failed, or why there was none; "" = it did not fail.
        at: When the last attempt was made; null without an attempt.
    """

    outcome: Outcome
    attempts: Natural
    channel: str | None
    destination: str | None
    error: str
    at: InstantText | None


class ListedEvent(AlertEvent, frozen=True, kw_only=True):
    """
    A rule started firing, fires again or is resolved: the fields of the alert subjects, and its delivery.

    Attributes:
        fired_at: The instant for which the rule was evaluated.
        value: The metric at that instant, in its documented unit; null = there was no data.
        group: The instance of a grouped rule: the value of its ``group_by``.
        starts_at, ends_at: When the episode began and ended; ``ends_at`` is null for a firing.
        ended_by: What ended the episode: recovered, no_data, deleted, replaced, changed, removed, overflow or
            user_deleted; absent for a firing.
    """

    delivery: EventDelivery


class AlertEventPage(msgspec.Struct):
    """
    A page of events, newest first.

    Attributes:
        next_cursor: For the next page, with the same other parameters; null = there are no more events. A page may
            hold fewer events than asked for although there are more.
    """

    events: list[ListedEvent]
    count: Natural
    next_cursor: str | None


_FIRING: dict[str, Any] = {
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
    "delivery": {
        "outcome": "dead",
        "attempts": 13,
        "channel": "webhook",
        "destination": "https://hooks.example.com/...",
        "error": "status 500; given up after 13 attempts",
        "at": "2026-03-15T14:29:11.020Z",
    },
}
_EXAMPLE = {"events": [_FIRING], "count": 1, "next_cursor": "1773584581441000000-41"}
_EVENTS = operation(
    "listAlertEvents",
    "List firings and resolutions",
    """
    The events of all rules, deleted ones included, newest first, each with what became of its delivery. They are kept
    for 30 days.
    """,
    Answer(AlertEventPage, "A page of events.", _EXAMPLE),
    errors={400: "cursor: 'x' is not a cursor of an earlier answer", 503: "no answer from nats"},
)


def router(bus: Bus, history: AlertHistory) -> Router:
    """Return the route."""
    routes = Router("alerts")

    @routes.get("/alerts/events", **_EVENTS)
    async def events(params: Annotated[AlertEventsParams, QueryParams()]) -> Response:
        # What a filter leaves out is decided before a page is full, so the rules must be known then.
        silent = await _undelivered_rules(bus) if params.outcome else frozenset[tuple[str, str]]()

        def is_wanted(stored: StoredEvent) -> bool:
            if params.status not in (None, stored.event.status):
                return False
            return params.outcome is None or _outcome(stored, silent) in params.outcome

        page = await history.page(
            limit=min(params.limit, MAX_LIMIT),
            cursor=params.cursor or "",
            rule=params.rule,
            since_ns=params.since,
            until_ns=params.until,
            accept=is_wanted,
        )
        if not params.outcome and any(stored.outcome == "pending" for stored in page.items):
            silent = await _undelivered_rules(bus)
        listed = [_render(stored, silent) for stored in page.items]
        return reply(AlertEventPage(listed, len(listed), page.next or None))

    return routes


async def _undelivered_rules(bus: Bus) -> frozenset[tuple[str, str]]:
    """
    Return the rules without a delivery, by name and status; empty if no alerter answers.

    The queue says only up to which event it is done, so an event that nothing is to be done for seems to wait behind
    the event of another rule that is retried.
    """
    try:
        rules = await ask(bus, ListRules())
    except TokentraceError:
        return frozenset()
    return frozenset(
        (rule["name"], status)
        for rule in rules
        for status in ("firing", "resolved")
        if rule.get("delivery") is None or (status == "resolved" and rule.get("send_resolved") is False)
    )


def _outcome(stored: StoredEvent, silent: frozenset[tuple[str, str]]) -> Outcome:
    is_silent = stored.outcome == "pending" and (stored.event.alert, stored.event.status) in silent
    return "none" if is_silent else stored.outcome


def _render(stored: StoredEvent, silent: frozenset[tuple[str, str]]) -> ListedEvent:
    event, told = stored.event, stored.told
    delivery = EventDelivery(
        outcome=_outcome(stored, silent),
        attempts=told.attempts if told else 0,
        channel=told.last.channel if told else None,
        destination=told.last.destination if told else None,
        error=told.last.error if told else "",
        at=told.last.at if told else None,
    )
    return ListedEvent(**{name: getattr(event, name) for name in event.__struct_fields__}, delivery=delivery)
