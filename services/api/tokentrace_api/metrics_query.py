"""A query for metrics: parsed from parameters, answered by the aggregators or, for attributes, from stored spans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Rejected, Unavailable, shorten
from tokentrace.metrics import ALL_KINDS, GROUPABLE, Aggregates, Answer, CustomMetric, Query
from tokentrace.records import KINDS
from tokentrace.units import SECOND
from tokentrace_api.parameters import Parameters, parse_window
from tokentrace_api.reads import Exemplar, Where, aggregates_by, custom_values_by, exemplars

if TYPE_CHECKING:
    from tokentrace_api.service import Api

FILTERS = ("model", "provider", "caller", "name", "status")
ALLOWED = ("window", "groupby", "kind", *FILTERS)
_PREFIX = "attr."
#: Exemplars are left out of the answer if finding them takes longer, seconds.
_EXEMPLARS_S = 0.2


class MetricsQuery(NamedTuple):
    """
    A parsed query for metrics.

    Attributes:
        window: The window as the client wrote it, such as ``1h``.
        query: The interval, kinds, filters and grouping by dimension.
        attribute: The attribute to group by; "" = group by a dimension or not at all.
        filters: Attribute -> value in text form that a span must have.
    """

    window: str
    query: Query
    attribute: str = ""
    filters: Mapping[str, str] = {}

    @property
    def groupby(self) -> str:
        """The dimension or attribute to group by; "" = no groups."""
        return self.attribute or self.query.groupby

    @property
    def now_ns(self) -> int:
        """The time of the query, Unix nanoseconds."""
        return self.query.now_s * SECOND

    def where(self, answered: Answer) -> Where:
        """Return the condition for the stored spans in the interval of *answered*."""
        return Where(replace(self.query, from_s=answered.from_s, to_s=answered.to_s), self.filters)


def parse_metrics_query(parameters: Parameters, now_ns: int | None = None) -> MetricsQuery:
    """
    Parse the parameters of a metrics request.

    Args:
        now_ns: Time of the query, Unix nanoseconds; None = now.

    Raises:
        Rejected: A parameter is not valid; the text names it.
    """
    window, window_ns = parse_window(parameters)
    for name in ("kind", "groupby"):
        if parameters.get(name) == "":
            raise Rejected(f"{name}: is empty")
    kind = parameters.get("kind", "")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"kind: {shorten(kind)!r} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    groupby = parameters.get("groupby", "")
    attribute = "" if groupby in GROUPABLE else groupby.removeprefix(_PREFIX)
    if groupby and not attribute and groupby not in GROUPABLE:
        raise Rejected("groupby: the name of the attribute after attr. is missing")
    now_s = (time.time_ns() if now_ns is None else now_ns) // SECOND
    query = Query(
        from_s=now_s - -(-window_ns // SECOND),
        # The current second is part of the window, so that spans that have just ended are counted.
        to_s=now_s + 1,
        now_s=now_s,
        kind=kind or "llm",
        only_kind=bool(kind) and kind != ALL_KINDS,
        filters={name: parameters[name] for name in FILTERS if name in parameters},
        groupby="" if attribute else groupby,
    )
    filters = {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}
    return MetricsQuery(window, query, attribute, filters)


async def answer(
    api: Api,
    metrics_query: MetricsQuery,
    fields: Sequence[str] = (),
    *,
    by_model: bool = False,
    custom: Sequence[CustomMetric] = (),
) -> Answer:
    """
    Compute the aggregates over all matching spans and, if the query groups, of each group.

    Args:
        fields: Names of the distributions to compute: latency, ttft, prompt, completion, score.
        by_model: Compute sums by model as well.
        custom: Custom metrics to compute.

    Raises:
        Unavailable: No aggregator answers, or the store does not.
    """
    names = [metric.name for metric in custom]
    query = replace(metrics_query.query, fields=list(fields), by_model=by_model, custom=names)
    answered = await api.aggregators.query(query)
    if not metrics_query.attribute and not metrics_query.filters:
        return answered
    where, now_ns, key = metrics_query.where(answered), metrics_query.now_ns, metrics_query.groupby

    async def from_store(key: str, fields: Sequence[str], *, attribute: bool = False) -> dict[str, Aggregates]:
        groups = await api.read(lambda store: aggregates_by(store, where, key, fields, now_ns, attribute=attribute))
        for metric in custom:
            work = partial(custom_values_by, where=where, metric=metric, key=key, now_ns=now_ns, attribute=attribute)
            custom_values = await api.read(work)
            for name, custom_value in custom_values.items():
                groups.setdefault(name, Aggregates()).custom[metric.name] = custom_value
        return dict(sorted(groups.items()))

    if metrics_query.filters:
        answered.total = (await from_store("", fields)).get("", Aggregates())
        answered.models = await from_store("model", ()) if by_model else {}
    if key:
        answered.groups = await from_store(key, fields, attribute=bool(metrics_query.attribute))
    await note_since(api, metrics_query, answered)
    return answered


async def note_since(api: Api, metrics_query: MetricsQuery, answered: Answer) -> None:
    """Set ``since_ns`` of *answered* if the stored spans, from which a part was computed, do not cover the window."""
    since_ns = await api.read(lambda store: store.shown_since(metrics_query.now_ns))
    if since_ns > answered.from_s * SECOND:
        answered.since_ns = max(answered.since_ns, since_ns)


async def find_exemplars(api: Api, metrics_query: MetricsQuery, answered: Answer, column: str) -> list[Exemplar]:
    """Find up to three spans with the largest *column*, each of another trace; none if that takes too long."""
    where, now_ns = metrics_query.where(answered), metrics_query.now_ns
    try:
        return await api.read(lambda store: exemplars(store, where, column, now_ns, _EXEMPLARS_S))
    except Unavailable:
        return []


def missing(answered: Answer) -> dict[str, Any]:
    """Return the fields that mark an answer as incomplete; empty if every shard sent a result."""
    return {"incomplete": True, "missing_shards": answered.missing_shards} if answered.missing_shards else {}
