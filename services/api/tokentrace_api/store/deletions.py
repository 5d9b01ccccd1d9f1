"""Deletions: decides which records a tombstone hides, and removes the rows of hidden records from the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from tokentrace.metrics import attribute_text_of
from tokentrace.records import Batch, ChatMessage, SessionEnd, Span, Started, Tombstone
from tokentrace_api.store.columns import trace_hash
from tokentrace_api.store.database import Database
from tokentrace_api.store.reader_state import forget_waiting, read_waiting
from tokentrace_api.store.segment import Segment
from tokentrace_api.store.span_updates import Key, SpanUpdate

#: Target of a deletion -> table -> the column that holds the id of the target.
_COLUMNS = {
    "trace": {"spans": "trace_id", "started": "trace_id", "messages": "trace_id"},
    "session": {
        "spans": "session_id",
        "started": "session_id",
        "messages": "session_id",
        "session_ends": "session_id",
    },
    "user": {"spans": "user_id", "started": "user_id"},
}
#: SQL for the user of a span, as ``tokentrace.records.attribute`` finds it; the place is for the alias of the table.
USER_OF_SPAN = "coalesce(nullif({0}user_id, ''), json_extract_string({0}attributes, '/user_id'))"


class Deletions:
    """All known tombstones. A tombstone hides the records of its target that arrived up to its time, not later ones."""

    def __init__(self) -> None:
        self._deleted: dict[str, dict[str, int]] = {target: {} for target in _COLUMNS}

    def __len__(self) -> int:
        return sum(map(len, self._deleted.values()))

    def holds(self, tombstone: Tombstone) -> bool:
        """Return True if all records that *tombstone* hides are hidden already."""
        return tombstone.deleted_ns <= self._deleted[tombstone.target].get(tombstone.id, -1)

    def add(self, tombstone: Tombstone) -> None:
        """Add *tombstone*, so that its records are hidden from now on."""
        known = self._deleted[tombstone.target]
        known[tombstone.id] = max(tombstone.deleted_ns, known.get(tombstone.id, -1))

    def without_hidden(self, batch: Batch) -> Batch:
        """Return *batch* without the records that a tombstone hides."""
        if not self:
            return batch
        at = batch.arrived_ns
        return replace(
            batch,
            spans=[span for span in batch.spans if not self.hides_span(span)],
            started=[span for span in batch.started if not self.hides_span(replace(span, arrived_ns=at))],
            messages=[message for message in batch.messages if not self.hides_message(message, at)],
            session_ends=[end for end in batch.session_ends if not self.hides_message(end, at)],
            scores=[score for score in batch.scores if not self._hides("trace", score.trace_id, at)],
            annotations=[
                annotation for annotation in batch.annotations if not self._hides("trace", annotation.trace_id, at)
            ],
        )

    def hides_span(self, span: Span | Started) -> bool:
        """Return True if the trace, session or user of *span* was deleted after the span arrived."""
        return bool(self) and (
            self._hides("trace", span.trace_id, span.arrived_ns)
            or self._hides("session", span.session_id, span.arrived_ns)
            or self._hides("user", _user_of(span), span.arrived_ns)
        )

    def hides_message(self, message: ChatMessage | SessionEnd, arrived_ns: int) -> bool:
        """Return True if the session or trace of *message* was deleted after the message arrived."""
        trace_id = message.trace_id if isinstance(message, ChatMessage) else None
        return bool(self) and (
            self._hides("session", message.session_id, arrived_ns) or self._hides("trace", trace_id, arrived_ns)
        )

    def suppresses(self, key: Key, update: SpanUpdate) -> bool:
        """Return True if *update*, which waits for the span *key*, arrived before the span's trace was deleted."""
        return self._hides("trace", key[0], update.arrived_ns)

    def _hides(self, target: str, id: str | None, arrived_ns: int) -> bool:
        return id is not None and arrived_ns <= self._deleted[target].get(id, -1)


def _user_of(span: Span | Started) -> str | None:
    return attribute_text_of(span, "user_id") if isinstance(span, Span) else span.user_id


def apply(database: Database, segment: Segment, tombstones: Sequence[Tombstone]) -> None:
    """
    Delete from *segment*, in one transaction, the rows and waiting updates that *tombstones* hide.

    One statement for each table deletes for all tombstones together, because a user may have thousands of sessions.

    Raises:
        duckdb.Error: The disk refused; the transaction is left open.
        Rejected: A waiting update cannot be decoded; the transaction is left open.
    """
    database.run("BEGIN")
    for target, columns in columns_by_target(tombstones).items():
        with database.registered("tombstones", columns):
            for sql in statements(segment.name, target):
                database.run(sql)
    applied = Deletions()
    for tombstone in tombstones:
        applied.add(tombstone)
    for key, update in read_waiting(database, segment).items():
        if applied.suppresses(key, update):
            forget_waiting(database, segment, key)
    database.run("COMMIT")


def checkpoint(database: Database, segment: Segment) -> None:
    """
    Empty the write-ahead file of *segment*, which holds deleted rows as they were written.

    Raises:
        duckdb.Error: The disk refused, or a query holds the file; the rows are deleted all the same.
    """
    database.checkpoint(segment.name)


def columns_by_target(tombstones: Iterable[Tombstone]) -> dict[str, dict[str, Any]]:
    """Return target -> numpy columns of its *tombstones*, for ``statements``."""
    groups: dict[str, list[Tombstone]] = {}
    for tombstone in tombstones:
        groups.setdefault(tombstone.target, []).append(tombstone)
    return {
        target: {
            "id": np.array([tombstone.id for tombstone in group], dtype=object),
            "hash": np.array([trace_hash(tombstone.id) for tombstone in group], np.uint32),
            "deleted_ns": np.array([tombstone.deleted_ns for tombstone in group], np.int64),
        }
        for target, group in groups.items()
    }


def statements(segment: str, target: str) -> Iterator[str]:
    """Yield SQL that deletes from *segment* the rows that the table ``tombstones``, all of *target*, hides."""
    for table, column in _COLUMNS[target].items():
        id_of = USER_OF_SPAN.format("held.") if (table, column) == ("spans", "user_id") else f"held.{column}"
        is_hidden = f"{id_of} = tombstones.id AND held.arrived_ns <= tombstones.deleted_ns"
        if column == "trace_id" and table == "spans":
            is_hidden = f"held.trace_hash = tombstones.hash AND {is_hidden}"
        yield f"DELETE FROM {segment}.{table} AS held USING tombstones WHERE {is_hidden}"
