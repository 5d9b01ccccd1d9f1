"""The parameters of queries for metrics: what is counted, over which interval, and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, cast

from msgspec.structs import replace
from pydantic import Field

from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.metrics import ALL_KINDS, Answer, Query
from tokentrace.records import ID_FIELDS, KINDS
from tokentrace.rollup import DIMENSIONS, HORIZON_NS, UNKNOWN, cover
from tokentrace.units import DAY, SECOND
from tokentrace_api.parameters import (
    ATTRIBUTE_PREFIX,
    COMPARED_PREFIX,
    AttributeParams,
    Attributes,
    Duration,
    Moment,
    OptionalCount,
    Text,
    Window,
    choice,
    with_ids,
)
from tokentrace_api.reads import Where

#: Most values that ``top`` shows.
MAX_TOP = 1000
#: The share of an interval by which buckets may widen it before the store answers instead.
_WIDENED = 1 / 100
#: Dimension that is filtered -> parameter; the kind is a filter of its own.
_FILTERS = ("model", "provider", "caller", "name", "status")
_IDS = ("user", "user_id", "session", "session_id")
#: Word of ``compare`` -> how much earlier the other interval is, seconds; 0 = it ends where the interval begins.
_EARLIER_S: Mapping[str, int] = {"before": 0, "yesterday": DAY // SECOND, "last_week": 7 * DAY // SECOND}
_Compare: Any = choice(tuple(_EARLIER_S))


class IntervalParams(Protocol):
    """Parameters that say over which interval an answer is: a window that ends now, or two instants."""

    @property
    def window(self) -> Window:
        """The length of the window."""
        ...

    @property
    def from_(self) -> int | None:
        """Beginning of the interval instead of the window, Unix nanoseconds; None = the window is meant."""
        ...

    @property
    def to(self) -> int | None:
        """End of the interval, Unix nanoseconds; None = now."""
        ...

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the parameters that the request gives."""
        ...


class MetricsParams(AttributeParams):
    """The parameters that say which spans are counted, how they are grouped, and what they are compared with."""

    prefixes: ClassVar[tuple[str, ...]] = (ATTRIBUTE_PREFIX, COMPARED_PREFIX)
    window: Duration = Field(
        cast(Any, "1h"), description="Length of the window, which ends now: `1h`, `24h`, `7d`, `2h30m`; at least `1s`."
    )
    from_: Moment = Field(
        None,
        alias="from",
        description="Beginning of the interval, instead of `window`: spans that ended at or after this instant.",
        examples=["2026-03-15T13:00:00Z"],
    )
    to: Moment = Field(
        None,
        description="End of the interval that begins at `from`: spans that ended before this instant; now if absent.",
        examples=["2026-03-15T14:00:00Z"],
    )
    compare: _Compare = Field(
        None,
        description=(
            "Compare with an earlier interval: `before` = the one of the same length that ends where this one begins; "
            "`yesterday`, `last_week` = the same interval 24 hours or 7 days earlier. The answer then has `previous` "
            "and `change`."
        ),
        examples=["before"],
    )
    compare_from: Moment = Field(
        None, description="Beginning of the interval to compare with.", examples=["2026-03-14T13:00:00Z"]
    )
    compare_to: Moment = Field(
        None, description="End of the interval to compare with.", examples=["2026-03-14T14:00:00Z"]
    )
    compared: Attributes = Field(
        default_factory=dict,
        alias="compare.<key>",
        description=(
            "Compare with other spans: `compare.` and the name of a filter, such as `compare.model=gpt-4o-mini` or "
            "`compare.attr.version=2`. On the other side, this filter replaces the one of the same name."
        ),
        examples=["gpt-4o-mini"],
    )
    groupby: Text = Field(
        None,
        description=(
            "A dimension (`model`, `caller`, `provider`, `name`, `status`, `kind`), `user_id`, `session_id` or "
            "`attr.<key>`."
        ),
        examples=["model"],
    )
    top: OptionalCount = Field(
        None,
        description=(
            f"Show only so many groups, 1 to {MAX_TOP}: the first ones by `order`. All others are added up as `other`."
        ),
        examples=[10],
    )
    order: Text = Field(
        None,
        description=(
            "Sort groups by: `value` = the number of the answer (for all metrics, cost), `change` = the largest "
            "absolute change of it, `cost`, `spans`, `errors`, `error_rate`, `timeouts`, `tokens`, `p50`, `p95`, "
            "`p99`, `avg`, `ttft`, `quality`, or the name of a number; descending, without a value last. `name` is "
            "ascending. If absent, `value` with `top`, otherwise `name`."
        ),
        examples=["cost"],
    )
    kind: Text = Field(
        None,
        description=(
            "Kind of the spans that are counted, or `all`; `llm` when absent. Unless one kind is named, cost covers "
            "every kind except roll-up kinds, and quality covers every kind."
        ),
        examples=["all"],
    )
    model: Text = Field(None, description="Only spans of this model.", examples=["gpt-4o"])
    provider: Text = Field(None, description="Only spans of this provider.", examples=["openai"])
    caller: Text = Field(None, description="Only spans of this caller.", examples=["checkout"])
    name: Text = Field(None, description="Only spans with this name.", examples=["answer question"])
    status: Text = Field(None, description="Only spans with this status.", examples=["error"])
    user: Text = Field(None, description="Only spans of this user.", examples=["u-7"])
    user_id: Text = Field(None, description="The same as `user`.", examples=["u-7"])
    session: Text = Field(None, description="Only spans of this session.", examples=["s1"])
    session_id: Text = Field(None, description="The same as `session`.", examples=["s1"])

    def given(self) -> dict[str, str]:
        """Return the filters of the request: name of a parameter -> its value."""
        values = {name: getattr(self, name) for name in (*_FILTERS, *_IDS, "kind")}
        texts = {name: value for name, value in values.items() if value is not None}
        return texts | {ATTRIBUTE_PREFIX + key: value for key, value in self.attributes.items()}


class Interval(NamedTuple):
    """
    An interval of event time.

    Attributes:
        from_s, to_s: Unix seconds; to_s is not included.
        is_exact: True = it must not be widened by more than a hundredth; False = a window that ends now.
    """

    from_s: int
    to_s: int
    is_exact: bool


class MetricsQuery(NamedTuple):
    """
    A parsed query for metrics.

    Attributes:
        window: The window as the client wrote it, such as ``1h``; None = the client named the interval.
        query: The interval, kinds, filters and grouping by dimension.
        attribute: The attribute to group by, ``user_id`` or ``session_id``; "" = by the dimension in *query*, if any.
        filters: Attribute -> the value that a span must have, in text form.
        is_exact: As for ``Interval``.
        before: The other side of the comparison; None = there is none.
        top: Number of groups to show; 0 = all.
        order: By what groups are sorted; "" = by ``value`` with *top*, otherwise by name.
    """

    window: str | None
    query: Query
    attribute: str = ""
    filters: Mapping[str, str] = {}
    is_exact: bool = False
    before: MetricsQuery | None = None
    top: int = 0
    order: str = ""

    @property
    def groupby(self) -> str:
        """The dimension or attribute to group by; "" = no groups."""
        return self.attribute or self.query.groupby

    @property
    def now_ns(self) -> int:
        """The time of the query, Unix nanoseconds."""
        return self.query.now_s * SECOND

    @property
    def is_beyond_buckets(self) -> bool:
        """Whether the aggregators keep no buckets that fit the interval, so that only the store can answer."""
        query = self.query
        if not self.is_exact:
            return False
        if query.from_s < query.now_s - HORIZON_NS // SECOND:
            return True
        stretches = cover(query.from_s, query.to_s, query.now_s)
        widened_s = query.from_s - stretches[0].start_s + stretches[-1].end_s - query.to_s
        return widened_s > _WIDENED * (query.to_s - query.from_s)

    @property
    def is_stored(self) -> bool:
        """Whether only the store knows what the query groups or filters by, on either side."""
        return bool(self.attribute or self.filters or (self.before is not None and self.before.is_stored))

    @property
    def is_ranked(self) -> bool:
        """Whether the client asked for an order of the groups."""
        return bool(self.top or self.order)

    def grouped_by(self, *, dimension: str = "", attribute: str = "") -> MetricsQuery:
        """Return the same query, grouped by a dimension or by an attribute."""
        grouped = self._replace(query=replace(self.query, groupby=dimension), attribute=attribute)
        if self.before is None:
            return grouped
        return grouped._replace(before=self.before.grouped_by(dimension=dimension, attribute=attribute))

    def where(self, answered: Answer) -> Where:
        """Return the condition for the stored spans in the interval of *answered*."""
        return Where(replace(self.query, from_s=answered.from_s, to_s=answered.to_s), self.filters)


def parse_metrics_query(params: MetricsParams, now_ns: int) -> MetricsQuery:
    """
    Return the query that *params* describe.

    Args:
        now_ns: The end of the window: the broker's time, Unix nanoseconds.

    Raises:
        Rejected: A parameter is not valid; the text names it.
    """
    now_s = now_ns // SECOND
    given = params.given()
    groupby, attribute = _parse_groupby(params.groupby)
    interval = interval_of(params, now_s)
    base = Query(now_s=now_s, groupby=groupby)
    question = MetricsQuery(
        None if params.from_ is not None else params.window.text,
        *_filtered(base, interval, given, attribute, ""),
        is_exact=interval.is_exact,
        top=_parse_top(params.top),
        order=params.order or "",
    )
    if params.order == "":
        raise Rejected("order: is empty")
    if question.order == "change" and not _is_compared(params):
        raise Rejected("order: change needs compare, or compare_from and compare_to, or compare.<filter>")
    if not _is_compared(params):
        return question
    other = _other_interval(params, interval, now_s)
    side = _filtered(base, other, _replaced(given, params.compared), attribute, COMPARED_PREFIX)
    return question._replace(before=MetricsQuery(None, *side, is_exact=other.is_exact))


def _parse_groupby(text: str | None) -> tuple[str, str]:
    """Return (dimension to group by, attribute to group by); at least one is ""."""
    if text is None or text in DIMENSIONS:
        return text or "", ""
    if text == "":
        raise Rejected("groupby: is empty")
    attribute = text.removeprefix(ATTRIBUTE_PREFIX)
    if not attribute:
        raise Rejected("groupby: the name of the attribute after attr. is missing")
    return "", f"{text}_id" if text in ("user", "session") else attribute


def _parse_top(top: int | None) -> int:
    if top is not None and not 1 <= top <= MAX_TOP:
        raise Rejected(f"top: {top} is not from 1 to {MAX_TOP}")
    return top or 0


def interval_of(params: IntervalParams, now_s: int) -> Interval:
    """
    Return the interval that *params* ask for, cut at now.

    Raises:
        Rejected: They contradict each other, or the interval is empty or begins in the future.
    """
    if params.from_ is not None:
        if "window" in params.model_fields_set:
            raise Rejected("window: excludes from and to")
        return _between("from", params.from_, "to", params.to, now_s)
    if params.to is not None:
        raise Rejected("to: needs from")
    # The running second is part of the window, so that a span that has just ended is counted.
    return Interval(now_s - -(-params.window.ns // SECOND), now_s + 1, is_exact=False)


def _between(start: str, from_ns: int, end: str, to_ns: int | None, now_s: int) -> Interval:
    """Return the interval between two instants, cut at now, whose parameters are called *start* and *end*."""
    from_s = from_ns // SECOND
    to_s = now_s + 1 if to_ns is None else min(-(-to_ns // SECOND), now_s + 1)
    if from_s > now_s:
        raise Rejected(f"{start}: is in the future")
    if to_ns is not None and from_ns >= to_ns:
        raise Rejected(f"{end}: is not after {start}")
    if from_s < 0:
        raise Rejected(f"{start}: is before 1970")
    return Interval(from_s, to_s, is_exact=True)


def _is_compared(params: MetricsParams) -> bool:
    return any((params.compare, params.compare_from is not None, params.compare_to is not None, params.compared))


def _other_interval(params: MetricsParams, interval: Interval, now_s: int) -> Interval:
    """Return the interval of the other side of the comparison."""
    compared = (params.compare_from, params.compare_to)
    if params.compare is None:
        if compared == (None, None):
            return interval
        if params.compare_from is None:
            raise Rejected("compare_to: needs compare_from")
        if params.compare_to is None:
            raise Rejected("compare_from: needs compare_to")
        return _between("compare_from", params.compare_from, "compare_to", params.compare_to, now_s)
    if compared != (None, None):
        raise Rejected("compare: excludes compare_from and compare_to")
    from_s, to_s, is_exact = interval
    if not is_exact:
        # Begin where the buckets begin that answer for the window, so that no span counts on both sides.
        from_s = cover(max(from_s, now_s - HORIZON_NS // SECOND), to_s, now_s)[0].start_s
    earlier_s = _EARLIER_S[params.compare] or to_s - from_s
    if from_s < earlier_s:
        raise Rejected(f"compare: {params.compare} would begin before 1970")
    return Interval(from_s - earlier_s, to_s - earlier_s, is_exact=True)


def _replaced(given: Mapping[str, str], compared: Mapping[str, str]) -> dict[str, str]:
    """
    Return the filters of the other side: those of *given*, unless *compared* has the same filter.

    Raises:
        Rejected: A name in *compared* is not a filter.
    """
    for name in compared:
        is_attribute = name.startswith(ATTRIBUTE_PREFIX) and len(name) > len(ATTRIBUTE_PREFIX)
        if not is_attribute and name not in (*_FILTERS, *_IDS, "kind"):
            known = ", ".join((*_FILTERS, *_IDS, "kind", "attr.<key>"))
            raise Rejected(f"{COMPARED_PREFIX}{shorten(name)}: is no filter; filters are {known}")
    replaced = {_meaning(name) for name in compared}
    return {name: value for name, value in given.items() if _meaning(name) not in replaced} | dict(compared)


def _meaning(name: str) -> str:
    """Return the same name for the filters that mean the same."""
    return {"user": "user_id", "session": "session_id"}.get(name) or (
        name.removeprefix(ATTRIBUTE_PREFIX) if name.removeprefix(ATTRIBUTE_PREFIX) in ID_FIELDS else name
    )


def _filtered(
    base: Query, interval: Interval, given: Mapping[str, str], attribute: str, prefix: str
) -> tuple[Query, str, dict[str, str]]:
    """
    Return (query, attribute to group by, filters that the store answers) for one side.

    Args:
        given: Name of a filter -> its value.
        prefix: Beginning of the parameters of this side, for error texts.
    """
    kind = given.get("kind")
    if kind == "":
        raise Rejected(f"{prefix}kind: is empty")
    if kind and kind != ALL_KINDS and kind not in KINDS:
        raise Rejected(f"{prefix}kind: {quoted(kind)} is none of {', '.join(KINDS)}, {ALL_KINDS}")
    attributes = {
        name.removeprefix(ATTRIBUTE_PREFIX): value for name, value in given.items() if name.startswith(ATTRIBUTE_PREFIX)
    }
    query = replace(
        base,
        from_s=interval.from_s,
        to_s=interval.to_s,
        kind=kind or "llm",
        only_kind=bool(kind) and kind != ALL_KINDS,
        # A span without a value is shown as unknown, so an empty filter asks for it.
        filters={name: given[name] or UNKNOWN for name in _FILTERS if name in given},
    )
    try:
        return query, attribute, with_ids(attributes, {name: given.get(name) for name in _IDS})
    except Rejected as exc:
        raise Rejected(f"{prefix}{exc}") from exc
