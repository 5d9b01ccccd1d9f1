"""With a spool, what a reporter could not deliver survives its process, and arrives once."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.examples import SEED
from kit.programs import run_program
from kit.raw_stream import StoredBatch, create_streams, read_raw, span_names
from kit.reporting import WAIT_S, accounted, until
from kit.spools import files, is_empty, kill_while_away, left_behind, readable, refusing_port, written
from tokentrace import ConfigError, Reporter
from tokentrace.client.spool import read_file


def names(url: str) -> Counter[str]:
    """Return the names of the stored spans; a message that is stored again under its id counts once."""
    stored: dict[str, StoredBatch] = {message.id: message for message in read_raw(url)}
    return span_names(list(stored.values()))


@pytest.mark.parametrize("way", ["nats", "http"])
def test_what_was_reported_before_the_last_moments_survives_kills(
    url: str, broker: Broker, tmp_path: Path, way: str
) -> None:
    spool = tmp_path / "spool"
    dice = random.Random(SEED)
    broker.kill()
    reported, promised = set[str](), set[str]()
    with refusing_port() as port:
        for run in range(3):
            away = url if way == "nats" else f"http://127.0.0.1:{port}"
            some, sure = kill_while_away(away, spool, f"run{run}", 0.7 + dice.random() * 2)
            reported |= some
            promised |= sure
    assert promised
    assert {path.stat().st_mode & 0o777 for path in files(spool)} == {0o600}
    assert {path.parent.stat().st_mode & 0o777 for path in files(spool)} == {0o700}
    broker.start()
    with Reporter("heir", url, spool=spool) as heir:
        until(lambda: not list(spool.iterdir()), "all directories are adopted and removed")
        adopted = heir.stats()
    found = names(url)
    assert (adopted.adopted, accounted(adopted)) == (len(found), 0)
    assert set(found.values()) == {1}
    assert promised <= found.keys() <= reported


def test_spans_are_kept_while_the_server_is_away_and_sent_when_it_is_back(
    url: str, broker: Broker, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with Reporter("outage", url, spool=spool, fsync="batch") as reporter:
        reporter.report(make_span(name="before"))
        assert reporter.flush(WAIT_S)
        assert not spool.exists()
        broker.kill()
        for number in range(300):
            reporter.report(make_span(name=f"n{number}"))
        until(lambda: reporter.stats().spooled == 300, "all on disk")
        assert reporter.flush(0), "what is on disk is not waited for"
        assert accounted(reporter.stats()) == 301
        broker.start()
        until(lambda: reporter.stats().acked == 301, "all accepted")
        until(lambda: not files(spool), "the files are removed")
        reporter.report(make_span(name="after"))
        assert reporter.flush(WAIT_S)
    assert list(spool.iterdir()) == []
    assert names(url) == Counter(["before", "after", *(f"n{number}" for number in range(300))])


def test_close_keeps_what_waits(url: str, broker: Broker, tmp_path: Path) -> None:
    broker.kill()
    reporter = Reporter("closed", url, spool=tmp_path / "spool")
    for number in range(700):
        reporter.report(make_span(name=f"n{number}"))
    reporter.close(0)
    assert reporter.stats().spooled == 700
    assert reporter.dropped == 0
    broker.start()
    with Reporter("heir", url, spool=tmp_path / "spool"):
        until(lambda: not files(tmp_path / "spool"), "adopted")
    assert names(url) == Counter(f"n{number}" for number in range(700))


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_torn_or_wrong_record_ends_the_file_and_those_before_it_arrive(
    url: str, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    spool = tmp_path / "spool"
    path = left_behind(spool, 5)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-7:]
    else:
        data[-20] ^= 1
    path.write_bytes(data)
    with Reporter("heir", url, spool=spool):
        until(lambda: not files(spool), "adopted")
    assert names(url) == Counter(["n0", "n1", "n2", "n3"])
    assert "torn" in caplog.text


def test_every_prefix_of_a_file_gives_a_prefix_of_its_batches(tmp_path: Path) -> None:
    path = written(tmp_path / "spool", "dead", "n0", "n1", "n2")
    whole = readable(path)
    assert len(whole.records) == 3
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        part = read_file(path)
        if part is not None:
            assert part.records == whole.records[: len(part.records)]
            assert len(part.records) < 3


def test_a_spool_that_is_sent_twice_is_sent_under_the_same_ids(url: str, tmp_path: Path) -> None:
    """The pipeline counts a batch once by this id; the broker already drops it within its window."""
    spool, copy = tmp_path / "spool", tmp_path / "copy"
    left_behind(spool, 2)
    shutil.copytree(spool, copy)
    for directory in (spool, copy):
        with Reporter("heir", url, spool=directory):
            until(partial(is_empty, directory), "adopted")
    assert span_names(read_raw(url)) == Counter(["n0", "n1"])


@pytest.mark.parametrize("trouble", ["not a directory", "full"])
def test_a_spool_that_cannot_be_written_leaves_spans_in_memory_and_says_so_once(
    url: str, broker: Broker, tmp_path: Path, trouble: str
) -> None:
    (tmp_path / "file").write_text("")
    spool = tmp_path / ("file/spool" if trouble == "not a directory" else "spool")
    broker.kill()
    done = run_program(
        "import resource, subprocess\n"
        "if sys.argv[3] == 'full':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))\n"
        "reporter = Reporter('full', url, spool=sys.argv[2])\n"
        "for number in range(2000):\n"
        "    reporter.report(Span(name=f'n{number}', kind='custom'))\n"
        "time.sleep(3)\n"
        "stats = reporter.stats()\n"
        "assert stats.dropped == 0 and stats.queue_depth > 0, stats\n"
        "assert (stats.spooled > 0) == (sys.argv[3] == 'full'), stats\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "broker = subprocess.Popen(sys.argv[4:])\n"
        "deadline = time.monotonic() + 20\n"
        "while reporter.stats().acked < 2000 and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        "stats = reporter.stats()\n"
        "reporter.close()\n"
        "broker.terminate()\n"
        "broker.wait()\n"
        "assert stats.acked == 2000, stats\n",
        url,
        str(spool),
        trouble,
        *broker.command,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the spool cannot be written") == 1, done.stderr
    broker.start()
    assert names(url) == Counter(f"n{number}" for number in range(2000))


def test_a_full_spool_drops_its_oldest_file_and_counts_it(
    away_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = Reporter("full", away_url, spool=tmp_path / "spool", spool_bytes=20_000_000)
    text = "x" * 30_000
    for number in range(1000):
        reporter.report(make_span(name=f"n{number}", attributes={"note": text}))
    until(lambda: reporter.stats().queue_depth == 0, "all on disk or dropped")
    stats = reporter.stats()
    assert stats.dropped > 0
    assert stats.spooled + stats.dropped == 1000
    assert sum(path.stat().st_size for path in files(tmp_path / "spool")) <= 20_000_000
    kept = [record for path in files(tmp_path / "spool") for record in readable(path).records]
    assert [record.sequence for record in kept] == list(range(kept[0].sequence, kept[-1].sequence + 1))
    reporter.close(0)
    assert "the spool is full" in caplog.text


def test_a_forked_child_has_a_spool_of_its_own(url: str, broker: Broker, tmp_path: Path) -> None:
    broker.kill()
    done = run_program(
        "reporter = Reporter('forker', url, spool=sys.argv[2])\n"
        "def report(name):\n"
        "    for number in range(50):\n"
        "        reporter.report(Span(name=f'{name}-{number}', kind='custom'))\n"
        "    deadline = time.monotonic() + 20\n"
        "    while reporter.stats().spooled < 50 and time.monotonic() < deadline:\n"
        "        time.sleep(0.02)\n"
        "    assert reporter.stats().spooled == 50, reporter.stats()\n"
        "report('parent')\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    report('child')\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "os._exit(0)\n",
        url,
        str(tmp_path / "spool"),
        forks=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "spool").iterdir())) == 2
    broker.start()
    with Reporter("heir", url, spool=tmp_path / "spool"):
        until(lambda: not files(tmp_path / "spool"), "adopted")
    assert names(url) == Counter(f"{name}-{number}" for name in ("parent", "child") for number in range(50))


def test_a_directory_in_use_is_not_adopted(url: str, broker: Broker, tmp_path: Path) -> None:
    broker.kill()
    owner = Reporter("owner", url, spool=tmp_path / "spool")
    owner.report(make_span(name="mine"))
    until(lambda: owner.stats().spooled == 1, "on disk")
    assert files(tmp_path / "spool")
    other = Broker(tmp_path / "other")
    other.start()
    create_streams(other.url)
    try:
        with Reporter("other", other.url, spool=tmp_path / "spool") as reporter:
            reporter.report(make_span(name="theirs"))
            assert reporter.flush(WAIT_S)
        assert names(other.url) == Counter(["theirs"])
        assert files(tmp_path / "spool")
    finally:
        other.stop()
        owner.close(0)


def test_an_unknown_fsync_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fsync"):
        Reporter("x", "nats://127.0.0.1", spool=tmp_path, fsync="always")  # type: ignore[arg-type]  # it is wrong
