"""A question about numbers: read from the parameters, answered from the aggregators' cells or the spans themselves."""

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
#: The tail of a distribution is worth so much time, no more.
_EXEMPLARS_S = 0.2


class MetricsQuery(NamedTuple):
    """
    What is asked.

    Attributes:
        window: As written.
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


def parse_metrics_query(given: Parameters, now_ns: int | None = None) -> MetricsQuery:
    """
    The question in the parameters of a metric.

    Raises:
        Rejected: Names the parameter.
    """
    window, window_ns = parse_window(given)
    for name in ("kind", "groupby"):
        if given.get(name) == "":
            raise Rejected(f"{name}: is empty")
    kind = given.get("kind", "")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"kind: {shorten(kind)!r} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    groupby = given.get("groupby", "")
    attribute = "" if groupby in GROUPABLE else groupby.removeprefix(_PREFIX)
    if groupby and not attribute and groupby not in GROUPABLE:
        raise Rejected("groupby: attr. is followed by nothing")
    now_s = (time.time_ns() if now_ns is None else now_ns) // SECOND
    query = Query(
        from_s=now_s - -(-window_ns // SECOND),
        # The running second is part of the window, so that what has just ended is seen.
        to_s=now_s + 1,
        now_s=now_s,
        kind=kind or "llm",
        only_kind=bool(kind) and kind != ALL_KINDS,
        filters={name: given[name] for name in FILTERS if name in given},
        groupby="" if attribute else groupby,
    )
    filters = {name.removeprefix(_PREFIX): value for name, value in given.items() if name.startswith(_PREFIX)}
    return MetricsQuery(window, query, attribute, filters)


async def answer(
    api: Api,
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
    found = await api.aggregators.ask(replace(question.query, fields=list(fields), by_model=by_model, custom=names))
    if not question.attribute and not question.filters:
        return found
    where, now_ns, key = question.where(found), question.now_ns, question.groupby

    async def recount(key: str, fields: Sequence[str], *, attribute: bool = False) -> dict[str, Aggregates]:
        groups = await api.read(lambda store: aggregates_by(store, where, key, fields, now_ns, attribute=attribute))
        for metric in custom:
            work = partial(custom_values_by, where=where, metric=metric, key=key, now_ns=now_ns, attribute=attribute)
            tallies = await api.read(work)
            for name, tally in tallies.items():
                groups.setdefault(name, Aggregates()).custom[metric.name] = tally
        return dict(sorted(groups.items()))

    if question.filters:
        found.total = (await recount("", fields)).get("", Aggregates())
        found.models = await recount("model", ()) if by_model else {}
    if key:
        found.groups = await recount(key, fields, attribute=bool(question.attribute))
    await note_since(api, question, found)
    return found


async def note_since(api: Api, question: MetricsQuery, found: Answer) -> None:
    """Say in *found* how far back the stored spans reach, of which part of it was counted."""
    since_ns = await api.read(lambda store: store.shown_since(question.now_ns))
    if since_ns > found.from_s * SECOND:
        found.since_ns = max(found.since_ns, since_ns)


async def find_exemplars(api: Api, question: MetricsQuery, found: Answer, column: str) -> list[Exemplar]:
    """Up to three spans with the largest *column*, each of another trace; none when finding them takes too long."""
    where, now_ns = question.where(found), question.now_ns
    try:
        return await api.read(lambda store: exemplars(store, where, column, now_ns, _EXEMPLARS_S))
    except Unavailable:
        return []


def missing(found: Answer) -> dict[str, Any]:
    """What an answer says of the shards that nobody answered for."""
    return {"incomplete": True, "missing_shards": found.missing_shards} if found.missing_shards else {}
