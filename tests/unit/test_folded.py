"""Values under ``other``: which values stay complete, how the table is bounded, and what shards show together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.examples import examples
from tokentrace.metrics import Aggregates, Query, ShardResult, merge_results
from tokentrace.rollup import DIMENSIONS, FOLDABLE, DistinctCount, SeriesTable, Sums, distinct, merge_registers, series
from tokentrace.rollup.series import MAX_MODELS, MAX_PLAIN, MAX_PROVIDERS, MAX_SERIES

Key = tuple[str, str, str, str, str, str]
KEY = st.tuples(
    st.sampled_from(["llm", "tool"]),
    st.sampled_from(["", "unknown", "m1", "m2", "m3", "other"]),
    st.sampled_from(["", "p1", "p2", "other"]),
    st.sampled_from(["", "a", "b", "c", "other"]),
    st.sampled_from(["", "x", "y", "z", "other"]),
    st.sampled_from(["ok", "error"]),
)
STREAM = st.lists(KEY, max_size=80)
#: Limits, of which the last is not below the first, as in the product.
LIMITS = st.tuples(st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10)).map(
    lambda drawn: {
        "MAX_SERIES": drawn[0],
        "MAX_MODELS": drawn[1],
        "MAX_PROVIDERS": drawn[2],
        "MAX_PLAIN": drawn[0] + drawn[3],
    }
)


@contextmanager
def limited(limits: Mapping[str, int]) -> Iterator[None]:
    """Replace the limits of series."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in limits.items():
            patch.setattr(series, name, limit)
        yield


def value_of(key: Key, dimension: str) -> str:
    return key[DIMENSIONS.index(dimension)] or "unknown"


def assert_complete(table: SeriesTable, stream: list[Key]) -> None:
    """
    Check that the table calls a value exact only if it counts all of its spans under it.

    The reverse holds too, unless a sender really says ``other``: it can fill the room of series without a name early.
    """
    says_other = any("other" in key for key in stream)
    for dimension in FOLDABLE:
        told = Counter(value_of(key, dimension) for key in stream)
        counted = Counter(getattr(table.series[table.number(key)], dimension) for key in stream)
        exact = table.exact(dimension)
        if exact is None:
            assert counted == told
        for value in told:
            is_exact = (exact is None or value in exact) and value != "other"
            if is_exact:
                assert counted[value] == told[value], (dimension, value)
            else:
                assert says_other or counted[value] < told[value], (dimension, value)
            expected = [] if is_exact or value == "other" else [dimension]
            assert table.inexact({dimension: value}, 0) == expected


@settings(deadline=None, max_examples=examples(200))
@given(STREAM, LIMITS)
def test_a_value_is_exact_if_and_only_if_all_of_its_spans_are_counted_under_it(
    stream: list[Key], limits: dict[str, int]
) -> None:
    with limited(limits):
        table = SeriesTable()
        for key in stream:
            table.number(key)
        assert_complete(table, stream)


@settings(deadline=None, max_examples=examples(100))
@given(STREAM, STREAM, LIMITS)
def test_a_restored_table_counts_as_before_and_knows_which_values_are_exact(
    before: list[Key], after: list[Key], limits: dict[str, int]
) -> None:
    with limited(limits):
        table = SeriesTable()
        for key in before:
            table.number(key)
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode([table.series, table.folded_snapshot()]))
        rebuilt = SeriesTable(saved[0], folded=saved[1])
        assert [rebuilt.number(key) for key in after] == [table.number(key) for key in after]
        assert rebuilt.series == table.series
        assert rebuilt.folded_snapshot() == table.folded_snapshot()
        assert_complete(rebuilt, [*before, *after])


@settings(deadline=None, max_examples=examples(100))
@given(STREAM, LIMITS)
def test_kind_and_status_and_the_first_models_are_always_kept(stream: list[Key], limits: dict[str, int]) -> None:
    with limited(limits):
        table = SeriesTable()
        first = list(dict.fromkeys(value for key in stream if (value := value_of(key, "model")) != "other"))
        for key in stream:
            counted = table.series[table.number(key)]
            model = value_of(key, "model")
            assert (counted.kind, counted.status) == (key[0], key[5])
            assert counted.model == (model if model in first[: limits["MAX_MODELS"]] else "other")


def test_a_flood_of_models_providers_callers_and_names_keeps_the_table_small_and_known_models_exact() -> None:
    table, known = SeriesTable(), [("llm", f"known-{n}", "openai", f"team-{n % 5}", "answer", "ok") for n in range(50)]
    for key in known:
        table.number(key)
    for n in range(20_000):
        table.number(("llm", f"model-{n}", f"provider-{n}", f"caller-{n}", f"name-{n}", "ok"))
    # Known values in new combinations, as when calls begin to fail, stay known.
    failing = [("llm", *key[1:5], "error") for key in known]
    for key in failing:
        assert table.series[table.number(key)].model == key[1]
    assert len(table) <= MAX_SERIES + MAX_PLAIN + 2 * MAX_MODELS
    assert (table.separate("model"), table.separate("provider")) == (MAX_MODELS, MAX_PROVIDERS)
    for dimension in ("model", "caller"):
        exact = table.exact(dimension)
        assert exact is not None
        assert {value_of(key, dimension) for key in known} <= set(exact)
    assert distinct(table.folded_count("model")) == pytest.approx(20_050 - MAX_MODELS, rel=0.1)


# ---- states of an earlier version, which kept every model and provider apart


@settings(deadline=None, max_examples=examples(60))
@given(STREAM, LIMITS)
def test_a_table_of_an_earlier_version_is_brought_within_the_limits_without_losing_a_span(
    stream: list[Key], limits: dict[str, int]
) -> None:
    table = SeriesTable()
    for key in stream:
        table.number(key)
    with limited(limits):
        smaller, numbers = table.within_limits()
        assert not smaller.is_over_limits
        assert table.is_over_limits or np.array_equal(numbers, np.arange(len(table)))
        assert len(numbers) == len(table)
        for old, number in zip(table.series, numbers.tolist(), strict=True):
            new = smaller.series[number]
            assert (new.kind, new.caller, new.name, new.status) == (old.kind, old.caller, old.name, old.status)
            assert new.model in (old.model, "other")
            assert new.provider in (old.provider, "other")
        for dimension in ("model", "provider"):
            exact = smaller.exact(dimension)
            for old, number in zip(table.series, numbers.tolist(), strict=True):
                if exact is None or getattr(old, dimension) in exact:
                    assert getattr(smaller.series[number], dimension) == getattr(old, dimension)


def test_a_filter_on_a_caller_is_not_exact_before_the_upgrade_from_a_version_that_did_not_note_folded_callers() -> None:
    table = SeriesTable([("llm", "m", "p", "a", "x", "ok"), ("llm", "m", "p", "other", "other", "ok")])
    table.forget_before(1000)
    assert table.inexact({"caller": "a", "model": "m"}, 999) == ["caller"]
    assert table.inexact({"caller": "a", "model": "m"}, 1000) == []
    assert table.inexact({"caller": "never seen"}, 1000) == ["caller"]


# ---- several shards


def part(shard: int, groups: Mapping[str, int], exact: list[str] | None) -> ShardResult:
    """Return the result of a shard that counted these spans by model."""
    return ShardResult(
        shard=shard,
        groups={name: Aggregates(sums=Sums(spans=count)) for name, count in groups.items()},
        exact={} if exact is None else {"model": exact},
    )


def test_a_value_that_one_shard_counts_under_other_is_other_in_the_whole_answer() -> None:
    query = Query(groupby="model")
    parts = [
        part(0, {"gpt-4o": 5, "o3": 2, "other": 7}, ["gpt-4o"]),
        part(1, {"gpt-4o": 1, "o3": 4, "mine": 8}, None),
    ]
    answer = merge_results(parts, 2, query)
    assert {name: group.sums.spans for name, group in answer.groups.items()} == {"gpt-4o": 6, "other": 21}
    assert answer.folded == ["model"]


def test_an_answer_that_shows_every_value_by_name_is_not_folded() -> None:
    query = Query(groupby="model")
    answer = merge_results([part(0, {"gpt-4o": 5}, ["gpt-4o", "o3"]), part(1, {"o3": 1}, None)], 2, query)
    assert {name: group.sums.spans for name, group in answer.groups.items()} == {"gpt-4o": 5, "o3": 1}
    assert answer.folded == []


# ---- how many values there are


@pytest.mark.long
@pytest.mark.parametrize(("values", "error"), [(0, 0), (1, 0), (100, 0.03), (20_000, 0.1), (300_000, 0.1)])
def test_the_number_of_different_values_is_about_right(values: int, error: float) -> None:
    count = DistinctCount()
    for n in range(values):
        count.add(f"model-{n}")
        count.add(f"model-{n // 2}")
    assert count.estimate() == pytest.approx(values, rel=error)
    assert len(count.registers) == 1024


def test_counts_of_shards_are_merged_without_counting_a_value_twice() -> None:
    left, right = DistinctCount(), DistinctCount()
    for n in range(2000):
        left.add(f"caller-{n}")
        right.add(f"caller-{n + 1000}")
    merged = merge_registers(bytes(left.registers), bytes(right.registers))
    assert distinct(merged) == pytest.approx(3000, rel=0.1)
    assert merge_registers(b"", bytes(left.registers)) == bytes(left.registers)
    assert (merge_registers(b"", b""), distinct(b"")) == (b"", 0)
