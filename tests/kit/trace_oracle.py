"""
Traces of any content, searches, and the filter and the rows of ``GET /traces`` in plain Python.

Tests compare what the span store answers with what these functions compute from the spans that were sent.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import NOW_NS, ROLLUPS, Log, first_tellings
from tokentrace.records import Span
from tokentrace_api.reads import Search, Sums, TraceDetails, TraceRow
from tokentrace_api.store import Store, segment

#: (Value of an attribute, its text form, with which filters are compared; None = it has none).
VALUES: Sequence[tuple[Any, str | None]] = [
    ("plan", "plan"),
    ("3", "3"),
    (3, "3"),
    (3.0, "3.0"),
    (-7, "-7"),
    (2**64 - 1, "18446744073709551615"),
    (0.1, "0.1"),
    (1e-7, "1e-7"),
    (1e5, "100000.0"),
    ("1e5", "1e5"),
    (1e16, "10000000000000000.0"),
    (1e22, "1e22"),
    (-0.0, "-0.0"),
    (True, "true"),
    ("true", "true"),
    (False, "false"),
    (None, None),
    ("null", "null"),
    ("", ""),
    ("Zoë", "Zoë"),
    ("é", "é"),
    ("e\u0301", "e\u0301"),
    ("\\u00e9", "\\u00e9"),
    ('say "x"', 'say "x"'),
    ("back\\slash", "back\\slash"),
    ("it's", "it's"),
    ("a/b~c", "a/b~c"),
    ("tab\there", "tab\there"),
    ("nul\x00", "nul\x00"),
    ("100%_", "100%_"),
    ([1, "a"], '[1,"a"]'),
    ({"n": 1}, '{"n":1}'),
    ({}, "{}"),
]
KEYS = ("step", "a.b", "k/e~y", "it's", 'q"', "ü", "0", "$", "$.step", "model", "x[0]", "*")
TRACES = ("t1", "t2", "T1", "t'3", 't"4', "t%", "t\\5", "t 6", "{spans}")
WORDS = (
    *(
        "",
        "Rate LIMIT",
        "limit",
        "ÜBER",
        "über",
        "u\u0308ber",
        "ΑΣ",
        "ας",
        "ασ",
        "İx",
        "Straße",
        "STRASSE",
        "ＡＢＣ",
        "ﬁt",
    ),
    *("100%", "a_b", "it's", "b\\s", "nul\x00", "unknown"),
)
#: Texts of filters that spell a number in another way than the store does.
SPELLINGS = ("3.00", "30e-1", "-7.0", "18446744073709551615.0", "1e-1", "0.10", "100000", "1e16", "-0", "0", "01", "+3")

attribute_values = st.sampled_from([value for value, _ in VALUES])
texts = st.sampled_from([*(text for _, text in VALUES if text is not None), *SPELLINGS])
attributes = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), attribute_values, max_size=3),
    st.builds(lambda value: {"a": {"b": value}}, attribute_values),
    st.builds(lambda value: {"a": {"b": {"0": value}}, "a.b": None}, attribute_values),
    st.builds(lambda value: {"a": [value], "deep": {"": {"-": value}}}, attribute_values),
)
PATHS = (*KEYS, "a", "a.0", "a.b.0", "deep", "deep.", "deep..-", "a.-", ".", "nothing", "a.b.c.d")
#: Start and end times; they are few, so that spans often start at the same time.
INSTANTS = (0, 1, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9)
spans = st.builds(
    make_span,
    trace_id=st.sampled_from(TRACES),
    span_id=st.sampled_from(("1", "2", "3", "4'")),
    parent_span_id=st.sampled_from((None, None, "1", "9")),
    name=st.sampled_from(WORDS),
    kind=st.sampled_from(("llm", "tool", "agent", "http")),
    caller=st.sampled_from(("", "a", "it's", "unknown")),
    model=st.sampled_from(("", "gpt-4o", "größer/x y")),
    provider=st.sampled_from(("", "openai")),
    status=st.sampled_from(("ok", "ok", "error", "timeout")),
    started_ns=st.sampled_from(INSTANTS),
    ended_ns=st.sampled_from(INSTANTS),
    latency_ns=st.sampled_from((0, 1, 5, 30 * 86_400 * 10**9)),
    cost_nusd=st.sampled_from((None, 0, 1, 5, 10**15)),
    cost_source=st.sampled_from(("priced", "partly_priced")),
    total_tokens=st.sampled_from((0, 7, 2**41)),
    attributes=attributes,
    error=st.sampled_from(WORDS),
    session_id=st.sampled_from((None, "s", "it's", "")),
    user_id=st.sampled_from((None, "u")),
    score=st.sampled_from((None, None, 0, 10**9, 333_333_333)),
    arrived_ns=st.just(NOW_NS),
)


def several(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=1, max_size=2)


columns = st.fixed_dictionaries(
    {},
    optional={
        "model": several(st.sampled_from(("", "gpt-4o", "größer/x y", "none"))),
        "provider": several(st.sampled_from(("", "openai"))),
        "caller": several(st.sampled_from(("", "a", "it's", "unknown"))),
        "name": several(st.sampled_from(WORDS)),
        "status": several(st.sampled_from(("ok", "error", "timeout"))),
        "kind": several(st.sampled_from(("llm", "tool", "agent", "http"))),
        "session_id": several(st.sampled_from(("s", "it's", ""))),
        "user_id": several(st.sampled_from(("u", "", "unknown"))),
    },
)
extremes = st.fixed_dictionaries(
    {},
    optional={
        "cost_nusd": st.sampled_from((0, 1, 6, 10**30)),
        "latency_ns": st.sampled_from((0, 2, 10**60)),
        "total_tokens": st.sampled_from((0, 7, 8, 10**17)),
    },
)
asked_attributes = st.dictionaries(st.sampled_from(PATHS), several(texts), max_size=2)
bounds = st.one_of(st.none(), st.none(), st.sampled_from((-(10**18), -1, 0, 1, 2, 5, 8, 9, 10**19)))
#: Mostly one or two conditions, because few spans match more.
searches = st.builds(
    Search,
    columns=st.one_of(st.just({}), st.just({}), columns),
    attributes=st.one_of(st.just({}), asked_attributes),
    least=st.one_of(st.just({}), extremes),
    most=st.one_of(st.just({}), st.just({}), extremes),
    without=st.one_of(st.just({}), st.just({}), columns),
    without_attributes=st.one_of(st.just({}), st.just({}), asked_attributes),
    text=st.one_of(st.just(""), st.sampled_from((*WORDS, "ü", "m", "ς", "ss", "bc", "%", "_", "'", "\\", "i"))),
    since_ns=bounds,
    until_ns=bounds,
)


# ---- the filter in plain Python


def text_of(value: Any) -> str | None:
    """Return the text form of the value of an attribute; None if it has none."""
    # In Python 1 == True, 3 == 3.0 and 0.0 == -0.0, so types and representations are compared instead.
    (text,) = {text for known, text in VALUES if type(known) is type(value) and repr(known) == repr(value)} or {None}
    if text is None and isinstance(value, dict | list):
        inner = [f"{quoted(key)}:{nested(item)}" for key, item in value.items()] if isinstance(value, dict) else []
        return "{" + ",".join(inner) + "}" if isinstance(value, dict) else "[" + ",".join(map(nested, value)) + "]"
    return text


def quoted(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\t": "\\t", "\x00": "\\u0000"}
    return '"' + "".join(escapes.get(char, char) for char in text) + '"'


def nested(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else text_of(value) or "null"


def fold(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())


def is_value(value: Any, text: str) -> bool:
    """Return True if *text* is the text form of the value of an attribute, or the same number."""
    if text_of(value) == text:
        return True
    try:
        number = json.loads(text, parse_int=Fraction, parse_float=Fraction)
    except ValueError:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(number, Fraction):
        return False
    return value == (float(number) if isinstance(value, float) else number)


def find_attribute(attributes: Mapping[str, Any], key: str) -> Any:
    if attributes.get(key) is not None or "." not in key:
        return attributes.get(key)
    at: Any = attributes
    for part in key.split("."):
        at = at.get(part) if isinstance(at, dict) else None
    return at


def has_value(span: Span, column: str, values: Sequence[str]) -> bool:
    return (getattr(span, column) or "unknown") in [value or "unknown" for value in values]


def has_attribute(span: Span, key: str, values: Sequence[str]) -> bool:
    return any(is_value(find_attribute(span.attributes, key), text) for text in values)


def within(number: int | None, least: int, most: int) -> bool:
    return number is not None and least <= number <= most


def matches(span: Span, search: Search) -> bool:
    """Return True if *span* has what *search* asks for; what it excludes and the bounds of time are not looked at."""
    bounded = {*search.least, *search.most}
    return (
        all(has_value(span, column, values) for column, values in search.columns.items())
        and all(
            within(getattr(span, column), search.least.get(column, 0), search.most.get(column, 10**70))
            for column in bounded
        )
        and all(has_attribute(span, key, values) for key, values in search.attributes.items())
        and any(fold(search.text) in fold(text) for text in (span.name, span.error))
    )


def is_excluded(span: Span, search: Search) -> bool:
    return any(has_value(span, column, values) for column, values in search.without.items()) or any(
        has_attribute(span, key, values) for key, values in search.without_attributes.items()
    )


def in_time(instant_ns: int, search: Search) -> bool:
    since, until = search.since_ns, search.until_ns
    return (since is None or instant_ns >= since) and (until is None or instant_ns <= until)


def row_of(trace: Sequence[Span]) -> TraceRow:
    roots = [span for span in trace if span.parent_span_id is None]
    statuses = {span.status for span in trace}
    calls = [span for span in trace if span.kind not in ROLLUPS]
    unpriced = [span for span in calls if span.cost_nusd is None]
    return TraceRow(
        trace[0].trace_id,
        min(roots or trace, key=lambda span: span.started_ns).name,
        min(span.started_ns for span in trace),
        max(span.ended_ns for span in trace),
        "error" if "error" in statuses else "timeout" if "timeout" in statuses else "ok",
        Sums(
            cost_nusd=None if calls and len(unpriced) == len(calls) else sum(span.cost_nusd or 0 for span in calls),
            unpriced=len(unpriced),
            partly_priced=sum(span.cost_source == "partly_priced" for span in calls),
            total_tokens=sum(span.total_tokens for span in calls),
            spans=len(trace),
        ),
        details_of(trace),
    )


def details_of(trace: Sequence[Span]) -> TraceDetails:
    by_start = sorted(trace, key=lambda span: span.started_ns)
    roots_first = sorted(by_start, key=lambda span: span.parent_span_id is not None)
    scores = [span.score for span in trace if span.score is not None]
    return TraceDetails(
        error=next((span.error for span in by_start if span.error), ""),
        models=tuple(sorted({span.model for span in trace if span.model})),
        caller=next((span.caller for span in roots_first if span.caller), ""),
        session_id=next((span.session_id for span in roots_first if span.session_id), ""),
        user_id=next((span.user_id for span in roots_first if span.user_id), ""),
        score=sum(scores),
        scored=len(scores),
    )


def expected(sent: Sequence[Span], search: Search) -> list[TraceRow]:
    """Return the rows of all matching traces, newest start first, then by id."""
    traces: dict[str, list[Span]] = {}
    for span in first_tellings(sent):
        traces.setdefault(span.trace_id, []).append(span)
    rows = [
        row_of(trace)
        for trace in traces.values()
        if any(matches(span, search) for span in trace) and not any(is_excluded(span, search) for span in trace)
    ]
    return sorted((row for row in rows if in_time(row.started_ns, search)), key=lambda row: (-row.started_ns, row[0]))


# ---- the store


def stored(directory: Path, sent: Sequence[Span], cuts: Sequence[int]) -> Store:
    """Return a store with *sent* in order; a new file starts at each of *cuts*."""
    store, log = Store(directory, shards=1, keep_ns=10**18), Log()
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MAX_BYTES", 1)
        for start, end in itertools.pairwise(edges):
            store.append([log.spans(*sent[start:end])])
    return store
