"""What answers about metrics have in common: coverage, the error of quantiles, and exemplars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokentrace.metrics import Aggregates, Answer, CustomMetric
from tokentrace.metrics.latency import quantile_error
from tokentrace.rollup import RELATIVE_ERROR
from tokentrace.units import SECOND, nusd_to_usd, render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.metrics_query import find_exemplars, missing

#: Group, or the first word of a metric -> (column whose largest values are exemplars, key in the answer, conversion).
_TAILS: Mapping[str, tuple[str, str, Callable[[int], float]]] = {
    "cost": ("cost_nusd", "cost_usd", nusd_to_usd),
    "latency": ("latency_ns", "latency_ms", lambda ns: ns / 1e6),
    "ttft": ("ttft_ns", "ttft_ms", lambda ns: ns / 1e6),
}


def largest_error(
    answered: Answer,
    fields: Iterable[str],
    custom: Iterable[CustomMetric] = (),
    others: Iterable[Aggregates] = (),
) -> float:
    """
    Return an upper bound of the relative error of every quantile in the answer; 0 = all are exact.

    Args:
        others: Groups of the answer that are added up.
    """
    parts = [answered.total, *answered.groups.values(), *others]
    for point in answered.points:
        parts += [point.total, *point.groups.values()]
    summaries = [part.custom[metric.name].summary for part in parts for metric in custom if metric.name in part.custom]
    errors = [quantile_error(part, field) for part in parts for field in fields]
    return max([0.0, *errors, *(0.0 if summary.exact else RELATIVE_ERROR for summary in summaries)])


async def shown_exemplars(store: StoreReader, name: str, question: MetricsQuery, answered: Answer) -> dict[str, Any]:
    if name not in _TAILS:
        return {}
    column, unit, shown = _TAILS[name]
    return {
        "exemplars": [
            {
                "trace_id": exemplar.trace_id,
                "span_id": exemplar.span_id,
                "name": exemplar.name,
                "started_at": render_instant(exemplar.started_ns),
                unit: shown(exemplar.value),
            }
            for exemplar in await find_exemplars(store, question, answered, column)
        ]
    }


def coverage(answered: Answer) -> dict[str, Any]:
    """Return the fields that say which interval the numbers cover, in event time, and what is missing from them."""
    return {
        "from": render_instant(answered.from_s * SECOND),
        "to": render_instant(answered.to_s * SECOND),
        "since": render_instant(answered.since_ns) if answered.since_ns else None,
        **({"folded": answered.folded} if answered.folded else {}),
    } | missing(answered)
