"""
Tests that compare pages of traces, exports and single spans with a filter in plain Python over the same spans.

Filters, sizes of pages, cursors, offsets and the number of files vary.
"""

from __future__ import annotations

import base64
import itertools
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import NOW_NS, ROLLUPS, Log, first_tellings, untimed
from tokentrace.errors import Rejected
from tokentrace.records import Span
from tokentrace_api.reads import (
    Cursor,
    Page,
    Search,
    Sums,
    TraceRow,
    encode_cursor,
    find_by_id,
    find_page,
    find_spans,
    newest_ordinal,
    pages,
    parse_cursor,
)
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
    arrived_ns=st.just(NOW_NS),
)
columns = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(("", "gpt-4o", "größer/x y", "none")),
        "provider": st.sampled_from(("", "openai")),
        "caller": st.sampled_from(("", "a", "it's", "unknown")),
        "name": st.sampled_from(WORDS),
        "status": st.sampled_from(("ok", "error", "timeout")),
        "kind": st.sampled_from(("llm", "tool", "agent", "http")),
        "session_id": st.sampled_from(("s", "it's", "")),
        "user_id": st.sampled_from(("u", "", "unknown")),
    },
)
least = st.fixed_dictionaries(
    {}, optional={"cost_nusd": st.sampled_from((0, 1, 6, 10**30)), "latency_ns": st.sampled_from((0, 2, 10**60))}
)
bounds = st.one_of(st.none(), st.none(), st.sampled_from((-(10**18), -1, 0, 1, 2, 5, 8, 9, 10**19)))
#: Mostly one or two conditions, because few spans match more.
searches = st.builds(
    Search,
    columns=st.one_of(st.just({}), st.just({}), columns),
    attributes=st.one_of(st.just({}), st.dictionaries(st.sampled_from(PATHS), texts, max_size=2)),
    least=st.one_of(st.just({}), least),
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


def matches(span: Span, search: Search) -> bool:
    """Return True if *span* meets all conditions of *search* except the bounds of time."""
    numbers = {column: getattr(span, column) for column in search.least}
    return (
        all((getattr(span, column) or "unknown") == (value or "unknown") for column, value in search.columns.items())
        and all(number is not None and number >= search.least[column] for column, number in numbers.items())
        and all(is_value(find_attribute(span.attributes, key), text) for key, text in search.attributes.items())
        and any(fold(search.text) in fold(text) for text in (span.name, span.error))
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
    )


def expected(sent: Sequence[Span], search: Search) -> list[TraceRow]:
    """Return the rows of all matching traces, newest start first, then by id."""
    traces: dict[str, list[Span]] = {}
    for span in first_tellings(sent):
        traces.setdefault(span.trace_id, []).append(span)
    rows = [row_of(trace) for trace in traces.values() if any(matches(span, search) for span in trace)]
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


def follow(store: Store, search: Search, limit: int, offset: int, budget_s: float) -> list[Page]:
    """Return the page at *offset* and all following pages by cursor."""
    listed = [find_page(store, search, limit, offset, None, NOW_NS, budget_s)]
    while listed[-1].next is not None:
        cursor = parse_cursor(encode_cursor(listed[-1].next))
        listed.append(find_page(store, search, limit, 0, cursor, NOW_NS, budget_s))
        assert len(listed) < 200, "the pages do not end"
    return listed


def check_pages(
    store: Store, sent: Sequence[Span], search: Search, limit: int, offsets: Sequence[int], budget_s: float
) -> None:
    rows = expected(sent, search)
    for offset in {0, *offsets}:
        listed = follow(store, search, limit, offset, budget_s)
        assert [row for page in listed for row in page.rows] == rows[offset:]
        for page in listed:
            assert len(page.rows) <= limit
            assert page.total in (None, len(rows))
            # A page with fewer rows is the last one, or the time for its search was up.
            assert len(page.rows) == limit or page.next is None or page.searched_until_ns is not None
            if page.searched_until_ns is not None:
                assert all(row.started_ns >= page.searched_until_ns for row in page.rows)
    if budget_s:
        all_rows = []
        for offset in range(0, len(rows) + limit, limit):
            page = find_page(store, search, limit, offset, None, NOW_NS, budget_s)
            assert page.searched_until_ns is None
            assert (page.next is None) == (offset + limit >= len(rows))
            all_rows += page.rows
        assert all_rows == rows


#: Settings under which a page is computed: from all matches, or by walking through the traces in large or small steps,
#: each with enough time (``budget_s``) and with none.
ALGORITHMS = [
    {"few": few, "rows_a_trace": rows_a_trace, "most_rows": most_rows, "budget_s": budget_s}
    for few, rows_a_trace, most_rows in ((50_000, 8, 20_000), (0, 8, 20_000), (3, 2, 5), (0, 1, 2))
    for budget_s in (3600.0, 0.0)
]


@untimed(50)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked_searches=st.lists(
        st.tuples(searches, st.sampled_from(ALGORITHMS), st.integers(0, 9)), min_size=4, max_size=8
    ),
    limit=st.integers(1, 4),
)
def test_every_page_equals_a_filter_in_plain_python(
    directories: Iterator[Path],
    sent: list[Span],
    cuts: list[int],
    asked_searches: list[tuple[Search, dict[str, Any], int]],
    limit: int,
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        for search, algorithm, offset in asked_searches:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pages, "FEW", algorithm["few"])
                patch.setattr(pages, "_ROWS_A_TRACE", algorithm["rows_a_trace"])
                patch.setattr(pages, "_MOST_ROWS", algorithm["most_rows"])
                check_pages(store, sent, search, limit, [offset], algorithm["budget_s"])
    finally:
        store.close()


@untimed(25)
@given(
    sent=st.lists(spans, max_size=24),
    cuts=st.lists(st.integers(0, 23), max_size=2),
    asked_searches=st.lists(searches, min_size=3, max_size=6),
    step=st.integers(1, 9),
)
def test_an_export_holds_every_matching_span_once_in_order(
    directories: Iterator[Path], sent: list[Span], cuts: list[int], asked_searches: list[Search], step: int
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        last = newest_ordinal(store, NOW_NS)
        for search in [*asked_searches, Search()]:
            exported = []
            for after in range(0, last, step):
                exported += find_spans(store, search, after, min(after + step, last), NOW_NS)
            matching = [span for span in first_tellings(sent) if matches(span, search)]
            assert [telling.span for telling in exported] == [
                span for span in matching if in_time(span.started_ns, search)
            ]
    finally:
        store.close()


@untimed(12)
@given(sent=st.lists(spans, max_size=24), cuts=st.lists(st.integers(0, 23), max_size=2))
def test_traces_and_spans_are_read_back_as_they_were_sent(
    directories: Iterator[Path], sent: list[Span], cuts: list[int]
) -> None:
    store = stored(next(directories), sent, cuts)
    try:
        counted = first_tellings(sent)
        for trace_id in TRACES:
            trace = sorted((span for span in counted if span.trace_id == trace_id), key=lambda span: span.started_ns)
            assert store.trace(trace_id, NOW_NS) == trace
            roots = [span for span in trace if span.parent_span_id is None]
            assert find_by_id(store, trace_id, "", NOW_NS) == (roots or trace)[:1]
            assert find_by_id(store, trace_id, "4'", NOW_NS) == [span for span in trace if span.span_id == "4'"]
        by_id = find_by_id(store, "", "1", NOW_NS)
        assert {span.trace_id: span for span in by_id} == {
            span.trace_id: span for span in counted if span.span_id == "1"
        }
        assert store.recent(5, NOW_NS) == counted[::-1][:5]
        assert store.count(NOW_NS) == len(counted)
    finally:
        store.close()


def test_an_export_includes_a_span_that_gets_a_new_version_meanwhile(tmp_path: Path) -> None:
    store, log = Store(tmp_path, shards=1, keep_ns=10**18), Log()
    first, second = make_span(span_id="1", arrived_ns=NOW_NS), make_span(span_id="2", arrived_ns=NOW_NS)
    store.append([log.spans(first, second)])
    last = newest_ordinal(store, NOW_NS)
    exported = find_spans(store, Search(), 0, 1, NOW_NS)
    store.append([log.spans(make_span(span_id="2", name="again", arrived_ns=NOW_NS))])
    exported += find_spans(store, Search(), 1, last, NOW_NS)
    assert [(telling.span, telling.later_versions) for telling in exported] == [(first, 0), (second, 1)]
    store.close()


@pytest.mark.parametrize("few", [50_000, 0])
def test_ten_thousand_traces_with_the_same_start_are_listed_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(pages, "FEW", few)
    sent = [make_span(trace_id=f"{number:05}", started_ns=7, arrived_ns=NOW_NS) for number in range(10_000)]
    store = stored(tmp_path, sent, [5_000])
    listed = follow(store, Search(), 700, 0, 0.0)
    assert [row.trace_id for page in listed for row in page.rows] == [span.trace_id for span in sent]
    store.close()


def test_a_page_of_traces_that_all_started_at_one_instant_adds_up_a_few_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "FEW", 0)
    store = stored(
        tmp_path, [make_span(trace_id=f"{n:05}", started_ns=7, arrived_ns=NOW_NS) for n in range(20_000)], []
    )
    query, most = store.query, 0

    def noted(sql: str, parameters: Sequence[Any], *others: Any) -> Any:
        nonlocal most
        most = max([most, *(len(each) for each in parameters if isinstance(each, list))])
        return query(sql, parameters, *others)

    monkeypatch.setattr(store, "query", noted)
    page = find_page(store, Search(), 20, 40, None, NOW_NS)
    assert [row.trace_id for row in page.rows] == [f"{number:05}" for number in range(40, 60)]
    assert 0 < most < 2_500
    store.close()


def test_sums_of_a_trace_may_exceed_64_bits(tmp_path: Path) -> None:
    many = [
        make_span(span_id=f"{number}", cost_nusd=10**15, total_tokens=2**41, arrived_ns=NOW_NS)
        for number in range(10_000)
    ]
    store = stored(tmp_path, many, [])
    (row,) = find_page(store, Search(), 5, 0, None, NOW_NS).rows
    assert (row.sums.cost_nusd, row.sums.total_tokens) == (10**19, 10_000 * 2**41)
    store.close()


def cursor_text(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    ["", "x", "ü", "====", cursor_text("[1]"), cursor_text('["1","t"]'), cursor_text("[1,null]"), cursor_text("{}")]
    + [cursor_text(f'[{number},"t"]') for number in (2**63, 10**30, 10**60, "1e400", "1.5", -1, -(10**30))],
)
def test_a_text_that_is_not_a_cursor_is_refused(text: str) -> None:
    with pytest.raises(Rejected, match="cursor"):
        parse_cursor(text)


@pytest.mark.parametrize("started_ns", [0, 1, 2**63 - 1])
def test_a_cursor_is_decoded_as_it_was_encoded(started_ns: int) -> None:
    cursor = Cursor(started_ns, 't"\\é')
    assert parse_cursor(encode_cursor(cursor)) == cursor
