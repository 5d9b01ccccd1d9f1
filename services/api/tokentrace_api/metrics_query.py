"""Queries for metrics: parsed from parameters, answered by the aggregators and, for attributes, from stored spans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from msgspec.structs import replace
from pydantic import Field

from tokentrace.errors import Rejected, Unavailable, quoted
from tokentrace.metrics import ALL_KINDS, Aggregates, Answer, CustomMetric, Query
from tokentrace.records import KINDS
from tokentrace.rollup import DIMENSIONS, UNKNOWN
from tokentrace.units import SECOND
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import ATTRIBUTE_PREFIX, AttributeParams, Duration, Text, with_ids
from tokentrace_api.reads import Exemplar, Where, aggregates_by, aggregates_in_steps, custom_values_by, exemplars
from tokentrace_api.store import Store

#: Time limit for finding exemplars, seconds.
_EXEMPLARS_S = 0.2
#: From this age of the last message that was folded on, an answer says how far it is behind, seconds.
BEHIND_S = 1.0


class MetricsParams(AttributeParams):
    """The parameters that say which spans are counted and how they are grouped."""

    window: Duration = Field(
        cast(Any, "1h"), description="Length of the window, which ends now: `1h`, `24h`, `7d`, `2h30m`; at least `1s`."
    )
    groupby: Text = Field(
        None,
        description=(
            "A dimension (`model`, `caller`, `provider`, `name`, `status`, `kind`), `user_id`, `session_id` or "
            "`attr.<key>`."
        ),
        examples=["model"],
    )
    kind: Text = Field(
        None,
        description=(
            "Kind of the spans that are counted, or `all`; `llm` when absent. Unless one kind is named, cost covers "
            "every kind except roll-up kinds, and quality covers every kind."
        ),
        examples=["all"],
    )
    model: Text = Field(None, description="Only spans of this model.", examples=["gpt-4o"])
    provider: Text = Field(None, description="Only spans of this provider.", examples=["openai"])
    caller: Text = Field(None, description="Only spans of this caller.", examples=["checkout"])
    name: Text = Field(None, description="Only spans with this name.", examples=["answer question"])
    status: Text = Field(None, description="Only spans with this status.", examples=["error"])
    user: Text = Field(None, description="Only spans of this user.", examples=["u-7"])
    user_id: Text = Field(None, description="The same as `user`.", examples=["u-7"])
    session: Text = Field(None, description="Only spans of this session.", examples=["s1"])
    session_id: Text = Field(None, description="The same as `session`.", examples=["s1"])

    def filters(self) -> dict[str, str]:
        """Return a map from each dimension that is filtered to the value that a span must have."""
        values = {
            "model": self.model,
            "provider": self.provider,
            "caller": self.caller,
            "name": self.name,
            "status": self.status,
        }
        # A span without a value is shown as unknown, so an empty filter asks for it.
        return {name: value or UNKNOWN for name, value in values.items() if value is not None}

    def stored(self) -> dict[str, str]:
        """Return the filters that the store answers: attribute, ``user_id`` or ``session_id`` -> value."""
        ids = {"user": self.user, "user_id": self.user_id, "session": self.session, "session_id": self.session_id}
        return with_ids(self.attributes, ids)


class MetricsQuery(NamedTuple):
    """
    A parsed query for metrics.

    Attributes:
        window: The window as the client wrote it, such as ``1h``.
        query: The interval, kinds, filters and grouping by dimension.
        attribute: The attribute to group by, ``user_id`` or ``session_id``; "" = by the dimension in *query*, if any.
        filters: Attribute -> the value that a span must have, in text form.
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


def parse_metrics_query(params: MetricsParams, now_ns: int) -> MetricsQuery:
    """
    Return the query that *params* describe.

    Args:
        now_ns: The end of the window: the broker's time, Unix nanoseconds.

    Raises:
        Rejected: A parameter is not valid; the text names it.
    """
    kind, groupby = params.kind, params.groupby
    for name, value in (("kind", kind), ("groupby", groupby)):
        if value == "":
            raise Rejected(f"{name}: is empty")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"kind: {quoted(kind)} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    attribute = "" if groupby is None or groupby in DIMENSIONS else groupby.removeprefix(ATTRIBUTE_PREFIX)
    if groupby and not attribute and groupby not in DIMENSIONS:
        raise Rejected("groupby: the name of the attribute after attr. is missing")
    now_s = now_ns // SECOND
    query = Query(
        from_s=now_s - -(-params.window.ns // SECOND),
        # The running second is part of the window, so that a span that has just ended is counted.
        to_s=now_s + 1,
        now_s=now_s,
        kind=kind or "llm",
        only_kind=bool(kind) and kind != ALL_KINDS,
        filters=params.filters(),
        groupby="" if attribute else groupby or "",
    )
    return MetricsQuery(params.window.text, query, attribute, params.stored())


async def answer(
    aggregators: AggregatorClient,
    store: StoreReader,
    metrics_query: MetricsQuery,
    fields: Sequence[str] = (),
    *,
    by_model: bool = False,
    custom: Sequence[CustomMetric] = (),
) -> Answer:
    """
    Return the aggregates of all matching spans and, if the query groups, of each group.

    The store answers if the query concerns attributes, or filters by a value of which aggregators have only a part.

    Args:
        fields: Names of the distributions to compute: latency, ttft, prompt, completion, score.
        by_model: Compute sums by model as well.
        custom: Custom metrics to compute.

    Raises:
        Unavailable: No aggregator sent a result, or the store is needed and cannot be read.
    """
    names = [metric.name for metric in custom]
    answered = await aggregators.query(
        replace(metrics_query.query, fields=list(fields), by_model=by_model, custom=names)
    )
    all_from_store = bool(metrics_query.filters or answered.inexact)
    if not metrics_query.attribute and not all_from_store:
        return answered
    where, now_ns, key = metrics_query.where(answered), metrics_query.now_ns, metrics_query.groupby

    async def from_store(key: str, fields: Sequence[str], *, attribute: bool = False) -> dict[str, Aggregates]:
        groups = await store.read(lambda spans: aggregates_by(spans, where, key, fields, now_ns, attribute=attribute))
        for metric in custom:
            work = partial(custom_values_by, where=where, metric=metric, key=key, now_ns=now_ns, attribute=attribute)
            custom_values = await store.read(work)
            for name, custom_value in custom_values.items():
                groups.setdefault(name, Aggregates()).custom[metric.name] = custom_value
        return dict(sorted(groups.items()))

    if all_from_store:
        answered.folded = []
        answered.total = (await from_store("", fields)).get("", Aggregates())
        answered.models = await from_store("model", ()) if by_model else {}
    if key:
        answered.groups = await from_store(key, fields, attribute=bool(metrics_query.attribute))
    await note_since(store, metrics_query, answered)
    return answered


async def answer_series(
    aggregators: AggregatorClient,
    store: StoreReader,
    metrics_query: MetricsQuery,
    step_s: int,
    fields: Sequence[str],
    custom: Sequence[CustomMetric],
) -> Answer:
    """
    Return the aggregates of each step and, if the query groups by a dimension, of each group in it.

    The store answers if the query filters by a value of which the aggregators have only a part.

    Args:
        step_s: Length of a step, seconds.
        fields, custom: As for ``answer``.

    Raises:
        Unavailable: As for ``answer``.
    """
    names = [metric.name for metric in custom]
    answered = await aggregators.query(
        replace(metrics_query.query, what="series", step_s=step_s, fields=list(fields), custom=names)
    )
    if not answered.inexact:
        return answered
    where, now_ns = metrics_query.where(answered), metrics_query.now_ns

    def read(key: str) -> Callable[[Store], dict[int, dict[str, Aggregates]]]:
        return lambda spans: aggregates_in_steps(spans, where, key, fields, custom, now_ns, step_s)

    totals = await store.read(read(""))
    groups = await store.read(read(metrics_query.groupby)) if metrics_query.groupby else {}
    for point in answered.points:
        step = point.start_s // step_s
        point.total = totals.get(step, {}).get("", Aggregates())
        point.groups = groups.get(step, {})
    answered.folded = []
    await note_since(store, metrics_query, answered)
    return answered


async def note_since(store: StoreReader, metrics_query: MetricsQuery, answered: Answer) -> None:
    """Set ``answered.since_ns`` to the time before which no spans are stored, if the interval begins earlier."""
    since_ns = await store.read(lambda spans: spans.shown_since(metrics_query.now_ns))
    if since_ns > answered.from_s * SECOND:
        answered.since_ns = max(answered.since_ns, since_ns)


async def find_exemplars(
    store: StoreReader, metrics_query: MetricsQuery, answered: Answer, column: str
) -> list[Exemplar]:
    """Return up to three spans with the largest *column*, of different traces; [] if the store fails or is slow."""
    where, now_ns = metrics_query.where(answered), metrics_query.now_ns
    try:
        return await store.read(lambda spans: exemplars(spans, where, column, now_ns, _EXEMPLARS_S))
    except Unavailable:
        return []


def missing(answered: Answer) -> dict[str, Any]:
    """Return the fields that say what an answer lacks; empty if every shard sent a result and none is behind."""
    shown: dict[str, Any] = {}
    if answered.missing_shards:
        shown |= {"incomplete": True, "missing_shards": answered.missing_shards}
    if answered.behind_s >= BEHIND_S:
        shown["behind_s"] = round(answered.behind_s, 1)
    return shown
