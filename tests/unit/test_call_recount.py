"""
A call counts once, whoever tells it how often: the aggregator and the alerter agree with an independent recount.

The recount reads what the senders kept, and imports nothing of the product.
"""

from __future__ import annotations

import ast
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kit.call_recount
from kit.call_histories import HISTORIES
from kit.call_machines import disagreements
from kit.examples import examples

QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def test_the_recount_imports_nothing_of_the_product() -> None:
    tree = ast.parse(Path(kit.call_recount.__file__).read_text())
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"__future__", "collections", "collections.abc", "datetime", "decimal", "typing"}
    assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"__import__", "eval", "exec"}


@settings(QUIET, max_examples=examples(1000))
@given(HISTORIES, st.sampled_from([16, 8, 32, 1]), st.integers(0, 2**16))
def test_one_shard_with_a_small_memory_agrees_with_the_recount(numbers: list[int], calls: int, seed: int) -> None:
    assert disagreements(numbers, 1, calls, seed) == []


@settings(QUIET, max_examples=examples(500))
@given(HISTORIES, st.integers(0, 2**16))
def test_four_shards_agree_with_the_recount(numbers: list[int], seed: int) -> None:
    assert disagreements(numbers, 4, 64, seed) == []
