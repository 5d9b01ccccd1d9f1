"""``GET /values`` and ``GET /keys``: what the stored spans hold, for menus of filters."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import Query as QueryParams
from msgspec import UNSET, UnsetType
from pydantic import Field
from starlette.responses import Response

from tokentrace.errors import Rejected, quoted
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_instant
from tokentrace_api.interfaces import StoreReader
from tokentrace_api.parameters import Count, Text
from tokentrace_api.reads import MOST_ATTRIBUTES, MOST_COLUMNS, Listed, list_keys, list_values
from tokentrace_api.routes.answers import InstantText, Natural
from tokentrace_api.routes.searching import StoredSearchParams

DEFAULT_LIMIT, MAX_LIMIT = 50, 1000
#: Key in a request -> column of the store.
_COLUMNS = {
    **{name: name for name in ("model", "caller", "provider", "name", "kind", "status")},
    "session": "attr.session_id",
    "session_id": "attr.session_id",
    "user": "attr.user_id",
    "user_id": "attr.user_id",
}


class KeysParams(StoredSearchParams):
    """Of which spans the keys are listed, and which of them."""

    prefix: Text = Field(None, description="Beginning of what is listed, regardless of case.", examples=["gpt"])
    limit: Count = Field(DEFAULT_LIMIT, description=f"How many, at most {MAX_LIMIT}.")


class ValuesParams(KeysParams):
    """Of which spans and which key the values are listed, and which of them."""

    key: Text = Field(
        None,
        description="`model`, `caller`, `provider`, `name`, `kind`, `status`, `session`, `user`, or `attr.` and the "
        "key of an attribute.",
        examples=["model"],
    )


class HeldValue(msgspec.Struct):
    """A value: how many spans have it, and when the newest of them started."""

    value: str
    count: Natural
    last_started_at: InstantText


class HeldKey(msgspec.Struct):
    """The key of an attribute: the types of its values, how many spans have it, when the newest of them started."""

    key: str
    types: list[Literal["text", "number", "boolean", "list"]]
    count: Natural
    last_started_at: InstantText


class HeldValues(msgspec.Struct):
    """
    Values of a key, the most frequent first, the newest first among equally frequent ones.

    Attributes:
        more: Whether there are more values than these.
        searched_until: Present only if there was too much to search: spans that started at or before this instant are
            not counted.
    """

    key: str
    values: list[HeldValue]
    more: bool
    searched_until: InstantText | UnsetType = UNSET


class HeldKeys(msgspec.Struct):
    """Keys of attributes in the order of ``HeldValues``; a key inside a map is a path with dots."""

    keys: list[HeldKey]
    more: bool
    searched_until: InstantText | UnsetType = UNSET


_AWAY = {503: "span store: is not open yet"}
_AT = "2026-03-15T14:23:01.441Z"
_VALUES = operation(
    "listValues",
    "List the values of a filter",
    f"""
    The values that the spans have which match the filters, each call once, for a menu of filters. Of a filter by column
    the newest {MOST_COLUMNS:,} spans are counted, of one by attribute the newest {MOST_ATTRIBUTES:,}.
    """,
    Answer(
        HeldValues,
        "The values.",
        {"key": "model", "values": [{"value": "gpt-4o", "count": 12, "last_started_at": _AT}], "more": False},
    ),
    errors={400: "key: 'x' is none of model, caller, provider", **_AWAY},
)
_KEYS = operation(
    "listKeys",
    "List the keys of attributes",
    f"The keys of the attributes of the spans that match the filters; the newest {MOST_ATTRIBUTES:,} are looked at.",
    Answer(
        HeldKeys,
        "The keys.",
        {"keys": [{"key": "team", "types": ["text"], "count": 12, "last_started_at": _AT}], "more": False},
    ),
    errors={400: "limit: 'x' is not a whole number >= 0 of at most 18 digits", **_AWAY},
)


def router(store: StoreReader) -> Router:
    """Return the routes that list values and keys."""
    routes = Router("traces")

    @routes.get("/values", **_VALUES)
    async def values(params: Annotated[ValuesParams, QueryParams()]) -> Response:
        now_ns, key = store.now_ns(), params.key or ""
        column = key if key.startswith("attr.") and key != "attr." else _COLUMNS.get(key)
        if column is None:
            raise Rejected(f"key: {quoted(key)} is none of {', '.join(_COLUMNS)}, attr.<key>")
        most = MOST_ATTRIBUTES if column.startswith("attr.") else MOST_COLUMNS
        search, limit = params.search_at(now_ns), min(params.limit, MAX_LIMIT)
        found = await store.read(
            lambda spans: list_values(spans, search, column, params.prefix or "", limit, now_ns, most)
        )
        shown = [HeldValue(held.name, held.spans, render_instant(held.last_ns)) for held in found.held]
        return reply(HeldValues(key, shown, not found.is_complete, _until(found)))

    @routes.get("/keys", **_KEYS)
    async def keys(params: Annotated[KeysParams, QueryParams()]) -> Response:
        now_ns = store.now_ns()
        search, limit = params.search_at(now_ns), min(params.limit, MAX_LIMIT)
        found = await store.read(lambda spans: list_keys(spans, search, params.prefix or "", limit, now_ns))
        shown = [
            HeldKey(held.name, list(held.types), held.spans, render_instant(held.last_ns))  # type: ignore[arg-type]  # the names of the types are those of the Literal
            for held in found.held
        ]
        return reply(HeldKeys(shown, not found.is_complete, _until(found)))

    return routes


def _until(found: Listed) -> InstantText | UnsetType:
    return UNSET if found.searched_until_ns is None else render_instant(found.searched_until_ns)
