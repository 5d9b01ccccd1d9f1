"""
A call counts once, however often it is told: the aggregator and the alerter agree with an independent recount.

The recount reads what the senders kept, and imports nothing of the product.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kit.call_log
import kit.call_recount
from kit.call_histories import HISTORIES, random_history
from kit.call_machines import disagreements
from kit.examples import examples

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


OWN = {"__future__", "collections", "collections.abc", "datetime", "decimal", "typing"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [(kit.call_recount, OWN), (kit.call_log, OWN | {"asyncio", "struct", "nats", "kit.call_recount"})],
)
def test_the_recount_imports_nothing_of_the_product(module: ModuleType, allowed: set[str]) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= allowed
    assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"__import__", "eval", "exec"}


@settings(QUIET, max_examples=examples(1000))
@given(HISTORIES, st.sampled_from([16, 8, 32, 1]), st.integers(0, 2**16))
def test_one_shard_with_a_small_memory_agrees_with_the_recount(numbers: list[int], calls: int, seed: int) -> None:
    assert disagreements(numbers, 1, calls, seed) == []


@settings(QUIET, max_examples=examples(500))
@given(HISTORIES, st.integers(0, 2**16))
def test_four_shards_agree_with_the_recount(numbers: list[int], seed: int) -> None:
    assert disagreements(numbers, 4, 64, seed) == []


@pytest.mark.long
@settings(QUIET, max_examples=examples(20))
@given(st.integers(0, 2**32), st.sampled_from([1, 4]))
def test_batches_that_ingest_splits_agree_with_the_recount(seed: int, shards: int) -> None:
    calls = 64 if shards == 1 else 1024
    assert disagreements(random_history(seed, 600), shards, calls, seed, batch=400) == []
