"""``GET /coverage``: what each service tells about its calls, what is missing, and what to change."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from fastapi import Query as QueryParams
from msgspec import UNSET, Meta, UnsetType
from pydantic import Field
from starlette.responses import Response

from tokentrace.pricing import Pricer
from tokentrace.rollup import UNKNOWN
from tokentrace.service.contract import Answer, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import SECOND, render_duration, render_instant
from tokentrace_api.coverage_gaps import What, silence_of
from tokentrace_api.coverage_query import Coverage, Sender, cover
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_params import interval_of
from tokentrace_api.parameters import Count, Duration, Moment, Text
from tokentrace_api.reads import MOST_CALLS, MOST_PAIRED, SAMPLED, Quiet
from tokentrace_api.routes.answers import InstantText, Natural

DEFAULT_LIMIT, MAX_LIMIT = 100, 500


class CoverageParams(Params):
    """Over which interval and of whom the calls are looked at."""

    window: Duration = Field(
        cast(Any, "24h"), description="Length of the window, which ends now: `1h`, `24h`, `7d`; at least `1s`."
    )
    from_: Moment = Field(
        None,
        alias="from",
        description="Beginning of the interval, instead of `window`: calls that ended at or after this instant.",
        examples=["2026-03-15T13:00:00Z"],
    )
    to: Moment = Field(
        None,
        description="End of the interval that begins at `from`: calls that ended before this instant; now if absent.",
        examples=["2026-03-15T14:00:00Z"],
    )
    caller: Text = Field(
        None, description="Only calls of this caller; empty or `unknown` = calls without one.", examples=["checkout"]
    )
    limit: Count = Field(DEFAULT_LIMIT, description=f"Number of rows; over {MAX_LIMIT} counts as {MAX_LIMIT}.")


class CoverageShare(msgspec.Struct):
    """How many calls tell a fact, of those that could; ``share`` is null if there are none that could."""

    calls: Natural
    of: Natural
    share: Annotated[float, Meta(ge=0, le=1)] | None


class CoverageCost(msgspec.Struct):
    """
    How far reported costs agree with our prices.

    Attributes:
        reported: Number of calls whose cost is the one that they report.
        compared: Number of the newest calls that report a cost and have a price.
        differing: Number of those where the two differ by more than 1 %.
    """

    reported: Natural
    compared: Natural
    differing: Natural


class CoverageGap(msgspec.Struct):
    """
    Something that is missing or told twice.

    Attributes:
        calls: Number of calls concerned.
        advice: What to change, for the owner of the service.
    """

    what: What
    calls: Natural
    advice: str


class CoverageRow(msgspec.Struct, kw_only=True):
    """
    The calls of one service that came from one instrumentation by one way in.

    Attributes:
        scope: The instrumentation that the spans name; "" = none.
        source: The way in: reporter, spans, mist, costkatana, nats or otlp.
        emitter: The program or library that this is, if it is known.
        usage: Calls that tell what they used, of those that succeeded.
        cached: Calls with cached tokens, of those with token counts.
        cache_1h: Calls that tell tokens kept for an hour, of those that write to a cache.
        ttft: Calls with a time to the first token.
        streamed_ttft: The same, of the newest calls that say that they streamed; absent if none does.
        session, user: Calls with a session and with a user.
        response_id: Calls with a response id, of those that succeeded.
        possible_duplicates: Number of the newest calls that another instrumentation may have told too. They count: this
            is a guess, by provider, model, status, tokens and time.
        gaps: What is missing, that which distorts costs first.
    """

    caller: str
    scope: str
    source: str
    emitter: str
    calls: Natural
    usage: CoverageShare
    cached: CoverageShare
    cache_1h: CoverageShare
    ttft: CoverageShare
    streamed_ttft: CoverageShare | UnsetType = UNSET
    session: CoverageShare
    user: CoverageShare
    response_id: CoverageShare
    cost: CoverageCost
    possible_duplicates: Natural
    first_seen: InstantText
    last_seen: InstantText
    gaps: list[CoverageGap]


class SilentCaller(msgspec.Struct, kw_only=True):
    """
    A service that used to send calls and does not any more.

    Attributes:
        scope: Present if only this instrumentation of it is silent.
        last_call, last_span: Event times of its last call, and of its last span of any kind.
        longest_pause: The longest pause between two calls before.
    """

    caller: str
    scope: str | UnsetType = UNSET
    last_call: InstantText
    last_span: InstantText
    longest_pause: str
    advice: str


class CoverageAnswer(msgspec.Struct, kw_only=True):
    """
    What arrives, the service with the most calls first.

    Attributes:
        more: Whether there are more rows.
        silent: Services whose present pause is over twice the longest one before, and over 20 minutes for a store that
            reaches back a week; at most 100, the one that called last first.
        searched_from: Present only if there was too much to search: calls before this instant were not looked at.
    """

    from_: InstantText = msgspec.field(name="from")
    to: InstantText
    rows: list[CoverageRow]
    count: Natural
    more: bool
    silent: list[SilentCaller]
    searched_from: InstantText | UnsetType = UNSET


_ADVICE = (
    '50 of 950 calls do not tell what they used, so they have no price: pass stream_options={"include_usage": True} to '
    "streamed calls of OpenAI, because most calls without usage are streams, and read streams to their end."
)


def _share(calls: int, of: int) -> CoverageShare:
    return CoverageShare(calls, of, calls / of if of else None)


_EXAMPLE: dict[str, Any] = {
    "from": "2026-03-14T14:23:01.000Z",
    "to": "2026-03-15T14:23:01.000Z",
    "rows": [
        {
            "caller": "checkout",
            "scope": "openinference.instrumentation.openai",
            "source": "otlp",
            "emitter": "OpenInference",
            "calls": 1000,
            "usage": {"calls": 900, "of": 950, "share": 900 / 950},
            "cached": {"calls": 450, "of": 900, "share": 0.5},
            "cache_1h": {"calls": 0, "of": 0, "share": None},
            "ttft": {"calls": 500, "of": 1000, "share": 0.5},
            "streamed_ttft": {"calls": 50, "of": 50, "share": 1.0},
            "session": {"calls": 1000, "of": 1000, "share": 1.0},
            "user": {"calls": 1000, "of": 1000, "share": 1.0},
            "response_id": {"calls": 950, "of": 950, "share": 1.0},
            "cost": {"reported": 0, "compared": 0, "differing": 0},
            "possible_duplicates": 0,
            "first_seen": "2026-03-14T14:30:00.120Z",
            "last_seen": "2026-03-15T14:22:59.017Z",
            "gaps": [{"what": "usage", "calls": 50, "advice": _ADVICE}],
        }
    ],
    "count": 1,
    "more": False,
    "silent": [],
}
_COVERAGE = operation(
    "getCoverage",
    "Show what each service tells about its calls",
    f"""
    Calls to models by service, instrumentation and way in: how many tell their usage, cached tokens, the time to the
    first token, session, user and response id; whether reported costs agree with our prices; what may be told twice;
    which service has fallen silent. Each gap has a sentence that says what to change. At most the newest
    {MOST_CALLS:,} calls are added up. Streams and costs are those of the newest calls of each row, {SAMPLED} at most,
    and possible duplicates are looked for among the newest {MOST_PAIRED:,} calls.
    """,
    Answer(CoverageAnswer, "What arrives.", _EXAMPLE),
    errors={400: "to: needs from", 503: "span store: is not open yet"},
)


def router(store: StoreReader, pricer: Pricer) -> Router:
    """Return the route; *pricer* must have the prices that ingest has."""
    routes = Router("traces")

    @routes.get("/coverage", **_COVERAGE)
    async def coverage(params: Annotated[CoverageParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        interval = interval_of(params, now_ns // SECOND)
        from_ns, to_ns = interval.from_s * SECOND, interval.to_s * SECOND
        limit = min(params.limit, MAX_LIMIT)
        found = await store.read(lambda spans: cover(spans, pricer, from_ns, to_ns, params.caller, limit, now_ns))
        return reply(_answer(found, from_ns, to_ns))

    return routes


def _answer(found: Coverage, from_ns: int, to_ns: int) -> CoverageAnswer:
    return CoverageAnswer(
        from_=render_instant(from_ns),
        to=render_instant(to_ns),
        rows=[_row(sender) for sender in found.senders],
        count=len(found.senders),
        more=found.more,
        silent=[_silent(quiet, to_ns) for quiet in found.silent],
        searched_from=UNSET if found.searched_from_ns is None else render_instant(found.searched_from_ns),
    )


def _row(sender: Sender) -> CoverageRow:
    row, looked = sender.told, sender.looked
    return CoverageRow(
        caller=row.caller or UNKNOWN,
        scope=row.scope,
        source=row.source,
        emitter=sender.emitter.name,
        calls=row.calls,
        usage=_share(row.used, row.ok),
        cached=_share(row.cached, row.counted),
        cache_1h=_share(row.writes_1h, row.writes),
        ttft=_share(row.ttft, row.calls),
        streamed_ttft=_share(looked.streamed_ttft, looked.streamed) if looked.streamed else UNSET,
        session=_share(row.sessions, row.calls),
        user=_share(row.users, row.calls),
        response_id=_share(row.responses, row.ok),
        cost=CoverageCost(row.reported, looked.compared, looked.differing),
        possible_duplicates=sum(pairs for _, pairs in looked.pairs),
        first_seen=render_instant(row.first_ns),
        last_seen=render_instant(row.last_ns),
        gaps=[CoverageGap(*gap) for gap in sender.gaps],
    )


def _silent(quiet: Quiet, to_ns: int) -> SilentCaller:
    return SilentCaller(
        caller=quiet.caller or UNKNOWN,
        scope=quiet.scope or UNSET,
        last_call=render_instant(quiet.last_ns),
        last_span=render_instant(quiet.last_span_ns),
        longest_pause=render_duration(quiet.longest_ns),
        advice=silence_of(quiet, to_ns),
    )
