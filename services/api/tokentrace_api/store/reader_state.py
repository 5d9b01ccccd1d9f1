"""The reader state of a file: positions, folded batches, the newest calls, and updates that wait for their span."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from tokentrace.bad_data import reading
from tokentrace.dedup import IDENTITY, Deduplicator, FoldedBatches
from tokentrace.records import Position
from tokentrace_api.store.database import Database
from tokentrace_api.store.segment import Segment, check_statements, columns_from
from tokentrace_api.store.span_updates import Key, SpanUpdate

#: Maximum number of rows of a shard in ``folded``; above it, all ids are written as one state into ``seen``.
_MAX_FOLDED = 50_000
log = logging.getLogger("tokentrace.api.store")

_updates = msgspec.msgpack.Decoder(SpanUpdate)


@dataclass
class StoredReader:
    """
    How far one shard of the log has been stored.

    Attributes:
        position: The last message that is stored; None = there is none.
        dedup: The batches that were folded, and the newest calls.
        unsaved_ids: (id, sequence, part, stream time, layout) of numbered batches folded that are not on disk yet.
        folded_rows: Number of the shard's rows in ``folded``: batches folded since its state in ``seen`` was written.
        saved_calls: Number of the newest call that is on disk; -1 = those on disk are of no use.
        oldest_call: Number of a call that is on disk, such that no older one is.
    """

    position: Position | None
    dedup: Deduplicator
    unsaved_ids: list[tuple[str, int, int, int, int]] = field(default_factory=list)
    folded_rows: int = 0
    saved_calls: int = 0
    oldest_call: int = 1


def new_reader(shards: int, capacity: int) -> StoredReader:
    """Return the reader of a shard of which nothing is stored; *capacity* is the number of calls it remembers."""
    return StoredReader(None, Deduplicator(shards, capacity))


class ReaderState(NamedTuple):
    """The state in a file: its largest ordinal, its readers by shard, and its updates that wait for their span."""

    last_ordinal: int
    readers: dict[int, StoredReader]
    waiting: dict[Key, SpanUpdate]


def read_reader_state(
    database: Database,
    segment: Segment,
    shards: int,
    capacity: int,
    known: Collection[int] = (),
    *,
    check: bool = False,
) -> ReaderState:
    """
    Read the state of *segment*.

    Args:
        shards: Number of shards of the log; a position of a higher shard is ignored.
        capacity: Number of calls that each shard remembers.
        known: Shards that are left out, because a newer file holds their state.
        check: Read all of the file first, so that damage anywhere in it is found now.

    Raises:
        duckdb.Error: The file cannot be read.
        Rejected: A part of the state cannot be decoded.
    """
    query, name = database.run, segment.name
    for statement in check_statements(segment) if check else ():
        query(statement)
    last_ordinal = query(f"SELECT max(ordinal) FROM {name}.spans")[0][0]
    readers = {}
    for shard, created_ns, sequence in query(f"SELECT shard, created_ns, sequence FROM {name}.position"):
        if shard < shards and shard not in known:
            readers[shard] = new_reader(shards, capacity)
            _read_reader(database, segment, shard, readers[shard], Position(created_ns, sequence))
    return ReaderState(last_ordinal or 0, readers, read_waiting(database, segment))


def _read_reader(database: Database, segment: Segment, shard: int, reader: StoredReader, position: Position) -> None:
    query, name = database.run, segment.name
    states = query(f"SELECT state FROM {name}.seen WHERE shard = ?", [shard])
    folded = query(f"SELECT id, sequence, part, layout, time_ns FROM {name}.folded WHERE shard = ?", [shard])
    with reading(f"folded batches of shard {shard}"):
        if states:
            reader.dedup.batches = FoldedBatches.restore(states[0][0])
        reader.dedup.batches.note(folded)
    reader.position, reader.folded_rows = position, len(folded)
    states = query(f"SELECT state FROM {name}.call_state WHERE shard = ?", [shard])
    if states:
        with reading(f"memory of calls of shard {shard}"):
            added, digest, progress = msgspec.msgpack.decode(states[0][0], type=tuple[int, int, msgspec.Raw])
            reader.dedup.restore_progress(bytes(progress))
        _read_calls(database, segment, shard, reader, added, digest)


def _read_calls(
    database: Database, segment: Segment, shard: int, reader: StoredReader, added: int, digest: int
) -> None:
    calls = reader.dedup.calls
    first = max(added - calls.capacity, 0)
    fields = IDENTITY.names or ()
    columns = database.arrays(
        f"SELECT {', '.join(fields)} FROM {segment.name}.calls WHERE shard = ? AND number > ? ORDER BY number",
        [shard, first],
    )
    entries = np.empty(len(columns["key"]), IDENTITY)
    for field_name in fields:
        entries[field_name] = columns[field_name]
    if len(entries) < added - first:
        # Another number of shards remembers another number of calls.
        log.warning("shard %d: the file holds %d of %d calls; none is remembered", shard, len(entries), added - first)
        reader.saved_calls = -1
        return
    calls.restore_entries(entries, added, digest)
    reader.saved_calls, reader.oldest_call = added, first + 1


def read_waiting(database: Database, segment: Segment) -> dict[Key, SpanUpdate]:
    """
    Read the updates of *segment* that wait for their span; an empty update means that the span has arrived since.

    Raises:
        duckdb.Error: The file cannot be read.
        Rejected: An update cannot be decoded.
    """
    rows = database.run(f"SELECT trace_id, span_id, change FROM {segment.name}.amendments")
    with reading("updates that wait for their span"):
        return {(trace_id, span_id): _updates.decode(update) for trace_id, span_id, update in rows}


def write_waiting(database: Database, segment: Segment, updates: Mapping[Key, SpanUpdate]) -> None:
    """Write *updates* into *segment*, in place of the updates that wait there for the same spans."""
    for key in updates:
        forget_waiting(database, segment, key)
    if updates:
        rows = [(*key, msgspec.msgpack.encode(update)) for key, update in updates.items()]
        database.insert(f"{segment.name}.amendments", columns_from("amendments", rows))


def forget_waiting(database: Database, segment: Segment, key: Key) -> None:
    """Delete from *segment* the update that waits for the span *key*."""
    database.run(f"DELETE FROM {segment.name}.amendments WHERE trace_id = ? AND span_id = ?", list(key))


def write_reader(
    database: Database,
    segment: Segment,
    shard: int,
    reader: StoredReader,
    position: Position,
    time_ns: int | None,
    *,
    is_new_file: bool,
) -> None:
    """
    Write that *shard* has been read up to *position*, with what was folded since the last write.

    Args:
        time_ns: Stream time of the message at *position*, Unix nanoseconds; None = the shard has no new message.
        is_new_file: The file holds no reader state yet, so all of it is written.
    """
    query, name = database.run, segment.name
    query(f"DELETE FROM {name}.position WHERE shard = ?", [shard])
    query(f"INSERT INTO {name}.position VALUES (?, ?, ?)", [shard, position.created_ns, position.sequence])
    known = query(f"SELECT count(*) FROM {name}.seen WHERE shard = ?", [shard])[0][0]
    if is_new_file or known == 0 or reader.folded_rows + len(reader.unsaved_ids) > _MAX_FOLDED:
        if time_ns is not None:
            # Ids expire by stream time, so that reading the log again years later recognises the same duplicates.
            reader.dedup.forget(time_ns)
        query(f"DELETE FROM {name}.seen WHERE shard = ?", [shard])
        query(f"DELETE FROM {name}.folded WHERE shard = ?", [shard])
        query(f"INSERT INTO {name}.seen VALUES (?, ?)", [shard, reader.dedup.batches.snapshot()])
        reader.folded_rows = 0
    elif reader.unsaved_ids:
        rows = [(shard, *row) for row in reader.unsaved_ids]
        database.insert(f"{name}.folded", columns_from("folded", rows))
        reader.folded_rows += len(rows)
    _write_calls(database, segment, shard, reader, is_new_file=is_new_file)


def _write_calls(database: Database, segment: Segment, shard: int, reader: StoredReader, *, is_new_file: bool) -> None:
    """Write the calls that were added since the last write, and remove rows of forgotten calls from time to time."""
    dedup, name = reader.dedup, segment.name
    calls = dedup.calls
    if reader.saved_calls < 0:
        database.run(f"DELETE FROM {name}.calls WHERE shard = ?", [shard])
    entries = calls.entries_after(0 if is_new_file else max(reader.saved_calls, 0))
    if len(entries):
        numbers = np.arange(calls.added - len(entries) + 1, calls.added + 1, dtype=np.int64)
        columns = {"shard": np.full(len(entries), shard, np.int32), "number": numbers}
        columns |= {field_name: np.ascontiguousarray(entries[field_name]) for field_name in IDENTITY.names or ()}
        database.insert(f"{name}.calls", columns)
    oldest = calls.added - len(calls) + 1
    if is_new_file:
        reader.oldest_call = oldest
    elif oldest - reader.oldest_call > calls.capacity:
        # DuckDB gives the space of deleted rows back once a whole row group is deleted.
        database.run(f"DELETE FROM {name}.calls WHERE shard = ? AND number < ?", [shard, oldest])
        reader.oldest_call = oldest
    state = msgspec.msgpack.encode((calls.added, calls.digest, msgspec.Raw(dedup.progress())))
    database.run(f"DELETE FROM {name}.call_state WHERE shard = ?", [shard])
    database.run(f"INSERT INTO {name}.call_state VALUES (?, ?)", [shard, state])
