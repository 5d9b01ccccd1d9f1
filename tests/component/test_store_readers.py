"""Tests of queries to the span store while it is written, pruned, reopened and closed."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import duckdb
import pytest

from kit.examples import FAST
from kit.store_log import NOW_NS, Log, open_store, read_to, stored_span
from tokentrace.errors import Unavailable
from tokentrace.records import Tombstone
from tokentrace_api.reads import Search, find_page
from tokentrace_api.store import segment


def test_closing_the_store_interrupts_a_running_query(tmp_path: Path) -> None:
    store, errors = open_store(tmp_path), list[Exception]()

    def read() -> None:
        try:
            store.query("SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3", [], NOW_NS)
        except Unavailable as exc:
            errors.append(exc)

    thread = threading.Thread(target=read)
    thread.start()
    while thread.is_alive() and not store.catalog.database.running_queries:
        threading.Event().wait(0.001)
    store.close()
    thread.join()
    assert len(errors) == 1


@pytest.mark.long
def test_queries_are_answered_correctly_or_refused_while_files_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile files are created and removed, traces are deleted, and the database is invalidated and reopened."""
    monkeypatch.setattr(segment, "MAX_BYTES", 40_000)
    store, done, wrong, answers = open_store(tmp_path, shards=1, max_spans=300), threading.Event(), [], [0]

    def read(number: int) -> None:
        while not done.is_set():
            try:
                check(number)
            except Unavailable:
                continue
            except Exception as exc:  # noqa: BLE001 - any other error fails the test
                wrong.append(exc)
                return
            answers[0] += 1

    def check(number: int) -> None:
        if number == 0:
            # The ten spans of a trace are stored together, but max_spans may hide a part of the oldest trace.
            rows = store.query("SELECT trace_id, count(*) FROM {spans} GROUP BY 1", [], NOW_NS)
            assert sum(1 for _, count in rows if count != 10) <= 1, rows
            assert sum(count for _, count in rows) <= 300
        elif number == 1:
            page = find_page(store, Search(columns={"model": ["gpt-4o"]}), 10, 0, None, NOW_NS)
            keys = [(-row.started_ns, row.trace_id) for row in page.rows]
            assert keys == sorted(set(keys))
        else:
            newest = store.position(0)
            spans = store.trace(f"{newest.sequence}" if newest else "", NOW_NS)
            assert len(spans) in (0, 10)

    messages = 35 if FAST else 89
    threads = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    log = Log(1)
    for thread in threads:
        thread.start()
    try:
        for sequence in range(1, messages + 1):
            log.spans(*(stored_span(f"{sequence}", number, started_ns=sequence) for number in range(10)))
            if sequence % 29 == 0:
                store.catalog.database.run("PRAGMA debug_checkpoint_abort = 'before_header'")
                with contextlib.suppress(duckdb.Error):
                    store.catalog.database.run(f"CHECKPOINT {store.catalog.segments[-1].name}")
            with contextlib.suppress(Unavailable):
                store.append(log.after(store))
            if sequence % 10 == 0:
                with contextlib.suppress(Unavailable):
                    store.prune(NOW_NS)
            if sequence % 40 == 0:
                # Delete the oldest shown trace, so that no older one takes its place.
                store.apply_deletions([Tombstone(target="trace", id=f"{sequence - 29}", deleted_ns=NOW_NS)])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert answers[0] > 0
    store.append(log.after(store))
    # The last invalidation may have hit an older file; prune reads all files and so reopens the database.
    with contextlib.suppress(Unavailable):
        store.prune(NOW_NS)
    assert read_to(store) == messages
    assert 290 <= store.count(NOW_NS) <= 300
    store.close()
    with pytest.raises(Unavailable):
        store.count(NOW_NS)
