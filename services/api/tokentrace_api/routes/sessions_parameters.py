"""The query parameters of the routes that list, sum up and export sessions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tokentrace.service.contract import Params
from tokentrace.units import usd_to_nusd
from tokentrace_api.parameters import Amount, Count, LastMoment, Moment, OptionalCount, Text, choice
from tokentrace_api.reads import SESSION_ORDERS, SessionFilter

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
_STATUSES = ("active", "completed", "error")
_Order: Any = choice(tuple(SESSION_ORDERS))
_Status: Any = choice(_STATUSES)


class SessionFilterParams(Params):
    """Which sessions are meant."""

    from_: Moment = Field(None, alias="from", description="Earliest start.", examples=["2026-03-15T00:00:00Z"])
    to: LastMoment = Field(
        None,
        description="Latest start; an instant of whole milliseconds includes its millisecond.",
        examples=["2026-03-16T00:00:00Z"],
    )
    user_id: Text = Field(
        None, alias="userId", description="User of the session; empty = sessions without a user.", examples=["u-7"]
    )
    label: Text = Field(None, description="Text that the label contains, regardless of case.", examples=["chat"])
    status: _Status = Field(
        None, description="Status; `error` if a span failed or the session ended with an error.", examples=["completed"]
    )
    source: Text = Field(
        None,
        description="How the first span came: `reporter`, `spans`, `mist`, `costkatana` or `nats`.",
        examples=["costkatana"],
    )
    min_cost: Amount = Field(None, alias="minCost", description="Least cost, US dollars.", examples=[0.01])
    max_cost: Amount = Field(None, alias="maxCost", description="Greatest cost, US dollars.", examples=[10])
    min_spans: OptionalCount = Field(None, alias="minSpans", description="Least number of spans.", examples=[1])
    max_spans: OptionalCount = Field(None, alias="maxSpans", description="Greatest number of spans.", examples=[100])

    def wanted(self) -> SessionFilter:
        """Return the filters as a ``SessionFilter``."""
        return SessionFilter(
            user_id=self.user_id,
            label=self.label,
            status=self.status,
            source=self.source,
            since_ns=self.from_,
            until_ns=self.to,
            min_cost_nusd=None if self.min_cost is None else usd_to_nusd(self.min_cost),
            max_cost_nusd=None if self.max_cost is None else usd_to_nusd(self.max_cost),
            min_spans=self.min_spans,
            max_spans=self.max_spans,
        )


class SessionOrderParams(SessionFilterParams):
    """Which sessions are listed, and in which order."""

    order: _Order = Field(
        "started",
        description="Newest start first, or the largest cost, duration, number of tokens or of spans first.",
    )


class SessionPageParams(SessionOrderParams):
    """Which sessions are listed, in which order, and which page of them."""

    page: Count = Field(1, description="Page, from 1; 0 counts as 1.")
    limit: Count = Field(
        DEFAULT_LIMIT, description=f"Sessions on a page; below 1 counts as 1, over {MAX_LIMIT} as {MAX_LIMIT}."
    )
