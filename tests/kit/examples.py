"""How many examples long tests try, by the profile in the environment variable ``TOKENTRACE_PROFILE``."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

#: ``fast`` is used by ``make test-fast``, ``ci`` by ``make test``, ``all`` by ``make test-all``; ``nightly`` tries ten
#: times as many examples as ``all``.
PROFILE = os.environ.get("TOKENTRACE_PROFILE", "ci")
WHOLE = PROFILE in ("all", "nightly")
FAST = PROFILE == "fast"
_SHARES = {"fast": 0.03, "ci": 0.15, "all": 1.0, "nightly": 10.0}
_LEAST = {"fast": 2, "ci": 4, "all": 1, "nightly": 1}
_DEFAULT = 100
#: A test that takes more CPU than this in the fast profile, in seconds, is marked as ``long``.
LONG_CPU_S = 0.7


def examples(count: int) -> int:
    """Return how many examples to try in this run if the profile ``all`` tries *count*."""
    return max(round(count * _SHARES[PROFILE]), min(count, _LEAST[PROFILE]))


def thinned(values: Sequence[T], dice: random.Random) -> Sequence[T]:
    """Return *values* in the profiles ``all`` and ``nightly``, else every sixth of them from a random start."""
    return values if WHOLE else values[dice.randrange(min(6, len(values) or 1)) :: 6]


def matrix(values: Sequence[T], short: int) -> Sequence[T]:
    """Return *values* in the profiles ``all`` and ``nightly``, else the first *short* of them."""
    return values if WHOLE else values[:short]


#: The seed of this run. Workers of pytest-xdist inherit it from the process that prints it.
SEED = int(os.environ.setdefault("TOKENTRACE_SEED", str(random.randrange(2**31))))


def left_out(stories: Sequence[str]) -> set[str]:
    """Return which of *stories*, ids of tests, this run leaves out: five of six, none in a whole run or of a few."""
    if WHOLE or len(stories) < 20:
        return set()
    return set(random.Random(SEED).sample(sorted(stories), 5 * len(stories) // 6))


def long_ones(tests: Iterable[tuple[T, str, bool]]) -> set[T]:
    """
    Return the tests that the fast profile leaves out: those that are long, but for the first of a file without others.

    Each of *tests* is a test, its file, and whether it is long.
    """
    short: set[str] = set()
    left: dict[str, list[T]] = {}
    for test, file, is_long in tests:
        if is_long:
            left.setdefault(file, []).append(test)
        else:
            short.add(file)
    return {test for file, those in left.items() for test in (those if file in short else those[1:])}


def load_profile() -> None:
    """Set Hypothesis' default number of examples for this profile."""
    settings.register_profile(PROFILE, max_examples=examples(_DEFAULT), deadline=None)
    settings.load_profile(PROFILE)
