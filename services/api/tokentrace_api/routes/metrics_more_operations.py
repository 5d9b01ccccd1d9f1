"""The part of the OpenAPI document that describes distributions, evals, and the explanation of a cost."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tokentrace.service.contract import Answer, operation
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.metrics_operations import Change, Compared, Coverage


class Distribution(msgspec.Struct, kw_only=True):
    """
    How many values are in each interval.

    Attributes:
        counts: For each interval, the number of values above its lower edge, up to and including its upper edge.
        zero: Number of values that are exactly 0, which are in no interval.
    """

    count: Natural
    counts: list[Natural]
    zero: Natural


class HistogramAnswer(Compared, kw_only=True):
    """
    The distribution of a number of spans. With ``groupby`` there is ``by_<dimension or attribute>``: value -> count,
    counts, zero, p50 and p95. ``previous`` has the same intervals.

    Attributes:
        unit: `ms`, `usd`, `tokens` or `score`.
        edges: The edges of the intervals, ascending, one more than there are intervals; empty without values over 0.
        counts, zero: As for `Distribution`.
        min, max: No value is below or above these.
        quantile_error: Upper bound of the relative error of the quantiles.
    """

    window: str | None
    metric: str
    unit: Literal["ms", "usd", "tokens", "score"]
    edges: list[float]
    count: Natural
    counts: list[Natural]
    zero: Natural
    min: float | None
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    quantile_error: float


class HeatmapPoint(Distribution, kw_only=True):
    """The distribution in one step; ``partial`` is as for a series."""

    at: InstantText
    partial: bool | UnsetType = UNSET


class HeatmapAnswer(Coverage, kw_only=True):
    """The distribution of a number of spans in steps, all with the same intervals; ``edges`` are as for a histogram."""

    window: str | None
    metric: str
    unit: Literal["ms", "usd", "tokens", "score"]
    step: str
    edges: list[float]
    points: list[HeatmapPoint]


class EvalName(msgspec.Struct, kw_only=True):
    """
    A name of evals.

    Attributes:
        metric: The name under which its numbers can be asked for.
        count: Number of spans that have it.
        last_at: When the newest of them ended.
    """

    name: str
    metric: str
    count: Natural
    last_at: InstantText


class EvalNames(Coverage, kw_only=True):
    """The evals that spans have, the most frequent first."""

    window: str | None
    evals: list[EvalName]


class CostPart(msgspec.Struct, kw_only=True):
    """
    A part of the change of a cost, US dollars.

    Attributes:
        part: `calls` = there are more or fewer; `tokens_per_call` = they are larger or smaller; `mix` = they went to
            other models; `price` = a token of the same model costs more or less, for example because more of them are
            output; `other_kinds` = spans of other kinds, such as tools.
    """

    part: Literal["calls", "tokens_per_call", "mix", "price", "other_kinds"]
    usd: float


class ExplainedModel(msgspec.Struct, kw_only=True):
    """The change of one model, and what it adds to the parts ``mix`` and ``price``, US dollars."""

    cost_usd: Change
    calls: Change
    tokens: Change
    mix_usd: float | None
    price_usd: float | None


class CostNumbers(msgspec.Struct, kw_only=True):
    """
    The numbers from which a cost is explained.

    Attributes:
        cost_usd: The cost of all kinds of spans but roll-up kinds.
        calls, tokens, tokens_per_call: Those of the queried kind.
        usd_per_million_tokens: The cost of the calls for a million of their tokens.
        unpriced_span_count, partly_priced_span_count: Spans without a cost, and those whose cost lacks a part.
    """

    cost_usd: float | None
    calls: Natural
    tokens: Natural | None
    tokens_per_call: float | None
    usd_per_million_tokens: float | None
    unpriced_span_count: Natural
    partly_priced_span_count: Natural


class EarlierCost(CostNumbers, kw_only=True):
    """The numbers of the other side, and what they cover."""

    from_: InstantText = msgspec.field(name="from")
    to: InstantText
    since: InstantText | None


class CostChanges(msgspec.Struct, kw_only=True):
    """The changes of the numbers."""

    cost_usd: Change
    calls: Change
    tokens: Change
    tokens_per_call: Change
    usd_per_million_tokens: Change


class CostExplanation(Coverage, kw_only=True):
    """
    Why the cost of two sides differs; the numbers are as in ``CostNumbers``.

    Attributes:
        parts: The parts of the change of the cost. They add up to it exactly. Null if a cost is not known.
    """

    window: str | None
    cost_usd: float | None
    calls: Natural
    tokens: Natural | None
    tokens_per_call: float | None
    usd_per_million_tokens: float | None
    unpriced_span_count: Natural
    partly_priced_span_count: Natural
    previous: EarlierCost
    change: CostChanges
    parts: list[CostPart] | None
    by_model: dict[str, ExplainedModel]


_COVERAGE = {"from": "2026-03-15T13:23:01.000Z", "to": "2026-03-15T14:23:02.000Z", "since": None}
_EARLIER = {"from": "2026-03-15T12:23:00.000Z", "to": "2026-03-15T13:23:01.000Z", "since": None}
_AWAY = {503: "no aggregator answers"}
_WITHOUT = {404: "'error_rate' has no histogram; latency, ttft, cost, tokens have one"}
_UNPRICED = {"unpriced_span_count": 0, "partly_priced_span_count": 0}
_HISTOGRAM: dict[str, Any] = {
    "window": "1h",
    "metric": "latency",
    "unit": "ms",
    "edges": [500.0, 1000.0, 2000.0],
    "count": 12,
    "counts": [8, 4],
    "zero": 0,
    "min": 520.0,
    "max": 1730.0,
    "p50": 820.0,
    "p95": 1610.0,
    "p99": 1700.0,
    "quantile_error": 0.0,
    **_COVERAGE,
}
_HEATMAP: dict[str, Any] = {
    "window": "1h",
    "metric": "latency",
    "unit": "ms",
    "step": "30m",
    "edges": [500.0, 1000.0, 2000.0],
    "points": [
        {"at": "2026-03-15T13:23:01.000Z", "count": 5, "counts": [4, 1], "zero": 0, "partial": True},
        {"at": "2026-03-15T13:30:00.000Z", "count": 7, "counts": [4, 3], "zero": 0},
    ],
    **_COVERAGE,
}
_EXPLANATION: dict[str, Any] = {
    "window": "1h",
    "cost_usd": 1.1,
    "calls": 110,
    "tokens": 110000,
    "tokens_per_call": 1000,
    "usd_per_million_tokens": 10,
    **_UNPRICED,
    **_COVERAGE,
    "previous": {
        "cost_usd": 1,
        "calls": 100,
        "tokens": 100000,
        "tokens_per_call": 1000,
        "usd_per_million_tokens": 10,
        **_UNPRICED,
        **_EARLIER,
    },
    "change": {
        "cost_usd": {"absolute": 0.1, "ratio": 0.1},
        "calls": {"absolute": 10, "ratio": 0.1},
        "tokens": {"absolute": 10000, "ratio": 0.1},
        "tokens_per_call": {"absolute": 0, "ratio": 0},
        "usd_per_million_tokens": {"absolute": 0, "ratio": 0},
    },
    "parts": [
        {"part": "calls", "usd": 0.1},
        {"part": "tokens_per_call", "usd": 0},
        {"part": "mix", "usd": 0},
        {"part": "price", "usd": 0},
        {"part": "other_kinds", "usd": 0},
    ],
    "by_model": {
        "gpt-4o": {
            "cost_usd": {"absolute": 0.1, "ratio": 0.1},
            "calls": {"absolute": 10, "ratio": 0.1},
            "tokens": {"absolute": 10000, "ratio": 0.1},
            "mix_usd": 0,
            "price_usd": 0,
        }
    },
}
GET_HISTOGRAM = operation(
    "getMetricHistogram",
    "Get the distribution of a number of spans",
    """
    `name` is `latency`, `ttft`, `cost` (of a call), `tokens`, `prompt_tokens`, `completion_tokens` (of a call) or
    `quality`. The intervals are of equal width on a logarithmic scale. Costs and tokens come from the stored spans.
    """,
    Answer(HistogramAnswer, "The distribution.", _HISTOGRAM),
    errors={400: "buckets: 0 is not from 2 to 200", **_WITHOUT, **_AWAY},
)
GET_HEATMAP = operation(
    "getMetricHeatmap",
    "Get the distribution of a number of spans in steps",
    "The same as a histogram for each step, with the same intervals in all steps.",
    Answer(HeatmapAnswer, "The distributions.", _HEATMAP),
    errors={400: "groupby: distributions in steps have one side and no groups", **_WITHOUT, **_AWAY},
)
LIST_EVALS = operation(
    "listEvals",
    "List the evals",
    """
    The names of all evals that spans have: numbers in the attributes `eval.<name>`, such as `eval.score`. The numbers
    of each are at `/metrics/eval.<name>`.
    """,
    Answer(
        EvalNames,
        "The evals.",
        {
            "window": "1h",
            "evals": [{"name": "score", "metric": "eval.score", "count": 180, "last_at": "2026-03-15T14:22:40.000Z"}],
            **_COVERAGE,
        },
    ),
    errors={400: "groupby: the list of evals is not grouped or compared", **_AWAY},
)
EXPLAIN_COST = operation(
    "explainCost",
    "Explain why a cost changed",
    """
    Splits the difference of two costs into calls, tokens per call, mix of models, and price, to the nano-dollar. The
    sides are those of `compare`, `compare_from` and `compare_to`, or `compare.<filter>`.
    """,
    Answer(CostExplanation, "The parts.", _EXPLANATION),
    errors={400: "compare: is missing; compare_from and compare_to, or compare.<filter>, are possible too", **_AWAY},
)
