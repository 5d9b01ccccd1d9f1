"""Tests of the span store after kills and damage: it has exactly the spans up to its position, and reads the rest."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import duckdb
import pytest

from kit.examples import examples
from kit.store_log import (
    NOW_NS,
    Log,
    assert_exact,
    files,
    incompressible,
    numbered_log,
    open_store,
    read_to,
    shown,
    stored_span,
)
from kit.store_process import start_appending
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import Settings
from tokentrace.errors import Unavailable
from tokentrace.records import Batch, Span, encode_batches
from tokentrace.service.bootstrap import bootstrap
from tokentrace_api.store import Store, StoreDamaged
from tokentrace_api.store_writer import StoreWriter


def invalidate_database(store: Store) -> None:
    """Make DuckDB invalidate its database, as it does when it cannot write a WAL back."""
    store.catalog.database.run("PRAGMA debug_checkpoint_abort = 'before_header'")
    with pytest.raises(duckdb.Error, match="invalidated"):
        store.catalog.database.run(f"CHECKPOINT {store.catalog.segments[-1].name}")


def overwrite_newest_file(directory: Path) -> None:
    with (directory / files(directory)[-1]).open("r+b") as file:
        file.write(b"x" * 9000)


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", [False, True])
def test_after_a_kill_at_a_random_moment_the_spans_are_those_up_to_the_position(
    tmp_path: Path, checkpoint: bool
) -> None:
    """The killed process appends, starts new files and may write its WAL back; what it reported as stored is stored."""
    dice, log, last = random.Random(7), numbered_log(400), 0
    for _ in range(examples(4)):
        child = start_appending(tmp_path, 400, 30_000, checkpoint=checkpoint)
        assert child.stdout is not None
        with child:
            for _ in range(dice.randrange(1, 8)):
                last = int(child.stdout.readline() or last)
            # Kill at a random moment.
            threading.Event().wait(dice.random() * 0.02)
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:
                last = int(line) if line.endswith("\n") else last
        store = open_store(tmp_path, shards=1)
        assert read_to(store) >= last
        assert_exact(store, read_to(store), scores_ahead=True)
        store.append(log.after(store)[:2])
        last = read_to(store)
        assert_exact(store, last)
        assert not store.damaged
        store.close()
    store = open_store(tmp_path, shards=1)
    store.append(log.after(store))
    assert_exact(store, 400)
    store.close()


def damaged_copies(crashed_store: Path, tmp_path: Path, count: int) -> Iterator[tuple[Path, random.Random, list[Path]]]:
    """Yield copies of the store to damage: (directory, random generator, [newest file, its WAL])."""
    for number in range(max(5, examples(count))):
        directory = tmp_path / f"{number}"
        shutil.copytree(crashed_store, directory)
        newest = directory / files(directory)[-1]
        yield directory, random.Random(number), [newest, newest.with_name(newest.name + ".wal")]


def assert_recovers(directory: Path) -> int:
    """Check that the store is exact, before and after it reads the rest of the log; return its position before."""
    log = numbered_log(40)
    store = open_store(directory, shards=1)
    position = read_to(store)
    assert_exact(store, position, scores_ahead=True)
    store.append(log.after(store))
    assert_exact(store, 40)
    store.close()
    store = open_store(directory, shards=1)
    assert_exact(store, 40)
    store.close()
    return position


@pytest.mark.long
def test_a_wal_cut_at_a_random_byte_leaves_the_spans_up_to_the_position(crashed_store: Path, tmp_path: Path) -> None:
    positions = set()
    for directory, dice, (_, wal) in damaged_copies(crashed_store, tmp_path, 8):
        assert wal.stat().st_size > 1000
        os.truncate(wal, dice.randrange(wal.stat().st_size))
        positions.add(assert_recovers(directory))
    assert len(positions) > 2, "all cuts left the same position"


@pytest.mark.long
@pytest.mark.parametrize("which", [0, 1])
def test_a_store_recovers_from_a_random_flipped_bit_in_its_newest_file_or_wal(
    crashed_store: Path, tmp_path: Path, which: int
) -> None:
    for directory, dice, parts in damaged_copies(crashed_store, tmp_path, 8):
        content = bytearray(parts[which].read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        parts[which].write_bytes(content)
        assert_recovers(directory)


def test_after_a_kill_the_newest_file_is_read_completely_before_it_is_trusted(tmp_path: Path) -> None:
    """Otherwise damage might be found only after the log has discarded the messages that would repair it."""
    log = Log(1)
    items = [incompressible(log, number) for number in range(12)]
    original, damaged_stores = tmp_path / "original", 0
    store = open_store(original, shards=1)
    store.append(items)
    store.close()
    for number in range(examples(6)):
        directory = tmp_path / f"{number}"
        shutil.copytree(original, directory)
        newest = directory / files(directory)[-1]
        newest.with_name(newest.name + ".wal").touch()
        content, dice = bytearray(newest.read_bytes()), random.Random(number)
        assert len(content) > 3 * 256 * 1024, "a file of one block is always read completely"
        content[dice.randrange(16_384, len(content))] ^= 1
        newest.write_bytes(content)
        store = open_store(directory, shards=1)
        damaged_stores += len(store.damaged)
        store.append(log.after(store))
        assert store.count(NOW_NS) == len(shown(store)) == 1200
        store.close()
    assert damaged_stores > 0


def test_an_invalidated_database_is_opened_again(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), numbered_log(6)
    store.append(log.items[0][:2])
    invalidate_database(store)
    with contextlib.suppress(Unavailable):
        assert_exact(store, 2)
    with pytest.raises(Unavailable, match="invalidated"):
        store.append(log.items[0][2:4])
    assert_exact(store, 2)
    store.append(log.after(store))
    assert_exact(store, 6)
    store.close()


def test_a_file_damaged_while_it_is_open_ends_the_store_and_loses_nothing(tmp_path: Path) -> None:
    """The reader has passed the messages of the damaged file, so a store that went on would have a gap."""
    store, log = open_store(tmp_path, shards=1), numbered_log(6)
    store.append(log.items[0][:2])
    invalidate_database(store)
    overwrite_newest_file(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="damaged"):
            store.append(log.items[0][2:4])
    store.close()
    store = open_store(tmp_path, shards=1)
    assert read_to(store) == 0
    store.append(log.after(store))
    assert_exact(store, 6)
    store.close()


async def test_the_writer_opens_a_damaged_store_again_and_misses_no_span(tmp_path: Path) -> None:
    bus, reported = MemoryBus(MemoryBroker()), list[Span]()

    async def report(spans: list[Span]) -> None:
        reported.extend(spans)

    async def publish(numbers: Sequence[int]) -> int:
        spans = [stored_span("t", number) for number in numbers]
        batch = Batch(id=f"b{numbers[0]}", arrived_ns=NOW_NS, spans=spans)
        return (await bus.publish(subjects.spans("default", 0), encode_batches([batch]))).sequence

    await bootstrap(bus, Settings())
    writer = StoreWriter(bus, 1, partial(open_store, tmp_path, shards=1), report)
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(writer.run())
        first = await publish(range(5))
        while not writer.holds(0, first):
            await asyncio.sleep(0.01)
        damaged = writer.store
        invalidate_database(damaged)
        overwrite_newest_file(tmp_path)
        second = await publish(range(5, 9))
        while not writer.holds(0, second):
            await asyncio.sleep(0.01)
        assert writer.store is not damaged
        assert await writer.read(lambda store: store.count(NOW_NS)) == 9
        assert len(writer.damaged) == 1
        assert writer.caught_up(0)
        assert {span.span_id for span in reported} == {str(number) for number in range(9)}
        running.cancel()


@pytest.mark.parametrize("part", [0.3, 0.7, 0.95])
async def test_a_file_that_was_cut_after_a_clean_stop_is_found_by_a_query_and_read_from_the_log_again(
    tmp_path: Path, part: float
) -> None:
    bus = MemoryBus(MemoryBroker())
    await bootstrap(bus, Settings())
    spans = [stored_span("t", number) for number in range(2000)]
    payload = encode_batches([Batch(id="b", arrived_ns=NOW_NS, spans=spans)])
    sent = await bus.publish(subjects.spans("default", 0), payload)

    async def ignore(_: list[Span]) -> None:
        pass

    async def run_writer(is_done: Callable[[StoreWriter], Awaitable[bool]]) -> None:
        writer = StoreWriter(bus, 1, partial(open_store, tmp_path, shards=1), ignore)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(writer.run())
            while not await is_done(writer):
                await asyncio.sleep(0.01)
            running.cancel()

    async def holds(writer: StoreWriter) -> bool:
        return writer.holds(0, sent.sequence)

    async def reads_all(writer: StoreWriter) -> bool:
        """Query as clients do, who try again while the store cannot answer."""
        with contextlib.suppress(Unavailable):
            sums = await writer.read(
                lambda store: store.query("SELECT count(trace_id), sum(ordinal) FROM {spans}", [], NOW_NS)
            )
            return bool(sums) and int(sums[0][0]) == 2000
        return False

    await run_writer(holds)
    newest = tmp_path / files(tmp_path)[-1]
    os.truncate(newest, int(newest.stat().st_size * part))
    await run_writer(reads_all)
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


LOCKING_PROGRAM = "import duckdb, sys; connection = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"


@pytest.mark.long
def test_a_file_that_another_process_has_open_is_not_damaged(tmp_path: Path) -> None:
    store, log = open_store(tmp_path, shards=1), numbered_log(4)
    store.append(log.items[0])
    store.close()
    before = files(tmp_path)
    command = [sys.executable, "-c", LOCKING_PROGRAM, str(tmp_path / before[-1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(Unavailable, match="lock"):
            open_store(tmp_path, shards=1)
        holder.communicate()
    assert files(tmp_path) == before
    store = open_store(tmp_path, shards=1)
    assert_exact(store, 4)
    assert not store.damaged
    store.close()
