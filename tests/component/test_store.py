"""
The span store by itself, without a broker: what it shows is the log folded in plain Python, whatever happens to it.

Appends in any order on any shards, repetitions, deletions, restarts, files cut and let go of, kills, torn and damaged
files, disks that are full or read-only, readers at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import make_span
from kit.environment import ROOT
from kit.store_log import DAY, MORE, NOW_NS, SECOND, Log, examples, last_versions, shown
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
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
    encode_batches,
)
from tokentrace.records import decode_batches as decoded
from tokentrace.service.bootstrap import bootstrap
from tokentrace_api.reads import Search, Where, aggregates_by, find_page, open_spans
from tokentrace_api.store import Item, Store, StoreDamaged, segment
from tokentrace_api.store_writer import StoreWriter

SHARDS = 3
FOREVER = 10**18
Key = tuple[str, str]


def opened(directory: Path, **options: Any) -> Store:
    return Store(directory, **{"shards": SHARDS, "keep_ns": FOREVER, **options})


def span_of(trace: str, number: int = 0, **fields: Any) -> Span:
    return make_span(**{"trace_id": trace, "span_id": f"{number}", "arrived_ns": NOW_NS, **fields})


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for each."""
    return (tmp_path_factory.mktemp("store") for _ in itertools.count())


# ---- any history equals a fold in plain Python


class Model:
    """The log, folded one record after the other as the design says it."""

    def __init__(self, graves: Sequence[Tombstone] = ()) -> None:
        self.rows: list[Span] = []
        self.others: dict[str, list[str]] = {"started": [], "messages": [], "session_ends": []}
        self._about: list[tuple[str, str, dict[str, str | None], int]] = []
        self._waiting: dict[Key, list[tuple[str, Any, int]]] = {}
        self._graves: list[Tombstone] = []
        self._seen: set[tuple[int, str]] = set()
        for stone in graves:
            self.bury(stone)

    def _hidden(self, about: dict[str, str | None], arrived_ns: int) -> bool:
        return any(about.get(one.target) == one.id and arrived_ns <= one.deleted_ns for one in self._graves)

    def fold(self, item: Item) -> None:
        for batch in decoded(item.message.payload):
            if (item.shard, batch.id) not in self._seen:
                self._seen.add((item.shard, batch.id))
                self._fold(batch)

    def _fold(self, batch: Batch) -> None:
        at = batch.arrived_ns
        for span in batch.spans:
            if self._hidden(_about(span), span.arrived_ns):
                continue
            self.rows.append(span)
            for name, value, _ in self._waiting.pop((span.trace_id, span.span_id), []):
                self._set(name, value, len(self.rows) - 1)
        changes = [(one, list(one.attributes.items())) for one in batch.annotations]
        changes += [
            (one, [(one.name, None if one.value is None else ("score", one.value / 10**9))])  # type: ignore[misc]
            for one in batch.scores
        ]
        for one, pairs in changes:
            key = (one.trace_id, one.span_id)
            if self._hidden({"trace": one.trace_id}, at):
                continue
            versions = [number for number, row in enumerate(self.rows) if (row.trace_id, row.span_id) == key]
            for name, value in pairs:
                for number in versions:
                    self._set(name, value, number)
                if not versions:
                    self._waiting.setdefault(key, []).append((name, value, at))
        records = [("started", one.span_id, _about(one)) for one in batch.started]
        records += [
            ("messages", one.message_id, {"session": one.session_id, "trace": one.trace_id}) for one in batch.messages
        ]
        records += [("session_ends", one.session_id, {"session": one.session_id}) for one in batch.session_ends]
        self._about += [(table, id, about, at) for table, id, about in records if not self._hidden(about, at)]

    def _set(self, name: str, value: Any, number: int) -> None:
        span = self.rows[number]
        attributes = {key: held for key, held in span.attributes.items() if key != name}
        if value is not None:
            attributes[name] = value[1] if isinstance(value, tuple) else value
        score = span.score
        if name == "eval.score":
            score = round(attributes[name] * 10**9) if name in attributes else None
        self.rows[number] = replace(span, attributes=attributes, score=score)

    def bury(self, stone: Tombstone) -> None:
        self._graves.append(stone)
        self.rows = [row for row in self.rows if not self._hidden(_about(row), row.arrived_ns)]
        self._about = [one for one in self._about if not self._hidden(one[2], one[3])]
        self._waiting = {
            key: [one for one in changes if not self._hidden({"trace": key[0]}, one[2])]
            for key, changes in self._waiting.items()
        }

    def table(self, name: str) -> list[str]:
        return sorted(id for table, id, _, _ in self._about if table == name)


def _about(one: Span | Started) -> dict[str, str | None]:
    return {"trace": one.trace_id, "session": one.session_id, "user": one.user_id}


def assert_same(store: Store, model: Model, log: Log, read: Sequence[int]) -> None:
    held = [shown_as(span) for span in shown(store)]
    assert held == [shown_as(span) for span in last_versions(model.rows)]
    for table, column in (("started", "span_id"), ("messages", "message_id"), ("session_ends", "session_id")):
        rows = store.query(f"SELECT {column} FROM {{{table}}} ORDER BY 1", [], NOW_NS)
        assert [id for (id,) in rows] == model.table(table)
    for shard, count in enumerate(read):
        position = store.position(shard)
        assert (position.sequence if position else 0) == count
    assert not store.damaged


def shown_as(span: Span) -> tuple[Any, ...]:
    """Everything of *span*; the order of its attributes aside."""
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
burials = st.tuples(
    st.just("bury"),
    st.one_of(
        st.tuples(st.just("trace"), traces), st.tuples(st.just("session"), st.just("it's")), st.just(("user", "u1"))
    ),
)
steps = st.one_of(
    appends,
    appends,
    appends,
    appends,
    burials,
    st.tuples(st.sampled_from(("restart", "repeat", "cut", "day", "back", "prune")), st.integers(0, 50)),
)


@examples(25)
@given(history=st.lists(steps, min_size=2, max_size=14))
def test_whatever_happens_the_store_shows_the_log_folded_in_its_order(
    directories: Iterator[Path], history: list[tuple[str, Any]]
) -> None:
    """Amendments before and after their span, on any shard, in any file; deletions; repetitions; clocks put back."""
    directory = next(directories)
    store, log, model, read = opened(directory), Log(SHARDS), Model(), [0] * SHARDS
    stones: list[Tombstone] = []
    order: list[Item] = []
    time_ns, large = NOW_NS, segment.MAX_BYTES

    def append(items: list[Item]) -> None:
        for item in items:
            model.fold(item)
            read[item.shard] = item.message.sequence
        order.extend(items)
        store.append(items)

    with pytest.MonkeyPatch.context() as patch:
        for count, (what, given_) in enumerate(history):
            at = NOW_NS + count * SECOND
            if what == "append":
                items = []
                for shard, content in given_:
                    content = dict(content, spans=[replace(one, arrived_ns=at) for one in content.get("spans", [])])
                    batch = log.batch(arrived_ns=at, **content)
                    items.append(log.say(batch, shard=shard, time_ns=time_ns))
                append(items)
                patch.setattr(segment, "MAX_BYTES", large)
            elif what == "repeat" and order:
                old = order[given_ % len(order)]
                append([log.say(*decoded(old.message.payload), shard=old.shard, time_ns=time_ns)])
            elif what == "bury":
                stone = Tombstone(target=given_[0], id=given_[1], deleted_ns=at)
                stones.append(stone)
                model.bury(stone)
                store.bury([stone])
            elif what == "restart":
                store.close()
                store = opened(directory)
                store.bury(stones)
            elif what == "cut":
                patch.setattr(segment, "MAX_BYTES", 1)
            elif what in ("day", "back"):
                time_ns += (DAY if what == "day" else -DAY) * (1 + given_ % 2)
            elif what == "prune":
                store.prune(NOW_NS)
            assert_same(store, model, log, read)
        store.close()
        again = opened(directory)
        again.bury(stones)
        assert_same(again, model, log, read)
        again.close()
        # The store is lost, and everything is read again: what was deleted is known first.
        rebuilt, fold = opened(next(directories)), Model(stones)
        rebuilt.bury(stones)
        for items in itertools.batched(order, 3) if sys.version_info >= (3, 12) else [order[:2], order[2:]]:
            rebuilt.append(list(items))
        for item in order:
            fold.fold(item)
        assert_same(rebuilt, fold, log, read)
        rebuilt.close()


def test_a_score_is_in_the_column_the_attributes_and_the_recount(tmp_path: Path) -> None:
    """Given before its span, after it, for a span in an older file, and taken away again."""
    store, log = opened(tmp_path), Log(SHARDS)

    def score(number: int, value: int | None, shard: int = 0) -> None:
        one = Score(trace_id="t", span_id=f"{number}", name="eval.score", value=value)
        store.append([log.say(log.batch(scores=[one]), shard=shard, time_ns=at_ns)])

    def counted() -> tuple[int, int]:
        second = NOW_NS // SECOND
        found = aggregates_by(store, Where(Query(from_s=second - 60, to_s=second + 60)), "", ["score"], NOW_NS)[""]
        return found.sums.score_n, found.sums.score

    at_ns = NOW_NS
    score(1, 10**9)
    store.append([log.spans(*(span_of("t", number, ended_ns=NOW_NS) for number in range(3)), shard=1)])
    assert counted() == (1, 10**9)
    at_ns += DAY
    score(2, 500_000_000, shard=2)
    score(1, 250_000_000)
    assert counted() == (2, 750_000_000)
    store.close()
    store = opened(tmp_path)
    assert counted() == (2, 750_000_000)
    score(1, None)
    assert counted() == (1, 500_000_000)
    assert [(span.score, span.attributes) for span in store.trace("t", NOW_NS)] == [
        (None, {}),
        (None, {}),
        (500_000_000, {"eval.score": 0.5}),
    ]
    store.close()


def test_what_was_repeated_in_the_log_is_repeated_in_a_replay_years_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered goes by the stream's time; the clock on the wall says nothing about a replay."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path), Log(SHARDS)
    long_ago = 1_000_000_000 * SECOND
    batch = log.batch(spans=[span_of("t")])
    store.append([log.say(batch, time_ns=long_ago)])
    store.append([log.spans(span_of("other"), time_ns=long_ago + SECOND)])
    store.append([log.say(batch, time_ns=long_ago + 2 * SECOND)])
    assert (store.count(NOW_NS), store.repeated) == (2, 1)
    store.close()


def test_a_deletion_that_the_disk_refused_is_carried_out_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, log = opened(tmp_path), Log(SHARDS)
    store.append([log.spans(*(span_of(trace) for trace in ("a", "b", "c", "d")))])
    stones = [Tombstone(target="trace", id=trace, deleted_ns=NOW_NS) for trace in ("a", "b", "c")]
    with monkeypatch.context() as patch:

        def statements(*given: Any) -> Iterator[str]:
            yield from made(*given)
            yield "SELECT error('the disk refuses')"

        made = sys.modules["tokentrace_api.store.deletions"].statements
        patch.setattr("tokentrace_api.store.deletions.statements", statements)
        with pytest.raises(Unavailable):
            store.bury(stones)
    assert [span.trace_id for span in shown(store)] == ["a", "b", "c", "d"]
    store.bury(stones)
    assert [span.trace_id for span in shown(store)] == ["d"]
    store.append([log.spans(span_of("b", 1), span_of("b", 2, arrived_ns=NOW_NS + 1))])
    assert [(span.trace_id, span.span_id) for span in shown(store)] == [("d", "0"), ("b", "2")]
    # An older deletion of the same says nothing new.
    store.bury([replace(stones[1], deleted_ns=1)])
    store.append([log.spans(span_of("b", 3))])
    assert store.count(NOW_NS) == 2
    store.close()


def test_a_directory_may_be_called_anything(tmp_path: Path) -> None:
    directory = tmp_path / 'o\'brien "ü" {spans}; --'
    store, log = opened(directory), Log(SHARDS)
    store.append([log.spans(span_of("t"))])
    store.close()
    store = opened(directory)
    assert (store.count(NOW_NS), store.damaged) == (1, [])
    store.close()


# ---- files come and go


def files(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.glob(segment.GLOB))


def test_a_file_that_is_large_is_followed_by_another_and_nothing_changes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path), Log(SHARDS)
    for number in range(12):
        store.append([log.spans(span_of(f"t{number}"), shard=number % 2)])
    assert files(tmp_path) == [f"spans-2027-01-15-{part:03}.duckdb" for part in range(12)]
    store.close()
    store = opened(tmp_path)
    assert [span.trace_id for span in shown(store)] == [f"t{number}" for number in range(12)]
    assert [row[0] for row in store.query("SELECT ordinal FROM {spans} ORDER BY 1", [], NOW_NS)] == [*range(1, 13)]
    assert [store.position(shard) and store.position(shard).sequence for shard in range(3)] == [6, 6, None]  # type: ignore[union-attr]
    store.close()


def test_the_thousandth_file_of_a_day_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = opened(tmp_path), Log(SHARDS)
    store.append([log.spans(span_of("first"))])
    store.close()
    file = tmp_path / files(tmp_path)[0]
    file.rename(file.with_name("spans-2027-01-15-999.duckdb"))
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    for trace in ("second", "third"):
        store = opened(tmp_path)
        store.append([log.spans(span_of(trace))])
        store.close()
    store = opened(tmp_path)
    assert files(tmp_path) == [f"spans-2027-01-15-{part}.duckdb" for part in ("1000", "1001", "999")]
    assert [span.trace_id for span in shown(store)] == ["first", "second", "third"]
    assert store.position(0).sequence == 3  # type: ignore[union-attr]
    store.close()


def test_files_go_when_everything_in_them_is_old_and_never_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of messages alone is no empty file; the newest stays; no shard's position goes with a file."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path, keep_ns=DAY), Log(SHARDS)
    message = ChatMessage(message_id="m", session_id="s")
    store.append([log.spans(span_of("old"), shard=1)])
    store.append([log.say(log.batch(messages=[message], arrived_ns=NOW_NS + SECOND))])
    store.append([log.say(log.batch(started=[Started(trace_id="t", span_id="1")], arrived_ns=NOW_NS + 2 * SECOND))])
    store.append([log.spans(span_of("new", arrived_ns=NOW_NS + 3 * SECOND))])
    names = files(tmp_path)
    assert store.prune(NOW_NS + DAY) == []
    assert len(store.query("SELECT * FROM {messages}", [], NOW_NS + DAY)) == 1
    assert store.prune(NOW_NS + DAY + 1) == names[:1]
    assert store.prune(NOW_NS + DAY + 2 * SECOND) == names[1:2]
    assert [one.span_id for one in open_spans(store, "trace_id", "t", NOW_NS + DAY + 2 * SECOND)] == ["1"]
    assert store.prune(NOW_NS + 9 * DAY) == names[2:3]
    assert files(tmp_path) == names[3:]
    store.close()
    store = opened(tmp_path)
    assert [position and position.sequence for position in map(store.position, range(3))] == [3, 1, None]
    # It comes again, and is known although its own file is gone.
    store.append([log.say(*decoded(log.items[1][0].message.payload), shard=1)])
    assert ([span.trace_id for span in shown(store)], store.repeated) == (["new"], 1)
    store.close()


def test_only_the_newest_spans_are_shown_and_files_without_them_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path, max_spans=5), Log(SHARDS)
    for number in range(6):
        store.append([log.spans(span_of(f"t{number}", 1), span_of(f"t{number}", 2))])
    names = files(tmp_path)
    wanted = [("t3", "2"), ("t4", "1"), ("t4", "2"), ("t5", "1"), ("t5", "2")]
    for _ in range(2):
        assert [(span.trace_id, span.span_id) for span in shown(store)] == wanted
        assert store.prune(NOW_NS) in (names[:3], [])
        store.close()
        store = opened(tmp_path, max_spans=5)
    assert files(tmp_path) == names[3:]
    store.close()


def test_when_they_take_too_much_the_oldest_files_go_and_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was set aside goes first of all: nobody can ask for it."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path), Log(SHARDS)
    for number in range(4):
        store.append([log.spans(span_of(f"t{number}"))])
    store.close()
    names, sizes = files(tmp_path), {name: (tmp_path / name).stat().st_size for name in files(tmp_path)}
    aside = tmp_path / f"{names[0]}.damaged-1"
    aside.write_bytes(b"x" * 100_000)
    os.utime(aside, (NOW_NS / SECOND, NOW_NS / SECOND))
    store = opened(tmp_path, max_bytes=sum(sizes.values()) + 50_000)
    assert store.disk_bytes() == sum(sizes.values()) + 100_000
    assert store.prune(NOW_NS) == [aside.name]
    store.close()
    store = opened(tmp_path, max_bytes=sizes[names[2]] + sizes[names[3]])
    assert store.prune(NOW_NS) == names[:2]
    assert [span.trace_id for span in shown(store)] == ["t2", "t3"]
    store.close()
    store = opened(tmp_path, max_bytes=1)
    assert store.prune(NOW_NS) == [names[2]]
    assert [span.trace_id for span in shown(store)] == ["t3"]
    assert store.disk_bytes() == sizes[names[3]]
    store.close()


def test_files_of_another_version_are_set_aside_and_everything_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "spans-2026-11-01.duckdb").write_bytes(b"whatever it was")
    with duckdb.connect(str(tmp_path / "spans-2027-01-01-000.duckdb")) as newer:
        newer.execute("CREATE TABLE schema_version (version INTEGER)")
        newer.execute("INSERT INTO schema_version VALUES (99)")
    (tmp_path / "spans-2027-01-02-000.duckdb").write_bytes(b"x" * 20_000)
    (tmp_path / "spans-2027-01-03-000.duckdb").write_bytes(b"")  # killed before anything was written
    store, log = opened(tmp_path), Log(SHARDS)
    assert [text.partition(":")[0] for text in store.damaged] == [
        "spans-2026-11-01.duckdb",
        "spans-2027-01-01-000.duckdb",
        "spans-2027-01-02-000.duckdb",
    ]
    assert files(tmp_path) == []
    assert store.position(0) is None
    store.append([log.spans(span_of("t"))])
    assert store.count(NOW_NS) == 1
    store.close()


def test_memory_of_a_file_that_is_damaged_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would be a position without its spans."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = opened(tmp_path), Log(SHARDS)
    for number in range(3):
        store.append([log.spans(span_of(f"t{number}"))])
    store.close()
    with duckdb.connect(str(tmp_path / files(tmp_path)[-1])) as newest:
        newest.execute("INSERT INTO amendments VALUES ('t', 's', 'not what is written there'::BLOB)")
    store = opened(tmp_path)
    assert len(store.damaged) == 1
    assert store.position(0).sequence == 2  # type: ignore[union-attr]
    store.append(log.after(store))
    assert [span.trace_id for span in shown(store)] == ["t0", "t1", "t2"]
    store.close()


# ---- kills and damage


def told(sequence: int) -> list[Span]:
    """The spans of a message, by its number."""
    dice = random.Random(sequence)
    return [
        span_of(f"{sequence}", number, error=dice.randbytes(dice.randrange(200)).hex())
        for number in range(dice.randrange(1, 60))
    ]


def whole_log(count: int) -> Log:
    log = Log(1)
    for sequence in range(1, count + 1):
        spans = told(sequence)
        scores = [Score(trace_id=f"{sequence - 1}", span_id="0", name="eval.score", value=sequence)]
        log.say(log.batch(spans=spans, scores=scores if sequence > 1 else []))
    return log


def assert_exact(store: Store, upto: int, *, ahead: bool = False) -> None:
    """
    The store has the spans of messages 1 to *upto*, each once, with the scores that those tell.

    Args:
        ahead: Scores may be those that later messages tell: a span in an older file is given its score before the
            transaction of the newest, and once more when that is read again.
    """
    wanted = []
    for sequence in range(1, upto + 1):
        first, *others = told(sequence)
        if sequence < upto:
            first = replace(first, score=sequence + 1, attributes={"eval.score": (sequence + 1) / 10**9})
        wanted += [first, *others]
    assert store.count(NOW_NS) == len(wanted)
    if ahead:
        assert [(span.trace_id, span.span_id, span.error) for span in shown(store)] == [
            (span.trace_id, span.span_id, span.error) for span in wanted
        ]
    else:
        assert shown(store) == wanted


def read_to(store: Store) -> int:
    position = store.position(0)
    return position.sequence if position else 0


CHILD = """
import os, sys
from pathlib import Path
from test_store import segment, opened, read_to, whole_log
segment.MAX_BYTES = int(sys.argv[2])
store, log = opened(Path(sys.argv[1]), shards=1), whole_log(int(sys.argv[3]))
store._run("SET checkpoint_threshold = '20KB'" if sys.argv[4] else "SELECT 1")
items = log.after(store)
while items:
    store.append(items[:3])
    del items[:3]
    print(read_to(store), flush=True)
os._exit(0)
"""


def start_child(directory: Path, count: int, max_bytes: int, checkpoint: bool) -> subprocess.Popen[str]:
    paths = [*sys.path, str(ROOT / "tests"), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(directory), str(max_bytes), str(count), "x" if checkpoint else ""],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


@pytest.mark.parametrize("checkpoint", [False, True])
def test_after_a_kill_at_any_moment_the_spans_are_those_up_to_the_position(tmp_path: Path, checkpoint: bool) -> None:
    """Of a process that appends, cuts files and writes its log back; what it said was stored is."""
    dice, log, last = random.Random(7), whole_log(400), 0
    for _ in range(4 * MORE):
        child = start_child(tmp_path, 400, 30_000, checkpoint)
        assert child.stdout is not None
        with child:
            for _ in range(dice.randrange(1, 8)):
                last = int(child.stdout.readline() or last)
            # Not a wait for anything: the moment of the kill is any.
            threading.Event().wait(dice.random() * 0.02)
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:
                last = int(line) if line.endswith("\n") else last
        store = opened(tmp_path, shards=1)
        assert read_to(store) >= last
        assert_exact(store, read_to(store), ahead=True)
        store.append(log.after(store)[:2])
        last = read_to(store)
        assert_exact(store, last)
        assert not store.damaged
        store.close()
    store = opened(tmp_path, shards=1)
    store.append(log.after(store))
    assert_exact(store, 400)
    store.close()


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two files whose process ended without closing them: the newer one has a WAL."""
    directory = tmp_path_factory.mktemp("torn")
    store, log = opened(directory, shards=1), whole_log(40)
    store.append(log.items[0][:8])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MAX_BYTES", 1)
        store.append(log.items[0][8:16])
    store.close()
    with start_child(directory, 40, 10**9, False) as child:
        child.communicate()
    return directory


def damaged_copies(torn: Path, tmp_path: Path, count: int) -> Iterator[tuple[Path, random.Random, list[Path]]]:
    """(A directory, dice, its newest file and that one's WAL)."""
    for number in range(count * MORE):
        directory = tmp_path / f"{number}"
        shutil.copytree(torn, directory)
        newest = directory / files(directory)[-1]
        yield directory, random.Random(number), [newest, newest.with_name(newest.name + ".wal")]


def assert_goes_on(directory: Path) -> int:
    """What is left is exact, and with the rest read again everything is; returns how far it had come."""
    log = whole_log(40)
    store = opened(directory, shards=1)
    had = read_to(store)
    assert_exact(store, had, ahead=True)
    store.append(log.after(store))
    assert_exact(store, 40)
    store.close()
    store = opened(directory, shards=1)
    assert_exact(store, 40)
    store.close()
    return had


def test_a_wal_cut_at_any_byte_leaves_the_spans_up_to_the_position(torn: Path, tmp_path: Path) -> None:
    had = set()
    for directory, dice, (_, wal) in damaged_copies(torn, tmp_path, 8):
        assert wal.stat().st_size > 1000
        os.truncate(wal, dice.randrange(wal.stat().st_size))
        had.add(assert_goes_on(directory))
    assert len(had) > 2, "each cut left the same"


@pytest.mark.parametrize("which", [0, 1])
def test_any_byte_of_the_newest_file_or_its_wal_may_be_another(torn: Path, tmp_path: Path, which: int) -> None:
    for directory, dice, parts in damaged_copies(torn, tmp_path, 8):
        content = bytearray(parts[which].read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        parts[which].write_bytes(content)
        assert_goes_on(directory)


def test_after_a_kill_all_of_the_newest_file_is_read_before_it_is_believed(tmp_path: Path) -> None:
    """A block that only some question reads would be missed once the log has aged out."""
    log = Log(1)
    items = [heavy(log, number) for number in range(12)]
    whole, found = tmp_path / "whole", 0
    store = opened(whole, shards=1)
    store.append(items)
    store.close()
    for number in range(6 * MORE):
        directory = tmp_path / f"{number}"
        shutil.copytree(whole, directory)
        newest = directory / files(directory)[-1]
        newest.with_name(newest.name + ".wal").touch()
        content, dice = bytearray(newest.read_bytes()), random.Random(number)
        assert len(content) > 3 * 256 * 1024, "one block alone is always read"
        content[dice.randrange(16_384, len(content))] ^= 1
        newest.write_bytes(content)
        store = opened(directory, shards=1)
        found += len(store.damaged)
        store.append(log.after(store))
        assert store.count(NOW_NS) == len(shown(store)) == 1200
        store.close()
    assert found > 0


# ---- disks that refuse


class Disk:
    """A small tmpfs of its own, and a view of it that may be made read-only while files are open beneath."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._filler = directory / "filler"

    def fill(self, spare: int = 0) -> None:
        """Leave *spare* bytes free, rounded to pages."""
        with self._filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        with self._filler.open("r+b") as file:
            file.truncate(max(self._filler.stat().st_size - spare, 0))

    def make_room(self) -> None:
        self._filler.unlink(missing_ok=True)

    def show(self, view: Path, mode: str) -> None:
        """Show the disk at *view*, rw or ro."""
        view.mkdir(exist_ok=True)
        self.hide(view)
        subprocess.run(["mount", "--bind", str(self.directory), str(view)], check=True)
        subprocess.run(["mount", "-o", f"remount,bind,{mode}", str(view)], check=True)

    def hide(self, view: Path) -> None:
        if os.path.ismount(view):
            subprocess.run(["umount", "-l", str(view)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tokentrace-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: that takes root")
    yield Disk(directory)
    subprocess.run(["umount", "-l", str(directory)], check=True)


def heavy(log: Log, number: int) -> Item:
    """Spans that do not compress: some 100 kB on the disk."""
    dice = random.Random(number)
    return log.spans(*(span_of(f"{number}", one, error=dice.randbytes(400).hex()) for one in range(100)))


@pytest.mark.parametrize("threshold", ["16MB", "200KB"])
def test_a_full_disk_stores_nothing_by_halves_and_is_over_when_it_is_over(
    disk: Disk, threshold: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the room ends: in a commit, where the WAL is written back, where a file is made."""
    directory, log, dice = disk.directory / "store", Log(1), random.Random(5)
    store = opened(directory, shards=1)
    store._run(f"SET checkpoint_threshold = '{threshold}'")
    failed: set[str] = set()
    for number, spare in enumerate((0, 0, 9_000, 60_000, 150_000, 400_000, 1_000_000)):
        store.append([heavy(log, number)])
        held = shown(store)
        disk.fill(spare)
        item = heavy(log, 100 + number)
        monkeypatch.setattr(segment, "MAX_BYTES", 1 if number % 3 == 1 else 10**9)
        for attempt in range(12):
            try:
                store.append([item])
            except Unavailable as exc:
                failed.add(type(exc.__cause__).__name__)
                assert shown(store) == held
                assert read_to(store) == len(log.items[0]) - 1
                assert len(find_page(store, Search(), 5, 0, None, NOW_NS).rows) == min(5, len(log.items[0]) - 1)
            else:
                held = shown(store)
                item = heavy(log, 1000 * (number + 1) + attempt)
        disk.make_room()
        store.append(log.after(store))
        assert store.count(NOW_NS) == 100 * len(log.items[0])
        if dice.random() < 0.5:
            store.close()
            store = opened(directory, shards=1)
            store._run(f"SET checkpoint_threshold = '{threshold}'")
    assert len(failed) > 1, failed
    assert [decoded(item.message.payload)[0].spans for item in log.items[0]] == [
        list(part) for part in itertools.zip_longest(*[iter(shown(store))] * 100)
    ]
    assert not store.damaged
    store.close()


def test_a_full_disk_refuses_a_deletion_and_it_is_carried_out_when_there_is_room(disk: Disk) -> None:
    store, log = opened(disk.directory / "store", shards=1), Log(1)
    store.append([heavy(log, 1), heavy(log, 2)])
    disk.fill()
    stone = Tombstone(target="trace", id="1", deleted_ns=NOW_NS)
    with pytest.raises(Unavailable):
        store.bury([stone])
    assert store.count(NOW_NS) == 200
    disk.make_room()
    store.bury([stone])
    assert store.count(NOW_NS) == 100
    store.close()


def test_a_full_disk_is_no_damage_where_a_store_is_opened(disk: Disk, torn: Path) -> None:
    """A WAL has to be written back; what cannot be is kept, and opened when there is room."""
    directory = disk.directory / "store"
    shutil.copytree(torn, directory)
    before = files(directory)
    disk.fill()
    with contextlib.suppress(Unavailable):
        store = opened(directory, shards=1)
        assert_exact(store, 40)
        store.close()
    disk.make_room()
    assert files(directory) == before
    store = opened(directory, shards=1)
    assert_exact(store, 40)
    assert not store.damaged
    store.close()


def test_a_disk_that_became_read_only_is_no_damage_and_is_over_when_it_is_over(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, log = tmp_path / "view", Log(1)
    try:
        disk.show(view, "rw")
        store = opened(view / "store", shards=1)
        store.append([heavy(log, 1)])
        store.close()
        disk.show(view, "ro")
        before = files(view / "store")
        for _ in range(2):
            with pytest.raises(Unavailable, match="Read-only"):
                opened(view / "store", shards=1)
        assert files(view / "store") == before
        disk.show(view, "rw")
        store = opened(view / "store", shards=1)
        assert not store.damaged
        disk.show(view, "ro")
        # The file is open, but its WAL and another file have to be made.
        for number in (2, 3):
            monkeypatch.setattr(segment, "MAX_BYTES", 1 if number == 3 else 10**9)
            item = heavy(log, number)
            with pytest.raises(Unavailable):
                store.append([item])
            with contextlib.suppress(Unavailable):
                assert shown(store) == decoded(log.items[0][0].message.payload)[0].spans
        disk.show(view, "rw")
        store.append(log.after(store))
        assert store.count(NOW_NS) == 300
        assert not store.damaged
        store.close()
    finally:
        disk.hide(view)


def test_a_database_that_gave_itself_up_is_opened_again(tmp_path: Path) -> None:
    """DuckDB invalidates one whose WAL could not be written back; here it is told to fail there."""
    store, log = opened(tmp_path, shards=1), whole_log(6)
    store.append(log.items[0][:2])
    store._run("PRAGMA debug_checkpoint_abort = 'before_header'")
    with pytest.raises(duckdb.Error, match="invalidated"):
        store._run(f"CHECKPOINT {store._segments[-1].name}")
    with contextlib.suppress(Unavailable):
        assert_exact(store, 2)
    with pytest.raises(Unavailable, match="invalidated"):
        store.append(log.items[0][2:4])
    assert_exact(store, 2)
    store.append(log.after(store))
    assert_exact(store, 6)
    store.close()


def test_a_file_that_is_damaged_while_it_is_open_ends_the_store_and_costs_nothing(tmp_path: Path) -> None:
    """Whoever reads the log is further by then: going on would leave a hole."""
    store, log = opened(tmp_path, shards=1), whole_log(6)
    store.append(log.items[0][:2])
    store._run("PRAGMA debug_checkpoint_abort = 'before_header'")
    with pytest.raises(duckdb.Error, match="invalidated"):
        store._run(f"CHECKPOINT {store._segments[-1].name}")
    with (tmp_path / files(tmp_path)[-1]).open("r+b") as file:
        file.write(b"x" * 9000)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="damaged"):
            store.append(log.items[0][2:4])
    store.close()
    store = opened(tmp_path, shards=1)
    assert read_to(store) == 0
    store.append(log.after(store))
    assert_exact(store, 6)
    store.close()


async def test_a_store_whose_file_is_damaged_while_it_is_open_is_opened_anew_and_misses_nothing(tmp_path: Path) -> None:
    bus, heard = MemoryBus(MemoryBroker()), list[Span]()

    async def hear(spans: list[Span]) -> None:
        heard.extend(spans)

    async def publish(numbers: Sequence[int]) -> int:
        spans = [span_of("t", number) for number in numbers]
        batch = Batch(id=f"b{numbers[0]}", arrived_ns=NOW_NS, spans=spans)
        return (await bus.publish(subjects.spans("default", 0), encode_batches([batch]))).sequence

    await bootstrap(bus, Settings())
    storing = StoreWriter(bus, 1, partial(opened, tmp_path, shards=1), hear)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(storing.run())
        first = await publish(range(5))
        while not storing.holds(0, first):
            await asyncio.sleep(0.01)
        torn = storing.store
        torn._run("PRAGMA debug_checkpoint_abort = 'before_header'")
        with pytest.raises(duckdb.Error, match="invalidated"):
            torn._run(f"CHECKPOINT {torn._segments[-1].name}")
        with (tmp_path / files(tmp_path)[-1]).open("r+b") as file:
            file.write(b"x" * 9000)
        second = await publish(range(5, 9))
        while not storing.holds(0, second):
            await asyncio.sleep(0.01)
        assert storing.store is not torn
        assert await storing.read(lambda store: store.count(NOW_NS)) == 9
        assert len(storing.damaged) == 1
        assert storing.caught_up(0)
        assert {span.span_id for span in heard} == {str(number) for number in range(9)}
        running.cancel()


HOLDER = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"


def test_a_file_that_another_process_has_open_is_no_damage(tmp_path: Path) -> None:
    store, log = opened(tmp_path, shards=1), whole_log(4)
    store.append(log.items[0])
    store.close()
    before = files(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / before[-1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Unavailable, match="lock"):
            opened(tmp_path, shards=1)
        holder.communicate()
    assert files(tmp_path) == before
    store = opened(tmp_path, shards=1)
    assert_exact(store, 4)
    assert not store.damaged
    store.close()


# ---- readers at the same time


def test_whoever_reads_when_the_store_is_closed_is_told_to_stop(tmp_path: Path) -> None:
    store, told_of = opened(tmp_path), list[Exception]()

    def read() -> None:
        try:
            store.query("SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3", [], NOW_NS)
        except Unavailable as exc:
            told_of.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    while thread.is_alive() and not store._database._reading:
        threading.Event().wait(0.001)
    store.close()
    thread.join()
    assert len(told_of) == 1


def test_readers_get_right_answers_or_none_while_everything_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are made and let go of, traces deleted, the database opened again."""
    monkeypatch.setattr(segment, "MAX_BYTES", 40_000)
    store, done, wrong, answers = opened(tmp_path, shards=1, max_spans=300), threading.Event(), [], [0]

    def read(number: int) -> None:
        while not done.is_set():
            try:
                check(number)
            except Unavailable:
                continue
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is what this looks for
                wrong.append(exc)
                return
            answers[0] += 1

    def check(number: int) -> None:
        if number == 0:
            # A message is stored as a whole, ten spans to a trace; what is let go of goes by rows.
            rows = store.query("SELECT trace_id, count(*) FROM {spans} GROUP BY 1", [], NOW_NS)
            assert sum(1 for _, count in rows if count != 10) <= 1, rows
            assert sum(count for _, count in rows) <= 300
        elif number == 1:
            page = find_page(store, Search(columns={"model": "gpt-4o"}), 10, 0, None, NOW_NS)
            keys = [(-row.started_ns, row.trace_id) for row in page.rows]
            assert keys == sorted(set(keys))
        else:
            newest = store.position(0)
            spans = store.trace(f"{newest.sequence}" if newest else "", NOW_NS)
            assert len(spans) in (0, 10)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    log = Log(1)
    for thread in threads:
        thread.start()
    try:
        for sequence in range(1, 90):
            log.spans(*(span_of(f"{sequence}", one, started_ns=sequence) for one in range(10)))
            if sequence % 29 == 0:
                store._run("PRAGMA debug_checkpoint_abort = 'before_header'")
                with contextlib.suppress(duckdb.Error):
                    store._run(f"CHECKPOINT {store._segments[-1].name}")
            with contextlib.suppress(Unavailable):
                store.append(log.after(store))
            if sequence % 10 == 0:
                with contextlib.suppress(Unavailable):
                    store.prune(NOW_NS)
            if sequence % 40 == 0:
                # The oldest that is shown, so that none of those before it is.
                store.bury([Tombstone(target="trace", id=f"{sequence - 29}", deleted_ns=NOW_NS)])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert answers[0] > 0
    store.append(log.after(store))
    # An older file may have been given up last; who looks through the files finds it.
    with contextlib.suppress(Unavailable):
        store.prune(NOW_NS)
    assert read_to(store) == 89
    assert 290 <= store.count(NOW_NS) <= 300
    store.close()
    with pytest.raises(Unavailable):
        store.count(NOW_NS)
