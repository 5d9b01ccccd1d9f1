"""
Tests that compare the span store after random histories with a fold of the log in plain Python.

Histories append on any shard, repeat batches, delete, restart the store, start new files, change the date and prune.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_span
from kit.store_log import DAY, NOW_NS, SECOND, SHARDS, Log, open_store, shown, stored_span, untimed
from tokentrace.errors import Unavailable
from tokentrace.metrics import Query
from tokentrace.records import (
    Annotation,
    Batch,
    ChatMessage,
    Score,
    SessionEnd,
    Span,
    Started,
    Tombstone,
    decode_batches,
)
from tokentrace_api.reads import Where, aggregates_by
from tokentrace_api.store import Item, Store, deletions, segment

Key = tuple[str, str]


class Model:
    """The expected content of a store: the log, folded record by record in plain Python."""

    def __init__(self, tombstones: Sequence[Tombstone] = ()) -> None:
        self.rows: list[Span] = []
        #: Whether each of the rows counts: it is the first telling of its span on its shard.
        self.counted: list[bool] = []
        self._told: set[tuple[int, Key]] = set()
        self.others: dict[str, list[str]] = {"started": [], "messages": [], "session_ends": []}
        self._about: list[tuple[str, str, dict[str, str | None], int]] = []
        self._waiting: dict[Key, list[tuple[str, Any, int]]] = {}
        self._tombstones: list[Tombstone] = []
        self._seen: set[tuple[int, str]] = set()
        for tombstone in tombstones:
            self.delete(tombstone)

    def _hidden(self, about: dict[str, str | None], arrived_ns: int) -> bool:
        return any(
            about.get(tombstone.target) == tombstone.id and arrived_ns <= tombstone.deleted_ns
            for tombstone in self._tombstones
        )

    def fold(self, item: Item) -> None:
        for batch in decode_batches(item.message.payload):
            if (item.shard, batch.id) not in self._seen:
                self._seen.add((item.shard, batch.id))
                self._fold(batch, item.shard)

    def _fold(self, batch: Batch, shard: int) -> None:
        at = batch.arrived_ns
        for span in batch.spans:
            told = (shard, (span.trace_id, span.span_id))
            is_first = told not in self._told
            self._told.add(told)
            if self._hidden(_about(span), span.arrived_ns):
                continue
            self.rows.append(span)
            self.counted.append(is_first)
            for name, value, _ in self._waiting.pop((span.trace_id, span.span_id), []):
                self._set(name, value, len(self.rows) - 1)
        changes: list[tuple[Key, list[tuple[str, Any]]]] = [
            ((annotation.trace_id, annotation.span_id), list(annotation.attributes.items()))
            for annotation in batch.annotations
        ]
        changes += [
            ((score.trace_id, score.span_id), [(score.name, None if score.value is None else score.value / 10**9)])
            for score in batch.scores
        ]
        for key, pairs in changes:
            if self._hidden({"trace": key[0]}, at):
                continue
            versions = [number for number, row in enumerate(self.rows) if (row.trace_id, row.span_id) == key]
            for name, value in pairs:
                for number in versions:
                    self._set(name, value, number)
                if not versions:
                    self._waiting.setdefault(key, []).append((name, value, at))
        records = [("started", started.span_id, _about(started)) for started in batch.started]
        records += [
            ("messages", message.message_id, {"session": message.session_id, "trace": message.trace_id})
            for message in batch.messages
        ]
        records += [("session_ends", end.session_id, {"session": end.session_id}) for end in batch.session_ends]
        self._about += [(table, id, about, at) for table, id, about in records if not self._hidden(about, at)]

    def _set(self, name: str, value: Any, number: int) -> None:
        span = self.rows[number]
        attributes = {key: held for key, held in span.attributes.items() if key != name}
        if value is not None:
            attributes[name] = value
        score = span.score
        if name == "eval.score":
            score = round(attributes[name] * 10**9) if name in attributes else None
        self.rows[number] = replace(span, attributes=attributes, score=score)

    def delete(self, tombstone: Tombstone) -> None:
        self._tombstones.append(tombstone)
        kept = [not self._hidden(_about(row), row.arrived_ns) for row in self.rows]
        self.rows = list(itertools.compress(self.rows, kept))
        self.counted = list(itertools.compress(self.counted, kept))
        self._about = [record for record in self._about if not self._hidden(record[2], record[3])]
        self._waiting = {
            key: [change for change in changes if not self._hidden({"trace": key[0]}, change[2])]
            for key, changes in self._waiting.items()
        }

    def shown(self) -> list[Span]:
        return list(itertools.compress(self.rows, self.counted))

    def table(self, name: str) -> list[str]:
        return sorted(id for table, id, _, _ in self._about if table == name)


def _about(span: Span | Started) -> dict[str, str | None]:
    return {"trace": span.trace_id, "session": span.session_id, "user": span.user_id}


def assert_same(store: Store, model: Model, log: Log, read: Sequence[int]) -> None:
    assert [comparable(span) for span in shown(store)] == [comparable(span) for span in model.shown()]
    for table, column in (("started", "span_id"), ("messages", "message_id"), ("session_ends", "session_id")):
        rows = store.query(f"SELECT {column} FROM {{{table}}} ORDER BY 1", [], NOW_NS)
        assert [id for (id,) in rows] == model.table(table)
    for shard, count in enumerate(read):
        position = store.position(shard)
        assert (position.sequence if position else 0) == count
    assert not store.damaged


def comparable(span: Span) -> tuple[Any, ...]:
    """Return all fields of *span*, with its attributes sorted."""
    return (replace(span, attributes={}), sorted(span.attributes.items(), key=lambda pair: pair[0]))


traces, numbers = st.sampled_from(("t1", "t'2", 't"3')), st.sampled_from(("1", "2'"))
sessions, users = st.sampled_from((None, "s1", "it's")), st.sampled_from((None, "u1"))
amounts = st.sampled_from((0, 1, 333_333_333, 700_000_000, 10**9))
score_names = st.sampled_from(("eval.score", "eval.score", "eval.tone"))
record_spans = st.builds(
    make_span,
    trace_id=traces,
    span_id=numbers,
    session_id=sessions,
    user_id=users,
    score=st.sampled_from((None, 250_000_000)),
    attributes=st.sampled_from(({}, {"step": "plan"}, {"eval.score": 0.25, "eval.tone": 1.0})),
    name=st.sampled_from(("a", "b", "c")),
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "spans": st.lists(record_spans, max_size=3),
        "scores": st.lists(
            st.builds(
                Score, trace_id=traces, span_id=numbers, name=score_names, value=st.one_of(st.none(), amounts, amounts)
            ),
            max_size=2,
        ),
        "annotations": st.lists(
            st.builds(
                Annotation,
                trace_id=traces,
                span_id=numbers,
                attributes=st.sampled_from(({"note": "ü"}, {"step": "x", "n": 1}, {"eval.score": 0.5}, {})),
            ),
            max_size=2,
        ),
        "started": st.lists(
            st.builds(Started, trace_id=traces, span_id=numbers, session_id=sessions, user_id=users), max_size=1
        ),
        "messages": st.lists(
            st.builds(ChatMessage, message_id=st.just("m"), session_id=sessions.filter(bool), trace_id=traces),
            max_size=1,
        ),
        "session_ends": st.lists(st.builds(SessionEnd, session_id=sessions.filter(bool), ended_ns=st.just(1))),
    },
)
appends = st.tuples(
    st.just("append"),
    st.lists(st.tuples(st.integers(0, SHARDS - 1), contents), min_size=1, max_size=4),
)
ACTIONS = ("restart", "repeat", "new file", "next day", "day before", "prune")
deletions_made = st.tuples(
    st.just("delete"),
    st.one_of(
        st.tuples(st.just("trace"), traces), st.tuples(st.just("session"), st.just("it's")), st.just(("user", "u1"))
    ),
)
steps = st.one_of(
    appends,
    appends,
    appends,
    appends,
    deletions_made,
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 50)),
)


@pytest.mark.long
@untimed(25)
@given(history=st.lists(steps, min_size=2, max_size=14))
def test_after_a_random_history_the_store_shows_the_log_folded_in_order(
    directories: Iterator[Path], history: list[tuple[str, Any]]
) -> None:
    """Updates come before or after their span, on any shard and in any file; the clock may be set back."""
    directory = next(directories)
    store, log, model, read = open_store(directory), Log(SHARDS), Model(), [0] * SHARDS
    tombstones: list[Tombstone] = []
    order: list[Item] = []
    time_ns, large = NOW_NS, segment.MAX_BYTES

    def append(items: list[Item]) -> None:
        for item in items:
            model.fold(item)
            read[item.shard] = item.message.sequence
        order.extend(items)
        store.append(items)

    with pytest.MonkeyPatch.context() as patch:
        for count, (step, argument) in enumerate(history):
            at = NOW_NS + count * SECOND
            if step == "append":
                items = []
                for shard, content in argument:
                    content = dict(content, spans=[replace(span, arrived_ns=at) for span in content.get("spans", [])])
                    batch = log.batch(arrived_ns=at, **content)
                    items.append(log.add(batch, shard=shard, time_ns=time_ns))
                append(items)
                patch.setattr(segment, "MAX_BYTES", large)
            elif step == "repeat" and order:
                old = order[argument % len(order)]
                append([log.add(*decode_batches(old.message.payload), shard=old.shard, time_ns=time_ns)])
            elif step == "delete":
                tombstone = Tombstone(target=argument[0], id=argument[1], deleted_ns=at)
                tombstones.append(tombstone)
                model.delete(tombstone)
                store.apply_deletions([tombstone])
            elif step == "restart":
                store.close()
                store = open_store(directory)
                store.apply_deletions(tombstones)
            elif step == "new file":
                patch.setattr(segment, "MAX_BYTES", 1)
            elif step in ("next day", "day before"):
                time_ns += (DAY if step == "next day" else -DAY) * (1 + argument % 2)
            elif step == "prune":
                store.prune(NOW_NS)
            assert_same(store, model, log, read)
        store.close()
        again = open_store(directory)
        again.apply_deletions(tombstones)
        assert_same(again, model, log, read)
        again.close()
        # A new store reads the log from its start, after the deletions are applied.
        rebuilt, refolded = open_store(next(directories)), Model(tombstones)
        rebuilt.apply_deletions(tombstones)
        for start in range(0, len(order), 3):
            rebuilt.append(order[start : start + 3])
        for item in order:
            refolded.fold(item)
        assert_same(rebuilt, refolded, log, read)
        rebuilt.close()


def test_a_score_is_in_its_column_in_the_attributes_and_in_metrics(tmp_path: Path) -> None:
    """A score arrives before its span, another later for a span in an older file; a score is changed and removed."""
    store, log = open_store(tmp_path), Log(SHARDS)

    def score(number: int, value: int | None, shard: int = 0) -> None:
        update = Score(trace_id="t", span_id=f"{number}", name="eval.score", value=value)
        store.append([log.add(log.batch(scores=[update]), shard=shard, time_ns=at_ns)])

    def counted() -> tuple[int, int]:
        second = NOW_NS // SECOND
        where = Where(Query(from_s=second - 60, to_s=second + 60))
        sums = aggregates_by(store, where, "", ["score"], NOW_NS)[""].sums
        return sums.score_n, sums.score

    at_ns = NOW_NS
    score(1, 10**9)
    store.append([log.spans(*(stored_span("t", number, ended_ns=NOW_NS) for number in range(3)), shard=1)])
    assert counted() == (1, 10**9)
    at_ns += DAY
    score(2, 500_000_000, shard=2)
    score(1, 250_000_000)
    assert counted() == (2, 750_000_000)
    store.close()
    store = open_store(tmp_path)
    assert counted() == (2, 750_000_000)
    score(1, None)
    assert counted() == (1, 500_000_000)
    assert [(span.score, span.attributes) for span in store.trace("t", NOW_NS)] == [
        (None, {}),
        (None, {}),
        (500_000_000, {"eval.score": 0.5}),
    ]
    store.close()


def test_a_replay_years_later_recognises_repeated_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembered batch ids expire by the time of the stream, not by the clock of the host."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path), Log(SHARDS)
    long_ago = 1_000_000_000 * SECOND
    batch = log.batch(spans=[stored_span("t")])
    store.append([log.add(batch, time_ns=long_ago)])
    store.append([log.spans(stored_span("other"), time_ns=long_ago + SECOND)])
    store.append([log.add(batch, time_ns=long_ago + 2 * SECOND)])
    assert (store.count(NOW_NS), store.left_out.repeated_batches) == (2, 1)
    store.close()


def test_a_deletion_that_failed_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = open_store(tmp_path), Log(SHARDS)
    store.append([log.spans(*(stored_span(trace) for trace in ("a", "b", "c", "d")))])
    tombstones = [Tombstone(target="trace", id=trace, deleted_ns=NOW_NS) for trace in ("a", "b", "c")]
    with monkeypatch.context() as patch:

        def failing_statements(*arguments: Any) -> Iterator[str]:
            yield from statements(*arguments)
            yield "SELECT error('the disk refuses')"

        statements = deletions.statements
        patch.setattr(deletions, "statements", failing_statements)
        with pytest.raises(Unavailable):
            store.apply_deletions(tombstones)
    assert [span.trace_id for span in shown(store)] == ["a", "b", "c", "d"]
    store.apply_deletions(tombstones)
    assert [span.trace_id for span in shown(store)] == ["d"]
    store.append([log.spans(stored_span("b", 1), stored_span("b", 2, arrived_ns=NOW_NS + 1))])
    assert [(span.trace_id, span.span_id) for span in shown(store)] == [("d", "0"), ("b", "2")]
    # An older deletion of the same trace changes nothing.
    store.apply_deletions([replace(tombstones[1], deleted_ns=1)])
    store.append([log.spans(stored_span("b", 3))])
    assert store.count(NOW_NS) == 2
    store.close()


def test_the_directory_may_have_special_characters_in_its_name(tmp_path: Path) -> None:
    directory = tmp_path / 'o\'brien "ü" {spans}; --'
    store, log = open_store(directory), Log(SHARDS)
    store.append([log.spans(stored_span("t"))])
    store.close()
    store = open_store(directory)
    assert (store.count(NOW_NS), store.damaged) == (1, [])
    store.close()
