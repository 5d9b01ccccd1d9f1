"""Lists what spans hold: the values of a column or an attribute, and the keys of attributes, with counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from tokentrace_api.reads.newest import LIMIT_S, floor_of
from tokentrace_api.reads.search import Search
from tokentrace_api.store import Store, attribute_text

#: Maximum number of matching spans whose column, or whose attributes, are looked at.
MOST_COLUMNS, MOST_ATTRIBUTES = 1_000_000, 200_000
#: Maximum number of different shapes of attributes of which keys are listed, the most frequent first.
_SHAPES = 2000
_TYPES = {
    "VARCHAR": "text",
    "BOOLEAN": "boolean",
    **dict.fromkeys(("BIGINT", "UBIGINT", "HUGEINT", "DOUBLE"), "number"),
}


class Held(NamedTuple):
    """
    A value or a key that spans hold.

    Attributes:
        types: Of a key, the types of its values: text, number, boolean, list; () for a value.
        spans: Number of spans that have it.
        last_ns: Start of the newest of them, Unix nanoseconds.
    """

    name: str
    spans: int
    last_ns: int
    types: tuple[str, ...] = ()


class Listed(NamedTuple):
    """
    Values or keys, the most frequent first, the newest first among equally frequent ones.

    Attributes:
        is_complete: False if there are more.
        searched_until_ns: Spans that started at or before this time were not looked at, Unix nanoseconds; None = all
            were.
    """

    held: list[Held]
    is_complete: bool
    searched_until_ns: int | None


def _spans_after(search: Search, floor_ns: int | None) -> tuple[str, list[Any]]:
    condition, values = search.of_span()
    bounds, instants = search.bounds("started_ns")
    floor, floors = ("started_ns > ?", [floor_ns]) if floor_ns is not None else ("", [])
    return " AND ".join(text for text in ("counted", condition, bounds, floor) if text), [*values, *instants, *floors]


def list_values(
    store: Store, search: Search, key: str, prefix: str, limit: int, now_ns: int, most: int = MOST_COLUMNS
) -> Listed:
    """
    Return the values of a column or an attribute of the spans that match; spans without a value are not counted.

    Args:
        key: Name of a column of the store, or ``attr.`` and the key of an attribute.
        prefix: Beginning of the values, regardless of case.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    expression, paths = attribute_text(key.removeprefix("attr.")) if key.startswith("attr.") else (key, list[str]())
    floor_ns = floor_of(store, search, most, now_ns, of_traces=False)
    where, values = _spans_after(search, floor_ns)
    rows = store.query(
        "SELECT value, count(*) AS spans, max(begun) AS last FROM "
        f"(SELECT {expression} AS value, started_ns AS begun FROM {{spans}} WHERE {where}) "
        "WHERE value <> '' AND starts_with(lower(value), lower(?)) "
        f"GROUP BY value ORDER BY spans DESC, last DESC, value LIMIT {limit + 1}",
        [*paths, *values, prefix],
        now_ns,
        limit_s=LIMIT_S,
    )
    return Listed([Held(*row) for row in rows[:limit]], len(rows) <= limit, floor_ns)


def list_keys(
    store: Store, search: Search, prefix: str, limit: int, now_ns: int, most: int = MOST_ATTRIBUTES
) -> Listed:
    """
    Return the keys of the attributes of the spans that match; a key inside a map is a path with dots.

    Raises:
        Unavailable: The store cannot be read, or the query took too long.
    """
    floor_ns = floor_of(store, search, most, now_ns, of_traces=False)
    where, values = _spans_after(search, floor_ns)
    # Spans have few different shapes, so it is enough to parse one of each.
    shapes = store.query(
        "SELECT json_structure(attributes)::VARCHAR AS shape, count(*) AS spans, max(started_ns) AS last "
        f"FROM {{spans}} WHERE {where} AND attributes IS NOT NULL GROUP BY shape ORDER BY spans DESC, last DESC, shape "
        f"LIMIT {_SHAPES + 1}",
        values,
        now_ns,
        limit_s=LIMIT_S,
    )
    found: dict[str, Held] = {}
    for shape, count, last_ns in shapes[:_SHAPES]:
        for key, kind in set(_keys_of(msgspec.json.decode(shape), "")):
            if key.lower().startswith(prefix.lower()):
                held = found.get(key, Held(key, 0, last_ns))
                types = tuple(sorted({*held.types, kind}))
                found[key] = Held(key, held.spans + count, max(held.last_ns, last_ns), types)
    listed = sorted(found.values(), key=lambda held: (-held.spans, -held.last_ns, held.name))
    return Listed(listed[:limit], len(listed) <= limit and len(shapes) <= _SHAPES, floor_ns)


def _keys_of(shape: Any, before: str) -> Iterator[tuple[str, str]]:
    """Yield (key, type) of each attribute in *shape*, which ``json_structure`` returned."""
    for key, kind in shape.items() if isinstance(shape, dict) else ():
        if isinstance(kind, dict):
            yield from _keys_of(kind, f"{before}{key}.")
        elif isinstance(kind, list):
            yield before + key, "list"
        elif kind in _TYPES:
            yield before + key, _TYPES[kind]
