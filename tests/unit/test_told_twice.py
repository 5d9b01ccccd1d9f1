"""What OTLP requests told twice is counted once: after repetitions, restarts, merging and an upgrade."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit import otlp
from kit.builders import make_span
from kit.shard_results import as_received
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.dialect.otlp import map_spans
from tokentrace.dialect.otlp.json_wire import decode_traces
from tokentrace.metrics import Query, ToldTwice, finish, merge_results
from tokentrace.pricing import Pricer
from tokentrace.records import MAX_COST_NUSD, Batch, Span, encode_batches
from tokentrace_aggregator.shard import Shard

NOW_S = 1_790_000_000
NOW_NS = NOW_S * 10**9
CREATED = 7
LIFETIME = Query(what="lifetime")


def told_again(cost: Any, **fields: Any) -> Span:
    given = {"kind": "chain", "source": "otlp", "cost_nusd": None, "ended_ns": NOW_NS, "arrived_ns": NOW_NS}
    return make_span(attributes={"duplicate_of": "a", "rollup.cost_nusd": cost}, **{**given, **fields})


def fold(machine: Shard, number: int, spans: list[Span]) -> None:
    payload = encode_batches([Batch(id=f"body.{number}", spans=spans)])
    machine.fold(Message("tokentrace.spans.default.0", payload, number, NOW_NS, {}), CREATED)


def told_twice(machine: Shard, query: Query = LIFETIME) -> ToldTwice:
    return as_received(finish(machine.answer(query, True))).told_twice


def new_shard() -> Shard:
    return Shard(0, 1, capacity=CAPACITY)


@given(st.lists(st.integers(1, MAX_COST_NUSD), max_size=6))
def test_the_sum_is_that_of_the_second_tellings_however_often_they_come(costs: list[int]) -> None:
    machine = new_shard()
    spans = [told_again(cost) for cost in costs]
    for number in (1, 2):
        fold(machine, number, [*spans, make_span(ended_ns=NOW_NS)] if spans else [make_span(ended_ns=NOW_NS)])
    assert told_twice(machine) == ToldTwice(calls=len(costs), nusd=sum(costs))
    window = Query(from_s=NOW_S - 60, to_s=NOW_S + 1, now_s=NOW_S)
    assert told_twice(machine, window) == told_twice(machine)


NOT_MARKED = (
    told_again(5, kind="llm"),
    told_again(5, source="reporter"),
    make_span(kind="chain", source="otlp", attributes={"rollup.cost_nusd": 5}),
)


@pytest.mark.parametrize("span", NOT_MARKED)
def test_only_what_the_mapping_marked_counts(span: Span) -> None:
    machine = new_shard()
    fold(machine, 1, [span])
    assert told_twice(machine) == ToldTwice()


@pytest.mark.parametrize("cost", [None, "5", 2.5, -1, 0, MAX_COST_NUSD + 1])
def test_a_cost_that_is_none_is_not_added(cost: Any) -> None:
    machine = new_shard()
    fold(machine, 1, [told_again(cost)])
    assert told_twice(machine) == ToldTwice(calls=1, nusd=0)


def test_it_survives_a_restart_and_an_upgrade() -> None:
    machine = new_shard()
    fold(machine, 1, [told_again(3)])
    snapshot = save(machine)
    restarted = new_shard()
    load(restarted, snapshot)
    fold(restarted, 2, [told_again(4)])
    assert told_twice(restarted) == ToldTwice(calls=2, nusd=7)
    state, parts = msgspec.msgpack.decode(snapshot)
    earlier = msgspec.msgpack.decode(state)
    del earlier["told_twice"]
    upgraded = new_shard()
    load(upgraded, msgspec.msgpack.encode([msgspec.msgpack.encode(earlier), parts]))
    fold(upgraded, 2, [told_again(4)])
    assert told_twice(upgraded) == ToldTwice(calls=1, nusd=4)


def test_shards_add_up() -> None:
    machines = [Shard(number, 2, capacity=CAPACITY) for number in range(2)]
    for number, machine in enumerate(machines, 1):
        fold(machine, number, [told_again(10**number)])
    merged = merge_results([finish(machine.answer(LIFETIME, True)) for machine in machines], 2, LIFETIME)
    assert merged.told_twice == ToldTwice(calls=2, nusd=110)


def test_the_mapping_marks_what_the_second_telling_would_have_cost() -> None:
    ids = {"gen_ai.response.id": "chatcmpl-0123456789abcdef"}
    outer = otlp.call(attrs=ids)
    inner = otlp.call(traceId=outer["traceId"], parentSpanId=outer["spanId"], attrs=ids)
    pricer = Pricer()
    spans = decode_traces(otlp.encoded(otlp.traces([outer, inner]), "json"))
    mapped = map_spans(spans, lambda span: pricer.quote(span, span.ended_ns).cost_nusd)
    [loser] = [span for span in mapped.spans if "duplicate_of" in span.attributes]
    assert loser.attributes["rollup.cost_nusd"] == mapped.saved["nusd"] == 2_560_000
    machine = new_shard()
    fold(machine, 1, mapped.spans)
    assert told_twice(machine) == ToldTwice(calls=mapped.saved["calls"], nusd=mapped.saved["nusd"])


def test_an_emitter_cannot_forge_the_mark() -> None:
    forged = otlp.call(attrs={"gen_ai.operation.name": "plan", "duplicate_of": "a", "rollup.cost_nusd": 9})
    mapped = map_spans(decode_traces(otlp.encoded(otlp.traces([forged]), "json")))
    assert not {"duplicate_of", "rollup.cost_nusd"} & mapped.spans[0].attributes.keys()
