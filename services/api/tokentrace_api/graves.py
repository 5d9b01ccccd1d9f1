"""What was deleted: it is gone from every answer, and stays away when the store is rebuilt from the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokentrace.records import ChatMessage, SessionEnd, Span, Started, Tombstone
from tokentrace_api.columns import trace_hash

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


class Graves:
    """All tombstones that are known; what arrived after one was put up is new and stays."""

    def __init__(self) -> None:
        self._deleted: dict[str, dict[str, int]] = {target: {} for target in _COLUMNS}

    def __len__(self) -> int:
        return sum(map(len, self._deleted.values()))

    def add(self, tombstones: Iterable[Tombstone]) -> list[Tombstone]:
        """Put them up; returns those that say something new."""
        new = []
        for stone in tombstones:
            known = self._deleted[stone.target]
            if stone.deleted_ns > known.get(stone.id, 0):
                known[stone.id] = stone.deleted_ns
                new.append(stone)
        return new

    def drop(self, stone: Tombstone) -> None:
        """Take one down again, because what it stands for is still there."""
        self._deleted[stone.target].pop(stone.id, None)

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

    def _hides(self, target: str, id: str | None, arrived_ns: int) -> bool:
        return id is not None and arrived_ns <= self._deleted[target].get(id, -1)


def statements(segment: str, stone: Tombstone) -> Iterator[tuple[str, list[object]]]:
    """SQL that takes what *stone* stands for out of *segment*, and the values of its parameters."""
    for table, column in _COLUMNS[stone.target].items():
        where, values = f"{column} = ? AND arrived_ns <= ?", [stone.id, stone.deleted_ns]
        if column == "trace_id" and table == "spans":
            where, values = f"trace_hash = ? AND {where}", [trace_hash(stone.id), *values]
        yield f"DELETE FROM {segment}.{table} WHERE {where}", values
