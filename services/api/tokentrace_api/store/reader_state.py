"""The reader state of a file: positions, ids of folded batches, and updates that wait for their span."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from tokentrace.bad_data import reading
from tokentrace.dedup import FoldedBatches
from tokentrace.records import Position
from tokentrace_api.store.database import Database
from tokentrace_api.store.segment import Segment, check_statements, columns_from
from tokentrace_api.store.span_updates import Key, SpanUpdate

#: Maximum number of rows of a shard in ``folded``; above it, all ids are written as one state into ``seen``.
_MAX_FOLDED = 50_000
_updates = msgspec.msgpack.Decoder(SpanUpdate)


@dataclass
class StoredReader:
    """
    How far one shard of the log has been stored.

    Attributes:
        position: The last message that is stored; None = there is none.
        seen: The batches that were folded.
        unsaved_ids: (id, sequence, part, stream time) of folded batches that are not on disk yet.
        folded_rows: Number of the shard's rows in ``folded``: batches folded since its state in ``seen`` was written.
    """

    position: Position | None
    seen: FoldedBatches
    unsaved_ids: list[tuple[str, int, int, int]] = field(default_factory=list)
    folded_rows: int = 0


class ReaderState(NamedTuple):
    """The state in a file: its largest ordinal, its readers by shard, and its updates that wait for their span."""

    last_ordinal: int
    readers: dict[int, StoredReader]
    waiting: dict[Key, SpanUpdate]


def read_reader_state(database: Database, segment: Segment, shards: int, *, check: bool = False) -> ReaderState:
    """
    Read the state of *segment*.

    Args:
        shards: Number of shards of the log; a position of a higher shard is ignored.
        check: Read all of the file first, so that damage anywhere in it is found now.

    Raises:
        duckdb.Error: The file cannot be read.
        Rejected: A folded batch or a waiting update cannot be decoded.
    """
    query, name = database.run, segment.name
    for statement in check_statements(segment) if check else ():
        query(statement)
    last_ordinal = query(f"SELECT max(ordinal) FROM {name}.spans")[0][0]
    readers = {}
    for shard, created_ns, sequence in query(f"SELECT shard, created_ns, sequence FROM {name}.position"):
        if shard >= shards:
            continue
        states = query(f"SELECT state FROM {name}.seen WHERE shard = ?", [shard])
        folded = query(f"SELECT id, sequence, part, time_ns FROM {name}.folded WHERE shard = ?", [shard])
        with reading(f"folded batches of shard {shard}"):
            seen = FoldedBatches.restore(states[0][0]) if states else FoldedBatches(shards)
            seen.note(folded)
            readers[shard] = StoredReader(Position(created_ns, sequence), seen, folded_rows=len(folded))
    return ReaderState(last_ordinal or 0, readers, read_waiting(database, segment))


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
    Write that *shard* has been read up to *position*, with the ids folded since the last write.

    Args:
        time_ns: Stream time of the message at *position*, Unix nanoseconds; None = the shard has no new message.
        is_new_file: The file holds no reader state yet, so all ids are written.
    """
    query, name = database.run, segment.name
    query(f"DELETE FROM {name}.position WHERE shard = ?", [shard])
    query(f"INSERT INTO {name}.position VALUES (?, ?, ?)", [shard, position.created_ns, position.sequence])
    known = query(f"SELECT count(*) FROM {name}.seen WHERE shard = ?", [shard])[0][0]
    if is_new_file or known == 0 or reader.folded_rows + len(reader.unsaved_ids) > _MAX_FOLDED:
        if time_ns is not None:
            # Ids expire by stream time, so that reading the log again years later recognises the same duplicates.
            reader.seen.forget(time_ns)
        query(f"DELETE FROM {name}.seen WHERE shard = ?", [shard])
        query(f"DELETE FROM {name}.folded WHERE shard = ?", [shard])
        query(f"INSERT INTO {name}.seen VALUES (?, ?)", [shard, reader.seen.snapshot()])
        reader.folded_rows = 0
    elif reader.unsaved_ids:
        rows = [(shard, *row) for row in reader.unsaved_ids]
        database.insert(f"{name}.folded", columns_from("folded", rows))
        reader.folded_rows += len(rows)
