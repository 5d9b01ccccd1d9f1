"""
Computes metrics from stored spans, for queries that concern attributes, because the aggregators know no attributes.

Sums are exact integers, as in the aggregators. Distributions consist of all values, so that their quantiles are exact.
The functions block and run in worker threads.
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
    Calls,
    CustomMetric,
    CustomValue,
    Query,
    attribute_to_int,
    nonempty,
)
from tokentrace.records import KINDS, ROLLUP_KINDS
from tokentrace.rollup import DIMENSIONS, UNKNOWN, Summary, Sums
from tokentrace.units import SECOND
from tokentrace_api.reads.newest import LIMIT_S
from tokentrace_api.store import Store, attribute_is, attribute_text

#: Name of a distribution -> (column, SQL condition under which its value counts).
_FIELDS = {
    "latency": ("latency_ns", "latency_ns > 0"),
    "ttft": ("ttft_ns", "ttft_ns > 0"),
    "prompt": ("prompt_tokens", "prompt_tokens + completion_tokens > 0"),
    "completion": ("completion_tokens", "prompt_tokens + completion_tokens > 0"),
    "score": ("score", "score IS NOT NULL"),
    "total": ("total_tokens", "total_tokens > 0"),
    "cost": ("cost_nusd", "cost_nusd IS NOT NULL"),
}
#: Where a distribution counts: as tokens or as scores do; all others count as calls do.
_LIKE_TOKENS = ("prompt", "completion", "total", "cost")
_CALLS = {
    "spans": "1",
    "errors": "(status = 'error')::INT",
    "timeouts": "(status = 'timeout')::INT",
    "latency_n": "(latency_ns > 0)::INT",
    "ttft_n": "(ttft_ns > 0)::INT",
    "latency": "latency_ns",
    "ttft": "ttft_ns",
    "wall": "greatest(ended_ns - started_ns, 0)",
}
_TOKENS = {
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "total": "total_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "reasoning": "reasoning_tokens",
}
_MONEY = {
    "unpriced": "(cost_nusd IS NULL)::INT",
    "partly_priced": "(cost_source = 'partly_priced')::INT",
    "cost": "coalesce(cost_nusd, 0)",
}
#: The columns of ``Calls``, in order.
_SPENT = ("1", _MONEY["cost"], _MONEY["unpriced"], _MONEY["partly_priced"])
_QUALITY = {"score_n": "(score IS NOT NULL)::INT", "score": "coalesce(score, 0)"}
_NO_ROLLUP = f"kind NOT IN ({', '.join(repr(kind) for kind in sorted(ROLLUP_KINDS))})"
_NUMBERS = "('BIGINT', 'UBIGINT', 'DOUBLE')"
_EXEMPLARS = 3


class Exemplar(NamedTuple):
    """
    One of the spans with the highest values in a column.

    Attributes:
        value: The value in the unit of the column, nano-dollars for ``cost_nusd``.
        started_ns: When the span started, Unix nanoseconds.
    """

    trace_id: str
    span_id: str
    value: int
    name: str
    started_ns: int


class Kinds(NamedTuple):
    """SQL conditions on the kind for spans that count as calls, in cost, in scores and in tokens."""

    calls: str
    money: str
    quality: str
    tokens: str


class Where(NamedTuple):
    """
    The conditions for spans to be counted.

    Attributes:
        query: The interval [from_s, to_s) in event time, the kinds, and the filters by dimension.
        attributes: Key -> the value that the attribute must have, in text form.
    """

    query: Query
    attributes: Mapping[str, str] = {}

    def sql(self) -> tuple[str, list[Any]]:
        """Return (SQL for all conditions except those on the kind, its parameters)."""
        query = self.query
        conditions = ["counted AND event_ns >= ? AND event_ns < ?"]
        parameters: list[Any] = [query.from_s * SECOND, query.to_s * SECOND]
        for dimension, value in query.filters.items():
            conditions.append(f"{_shown(dimension)} = ?")
            parameters.append(value)
        for key, value in self.attributes.items():
            text, values = attribute_is(key, value)
            conditions.append(text)
            parameters += values
        return " AND ".join(conditions), parameters

    def kinds(self) -> Kinds:
        """Return the conditions on the kind."""
        calls = "true" if self.query.kind == ALL_KINDS else f"kind = '{self.query.kind}'"
        # Unless the query names one kind, cost and scores of every kind count.
        others = calls if self.query.only_kind else "true"
        return Kinds(
            calls=calls, money=f"({others} AND {_NO_ROLLUP})", quality=others, tokens=f"({calls} AND {_NO_ROLLUP})"
        )


def _shown(dimension: str) -> str:
    return f"CASE WHEN {dimension} = '' THEN '{UNKNOWN}' ELSE {dimension} END"


def _group(key: str, *, attribute: bool, step_s: int = 0, chosen: Sequence[str] | None = None) -> tuple[str, list[Any]]:
    """
    Return (SQL for the value of *key*, a dimension or an attribute, of a span; its parameters); "" = one group.

    With *step_s*, the number of the span's step of this length and a colon come before the value. With *chosen*, the
    value of a group is ``=`` and one of these, or "" for all others.
    """
    parameters: list[Any] = []
    if not key:
        text = "''"
    else:
        text, parameters = attribute_text(key) if attribute or key not in DIMENSIONS else (_shown(key), [])
    if chosen is not None:
        text = f"CASE WHEN list_contains(?::VARCHAR[], {text}) THEN '=' || {text} WHEN {text} IS NOT NULL THEN '' END"
        parameters = [list(chosen), *parameters * 3]
    return (f"(event_ns // {step_s * SECOND})::VARCHAR || ':' || {text}" if step_s else text), parameters


def aggregates_by(
    store: Store,
    where: Where,
    key: str,
    fields: Sequence[str],
    now_ns: int,
    *,
    attribute: bool = False,
    step_s: int = 0,
    chosen: Sequence[str] | None = None,
) -> dict[str, Aggregates]:
    """
    Return the aggregates of each group of spans; spans without the attribute *key* are left out.

    Args:
        key: A dimension or an attribute; "" = one group for all spans.
        fields: Names of the distributions to compute: latency, ttft, prompt, completion, score, total (tokens), cost.
        attribute: True = *key* is an attribute, even if a dimension has the same name.
        step_s: Groups are of steps of this length too, seconds; their names begin with the number of the step and a
            colon. 0 = no steps.
        chosen: Groups are these values, with ``=`` before their names, and "" for all others; None = every value.

    Returns:
        Value of *key* -> aggregates. Costs are in nano-dollars, times in nanoseconds, scores in 10⁻⁹.

    Raises:
        Unavailable: The store cannot be read.
    """
    group, paths = _group(key, attribute=attribute, step_s=step_s, chosen=chosen)
    condition, values = where.sql()
    kinds = where.kinds()
    # Sums may exceed 64 bits; as text they are fetched exactly.
    columns = [
        f"coalesce(sum(({expression})::HUGEINT) FILTER ({of_kind}), 0)::VARCHAR"
        for of_kind, expressions in (
            (kinds.calls, _CALLS.values()),
            (kinds.tokens, _TOKENS.values()),
            (kinds.money, _MONEY.values()),
            (kinds.quality, _QUALITY.values()),
            (kinds.money, ["1"]),
            (kinds.tokens, _SPENT),
        )
        for expression in expressions
    ]
    counted = {"score": kinds.quality, **dict.fromkeys(_LIKE_TOKENS, kinds.tokens)}
    for field in fields:
        column, counts = _FIELDS[field]
        columns.append(f"list({column}) FILTER ({counted.get(field, kinds.calls)} AND {counts})")
    sql = f"SELECT {group} AS grp, {', '.join(columns)} FROM {{spans}} WHERE {condition} GROUP BY grp"
    names = [*_CALLS, *_TOKENS, *_MONEY, *_QUALITY]
    groups = {}
    for value, *row in store.query(sql, [*paths, *values], now_ns):
        if value is not None:
            sums = Sums(**{name: int(total) for name, total in zip(names, row, strict=False)})
            paid, *spent = (int(total) for total in row[len(names) : len(names) + 1 + len(_SPENT)])
            lists = row[len(names) + 1 + len(_SPENT) :]
            summaries = {field: _raw(numbers or []) for field, numbers in zip(fields, lists, strict=True)}
            groups[value] = Aggregates(sums=sums, paid=paid, summaries=summaries, calls=Calls(*spent))
    return nonempty(groups) if key else groups


def custom_values_by(
    store: Store,
    where: Where,
    metric: CustomMetric,
    key: str,
    now_ns: int,
    *,
    attribute: bool = False,
    step_s: int = 0,
    chosen: Sequence[str] | None = None,
) -> dict[str, CustomValue]:
    """
    Return the values of a custom metric, or of a numeric attribute, for each group of spans.

    Args:
        key, attribute, step_s, chosen: As for ``aggregates_by``.

    Returns:
        Value of *key* -> count, sum, distribution and, for costs, the spans without a known cost; groups with neither
        are left out.

    Raises:
        Unavailable: The store cannot be read.
    """
    group, paths = _group(key, attribute=attribute, step_s=step_s, chosen=chosen)
    condition, values = where.sql()
    measured, measured_paths = _measured(metric)
    if metric.filter_key:
        filtered, filter_paths = _group(
            metric.filter_key.removeprefix("attr."), attribute=metric.filter_key[:5] == "attr."
        )
        condition += f" AND {filtered} IS NOT NULL" if metric.filter_val is None else f" AND {filtered} = ?"
        values += filter_paths if metric.filter_val is None else [*filter_paths, metric.filter_val]
    kinds = ", ".join(repr(kind) for kind in KINDS if metric.counts(kind, where.query)) or "''"
    condition += f" AND kind IN ({kinds})"
    unpriced, partly = (_MONEY["unpriced"], _MONEY["partly_priced"]) if metric.money else ("0", "0")
    sql = (
        "SELECT grp, list(value) FILTER (value IS NOT NULL), sum(unpriced)::BIGINT, sum(partly)::BIGINT FROM "
        f"(SELECT {group} AS grp, {measured} AS value, {unpriced} AS unpriced, {partly} AS partly FROM {{spans}} "
        f"WHERE {condition}) WHERE grp IS NOT NULL AND (value IS NOT NULL OR unpriced > 0) GROUP BY grp"
    )
    groups = {}
    for value, listed, *left_out in store.query(sql, [*paths, *measured_paths, *values], now_ns):
        numbers = listed or []
        if metric.field.startswith("attr."):
            decoded = (attribute_to_int(msgspec.json.decode(number)) for number in numbers)
            whole = [number for number in decoded if number is not None]
        else:
            whole = numbers
        if whole or any(left_out):
            groups[value] = CustomValue(len(whole), sum(whole), _raw(whole), *left_out)
    return groups


def aggregates_in_steps(
    store: Store,
    where: Where,
    key: str,
    fields: Sequence[str],
    custom: Sequence[CustomMetric],
    now_ns: int,
    step_s: int,
    *,
    attribute: bool = False,
    chosen: Sequence[str] | None = None,
) -> dict[int, dict[str, Aggregates]]:
    """
    Return the aggregates of each group of spans in each step.

    Args:
        key: A dimension or an attribute; "" = one group for all spans.
        fields, attribute, chosen: As for ``aggregates_by``.
        step_s: Length of a step, seconds.

    Returns:
        Number of a step: its start divided by *step_s* -> value of *key* -> aggregates; empty groups are left out.

    Raises:
        Unavailable: The store cannot be read.
    """
    groups = aggregates_by(store, where, key, fields, now_ns, attribute=attribute, step_s=step_s, chosen=chosen)
    for metric in custom:
        values = custom_values_by(store, where, metric, key, now_ns, attribute=attribute, step_s=step_s, chosen=chosen)
        for name, measured in values.items():
            groups.setdefault(name, Aggregates()).custom[metric.name] = measured
    steps: dict[int, dict[str, Aggregates]] = {}
    for name, aggregates in groups.items():
        step, _, value = name.partition(":")
        steps.setdefault(int(step), {})[value] = aggregates
    return steps


def count_skipped(store: Store, where: Where, key: str, now_ns: int) -> int:
    """Return the number of spans whose attribute *key* is a number too large to be summed."""
    condition, values = where.sql()
    (kind, paths), (text, _) = attribute_text(key, "json_type"), attribute_text(key)
    sql = (
        f"SELECT count(*) FROM {{spans}} WHERE {condition} AND {kind} IN {_NUMBERS} "
        f"AND abs(TRY_CAST({text} AS DOUBLE)) >= {MAX_ATTRIBUTE}"
    )
    if where.query.only_kind:
        sql += f" AND kind = '{where.query.kind}'"
    rows = store.query(sql, [*values, *paths, *paths], now_ns)
    return int(rows[0][0]) if rows else 0


class Eval(NamedTuple):
    """A name of evals, how many spans have it, and when the newest of them counts, Unix nanoseconds."""

    name: str
    spans: int
    last_ns: int


def list_evals(store: Store, where: Where, now_ns: int) -> list[Eval]:
    """
    Return the evals of spans, the attributes whose keys begin with ``eval.``, the most frequent first.

    Raises:
        Unavailable: The store cannot be read, or the query took over 20 seconds.
    """
    condition, values = where.sql()
    if where.query.only_kind:
        condition += f" AND kind = '{where.query.kind}'"
    sql = (
        "SELECT substr(key, 6) AS name, count(*) AS spans, max(event_ns) AS last FROM "
        f"(SELECT unnest(json_keys(attributes)) AS key, event_ns FROM {{spans}} WHERE {condition} "
        "AND contains(attributes, '\"eval.')) WHERE starts_with(key, 'eval.') AND length(key) > 5 "
        "GROUP BY name ORDER BY spans DESC, name"
    )
    return [Eval(*row) for row in store.query(sql, values, now_ns, limit_s=LIMIT_S)]


def _measured(metric: CustomMetric) -> tuple[str, list[str]]:
    """Return (SQL for the value that *metric* measures, its parameters); the number in an attribute comes as text."""
    column = metric.column
    if not column:
        return "0", []
    if metric.field.startswith("attr."):
        key = metric.field.removeprefix("attr.")
        (kind, paths), (text, _) = attribute_text(key, "json_type"), attribute_text(key)
        return f"CASE WHEN {kind} IN {_NUMBERS} THEN {text} END", [*paths, *paths]
    known = f"CASE WHEN {' + '.join(metric.known_by)} > 0 THEN {column} END"
    return known if metric.known_by else column, []


def _raw(numbers: Sequence[int]) -> Summary:
    return Summary(values=np.sort(np.array(numbers, np.int64)).astype("<i8").tobytes())


def exemplars(store: Store, where: Where, column: str, now_ns: int, limit_s: float) -> list[Exemplar]:
    """
    Return up to three spans with the largest *column* over 0, at most one of each trace.

    Raises:
        Unavailable: The store cannot be read, or the query took longer than *limit_s* seconds.
    """
    condition, values = where.sql()
    kinds = where.kinds().money if column == "cost_nusd" else where.kinds().calls
    sql = (
        f"SELECT trace_id, arg_max(span_id, {column}), max({column}) AS most, arg_max(name, {column}), "
        f"arg_max(started_ns, {column}) FROM {{spans}} "
        f"WHERE {condition} AND {kinds} AND {column} > 0 GROUP BY trace_id ORDER BY most DESC, trace_id "
        f"LIMIT {_EXEMPLARS}"
    )
    return [Exemplar(*row) for row in store.query(sql, values, now_ns, limit_s=limit_s)]
