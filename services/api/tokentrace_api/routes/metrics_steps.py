"""Metrics in steps: the length of a step, and the aggregates of each step, from buckets or from the stored spans."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.errors import Rejected, quoted
from tokentrace.metrics import Aggregates, Answer, merge_aggregates
from tokentrace.rollup import HORIZON_NS
from tokentrace.units import SECOND, parse_duration, render_duration
from tokentrace_api.metrics_params import MetricsQuery
from tokentrace_api.metrics_query import answer_series, finest_of, stored_series
from tokentrace_api.routes.metrics_sides import Form, Needs, Order, Parts, Sides, ask_sides, merged, part
from tokentrace_api.routes.metrics_source import Source

#: Most steps of a series, and of one that the store answers.
MAX_POINTS, MAX_STORED_POINTS = 2000, 500
#: Most groups of a series that the store answers.
MAX_LINES = 50
_AUTOMATIC_POINTS, _AUTOMATIC_STORED_POINTS = 120, 60
_STEPS_S = (1, 10, 30, 60, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 86400)


class Side(NamedTuple):
    """
    One side of a comparison in steps.

    Attributes:
        others: For each step, the groups together that are not shown.
        rest: Number of these groups.
    """

    answered: Answer
    others: Sequence[Aggregates] = ()
    rest: int = 0


class Stepped(NamedTuple):
    """Both sides in steps; *parts* is None if the groups have no order and all are shown."""

    now: Side
    before: Side | None
    parts: Parts | None


async def ask_steps(
    source: Source,
    question: MetricsQuery,
    step_s: int,
    form: Form,
    order: Order,
    needs: Needs,
) -> Stepped:
    """
    Return the aggregates of each step of both sides.

    Args:
        needs: What is computed of each step.

    Raises:
        Rejected: The store answers, and there are more groups than it may.
        Unavailable: As for ``metrics_query.answer``.
    """
    fields = sorted({*needs.fields, *order.needs.fields})
    custom = [*needs.custom, *order.needs.custom]
    asked = [question] if question.before is None else [question, question.before]
    if needs.from_store or question.is_stored:
        return await _ask_store(source, question, step_s, form, order, Needs(fields, custom=custom, from_store=True))

    async def ask(side: MetricsQuery) -> Answer:
        return await answer_series(source.aggregators, source.store, side, step_s, fields, custom)

    answers = await asyncio.gather(*(ask(side) for side in asked))
    parts = None
    if question.is_ranked:
        whole = await asyncio.to_thread(lambda: [_over_all_steps(answered) for answered in answers])
        parts = part(question, form, order, Sides(whole[0], whole[1] if len(whole) > 1 else None))
    sides = [_side(answered, parts) for answered in answers]
    return Stepped(sides[0], sides[1] if len(sides) > 1 else None, parts)


def _side(answered: Answer, parts: Parts | None) -> Side:
    if parts is None or not parts.rest:
        return Side(answered)
    held = {group for point in answered.points for group in point.groups}
    rest = [name for name in parts.rest if name in held]
    return Side(answered, [merged(point.groups, rest) for point in answered.points], len(rest))


def _over_all_steps(answered: Answer) -> Answer:
    """Return *answered* with the aggregates of each group over all steps."""
    groups: dict[str, list[Aggregates]] = {}
    for point in answered.points:
        for group, aggregates in point.groups.items():
            groups.setdefault(group, []).append(aggregates)
    return replace(answered, groups={group: merge_aggregates(aggregates) for group, aggregates in groups.items()})


async def _ask_store(
    source: Source, question: MetricsQuery, step_s: int, form: Form, order: Order, needs: Needs
) -> Stepped:
    """Return both sides from the stored spans; which groups are shown is decided over the whole interval."""
    asked = [question] if question.before is None else [question, question.before]
    if question.top > MAX_LINES:
        raise Rejected(f"top: {question.top} is over {MAX_LINES}, the most groups of a series with these filters")
    parts: Parts | None = None
    whole: list[Answer] = []
    if question.groupby:
        sides = await ask_sides(source, question, needs, order)
        whole = [side for side in sides if side is not None]
        parts = part(question, form, order, sides)
        if len(parts.names) > MAX_LINES:
            raise Rejected(
                f"groupby: {question.groupby} has {len(parts.names)} values here, and a series with these filters "
                f"shows at most {MAX_LINES}; use top, such as top=10"
            )

    async def ask(side: MetricsQuery) -> Side:
        chosen = None if parts is None else parts.names
        found = await stored_series(source.store, side, step_s, needs.fields, needs.custom, chosen)
        groups = whole[asked.index(side)].groups if parts is not None else {}
        rest = [name for name in parts.rest if name in groups] if parts is not None else []
        return Side(found.answered, found.others if rest else (), len(rest))

    stepped = await asyncio.gather(*(ask(side) for side in asked))
    return Stepped(stepped[0], stepped[1] if len(stepped) > 1 else None, parts)


def partial_points(answered: Answer, step_s: int, now_s: int) -> list[bool]:
    """
    Return for each point whether its numbers cover only a part of its step.

    The window cuts the first and the last step, the last step is not over yet, or spans of the step may be missing.
    """
    starts = [point.start_s for point in answered.points]
    return [
        end_s - start_s < step_s or end_s > now_s or start_s * SECOND < answered.since_ns
        for start_s, end_s in zip(starts, [*starts[1:], answered.to_s], strict=True)
    ]


def parse_step(text: str | None, question: MetricsQuery, *, from_store: bool = False) -> int:
    """
    Return the step of a series in seconds; if *text* is None, one that gives at most about 120 steps.

    Args:
        from_store: The store answers, which takes any step, but fewer of them.

    Raises:
        Rejected: *text* is not a duration of whole seconds, gives too many steps, or, for a window that ends now, is
            not a multiple of the finest possible step. In the last two cases the error text names the finest step.
    """
    stored = from_store or question.is_stored
    query, finest = question.query, 1 if question.is_exact or stored else finest_of(question)
    from_s = query.from_s if question.is_exact else max(query.from_s, query.now_s - HORIZON_NS // SECOND)
    length_s = query.to_s - from_s
    if question.before is not None:
        length_s = max(length_s, question.before.query.to_s - question.before.query.from_s)
    if text is None:
        return _automatic_step(question, length_s, finest, stored=stored)
    most = MAX_STORED_POINTS if stored else MAX_POINTS
    try:
        step_ns = parse_duration(text)
    except Rejected as exc:
        raise Rejected(f"step: {exc}") from exc
    if step_ns < SECOND or step_ns % (finest * SECOND):
        if finest == 1:
            raise Rejected(f"step: {quoted(text)} is no multiple of 1s")
        shown = render_duration(finest * SECOND)
        raise Rejected(f"step: {quoted(text)} is no multiple of {shown}, the finest buckets kept at the start")
    if length_s * SECOND > most * step_ns:
        least = -(-length_s // (most * finest)) * finest
        raise Rejected(
            f"step: {quoted(text)} makes over {most} points; the finest for this window is "
            f"{render_duration(least * SECOND)}"
        )
    return step_ns // SECOND


def _automatic_step(question: MetricsQuery, length_s: int, finest: int, *, stored: bool) -> int:
    points = _AUTOMATIC_STORED_POINTS if stored else _AUTOMATIC_POINTS
    wanted = length_s / points
    if wanted > _STEPS_S[-1]:
        return -(-length_s // (points * _STEPS_S[-1])) * _STEPS_S[-1]
    if not stored and not question.is_beyond_buckets:
        # A step that fits the buckets, if there is one, is answered faster.
        fitting = finest_of(question)
        if not question.is_exact or wanted >= fitting:
            wanted, finest = max(wanted, fitting), fitting
    return next((step for step in _STEPS_S if step >= wanted and step % finest == 0), _STEPS_S[-1])
