"""Converts spans to rows of the store and back; builds SQL that reads attributes."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import astuple

from tokentrace.errors import shorten
from tokentrace.records import FUTURE_NS, ID_FIELDS, SPAN_FIELDS, Span

log = logging.getLogger("tokentrace.api.store")

#: Column -> DuckDB type. Fields that are rarely set are encoded together in ``rest``.
COLUMNS = {
    "ordinal": "BIGINT",
    "trace_hash": "UINTEGER",
    "sequence": "BIGINT",
    "shard": "INTEGER",
    "event_ns": "BIGINT",
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "parent_span_id": "VARCHAR",
    "name": "VARCHAR",
    "kind": "VARCHAR",
    "caller": "VARCHAR",
    "model": "VARCHAR",
    "provider": "VARCHAR",
    "status": "VARCHAR",
    "started_ns": "BIGINT",
    "ended_ns": "BIGINT",
    "latency_ns": "BIGINT",
    "ttft_ns": "BIGINT",
    "prompt_tokens": "BIGINT",
    "completion_tokens": "BIGINT",
    "total_tokens": "BIGINT",
    "cache_read_tokens": "BIGINT",
    "cache_write_tokens": "BIGINT",
    "cache_write_1h_tokens": "BIGINT",
    "reasoning_tokens": "BIGINT",
    "cost_nusd": "BIGINT",
    "score": "BIGINT",
    "error": "VARCHAR",
    "arrived_ns": "BIGINT",
    "session_id": "VARCHAR",
    "user_id": "VARCHAR",
    "cost_source": "VARCHAR",
    "cost_model": "VARCHAR",
    "unpriced_reason": "VARCHAR",
    "source": "VARCHAR",
    "attributes": "VARCHAR",
    "rest": "BLOB",
}
_REST = ("usage", "error_stack")
_COMPUTED = ("ordinal", "trace_hash", "sequence", "shard", "event_ns", "attributes", "rest")
_FIELDS = tuple(name for name in COLUMNS if name not in _COMPUTED)
_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()
#: Texts that are written unchanged in JSON. A number with a fraction or an exponent may be written differently.
_VERBATIM = re.compile(r'(?!-?[\d.]+(?:[eE][-+]?\d+)?$)[^"\\\x00-\x1f{\[]+|-?\d+')


def trace_hash(trace_id: str) -> int:
    """Return the CRC-32 of *trace_id*; its column has a tenth of the size of the ids, so finding a trace reads less."""
    return zlib.crc32(trace_id.encode())


def columns_of(spans: Sequence[Span], origins: Sequence[tuple[int, int]], first_ordinal: int) -> dict[str, Any]:
    """
    Return *spans* as columns for ``Database.insert``: each is a numpy array, or one value that all spans have.

    Args:
        spans: At least one.
        origins: (stream sequence, shard) of each span.
        first_ordinal: Number of the row of the first span.
    """
    count = len(spans)
    # Transposing whole spans is faster: reading one field of one span at a time took a third of the time of storing.
    fields = dict(zip(SPAN_FIELDS, zip(*map(astuple, spans), strict=True), strict=True))
    sequences, shards = zip(*origins, strict=True)
    arrived, ended = np.array(fields["arrived_ns"], np.int64), np.array(fields["ended_ns"], np.int64)
    columns: dict[str, Any] = {
        "ordinal": np.arange(first_ordinal, first_ordinal + count, dtype=np.int64),
        "trace_hash": np.fromiter(map(trace_hash, fields["trace_id"]), np.uint32, count),
        "sequence": np.array(sequences, np.int64),
        "shard": np.array(shards, np.int32),
        "event_ns": np.where(ended <= arrived + FUTURE_NS, ended, arrived),  # as ``event_time`` in tokentrace.records
    }
    for name in _FIELDS:
        values = fields[name]
        first = values[0]
        if values[-1] == first and values.count(first) == count:
            columns[name] = first
        elif COLUMNS[name] == "VARCHAR":
            columns[name] = np.array(values, dtype=object)
        elif name in ("cost_nusd", "score"):
            columns[name] = nullable(values)
        else:
            columns[name] = np.array(values, np.int64)
    rest = [_rest(*values) for values in zip(*(fields[name] for name in _REST), strict=True)]
    for name, texts in (("attributes", list(map(attributes_json, fields["attributes"]))), ("rest", rest)):
        columns[name] = np.array(texts, dtype=object) if any(texts) else None
    return columns


def nullable(values: Sequence[int | None]) -> Any:
    """Return *values* as a numpy column in which None is NULL."""
    known = np.fromiter((value or 0 for value in values), np.int64, len(values))
    return np.ma.masked_array(known, np.fromiter((value is None for value in values), bool, len(values)))


def attributes_json(attributes: dict[str, Any]) -> str | None:
    """Return *attributes* as JSON; None if there are none or if JSON cannot hold them."""
    if not attributes:
        return None
    try:
        return _json.encode(attributes).decode()
    except (TypeError, ValueError, RecursionError):
        # Ingest accepts only attributes that JSON can hold. The rest of a span that bypassed ingest is stored.
        log.warning("attributes %s cannot be stored: they are not valid JSON", shorten(list(attributes)))
        return None


def _rest(*values: Any) -> bytes | None:
    return _pack.encode(values) if any(values) else None


def span_of(row: Sequence[Any]) -> Span:
    """Return the span in *row*, which holds values in the order of COLUMNS."""
    values = dict(zip(COLUMNS, row, strict=True))
    fields = {name: values[name] for name in _FIELDS}
    if values["rest"] is not None:
        fields.update(zip(_REST, msgspec.msgpack.decode(values["rest"]), strict=True))
    if values["attributes"] is not None:
        fields["attributes"] = msgspec.json.decode(values["attributes"])
    return Span(**fields)


def _pointer(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def attribute_text(key: str, function: str = "json_extract_string") -> tuple[str, list[str]]:
    """
    Return SQL for the text form of the attribute *key*; it finds the same value as ``tokentrace.records.attribute``.

    Args:
        key: A key, or a path into nested maps, with dots between keys. A key that contains dots precedes a path.
            ``user_id`` and ``session_id`` are the columns of those names, or else the attributes.
        function: The JSON function that is applied to the attribute; ``json_type`` gives its type instead of its text.

    Returns:
        (SQL expression, values of its parameters). The expression is NULL for a span without the attribute.
    """
    literal = _pointer(key)
    extracted = f"{function}(attributes, ?)"
    if key in ID_FIELDS:
        held = f"nullif({key}, '')"
        known = held if function == "json_extract_string" else f"CASE WHEN {held} IS NOT NULL THEN 'VARCHAR' END"
        return f"coalesce({known}, {extracted})", [literal]
    if "." not in key:
        return extracted, [literal]
    keys = key.split(".")
    # A path leads into maps only, but a JSON pointer with a number or "-" would also select an element of a list.
    ancestors = [
        _pointer(*keys[:depth]) for depth in range(1, len(keys)) if keys[depth].isdigit() or keys[depth] == "-"
    ]
    maps = "".join(" AND json_type(attributes, ?) = 'OBJECT'" for _ in ancestors)
    has_key = "json_extract_string(attributes, ?) IS NOT NULL"
    expression = f"CASE WHEN {has_key} THEN {extracted} WHEN true{maps} THEN {extracted} END"
    return expression, [literal, literal, *ancestors, _pointer(*keys)]


def attribute_is(key: str, value: str) -> tuple[str, list[str]]:
    """
    Return (SQL that is true if the text form of the attribute *key* is *value*, its parameters).

    For ``user_id`` and ``session_id``, the value "" is that of a span without such an id.
    """
    text, paths = attribute_text(key)
    if key in ID_FIELDS and not value:
        return f"coalesce({text}, '') = ''", paths
    if not _VERBATIM.fullmatch(value):
        return f"{text} = ?", [*paths, value]
    # Searching for the text first avoids parsing the JSON of most rows.
    in_json = f"contains(attributes, ?) AND {text} = ?"
    if key in ID_FIELDS:
        return f"({key} = ? OR ({in_json}))", [value, value, *paths, value]
    return f"({in_json})", [value, *paths, value]
