"""Results of an aggregator's shards: they equal a recount of the spans, with one shard and with three, in any order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokentrace.metrics.reader
import tokentrace.rollup.reader
from kit.builders import make_span
from kit.examples import examples
from kit.shard_results import as_received
from kit.whole_snapshots import CAPACITY, load, parts_of, save
from tokentrace.bus import Message
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.dedup import LeftOut
from tokentrace.errors import Rejected
from tokentrace.metrics import (
    GROUPS,
    Answer,
    CustomMetric,
    Query,
    ShardResult,
    encode_result,
    finish,
    merge_results,
    pieces,
)
from tokentrace.metrics.cost import render_cost
from tokentrace.records import Batch, Span, decode_batches, encode_batches, shard_of
from tokentrace.rollup import RELATIVE_ERROR
from tokentrace_aggregator.service import Aggregator, Config
from tokentrace_aggregator.shard import Shard

NOW_S = 1_790_000_000
SECOND = 10**9
CREATED = 7
FIELDS = ["latency", "score"]

spans: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    age_s=st.one_of(
        st.integers(-200, 130), st.integers(0, 1300), st.integers(0, 4 * 3600), st.integers(0, 40 * 86400), st.just(0)
    ),
    kind=st.sampled_from(["llm", "llm", "llm", "embedding", "tool", "agent"]),
    model=st.sampled_from(["gpt-4o", "o3", ""]),
    provider=st.sampled_from(["openai", ""]),
    caller=st.sampled_from(["a", "b"]),
    name=st.sampled_from(["x", "y"]),
    status=st.sampled_from(["ok", "ok", "error", "timeout"]),
    prompt_tokens=st.sampled_from([0, 1, 374, 2**40]),
    completion_tokens=st.sampled_from([0, 44, 2**40]),
    cost_nusd=st.sampled_from([None, 0, 1, 1_375_000, 10**15]),
    latency_ns=st.sampled_from([0, 1, 10**6, 1_234_567_890, 30 * 86400 * SECOND]),
    score=st.sampled_from([None, None, 0, 333_333_333, 10**9]),
)


def make_messages(
    dicts: list[dict[str, Any]], shards: int, dice: random.Random
) -> tuple[list[list[Message]], list[Span]]:
    """
    Return (the stream of each shard, every span once).

    The batches have random sizes. Some occur twice, and some spans occur again in other batches of their shard.
    """
    made = []
    for number, fields in enumerate(dicts):
        age = fields.pop("age_s")
        arrived = NOW_S - dice.choice([0, 0, 1, 60]) if age < 1000 else NOW_S - dice.randrange(0, 30)
        ended = (NOW_S - age) * SECOND + dice.randrange(SECOND)
        total = fields["prompt_tokens"] + fields["completion_tokens"]
        made.append(
            Span(
                trace_id=f"{number:032x}",
                span_id="1",
                ended_ns=ended,
                started_ns=ended - 5,
                arrived_ns=arrived * SECOND,
                total_tokens=total,
                **fields,
            )
        )
    rest = list(made)
    batches: list[Batch] = []
    while rest:
        size = dice.choice([1, 2, 5, 40])
        batches.append(Batch(id=f"default.r{dice.randrange(2)}.0", sequence=len(batches) + 1, spans=rest[:size]))
        rest = rest[size:]
    sent = batches + [batch for batch in batches if dice.random() < 0.3]
    dice.shuffle(sent)
    streams: list[list[Message]] = [[] for _ in range(shards)]
    told: list[list[Span]] = [[] for _ in range(shards)]
    for number, batch in enumerate(sent):
        shard = shard_of(batch, shards)
        stream = streams[shard]
        told[shard] += batch.spans
        batches = [batch]
        if dice.random() < 0.3:
            again = dice.sample(told[shard], min(len(told[shard]), dice.choice([1, 3, 20])))
            request = dice.random() < 0.5
            id, sequence = (f"again-{number}", 0) if request else ("default.r9.0", number + 1)
            batches.append(Batch(id=id, sequence=sequence, spans=again, layout=1, part=shard))
        for one in batches:
            time_ns = (NOW_S - 100) * SECOND + len(stream) * 10**7
            stream.append(
                Message(f"tokentrace.spans.default.{shard}", encode_batches([one]), len(stream) + 1, time_ns, {})
            )
    return streams, made


def ask(machines: list[Shard], query: Query) -> Answer:
    results = [as_received(finish(machine.answer(query, True))) for machine in machines]
    return merge_results(results, len(machines), query)


def make_shard(shard: int, shards: int) -> Shard:
    return Shard(shard, shards, capacity=CAPACITY)


def fold(messages: list[list[Message]], dice: random.Random, *, restart: bool = False) -> list[Shard]:
    machines = []
    for shard, stream in enumerate(messages):
        machine = make_shard(shard, len(messages))
        cut = dice.randrange(len(stream) + 1) if restart else -1
        for index, message in enumerate(stream):
            if index == cut:
                snapshot = save(machine)
                machine.fold(message, CREATED)  # lost by the restart, because the snapshot is older; folded again below
                machine = make_shard(shard, len(messages))
                load(machine, snapshot)
                assert machine.position is None or machine.position.sequence == index
            machine.fold(message, CREATED)
            if dice.random() < 0.1:
                machine.tick(message.time_ns)
        machines.append(machine)
    return machines


def recount(every: list[Span], answer: Answer, query: Query, group: str | None = None) -> dict[str, Any]:
    """Return the sums for the interval of *answer*, and the values of each distribution, computed from the spans."""
    inside = []
    for span in every:
        event = span.ended_ns if span.ended_ns <= span.arrived_ns + 300 * SECOND else span.arrived_ns
        if answer.from_s <= event // SECOND < answer.to_s:
            inside.append(span)
    matching = [s for s in inside if all((getattr(s, k) or "unknown") == v for k, v in query.filters.items())]
    if group is not None:
        matching = [s for s in matching if (getattr(s, query.groupby) or "unknown") == group]
    calls = [s for s in matching if query.kind in ("all", s.kind)]
    wide = calls if query.only_kind else matching
    rollups = ("http", "agent", "workflow", "chain")
    paid = [s for s in wide if s.kind not in rollups]
    # A span of such a kind repeats the tokens of its children.
    used = [s for s in calls if s.kind not in rollups]
    latencies = [s.latency_ns for s in calls if s.latency_ns]
    scores = [s.score for s in wide if s.score is not None]
    return {
        "spans": len(calls),
        "cost": sum((Decimal(s.cost_nusd) for s in paid if s.cost_nusd is not None), Decimal(0)),
        "unpriced": sum(s.cost_nusd is None for s in paid),
        "prompt": sum(s.prompt_tokens for s in used),
        "completion": sum(s.completion_tokens for s in used),
        "total": sum(s.total_tokens for s in used),
        "errors": sum(s.status == "error" for s in calls),
        "timeouts": sum(s.status == "timeout" for s in calls),
        "latency_n": len(latencies),
        "latency": sum(latencies),
        "score": sum(scores),
        "score_n": len(scores),
        "quantiles": {"latency": latencies, "score": scores},
    }


def assert_equal(aggregates: Any, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name != "quantiles":
            assert getattr(aggregates.sums, name) == value, name
    for field, values in expected["quantiles"].items():
        for q in (0.0, 0.1, 0.5, 0.95, 0.99, 1.0):
            got = aggregates.summary(field).quantile(q)
            if not values:
                assert got is None
                continue
            error = 1e-12 if len(values) <= 100 else RELATIVE_ERROR + 1e-9
            assert got == pytest.approx(float(np.quantile(np.array(values, float), q)), rel=error, abs=1e-6)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(spans, max_size=260),
    st.integers(0, 2**32),
    st.sampled_from([1, 10, 60, 1200, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400]),
    st.sampled_from(["llm", "tool", "agent", "all"]),
    st.sampled_from([{}, {"model": "gpt-4o"}, {"status": "error", "caller": "a"}, {"provider": "unknown"}]),
    st.sampled_from(["model", "caller", "provider", "status", "kind", "name"]),
    st.sampled_from([250_000, 0]),
)
def test_sums_and_quantiles_equal_a_recount_of_the_spans(
    dicts: list[dict[str, Any]],
    seed: int,
    window_s: int,
    kind: str,
    filters: dict[str, str],
    groupby: str,
    many_entries: int,
) -> None:
    dice = random.Random(seed)
    only_kind = kind in ("tool", "agent")
    query = Query(
        from_s=NOW_S - window_s,
        to_s=NOW_S + 1,
        now_s=NOW_S,
        kind=kind,
        only_kind=only_kind,
        filters=filters,
        groupby=groupby,
        fields=FIELDS,
    )
    copies = [[dict(fields) for fields in dicts] for _ in range(3)]
    for variant, shards, restart in ((copies[0], 1, False), (copies[1], 3, False), (copies[2], 3, True)):
        streams, every = make_messages(variant, shards, random.Random(seed))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokentrace.metrics.reader, "_PLACES", 3 if many_entries == 0 else 256)
            patch.setattr(tokentrace.metrics.reader, "_MANY_ENTRIES", many_entries)
            answer = ask(fold(streams, dice, restart=restart), query)
        assert answer.from_s <= NOW_S - window_s
        assert answer.to_s == NOW_S + 1
        assert_equal(answer.total, recount(every, answer, query))
        for name, aggregates in answer.groups.items():
            assert_equal(aggregates, recount(every, answer, query, name))
        assert sum(aggregates.sums.cost for aggregates in answer.groups.values()) == answer.total.sums.cost
        for group in GROUPS.values():
            group.render(answer.total)
        render_cost(answer.total, answer.groups)


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(spans, max_size=260),
    st.integers(0, 2**32),
    st.sampled_from([(60, 1), (1200, 7), (3600, 600), (86400, 3600), (7 * 86400, 86400), (30 * 86400, 6 * 3600)]),
    st.sampled_from(["llm", "tool", "all"]),
    st.sampled_from([{}, {"model": "gpt-4o"}, {"status": "error", "caller": "a"}]),
    st.sampled_from(["", "model", "name"]),
    st.sampled_from([1, 40, 8192]),
)
def test_a_point_of_a_series_equals_a_recount_of_its_step_for_several_portion_sizes(
    dicts: list[dict[str, Any]],
    seed: int,
    lengths: tuple[int, int],
    kind: str,
    filters: dict[str, str],
    groupby: str,
    portion_rows: int,
) -> None:
    (window_s, step_s), dice = lengths, random.Random(seed)
    query = Query(
        what="series",
        from_s=NOW_S - window_s,
        to_s=NOW_S + 1,
        now_s=NOW_S,
        step_s=step_s,
        kind=kind,
        filters=filters,
        groupby=groupby,
        fields=FIELDS,
    )
    streams, every = make_messages(dicts, 3, random.Random(seed))
    machines = fold(streams, dice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokentrace.rollup.reader, "_PORTION_ROWS", portion_rows)
        answer = ask(machines, query)
    starts = [point.start_s for point in answer.points]
    assert starts[0] == answer.from_s <= NOW_S - window_s
    for point, start_s, end_s in zip(answer.points, starts, [*starts[1:], answer.to_s], strict=True):
        assert start_s % step_s == 0 or start_s == answer.from_s
        step = Answer(from_s=start_s, to_s=end_s)
        assert_equal(point.total, recount(every, step, query))
        for name, aggregates in point.groups.items():
            assert_equal(aggregates, recount(every, step, query, name))
        if groupby:
            assert sum(aggregates.sums.spans for aggregates in point.groups.values()) == point.total.sums.spans


def test_messages_are_folded_between_the_portions_of_a_series(make_dice: random.Random) -> None:
    dicts = [
        {"age_s": age, "kind": "llm", "name": f"n{age}", "cost_nusd": 1, "prompt_tokens": 1, "completion_tokens": 0}
        for age in range(600)
    ]
    (stream,), _ = make_messages(dicts, 1, make_dice)
    stream.sort(key=lambda message: max(span.ended_ns for span in decode_batches(message.payload)[0].spans))
    machine, rest = make_shard(0, 1), iter(stream)
    query = Query(what="series", from_s=NOW_S - 600, to_s=NOW_S + 1, now_s=NOW_S, step_s=10, groupby="name")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokentrace.rollup.reader, "_PORTION_ROWS", 1)
        *pauses, result = folding(machine, query, rest, 2)
    assert len(pauses) > 60
    assert result is not None
    assert len(result.points) == 61
    assert sum(point.total.sums.spans for point in result.points) > 0


def folding(machine: Shard, query: Query, rest: Iterator[Message], count: int) -> Iterator[ShardResult | None]:
    """Yield the pieces of the result of *query*; at each pause, fold *count* more messages of *rest*."""
    for piece in pieces(machine.answer(query, True)):
        yield piece
        if piece is None:
            for message in itertools.islice(rest, count):
                machine.fold(message, CREATED)


def test_a_window_does_not_include_messages_folded_while_it_is_read(make_dice: random.Random) -> None:
    common = {"kind": "llm", "cost_nusd": 1, "completion_tokens": 0}
    dicts = [
        {"age_s": n % 50, "name": f"n{n % 90}", "prompt_tokens": n, "latency_ns": 10**9 * n, **common}
        for n in range(2000)
    ]
    (stream,), _ = make_messages(dicts, 1, make_dice)
    machine, rest = make_shard(0, 1), iter(stream)
    for message in itertools.islice(rest, len(stream) // 2):
        machine.fold(message, CREATED)
    query = Query(from_s=NOW_S - 60, to_s=NOW_S + 1, now_s=NOW_S, groupby="name", by_model=True, fields=FIELDS)
    before = finish(machine.answer(query, True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokentrace.metrics.reader, "_PLACES", 6)
        patch.setattr(tokentrace.metrics.reader, "_MANY_ENTRIES", 1)
        *pauses, result = folding(machine, query, rest, 3)
    assert len(pauses) > 20
    assert result is not None
    assert (result.position, result.total.sums, result.models) == (before.position, before.total.sums, before.models)
    assert result.groups.keys() == before.groups.keys()
    pairs = [(before.groups[name], result.groups[name]) for name in result.groups]
    for expected, actual in [(before.total, result.total), *pairs]:
        assert expected.sums == actual.sums
        assert expected.summary("latency").count == actual.summary("latency").count
        # Messages folded during the read may displace unrounded values; the quantile then comes from the histogram.
        median = expected.summary("latency").quantile(0.5)
        assert actual.summary("latency").quantile(0.5) == pytest.approx(median, rel=2 * RELATIVE_ERROR)
    assert finish(machine.answer(query, True)).total.sums.spans > result.total.sums.spans


def test_cumulative_counters_count_every_span_once_even_if_it_is_months_late(make_dice: random.Random) -> None:
    dicts = [
        {
            "age_s": age,
            "kind": "llm",
            "name": "x",
            "cost_nusd": 5,
            "prompt_tokens": 3,
            "completion_tokens": 0,
            "status": "error" if age % 2 else "ok",
        }
        for age in (0, 1, 5000, 100_000, 40 * 86400, 300 * 86400)
    ]
    streams, _ = make_messages(dicts, 3, make_dice)
    answer = ask(fold(streams, make_dice), Query(what="lifetime"))
    assert (answer.total.sums.spans, answer.total.sums.cost, answer.total.sums.prompt) == (6, 30, 18)
    assert answer.cumulative.by_operation == {"x": (6, 1)}


def test_of_a_call_told_in_three_batches_the_first_one_counts_before_and_after_a_restart() -> None:
    machine = make_shard(0, 1)
    for number, (tokens, cost) in enumerate([(100, 1), (200, 2), (150, 3)], start=1):
        given = {"prompt_tokens": tokens, "cost_nusd": cost, "ended_ns": NOW_S * SECOND, "arrived_ns": NOW_S * SECOND}
        span = make_span(trace_id="t", span_id="a", **given)
        payload = encode_batches([Batch(id=f"default.web.{number}", sequence=int(number == 2), spans=[span])])
        machine.fold(Message("tokentrace.spans.default.0", payload, number, NOW_S * SECOND, {}), CREATED)
        snapshot = save(machine)
        machine = make_shard(0, 1)
        load(machine, snapshot)
    window = finish(machine.answer(Query(from_s=NOW_S - 60, to_s=NOW_S + 1, now_s=NOW_S), True))
    lifetime = finish(machine.answer(Query(what="lifetime"), True))
    assert lifetime.cumulative is not None
    for sums in (window.total.sums, lifetime.total.sums):
        assert (sums.spans, sums.prompt, sums.cost) == (1, 100, 1)
    assert lifetime.cumulative.left_out == LeftOut(2, repeated=2, conflicting=2, conflicting_nusd=5)
    # The reporter did send its span.
    assert (machine.spans, machine.batches, lifetime.transport.sent) == (1, 1, 1)


def test_the_own_metrics_of_an_aggregator_count_batches_and_spans_that_came_again() -> None:
    aggregator = Aggregator(MemoryBus(MemoryBroker()), Config(2, (1,)))
    one, other = make_span(), make_span()
    told = [Batch(id="a.b.1", sequence=1, spans=[one]), Batch(id="request", spans=[one, other, other])]
    for number, batch in enumerate([*told, *told], start=1):
        message = Message("tokentrace.spans.default.1", encode_batches([batch]), number, NOW_S * SECOND, {})
        aggregator.machines[0].fold(message, CREATED)
    values = {sample.name.removeprefix("tokentrace_aggregator_"): sample.value for sample in aggregator.samples()}
    # Each span of a batch without a number is compared; a numbered batch is skipped before that.
    assert {name: values[name] for name in ("spans_total", "batches_total", "repeated_spans_total")} == {
        "spans_total": 2,
        "batches_total": 2,
        "repeated_spans_total": 5,
    }
    assert values["duplicate_batches_total"] == values["repeated_total"] == 2


def test_the_same_ids_in_two_projects_are_two_calls() -> None:
    machine = make_shard(0, 1)
    span = make_span(ended_ns=NOW_S * SECOND)
    for number, project in enumerate(["default", "shop", "default"], start=1):
        payload = encode_batches([Batch(id=f"request-{number}", spans=[span])])
        machine.fold(Message(f"tokentrace.spans.{project}.0", payload, number, NOW_S * SECOND, {}), CREATED)
    assert machine.spans == 2


def test_of_two_results_of_a_shard_the_one_that_read_further_is_used(make_dice: random.Random) -> None:
    dicts = [{"age_s": 1, "kind": "llm", "cost_nusd": 1, "prompt_tokens": 1, "completion_tokens": 0} for _ in range(9)]
    (stream,), _ = make_messages(dicts, 1, make_dice)
    ahead, behind = make_shard(0, 1), make_shard(0, 1)
    for message in stream:
        ahead.fold(message, CREATED)
    behind.fold(stream[0], CREATED)
    query = Query(from_s=NOW_S - 60, to_s=NOW_S + 1, now_s=NOW_S)
    answer = merge_results([finish(behind.answer(query, True)), finish(ahead.answer(query, True))], 1, query)
    assert answer.total.sums.spans == 9


def test_a_missing_shard_is_named() -> None:
    query = Query(from_s=NOW_S - 60, to_s=NOW_S + 1, now_s=NOW_S)
    answer = merge_results([finish(make_shard(1, 3).answer(query, True))], 3, query)
    assert answer.missing_shards == [0, 2]
    assert not answer.caught_up


def test_since_ns_is_the_time_of_the_first_message_after_a_gap(make_dice: random.Random) -> None:
    dicts = [{"age_s": 1, "kind": "llm", "prompt_tokens": 1, "completion_tokens": 0} for _ in range(3)]
    (stream,), _ = make_messages(dicts, 1, make_dice)
    machine = make_shard(0, 1)
    machine.lost(1, 20, CREATED)
    machine.fold(stream[0]._replace(sequence=21), CREATED)
    query = Query(from_s=NOW_S - 3600, to_s=NOW_S + 1, now_s=NOW_S)
    assert finish(machine.answer(query, True)).since_ns == stream[0].time_ns
    again = make_shard(0, 1)
    load(again, save(machine))
    assert finish(again.answer(query, True)).since_ns == stream[0].time_ns
    assert again.losses == machine.losses


@pytest.mark.parametrize("state", [b"", b"rubbish", b"x\x9c" + bytes(20)])
def test_a_damaged_snapshot_and_one_of_another_shard_are_rejected(state: bytes) -> None:
    machine = make_shard(0, 1)
    with pytest.raises(Rejected):
        machine.restore(state, {})
    assert machine.position is None
    intact = make_shard(0, 1)
    payload = encode_batches([Batch(id="b", spans=[make_span()])])
    intact.fold(Message("tokentrace.spans.default.0", payload, 1, NOW_S * SECOND, {}), CREATED)
    _, parts = msgspec.msgpack.decode(save(intact))
    for missing in [name for name in parts if name.startswith("@")]:
        damaged = {name: data for name, data in parts.items() if name != missing}
        with pytest.raises(Rejected, match="memory of calls"):
            machine.restore(intact.snapshot({}).state(), damaged)
        assert (machine.position, len(machine.dedup.calls)) == (None, 0)
    with pytest.raises(Rejected, match="shard 0 of 1"):
        load(make_shard(1, 2), save(make_shard(0, 1)))


def test_a_snapshot_restores_the_same_state_from_decoded_parts() -> None:
    metric = CustomMetric(name="slow", type="p95", field="latency")
    machine = Shard(0, 1, (metric,))
    spans = [make_span(span_id=str(number), ended_ns=(NOW_S - 100 * number) * SECOND) for number in range(50)]
    payload = encode_batches([Batch(id="b", spans=spans)])
    machine.fold(Message("tokentrace.spans.default.0", payload, 1, NOW_S * SECOND, {}), CREATED)
    saved = machine.snapshot({})
    parts = parts_of(saved)
    restored = [Shard(0, 1, (metric,)) for _ in range(2)]
    restored[0].restore(saved.state(), parts)
    restored[1].restore(saved.state(), {name: machine.decode_part(name, data) for name, data in parts.items()})
    assert parts_of(restored[1].snapshot({})) == parts_of(restored[0].snapshot({})) == parts
    query = Query(from_s=NOW_S - 6000, to_s=NOW_S + 1, now_s=NOW_S, custom=["slow"])
    answers = {encode_result(finish(shard.answer(query, True))) for shard in (machine, *restored)}
    assert len(answers) == 1


@pytest.fixture
def make_dice() -> random.Random:
    return random.Random(7)
