"""Metrics, traces, sessions and exports of the api agree with an independent recount of what the senders kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.call_histories import HISTORIES
from kit.call_services import disagreements
from kit.examples import examples

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.long
@settings(QUIET, max_examples=examples(60))
@given(HISTORIES, st.sampled_from([16, 8]), st.integers(0, 2**16))
def test_all_answers_about_one_shard_with_a_small_memory_agree_with_the_recount(
    directories: Iterator[Path], numbers: list[int], calls: int, seed: int
) -> None:
    assert disagreements(next(directories), numbers, 1, calls, seed) == []


@pytest.mark.long
@settings(QUIET, max_examples=examples(40))
@given(HISTORIES, st.integers(0, 2**16))
def test_all_answers_about_four_shards_of_two_aggregators_agree_with_the_recount(
    directories: Iterator[Path], numbers: list[int], seed: int
) -> None:
    assert disagreements(next(directories), numbers, 4, 64, seed) == []
