"""The transport that writes a file: whole lines, rotation, pruning, and what happens when it cannot write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.builders import make_span
from kit.reporting import accounted, until
from tokentrace import Stats
from tokentrace.client.transports import FileTransport, open_transport
from tokentrace.dialect.docs import decode_spans
from tokentrace.errors import ConfigError

DAY_S = 86_400


def names(*files: Path) -> list[str]:
    """Return the names of the spans in *files*, of which every line must be a whole one."""
    found = []
    for file in files:
        data = file.read_bytes()
        assert data.endswith(b"\n") or not data
        found += [json.loads(line)["name"] for line in data.splitlines()]
    return found


def age(file: Path, days: float) -> None:
    """Set the time of the last write *days* back."""
    at = time.time() - days * DAY_S
    os.utime(file, (at, at))


def test_spans_are_written_in_order_as_lines_that_ingest_reads(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "traces.jsonl"
    transport = FileTransport(path)
    transport.send([make_span(name="a"), make_span(name="b")])
    transport.send([make_span(name="c", attributes={"password": "geheim"})])
    assert transport.flush(20)
    assert names(path) == ["a", "b", "c"]
    assert [span.name for line in path.read_bytes().splitlines() for span in decode_spans(line)] == ["a", "b", "c"]
    assert b"geheim" not in path.read_bytes()
    assert transport.stats() == Stats(sent=3, acked=3, dropped=0, failed=0, queue_depth=0)
    transport.close()


def test_spans_are_written_without_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = open_transport(f"file:{path}")
    transport.send([make_span(name="a")])
    until(path.exists, "written")
    until(lambda: names(path) == ["a"], "whole")
    transport.close()


def test_a_file_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    for name in "abc":
        transport = FileTransport(path)
        transport.send([make_span(name=name)])
        transport.close()
    assert names(path) == ["a", "b", "c"]


def test_close_writes_what_waits_and_later_spans_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path)
    transport.send([make_span(name=f"{number}") for number in range(3000)])
    transport.close(30)
    transport.close()
    assert names(path) == [f"{number}" for number in range(3000)]
    transport.send([make_span(), make_span()])
    assert transport.stats() == Stats(sent=3000, acked=3000, dropped=2, failed=0, queue_depth=0)
    assert [record.getMessage() for record in caplog.records] == [
        "file transport traces.jsonl: spans are dropped from now on, because the transport is closed"
    ]


def test_no_file_is_made_and_no_thread_started_before_the_first_span(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path)
    assert transport.flush(0)
    transport.close()
    assert not path.exists()


def test_the_path_stays_the_same_file_when_the_program_changes_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    transport = FileTransport()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    transport.send([make_span(name="a")])
    transport.close()
    assert names(tmp_path / "traces.jsonl") == ["a"]


def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path)
    transport.send([make_span(name="a")])
    assert transport.flush(20)
    path.rename(tmp_path / "moved")
    transport.send([make_span(name="b")])
    assert transport.flush(20)
    path.unlink()
    transport.send([make_span(name="c")])
    transport.close()
    assert (names(tmp_path / "moved"), names(path)) == (["a"], ["c"])


def test_an_invalid_span_is_counted_and_named_and_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path)
    transport.send([make_span(name="a"), *(make_span(model="") for _ in range(500)), make_span(error="x" * 50_000)])
    transport.send([make_span(attributes={"x": object()})])
    transport.close()
    assert transport.stats() == Stats(sent=502, acked=2, dropped=0, failed=0, queue_depth=0, rejected=501, truncated=1)
    assert len(path.read_bytes().splitlines()) == 2
    assert len(caplog.records) == 3  # one for each reason, and one at the end
    assert "spans lost: 501 (0 dropped, 0 failed, 501 not valid)" in caplog.messages[-1]


# -- what another process left


def test_the_unfinished_line_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    for torn in (b"{", b'{"trace_', b'{"trace_id":"7f3a", "name":"x', b'{"trace_id":' + b"x" * 300_000):
        path.write_bytes(b"")
        first = FileTransport(path)
        first.send([make_span(name="a")])
        first.close()
        with path.open("ab") as file:
            file.write(torn)
        second = FileTransport(path)
        second.send([make_span(name="b")])
        second.close()
        assert names(path) == ["a", "b"]


def test_an_end_that_is_no_line_of_ours_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"first\nmy notes without a line break")
    transport = FileTransport(path)
    transport.send([make_span(name="a")])
    transport.close()
    lines = path.read_bytes().splitlines()
    assert lines[:2] == [b"first", b"my notes without a line break"]
    assert json.loads(lines[2])["name"] == "a"


# -- rotation


def rotated(path: Path) -> list[Path]:
    """Return the rotated files of *path*, oldest first."""
    found = [file for file in path.parent.iterdir() if file != path]
    return sorted(found, key=lambda file: (file.name.split(".")[1], int(file.name.split(".")[2])))


def test_without_rotate_a_file_grows(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path, max_size_mb=0.001)
    for _ in range(5):
        transport.send([make_span() for _ in range(10)])
        assert transport.flush(20)
    age(path, 3)
    transport.send([make_span()])
    transport.close()
    assert rotated(path) == []
    assert len(names(path)) == 51


def test_a_file_is_rotated_before_it_grows_over_its_size(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path, rotate=True, max_size_mb=0.01, max_files=100)
    sent = []
    for number in range(60):
        sent.append(f"{number}")
        transport.send([make_span(name=sent[-1])])
        assert transport.flush(20)
    transport.close()
    files = [*rotated(path), path]
    assert len(files) >= 3
    assert all(file.stat().st_size <= 0.01 * 1024 * 1024 for file in files)
    assert names(*files) == sent
    day = time.strftime("%Y-%m-%d", time.gmtime())
    # A test that runs over midnight has files of two days.
    assert [file.name for file in files[:2]] == [f"traces.{day}.1.jsonl", f"traces.{day}.2.jsonl"] or any(
        day not in file.name for file in files[:-1]
    )


def test_a_file_of_an_earlier_day_is_rotated_under_that_day(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    expected = []
    for number, days in enumerate((3.0, 2.0)):
        transport = FileTransport(path, rotate=True)
        transport.send([make_span(name=f"{number}")])
        transport.close()
        age(path, days)
        expected.append(f"traces.{time.strftime('%Y-%m-%d', time.gmtime(time.time() - days * DAY_S))}.1.jsonl")
    transport = FileTransport(path, rotate=True)
    transport.send([make_span(name="2")])
    assert transport.flush(20)
    transport.send([make_span(name="3")])
    transport.close()
    assert [file.name for file in rotated(path)] == expected
    assert names(*rotated(path)) == ["0", "1"]
    assert names(path) == ["2", "3"]


def test_only_the_newest_rotated_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    others = [
        tmp_path / "traces.2026-03-15.1.json",
        tmp_path / "tracesx.2026-03-15.1.jsonl",
        tmp_path / "traces.a.jsonl",
    ]
    for other in others:
        other.write_text("not ours\n")
    transport = FileTransport(path, rotate=True, max_size_mb=0.001, max_files=2)
    for number in range(12):
        transport.send([make_span(name=f"{number:02}", error="x" * 600)])
        assert transport.flush(20)
    transport.close()
    kept = sorted(file for file in tmp_path.iterdir() if file not in (path, *others))
    assert [names(file) for file in kept] == [["09"], ["10"]]
    assert names(path) == ["11"]
    assert all(other.read_text() == "not ours\n" for other in others)


def test_rotated_files_older_than_the_days_on_disk_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    for number, days in enumerate((9.0, 5.0, 1.0)):
        file = tmp_path / f"traces.2026-03-{number + 10}.1.jsonl"
        file.write_bytes(b"{}\n")
        age(file, days)
    foreign = tmp_path / "other.2026-03-10.1.jsonl"
    foreign.write_bytes(b"{}\n")
    age(foreign, 99)
    transport = FileTransport(path, disk_days=3)
    transport.send([make_span(name="a")])
    transport.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [foreign.name, "traces.2026-03-12.1.jsonl", path.name]


# -- what cannot be written


def test_spans_wait_while_the_file_cannot_be_opened_and_are_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traces.jsonl"
    path.mkdir()
    with caplog.at_level("INFO", "tokentrace.transport"):
        transport = FileTransport(path)
        for number in range(20):
            transport.send([make_span(name=f"{number}")])
            assert not transport.flush(0.05)
        assert transport.stats().queue_depth == 20
        path.rmdir()
        assert transport.flush(30)
        transport.close()
    assert names(path) == [f"{number}" for number in range(20)]
    assert caplog.messages == [
        "file transport traces.jsonl: spans wait, because they cannot be delivered: Is a directory",
        "file transport traces.jsonl: spans are delivered again",
    ]


def test_close_counts_what_could_not_be_written_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    transport = FileTransport(tmp_path / "file" / "traces.jsonl")  # a directory of this name cannot be made
    transport.send([make_span() for _ in range(10)])
    transport.close(0.3)
    assert transport.stats() == Stats(sent=0, acked=0, dropped=10, failed=0, queue_depth=0)
    assert caplog.messages == [
        "file transport traces.jsonl: spans wait, because they cannot be delivered: Not a directory",
        "file transport traces.jsonl: spans lost: 10 (10 dropped, 0 failed, 0 not valid)",
    ]


FULL = """
import json, resource, sys
from pathlib import Path
from kit.builders import make_span
from kit.reporting import until
from tokentrace.client.transports import FileTransport

path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))  # a file cannot grow over it
transport = FileTransport(path)
sent = [f"{number}" for number in range(40)]
transport.send([make_span(name=name) for name in sent])
assert not transport.flush(1)
stats = transport.stats()
lines = path.read_bytes().splitlines(keepends=True)
assert 0 < len(lines) == stats.acked < 40 and stats.queue_depth == 40 - stats.acked, stats
assert all(line.endswith(b"\\n") and json.loads(line) for line in lines)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert transport.flush(30)
assert [json.loads(line)["name"] for line in path.read_bytes().splitlines()] == sent
transport.close()
"""


def test_on_a_full_disk_only_whole_lines_are_written_and_the_rest_follows_when_there_is_room(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ["PYTHONPATH"]]),
    }
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "traces.jsonl")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "spans wait, because they cannot be delivered: the file could not take all of them" in done.stderr


def test_every_span_ends_in_one_counter_when_more_wait_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tokentrace.client.transports.file._MAX_SPANS", 30)
    path = tmp_path / "traces.jsonl"
    path.mkdir()
    transport = FileTransport(path)
    for _ in range(10):
        transport.send([make_span() for _ in range(10)])
    assert transport.stats().dropped == 70
    path.rmdir()
    transport.close(30)
    assert transport.stats() == Stats(sent=30, acked=30, dropped=70, failed=0, queue_depth=0)
    assert accounted(transport.stats()) == 100
    assert sum("dropped from now on, because too many of them wait" in text for text in caplog.messages) == 1


def test_spans_count_as_failed_if_fsync_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traces.jsonl"
    transport = FileTransport(path, sync=True)
    transport.send([make_span(name="a")])
    assert transport.flush(20)
    assert transport.stats().acked == 1

    def broken(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    transport.send([make_span(name="b")])
    transport.close()
    assert transport.stats() == Stats(sent=2, acked=1, dropped=0, failed=1, queue_depth=0)
    assert "1 spans are lost: fsync: [Errno 5] Input/output error" in caplog.text


# -- arguments


def test_options_can_stand_in_the_url(tmp_path: Path) -> None:
    path = tmp_path / "with space.jsonl"
    options = "rotate=true&max_size_mb=0.001&max_files=1&sync=true&buffer_kb=1&disk_days=30"
    transport = open_transport(f"file://{str(path).replace(' ', '%20')}?{options}")
    for number in range(3):
        transport.send([make_span(name=f"{number}", error="x" * 900)])
        assert transport.flush(20)
    transport.close()
    assert names(path) == ["2"]
    assert [names(file) for file in rotated(path)] == [["1"]]


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:", "the path of a FileTransport must name a file"),
        ("file:///tmp/", "the path of a FileTransport must name a file"),
        ("file://host/path", "file: names a host; write file:path or file:///path"),
        ("file:x?max_files=0", "max_files: 0 is not a number of at least 1"),
        ("file:x?max_size_mb=nan", "max_size_mb: nan is not a number of at least 0.001"),
        ("file:x?max_files=many", "file: max_files=many cannot be read"),
        ("file:x?compress=true", "file: has no option 'compress', only rotate, max_size_mb"),
        ("file:x?rotate", "file: rotate= cannot be read"),
    ],
)
def test_a_url_that_names_no_file_or_a_wrong_option_is_an_error(url: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_transport(url)
    assert error in str(raised.value)
