"""A span as a row of the store, and back: nothing is lost on the way."""

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
from tokentrace.records import FUTURE_NS, SPAN_FIELDS, Span

log = logging.getLogger("tokentrace.api.store")

#: Column -> DuckDB type. What is rarely set travels in ``rest``.
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
_OWN = ("ordinal", "trace_hash", "sequence", "shard", "event_ns", "attributes", "rest")
_FIELDS = tuple(name for name in COLUMNS if name not in _OWN)
_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()
#: A text that stands in JSON as it is; numbers with a fraction or an exponent may be written in another way.
_VERBATIM = re.compile(r'(?!-?[\d.]+(?:[eE][-+]?\d+)?$)[^"\\\x00-\x1f{\[]+|-?\d+')


def trace_hash(trace_id: str) -> int:
    """Four bytes of *trace_id*: a tenth of the reading finds the rows of a trace, nearly all of them its own."""
    return zlib.crc32(trace_id.encode())


def columns_of(spans: Sequence[Span], origins: Sequence[tuple[int, int]], first_ordinal: int) -> dict[str, Any]:
    """
    *spans* as columns for ``Database.insert``: numpy arrays, or a single value where all have the same.

    Args:
        origins: (stream sequence, shard) of each span.
        first_ordinal: Number of the first row.
    """
    count = len(spans)
    # Taken apart whole and turned round: one attribute of one span at a time was a third of storing it.
    given = dict(zip(SPAN_FIELDS, zip(*map(astuple, spans), strict=True), strict=True))
    sequences, shards = zip(*origins, strict=True)
    arrived, ended = np.array(given["arrived_ns"], np.int64), np.array(given["ended_ns"], np.int64)
    columns: dict[str, Any] = {
        "ordinal": np.arange(first_ordinal, first_ordinal + count, dtype=np.int64),
        "trace_hash": np.fromiter(map(trace_hash, given["trace_id"]), np.uint32, count),
        "sequence": np.array(sequences, np.int64),
        "shard": np.array(shards, np.int32),
        "event_ns": np.where(ended <= arrived + FUTURE_NS, ended, arrived),  # ``event_time`` of all at once
    }
    for name in _FIELDS:
        values = given[name]
        first = values[0]
        if values[-1] == first and values.count(first) == count:
            columns[name] = first
        elif COLUMNS[name] == "VARCHAR":
            columns[name] = np.array(values, dtype=object)
        elif name in ("cost_nusd", "score"):
            columns[name] = nullable(values)
        else:
            columns[name] = np.array(values, np.int64)
    rest = [_rest(*own) for own in zip(*(given[name] for name in _REST), strict=True)]
    for name, texts in (("attributes", list(map(attributes_json, given["attributes"]))), ("rest", rest)):
        columns[name] = np.array(texts, dtype=object) if any(texts) else None
    return columns


def nullable(values: Sequence[int | None]) -> Any:
    """*values* as a numpy column in which None is NULL."""
    known = np.fromiter((value or 0 for value in values), np.int64, len(values))
    return np.ma.masked_array(known, np.fromiter((value is None for value in values), bool, len(values)))


def attributes_json(attributes: dict[str, Any]) -> str | None:
    """*attributes* as they are stored; None when there are none."""
    if not attributes:
        return None
    try:
        return _json.encode(attributes).decode()
    except (TypeError, ValueError, RecursionError):
        # Ingest lets nothing through that JSON cannot say; whoever wrote to the log past it loses the attributes only.
        log.warning("attributes %s cannot be stored", shorten(list(attributes)))
        return None


def _rest(*values: Any) -> bytes | None:
    return _pack.encode(values) if any(values) else None


def span_of(row: Sequence[Any]) -> Span:
    """The span that *row*, in the order of COLUMNS, was made of."""
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
    SQL for what ``records.attribute`` finds, as text.

    Args:
        function: What to take of it instead, such as ``json_type``.

    Returns:
        (Expression, values of its parameters).
    """
    literal = _pointer(key)
    found = f"{function}(attributes, ?)"
    if "." not in key:
        return found, [literal]
    keys = key.split(".")
    # A path leads into maps; of a list a pointer would take an element.
    above = [_pointer(*keys[:depth]) for depth in range(1, len(keys)) if keys[depth].isdigit() or keys[depth] == "-"]
    maps = "".join(" AND json_type(attributes, ?) = 'OBJECT'" for _ in above)
    expression = (
        f"CASE WHEN json_extract_string(attributes, ?) IS NOT NULL THEN {found} WHEN true{maps} THEN {found} END"
    )
    return expression, [literal, literal, *above, _pointer(*keys)]


def attribute_is(key: str, value: str) -> tuple[str, list[str]]:
    """SQL for: the attribute *key* is *value* in text form; (condition, values of its parameters)."""
    text, paths = attribute_text(key)
    if not _VERBATIM.fullmatch(value):
        return f"{text} = ?", [*paths, value]
    # Looking for the text first spares taking most of the JSON apart.
    return f"(contains(attributes, ?) AND {text} = ?)", [value, *paths, value]
