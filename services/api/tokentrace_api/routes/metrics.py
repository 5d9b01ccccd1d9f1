"""``GET /metrics`` and ``GET /metrics/{group}``: numbers over a window."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import Rejected, shorten
from tokentrace.http import reply
from tokentrace.metric.cost import render_cost
from tokentrace.metric.latency import quantile_error
from tokentrace.metric.query import ALL_KINDS, Answer, Figures, Query
from tokentrace.metric.registry import GROUPABLE, GROUPS, METRICS, find_metric
from tokentrace.records import KINDS
from tokentrace.units import SECOND, render_instant
from tokentrace_api.routes.parameters import Parameters, parameters, parse_window

if TYPE_CHECKING:
    from tokentrace_api.service import Api

_ALLOWED = ("window", "groupby", "kind", "model", "provider", "caller", "name", "status")
_FILTERS = ("model", "provider", "caller", "name", "status")


def routes(api: Api) -> list[BaseRoute]:
    """The routes of the metrics."""

    async def all_groups(request: Request) -> Response:
        given = parameters(request, _ALLOWED)
        window, query = parse_query(given)
        fields = sorted({field for group in GROUPS.values() for field in group.fields})
        total, by_model, groups = await _ask(api, query, fields, with_models=True)
        shown: dict[str, Any] = {"window": window, "span_count": total.total.sums.spans}
        shown |= _groups(total.total, None if by_model is None else by_model.groups)
        if groups is not None:
            key = f"by_{query.groupby}"
            shown[key] = {
                name: {"span_count": figures.sums.spans, **_groups(figures, None)}
                for name, figures in groups.groups.items()
            }
        return reply(shown | coverage(total))

    async def one_group(request: Request) -> Response:
        name = request.path_params["name"]
        given = parameters(request, _ALLOWED)
        window, query = parse_query(given)
        if name not in GROUPS:
            return await _one_number(api, name, window, query)
        group = GROUPS[name]
        total, by_model, groups = await _ask(api, query, list(group.fields), with_models=name == "cost")
        shown: dict[str, Any] = {"window": window}
        if groups is not None and name != "cost":
            shown[f"by_{query.groupby}"] = {key: group.render(figures) for key, figures in groups.groups.items()}
        elif name == "cost":
            shown |= render_cost(total.total, None if by_model is None else by_model.groups)
            if groups is not None and query.groupby != "model":
                shown[f"by_{query.groupby}"] = {
                    key: group.render(figures)["total_usd"] for key, figures in groups.groups.items()
                }
        else:
            shown |= group.render(total.total)
        if group.fields:
            shown["quantile_error"] = max(quantile_error(total.total, field) for field in group.fields)
        return reply(shown | {"span_count": total.total.sums.spans} | coverage(total))

    path = api.config.metrics_path
    return [Route(path, all_groups), Route(path + "/{name}", one_group)]


async def _one_number(api: Api, name: str, window: str, query: Query) -> Response:
    found = find_metric(name)
    if found is None:
        known = ", ".join([*GROUPS, *METRICS])
        raise Rejected(f"unknown metric {shorten(name)!r}; known are {known}", status=404)
    own, metric = found
    total, _, groups = await _ask(api, query, list(metric.fields), with_models=False)
    shown: dict[str, Any] = {"window": window, "metric": own, "value": metric.value(total.total)}
    if groups is not None:
        shown[f"by_{query.groupby}"] = {key: metric.value(figures) for key, figures in groups.groups.items()}
    if metric.fields:
        shown["quantile_error"] = max(quantile_error(total.total, field) for field in metric.fields)
    return reply(shown | {"span_count": metric.contributing(total.total)} | coverage(total))


def _groups(figures: Figures, by_model: dict[str, Figures] | None) -> dict[str, Any]:
    return {
        name: render_cost(figures, by_model) if name == "cost" else group.render(figures)
        for name, group in GROUPS.items()
    }


def parse_query(given: Parameters) -> tuple[str, Query]:
    """
    (The window as written, the question) of the parameters of a metric.

    Raises:
        Rejected: Names the parameter.
    """
    window, window_ns = parse_window(given)
    kind = given.get("kind", "")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"kind: {shorten(kind)!r} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    groupby = given.get("groupby", "").removeprefix("attr.")
    if groupby and groupby not in GROUPABLE:
        raise Rejected(f"groupby: {shorten(groupby)!r} is none of {', '.join(GROUPABLE)}")
    now_ns = time.time_ns()
    return window, Query(
        from_s=(now_ns - window_ns) // SECOND,
        # The running second is part of the window, so that what has just ended is seen.
        to_s=now_ns // SECOND + 1,
        now_s=now_ns // SECOND,
        kind=kind or "llm",
        only_kind=bool(kind) and kind != ALL_KINDS,
        filters={name: given[name] for name in _FILTERS if name in given},
        groupby=groupby,
    )


async def _ask(
    api: Api, query: Query, fields: list[str], *, with_models: bool
) -> tuple[Answer, Answer | None, Answer | None]:
    """(Totals, money by model, the groups asked for): up to three questions about the same interval."""

    def about(groupby: str, wanted: list[str]) -> Query:
        return Query(
            from_s=query.from_s,
            to_s=query.to_s,
            now_s=query.now_s,
            kind=query.kind,
            only_kind=query.only_kind,
            filters=query.filters,
            groupby=groupby,
            fields=wanted,
        )

    questions = [about("", fields)]
    if with_models:
        questions.append(about("model", []))
    if query.groupby:
        questions.append(about(query.groupby, fields))
    answers = list(await asyncio.gather(*(api.aggregators.ask(question) for question in questions)))
    total = answers.pop(0)
    return total, answers.pop(0) if with_models else None, answers.pop(0) if query.groupby else None


def coverage(answer: Answer) -> dict[str, Any]:
    """What the numbers are about: the exact interval, from <= ended < to, and what is missing from it."""
    shown: dict[str, Any] = {
        "from": render_instant(answer.from_s * SECOND),
        "to": render_instant(answer.to_s * SECOND),
        "since": render_instant(answer.since_ns) if answer.since_ns else None,
    }
    if answer.missing_shards:
        shown["incomplete"] = True
        shown["missing_shards"] = answer.missing_shards
    return shown
