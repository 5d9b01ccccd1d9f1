"""What a spool drops: batches after seven days, and the oldest files when it is full. Adopted spans are counted."""

from __future__ import annotations

import logging
import time
from collections import Counter
from pathlib import Path

import pytest

from kit.builders import make_span
from kit.raw_stream import read_raw, span_names
from kit.reporting import accounted, until
from kit.spools import files, is_empty, readable, written
from tokentrace import Reporter
from tokentrace.client.spool import Header, Spool
from tokentrace.records import decode_batches
from tokentrace.units import DAY, MINUTE


def spool_of(root: Path, max_bytes: int) -> Spool:
    """Return the spool of a reporter that runs."""
    return Spool(root, max_bytes, "never", Header("default", "heir", "heir", 0, "1"), "heir")


def test_adopted_spans_are_counted_and_logged_once_for_each_directory(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    written(spool, "dead-a", "a1", "a2")
    written(spool, "dead-a", "a3", first=3)
    written(spool, "dead-b", "b1")
    with caplog.at_level(logging.INFO, "tokentrace.reporter"), Reporter("heir", url, spool=spool) as heir:
        until(lambda: is_empty(spool), "adopted")
        heir.report(make_span(name="mine"))
        assert heir.flush()
        stats = heir.stats()
    assert (stats.adopted, stats.acked, accounted(stats)) == (4, 1, 1)
    assert span_names(read_raw(url)) == Counter(["a1", "a2", "a3", "b1", "mine"])
    said = [record.getMessage() for record in caplog.records if "dead process" in record.getMessage()]
    assert [line.split(":")[1].split()[0] for line in said] == ["3", "1"]


def test_spans_that_are_kept_for_more_than_seven_days_are_dropped_and_those_before_are_sent(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The time of each batch decides, not that of its file, which may have been copied or written for long."""
    spool = tmp_path / "spool"
    written(spool, "old", "o1", "o2", age_ns=7 * DAY + MINUTE).touch()
    written(spool, "young", "y1", age_ns=7 * DAY - 10 * MINUTE)
    with Reporter("heir", url, spool=spool) as heir:
        until(lambda: is_empty(spool), "adopted")
        assert heir.stats().adopted == 1
    assert span_names(read_raw(url)) == Counter(["y1"])
    assert "2 spans in " in caplog.text
    assert "too old" in caplog.text


def test_files_that_are_older_than_seven_days_make_room_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = written(tmp_path, "old", "o1", age_ns=7 * DAY + MINUTE)
    young = written(tmp_path, "young", "y1", age_ns=7 * DAY - 10 * MINUTE)
    spool = spool_of(tmp_path, 1_000_000)
    assert spool.append(1, b"payload", 1) == (True, 0)
    assert not old.exists()
    assert not old.parent.exists()
    assert young.exists()
    assert "of a dead process" in caplog.text
    spool.close()


def test_a_full_spool_drops_the_oldest_files_also_those_of_dead_processes(tmp_path: Path) -> None:
    """In all it never has more than its limit, and what is left is the newest of each process."""
    note = "x" * 30_000
    ages = {f"dead{number}": (20 - number) * MINUTE for number in range(10)}
    for reporter, age_ns in ages.items():
        written(tmp_path, reporter, "one", "two", age_ns=age_ns, note=note)
    spool = spool_of(tmp_path, 500_000)
    for sequence in range(1, 5):
        kept, _ = spool.append(sequence, bytes(60_000), 1)
        assert kept
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 500_000
    left = {path.parent.name for path in files(tmp_path)} - {"heir"}
    assert left
    assert left == set(list(ages)[-len(left) :])
    assert [record.sequence for path in spool.files() for record in readable(path).records] == list(range(1, 5))
    spool.close()


def test_a_spool_that_processes_which_run_have_filled_keeps_spans_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Spool(tmp_path, 300_000, "never", Header("default", "other", "other", 0, "1"), "other")
    for sequence in range(1, 4):
        assert other.append(sequence, bytes(70_000), 1) == (True, 0)
    spool = spool_of(tmp_path, 200_000)
    assert spool.append(1, b"payload", 1) == (False, 0)
    assert "stay in memory" in caplog.text
    assert len([record for path in other.files() for record in readable(path).records]) == 3
    other.close()
    spool.close()


def test_what_a_reporter_writes_can_be_read_back_with_its_time(away_url: str, tmp_path: Path) -> None:
    before = time.time_ns()
    with Reporter("writer", away_url, spool=tmp_path / "spool") as reporter:
        reporter.report(make_span(name="kept"))
        until(lambda: reporter.stats().spooled == 1, "on disk")
        (path,) = files(tmp_path / "spool")
        (record,) = readable(path).records
        assert before <= record.stored_ns <= time.time_ns()
        assert [span.name for batch in decode_batches(record.payload) for span in batch.spans] == ["kept"]
        reporter.close(0)
