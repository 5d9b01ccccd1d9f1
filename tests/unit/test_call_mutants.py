"""
The recount of calls fails when one rule of the product is broken: each test plants one fault.

Each fault is a line of ``MUTANTS``; its name says what it breaks. The same histories agree without the fault.
"""

from __future__ import annotations

import pytest

from kit.call_histories import random_history
from kit.call_machines import disagreements
from kit.mutants import Mutant, plant

IDENTITY, MEMORY = "tokentrace.dedup.identity", "tokentrace.dedup.memory"
DEDUPLICATOR, BATCHES = "tokentrace.dedup.deduplicator", "tokentrace.dedup.batches"
#: What is broken -> (how, number of shards).
MUTANTS: dict[str, tuple[Mutant, int]] = {
    "the provider is part of the hash of a response": (
        Mutant(
            f"{IDENTITY}:_identity", 'hash64(project, "", response_id)', "hash64(project, span.provider, response_id)"
        ),
        1,
    ),
    "a short response id is treated as a long one": (
        Mutant(f"{IDENTITY}:_identity", "not is_long(response_id)", "False"),
        1,
    ),
    "a long response id is treated as a short one": (
        Mutant(f"{IDENTITY}:_identity", "not is_long(response_id)", "True"),
        1,
    ),
    "the scope is no part of the way in": (
        Mutant(f"{IDENTITY}:_identity", r'f"{span.source}\0{span.scope}"', "span.source"),
        1,
    ),
    "a response without tokens is known by its id": (
        Mutant(
            f"{IDENTITY}:_response_id",
            "if not _has_tokens(span):",
            "if False:",
        ),
        1,
    ),
    "a roll-up is known by the id of a response": (
        Mutant(f"{IDENTITY}:_response_id", "span.kind not in MODEL_KINDS", "False"),
        1,
    ),
    "the memory is one call too small": (
        Mutant(f"{MEMORY}:CallMemory._find", "min(self.capacity, added)", "min(self.capacity - 1, added)"),
        1,
    ),
    "the memory is twice as large": (
        Mutant(f"{DEDUPLICATOR}:Deduplicator.__init__", "CallMemory(capacity)", "CallMemory(2 * capacity)"),
        1,
    ),
    "a repetition makes its call newer": (
        Mutant(f"{MEMORY}:CallMemory._take_each", "counted[index] = False", "counted[index] = False; self._add(entry)"),
        1,
    ),
    "the newest telling in a batch wins": (
        Mutant(
            f"{DEDUPLICATOR}:Deduplicator.take",
            "verdict = self.calls.take(decode_identities(batch, project))",
            "verdict = self.calls.take(decode_identities(batch, project)[::-1]); "
            "verdict = verdict._replace(counted=verdict.counted[::-1])",
        ),
        1,
    ),
    "a changed telling counts as well": (
        Mutant(
            f"{MEMORY}:CallMemory._take_each",
            "counted[index] = False",
            "counted[index] = entry[2:4] != same",
        ),
        1,
    ),
    "intervals must overlap": (
        Mutant(f"{MEMORY}:_is_same_response", "gap = SHORT_MS if short else LONG_MS", "gap = 0"),
        1,
    ),
    "the end of the tolerance is left out": (
        Mutant(f"{MEMORY}:_is_same_response", "told_start - gap > held_start", "told_start - gap >= held_start"),
        1,
    ),
    "equal calls through one instrumentation are one": (
        Mutant(f"{MEMORY}:_is_same_response", "_way(held[5]) != _way(told[5])", "True"),
        1,
    ),
    "short response ids are one call whatever was used": (
        Mutant(f"{MEMORY}:_is_same_response", "held[2] == told[2] and ", ""),
        1,
    ),
    "a telling without usage hides one with usage": (
        Mutant(f"{MEMORY}:CallMemory._find", "held[2] or not usage", "True"),
        1,
    ),
    "repetitions within a large batch are not seen": (
        Mutant(
            f"{MEMORY}:CallMemory._suspects",
            "found[order[1:][same]] = True",
            "pass",
        ),
        1,
    ),
    "a snapshot leaves out what changed in the memory": (
        Mutant(f"{MEMORY}:CallMemory._add", "self._pieces[place // PIECE] = self.added", "pass"),
        1,
    ),
    "the batch decides the shard of a call": (
        Mutant("tokentrace_ingest.placement:place", "home if own else shard_of_key(key, shards)", "home"),
        4,
    ),
    "batch numbers are divided by the shards": (
        Mutant(
            f"{BATCHES}:FoldedBatches.add",
            "batch.sequence if batch.layout else batch.sequence // self._stride",
            "batch.sequence // self._stride",
        ),
        4,
    ),
    "an unknown cost is zero": (
        Mutant(
            "tokentrace_ingest.cleaning:Cleaner.finish", "cost_nusd=quote.cost_nusd", "cost_nusd=quote.cost_nusd or 0"
        ),
        1,
    ),
    "money and tokens of roll-ups are added": (
        Mutant("tokentrace.records.span:counts_as_cost", "kind not in ROLLUP_KINDS", "True"),
        1,
    ),
}
#: How many histories are tried, in this order; the first one that shows the fault ends the test.
SEEDS = range(60)
#: The first history that showed a fault; it is tried before the others, which saves them as long as it does.
SHOWN_BY = {
    "a short response id is treated as a long one": 6,
    "the scope is no part of the way in": 20,
    "the memory is one call too small": 4,
    "the end of the tolerance is left out": 3,
    "equal calls through one instrumentation are one": 6,
    "short response ids are one call whatever was used": 13,
    "a telling without usage hides one with usage": 4,
    "a snapshot leaves out what changed in the memory": 2,
}


@pytest.mark.parametrize("broken", MUTANTS)
def test_the_recount_notices_that(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, shards = MUTANTS[broken]
    for seed in (SHOWN_BY.get(broken, 0), *SEEDS):
        with monkeypatch.context() as patch:
            plant(mutant, patch)
            differs = disagreements(random_history(seed), shards, 16 if shards == 1 else 64, seed)
        if differs:
            assert disagreements(random_history(seed), shards, 16 if shards == 1 else 64, seed) == []
            return
    pytest.fail("no history shows the fault")
