"""The readers of the log in one process: every shard of the aggregator, and the alerter; with kills and snapshots."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kit.call_histories import History
from kit.call_recount import Recount, Sent, grouped, milliseconds, nano_dollars, sums_of
from kit.call_views import NOTHING, Views, differ, usd, wanted_sums
from kit.raw_messages import CREATED_NS, make_cleaner
from tokentrace.bus import Message, subjects
from tokentrace.metrics import Answer, Query, finish, merge_results
from tokentrace.metrics.cost import render_cost
from tokentrace.metrics.tokens import render_tokens
from tokentrace.records import Batch, ReporterStats, Span, encode_batches
from tokentrace.units import MS, SECOND
from tokentrace_aggregator.shard import Shard
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import parse_rule
from tokentrace_ingest.placement import place

#: The present, Unix seconds: a whole hour.
NOW_S = 1_800_057_600
WINDOWS_S = (3600, 6 * 3600, 86_400)


_WRITTEN: Sequence[dict[str, Any]] = (
    {"name": "money", "metric": "total_cost"},
    {"name": "money of a model", "metric": "total_cost", "group_by": "model"},
    {"name": "money of a user", "metric": "total_cost", "group_by": "attr.user_id"},
    {"name": "tokens", "metric": "total_tokens"},
    {"name": "tokens of agents", "metric": "total_tokens", "filter": {"kind": "agent"}},
)
#: Rules on money and tokens whose thresholds are never reached.
RULES: Sequence[dict[str, Any]] = [
    {**rule, "op": "gt", "threshold": 10**12, "window": "1h", "eval_interval": "10s"} for rule in _WRITTEN
]
_PARSED = tuple(parse_rule(rule, "alerts[0]") for rule in RULES)


def span_of(doc: Mapping[str, Any], way: str) -> Span:
    """Return the record of a JSON span, as the dialect of *way* makes it."""
    given = {name: doc[name] for name in _SAME if name in doc}
    return Span(
        **given,
        completion_tokens=doc.get("comp_tokens", 0),
        cost_nusd=nano_dollars(doc["cost_usd"]) if "cost_usd" in doc else None,
        latency_ns=doc["latency_ms"] * MS,
        started_ns=milliseconds(doc["started_at"]) * MS,
        ended_ns=milliseconds(doc["ended_at"]) * MS,
        source="" if way == "reporter" else way,
    )


_SAME = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "caller",
    "model",
    "provider",
    "status",
    "prompt_tokens",
    "total_tokens",
    "session_id",
    "user_id",
    "response_id",
    "scope",
    "attributes",
)


def batch_of(sent: Sent) -> Batch:
    """Return *sent* as it reaches ingest."""
    spans = [span_of(doc, sent.way) for doc in sent.spans]
    stats = ReporterStats(sent=len(spans)) if sent.number else None
    return Batch(id=sent.sender or f"body.{sent.request}", sequence=sent.number, spans=spans, reporter=stats)


def log_of(history: Sequence[Sent], shards: int, dice: random.Random) -> list[Message]:
    """Return the log that ingest writes for *history*; batches that arrive together share messages."""
    cleaner = make_cleaner()
    log: list[Message] = []
    waiting: dict[int, list[Batch]] = {}
    for number, sent in enumerate(history):
        time_ns = (NOW_S - 60) * SECOND + number * SECOND // 20
        cleaned = cleaner.clean(batch_of(sent), time_ns, checked=sent.way != "reporter")
        assert not cleaned.dead_letters, cleaned.dead_letters
        for part in cleaned.parts:
            for shard, batch in place(part, "default", shards, by_call=True, made=cleaned.made):
                waiting.setdefault(shard, []).append(batch)
        if number == len(history) - 1 or dice.random() < 0.7:
            for shard, batches in sorted(waiting.items()):
                payload = encode_batches(batches)
                log.append(Message(subjects.spans("default", shard), payload, len(log) + 1, time_ns, {}))
            waiting = {}
    return log


class Reader:
    """
    One machine, and the last snapshot of it.

    Args:
        make: Returns an empty machine.
        shard: The shard that it reads; None = every shard.
    """

    def __init__(self, make: Callable[[], Any], shard: int | None = None) -> None:
        self._make, self._shard = make, shard
        self.machine = make()
        self._state: bytes | None = None
        self._parts: dict[str, bytes] = {}
        self._revisions: dict[str, int] = {}
        self._saved_at = 0

    def fold(self, log: Sequence[Message], at: int) -> None:
        """Fold message *at* of the log."""
        message = log[at]
        if self._shard is None or message.subject == subjects.spans("default", self._shard):
            self.machine.fold(message, CREATED_NS)

    def save(self, at: int) -> None:
        """Save a snapshot before message *at* of the log; parts that did not change are kept from the one before."""
        saved = self.machine.snapshot(self._revisions)
        self._state = saved.state()
        changed = {name: part.encode() for name, part in saved.parts.items() if part.encode is not None}
        self._parts = {name: changed.get(name, self._parts.get(name, b"")) for name in saved.parts}
        self._revisions = {name: part.revision for name, part in saved.parts.items()}
        self._saved_at = at

    def kill(self, log: Sequence[Message], upto: int) -> None:
        """Lose the machine, restore the last snapshot, and fold what follows it up to message *upto* of the log."""
        self.machine = self._make()
        if self._state is not None:
            self.machine.restore(self._state, self._parts)
            self._revisions = dict.fromkeys(self._parts, 0)
        for at in range(self._saved_at, upto):
            self.fold(log, at)


class Machines:
    """
    All readers, after they have read *history*.

    Args:
        calls: Number of calls that a shard remembers, a power of two.
        seed: Decides which batches share a message, and where snapshots and kills fall.

    Attributes:
        log: The messages that ingest wrote.
        aggregator: The shards, in order.
        alerter: The alerter, after an evaluation of all rules.
    """

    def __init__(self, history: Sequence[Sent], shards: int, calls: int, seed: int = 0) -> None:
        dice = random.Random(seed)
        self.shards = shards
        self.log = log = log_of(history, shards, dice)
        self._readers = [Reader(partial(Shard, shard, shards, capacity=calls), shard) for shard in range(shards)]
        self._readers.append(Reader(lambda: AlerterMachine(_PARSED, "default", shards=shards, capacity=calls)))
        for at in range(len(log)):
            for reader in self._readers:
                reader.fold(log, at)
                if dice.random() < 0.2:
                    reader.save(at + 1)
                if dice.random() < 0.1:
                    reader.kill(log, at + 1)
        self.aggregator: list[Shard] = [reader.machine for reader in self._readers[:-1]]
        self.alerter: AlerterMachine = self._readers[-1].machine
        self.alerter.start_evaluation((NOW_S - 10) * SECOND)
        self.alerter.evaluate_until(NOW_S * SECOND)

    def ask(self, query: Query) -> Answer:
        """Return the merged answer of all shards."""
        results = [finish(shard.answer(query, True)) for shard in self.aggregator]
        return merge_results(results, self.shards, query)

    # -- comparison

    def disagreements(self, recount: Recount) -> list[str]:
        """Return one sentence for each number that differs from *recount*."""
        return [*self._windows(recount), *self._lifetime(recount), *self._rules(recount), *self._memories(recount)]

    def _windows(self, recount: Recount) -> Iterator[str]:
        for window_s in WINDOWS_S:
            for kind in ("", "all"):
                query = Query(
                    from_s=NOW_S - window_s,
                    to_s=NOW_S + 1,
                    now_s=NOW_S,
                    kind=kind or "llm",
                    groupby="model",
                    by_model=True,
                )
                answer = self.ask(query)
                calls = recount.between(answer.from_s, answer.to_s)
                where = f"window {window_s} s, kind {kind or 'llm'}"
                yield from differ(where, shown_sums(answer.total), wanted_sums(calls, kind))
                models = grouped(calls, lambda call: call.text("model"))
                for model in {*models, *answer.groups}:
                    shown = shown_sums(answer.groups[model]) if model in answer.groups else NOTHING
                    yield from differ(f"{where}, model {model}", shown, wanted_sums(models.get(model, ()), kind))

    def _lifetime(self, recount: Recount) -> Iterator[str]:
        answer = self.ask(Query(what="lifetime", from_s=0, to_s=NOW_S, now_s=NOW_S))
        sums, wanted = answer.total.sums, sums_of(recount.counted)
        shown = {"spans": sums.spans, "cost": sums.cost, "unpriced": sums.unpriced, "total": sums.total}
        every = {
            "spans": wanted.spans,
            "cost": wanted.cost or 0,
            "unpriced": wanted.unpriced,
            "total": wanted.total or 0,
        }
        yield from differ("since the beginning", shown, every)
        counters: dict[str, list[int]] = {}
        for counter in answer.cumulative.counters:
            own = counters.setdefault(counter.model, [0, 0, 0, 0])
            for at, name in enumerate(("cost", "spans", "prompt", "completion")):
                own[at] += getattr(counter.sums, name)
        models = {}
        for model, calls in grouped(recount.counted, lambda call: call.text("model")).items():
            llm = sums_of(call for call in calls if call.kind == "llm")
            models[model] = [sums_of(calls).cost or 0, llm.spans, llm.prompt or 0, llm.completion or 0]
        yield from differ("counters", counters, models)
        left_out = answer.cumulative.left_out
        conflicting_nusd = sum(call.cost or 0 for call in recount.conflicting)
        yield from differ(
            "what is left out",
            [left_out.repeated, left_out.conflicting, left_out.conflicting_nusd, left_out.reused],
            [len(recount.repeated), len(recount.conflicting), conflicting_nusd, recount.reused],
        )
        yield from differ("spans of reporters", answer.transport.sent, recount.reported)

    def _rules(self, recount: Recount) -> Iterator[str]:
        statuses = {status["name"]: status for status in self.alerter.render(NOW_S * SECOND)}
        yield from Views(_no_requests, recount).rules(RULES, lambda name: statuses[name])

    def _memories(self, recount: Recount) -> Iterator[str]:
        for shard, aggregator in enumerate(self.aggregator):
            own, other = aggregator.dedup, self.alerter.dedup[shard]
            yield from differ(f"memory of shard {shard}", other.calls.digest, own.calls.digest)
            yield from differ(f"what shard {shard} left out", other.left_out, own.left_out)
        remembered = sum(len(aggregator.dedup.calls) for aggregator in self.aggregator)
        yield from differ("remembered calls", remembered, recount.remembered)


def _no_requests(path: str) -> str:
    raise AssertionError(f"{path}: the machines answer no requests")


def shown_sums(aggregates: Any) -> dict[str, Any]:
    """Return the numbers that ``GET /metrics`` shows of *aggregates*."""
    cost, tokens = render_cost(aggregates, None), render_tokens(aggregates)
    return {
        "cost": usd(cost["total_usd"]),
        "unpriced": cost["unpriced_span_count"],
        "spans": aggregates.sums.spans,
        "prompt": tokens["prompt_total"],
        "completion": tokens["completion_total"],
        "total": tokens["total"],
    }


def disagreements(numbers: Sequence[int], shards: int, calls: int, seed: int, *, batch: int = 6) -> list[str]:
    """
    Return how the readers differ from the recount after they have read the history of *numbers*.

    Args:
        calls: Number of calls that a shard remembers; with several shards, more than the history has.
        seed: As for ``Machines``.
        batch: Mean number of tellings in a batch.
    """
    history = History(numbers, NOW_S * 1000, batch=batch)
    recount = Recount(calls * shards)
    for sent in history.sent:
        recount.read(sent)
    return Machines(history.sent, shards, calls, seed).disagreements(recount)
