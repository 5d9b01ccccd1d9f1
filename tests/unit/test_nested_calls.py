"""Calls inside calls of equal usage: a chain of any length has one key, and its cost grows with its length alone."""

from __future__ import annotations

import pytest

from tokentrace.dedup import identities_of, identity, keys_of
from tokentrace.records import Span


def chain(length: int, parent_of: list[int | None]) -> list[Span]:
    return [
        Span(
            trace_id="t",
            span_id=f"s{index}",
            parent_span_id=None if parent_of[index] is None else f"s{parent_of[index]}",
            model="m",
            prompt_tokens=5,
            started_ns=10**18,
            ended_ns=10**18 + 10**9,
        )
        for index in range(length)
    ]


def test_a_chain_of_thousands_of_calls_has_the_key_of_its_innermost(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    find = identity._call_inside

    def counted(outer: Span, inner: list[int], spans: list[Span]) -> int | None:
        looked.append(outer.span_id)
        return find(outer, inner, spans)

    monkeypatch.setattr(identity, "_call_inside", counted)
    spans = chain(3_000, [None, *range(2_999)])
    assert len(set(keys_of(identities_of(spans, "p")))) == 1
    assert len(looked) == len(set(looked)) == 3_000


def test_calls_in_a_circle_end() -> None:
    spans = chain(4, [3, 0, 1, 2])
    assert len(keys_of(identities_of(spans, "p"))) == 4
