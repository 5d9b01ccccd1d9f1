"""The comparison of stored spans with the recount fails when one rule of the store is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.call_histories import random_history
from kit.call_services import disagreements
from kit.mutants import Mutant, plant

#: What is broken -> how.
MUTANTS = {
    "the newest telling counts in the store": Mutant(
        "tokentrace_api.store.append:Appender._contents_of",
        "counted is None or counted[index]",
        "counted is None or not counted[index]",
    ),
    "every telling counts in the store": Mutant(
        "tokentrace_api.store.append:Appender._contents_of", "counted is None or counted[index]", "True"
    ),
    "the store forgets the calls when it is opened": Mutant(
        "tokentrace_api.store.reader_state:_read_calls", "calls.restore_entries(entries, added, digest)", "pass"
    ),
    "a trace does not say how many of its costs are unknown": Mutant(
        "tokentrace_api.reads.sums:sums_of", "len(summed) - len(known)", "0"
    ),
    "an unknown cost makes a trace free": Mutant(
        "tokentrace_api.reads.sums:sums_of", "sum(known) if known or not summed else None", "sum(known)"
    ),
}
SEEDS = range(30)


@pytest.mark.long
@pytest.mark.parametrize("broken", MUTANTS)
def test_the_recount_notices_that(broken: str, directories: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SEEDS:
        with monkeypatch.context() as patch:
            plant(MUTANTS[broken], patch)
            differs = disagreements(next(directories), random_history(seed), 1, 16, seed)
        if differs:
            assert disagreements(next(directories), random_history(seed), 1, 16, seed) == []
            return
    pytest.fail("no history shows the fault")
