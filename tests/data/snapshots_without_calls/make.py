"""
The program that wrote the other files here, with the code of commit 290bb10.

``python tests/data/snapshots_without_calls/make.py FOLDER`` writes them into another folder. Never write into this one,
because its files show what the code of that day wrote.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from tokentrace.bus import Message
from tokentrace.metrics import Query, finish
from tokentrace.records import Batch, ReporterStats, Score, Span, encode_batches, shard_of
from tokentrace.units import MS
from tokentrace_aggregator.shard import VERSION as SHARD_VERSION
from tokentrace_aggregator.shard import Shard
from tokentrace_alerter.machine import VERSION as ALERTER_VERSION
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import parse_rule

SHARDS = 2
CREATED = 7
#: 2026-09-21T14:00:00Z in seconds.
START = 497_222 * 3600
REPORTER = "default.web.0123456789abcdef0123456789abcdef"
SUMS = (
    *("spans", "errors", "unpriced", "cost", "prompt", "completion", "total"),
    *("latency", "latency_n", "score", "score_n"),
)
RULES: list[dict[str, Any]] = [
    {"name": "calls", "metric": "span_count", "op": "gte", "threshold": 1, "window": "1h", "eval_interval": "1s"},
    {"name": "cost", "metric": "total_cost", "op": "gt", "threshold": 0.000001, "window": "1h", "eval_interval": "1s"},
    {"name": "quality", "metric": "quality_score", "op": "lt", "threshold": 0.8, "window": "1h", "eval_interval": "1s"},
]


def ns(seconds: float) -> int:
    return round((START + seconds) * 1000) * MS


def call(number: int, **fields: Any) -> Span:
    """Return the call with this number, which ended *number* seconds after START."""
    return Span(
        trace_id=f"{number:032x}",
        span_id=f"{number:016x}",
        name="answer",
        kind="llm",
        model=f"m{number % 3}",
        provider="openai",
        caller="web",
        status="error" if number % 5 == 0 else "ok",
        started_ns=ns(number) - number * 10 * MS,
        ended_ns=ns(number),
        arrived_ns=ns(number),
        latency_ns=number * 10 * MS,
        prompt_tokens=100 + number,
        completion_tokens=number,
        total_tokens=100 + 2 * number,
        cost_nusd=None if number % 4 == 0 else number * 1000 + 1,
        cost_source="unpriced" if number % 4 == 0 else "priced",
        score=None if number % 2 else 900_000_000,
        **fields,
    )


def batches() -> list[Batch]:
    """Return numbered batches with gaps and in any order, requests, scores, and three batches that come twice."""
    numbered = [
        Batch(
            id=REPORTER,
            sequence=sequence,
            spans=[call(10 * sequence + index) for index in range(3)],
            reporter=ReporterStats(sent=3 * sequence, queue_depth=sequence, newly_dropped=1),
        )
        for sequence in (1, 2, 3, 6, 5, 8, 9, 10)
    ]
    requests = [
        Batch(id=f"request-{index}", spans=[call(200 + 2 * index), call(201 + 2 * index)]) for index in range(6)
    ]
    rated = call(200)
    score = Score(
        trace_id=rated.trace_id,
        span_id=rated.span_id,
        name="eval.score",
        value=100_000_000,
        previous=rated.score,
        kind=rated.kind,
        model=rated.model,
        provider=rated.provider,
        caller=rated.caller,
        span_name=rated.name,
        status=rated.status,
        ended_ns=rated.ended_ns,
        arrived_ns=rated.arrived_ns,
    )
    scores = Batch(id="score-1", scores=[score])
    split = [Batch(id="request-split", part=part, spans=[call(300 + part)]) for part in range(2)]
    return [*numbered, *requests, scores, *split, numbered[1], requests[3], scores]


def numbers(sums: Any) -> dict[str, int]:
    return {name: getattr(sums, name) for name in SUMS}


def totals(shard: Shard) -> dict[str, Any]:
    """Return the numbers of *shard* over all time and over the last hour."""
    lifetime = finish(shard.answer(Query(what="lifetime"), True))
    window = Query(from_s=START, to_s=START + 3600, now_s=START + 3600, groupby="model")
    answer = finish(shard.answer(window, True))
    assert lifetime.transport is not None
    return {
        "spans": shard.spans,
        "batches": shard.batches,
        "repeated_batches": shard.duplicate_batches,
        "lifetime": numbers(lifetime.total.sums),
        "window": numbers(answer.total.sums),
        "by_model": {name: numbers(group.sums) for name, group in sorted(answer.groups.items())},
        "transport": [lifetime.transport.sent, lifetime.transport.dropped, lifetime.transport.failed],
    }


def main(folder: Path) -> None:
    log = []
    for number, batch in enumerate(batches(), start=1):
        subject = f"tokentrace.spans.default.{shard_of(batch, SHARDS)}"
        log.append(Message(subject, encode_batches([batch]), number, ns(400 + number), {}))
    expected: dict[str, Any] = {"shards": [], "versions": {"shard": SHARD_VERSION, "alerter": ALERTER_VERSION}}
    saved: dict[str, Any] = {}
    for number in range(SHARDS):
        shard = Shard(number, SHARDS)
        for message in log:
            if message.subject.endswith(f".{number}"):
                shard.fold(message, CREATED)
        state, parts = shard.snapshot({})
        saved[f"aggregator.{number}"] = [state(), {name: part.encode() for name, part in parts.items() if part.encode}]
        expected["shards"].append(totals(shard))
    alerter = AlerterMachine([parse_rule(rule, "alerts[0]") for rule in RULES], "default")
    for message in log:
        alerter.fold(message, CREATED)
    captured = alerter.snapshot({})
    saved["alerter.0"] = [captured.state(), {}]
    alerter.caught_up = True
    alerter.tick(ns(430))
    for effect in alerter.tick(ns(440)):
        alerter.performed(effect)
    expected["rules"] = {
        rule["name"]: [rule["current_value"], rule["span_count"], rule["spans_considered"]]
        for rule in alerter.render(ns(440))
    }
    folder.mkdir(parents=True, exist_ok=True)
    messages = [[message.subject, message.payload, message.sequence, message.time_ns] for message in log]
    (folder / "log.msgpack").write_bytes(msgspec.msgpack.encode(messages))
    (folder / "snapshots.msgpack").write_bytes(msgspec.msgpack.encode(saved))
    (folder / "rules.json").write_text(json.dumps(RULES, indent=1) + "\n")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
