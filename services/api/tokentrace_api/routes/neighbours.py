"""``GET /traces/{id}/neighbours``: which traces stand before and after a trace in a list."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import Query as QueryParams
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.responses import Response

from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import choice
from tokentrace_api.reads import RANKS, find_place
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.searching import StoredSearchParams
from tokentrace_api.routes.traces import TraceId

_Order: Any = choice(("started", *RANKS))


class NeighboursParams(StoredSearchParams):
    """The list: its filters and its order."""

    order: _Order = Field("started", description="The order of the list, as in `GET /traces`.")


class Neighbours(msgspec.Struct):
    """
    The place of a trace in a list.

    Attributes:
        previous, next: Ids of the traces before and after it; null if it is the first or the last, or if the list does
            not have it.
        position: Its number in the list, from 1; null = the list does not have it.
        total: Number of traces in the list.
        searched_until: Present only if there was too much to search: the list has only traces that started after this.
    """

    trace_id: str
    previous: str | None
    next: str | None
    position: Natural | None
    total: Natural
    searched_until: InstantText | UnsetType = UNSET


_NEIGHBOURS = operation(
    "getTraceNeighbours",
    "Get the traces before and after a trace in a list",
    "The list is that of `GET /traces` with the same filters and order, of the newest 1,000,000 spans that match.",
    Answer(
        Neighbours,
        "Its place in the list.",
        {"trace_id": "t1", "previous": "t2", "next": "t0", "position": 2, "total": 1046},
    ),
    errors={400: "order: 'name' is none of started, cost, duration, tokens", 503: "span store: is not open yet"},
)


def router(store: StoreReader) -> Router:
    """Return the route, to be registered before ``/traces/{id}``."""
    routes = Router("traces")

    @routes.get("/traces/{trace_id:path}/neighbours", **_NEIGHBOURS)
    async def neighbours(trace_id: TraceId, params: Annotated[NeighboursParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        search = params.search_at(now_ns)
        place = await store.read(lambda spans: find_place(spans, search, params.order, trace_id, now_ns))
        until_ns = place.searched_until_ns
        return reply(
            Neighbours(
                trace_id,
                place.previous,
                place.following,
                place.position,
                place.total,
                UNSET if until_ns is None else render_instant(until_ns),
            )
        )

    return routes
