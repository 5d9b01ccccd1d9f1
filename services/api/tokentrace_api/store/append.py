"""Writes messages of the log into the newest file: spans, other records and positions in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import duckdb
from msgspec.structs import replace

from tokentrace.bus import Message, subjects
from tokentrace.dedup import LeftOut, total
from tokentrace.errors import Rejected
from tokentrace.records import Batch, ChatMessage, Position, Span, Started
from tokentrace_api.reporter_states import ReporterStates
from tokentrace_api.store.catalog import Catalog
from tokentrace_api.store.columns import Telling, attributes_json, columns_of
from tokentrace_api.store.deletions import Deletions
from tokentrace_api.store.reader_state import write_reader, write_waiting
from tokentrace_api.store.segment import RECORDS, Segment, columns_from, day_of
from tokentrace_api.store.span_updates import (
    Content,
    SpanUpdate,
    apply_updates,
    changed_columns,
    set_columns,
    stored_versions,
    updates_of,
    without_repetitions,
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
        repetitions: Number of spans that were not stored, because they said nothing new about a known span.
        rejected: Number of messages that could not be decoded and were skipped.
    """

    def __init__(self, catalog: Catalog, deletions: Deletions, reporters: ReporterStates) -> None:
        self._reporters = reporters
        self._catalog, self._deletions = catalog, deletions
        self.repetitions = 0
        self.rejected = 0

    @property
    def left_out(self) -> LeftOut:
        """What does not count of all that was read since the log began."""
        return total(reader.dedup.left_out for reader in self._catalog.readers.values())

    def append(self, items: Sequence[Item]) -> list[Span]:
        """
        Store *items* in order, with one transaction for each day.

        Returns:
            The spans that were stored and count, with their scores and annotations applied.

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
        contents: list[Content] = []
        for item in items:
            before, _ = positions.get(item.shard, (catalog.position(item.shard), 0))
            if before is not None and before.created_ns != item.created_ns:
                catalog.readers[item.shard].dedup.rewound()
            positions[item.shard] = Position(item.created_ns, item.message.sequence), item.message.time_ns
            contents += self._contents_of(item)
        wanted = updates_of(content.others for content in contents)
        told_again = {telling.key for content in contents for telling in content.tellings if not telling.counted}
        versions = stored_versions(database, catalog.segments, wanted.keys() | told_again)
        told = sum(len(content.tellings) for content in contents)
        contents = without_repetitions(contents, versions)
        known = {(span.trace_id, span.span_id) for rows in versions.values() for _, span in rows}
        updated = apply_updates(contents, known, catalog.waiting)
        changes = changed_columns(versions, updated.updates)
        for stored_in, columns in changes.items():
            if stored_in != target:
                # A transaction writes to one file only; repeating this update after a failure does no harm.
                set_columns(database, stored_in, columns)
        database.run("BEGIN")
        if updated.tellings:
            origins = [content.origin for content in contents for _ in content.tellings]
            database.insert(f"{name}.spans", columns_of(updated.tellings, origins, catalog.last_ordinal + 1))
        if target in changes:
            set_columns(database, target, changes[target])
        self._insert_records(name, [content.others for content in contents])
        write_waiting(database, target, {key: updated.waiting.get(key, SpanUpdate()) for key in updated.touched})
        self._write_positions(target, positions, is_new_file=is_new_file)
        counted = [telling.span for telling in updated.tellings if telling.counted]
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
            return counted
        self.repetitions += told - len(updated.tellings)
        catalog.waiting = updated.waiting
        catalog.last_ordinal += len(updated.tellings)
        for shard, (position, _) in positions.items():
            reader = catalog.readers[shard]
            reader.position, reader.unsaved_ids, reader.saved_calls = position, [], reader.dedup.calls.added
        return counted

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

    def _contents_of(self, item: Item) -> list[Content]:
        """Return what *item* holds that was not folded before; [] if its message cannot be decoded."""
        reader, message = self._catalog.readers[item.shard], item.message
        try:
            project = subjects.parse_project(message.subject)
            # The memory of calls learns deleted spans too, as that of every other reader does.
            told = list(reader.dedup.taken_from(message.payload, message.sequence, message.time_ns, project))
        except Rejected as exc:
            self.rejected += 1
            self._catalog.set_aside.note(subjects.SPANS, f"message {message.sequence}", exc)
            return []
        contents = []
        for batch, taken in told:
            self._reporters.note(batch, project, message.time_ns)
            if batch.sequence and not taken.skipped:
                reader.unsaved_ids.append((batch.id, batch.sequence, batch.part, message.time_ns, batch.layout))
            if taken.skipped:
                continue
            counted, conflicting = taken.counted, frozenset(taken.conflicting)
            tellings = [
                Telling(span, counted is None or counted[index], index in conflicting)
                for index, span in enumerate(batch.spans)
                if not self._deletions.hides_span(span)
            ]
            others = Batch(id=batch.id) if taken.batch is None else replace(taken.batch, spans=[])
            contents.append(Content(tellings, self._deletions.without_hidden(others), (message.sequence, item.shard)))
        return contents

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
