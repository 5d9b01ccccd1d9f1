"""Tests of the files of the span store: when a new one starts, which are removed, and which are not used."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from kit.store_log import DAY, NOW_NS, SECOND, SHARDS, Log, files, open_store, read_to, shown, stored_span
from tokentrace.records import ChatMessage, Started, decode_batches
from tokentrace_api.reads import open_spans
from tokentrace_api.store import segment


@pytest.mark.long
def test_a_large_file_is_followed_by_another_and_the_order_of_spans_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path), Log(SHARDS)
    for number in range(12):
        store.append([log.spans(stored_span(f"t{number}"), shard=number % 2)])
    assert files(tmp_path) == [f"spans-2027-01-15-{part:03}.duckdb" for part in range(12)]
    store.close()
    store = open_store(tmp_path)
    assert [span.trace_id for span in shown(store)] == [f"t{number}" for number in range(12)]
    assert [row[0] for row in store.query("SELECT ordinal FROM {spans} ORDER BY 1", [], NOW_NS)] == [*range(1, 13)]
    assert [position and position.sequence for position in map(store.position, range(3))] == [6, 6, None]
    store.close()


def test_the_thousandth_file_of_a_day_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, log = open_store(tmp_path), Log(SHARDS)
    store.append([log.spans(stored_span("first"))])
    store.close()
    file = tmp_path / files(tmp_path)[0]
    file.rename(file.with_name("spans-2027-01-15-999.duckdb"))
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    for trace in ("second", "third"):
        store = open_store(tmp_path)
        store.append([log.spans(stored_span(trace))])
        store.close()
    store = open_store(tmp_path)
    assert files(tmp_path) == [f"spans-2027-01-15-{part}.duckdb" for part in ("1000", "1001", "999")]
    assert [span.trace_id for span in shown(store)] == ["first", "second", "third"]
    assert read_to(store) == 3
    store.close()


def test_a_file_is_removed_when_everything_in_it_is_too_old_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages and started spans also keep a file, the newest file stays, and no position is lost with a file."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path, keep_ns=DAY), Log(SHARDS)
    message = ChatMessage(message_id="m", session_id="s")
    store.append([log.spans(stored_span("old"), shard=1)])
    store.append([log.add(log.batch(messages=[message], arrived_ns=NOW_NS + SECOND))])
    store.append([log.add(log.batch(started=[Started(trace_id="t", span_id="1")], arrived_ns=NOW_NS + 2 * SECOND))])
    store.append([log.spans(stored_span("new", arrived_ns=NOW_NS + 3 * SECOND))])
    names = files(tmp_path)
    assert store.prune(NOW_NS + DAY) == []
    assert len(store.query("SELECT * FROM {messages}", [], NOW_NS + DAY)) == 1
    assert store.prune(NOW_NS + DAY + 1) == names[:1]
    assert store.prune(NOW_NS + DAY + 2 * SECOND) == names[1:2]
    assert [span.span_id for span in open_spans(store, "trace_id", "t", NOW_NS + DAY + 2 * SECOND)] == ["1"]
    assert store.prune(NOW_NS + 9 * DAY) == names[2:3]
    assert files(tmp_path) == names[3:]
    store.close()
    store = open_store(tmp_path)
    assert [position and position.sequence for position in map(store.position, range(3))] == [3, 1, None]
    # The batch is recognised when it is repeated, although its file was removed.
    store.append([log.add(*decode_batches(log.items[1][0].message.payload), shard=1)])
    assert ([span.trace_id for span in shown(store)], store.left_out.repeated_batches) == (["new"], 1)
    store.close()


def test_max_spans_shows_only_the_newest_spans_and_removes_files_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path, max_spans=5), Log(SHARDS)
    for number in range(6):
        store.append([log.spans(stored_span(f"t{number}", 1), stored_span(f"t{number}", 2))])
    names = files(tmp_path)
    expected = [("t3", "2"), ("t4", "1"), ("t4", "2"), ("t5", "1"), ("t5", "2")]
    for _ in range(2):
        assert [(span.trace_id, span.span_id) for span in shown(store)] == expected
        assert store.prune(NOW_NS) in (names[:3], [])
        store.close()
        store = open_store(tmp_path, max_spans=5)
    assert files(tmp_path) == names[3:]
    store.close()


def test_max_bytes_removes_the_oldest_files_and_never_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged files are removed first, because no query reads them."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path), Log(SHARDS)
    for number in range(4):
        store.append([log.spans(stored_span(f"t{number}"))])
    store.close()
    names, sizes = files(tmp_path), {name: (tmp_path / name).stat().st_size for name in files(tmp_path)}
    damaged = tmp_path / f"{names[0]}.damaged-1"
    damaged.write_bytes(b"x" * 100_000)
    os.utime(damaged, (NOW_NS / SECOND, NOW_NS / SECOND))
    store = open_store(tmp_path, max_bytes=sum(sizes.values()) + 50_000)
    assert store.disk_bytes() == sum(sizes.values()) + 100_000
    assert store.prune(NOW_NS) == [damaged.name]
    store.close()
    store = open_store(tmp_path, max_bytes=sizes[names[2]] + sizes[names[3]])
    assert store.prune(NOW_NS) == names[:2]
    assert [span.trace_id for span in shown(store)] == ["t2", "t3"]
    store.close()
    store = open_store(tmp_path, max_bytes=1)
    assert store.prune(NOW_NS) == [names[2]]
    assert [span.trace_id for span in shown(store)] == ["t3"]
    assert store.disk_bytes() == sizes[names[3]]
    store.close()


def test_files_of_another_version_are_not_used_and_the_log_is_read_from_its_start(tmp_path: Path) -> None:
    (tmp_path / "spans-2026-11-01.duckdb").write_bytes(b"content of an older version")
    with duckdb.connect(str(tmp_path / "spans-2027-01-01-000.duckdb")) as newer:
        newer.execute("CREATE TABLE schema_version (version INTEGER)")
        newer.execute("INSERT INTO schema_version VALUES (99)")
    (tmp_path / "spans-2027-01-02-000.duckdb").write_bytes(b"x" * 20_000)
    (tmp_path / "spans-2027-01-03-000.duckdb").write_bytes(b"")  # of a process that was killed before it wrote anything
    store, log = open_store(tmp_path), Log(SHARDS)
    assert [text.partition(":")[0] for text in store.damaged] == [
        "spans-2026-11-01.duckdb",
        "spans-2027-01-01-000.duckdb",
        "spans-2027-01-02-000.duckdb",
    ]
    assert files(tmp_path) == []
    assert store.position(0) is None
    store.append([log.spans(stored_span("t"))])
    assert store.count(NOW_NS) == 1
    store.close()


def test_no_state_is_taken_from_a_partly_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that used the position of the file would skip messages whose content is lost."""
    monkeypatch.setattr(segment, "MAX_BYTES", 1)
    store, log = open_store(tmp_path), Log(SHARDS)
    for number in range(3):
        store.append([log.spans(stored_span(f"t{number}"))])
    store.close()
    with duckdb.connect(str(tmp_path / files(tmp_path)[-1])) as newest:
        newest.execute("INSERT INTO amendments VALUES ('t', 's', 'not a SpanUpdate'::BLOB)")
    store = open_store(tmp_path)
    assert len(store.damaged) == 1
    assert read_to(store) == 2
    store.append(log.after(store))
    assert [span.trace_id for span in shown(store)] == ["t0", "t1", "t2"]
    store.close()
