"""``GET /prices/explain``: how a model is priced, and what a call would cost."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar

import msgspec
from fastapi import Query as QueryParams
from pydantic import Field, WithJsonSchema
from starlette.responses import Response

from tokentrace.pricing import Pricer, explain
from tokentrace.service.contract import Answer, Params, Router, operation
from tokentrace.service.web import reply
from tokentrace_api.parameters import Moment, Text
from tokentrace_api.routes.receipt import Money, ReceiptLine, ReceiptPrice


class PriceRate(msgspec.Struct):
    """The rate of a unit: *rate_usd* US dollars for every *per* units, in calls with more than *above* input tokens."""

    unit: str
    rate_usd: Money
    per: int
    above: int


class PriceExplanation(msgspec.Struct):
    """
    How a call is priced; ``lines`` and ``rounding`` add up to ``cost_usd``.

    Attributes:
        usage: What the call used, by unit.
        cost_usd: US dollars; null if the cost is unknown, or if no usage was asked for.
        cost_source: As in spans; null if no usage was asked for and the model is not free.
        cost_reason: Why the cost is unknown, lacks a part or is 0.
        assumed: What was assumed because the question does not say it; null = nothing.
        rates: Every rate of the price; empty if there is none.
        rounding: Difference between the sum of the lines and the cost, US dollars.
    """

    model: str
    provider: str
    usage: dict[str, int]
    pricing_context: dict[str, str]
    cost_usd: Money | None
    cost_source: str | None
    cost_reason: str | None
    assumed: str | None
    price: ReceiptPrice
    rates: list[PriceRate]
    lines: list[ReceiptLine]
    rounding: Money


_EXAMPLE: dict[str, Any] = {
    "model": "openai/gpt-4o:nitro",
    "provider": "openrouter",
    "usage": {"input_tokens": 512, "output_tokens": 128},
    "pricing_context": {},
    "cost_usd": "0.00256",
    "cost_source": "priced",
    "cost_reason": None,
    "assumed": "standard price: no service tier, processing or speed was reported",
    "price": {
        "source": "openrouter:openai/gpt-4o@genai-prices-0.2.3",
        "version": "genai-prices-0.2.3",
        "matched_model": "openai/gpt-4o",
        "priced_at": "2026-03-15T14:23:02.261Z",
        "tier": None,
        "matched": "openrouter suffix :nitro -> openai/gpt-4o; openrouter:openai/gpt-4o",
        "variant": None,
        "period": None,
    },
    "rates": [
        {"unit": "input_tokens", "rate_usd": "2.5", "per": 1000000, "above": 0},
        {"unit": "output_tokens", "rate_usd": "10", "per": 1000000, "above": 0},
    ],
    "lines": [
        {"unit": "input_tokens", "amount": 512, "rate_usd": "2.5", "per": 1000000, "cost_usd": "0.00128"},
        {"unit": "output_tokens", "amount": 128, "rate_usd": "10", "per": 1000000, "cost_usd": "0.00128"},
    ],
    "rounding": "0",
}
_EXPLAIN = operation(
    "explainPrice",
    "Explain a price",
    "The price of a model under the names that spans give it, and the cost of a call that used what `usage.` says. "
    "Amounts of money are decimal text.",
    Answer(PriceExplanation, "The price.", _EXAMPLE),
    errors={400: "usage.input_tokens: 'many' is not a whole number of 0 to 2199023255552"},
)


class ExplainParams(Params):
    """The model, and what a call to it used and said of itself."""

    prefixes: ClassVar[tuple[str, ...]] = ("usage.", "context.")
    model: Text = Field(None, description="Model, as spans name it.", examples=["gpt-4o"])
    provider: Text = Field(None, description="Provider, as spans name it.", examples=["openai"])
    at: Moment = Field(None, description="Time whose prices apply; if absent, now.", examples=["2026-03-15T14:00:00Z"])
    usage: Annotated[dict[str, str], WithJsonSchema({"type": "string", "examples": ["1000"]})] = Field(
        default_factory=dict,
        alias="usage.<key>",
        description="Any number of counts by unit, such as `usage.input_tokens=1000`; `usage.prompt_tokens`, "
        "`usage.comp_tokens`, `usage.reasoning_tokens` and `usage.total_tokens` name fields of a span.",
    )
    context: Annotated[dict[str, str], WithJsonSchema({"type": "string", "examples": ["flex"]})] = Field(
        default_factory=dict,
        alias="context.<key>",
        description="What else decides the price, such as `context.service_tier=flex`.",
    )


def router(pricer: Pricer) -> Router:
    """Return the route; *pricer* must have the prices that ingest has."""
    routes = Router("prices")

    @routes.get("/prices/explain", **_EXPLAIN)
    async def explain_price(params: Annotated[ExplainParams, QueryParams()]) -> Response:
        at_ns = time.time_ns() if params.at is None else params.at
        return reply(explain(pricer, params.model or "", params.provider or "", params.usage, params.context, at_ns))

    return routes
