"""State captured in a moment, to be made into bytes for a snapshot later and in any thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """
    A piece of a snapshot that rarely changes.

    Attributes:
        revision: Rises with every change; 0 = as it was restored.
        encode: Makes its bytes, in any thread, from what it was when it was captured; None = that revision is saved.
    """

    revision: int
    encode: Callable[[], bytes] | None


class Saved(NamedTuple):
    """
    A snapshot: captured in a moment, made into bytes later and in any thread.

    Attributes:
        state: Makes everything that changes all the time.
        parts: Name -> what rarely changes; a revision that was saved before need not be saved again.
    """

    state: Callable[[], bytes]
    parts: Mapping[str, Part] = {}
