"""
A search as SQL over stored spans and as a predicate over arriving spans: both find the same spans.

DuckDB runs the SQL over rows as the store writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import untimed
from tokentrace.metrics import attribute_is as span_attribute_is
from tokentrace.metrics import attribute_text_of, value_text
from tokentrace.records import Span, attribute
from tokentrace_api.reads import Search
from tokentrace_api.store import (
    COLUMNS,
    Database,
    Telling,
    attribute_is,
    attribute_text,
    columns_of,
    contains_text,
    folded,
    span_of,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Yield a database, in which ``fill`` creates a table of spans."""
    opened = Database(tmp_path_factory.mktemp("duckdb"), 256)
    yield opened
    opened.close()


def fill(database: Database, spans: list[Span]) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    database.run(f"CREATE OR REPLACE TABLE held ({columns})")
    database.insert("held", columns_of([Telling(span) for span in spans], [(1, 0)] * len(spans), 1))


def find(database: Database, search: Search) -> list[int]:
    """Return the indices, in the list that ``fill`` got, of the spans that SQL finds."""
    condition, values = search.of_span()
    bounds, instants = search.bounds("started_ns")
    where = " AND ".join(text for text in (condition, bounds) if text) or "true"
    rows = database.run(f"SELECT ordinal - 1 FROM held WHERE {where} ORDER BY 1", [*values, *instants])
    return [number for (number,) in rows]


numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1e5, 1e16, 1e21, 1e22, 1e-6, 1e-7, 9.999999e-7, 1e20, 123456789012345680.0, 5e-324]),
)
characters = st.characters(exclude_categories=["Cs"])
strings = st.one_of(
    st.text(characters, max_size=6),
    st.text(st.sampled_from('"\\/\x00\x1f\x7f\n\té\u2028{}[],:.-eE+019u \U0001f600'), max_size=6),
    st.sampled_from(["1e5", "-0.0", "true", "null", "\\u00e9", "1.0", "-1", "٣", "1_0", "\x1b[0m", "NaN"]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, strings)
keys = st.one_of(
    st.sampled_from(["a", "b", "a.b", "a/b", "~", "~1", "", "0", "-", ".", "a.", "$", "*", '"', "\\", "\x00", "é"]),
    strings,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
attributes = st.dictionaries(keys.filter(bool), values, max_size=4)


def paths_of(container: Any) -> Iterator[str]:
    """Yield every key or index of *container*, and every dotted path to what is inside."""
    is_list = isinstance(container, list)
    items = container.items() if isinstance(container, dict) else enumerate(container) if is_list else ()
    for key, value in items:
        yield str(key)
        for below in paths_of(value):
            yield f"{key}.{below}"


def writings(value: Any) -> set[str]:
    """Return texts that a client may write for *value*; SQL and Python must agree on each."""
    texts = {str(value), repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False, separators=(",", ":"))}
    if isinstance(value, int | float) and not isinstance(value, bool):
        texts |= {f"{float(value):f}", f"{float(value):e}", f"{float(value):g}", f"+{value}", f"{value}.0", f"0{value}"}
    return texts


def same_number(value: Any, text: str) -> bool:
    """Return True if *value* is a number, and *text* writes the same one as JSON does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        number = json.loads(text, parse_int=Fraction, parse_float=Fraction, parse_constant=str)
    except ValueError:
        return False
    if not isinstance(number, Fraction) or text != text.strip():
        return False
    return value == (float(text) if isinstance(value, float) else number)


@untimed(100)
@given(stored=attributes, data=st.data())
def test_an_attribute_is_found_by_its_text_form_or_by_the_same_number(
    database: Database, stored: dict[str, Any], data: st.DataObject
) -> None:
    """Python and SQL extract the same text and agree on what it equals."""
    span = make_span(attributes=stored)
    fill(database, [span])
    paths = sorted({*paths_of(stored), "nothing"})
    for key in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=4, unique=True)):
        text = attribute_text_of(span, key)
        expression, parameters = attribute_text(key)
        ((extracted,),) = database.run(f"SELECT {expression} FROM held", parameters)
        assert extracted == text, key
        other = data.draw(strings)
        value = stored.get(key)
        for asked in {other, *writings(value), *([] if text is None else [text])}:
            condition, parameters = attribute_is(key, asked)
            rows = database.run(f"SELECT 1 FROM held WHERE {condition}", parameters)
            assert bool(rows) == (text == asked or same_number(attribute(span, key), asked)), (key, asked)
            assert bool(rows) == span_attribute_is(span, key, asked), (key, asked)


@untimed(100)
@given(number=numbers, inside=st.booleans())
@example(1e16, True)
def test_sql_gives_a_number_the_same_text_as_python_also_inside_a_list(
    database: Database, number: float, inside: bool
) -> None:
    span = make_span(attributes={"n": {"m": [number]} if inside else number})
    fill(database, [span])
    expression, parameters = attribute_text("n")
    text = attribute_text_of(span, "n")
    assert database.run(f"SELECT {expression} FROM held", parameters) == [(text,)]
    assert find(database, Search(attributes={"n": [str(text)]})) == [0]


WORDS = ("", "Rate LIMIT", "limit", "ÜBER", "über", "ΑΣ", "ας", "İx", "ix", "ẞ", "ß", "ss", "%", "_", "'", "nul\x00")
spans = st.builds(
    make_span,
    name=st.one_of(st.sampled_from(WORDS), st.text(characters, max_size=8)),
    error=st.one_of(st.sampled_from(WORDS), st.text(characters, max_size=8)),
    model=st.sampled_from(WORDS),
    caller=st.sampled_from(WORDS),
    kind=st.sampled_from(("llm", "tool")),
    session_id=st.sampled_from((None, "", "it's")),
    user_id=st.sampled_from((None, "", "it's")),
    cost_nusd=st.sampled_from((None, 0, 1, 10**15)),
    latency_ns=st.sampled_from((0, 1, 30 * 86_400 * 10**9)),
    started_ns=st.sampled_from((0, 1, 4_102_444_800_000_000_000)),
    attributes=attributes,
)
asked_columns = st.dictionaries(
    st.sampled_from(("name", "model", "caller", "session_id", "user_id", "kind")),
    st.lists(st.sampled_from((*WORDS, "it's", "llm")), min_size=1, max_size=2),
    max_size=2,
)
asked_attributes = st.dictionaries(keys.filter(bool), st.lists(strings, min_size=1, max_size=2), max_size=1)
extremes = st.dictionaries(
    st.sampled_from(("cost_nusd", "latency_ns")), st.sampled_from((0, 1, 2, 2**63, 10**80)), max_size=2
)
searches = st.builds(
    Search,
    columns=asked_columns,
    attributes=asked_attributes,
    least=extremes,
    most=st.one_of(st.just({}), extremes),
    without=st.one_of(st.just({}), asked_columns),
    without_attributes=st.one_of(st.just({}), asked_attributes),
    text=st.one_of(st.sampled_from(WORDS), st.text(characters, max_size=2)),
    since_ns=st.sampled_from((None, None, -1, 0, 1, 2, 10**20)),
    until_ns=st.sampled_from((None, None, -1, 0, 1, 10**20)),
)


@untimed(100)
@given(stored=st.lists(spans, min_size=1, max_size=6), asked=st.lists(searches, min_size=1, max_size=6), data=st.data())
def test_a_tail_takes_the_spans_that_a_list_finds(
    database: Database, stored: list[Span], asked: list[Search], data: st.DataObject
) -> None:
    fill(database, stored)
    assert [span_of(row) for row in database.run("SELECT * FROM held ORDER BY ordinal")] == stored
    span = data.draw(st.sampled_from(stored))
    start = data.draw(st.integers(0, max(len(span.name) - 1, 0)))
    # Search for parts of stored names as well, because random texts rarely match.
    part = span.name[start : start + 3]
    asked += [Search(text=part), Search(text=part.upper()), Search(text=part.lower()), Search(columns={"name": [part]})]
    for search in asked:
        assert find(database, search) == [number for number, span in enumerate(stored) if search.matches(span)]


def test_every_letter_is_found_in_every_form_of_it(database: Database) -> None:
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    words = ["".join(letters[start : start + 64]) for start in range(0, len(letters), 64)] + letters[:0x3000]
    found = contains_text("word").replace("?", "form")
    rows = database.run(
        f"SELECT word FROM (SELECT unnest(?) AS word, unnest(?) AS form) WHERE {found}",
        [words, [folded(word) for word in words]],
    )
    assert [word for (word,) in rows] == words


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("u\u0308ber", "\u00dcBER"),
        ("\u00fcber", "U\u0308BER"),
        ("\u03bb\u03cc\u03b3\u03bf\u03c2", "\u039b\u038c\u0393\u039f\u03a3"),
        ("\u039b\u038c\u0393\u039f\u03a3", "\u03bb\u03cc\u03b3\u03bf\u03c2"),
        ("\uff32\uff21\uff27", "rag"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_a_text_is_found_in_another_case_or_encoding(database: Database, name: str, asked: str) -> None:
    span = make_span(name=name)
    fill(database, [span])
    assert find(database, Search(text=asked)) == [0]
    assert Search(text=asked).matches(span)


ids = st.sampled_from((None, "", "u-7", "42", "4.5", "it's"))


@untimed(150)
@given(
    field=ids,
    attribute=st.one_of(st.none(), ids, st.integers(40, 44), st.floats(4, 5), st.booleans()),
    key=st.sampled_from(("user_id", "session_id")),
    asked=st.sampled_from(("", "u-7", "42", "4.5", "it's", "true", "nobody")),
)
def test_an_id_is_the_field_or_else_the_attribute_of_its_name_in_sql_and_in_python(
    database: Database, field: str | None, attribute: object, key: str, asked: str
) -> None:
    span = make_span(**{key: field, "attributes": {key: attribute}})
    fill(database, [span])
    wanted = field or (attribute if isinstance(attribute, str) or attribute is None else json.dumps(attribute))
    if isinstance(attribute, float) and not field:
        wanted = attribute_text_of(make_span(attributes={"x": attribute}), "x")
    assert attribute_text_of(span, key) == value_text(span, key) == value_text(span, f"attr.{key}") == wanted
    expression, parameters = attribute_text(key)
    assert database.run(f"SELECT {expression} FROM held", parameters) == [(wanted,)]
    kind, parameters = attribute_text(key, "json_type")
    is_number = database.run(f"SELECT coalesce({kind}, '') IN ('BIGINT', 'UBIGINT', 'DOUBLE') FROM held", parameters)
    assert is_number == [(not field and isinstance(attribute, int | float) and not isinstance(attribute, bool),)]
    # Spans without the id are found by the empty text.
    search = Search(attributes={key: [asked]})
    assert bool(find(database, search)) == search.matches(span) == ((wanted or "") == asked)
