"""
Tests that compare every metric, for random queries, with a recount of the spans.

The routes, the store of the api and the shards of the aggregators are those of the product, on a bus in memory. The
recount adds up the spans in the interval that the answer names, with ``Fraction`` and ``numpy``.
"""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tokentrace.rollup.series
from kit.examples import examples
from kit.recount_checker import ASKS, ATTRIBUTE_METRICS, GROUP_ATTRIBUTES, WINDOWS, Ask, Checker, Truth, instant_s
from kit.recount_numbers import GROUP_RECOUNTS, SCALARS, SPLIT_RECOUNTS, tokens, usd
from kit.recount_services import MetricsServices, opened
from kit.recount_world import CUSTOMS, DAY, HOUR, NOON_S, TEMPLATES, make_templates, make_world, name_customs
from tokentrace.metrics import ALIASES, BREAKDOWNS, GROUPS, METRICS
from tokentrace.rollup import FOLDABLE

WORLDS = {
    "templates": st.lists(TEMPLATES, max_size=14),
    "more": st.sampled_from([0, 10, 40]),
    "now_s": st.integers(0, 3 * DAY).map(lambda offset: NOON_S + offset),
    "shards": st.sampled_from([1, 2, 5]),
    "restart": st.booleans(),
    "keep_s": st.sampled_from([60 * DAY, 60 * DAY, 7 * DAY]),
    "drawn": CUSTOMS,
    "seed": st.integers(0, 2**32),
}
QUIET = settings(
    deadline=None, max_examples=examples(14), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def test_the_recount_covers_every_metric() -> None:
    assert set(SCALARS) == set(METRICS)
    assert set(GROUP_RECOUNTS) == set(GROUPS)
    assert set(SPLIT_RECOUNTS) == set(BREAKDOWNS)
    assert set(ALIASES.values()) <= set(SCALARS)


@pytest.mark.long
@settings(QUIET)
@given(asks=st.lists(ASKS, min_size=1, max_size=2), key=st.sampled_from(GROUP_ATTRIBUTES), **WORLDS)
def test_every_metric_equals_a_recount(
    services: MetricsServices,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    asks: list[Ask],
    key: str,
) -> None:
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more, 40 * DAY)], now_s, shards, dice)
    with opened(services, world, customs, dice, restart=restart, keep_s=keep_s):
        for ask in asks:
            checker = Checker(services, ask)
            checker.everything()
            checker.transport()
            for name in (*SCALARS, dice.choice(sorted(set(ALIASES) - set(GROUPS)))):
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                checker.split(name, "" if dimension else key)
            for name in ATTRIBUTE_METRICS:
                checker.attribute(name)
            for custom in customs:
                checker.custom(custom)


#: Longest window, seconds -> the finest step of a series over it, seconds.
FINEST_S = {1200: 1, 3 * HOUR: 10, 36 * HOUR: 60, 8 * DAY: 600, 60 * DAY: 3600}


@pytest.mark.long
@settings(QUIET)
@given(
    ask=ASKS,
    factor=st.sampled_from([1, 2, 3, 7]),
    names=st.lists(st.sampled_from([*SCALARS, *GROUP_RECOUNTS]), min_size=1, max_size=3),
    **WORLDS,
)
def test_the_points_of_a_series_equal_a_recount_and_add_up_to_the_window(
    services: MetricsServices,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    ask: Ask,
    factor: int,
    names: list[str],
) -> None:
    ask = ask._replace(attributes={}, groupby="" if ask.by_attribute else ask.groupby)
    length_s = min(WINDOWS[ask.window], 31 * DAY)
    finest = next(width for keep, width in FINEST_S.items() if length_s <= keep)
    step_s = finest * -(-length_s // (40 * finest)) * factor
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more, 40 * DAY)], now_s, shards, dice)
    with opened(services, world, customs, dice, restart=restart, keep_s=keep_s):
        checker = Checker(services, ask)
        for name in ("total_cost", "span_count", "prompt_tokens", "error_count", *names):
            checker.series(name, step_s)
        for custom in customs:
            checker.series(custom["name"], step_s)


#: Limits under which a shard counts values under ``other``.
LIMITS = (
    {"MAX_SERIES": 8},
    {"MAX_MODELS": 2, "MAX_PROVIDERS": 1},
    {"MAX_SERIES": 8, "MAX_MODELS": 2, "MAX_PLAIN": 8},
    {"MAX_SERIES": 3, "MAX_MODELS": 1, "MAX_PROVIDERS": 1, "MAX_PLAIN": 3},
)


@pytest.mark.long
@settings(QUIET, max_examples=examples(6))
@given(ask=ASKS, key=st.sampled_from(GROUP_ATTRIBUTES), limits=st.sampled_from(LIMITS), **WORLDS)
def test_beyond_the_limits_every_shown_value_is_complete_and_the_rest_is_other(
    services: MetricsServices,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    ask: Ask,
    key: str,
    limits: dict[str, int],
) -> None:
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more + 10, 40 * DAY)], now_s, shards, dice)
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(tokentrace.rollup.series, name, limit)
        # The store holds everything, because it answers when a filter concerns a value that is not complete.
        with opened(services, world, customs, dice, restart=restart, keep_s=60 * DAY):
            checker = Checker(services, ask)
            checker.everything()
            for name in SCALARS:
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                checker.split(name, "" if dimension else key)
            for custom in customs:
                checker.custom(custom)
            for dimension in FOLDABLE:
                assert_groups_add_up_to_the_total(services, Ask(window="31d", kind="all", groupby=dimension))
                for value in sorted({getattr(span, dimension) for span in world.spans} - {""}):
                    filtered = Checker(services, Ask(window="31d", kind="all", filters={dimension: value}))
                    filtered.scalar("total_cost")
                    filtered.series("span_count", DAY)
                    filtered.custom(customs[-1])


@pytest.mark.long
@settings(QUIET, max_examples=examples(8))
@given(
    ask=ASKS,
    names=st.lists(st.sampled_from([*SCALARS, *GROUP_RECOUNTS]), min_size=1, max_size=3),
    limits=st.sampled_from(LIMITS),
    **WORLDS,
)
def test_beyond_the_limits_the_points_of_a_series_are_complete(
    services: MetricsServices,
    templates: list[dict[str, Any]],
    more: int,
    now_s: int,
    shards: int,
    restart: bool,
    keep_s: int,
    drawn: list[dict[str, Any]],
    seed: int,
    ask: Ask,
    names: list[str],
    limits: dict[str, int],
) -> None:
    ask = ask._replace(attributes={}, groupby="" if ask.by_attribute else ask.groupby)
    length_s = min(WINDOWS[ask.window], 31 * DAY)
    finest = next(width for keep, width in FINEST_S.items() if length_s <= keep)
    step_s = finest * -(-length_s // (40 * finest))
    dice = random.Random(seed)
    customs = name_customs(drawn, dice)
    world = make_world([*templates, *make_templates(dice, more + 10, 40 * DAY)], now_s, shards, dice)
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(tokentrace.rollup.series, name, limit)
        with opened(services, world, customs, dice, restart=restart, keep_s=60 * DAY):
            checker = Checker(services, ask)
            for name in ("total_cost", "span_count", *names, customs[-1]["name"]):
                checker.series(name, step_s)


def assert_groups_add_up_to_the_total(services: MetricsServices, ask: Ask) -> None:
    """Check that the groups add up to the total, and that each one but ``other`` has all of its spans."""
    body = services.get("/metrics", ask.parameters())
    truth = Truth(services, ask, instant_s(body["from"]), instant_s(body["to"]))
    groups = body[f"by_{ask.groupby}"]
    assert "other" in groups or not services.world.spans or len(truth.groups) == len(groups)
    assert (ask.groupby in body.get("folded", [])) == ("other" in groups)
    assert sum(group["span_count"] for group in groups.values()) == len(truth.total.calls)
    nusd = sum(round(Fraction(group["cost"]["total_usd"] or 0) * 10**9) for group in groups.values())
    assert abs(nusd - usd(truth.total.paid) * 10**9) <= usd(truth.total.paid) * 10**9 / 10**12
    assert sum(group["tokens"]["total"] or 0 for group in groups.values()) == sum(tokens(truth.total, "total_tokens"))
    for name, group in groups.items():
        assert name == "other" or group["span_count"] == len(truth.groups[name].calls)
