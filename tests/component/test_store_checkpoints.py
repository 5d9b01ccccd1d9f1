"""Checkpoints of the store: each writes only what arrived since the last one, and many small ones are merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.store_log import NOW_NS, Log, open_store, stored_span
from tokentrace.records import Tombstone
from tokentrace_api.store import Store


def written_groups(store: Store) -> dict[int, list[Any]]:
    """Return row group of ``spans`` -> where its parts are in the newest file; those in the WAL alone are left out."""
    rows = store.catalog.database.run(
        "SELECT row_group_id, column_path, segment_id, block_id, block_offset, count, persistent "
        "FROM pragma_storage_info(?) ORDER BY ALL",
        [f"{store.catalog.segments[-1].name}.spans"],
    )
    groups: dict[int, list[Any]] = {}
    for group, *where in rows:
        groups.setdefault(group, []).append(where)
    return {group: parts for group, parts in groups.items() if all(persistent for *_, persistent in parts)}


@pytest.mark.long
def test_a_checkpoint_writes_only_the_rows_that_arrived_since_the_last_one(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    store.catalog.database.run("SET checkpoint_threshold = '1MB'")
    written: dict[int, list[Any]] = {}
    for number in range(40):
        spans = (stored_span(f"{number}-{each}", response_id="", error="x" * 500) for each in range(300))
        store.append([log.spans(*spans)])
        now = written_groups(store)
        assert {group: now[group] for group in written} == written
        written = now
    assert len(written) > 4
    assert store.count(NOW_NS) == 12_000
    store.close()


@pytest.mark.long
def test_many_deletions_do_not_leave_as_many_row_groups(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), Log()
    for number in range(40):
        store.append([log.spans(*(stored_span(f"{number}-{each}", response_id="") for each in range(50)))])
        store.apply_deletions([Tombstone(target="trace", id=f"{number}-0", deleted_ns=NOW_NS)])
    assert len(written_groups(store)) < 15
    assert store.count(NOW_NS) == 40 * 49
    store.close()
