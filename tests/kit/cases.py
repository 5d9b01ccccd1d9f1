"""Tables of cases: one test checks all of them and names each that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def numbered(values: Iterable[T]) -> dict[str, T]:
    """Return *values* with a name for each: its number and the start of its text."""
    return {f"{number}: {value!r:.80}": value for number, value in enumerate(values)}


def check_all(cases: Mapping[str, T], check: Callable[[T], object]) -> None:
    """Run *check* with every case, then fail with the name and the error of each case that failed."""
    failures = []
    for name, case in cases.items():
        try:
            check(case)
        except (AssertionError, OSError, LookupError, ValueError) as exc:
            failures.append(f"{name}: {type(exc).__name__}: {str(exc)[:1000]}")
    assert cases, "no case"
    assert not failures, f"{len(failures)} of {len(cases)} cases failed:\n" + "\n".join(failures)
