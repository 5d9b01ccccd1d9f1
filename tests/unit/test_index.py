"""The filter index: it finds the same as trying every filter on every span, with few look-ups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from kit.examples import examples
from tokentrace.metrics import value_text
from tokentrace.records import Span
from tokentrace_alerter.rules import FilterIndex
from tokentrace_alerter.rules import filter_index as index

DIMENSIONS = ("kind", "model", "provider", "caller", "name", "status")
Filters = Mapping[str, Mapping[str, str]]


def text_of(span: Span, key: str) -> str | None:
    """Return the value of *key* as text: the dimension, else the attribute, else the value at this path."""
    if key in DIMENSIONS:
        return getattr(span, key) or "unknown"
    if key.startswith("attr."):
        key = key[len("attr.") :]
    value: Any = span.attributes.get(key)
    if value is None and "." in key:
        value = span.attributes
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value)


def brute(filters: Filters, spans: Sequence[Span]) -> dict[str, list[int]]:
    """Return rule -> indices of the spans that match, by trying every filter; rules without a match are left out."""
    found = {
        name: [
            number
            for number, span in enumerate(spans)
            if all(text_of(span, key) == value for key, value in wanted.items())
        ]
        for name, wanted in filters.items()
    }
    return {name: numbers for name, numbers in found.items() if numbers}


def matched(filters: Filters, spans: Sequence[Span]) -> dict[str, list[int]]:
    """Return rule -> indices of the spans that the index finds; check that it names no rule twice."""
    found: dict[str, list[int]] = {}
    for name, numbers in FilterIndex(filters).match(spans):
        assert name not in found
        found[name] = list(range(len(spans))) if numbers is None else numbers
    return found


values = st.sampled_from(["a", "b", "unknown", "true", "false", "3", "0.5", ""])
keys = st.sampled_from(
    [
        "model",
        "provider",
        "caller",
        "status",
        "kind",
        "step",
        "attr.step",
        "attr.model",
        "user.id",
        "attr.user.id",
        "user.id.x",
        "flag",
        "missing",
        "unknown",
    ]
)
attributes = st.fixed_dictionaries(
    {},
    optional={
        "step": st.sampled_from(["a", "b", "", True, False, 3, 0.5, None]),
        "model": st.sampled_from(["a", "b"]),
        "user.id": st.sampled_from(["a", 3]),
        "user": st.sampled_from(
            ["a", {"id": "b"}, {"id": True}, {"id": {"x": "a"}}, {"id": None}, {"other": "a"}, {}, [1, 2]]
        ),
        "flag": st.booleans(),
    },
)
spans_of = st.lists(
    st.builds(
        make_span,
        kind=st.sampled_from(["llm", "tool"]),
        model=st.sampled_from(["a", "b", ""]),
        provider=st.sampled_from(["a", ""]),
        caller=st.sampled_from(["a", "unknown", ""]),
        status=st.sampled_from(["ok", "error"]),
        attributes=attributes,
    ),
    min_size=1,
    max_size=12,
)
filters_of = st.lists(st.dictionaries(keys, st.one_of(values, st.sampled_from(["llm", "ok"])), max_size=3), max_size=12)


@settings(max_examples=examples(400), deadline=None)
@given(filters=filters_of, spans=spans_of)
def test_the_index_finds_what_trying_every_filter_finds(filters: list[dict[str, str]], spans: list[Span]) -> None:
    named = {f"rule-{number}": one for number, one in enumerate(filters)}
    assert matched(named, spans) == brute(named, spans)


@settings(max_examples=examples(100), deadline=None)
@given(filters=filters_of, spans=spans_of)
def test_the_order_of_the_rules_does_not_matter(filters: list[dict[str, str]], spans: list[Span]) -> None:
    named = {f"rule-{number}": one for number, one in enumerate(filters)}
    backwards = dict(reversed(named.items()))
    assert matched(named, spans) == matched(backwards, spans)


@pytest.mark.parametrize(
    ("wanted", "fields", "matches"),
    [
        ({"model": "unknown"}, {"model": ""}, True),
        ({"model": ""}, {"model": ""}, False),
        ({"caller": "unknown"}, {}, True),
        ({"attr.model": "a"}, {"model": "a"}, False),
        ({"attr.model": "a"}, {"attributes": {"model": "a"}}, True),
        ({"model": "a"}, {"model": "b", "attributes": {"model": "a"}}, False),
        ({"user.id": "a"}, {"attributes": {"user": {"id": "a"}}}, True),
        ({"attr.user.id": "a"}, {"attributes": {"user": {"id": "a"}}}, True),
        ({"user.id": "flat"}, {"attributes": {"user.id": "flat", "user": {"id": "nested"}}}, True),
        ({"user.id": "nested"}, {"attributes": {"user.id": "flat", "user": {"id": "nested"}}}, False),
        ({"user.id": "a"}, {"attributes": {"user": "a"}}, False),
        ({"user": "a"}, {"attributes": {"user": {"a": 1}}}, False),
        ({"n": "3"}, {"attributes": {"n": 3}}, True),
        ({"n": "3"}, {"attributes": {"n": 3.0}}, False),
        ({"n": "true"}, {"attributes": {"n": True}}, True),
        ({"n": "null"}, {"attributes": {"n": None}}, False),
        ({"n": "unknown"}, {}, False),
        ({"n": ""}, {"attributes": {"n": ""}}, True),
        ({"n": "ünïcode"}, {"attributes": {"n": "ünïcode"}}, True),
        ({"step": "a", "attr.step": "a"}, {"attributes": {"step": "a"}}, True),
        ({"step": "a", "attr.step": "b"}, {"attributes": {"step": "a"}}, False),
    ],
)
def test_what_a_filter_means(wanted: dict[str, str], fields: dict[str, Any], matches: bool) -> None:
    spans = [make_span(**fields)]
    assert matched({"rule": wanted}, spans) == brute({"rule": wanted}, spans) == ({"rule": [0]} if matches else {})


def test_without_rules_the_index_finds_nothing() -> None:
    assert matched({}, [make_span()]) == {}


def test_a_rule_without_a_filter_matches_every_span() -> None:
    assert list(FilterIndex({"rule": {}}).match([make_span()] * 3)) == [("rule", None)]


# --- 1,000 rules


def thousand_filters() -> dict[str, dict[str, str]]:
    """Return 1,000 distinct filters: 250 of each of four shapes."""
    filters: dict[str, dict[str, str]] = {}
    for number in range(250):
        filters[f"user-{number}"] = {"user": f"u{number}"}
        filters[f"both-{number}"] = {"model": "gpt-4o", "user": f"u{number}"}
        filters[f"caller-{number}"] = {"caller": f"c{number}", "status": "error"}
        filters[f"nested-{number}"] = {"tenant.id": f"t{number}", "model": "o3", "attr.flag": "true"}
    return filters


def crowd(count: int) -> list[Span]:
    return [
        make_span(
            model=("gpt-4o", "o3", "")[number % 3],
            caller=f"c{number * 7 % 400}",
            status=("ok", "error")[number % 2],
            attributes={
                "user": f"u{number * 13 % 400}",
                "tenant": {"id": f"t{number * 11 % 300}"},
                "flag": number % 5 == 0,
            },
        )
        for number in range(count)
    ]


def test_with_a_thousand_rules_the_index_finds_what_trying_them_finds() -> None:
    filters, spans = thousand_filters(), crowd(300)
    found = matched(filters, spans)
    assert found == brute(filters, spans)
    assert len(found) > 200


@pytest.mark.parametrize(
    "filters",
    [
        {f"r{number}": {"user": f"u{number}"} for number in range(1000)},
        {f"r{number}": {"model": "gpt-4o", "user": f"u{number}"} for number in range(1000)},
        {f"r{number}": {"kind": "llm", "caller": f"c{number}", "status": "ok"} for number in range(1000)},
        thousand_filters(),
    ],
    ids=["one key", "a common value and a distinct one", "three keys", "four shapes"],
)
def test_a_thousand_rules_are_not_compared_one_by_one(
    filters: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index looks up at most 12 values in a span on average, however many rules there are."""
    looked, real = 0, value_text

    def counting(span: Span, key: str) -> str | None:
        nonlocal looked
        looked += 1
        return real(span, key)

    monkeypatch.setattr(index, "value_text", counting)
    built = FilterIndex(filters)
    looked = 0
    spans = crowd(100)
    assert sum(len(numbers or ()) for _, numbers in built.match(spans)) == sum(map(len, brute(filters, spans).values()))
    assert looked <= 12 * len(spans)
