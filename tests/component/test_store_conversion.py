"""Tests of files that earlier versions wrote: they are converted in place, and views show what they showed before."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.landing import FOLDERS, Landing
from kit.store_log import NOW_NS, Log, files, open_store, read_to, shown, stored_span, untimed
from tokentrace.dialect import docs
from tokentrace.records import Span
from tokentrace_api.reads import Search, find_page, find_spans, newest_ordinal
from tokentrace_api.store import Store, segment

_UNDO = (
    "ALTER TABLE spans DROP COLUMN counted",
    "ALTER TABLE spans DROP COLUMN conflicting",
    "ALTER TABLE spans DROP COLUMN scope",
    "ALTER TABLE spans DROP COLUMN response_id",
    "ALTER TABLE folded DROP COLUMN layout",
    "DROP TABLE calls",
    "DROP TABLE call_state",
    "UPDATE schema_version SET version = 3",
)


def write_version_3(directory: Path, sent: list[Span], cuts: list[int]) -> Log:
    """Store *sent*, every telling of it, as version 3 did; a new file starts at each of *cuts*."""
    store, log = open_store(directory, shards=1), Log()
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MAX_BYTES", 1)
        for start, end in itertools.pairwise(edges):
            store.append([log.spans(*sent[start:end], id=f"reporter.{start}", sequence=1)])
    store.close()
    for name in files(directory):
        with duckdb.connect(str(directory / name)) as file:
            for statement in _UNDO:
                file.execute(statement)
    return log


def last_versions(sent: list[Span]) -> list[Span]:
    """Return the last telling of each span, which version 3 showed; in order of arrival."""
    last = {(span.trace_id, span.span_id): number for number, span in enumerate(sent)}
    return [sent[number] for number in sorted(last.values())]


told = st.builds(
    stored_span,
    st.sampled_from(("a", "b")),
    st.integers(0, 3),
    name=st.uuids().map(str),
    cost_nusd=st.sampled_from((None, 5, 7)),
    prompt_tokens=st.sampled_from((10, 20)),
    total_tokens=st.sampled_from((10, 20)),
)


@untimed(20)
@given(sent=st.lists(told, min_size=1, max_size=20), cuts=st.lists(st.integers(0, 19), max_size=2))
def test_the_telling_that_was_shown_is_the_counted_one_after_the_conversion(
    directories: Iterator[Path], sent: list[Span], cuts: list[int]
) -> None:
    directory = next(directories)
    log = write_version_3(directory, sent, cuts)
    store = open_store(directory, shards=1)
    try:
        expected = last_versions(sent)
        assert shown(store) == expected
        assert not store.damaged
        assert read_to(store) == len(log.items[0])
        used = {(span.trace_id, span.span_id): used_by(span) for span in expected}
        conflicts = sum(used[span.trace_id, span.span_id] != used_by(span) for span in sent)
        counts = "count(*) FILTER (NOT counted), count(*) FILTER (conflicting)"
        assert store.query(f"SELECT {counts} FROM {{spans}}", [], NOW_NS) == [(len(sent) - len(expected), conflicts)]
        exported = find_spans(store, Search(), 0, newest_ordinal(store, NOW_NS), NOW_NS)
        assert sum(telling.later_versions for telling in exported) == len(sent) - len(expected)
        for row in find_page(store, Search(), 9, 0, None, NOW_NS).rows:
            trace = [span for span in expected if span.trace_id == row.trace_id]
            assert row.sums.total_tokens == sum(span.total_tokens for span in trace)
            assert (row.sums.cost_nusd or 0) == sum(span.cost_nusd or 0 for span in trace)
    finally:
        store.close()


def used_by(span: Span) -> tuple[Any, ...]:
    return span.cost_nusd, span.prompt_tokens, span.completion_tokens, span.total_tokens


def test_a_batch_that_the_last_version_stored_is_not_stored_again(tmp_path: Path) -> None:
    log = write_version_3(tmp_path, [stored_span("a")], [])
    store = open_store(tmp_path, shards=1)
    [stored] = log.items[0]
    store.append([log.add(log.batch(spans=[stored_span("a")], id="reporter.0", sequence=1))])
    assert (len(shown(store)), store.left_out.repeated_batches) == (1, 1)
    store.append([log.spans(stored_span("b"))])
    store.close()
    store = open_store(tmp_path, shards=1)
    assert [span.trace_id for span in shown(store)] == ["a", "b"]
    assert store.left_out.repeated_batches == 1
    store.close()
    assert stored.message.sequence == 1


def test_a_row_of_version_4_keeps_the_scope_that_it_holds_among_the_rare_fields(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    sent = [stored_span("a", scope="litellm", usage={"searches": 2}), stored_span("b")]
    store.append([log.spans(*sent)])
    store.close()
    [name] = files(tmp_path)
    with duckdb.connect(str(tmp_path / name)) as file:
        held = msgspec.msgpack.encode(({"searches": 2}, "", "", None, "litellm", ()))
        file.execute("UPDATE spans SET rest = ? WHERE trace_id = 'a'", [held])
        file.execute("ALTER TABLE spans DROP COLUMN scope")
        file.execute("UPDATE schema_version SET version = 4")
    store = open_store(tmp_path, shards=1)
    later = stored_span("c", scope="openlit", usage={"searches": 1})
    store.append([log.spans(later)])
    assert shown(store) == [*sent, later]
    assert not store.damaged
    store.close()


@pytest.mark.long
@pytest.mark.parametrize("converted", [0, 1, 2])
def test_a_conversion_that_dies_is_finished_by_the_next_start(tmp_path: Path, converted: int) -> None:
    """The process is killed before it commits the conversion of one of three files."""
    sent = [stored_span("a", number % 3, name=f"{number}") for number in range(9)]
    write_version_3(tmp_path, sent, [3, 6])
    dying = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from tokentrace_api.store import Database, Store
run, commits = Database.run, [0]
def dies(self, sql, parameters=()):
    if sql == "COMMIT":
        if commits[0] == {converted}:
            os.kill(os.getpid(), 9)
        commits[0] += 1
    return run(self, sql, parameters)
Database.run = dies
Store(Path({str(tmp_path)!r}), shards=1)
"""
    assert subprocess.run([sys.executable, "-c", dying], check=False).returncode == -9
    store = open_store(tmp_path, shards=1)
    assert shown(store) == last_versions(sent)
    assert not store.damaged
    store.close()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_store_of_the_last_landing_exports_what_it_exported_then(folder: Path, tmp_path: Path) -> None:
    landing = Landing(folder)
    directory = landing.unpack(tmp_path) / "spans"
    expected = landing.expected
    store = Store(directory, shards=expected["shards"], keep_ns=10**19)
    try:
        exported = [docs.render_span(span) for span in shown(store, expected["recorded_ns"])]
        fields = ("trace_id", "span_id", "name", "total_tokens", "cost_usd", "attributes")
        assert sorted(_cut(span, fields) for span in exported) == sorted(
            _cut(span, fields) for span in expected["answers"]["/export"]
        )
        assert not store.damaged
    finally:
        store.close()


def _cut(span: dict[str, Any], fields: tuple[str, ...]) -> str:
    return json.dumps([span.get(name) for name in fields], sort_keys=True)
