"""What a file of the store says besides its rows: how far it was read, what was folded, what waits for its span."""

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

#: Ids folded since the last whole memory was written; more are folded into a new one.
_MAX_FOLDED = 50_000
_changes = msgspec.msgpack.Decoder(SpanUpdate)


@dataclass
class StoredReader:
    """
    What the store knows of one shard's stream.

    Attributes:
        position: The last message that is on disk; None = none is.
        seen: The batches folded.
        folded: (id, sequence, part, stream time) of those that are not on disk yet.
        unsaved: How many stand on disk beside the last whole memory.
    """

    position: Position | None
    seen: FoldedBatches
    folded: list[tuple[str, int, int, int]] = field(default_factory=list)
    unsaved: int = 0


class ReaderState(NamedTuple):
    """The largest ordinal of a file, its readers by shard, what was said of spans that were not there."""

    ordinal: int
    readers: dict[int, StoredReader]
    waiting: dict[Key, SpanUpdate]


def read_reader_state(database: Database, segment: Segment, shards: int, *, whole: bool = False) -> ReaderState:
    """
    What *segment* says.

    Args:
        whole: All of the file is read, so that what is damaged is found now.

    Raises:
        duckdb.Error: It cannot be read.
        Rejected: What stands there was not written by this program.
    """
    query, name = database.run, segment.name
    for statement in check_statements(segment) if whole else ():
        query(statement)
    newest = query(f"SELECT max(ordinal) FROM {name}.spans")[0][0]
    readers = {}
    for shard, created_ns, sequence in query(f"SELECT shard, created_ns, sequence FROM {name}.position"):
        if shard >= shards:
            continue
        states = query(f"SELECT state FROM {name}.seen WHERE shard = ?", [shard])
        folded = query(f"SELECT id, sequence, part, time_ns FROM {name}.folded WHERE shard = ?", [shard])
        with reading(f"what shard {shard} has folded is not readable"):
            seen = FoldedBatches.restore(states[0][0]) if states else FoldedBatches(shards)
            seen.note(folded)
            readers[shard] = StoredReader(Position(created_ns, sequence), seen, unsaved=len(folded))
    return ReaderState(newest or 0, readers, read_waiting(database, segment))


def read_waiting(database: Database, segment: Segment) -> dict[Key, SpanUpdate]:
    """
    What was said of spans that were not there; a change that says nothing: the span has arrived.

    Raises:
        duckdb.Error, Rejected: As ``read_memory``.
    """
    rows = database.run(f"SELECT trace_id, span_id, change FROM {segment.name}.amendments")
    with reading("what was said of spans is not readable"):
        return {(trace_id, span_id): _changes.decode(change) for trace_id, span_id, change in rows}


def write_waiting(database: Database, segment: Segment, changes: Mapping[Key, SpanUpdate]) -> None:
    """Note what waits from now on for each of the spans in *changes*."""
    for key in changes:
        forget_waiting(database, segment, key)
    if changes:
        rows = [(*key, msgspec.msgpack.encode(change)) for key, change in changes.items()]
        database.insert(f"{segment.name}.amendments", columns_from("amendments", rows))


def forget_waiting(database: Database, segment: Segment, key: Key) -> None:
    """Nothing stands in *segment* of the span *key* any more."""
    database.run(f"DELETE FROM {segment.name}.amendments WHERE trace_id = ? AND span_id = ?", list(key))


def write_reader(
    database: Database,
    segment: Segment,
    shard: int,
    reader: StoredReader,
    position: Position,
    time_ns: int | None,
    *,
    fresh: bool,
) -> None:
    """
    Note that *shard* has been read up to *position*.

    Args:
        time_ns: Stream time of *position*; None = the reader has not moved.
        fresh: The file knows no reader yet.
    """
    query, name = database.run, segment.name
    query(f"DELETE FROM {name}.position WHERE shard = ?", [shard])
    query(f"INSERT INTO {name}.position VALUES (?, ?, ?)", [shard, position.created_ns, position.sequence])
    known = query(f"SELECT count(*) FROM {name}.seen WHERE shard = ?", [shard])[0][0]
    if fresh or known == 0 or reader.unsaved + len(reader.folded) > _MAX_FOLDED:
        if time_ns is not None:
            # By the time of the stream: a replay years later has to know the same repetitions.
            reader.seen.forget(time_ns)
        query(f"DELETE FROM {name}.seen WHERE shard = ?", [shard])
        query(f"DELETE FROM {name}.folded WHERE shard = ?", [shard])
        query(f"INSERT INTO {name}.seen VALUES (?, ?)", [shard, reader.seen.snapshot()])
        reader.unsaved = 0
    elif reader.folded:
        rows = [(shard, *row) for row in reader.folded]
        database.insert(f"{name}.folded", columns_from("folded", rows))
        reader.unsaved += len(rows)
