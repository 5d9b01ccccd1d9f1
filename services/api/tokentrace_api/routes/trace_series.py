"""``GET /traces/series``: the traces of a list over time."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query as QueryParams
from msgspec import UNSET
from pydantic import Field
from starlette.responses import Response

from tokentrace.errors import Rejected, quoted
from tokentrace.service.contract import Router
from tokentrace.service.web import reply
from tokentrace.units import SECOND, render_duration, render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import OptionalDuration
from tokentrace_api.reads import MOST_STEPS, TraceSums, trace_series
from tokentrace_api.reads import TraceSeries as Found
from tokentrace_api.routes.searching import StoredSearchParams
from tokentrace_api.routes.shown_spans import sum_fields
from tokentrace_api.routes.traces_operations import GET_TRACE_SERIES, TracePoint, TraceSeries


class TraceSeriesParams(StoredSearchParams):
    """Which traces are added up, and in which steps."""

    step: OptionalDuration = Field(
        None,
        description="Length of a step, at least `1s`; if absent, a length that gives about 120 steps.",
        examples=["1m"],
    )


def router(store: StoreReader) -> Router:
    """Return the route; it must stand before that of ``/traces/{id}``, which matches its path too."""
    routes = Router("traces")

    @routes.get("/traces/series", **GET_TRACE_SERIES)
    async def series(params: Annotated[TraceSeriesParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        search, step = params.search_at(now_ns), params.step
        found = await store.read(lambda spans: trace_series(spans, search, None if step is None else step.ns, now_ns))
        if found.step_ns is None:
            raise Rejected(f"step: {quoted(step.text if step else '')} {_too_many(found)}")
        return reply(
            TraceSeries(
                from_=_instant(found.from_ns),
                to=_instant(found.to_ns),
                step=render_duration(found.step_ns),
                points=[
                    TracePoint(at=render_instant(each.start_ns), partial=each.partial or UNSET, **_fields(each.traces))
                    for each in found.steps
                ],
                searched_until=UNSET if found.searched_until_ns is None else render_instant(found.searched_until_ns),
                **_fields(found.total),
            )
        )

    return routes


def _fields(traces: TraceSums) -> dict[str, Any]:
    return {
        "trace_count": traces.traces,
        "ok_count": traces.traces - traces.errors,
        "error_count": traces.errors,
        **sum_fields(traces.sums),
    }


def _instant(ns: int | None) -> str | None:
    return None if ns is None else render_instant(ns)


def _too_many(found: Found) -> str:
    length_ns = (found.to_ns or 0) - (found.from_ns or 0)
    least_ns = -(-length_ns // ((MOST_STEPS - 1) * SECOND)) * SECOND
    return f"makes over {MOST_STEPS:,} points; the shortest for this range is {render_duration(least_ns)}"
