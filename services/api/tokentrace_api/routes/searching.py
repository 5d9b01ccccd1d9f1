"""The parameters that filter lists, exports and live tails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.service.contract import Params, each_parsed
from tokentrace.units import ms_to_ns, usd_to_nusd
from tokentrace_api.parameters import (
    ATTRIBUTE_PREFIX,
    EXCLUDED_PREFIX,
    KIND_NAMES,
    Amount,
    LastMoment,
    Moment,
    OptionalCount,
    OptionalDuration,
    Text,
)
from tokentrace_api.reads import Search

_STATUS_NAMES = ("ok", "error", "timeout")
_COLUMNS = ("model", "caller", "status", "provider", "name", "kind")
_IDS = {"session": "session_id", "session_id": "session_id", "user": "user_id", "user_id": "user_id"}
#: Filter -> its possible values.
_CHOICES = {"status": _STATUS_NAMES, "kind": KIND_NAMES}


def _one_of(names: Sequence[str], text: str) -> str:
    """Return *text*; raise ``Rejected`` if it is none of *names*."""
    if text not in names:
        raise Rejected(f"{quoted(text)} is none of {', '.join(names)}")
    return text


def _several(item: Mapping[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"type": "array", "items": {"type": "string", **item}})


_Texts = Annotated[tuple[str, ...], each_parsed(lambda text: text), _several({})]
_Statuses = Annotated[
    tuple[str, ...], each_parsed(lambda text: _one_of(_STATUS_NAMES, text)), _several({"enum": list(_STATUS_NAMES)})
]
_Kinds = Annotated[
    tuple[str, ...], each_parsed(lambda text: _one_of(KIND_NAMES, text)), _several({"enum": list(KIND_NAMES)})
]
_ByKey = Annotated[dict[str, list[str]], _several({})]


class SearchParams(Params):
    """
    The filters for spans; a single span must match all of them.

    A filter by a value may be given several times; a span must then have one of the values.
    """

    prefixes: ClassVar[tuple[str, ...]] = (ATTRIBUTE_PREFIX, EXCLUDED_PREFIX)
    repeated: ClassVar[frozenset[str]] = frozenset({*_COLUMNS, *_IDS, ATTRIBUTE_PREFIX, EXCLUDED_PREFIX})
    model: _Texts = Field(
        (),
        description="Model, as the provider names it; empty or `unknown` = spans without one. Given several times: one "
        "of them, as for the other filters by a value.",
        examples=[["gpt-4o"]],
    )
    caller: _Texts = Field(
        (),
        description="Calling service or function; empty or `unknown` = spans without one.",
        examples=[["checkout"]],
    )
    status: _Statuses = Field((), description="Status of the span.", examples=[["error", "timeout"]])
    provider: _Texts = Field(
        (), description="Provider of the model; empty or `unknown` = spans without one.", examples=[["openai"]]
    )
    name: _Texts = Field((), description="Name of the span.", examples=[["answer question"]])
    kind: _Kinds = Field((), description="Kind of span.", examples=[["llm"]])
    session: _Texts = Field((), description="Session id; empty = spans without a session.", examples=[["s1"]])
    session_id: _Texts = Field((), description="The same as `session`.", examples=[["s1"]])
    user: _Texts = Field((), description="User id; empty = spans without a user.", examples=[["u-7"]])
    user_id: _Texts = Field((), description="The same as `user`.", examples=[["u-7"]])
    attributes: _ByKey = Field(
        default_factory=dict,
        alias="attr.<key>",
        description=(
            "Any number of filters by attribute: `attr.` and the attribute's key, such as `attr.request_id=abc123`. "
            "A value that is not text is compared as JSON, such as `true`; numbers are compared as numbers: `3` finds "
            "3 and 3.0."
        ),
        examples=[["abc123"]],
    )
    excluded: _ByKey = Field(
        default_factory=dict,
        alias="not.<key>",
        description=(
            "Any number of filters by values that are not wanted: `not.` and the name of one of the filters above, "
            "such as `not.model=gpt-4o` or `not.attr.team=blue`. A trace is listed only if none of its spans has such "
            "a value."
        ),
        examples=[["gpt-4o"]],
    )
    min_cost: Amount = Field(None, description="Least cost, US dollars.", examples=[0.01])
    max_cost: Amount = Field(
        None, description="Greatest cost, US dollars; a span of unknown cost does not match.", examples=[1]
    )
    min_latency: Amount = Field(None, description="Least latency, milliseconds.", examples=[1000])
    max_latency: Amount = Field(None, description="Greatest latency, milliseconds.", examples=[60000])
    min_tokens: OptionalCount = Field(None, description="Least number of tokens.", examples=[1000])
    max_tokens: OptionalCount = Field(None, description="Greatest number of tokens.", examples=[100000])
    q: Text = Field(
        None,
        description="Text that the name or the error contains; upper and lower case are equal.",
        examples=["rate limit"],
    )
    since: Moment = Field(None, description="Started at or after this instant.", examples=["2026-03-15T14:00:00Z"])
    until: LastMoment = Field(
        None,
        description="Started at or before this instant; one of whole milliseconds includes its millisecond.",
        examples=["2026-03-15T15:00:00Z"],
    )

    def search(self) -> Search:
        """
        Return the filters as a ``Search``.

        Raises:
            Rejected: Two parameters of the same meaning have different values, or one after ``not.`` has no meaning or
                an impossible value.
        """
        columns = {column: getattr(self, column) for column in _COLUMNS}
        without, without_attributes = _excluded(self.excluded)
        return Search(
            columns={column: values for column, values in columns.items() if values},
            attributes=_merged({key: tuple(values) for key, values in self.attributes.items()}, self._given(_IDS)),
            least=_bounds(self.min_cost, self.min_latency, self.min_tokens),
            most=_bounds(self.max_cost, self.max_latency, self.max_tokens),
            without=without,
            without_attributes=without_attributes,
            text=self.q or "",
            since_ns=self.since,
            until_ns=self.until,
        )

    def _given(self, names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        return {name: getattr(self, name) for name in names if getattr(self, name)}


class StoredSearchParams(SearchParams):
    """The filters for what is stored, which may also be bounded by a window that ends now."""

    window: OptionalDuration = Field(
        None, description="Started within this time before now; instead of `since` and `until`.", examples=["1h"]
    )

    def search_at(self, now_ns: int) -> Search:
        """
        Return the filters as a ``Search``; the window ends at *now_ns*, Unix nanoseconds.

        Raises:
            Rejected: As ``search``, or a window is given together with ``since`` or ``until``.
        """
        search = self.search()
        if self.window is None:
            return search
        if self.since is not None or self.until is not None:
            raise Rejected("window: is given together with since or until")
        return search._replace(since_ns=now_ns - self.window.ns)


def _bounds(cost_usd: float | None, latency_ms: float | None, tokens: int | None) -> dict[str, int]:
    bounds = {}
    if cost_usd is not None:
        bounds["cost_nusd"] = usd_to_nusd(cost_usd)
    if latency_ms is not None:
        bounds["latency_ns"] = ms_to_ns(latency_ms)
    if tokens is not None:
        bounds["total_tokens"] = tokens
    return bounds


def _excluded(given: Mapping[str, Sequence[str]]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """
    Return (column -> values, attribute -> values) of the parameters after ``not.``.

    Raises:
        Rejected: A name is not that of a filter, or a value is impossible.
    """
    columns: dict[str, tuple[str, ...]] = {}
    attributes: dict[str, tuple[str, ...]] = {}
    for name, values in given.items():
        key = _IDS.get(name) or name.removeprefix(ATTRIBUTE_PREFIX)
        if name in _COLUMNS:
            for value in values if name in _CHOICES else ():
                if value not in _CHOICES[name]:
                    raise Rejected(f"not.{name}: {quoted(value)} is none of {', '.join(_CHOICES[name])}")
            columns[name] = tuple(values)
        elif key and key != name:
            attributes[key] = (*attributes.get(key, ()), *values)
        elif name in _IDS:
            attributes[name] = (*attributes.get(name, ()), *values)
        else:
            known = ", ".join(f"not.{each}" for each in (*_COLUMNS, *_IDS, "attr.<key>"))
            raise Rejected(f"not.{shorten(name)}: unknown parameter; allowed are {known}")
    return columns, attributes


def _merged(
    attributes: Mapping[str, tuple[str, ...]], ids: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """
    Return *attributes* with the values of *ids* under the keys ``user_id`` and ``session_id``.

    Raises:
        Rejected: Two parameters for the same id have different values; the text names both.
    """
    merged, origins = dict(attributes), {key: ATTRIBUTE_PREFIX + key for key in attributes}
    for name, values in ids.items():
        key = _IDS[name]
        if set(merged.setdefault(key, values)) != set(values):
            raise Rejected(f"{name}: {quoted(', '.join(values))} differs from {origins[key]}, which means the same")
        origins.setdefault(key, name)
    return merged
