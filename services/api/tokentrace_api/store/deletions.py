"""What was deleted: it is gone from every answer, and stays away when the store is rebuilt from the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from msgspec.structs import replace

from tokentrace.records import Batch, ChatMessage, SessionEnd, Span, Started, Tombstone
from tokentrace_api.store.columns import trace_hash
from tokentrace_api.store.span_updates import Key, SpanUpdate

#: Table -> the column that says whose a record is, for each target.
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


class Deletions:
    """All tombstones that are known; what arrived after one was put up is new and stays."""

    def __init__(self) -> None:
        self._deleted: dict[str, dict[str, int]] = {target: {} for target in _COLUMNS}

    def __len__(self) -> int:
        return sum(map(len, self._deleted.values()))

    def holds(self, stone: Tombstone) -> bool:
        """*stone* says nothing new."""
        return stone.deleted_ns <= self._deleted[stone.target].get(stone.id, -1)

    def add(self, stone: Tombstone) -> None:
        """Put it up: what it stands for is gone."""
        known = self._deleted[stone.target]
        known[stone.id] = max(stone.deleted_ns, known.get(stone.id, -1))

    def without_hidden(self, batch: Batch) -> Batch:
        """*batch* without what was deleted before it got here."""
        if not self:
            return batch
        at = batch.arrived_ns
        return replace(
            batch,
            spans=[one for one in batch.spans if not self.hides_span(one)],
            started=[one for one in batch.started if not self.hides_span(replace(one, arrived_ns=at))],
            messages=[one for one in batch.messages if not self.hides_message(one, at)],
            session_ends=[one for one in batch.session_ends if not self.hides_message(one, at)],
            scores=[one for one in batch.scores if not self._hides("trace", one.trace_id, at)],
            annotations=[one for one in batch.annotations if not self._hides("trace", one.trace_id, at)],
        )

    def hides_span(self, span: Span | Started) -> bool:
        """*span* was deleted before it got here."""
        return bool(self) and (
            self._hides("trace", span.trace_id, span.arrived_ns)
            or self._hides("session", span.session_id, span.arrived_ns)
            or self._hides("user", span.user_id, span.arrived_ns)
        )

    def hides_message(self, message: ChatMessage | SessionEnd, arrived_ns: int) -> bool:
        """The same of what belongs to a session."""
        trace_id = message.trace_id if isinstance(message, ChatMessage) else None
        return bool(self) and (
            self._hides("session", message.session_id, arrived_ns) or self._hides("trace", trace_id, arrived_ns)
        )

    def suppresses(self, key: Key, change: SpanUpdate) -> bool:
        """*change*, which waits for the span *key*, was deleted with its trace."""
        return self._hides("trace", key[0], change.arrived_ns)

    def _hides(self, target: str, id: str | None, arrived_ns: int) -> bool:
        return id is not None and arrived_ns <= self._deleted[target].get(id, -1)


def columns_by_target(stones: Iterable[Tombstone]) -> dict[str, dict[str, Any]]:
    """Target -> *stones* for it, as numpy columns for ``statements``."""
    groups: dict[str, list[Tombstone]] = {}
    for stone in stones:
        groups.setdefault(stone.target, []).append(stone)
    return {
        target: {
            "id": np.array([stone.id for stone in group], dtype=object),
            "hash": np.array([trace_hash(stone.id) for stone in group], np.uint32),
            "deleted_ns": np.array([stone.deleted_ns for stone in group], np.int64),
        }
        for target, group in groups.items()
    }


def statements(segment: str, target: str) -> Iterator[str]:
    """SQL that takes what the rows of ``stones`` stand for, all of *target*, out of *segment*."""
    for table, column in _COLUMNS[target].items():
        own = f"held.{column} = stones.id AND held.arrived_ns <= stones.deleted_ns"
        if column == "trace_id" and table == "spans":
            own = f"held.trace_hash = stones.hash AND {own}"
        yield f"DELETE FROM {segment}.{table} AS held USING stones WHERE {own}"
