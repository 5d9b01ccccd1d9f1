"""Lists single calls, sorted by start, cost, latency or tokens."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from tokentrace.errors import Rejected, quoted
from tokentrace_api.reads.cursor_text import from_text, to_text
from tokentrace_api.reads.newest import LIMIT_S
from tokentrace_api.reads.search import Search
from tokentrace_api.reads.sums import IN_SUMS
from tokentrace_api.store import Store, attribute_text

CallOrder = Literal["started", "cost", "latency", "tokens"]
CALL_ORDERS: tuple[CallOrder, ...] = ("started", "cost", "latency", "tokens")
#: What a list is sorted by -> the column of the number.
_COLUMNS = {"started": "started_ns", "cost": "cost_nusd", "latency": "latency_ns", "tokens": "total_tokens"}
_INTEGER = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_LARGEST = 2**63 - 1


class CallRow(NamedTuple):
    """
    A call: the telling of a span that counts, of a kind that is no roll-up. Times in Unix nanoseconds.

    Attributes:
        cost_nusd: Nano-dollars; None = unknown.
        score: In 10⁻⁹; None = it has none.
        session_id, user_id: The field, or else the attribute of that name; "" = neither.
    """

    trace_id: str
    span_id: str
    name: str
    kind: str
    status: str
    error: str
    started_ns: int
    latency_ns: int
    ttft_ns: int
    model: str
    provider: str
    caller: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cost_nusd: int | None
    cost_source: str
    score: int | None
    session_id: str
    user_id: str


class CallCursor(NamedTuple):
    """
    A place in a list of calls, the largest number first, then the newest row; the calls after it are on the next page.

    Attributes:
        value: The number of the last call of the page as text; None = it is unknown, which comes last.
        ordinal: The row of that call.
    """

    order: CallOrder
    value: str | None
    ordinal: int


class CallPage(NamedTuple):
    """
    A page of calls.

    Attributes:
        total: Number of matching calls on all pages.
        next: Cursor of the next page; None = this is the last page, or the page was asked for 0 calls.
    """

    rows: list[CallRow]
    total: int
    next: CallCursor | None


def encode_call_cursor(cursor: CallCursor) -> str:
    """Return *cursor* as text for a URL."""
    return to_text(cursor)


def parse_call_cursor(text: str) -> CallCursor:
    """
    Decode a cursor that ``encode_call_cursor`` encoded.

    Raises:
        Rejected: *text* is not such a cursor.
    """
    cursor = from_text(text, CallCursor)
    if cursor is None or not _is_amount(cursor.value) or not 0 <= cursor.ordinal <= _LARGEST:
        raise Rejected(f"{quoted(text)} is not a cursor of an earlier answer")
    return cursor


def _is_amount(value: str | None) -> bool:
    return value is None or (_INTEGER.fullmatch(value) is not None and abs(int(value)) <= _LARGEST)


def find_calls(
    store: Store, search: Search, order: CallOrder, limit: int, cursor: CallCursor | None, now_ns: int
) -> CallPage:
    """
    Return a page of the calls that match *search*, those with the largest number first.

    Args:
        search: Its bounds of time apply to the start of the call.
        order: The number: start, cost, latency or tokens.
        limit: Maximum number of calls on the page.
        cursor: The page begins after it; None = with the largest.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    column = _COLUMNS[order]
    condition, values = search.of_span()
    bounds, instants = search.bounds("started_ns")
    where = " AND ".join(text for text in (IN_SUMS, condition, bounds) if text)
    parameters = [*values, *instants]
    after, place = "true", list[str | int]()
    if cursor is not None and cursor.value is None:
        after, place = f"{column} IS NULL AND ordinal < ?", [cursor.ordinal]
    elif cursor is not None:
        number = int(cursor.value or 0)
        after = f"({column} < ? OR {column} IS NULL OR ({column} = ? AND ordinal < ?))"
        place = [number, number, cursor.ordinal]
    # The wide columns are read of the page only.
    found = store.query(
        f"SELECT total, line, value::VARCHAR FROM (SELECT count(*) AS total FROM {{spans}} WHERE {where}) LEFT JOIN "
        f"(SELECT ordinal AS line, {column} AS value FROM {{spans}} WHERE {where} AND {after} "
        f"ORDER BY value DESC NULLS LAST, line DESC LIMIT {limit + 1}) ON true "
        "ORDER BY value DESC NULLS LAST, line DESC",
        [*parameters, *parameters, *place],
        now_ns,
        limit_s=LIMIT_S,
    )
    total = int(found[0][0]) if found else 0
    ranked = [(int(ordinal), value) for _, ordinal, value in found if ordinal is not None]
    shown = ranked[:limit]
    rows = _rows(store, [ordinal for ordinal, _ in shown], now_ns)
    following = CallCursor(order, shown[-1][1], shown[-1][0]) if shown and len(ranked) > limit else None
    return CallPage([rows[ordinal] for ordinal, _ in shown if ordinal in rows], total, following)


def _rows(store: Store, ordinals: list[int], now_ns: int) -> dict[int, CallRow]:
    """Return number of the row -> the call; a call that was deleted meanwhile is left out."""
    if not ordinals:
        return {}
    (session, sessions), (user, users) = attribute_text("session_id"), attribute_text("user_id")
    columns = ", ".join(CallRow._fields[:-2])
    found = store.query(
        f"SELECT ordinal, {columns}, coalesce({session}, ''), coalesce({user}, '') FROM {{spans}} "
        "WHERE ordinal IN (SELECT unnest(?::BIGINT[]))",
        [*sessions, *users, ordinals],
        now_ns,
    )
    return {ordinal: CallRow(*row) for ordinal, *row in found}
