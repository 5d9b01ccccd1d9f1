"""How many examples the property tests try: few while someone edits, some in every run, all of them on request."""

from __future__ import annotations

import os

from hypothesis import settings

#: ``fast``: while editing. ``ci``: every ``make test``. ``all``: ``make test-all``. ``nightly``: ten times as many.
PROFILE = os.environ.get("TOKENTRACE_PROFILE", "ci")
_SHARES = {"fast": 0.03, "ci": 0.3, "all": 1.0, "nightly": 10.0}
_LEAST = {"fast": 2, "ci": 10, "all": 1, "nightly": 1}
_DEFAULT = 100


def examples(count: int) -> int:
    """Return the number of examples to try in this run, of a test that tries *count* of them in a whole run."""
    return max(round(count * _SHARES[PROFILE]), min(count, _LEAST[PROFILE]))


def load_profile() -> None:
    """Use the profile for tests that do not set a number of their own."""
    settings.register_profile(PROFILE, max_examples=examples(_DEFAULT), deadline=None)
    settings.load_profile(PROFILE)
