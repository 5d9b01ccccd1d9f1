"""
This version reads data directories that earlier versions wrote and that are checked in unchanged.

The log in such a directory lacks messages whose data its snapshots hold. If a snapshot is set aside and the state is
rebuilt from the log, the numbers are smaller, so the comparisons with recorded responses fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec.structs import replace

from kit.landing import FOLDERS, Landing, ask, broker_on, differences, lasting
from kit.pipeline import Pipeline
from tokentrace.bus import Bus, Message, jetstream, subjects
from tokentrace.config import load
from tokentrace.metrics import (
    GROUPS,
    Aggregates,
    Answer,
    CustomMetric,
    CustomValue,
    finish,
    merge_results,
    parse_custom_metrics,
)
from tokentrace.metrics.cost import render_cost, render_not_priced
from tokentrace.records import AlertEvent, Position
from tokentrace.service.machine import Machine
from tokentrace.service.snapshots import Snapshots
from tokentrace_aggregator.shard import Shard
from tokentrace_alerter.machine import SETTLED_NS, AlerterMachine
from tokentrace_alerter.rule_store import RuleStore
from tokentrace_alerter.service import Config as AlerterConfig
from tokentrace_api.metrics_params import MetricsParams, MetricsQuery, parse_metrics_query

#: Directories of versions whose custom metrics counted every kind of span.
CUSTOM_OF_EVERY_KIND = ("landing_9",)
#: The name of the rule without a filter.
UNFILTERED = "everything"
#: What the alerter says of a rule beside its state: where it comes from, its silence and its deliveries.
ADDED_WHEN_ASKED = (
    "source",
    "hides_rule_of_file",
    "last_delivery",
    "silenced_at",
    "silenced_by",
    "silence_comment",
    "silence_ended",
)
ONE_MORE: dict[str, Any] = {
    "name": "after the upgrade",
    "caller": "upgrade",
    "model": "upgrade",
    "provider": "upgrade",
    "prompt_tokens": 7,
    "comp_tokens": 3,
    "cost_usd": 0.000000017,
    "latency_ms": 1,
}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def landing(request: pytest.FixtureRequest) -> Landing:
    return Landing(request.param)


def test_there_is_a_directory_of_an_earlier_version() -> None:
    assert FOLDERS


# -- a whole pipeline on the directory


@pytest.fixture
def serving(landing: Landing, tmp_path: Path) -> Iterator[Pipeline]:
    landing.unpack(tmp_path)
    made = landing.serve(tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.mark.story
def test_responses_are_as_recorded_and_a_new_span_counts_once(landing: Landing, serving: Pipeline) -> None:
    expected = landing.expected
    assert_known(serving, expected)
    one, key = {**ONE_MORE, "trace_id": uuid.uuid4().hex, "span_id": "one-more"}, {"Idempotency-Key": uuid.uuid4().hex}
    for _ in range(2):
        assert serving.post("/spans", [one], key).status == 202
    serving.until(lambda: serving.get(f"/traces/{one['trace_id']}").status == 200, "stored")
    assert_known(serving, expected, one["trace_id"])
    assert serving.stop() == 0
    serving.start()
    assert_known(serving, expected, one["trace_id"])


def assert_known(serving: Pipeline, expected: dict[str, Any], more: str = "") -> None:
    """Check that every response is as recorded; *more* is the trace id of a later span, which must count once."""
    if more:
        total = expected["answers"]["/stats"]["total_spans"] + 1
        serving.until(lambda: serving.get("/stats").json()["total_spans"] == total, f"at {total} spans")
        serving.until(lambda: _considered(serving) == _considered_then(expected) + 1, "seen by the alerter")
    health = serving.get("/readyz").json()
    assert not {"lost", "damaged", "trouble"} & health.keys(), health
    wrong: list[str] = []
    for path, then in expected["answers"].items():
        wanted, found = lasting(path, then), ask(serving, path)
        if path in ("/traces", "/export"):
            found, later = _apart(found, more)
            assert len(later) == bool(more), path
        elif path == "/alerts":
            wanted, found = _by_name(wanted, more), _by_name(found)
        elif path == "/stats" and more:
            wanted = _with_one_more(wanted)
        elif path == "/metrics/prometheus" and more and "tokentrace_repeated_spans_total" in wanted:
            wanted = {**wanted, "tokentrace_repeated_spans_total": wanted["tokentrace_repeated_spans_total"] + 1}
        wrong += differences(wanted, found, path)
    for path in expected["gone"]:
        assert serving.get(path).status == 404, path
    assert not wrong, "\n".join(wrong[:40])
    if more:
        page = ask(serving, "/metrics/prometheus")
        assert page['tokentrace_spans_total{model="upgrade",provider="upgrade",status="ok"}'] == 1


def _considered(serving: Pipeline) -> int:
    return int(serving.get(f"/alerts/{UNFILTERED}/status").json()["spans_considered"])


def _considered_then(expected: dict[str, Any]) -> int:
    return next(int(rule["spans_considered"]) for rule in expected["answers"]["/alerts"] if rule["name"] == UNFILTERED)


def _apart(spans: list[dict[str, Any]], trace_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (spans of other traces, spans of *trace_id*)."""
    return [one for one in spans if one["trace_id"] != trace_id], [one for one in spans if one["trace_id"] == trace_id]


def _as_defined_now(rule: dict[str, Any]) -> dict[str, Any]:
    """
    Return the recorded state of a rule with the present meaning of ``firing`` and ``why_not_fired``.

    What the alerter adds when it is asked is left out.
    """
    shown = {key: value for key, value in rule.items() if key not in ADDED_WHEN_ASKED}
    shown["firing"] = rule["state"] == "firing"
    if "instances" in rule:
        shown["instances"] = [_why_it_warms(instance) for instance in rule["instances"]]
    return _why_it_warms(shown)


def _why_it_warms(shown: dict[str, Any]) -> dict[str, Any]:
    return {**shown, "why_not_fired": "warming" if shown["state"] == "warming" else shown["why_not_fired"]}


def _by_name(rules: list[dict[str, Any]], more: str = "") -> dict[str, Any]:
    named = {rule["name"]: dict(rule) for rule in rules}
    for rule in named.values():
        rule["spans_considered"] += bool(more) and not rule["filter"]
    return named


def _with_one_more(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the exact totals after ``ONE_MORE`` is added, without distributions and ratios, which change too."""
    added = {
        "total_spans": stats["total_spans"] + 1,
        "total_tokens_in": stats["total_tokens_in"] + ONE_MORE["prompt_tokens"],
        "total_tokens_out": stats["total_tokens_out"] + ONE_MORE["comp_tokens"],
        "total_cost_usd": (round(stats["total_cost_usd"] * 1e9) + round(ONE_MORE["cost_usd"] * 1e9)) / 1e9,
        "error_count": stats["error_count"],
    }
    operations = {**stats["by_operation"], ONE_MORE["name"]: {"count": 1, "errors": 0}}
    return added | {"by_operation": operations}


# -- snapshots without services, queried at the recorded instants, at which no data has aged out


class Kept(NamedTuple):
    """A directory, and the nats-server on its streams."""

    landing: Landing
    url: str


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Start a nats-server on the streams of a directory, without services; tests only read."""
    landing, directory = Landing(request.param), tmp_path_factory.mktemp("kept")
    broker = broker_on(landing.unpack(directory), directory / "broker")
    broker.start()
    yield Kept(landing, broker.url)
    broker.stop()


async def messages(bus: Bus, stream: str, filters: Sequence[str], after: Position | None) -> list[tuple[int, Message]]:
    """Return (creation time of the stream, message) for each message after *after*, none of which may be missing."""
    found: list[tuple[int, Message]] = []
    async with asyncio.timeout(20), contextlib.aclosing(bus.follow(stream, filters, after)) as feed:
        async for chunk in feed:
            assert chunk.missing is None or after is None, f"{stream}: {chunk.missing} are gone"
            assert not chunk.rewound, stream
            found += [(chunk.created_ns, message) for message in chunk.messages]
            if not chunk.pending:
                break
    return found


async def restored(bus: Bus, service: str, shard: int, machine: Machine, then: dict[str, Any]) -> None:
    """Load the newest snapshot into *machine*, and check that it is the recorded one and not one before it."""
    trouble = await Snapshots(bus, service, shard).load_into(machine)
    assert trouble is None
    assert machine.position is not None, "a snapshot is read, not set aside"
    assert machine.position.sequence == then["position"]


async def read_on(bus: Bus, machine: Machine, filters: Sequence[str]) -> None:
    """Fold the messages of the log after the snapshot; at least one must exist."""
    tail = await messages(bus, subjects.SPANS, filters, machine.position)
    assert tail, "something came after the snapshot"
    for created_ns, message in tail:
        machine.fold(message, created_ns)


@pytest.mark.story
async def test_snapshots_of_every_shard_are_read_and_give_the_recorded_windows(kept: Kept) -> None:
    expected, customs = (
        kept.landing.expected,
        list(parse_custom_metrics(load(str(kept.landing.config), {}).customs).values()),
    )
    shards = [Shard(shard, expected["shards"], customs) for shard in range(expected["shards"])]
    async with jetstream.connect(kept.url, name="test") as bus:
        for shard in shards:
            then = expected["snapshots"][f"aggregator.{shard.shard}"]
            await restored(bus, "aggregator", shard.shard, shard, then)
            assert shard.spans == then["spans"]
            await read_on(bus, shard, [subjects.shard_spans(shard.shard)])
            assert not shard.losses
        assert sum(shard.spans for shard in shards) == expected["answers"]["/stats"]["total_spans"]
        held = await bus.state(subjects.SPANS)
        assert held.first_sequence > 1, "the log begins behind the first messages"
    wrong: list[str] = []
    for window in expected["windows"]:
        question = parse_metrics_query(MetricsParams.of(list(window["given"].items())), window["now"] * 10**9)
        wrong += differences(_shown(window["answer"]), window_of(shards, question, customs), str(window["given"]))
        if "kind" not in window["given"] and kept.landing.folder.name in CUSTOM_OF_EVERY_KIND:
            # All kinds are still there.
            given = [*window["given"].items(), ("kind", "all")]
            every = window_of(shards, parse_metrics_query(MetricsParams.of(given), window["now"] * 10**9), customs)
            for name in ("steps", "support_latency"):
                assert every[name] == pytest.approx(window["answer"][name]), (name, window["given"])
    assert not wrong, "\n".join(wrong[:40])


def _shown(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of *answer* that depend on its window's spans, without the fields of every response."""
    passing = (
        "window",
        "quantile_error",
        "transport",
        "alerts",
        "rejected",
        "saved_from_double_count",
        "from",
        "to",
        "since",
    )
    return {key: value for key, value in answer.items() if key not in passing}


def window_of(shards: list[Shard], question: MetricsQuery, customs: list[CustomMetric]) -> dict[str, Any]:
    """Return the numbers of ``GET /metrics`` for *question*, computed by *shards* without services."""
    fields = sorted({field for group in GROUPS.values() for field in group.fields})
    query = replace(question.query, fields=fields, by_model=True, custom=[one.name for one in customs])
    partials = [finish(shard.answer(query, True)) for shard in shards]
    found: Answer = merge_results(partials, len(shards), query)

    def groups(figures: Aggregates, by_model: dict[str, Aggregates] | None = None) -> dict[str, Any]:
        shown = {
            name: render_cost(figures, by_model) if name == "cost" else group.render(figures)
            for name, group in GROUPS.items()
        }
        own = {one.name: one.value(figures.custom.get(one.name, CustomValue())) for one in customs}
        missing = render_not_priced({one.name: one.not_priced(figures) for one in customs if one.money})
        return {"span_count": figures.sums.spans, **shown, **own, "unpriced_custom": missing}

    shown = groups(found.total, found.models)
    if question.groupby:
        shown[f"by_{question.groupby}"] = {name: groups(figures) for name, figures in found.groups.items()}
    plain: dict[str, Any] = json.loads(msgspec.json.encode(shown))
    return plain


async def test_the_snapshot_of_the_alerter_is_read_and_rules_have_the_recorded_state(kept: Kept) -> None:
    expected, config = kept.landing.expected, AlerterConfig.of(load(str(kept.landing.config), {}))
    async with jetstream.connect(kept.url, name="test") as bus:
        machine = AlerterMachine(config.rules, config.project, shards=config.shards)
        rule_store = RuleStore(bus, config.rules, config.customs, config.cooldown_ns, config.allowed)
        rule_store.apply_to(machine, await rule_store.open())
        for _, message in await messages(bus, subjects.ALERTS, [subjects.ALL_ALERTS], None):
            machine.apply_event(msgspec.json.decode(message.payload, type=AlertEvent))
        await restored(bus, "alerter", 0, machine, expected["snapshots"]["alerter.0"])
        await read_on(bus, machine, [subjects.ALL_SPANS])
        machine.evaluate_until(expected["recorded_ns"] - SETTLED_NS)
    now_ns = expected["recorded_ns"]
    rendered = json.loads(msgspec.json.encode(machine.render(now_ns)))
    then = [_as_defined_now(rule) for rule in expected["answers"]["/alerts"]]
    wrong = differences(_by_name(then), _by_name(rendered))
    assert not wrong, "\n".join(wrong)


async def test_events_deliveries_and_dead_letters_are_there_as_they_were_written(kept: Kept) -> None:
    then = kept.landing.expected["streams"]
    async with jetstream.connect(kept.url, name="test") as bus:
        for stream, filters in (
            (subjects.ALERTS, subjects.ALL_ALERTS),
            (subjects.DELIVERIES, subjects.ALL_DELIVERIES),
            (subjects.REJECTED, "tokentrace.rejected.>"),
        ):
            found = [json.loads(message.payload) for _, message in await messages(bus, stream, [filters], None)]
            assert found
            assert found == then[stream]
