"""Where the answers about metrics come from, and which metric a name stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace.metrics import (
    ALERT_METRICS,
    BREAKDOWNS,
    GROUPS,
    METRICS,
    REJECTED_METRIC,
    TRANSPORT_METRICS,
    CustomMetric,
    Metric,
    find_metric,
)
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.rejected_history import RejectedHistory


class Source(NamedTuple):
    """
    The sources of metrics.

    Attributes:
        aggregators: Answers queries by dimension.
        store: Answers queries by attribute.
        history: Counts firings and failed deliveries.
        refused: Counts refused spans.
        custom: Name -> custom metric.
    """

    aggregators: AggregatorClient
    store: StoreReader
    history: AlertHistory
    refused: RejectedHistory
    custom: Mapping[str, CustomMetric]


def find_known(source: Source, name: str) -> tuple[str, Metric, list[CustomMetric]]:
    """
    Return (canonical name, metric, custom metrics that the query must name).

    Raises:
        Rejected: No metric is called *name*; the text lists all names.
    """
    if name in source.custom:
        custom = source.custom[name]
        return name, custom.as_metric(), [custom]
    built_in = find_metric(name)
    if built_in is None:
        known = ", ".join(
            [
                *GROUPS,
                *METRICS,
                *BREAKDOWNS,
                *TRANSPORT_METRICS,
                *ALERT_METRICS,
                REJECTED_METRIC,
                *source.custom,
                "attr.<key>",
            ]
        )
        raise Rejected(f"unknown metric {quoted(name)}; known are {known}", status=404)
    return *built_in, []
