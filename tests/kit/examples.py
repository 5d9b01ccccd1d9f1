"""How much the long tests try: little while someone edits, a part in every run, all of it on request."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import settings

T = TypeVar("T")

#: ``fast``: ``make test-fast``. ``ci``: ``make test``. ``all``: ``make test-all``. ``nightly``: ten times that.
PROFILE = os.environ.get("TOKENTRACE_PROFILE", "ci")
WHOLE = PROFILE in ("all", "nightly")
_SHARES = {"fast": 0.03, "ci": 0.3, "all": 1.0, "nightly": 10.0}
_LEAST = {"fast": 2, "ci": 4, "all": 1, "nightly": 1}
_DEFAULT = 100


def examples(count: int) -> int:
    """Return the number of examples to try in this run, of a test that tries *count* of them in a whole run."""
    return max(round(count * _SHARES[PROFILE]), min(count, _LEAST[PROFILE]))


def thinned(values: Sequence[T], dice: random.Random) -> Sequence[T]:
    """Return *values* in a whole run, else every third of them from a random start."""
    return values if WHOLE else values[dice.randrange(min(3, len(values))) :: 3]


def matrix(values: Sequence[T], short: int) -> Sequence[T]:
    """Return the parameters of a long test: *values* in a whole run, else the first *short* of them."""
    return values if WHOLE else values[:short]


def load_profile() -> None:
    """Use the profile for tests that do not set a number of their own."""
    settings.register_profile(PROFILE, max_examples=examples(_DEFAULT), deadline=None)
    settings.load_profile(PROFILE)
