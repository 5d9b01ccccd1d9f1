"""Converts spans to rows of the store and back; builds SQL that reads attributes."""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import astuple

from tokentrace.errors import shorten
from tokentrace.metrics import FilterNumber, filter_number
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
    "counted": "BOOLEAN",
    "conflicting": "BOOLEAN",
    "response_id": "VARCHAR",
    "scope": "VARCHAR",
}
#: Rows that an earlier version wrote hold a shorter array: fields are only ever appended. The scope has had a column
#: since version 5; rows of version 4 hold it here, and NULL in the column.
_REST = ("usage", "error_stack", "usage_state", "pricing_context", "scope", "adjusted")
_COMPUTED = ("ordinal", "trace_hash", "sequence", "shard", "event_ns", "attributes", "rest", "counted", "conflicting")
_FIELDS = tuple(name for name in COLUMNS if name not in _COMPUTED)
_COUNTED, _CONFLICTING = (list(COLUMNS).index(name) for name in ("counted", "conflicting"))
_json = msgspec.json.Encoder()
_pack = msgspec.msgpack.Encoder()
#: Texts that are written unchanged in JSON; numbers are compared as numbers.
_VERBATIM = re.compile(r'[^"\\\x00-\x1f{\[]+')


#: SQL that keeps one row of each span of a query: the telling that counts, or else the first one.
ONE_TELLING = "QUALIFY counted OR row_number() OVER (PARTITION BY trace_id, span_id ORDER BY counted DESC, ordinal) = 1"


class Telling(NamedTuple):
    """
    What one record said about a call: a row of ``spans``.

    Attributes:
        counted: True for the first telling of a call, which every sum uses; no sum uses a later one.
        conflicting: True if it does not count and its cost or its tokens differ from those of the counted telling.
        later_versions: Number of tellings of the same call that do not count; 0 for one that does not count itself.
    """

    span: Span
    counted: bool = True
    conflicting: bool = False
    later_versions: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """(Trace id, span id)."""
        return self.span.trace_id, self.span.span_id


def trace_hash(trace_id: str) -> int:
    """Return the CRC-32 of *trace_id*; its column has a tenth of the size of the ids, so finding a trace reads less."""
    return zlib.crc32(trace_id.encode())


def columns_of(tellings: Sequence[Telling], origins: Sequence[tuple[int, int]], first_ordinal: int) -> dict[str, Any]:
    """
    Return *tellings* as columns for ``Database.insert``: each is a numpy array, or one value that all rows have.

    Args:
        tellings: At least one.
        origins: (stream sequence, shard) of each.
        first_ordinal: Number of the row of the first span.
    """
    count = len(tellings)
    spans, counted, conflicting, _ = zip(*tellings, strict=True)
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
        columns[name] = _column(name, fields[name])
    kept = [(None,) * count if name in COLUMNS else fields[name] for name in _REST]
    rest = [_rest(*values) for values in zip(*kept, strict=True)]
    for name, texts in (("attributes", list(map(attributes_json, fields["attributes"]))), ("rest", rest)):
        columns[name] = np.array(texts, dtype=object) if any(texts) else None
    columns["counted"], columns["conflicting"] = np.array(counted, np.bool_), np.array(conflicting, np.bool_)
    return {name: columns[name] for name in COLUMNS}


def _column(name: str, values: tuple[Any, ...]) -> Any:
    """Return the *values* of the field *name* as a numpy array, or as one value if they are all equal."""
    first = values[0]
    if values[-1] == first and values.count(first) == len(values):
        return first
    if COLUMNS[name] == "VARCHAR":
        return np.array(values, dtype=object)
    return nullable(values) if name in ("cost_nusd", "score") else np.array(values, np.int64)


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


def telling_of(row: Sequence[Any]) -> Telling:
    """Return the telling in *row*, which holds values in the order of COLUMNS; its ``later_versions`` are not set."""
    return Telling(span_of(row), bool(row[_COUNTED]), bool(row[_CONFLICTING]))


def span_of(row: Sequence[Any]) -> Span:
    """Return the span in *row*, which holds values in the order of COLUMNS."""
    values = dict(zip(COLUMNS, row, strict=True))
    fields = {name: values[name] for name in _FIELDS}
    rest = dict(zip(_REST, msgspec.msgpack.decode(values["rest"]), strict=False)) if values["rest"] is not None else {}
    earlier = rest.pop("scope", None)
    fields["scope"] = fields["scope"] or earlier or ""
    if rest:
        fields.update(rest)
        fields["adjusted"] = tuple(fields.get("adjusted", ()))
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


def attribute_is(key: str, value: str) -> tuple[str, list[Any]]:
    """
    Return (SQL that is true if the attribute *key* is *value*, its parameters).

    It is true for the same attributes as ``tokentrace.metrics.attribute_is``: numbers compare as numbers. For
    ``user_id`` and ``session_id``, the value "" is that of a span without such an id, and a number is its text.
    """
    text, paths = attribute_text(key)
    if key in ID_FIELDS:
        if not value or not _VERBATIM.fullmatch(value):
            return f"coalesce({text}, '') = ?", [*paths, value]
        return f"({key} = ? OR (contains(attributes, ?) AND {text} = ?))", [value, value, *paths, value]
    number = filter_number(value)
    if number is None:
        if not _VERBATIM.fullmatch(value):
            return f"{text} = ?", [*paths, value]
        # Searching for the text first avoids parsing the JSON of most rows.
        return f"(contains(attributes, ?) AND {text} = ?)", [value, *paths, value]
    kind, kind_paths = attribute_text(key, "json_type")
    held = f"{text} = ? OR ({kind} = 'DOUBLE' AND TRY_CAST({text} AS DOUBLE) = ?)"
    parameters: list[Any] = [*paths, value, *kind_paths, *paths, number.double]
    if number.whole is not None:
        held += f" OR ({kind} IN ('BIGINT', 'UBIGINT') AND {text} = ?)"
        parameters += [*kind_paths, *paths, str(number.whole)]
    if number.double == 0:
        return f"({held})", parameters
    spellings = _spellings(value, number)
    spelled = " OR ".join("contains(attributes, ?)" for _ in spellings)
    return f"(({spelled}) AND ({held}))", [*spellings, *parameters]


def _spellings(value: str, number: FilterNumber) -> list[str]:
    """Return texts of which the JSON of an attribute contains at least one if the attribute is *number*."""
    texts = {value, _json.encode(number.double).decode()} if math.isfinite(number.double) else {value}
    if number.whole is not None:
        texts.add(str(number.whole))
    return sorted(text for text in texts if not any(other != text and other in text for other in texts))
