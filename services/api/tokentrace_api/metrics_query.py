"""A query for metrics: made from the parameters, answered from the aggregators' series or from the stored spans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from msgspec.structs import replace
from pydantic import Field

from tokentrace.errors import Rejected, Unavailable, shorten
from tokentrace.metrics import ALL_KINDS, GROUPABLE, Aggregates, Answer, CustomMetric, Query
from tokentrace.records import KINDS
from tokentrace.units import SECOND
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import ATTRIBUTE_PREFIX, AttributeParams, Duration, Text
from tokentrace_api.reads import Exemplar, Where, aggregates_by, custom_values_by, exemplars

#: Time limit of the look-up of exemplars, seconds.
_EXEMPLARS_S = 0.2


class MetricsParams(AttributeParams):
    """Which spans are counted, and how they are grouped."""

    window: Duration = Field(
        cast(Any, "1h"), description="The last so much time: `1h`, `24h`, `7d`, `2h30m`; at least `1s`."
    )
    groupby: Text = Field(
        None,
        description="A dimension (`model`, `caller`, `provider`, `name`, `status`, `kind`) or `attr.<key>`.",
        examples=["model"],
    )
    kind: Text = Field(
        None,
        description=(
            "Whose calls are counted: a kind of span, or `all`; `llm` when absent. Cost and quality are those of every "
            "kind unless a kind is named."
        ),
        examples=["all"],
    )
    model: Text = Field(None, description="Only spans of this model.", examples=["gpt-4o"])
    provider: Text = Field(None, description="Only spans of this provider.", examples=["openai"])
    caller: Text = Field(None, description="Only spans of this caller.", examples=["checkout"])
    name: Text = Field(None, description="Only spans of this name.", examples=["answer question"])
    status: Text = Field(None, description="Only spans with this status.", examples=["error"])

    def filters(self) -> dict[str, str]:
        """Return dimension -> value that a span must have."""
        values = {
            "model": self.model,
            "provider": self.provider,
            "caller": self.caller,
            "name": self.name,
            "status": self.status,
        }
        return {name: value for name, value in values.items() if value is not None}


class MetricsQuery(NamedTuple):
    """
    What a client asks for.

    Attributes:
        window: As the client wrote it.
        query: The interval, kinds, filters and grouping by dimension.
        attribute: Group by this attribute; "" = by a dimension or not at all.
        filters: Attribute -> value that a span must have.
    """

    window: str
    query: Query
    attribute: str = ""
    filters: Mapping[str, str] = {}

    @property
    def groupby(self) -> str:
        """What the groups are called: ``by_<this>``; "" = none are asked for."""
        return self.attribute or self.query.groupby

    @property
    def now_ns(self) -> int:
        """When it was asked."""
        return self.query.now_s * SECOND

    def where(self, found: Answer) -> Where:
        """The stored spans that *found* is about."""
        return Where(replace(self.query, from_s=found.from_s, to_s=found.to_s), self.filters)


def parse_metrics_query(params: MetricsParams, now_ns: int | None = None) -> MetricsQuery:
    """
    Return the query that *params* describe.

    Raises:
        Rejected: Names the parameter.
    """
    kind, groupby = params.kind, params.groupby
    for name, value in (("kind", kind), ("groupby", groupby)):
        if value == "":
            raise Rejected(f"{name}: is empty")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"kind: {shorten(kind)!r} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    attribute = "" if groupby is None or groupby in GROUPABLE else groupby.removeprefix(ATTRIBUTE_PREFIX)
    if groupby and not attribute and groupby not in GROUPABLE:
        raise Rejected("groupby: attr. is followed by nothing")
    now_s = (time.time_ns() if now_ns is None else now_ns) // SECOND
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
    return MetricsQuery(params.window.text, query, attribute, params.attributes)


async def answer(
    aggregators: AggregatorClient,
    store: StoreReader,
    question: MetricsQuery,
    fields: Sequence[str] = (),
    *,
    by_model: bool = False,
    custom: Sequence[CustomMetric] = (),
) -> Answer:
    """
    Figures over the whole, and by group when there is a grouping.

    Args:
        fields: Distributions wanted, of ``cell.FIELDS``.
        by_model: Sums by model as well.
        custom: Metrics of one's own, wanted too.

    Raises:
        Unavailable: No aggregator answers, or the store does not.
    """
    names = [metric.name for metric in custom]
    found = await aggregators.ask(replace(question.query, fields=list(fields), by_model=by_model, custom=names))
    if not question.attribute and not question.filters:
        return found
    where, now_ns, key = question.where(found), question.now_ns, question.groupby

    async def recount(key: str, fields: Sequence[str], *, attribute: bool = False) -> dict[str, Aggregates]:
        groups = await store.read(lambda spans: aggregates_by(spans, where, key, fields, now_ns, attribute=attribute))
        for metric in custom:
            work = partial(custom_values_by, where=where, metric=metric, key=key, now_ns=now_ns, attribute=attribute)
            tallies = await store.read(work)
            for name, tally in tallies.items():
                groups.setdefault(name, Aggregates()).custom[metric.name] = tally
        return dict(sorted(groups.items()))

    if question.filters:
        found.total = (await recount("", fields)).get("", Aggregates())
        found.models = await recount("model", ()) if by_model else {}
    if key:
        found.groups = await recount(key, fields, attribute=bool(question.attribute))
    await note_since(store, question, found)
    return found


async def note_since(store: StoreReader, question: MetricsQuery, found: Answer) -> None:
    """Say in *found* how far back the stored spans reach, of which part of it was counted."""
    since_ns = await store.read(lambda spans: spans.shown_since(question.now_ns))
    if since_ns > found.from_s * SECOND:
        found.since_ns = max(found.since_ns, since_ns)


async def find_exemplars(store: StoreReader, question: MetricsQuery, found: Answer, column: str) -> list[Exemplar]:
    """Up to three spans with the largest *column*, each of another trace; none when finding them takes too long."""
    where, now_ns = question.where(found), question.now_ns
    try:
        return await store.read(lambda spans: exemplars(spans, where, column, now_ns, _EXEMPLARS_S))
    except Unavailable:
        return []


def missing(found: Answer) -> dict[str, Any]:
    """What an answer says of the shards that nobody answered for."""
    return {"incomplete": True, "missing_shards": found.missing_shards} if found.missing_shards else {}
