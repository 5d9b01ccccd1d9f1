"""Tests of single cases of metrics: largest sums, empty windows, edges of windows, attributes, restarts."""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
import pytest

from kit.examples import SEED, thinned
from kit.recount_checker import ATTRIBUTE_FILTERS, FILTERS, GROUP_ATTRIBUTES, Ask, Checker, instant_s
from kit.recount_numbers import GROUP_RECOUNTS, SCALARS, SPLIT_RECOUNTS
from kit.recount_services import MetricsServices, opened
from kit.recount_world import (
    CUSTOM_METRICS,
    DAY,
    DIMENSIONS,
    EXACT_UP_TO,
    HOUR,
    NOON_S,
    SECOND,
    make_template,
    make_templates,
    make_world,
    name_customs,
)
from kit.whole_snapshots import load, save
from tokentrace.bus import Message, subjects
from tokentrace.errors import ConfigError
from tokentrace.metrics import BREAKDOWNS, METRICS, parse_custom_metrics
from tokentrace.records import KINDS, Batch, encode_batches
from tokentrace_aggregator.shard import Shard


@pytest.mark.long
@pytest.mark.parametrize("restart", [False, True])
def test_sums_that_64_bits_cannot_hold_are_exact(services: MetricsServices, restart: bool) -> None:
    """The world has over 9,000 spans with the largest cost, latency and attribute that a span may have."""
    dice = random.Random(64)
    largest = {"cost_nusd": 10**15, "latency_ns": 30 * DAY * SECOND, "prompt_tokens": 2**40}
    templates = [
        make_template(times=9300, attributes={"x": 999_999_999.999999, "step": "plan"}, **largest),
        make_template(times=10, late_s=700, model="o3", attributes={"x": -999_999_999.999999}, **largest),
        make_template(times=30, late_s=60, attributes={"x": 0.1, "step": "act"}),
    ]
    world = make_world(templates, NOON_S + 77, 3, dice)
    assert sum(span.cost_nusd or 0 for span in world.spans) > 2**63
    with opened(services, world, CUSTOM_METRICS, dice, restart=restart):
        for ask in (Ask(window="20m", groupby="model"), Ask(groupby="step")):
            checker = Checker(services, ask)
            checker.everything()
            checker.attribute("x")
            for name in ("total_cost", "cost_per_call", "latency_avg", "total_tokens"):
                checker.scalar(name)
            for custom in CUSTOM_METRICS:
                checker.custom(custom)
        checker = Checker(services, Ask(window="20m", groupby="model"))
        for name in ("total_cost", "prompt_tokens", *(custom["name"] for custom in CUSTOM_METRICS)):
            checker.series(name, 60)


@pytest.mark.long
def test_over_the_bus_and_through_a_crash_every_metric_equals_a_recount(
    services: MetricsServices, tmp_path: Path
) -> None:
    """After about half of the messages the aggregator is cancelled, the api stopped, and both are started again."""
    now_s = int(time.time())
    dice = random.Random(3)
    world = make_world(make_templates(dice, 40, 60), now_s, 3, dice, most=5)
    services.serve(world, CUSTOM_METRICS, tmp_path)
    try:
        for ask in (Ask(), Ask(groupby="model"), Ask(kind="all", groupby="step"), Ask(attributes={"step": "plan"})):
            checker = Checker(services, ask)
            checker.everything()
            checker.transport()
            for name in SCALARS:
                checker.scalar(name)
            for name in GROUP_RECOUNTS:
                checker.group(name)
            for name, (dimension, _) in SPLIT_RECOUNTS.items():
                checker.split(name, "" if dimension else "step")
            for custom in CUSTOM_METRICS:
                checker.custom(custom)
        Checker(services, Ask(groupby="caller")).series("total_cost", 60)
        Checker(services, Ask(groupby="caller")).series("own_sum", 60)
    finally:
        services.stop()


#: Metrics that count spans; a count of no spans is 0.
COUNTS = (
    "span_count",
    "error_count",
    "timeout_count",
    "unpriced_span_count",
    "partly_priced_span_count",
    *(custom["name"] for custom in CUSTOM_METRICS if custom["type"] == "count"),
)


@pytest.mark.long
def test_a_metric_without_spans_is_null_and_a_count_of_spans_is_0(services: MetricsServices) -> None:
    """This holds for every metric, in a window without spans and with filters that no span matches."""
    dice = random.Random(22)
    world = make_world([make_template(arrived_ago_s=HOUR)], NOON_S, 2, dice)
    with opened(services, world, CUSTOM_METRICS, dice):
        for parameters in ({"window": "1m"}, {"window": "6h", "model": "o3"}, {"window": "6h", "attr.step": "none"}):
            for name in (*METRICS, *(custom["name"] for custom in CUSTOM_METRICS)):
                body = services.get(f"/metrics/{name}", {**parameters, "groupby": "model"})
                nothing = 0 if name in COUNTS else None
                assert (body["value"], body["by_model"], body["span_count"]) == (nothing, {}, 0), (name, parameters)
            overview = services.get("/metrics", parameters)
            assert overview["cost"]["total_usd"] is None
            assert [number for name, number in overview["tokens"].items() if number is not None] == []
            body = services.get("/metrics/attr.x", parameters)
            assert (body["count"], body["sum"], body["avg"], body["p50"], body["p95"]) == (0, None, None, None, None)
            for name in BREAKDOWNS:
                assert (
                    services.get(f"/metrics/{name}", parameters | ({"key": "step"} if "attr" in name else {}))["value"]
                    == {}
                )


@pytest.mark.parametrize("count", [99, 100, 101, 300])
def test_quantiles_are_exact_up_to_100_values_and_state_their_error_beyond(
    services: MetricsServices, count: int
) -> None:
    """The values are on three shards and in two series, so that no shard knows their number."""
    dice = random.Random(count)
    halves = [make_template(times=count // 2, caller="b"), make_template(times=count - count // 2, late_s=30)]
    for half in halves:
        half |= {"latency_ns": 1_234_567, "ttft_ns": 345_678, "prompt_tokens": 7, "score": 333_333_333}
        half["attributes"] = {"x": 0.1}
    with opened(services, make_world(halves, NOON_S, 3, dice), CUSTOM_METRICS, dice):
        for name in ("latency_p50", "latency_p99", "ttft_p95", "prompt_token_p95", "quality_p10"):
            Checker(services, Ask()).scalar(name)
            body = services.get(f"/metrics/{name}", {})
            assert body["span_count"] == count
            assert (body["quantile_error"] == 0) == (count <= EXACT_UP_TO)
            # Quantiles from stored spans are always exact.
            assert services.get(f"/metrics/{name}", {"attr.x": "0.1"})["quantile_error"] == 0
        Checker(services, Ask(groupby="caller")).custom(CUSTOM_METRICS[2])


@pytest.mark.long
def test_every_group_every_filter_and_every_kind_equals_a_recount(services: MetricsServices) -> None:
    """A whole run queries each once on the same world, so that none is left to chance."""
    dice = random.Random(9)
    customs = name_customs([], dice)
    world = make_world(make_templates(dice, 120, DAY), NOON_S + 4321, 3, dice)
    groups = [Ask(window="24h", groupby=key) for key in (*DIMENSIONS, *GROUP_ATTRIBUTES)]
    filters = [Ask(window="24h", filters=filters) for filters in FILTERS]
    attributes = [Ask(window="24h", attributes=attributes) for attributes in ATTRIBUTE_FILTERS]
    kinds = [Ask(window="24h", kind=kind, groupby="attr.step") for kind in (*KINDS, "all")]
    with opened(services, world, customs, dice, restart=True):
        asks = [*groups, *filters, *attributes, *kinds]
        for ask in thinned(asks, random.Random(SEED)):
            checker = Checker(services, ask)
            checker.everything()
            checker.scalar("latency_p95")
            checker.group("cost")
            checker.attribute("x")


def test_a_span_up_to_five_minutes_ahead_counts_at_its_end_and_one_beyond_at_its_arrival(
    services: MetricsServices,
) -> None:
    """This holds to the nanosecond, in the rollups, in the store and for a custom metric."""
    dice = random.Random(5)
    ahead = [make_template(arrived_ago_s=350, late_s=-300, ns=ns, attributes={"x": 0.1}) for ns in (0, 1)]
    with opened(services, make_world(ahead, NOON_S, 1, dice), CUSTOM_METRICS, dice):
        for parameters in ({}, {"groupby": "x"}, {"attr.x": "0.1"}):
            for name in ("span_count", "own_sum"):
                points = [
                    services.get(f"/metrics/{name}", {"window": window, **parameters}) for window in ("60s", "10m")
                ]
                assert [point["span_count"] for point in points] == [1, 2]
        assert [services.get("/metrics/attr.x", {"window": window})["count"] for window in ("60s", "10m")] == [1, 2]


def test_a_custom_metric_added_at_a_restart_states_since_when_it_is_measured(services: MetricsServices) -> None:
    dice = random.Random(5)
    early = make_world([make_template(arrived_ago_s=2 * HOUR, attributes={"x": 0.1})], NOON_S, 1, dice)
    with opened(services, early, CUSTOM_METRICS, dice):
        # The aggregator is restarted with one more metric.
        (aggregator,) = (candidate for candidate in services.aggregators if candidate.machines)
        snapshot = save(aggregator.machines[0])
        more = [*CUSTOM_METRICS, {"name": "own_new", "type": "sum", "field": "attr.x"}]
        machine = Shard(0, 1, tuple(parse_custom_metrics(more).values()))
        load(machine, snapshot)
        aggregator.machines[0] = machine
        services.start_api(parse_custom_metrics(more))
        known, new = (services.get(f"/metrics/{name}", {"window": "6h"}) for name in ("own_sum", "own_new"))
        assert (known["value"], known["since"]) == (0.1, None)
        assert new["value"] is None
        assert instant_s(new["since"]) == NOON_S - 2 * HOUR


def test_a_model_whose_spans_are_free_is_listed(services: MetricsServices) -> None:
    """A free span contributes to cost even if it is not of kind llm."""
    dice = random.Random(1)
    templates = [
        make_template(),
        make_template(kind="embedding", model="free", cost_nusd=0, attributes={"step": "embed"}),
    ]
    with opened(services, make_world(templates, NOON_S, 1, dice), (), dice):
        assert services.get("/metrics/total_cost", {"model": "free"})["value"] == 0
        assert services.get("/metrics/cost_by_attribute", {"key": "step"})["value"] == {"embed": 0}
        assert services.get("/metrics/cost_by_model", {})["value"] == {"gpt-4o": 0.001375, "free": 0}


def test_a_partly_priced_span_that_costs_0_is_listed_under_its_model(services: MetricsServices) -> None:
    dice = random.Random(1)
    world = make_world([make_template(kind="tool", model="o3", cost_nusd=0)], NOON_S, 1, dice)
    partly = [msgspec.structs.replace(span, cost_source="partly_priced") for span in world.spans]
    message = world.streams[0][0]._replace(payload=encode_batches([Batch(id="request", spans=partly)]))
    with opened(services, world._replace(spans=partly, streams=[[message]]), (), dice):
        body = services.get("/metrics/cost", {})
        assert body["partly_priced_span_count"] == 1
        assert body["unpriced_by_model"] == {"o3": {"unpriced_span_count": 0, "partly_priced_span_count": 1}}


def test_the_path_is_used_if_the_literal_attribute_is_null(services: MetricsServices) -> None:
    dice = random.Random(1)
    templates = [make_template(attributes={"deep.n": None, "deep": {"n": 5}})]
    own = [{"name": "own", "type": "sum", "field": "attr.deep.n"}]
    with opened(services, make_world(templates, NOON_S, 1, dice), own, dice):
        assert services.get("/metrics/span_count", {"groupby": "deep.n"})["by_deep.n"] == {"5": 1}
        assert services.get("/metrics/own", {})["value"] == 5
        assert services.get("/metrics/own", {"attr.deep.n": "5"})["value"] == 5
        assert services.get("/metrics/attr.deep.n", {})["sum"] == 5


def test_groups_and_custom_metrics_agree_on_a_path_into_a_list(services: MetricsServices) -> None:
    dice = random.Random(1)
    own = [{"name": "own", "type": "count", "filter_key": "parts.0"}]
    with opened(services, make_world([make_template(attributes={"parts": ["a"]})], NOON_S, 1, dice), own, dice):
        by_path = services.get("/metrics/span_count", {"groupby": "parts.0"})["by_parts.0"]
        assert bool(by_path) == bool(services.get("/metrics/own", {})["value"])


@pytest.mark.long
def test_filters_and_groups_use_the_same_text_of_a_number(services: MetricsServices) -> None:
    dice = random.Random(1)
    values = [0.1, 1e-7, 3e-5, 1e15, 1e16, 1.2345678901234568e17, 1e21, 1e22, -0.0, 2**64 - 1]
    templates = [make_template(attributes={"size": value}) for value in values]
    world = make_world(templates, NOON_S, 1, dice)
    with opened(services, world, (), dice):
        texts = list(services.get("/metrics/span_count", {"groupby": "size"})["by_size"])
    assert len(texts) == len(values)
    own = [
        {"name": f"own_{n}", "type": "count", "filter_key": "size", "filter_val": text} for n, text in enumerate(texts)
    ]
    with opened(services, world, own, dice):
        for custom in own:
            text = custom["filter_val"]
            assert services.get("/metrics/span_count", {"attr.size": text})["value"] == 1
            assert services.get(f"/metrics/{custom['name']}", {})["value"] == 1, text


@pytest.mark.parametrize("large", [1_000_000_000, 9_000_000_000, 10_000_000_000, 1_700_000_000_000])
def test_a_numeric_attribute_that_is_too_large_is_counted_as_left_out(services: MetricsServices, large: int) -> None:
    """In units of 1e-9 a value must fit 64 bits, so values from 9.2e9 on are left out."""
    dice = random.Random(1)
    templates = [make_template(attributes={"size": value}) for value in (large, 1)]
    own = [{"name": "own", "type": "sum", "field": "attr.size"}]
    with opened(services, make_world(templates, NOON_S, 1, dice), own, dice):
        body = services.get("/metrics/attr.size", {})
        fits = large < 9_200_000_000
        assert (body["count"], body["left_out"]) == ((2, 0) if fits else (1, 1))
        assert body["sum"] == services.get("/metrics/own", {})["value"] == (large + 1 if fits else 1)


@pytest.mark.parametrize("window", ["1500ms", "1s999ms", "59s1ns"])
def test_a_window_with_a_fraction_of_a_second_is_never_shorter_than_requested(
    services: MetricsServices, window: str
) -> None:
    """The interval that the answer names begins no later than the requested one."""
    dice = random.Random(1)
    length_ns = {"1500ms": 15 * 10**8, "1s999ms": 1999 * 10**6, "59s1ns": 59 * SECOND + 1}[window]
    with opened(services, make_world([make_template()], NOON_S, 1, dice), (), dice):
        services.now_ns = NOON_S * SECOND
        assert instant_s(services.get("/metrics/span_count", {"window": window})["from"]) * SECOND <= (
            NOON_S * SECOND - length_ns
        )


def test_exemplars_of_a_custom_metric_are_spans_that_it_measures(services: MetricsServices) -> None:
    dice = random.Random(1)
    templates = [
        make_template(times=2, attributes={"step": "plan"}),
        make_template(times=2, cost_nusd=10**9, attributes={"step": "act"}),
    ]
    own = [{"name": "cost_of_plans", "type": "sum", "field": "cost", "filter_key": "step", "filter_val": "plan"}]
    world = make_world(templates, NOON_S, 1, dice)
    plans = {span.span_id for span in world.spans if span.attributes["step"] == "plan"}
    with opened(services, world, own, dice):
        body = services.get("/metrics/cost_of_plans", {})
        assert body["span_count"] == 2
        assert {exemplar["span_id"] for exemplar in body.get("exemplars", [])} <= plans


@pytest.mark.parametrize("name", ["transport_sent", "transport_queue_depth", "alert_firings", "by_model"])
def test_a_custom_metric_cannot_have_a_name_that_is_in_use(name: str) -> None:
    with pytest.raises(ConfigError, match=r"custom_metrics\[0\]\.name"):
        parse_custom_metrics([{"name": name, "type": "count"}])


@pytest.mark.parametrize("ahead", [50, 300])
def test_calls_from_a_fast_clock_leave_the_quantiles_of_the_window_exact(services: MetricsServices, ahead: int) -> None:
    """Quantiles of 100 values in a window are exact, even if many spans end after it."""
    dice = random.Random(1)
    world = make_world([make_template(times=100, arrived_ago_s=200, latency_ns=1_234_567)], NOON_S, 1, dice)
    for number in range(ahead):
        arrived_ns = (NOON_S - 190) * SECOND + number * SECOND // 2
        span = msgspec.structs.replace(
            world.spans[0], span_id=f"ahead-{number}", ended_ns=arrived_ns + 250 * SECOND, arrived_ns=arrived_ns
        )
        world.spans.append(span)
        payload = encode_batches([Batch(id=f"ahead-{number}", spans=[span])])
        subject = subjects.spans("default", 0)
        world.streams[0].append(Message(subject, payload, len(world.streams[0]) + 1, arrived_ns, {}))
    with opened(services, world, CUSTOM_METRICS, dice):
        body = services.get("/metrics/latency_p95", {})
        assert body["span_count"] == 100
        assert body["quantile_error"] == 0
        Checker(services, Ask()).scalar("latency_p95")
