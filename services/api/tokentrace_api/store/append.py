"""Writes messages of the log into the newest file: spans, other records and positions in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb

from tokentrace.bus import Message, subjects
from tokentrace.errors import Rejected
from tokentrace.records import Batch, ChatMessage, Position, Span, Started, decode_batches
from tokentrace_api.store.catalog import Catalog
from tokentrace_api.store.columns import attributes_json, columns_of
from tokentrace_api.store.deletions import Deletions
from tokentrace_api.store.reader_state import write_reader, write_waiting
from tokentrace_api.store.segment import RECORDS, Segment, columns_from, day_of
from tokentrace_api.store.span_updates import (
    SpanUpdate,
    apply_updates,
    changed_columns,
    set_columns,
    stored_versions,
    updates_of,
)


class Item(NamedTuple):
    """A message to be stored, the shard it came from, and the time at which the log was created, Unix nanoseconds."""

    shard: int
    created_ns: int
    message: Message


class Appender:
    """
    Appends messages to the newest file. Its methods are called by the writing thread only.

    Attributes:
        repeated: Number of batches that were stored before and were skipped.
        rejected: Number of messages that could not be decoded and were skipped.
    """

    def __init__(self, catalog: Catalog, deletions: Deletions) -> None:
        self._catalog, self._deletions = catalog, deletions
        self.repeated = 0
        self.rejected = 0

    def append(self, items: Sequence[Item]) -> list[Span]:
        """
        Store *items* in order, with one transaction for each day.

        Returns:
            The spans that were stored, with their scores and annotations applied.

        Raises:
            duckdb.Error, OSError: The disk refused; the failed transaction stored nothing.
            StoreDamaged: A file is damaged that was not damaged before.
        """
        stored: list[Span] = []
        segments = self._catalog.segments
        for day, group in _by_day(items, segments[-1].day if segments else ""):
            stored += self._append_to(self._catalog.segment_for(day), group)
        return stored

    def _append_to(self, target: Segment, items: Sequence[Item]) -> list[Span]:
        catalog, database, name = self._catalog, self._catalog.database, target.name
        is_new_file = not database.run(f"SELECT count(*) FROM {name}.position")[0][0]
        positions: dict[int, tuple[Position, int]] = {}
        batches: list[Batch] = []
        origins: list[tuple[int, int]] = []
        for item in items:
            positions[item.shard] = Position(item.created_ns, item.message.sequence), item.message.time_ns
            for batch in self._new_batches(item):
                shown = self._deletions.without_hidden(batch)
                batches.append(shown)
                origins += [(item.message.sequence, item.shard)] * len(shown.spans)
        versions = stored_versions(database, catalog.segments, updates_of(batches))
        known = {(span.trace_id, span.span_id) for rows in versions.values() for _, span in rows}
        updated = apply_updates(batches, known, catalog.waiting)
        changes = changed_columns(versions, updated.updates)
        for stored_in, columns in changes.items():
            if stored_in != target:
                # A transaction writes to one file only; repeating this update after a failure does no harm.
                set_columns(database, stored_in, columns)
        database.run("BEGIN")
        if updated.spans:
            database.insert(f"{name}.spans", columns_of(updated.spans, origins, catalog.last_ordinal + 1))
        if target in changes:
            set_columns(database, target, changes[target])
        self._insert_records(name, batches)
        write_waiting(database, target, {key: updated.waiting.get(key, SpanUpdate()) for key in updated.touched})
        self._write_positions(target, positions, is_new_file=is_new_file)
        try:
            database.run("COMMIT")
        except duckdb.Error as exc:
            # If DuckDB could not write its WAL back, COMMIT fails although the transaction is durable. The positions
            # that fail() has just read from the file tell whether it is durable.
            catalog.fail(exc)
            if catalog.is_stale or any(
                catalog.position(shard) != position for shard, (position, _) in positions.items()
            ):
                raise
            return updated.spans
        catalog.waiting = updated.waiting
        catalog.last_ordinal += len(updated.spans)
        for shard, (position, _) in positions.items():
            reader = catalog.readers[shard]
            reader.position, reader.unsaved_ids = position, []
        return updated.spans

    def _write_positions(
        self, target: Segment, positions: Mapping[int, tuple[Position, int]], *, is_new_file: bool
    ) -> None:
        """Write the reader state of the shards in *positions*; if the file is new, also that of every other shard."""
        database, readers = self._catalog.database, self._catalog.readers
        for shard, (position, time_ns) in positions.items():
            write_reader(database, target, shard, readers[shard], position, time_ns, is_new_file=is_new_file)
        if is_new_file:
            for shard, reader in readers.items():
                if shard not in positions and reader.position is not None:
                    write_reader(database, target, shard, reader, reader.position, None, is_new_file=True)

    def _new_batches(self, item: Item) -> list[Batch]:
        """Return the batches in *item* that were not stored before; [] if its message cannot be decoded."""
        reader, time_ns = self._catalog.readers[item.shard], item.message.time_ns
        try:
            batches = decode_batches(item.message.payload)
        except Rejected as exc:
            self.rejected += 1
            self._catalog.set_aside.note(subjects.SPANS, f"message {item.message.sequence}", exc)
            return []
        new = []
        for batch in batches:
            if reader.seen.add(batch, time_ns):
                reader.unsaved_ids.append((batch.id, batch.sequence, batch.part, time_ns))
                new.append(batch)
            else:
                self.repeated += 1
        return new

    def _insert_records(self, name: str, batches: Sequence[Batch]) -> None:
        """Insert the started spans, messages and session ends of *batches*."""
        rows: dict[str, list[Sequence[Any]]] = {"started": [], "messages": [], "session_ends": []}
        for batch in batches:
            arrived_ns = batch.arrived_ns
            rows["started"] += [_row_of(started, "started", arrived_ns) for started in batch.started]
            rows["messages"] += [_row_of(message, "messages", arrived_ns) for message in batch.messages]
            rows["session_ends"] += [
                (end.session_id, end.ended_ns, end.error, arrived_ns) for end in batch.session_ends
            ]
        for table, table_rows in rows.items():
            if table_rows:
                self._catalog.database.insert(f"{name}.{table}", columns_from(table, table_rows))


def _by_day(items: Iterable[Item], newest: str) -> list[tuple[str, list[Item]]]:
    """
    Cut *items*, in their order, where a new day begins; return (day, items of that day).

    Args:
        newest: Day of the newest file; "" = there is no file. A message of an earlier day counts for this day: its
            shard is behind, or the clock of the broker was put back.
    """
    groups: list[tuple[str, list[Item]]] = []
    for item in items:
        newest = max(newest, day_of(item.message.time_ns))
        if not groups or groups[-1][0] != newest:
            groups.append((newest, []))
        groups[-1][1].append(item)
    return groups


def _row_of(record: Started | ChatMessage, table: str, arrived_ns: int) -> list[Any]:
    computed = {"arrived_ns": arrived_ns, "metadata": attributes_json(record.metadata)}
    return [computed[column] if column in computed else getattr(record, column) for column in RECORDS[table]]
