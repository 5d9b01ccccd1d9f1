"""
The same figures as the aggregators', recounted from the spans themselves: what groups and filters by attribute need.

Sums are exact integers, distributions are raw and so are their quantiles. A worker thread's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from tokentrace.metrics import (
    ALL_KINDS,
    MAX_ATTRIBUTE,
    Aggregates,
    CustomMetric,
    CustomValue,
    Query,
    attribute_to_int,
    nonempty,
)
from tokentrace.records import ROLLUP_KINDS
from tokentrace.rollup import DIMENSIONS, UNKNOWN, Summary, Sums
from tokentrace.units import SECOND
from tokentrace_api.store import Store, attribute_is, attribute_text

#: Distribution -> (column, condition under which a value counts).
_FIELDS = {
    "latency": ("latency_ns", "latency_ns > 0"),
    "ttft": ("ttft_ns", "ttft_ns > 0"),
    "prompt": ("prompt_tokens", "true"),
    "completion": ("completion_tokens", "true"),
    "score": ("score", "score IS NOT NULL"),
}
_CALLS = {
    "spans": "1",
    "errors": "(status = 'error')::INT",
    "timeouts": "(status = 'timeout')::INT",
    "latency_n": "(latency_ns > 0)::INT",
    "ttft_n": "(ttft_ns > 0)::INT",
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "total": "total_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "reasoning_tokens",
    "latency": "latency_ns",
    "ttft": "ttft_ns",
    "wall": "greatest(ended_ns - started_ns, 0)",
}
_MONEY = {
    "unpriced": "(cost_nusd IS NULL)::INT",
    "partly_priced": "(cost_source = 'partly_priced')::INT",
    "cost": "coalesce(cost_nusd, 0)",
}
_QUALITY = {"score_n": "(score IS NOT NULL)::INT", "score": "coalesce(score, 0)"}
_ROLLUPS = ", ".join(f"'{kind}'" for kind in sorted(ROLLUP_KINDS))
_NUMBERS = "('BIGINT', 'UBIGINT', 'DOUBLE')"
_EXEMPLARS = 3


class Exemplar(NamedTuple):
    """A span of the tail; value is in the unit of its column."""

    trace_id: str
    span_id: str
    value: int


class Where(NamedTuple):
    """
    Which spans are counted.

    Attributes:
        query: The interval [from_s, to_s) in event time, kinds and filters by dimension.
        attributes: Key -> value in text form.
    """

    query: Query
    attributes: Mapping[str, str] = {}

    def sql(self) -> tuple[str, list[Any]]:
        """(Condition, values of its parameters)."""
        query = self.query
        conditions, values = ["event_ns >= ? AND event_ns < ?"], [query.from_s * SECOND, query.to_s * SECOND]
        given: list[Any] = list(values)
        for dimension, value in query.filters.items():
            conditions.append(f"{_shown(dimension)} = ?")
            given.append(value)
        for key, value in self.attributes.items():
            text, own = attribute_is(key, value)
            conditions.append(text)
            given += own
        return " AND ".join(conditions), given

    def kinds(self) -> tuple[str, str, str]:
        """Conditions: (whose calls count, whose money, whose scores)."""
        asked = "true" if self.query.kind == ALL_KINDS else f"kind = '{self.query.kind}'"
        wide = asked if self.query.only_kind else "true"
        return asked, f"({wide} AND kind NOT IN ({_ROLLUPS}))", wide


def _shown(dimension: str) -> str:
    return f"CASE WHEN {dimension} = '' THEN '{UNKNOWN}' ELSE {dimension} END"


def _group(key: str, *, attribute: bool) -> tuple[str, list[str]]:
    """SQL for the group of a span: "" for everything, a dimension, or an attribute, NULL where there is none."""
    if not key:
        return "''", []
    return attribute_text(key) if attribute or key not in DIMENSIONS else (_shown(key), [])


def aggregates_by(
    store: Store, where: Where, key: str, fields: Sequence[str], now_ns: int, *, attribute: bool = False
) -> dict[str, Aggregates]:
    """
    Value of *key* -> figures; spans without the attribute are left out.

    Args:
        key: A dimension or an attribute; "" for totals.
        fields: Distributions wanted, of ``cell.FIELDS``.
        attribute: *key* is one although a dimension has its name.
    """
    group, paths = _group(key, attribute=attribute)
    condition, values = where.sql()
    calls, money, quality = where.kinds()
    # A list of integers of any size travels as text.
    columns = [
        f"coalesce(sum(({expression})::HUGEINT) FILTER ({kinds}), 0)::VARCHAR"
        for kinds, names in ((calls, _CALLS), (money, _MONEY), (quality, _QUALITY))
        for expression in names.values()
    ]
    columns.append(f"count(*) FILTER ({money})")
    for field in fields:
        column, counts = _FIELDS[field]
        columns.append(f"list({column}) FILTER ({quality if field == 'score' else calls} AND {counts})")
    sql = f"SELECT {group} AS own, {', '.join(columns)} FROM {{spans}} WHERE {condition} GROUP BY own"
    names = [*_CALLS, *_MONEY, *_QUALITY]
    found = {}
    for own, *row in store.query(sql, [*paths, *values], now_ns):
        if own is not None:
            sums = Sums(**{name: int(value) for name, value in zip(names, row, strict=False)})
            lists = row[len(names) + 1 :]
            summaries = {field: _raw(numbers or []) for field, numbers in zip(fields, lists, strict=True)}
            found[own] = Aggregates(sums=sums, paid=row[len(names)], summaries=summaries)
    return nonempty(found) if key else found


def custom_values_by(
    store: Store, where: Where, metric: CustomMetric, key: str, now_ns: int, *, attribute: bool = False
) -> dict[str, CustomValue]:
    """Value of *key* -> what a metric of one's own, or a numeric attribute, comes to; arguments as ``figures_by``."""
    group, paths = _group(key, attribute=attribute)
    condition, values = where.sql()
    text, given = _measured(metric)
    if metric.filter_key:
        filtered, more = _group(metric.filter_key.removeprefix("attr."), attribute=metric.filter_key[:5] == "attr.")
        condition += f" AND {filtered} IS NOT NULL" if metric.filter_val is None else f" AND {filtered} = ?"
        values += more if metric.filter_val is None else [*more, metric.filter_val]
    if where.query.only_kind:
        condition += f" AND kind = '{where.query.kind}'"
    sql = (
        f"SELECT own, list(value) FROM (SELECT {group} AS own, {text} AS value FROM {{spans}} WHERE {condition}) "
        "WHERE value IS NOT NULL AND own IS NOT NULL GROUP BY own"
    )
    found = {}
    for own, numbers in store.query(sql, [*paths, *given, *values], now_ns):
        if metric.field.startswith("attr."):
            decoded = (attribute_to_int(msgspec.json.decode(number)) for number in numbers)
            whole = [number for number in decoded if number is not None]
        else:
            whole = numbers
        if whole:
            found[own] = CustomValue(len(whole), sum(whole), _raw(whole))
    return found


def count_skipped(store: Store, where: Where, key: str, now_ns: int) -> int:
    """How many spans have a number for *key* that is too large to be counted."""
    condition, values = where.sql()
    (kind, paths), (text, _) = attribute_text(key, "json_type"), attribute_text(key)
    sql = (
        f"SELECT count(*) FROM {{spans}} WHERE {condition} AND {kind} IN {_NUMBERS} "
        f"AND abs(TRY_CAST({text} AS DOUBLE)) >= {MAX_ATTRIBUTE}"
    )
    if where.query.only_kind:
        sql += f" AND kind = '{where.query.kind}'"
    found = store.query(sql, [*values, *paths, *paths], now_ns)
    return int(found[0][0]) if found else 0


def _measured(metric: CustomMetric) -> tuple[str, list[str]]:
    """SQL for what ``CustomMetric.measure`` takes of a span; a numeric attribute as its text."""
    column = metric.column
    if not column:
        return "0", []
    if metric.field.startswith("attr."):
        key = metric.field.removeprefix("attr.")
        (kind, paths), (text, _) = attribute_text(key, "json_type"), attribute_text(key)
        return f"CASE WHEN {kind} IN {_NUMBERS} THEN {text} END", [*paths, *paths]
    if metric.field == "cost":
        return f"CASE WHEN kind NOT IN ({_ROLLUPS}) THEN cost_nusd END", []
    return (f"nullif({column}, 0)" if metric.zero_is_unset else column), []


def _raw(numbers: Sequence[int]) -> Summary:
    return Summary(values=np.sort(np.array(numbers, np.int64)).astype("<i8").tobytes())


def exemplars(store: Store, where: Where, column: str, now_ns: int, limit_s: float) -> list[Exemplar]:
    """The spans with the largest *column*, one for each trace, up to three."""
    condition, values = where.sql()
    calls, money, _ = where.kinds()
    kinds = money if column == "cost_nusd" else calls
    sql = (
        f"SELECT trace_id, arg_max(span_id, {column}), max({column}) AS most FROM {{spans}} "
        f"WHERE {condition} AND {kinds} AND {column} > 0 GROUP BY trace_id ORDER BY most DESC, trace_id "
        f"LIMIT {_EXEMPLARS}"
    )
    return [Exemplar(*row) for row in store.query(sql, values, now_ns, limit_s=limit_s)]
