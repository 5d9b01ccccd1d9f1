"""
Snapshots from before the memory of calls are converted: totals stay, and batches that were folded stay known.

The files were written by that version; see the README in their folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from kit.builders import make_span
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.metrics import Query, finish
from tokentrace.records import Batch, decode_batches, encode_batches
from tokentrace.units import DAY, HOUR, SECOND
from tokentrace_aggregator.shard import Shard
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import parse_rule

FOLDER = Path(__file__).parents[1] / "data" / "snapshots_without_calls"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
SAVED: dict[str, list[Any]] = msgspec.msgpack.decode((FOLDER / "snapshots.msgpack").read_bytes())
LOG = [
    Message(subject, payload, sequence, time_ns, {})
    for subject, payload, sequence, time_ns in msgspec.msgpack.decode((FOLDER / "log.msgpack").read_bytes())
]
SHARDS = 2
CREATED = 7
#: 2026-09-21T14:00:00Z in seconds, an hour whose spans the files hold.
START = 497_222 * 3600
REPORTER = "default.web.0123456789abcdef0123456789abcdef"
NUMBERED = range(SHARDS)


def packed(name: str) -> bytes:
    """Return the snapshot *name* as ``kit.whole_snapshots.load`` takes it."""
    return msgspec.msgpack.encode(SAVED[name])


def restored_shard(number: int) -> Shard:
    shard = Shard(number, SHARDS, capacity=CAPACITY)
    load(shard, packed(f"aggregator.{number}"))
    return shard


def restored_alerter() -> AlerterMachine:
    rules = json.loads((FOLDER / "rules.json").read_text())
    alerter = AlerterMachine(
        [parse_rule(rule, "alerts[0]") for rule in rules], "default", shards=SHARDS, capacity=CAPACITY
    )
    load(alerter, packed("alerter.0"))
    return alerter


def own(number: int) -> list[Message]:
    return [message for message in LOG if message.subject.endswith(f".{number}")]


def told_again(messages: Iterable[Message], after_ns: int = SECOND) -> list[Message]:
    """Return *messages* with later sequences, *after_ns* after the last message of the log."""
    last = LOG[-1]
    return [
        message._replace(sequence=last.sequence + at, time_ns=last.time_ns + after_ns + at)
        for at, message in enumerate(messages, start=1)
    ]


def totals(shard: Shard) -> dict[str, Any]:
    """Return the numbers of *shard* as ``make.py`` recorded them, but for the batches that it skipped."""

    def numbers(sums: Any) -> dict[str, int]:
        return {name: getattr(sums, name) for name in EXPECTED["shards"][0]["lifetime"]}

    lifetime = finish(shard.answer(Query(what="lifetime"), True))
    window = Query(from_s=START, to_s=START + 3600, now_s=START + 3600, groupby="model")
    answer = finish(shard.answer(window, True))
    assert lifetime.transport is not None
    return {
        "spans": shard.spans,
        "batches": shard.batches,
        "lifetime": numbers(lifetime.total.sums),
        "window": numbers(answer.total.sums),
        "by_model": {name: numbers(group.sums) for name, group in sorted(answer.groups.items())},
        "transport": [lifetime.transport.sent, lifetime.transport.dropped, lifetime.transport.failed],
    }


def recorded(number: int) -> dict[str, Any]:
    return {name: value for name, value in EXPECTED["shards"][number].items() if name != "repeated_batches"}


def one_call(shard: int, id: str, sequence: int = 0, **fields: Any) -> Message:
    """Return a message after the log with one batch of one call."""
    span = make_span(ended_ns=LOG[-1].time_ns, arrived_ns=LOG[-1].time_ns, **fields)
    payload = encode_batches([Batch(id=id, sequence=sequence, spans=[span])])
    return Message(f"tokentrace.spans.default.{shard}", payload, len(LOG) + 100, LOG[-1].time_ns + 1, {})


def test_the_files_are_of_the_versions_without_a_memory_of_calls() -> None:
    versions = {name: msgspec.msgpack.decode(state)["version"] for name, (state, _) in SAVED.items()}
    assert versions == {"aggregator.0": 5, "aggregator.1": 5, "alerter.0": 6}
    assert EXPECTED["versions"] == {"shard": 5, "alerter": 6}
    assert sum(shard["repeated_batches"] for shard in EXPECTED["shards"]) == 3


@pytest.mark.parametrize("number", NUMBERED)
def test_a_converted_shard_has_the_totals_of_the_version_that_saved_it(number: int) -> None:
    shard = restored_shard(number)
    assert shard.position is not None
    assert shard.position.sequence == own(number)[-1].sequence
    assert totals(shard) == recorded(number)
    assert shard.dedup.left_out.repeated_batches == EXPECTED["shards"][number]["repeated_batches"]


@pytest.mark.parametrize("saved_again", [False, True])
@pytest.mark.parametrize("number", NUMBERED)
def test_a_converted_shard_skips_every_batch_that_was_folded(number: int, saved_again: bool) -> None:
    shard, again = restored_shard(number), own(number)
    Random(number).shuffle(again)
    for message in told_again(again):
        if saved_again:
            snapshot = save(shard)
            shard = Shard(number, SHARDS, capacity=CAPACITY)
            load(shard, snapshot)
        shard.fold(message, CREATED)
    assert totals(shard) == recorded(number)
    skipped = EXPECTED["shards"][number]["repeated_batches"] + len(again)
    assert shard.dedup.left_out.repeated_batches == skipped


@pytest.mark.parametrize("number", NUMBERED)
def test_a_converted_shard_folds_the_batches_in_the_gaps_and_after_them_once(number: int) -> None:
    shard, before = restored_shard(number), recorded(number)["spans"]
    folded = {batch.sequence for message in LOG for batch in decode_batches(message.payload)}
    missing = [sequence for sequence in range(1, 15) if sequence not in folded and sequence % SHARDS == number]
    assert missing
    for _ in range(2):
        for sequence in missing:
            shard.fold(one_call(number, REPORTER, sequence), CREATED)
    assert shard.spans == before + len(missing)


@pytest.mark.parametrize("number", NUMBERED)
def test_a_converted_shard_counts_a_new_call_once_in_however_many_batches(number: int) -> None:
    shard, before = restored_shard(number), recorded(number)["lifetime"]["cost"]
    for told in range(3):
        shard.fold(one_call(number, f"new-{told}", span_id="one", cost_nusd=7), CREATED)
        snapshot = save(shard)
        shard = Shard(number, SHARDS, capacity=CAPACITY)
        load(shard, snapshot)
    assert totals(shard)["lifetime"]["cost"] == before + 7
    assert shard.dedup.left_out.repeated == 2


@pytest.mark.parametrize(("after_ns", "added"), [(DAY - HOUR, 0), (DAY + HOUR, 2)])
def test_the_id_of_a_request_in_a_converted_snapshot_is_known_for_a_day(after_ns: int, added: int) -> None:
    (message, *_) = (one for one in LOG if decode_batches(one.payload)[0].id == "request-0")
    number = int(message.subject[-1])
    shard, before = restored_shard(number), recorded(number)["spans"]
    for again in told_again([message, message], after_ns):
        shard.fold(again, CREATED)
    # Its two spans are not in the memory of calls, so they count once the id is forgotten.
    assert shard.spans == before + added


# --- the alerter


def values(alerter: AlerterMachine) -> dict[str, list[Any]]:
    """Return [value, span count, spans considered] of each rule at the instant of the record."""
    alerter.caught_up = True
    for seconds in (430, 440):
        for effect in list(alerter.tick((START + seconds) * SECOND)):
            alerter.performed(effect)
    rules = alerter.render((START + 440) * SECOND)
    return {rule["name"]: [rule["current_value"], rule["span_count"], rule["spans_considered"]] for rule in rules}


def test_a_converted_alerter_has_the_values_of_the_version_that_saved_it() -> None:
    alerter = restored_alerter()
    assert alerter.position is not None
    assert alerter.position.sequence == LOG[-1].sequence
    assert not any(evaluator.backfilling for evaluator in alerter.evaluators.values())
    assert values(alerter) == EXPECTED["rules"]


@pytest.mark.parametrize("saved_again", [False, True])
def test_a_converted_alerter_skips_every_batch_that_was_folded(saved_again: bool) -> None:
    alerter = restored_alerter()
    for message in told_again(LOG):
        if saved_again:
            snapshot = save(alerter)
            alerter = AlerterMachine(
                [watch.rule for watch in alerter.evaluators.values()], "default", shards=SHARDS, capacity=CAPACITY
            )
            load(alerter, snapshot)
        alerter.fold(message, CREATED)
    assert sum(memory.left_out.repeated_batches for memory in alerter.dedup.values()) == len(LOG)
    assert values(alerter) == EXPECTED["rules"]


def test_a_converted_alerter_counts_new_batches_and_new_calls_once() -> None:
    alerter = restored_alerter()
    for told in range(3):
        for number in NUMBERED:
            alerter.fold(one_call(number, f"new-{told}", span_id=f"one-{number}"), CREATED)
            alerter.fold(one_call(number, REPORTER, 12 + number), CREATED)
    _, spans, considered = EXPECTED["rules"]["calls"]
    assert values(alerter)["calls"] == [spans + 4, spans + 4, considered + 4]
