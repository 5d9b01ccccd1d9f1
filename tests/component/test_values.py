"""Values and keys that spans hold equal those counted in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kit.store_log import NOW_NS, stored_span, untimed
from kit.trace_oracle import in_time, is_excluded, matches, searches, stored
from tokentrace.records import Span
from tokentrace_api.reads import Held, list_keys, list_values

TYPES = {str: "text", int: "number", float: "number", bool: "boolean", list: "list"}
held = st.sampled_from(["a", "Ab", "b", "", 1, 2.5, True, None, [1], {"in": "x"}, {"in": {"deep": 3}}])
spans = st.builds(
    stored_span,
    st.sampled_from(["t1", "t2"]),
    st.integers(0, 9),
    kind=st.sampled_from(["tool", "agent"]),
    model=st.sampled_from(["", "gpt-4o", "GPT-x", "b"]),
    started_ns=st.integers(1, 9),
    attributes=st.dictionaries(st.sampled_from(["k", "team", "a.b"]), held, max_size=3),
)


def keys_of(attributes: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{before}{key}.")
        elif value is not None:
            yield before + key, TYPES[type(value)]


def ranked(counts: Mapping[str, int], last: Mapping[str, int]) -> list[tuple[str, int, int]]:
    found = [(name, count, last[name]) for name, count in counts.items()]
    return sorted(found, key=lambda each: (-each[1], -each[2], each[0]))


@untimed(40)
@given(
    sent=st.lists(spans, max_size=12, unique_by=lambda span: (span.trace_id, span.span_id)),
    search=searches,
    prefix=st.sampled_from(["", "", "g", "A", "te"]),
    limit=st.integers(1, 4),
    most=st.sampled_from([10**6, 10**6, 3]),
)
def test_values_and_keys_are_those_of_the_matching_spans(
    directories: Iterator[Path], sent: list[Span], search: Any, prefix: str, limit: int, most: int
) -> None:
    search = search._replace(least={}, columns={}, text="")
    store = stored(next(directories), sent, [5])
    wanted = [
        span
        for span in sent
        if matches(span, search) and not is_excluded(span, search) and in_time(span.started_ns, search)
    ]
    values = list_values(store, search, "model", prefix, limit, NOW_NS, most)
    of_attribute = list_values(store, search, "attr.team", prefix, limit, NOW_NS, most)
    keys = list_keys(store, search, prefix, limit, NOW_NS, most)
    store.close()
    floor_ns = values.searched_until_ns
    assert (floor_ns is None) == (len(wanted) <= most)
    looked_at = [span for span in wanted if floor_ns is None or span.started_ns > floor_ns]
    by_start = sorted(looked_at, key=lambda span: span.started_ns)
    named = [span for span in by_start if span.model and span.model.lower().startswith(prefix.lower())]
    last = {span.model: span.started_ns for span in named}
    expected = ranked(Counter(span.model for span in named), last)
    assert values.held == [Held(*each) for each in expected[:limit]]
    assert values.is_complete == (len(expected) <= limit)
    texts = [
        (span.attributes["team"], span.started_ns)
        for span in by_start
        if isinstance(span.attributes.get("team"), str) and span.attributes["team"]
    ]
    chosen = [(text, at) for text, at in texts if text.lower().startswith(prefix.lower())]
    shown = {each.name: each for each in of_attribute.held if each.name in {"a", "Ab", "b"}}
    for text, one in shown.items():
        assert one == Held(
            text, sum(name == text for name, _ in chosen), max(at for name, at in chosen if name == text)
        )
    counts: Counter[str] = Counter()
    types: dict[str, set[str]] = {}
    newest: dict[str, int] = {}
    for span in by_start:
        pairs = {pair for pair in keys_of(span.attributes) if pair[0].lower().startswith(prefix.lower())}
        for key, kind in pairs:
            counts[key] += 1
            types.setdefault(key, set()).add(kind)
            newest[key] = span.started_ns
    rows = ranked(counts, newest)
    assert keys.held == [Held(*each, tuple(sorted(types[each[0]]))) for each in rows[:limit]]
    assert keys.is_complete == (len(rows) <= limit)
