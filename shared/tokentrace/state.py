"""A machine's state, captured at once and encoded later in another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Part(NamedTuple):
    """
    A part of a snapshot that rarely changes.

    Attributes:
        revision: Increases with every change; 0 = unchanged since it was restored.
        encode: Returns the part's bytes as of the capture; any thread may call it. None = this revision is saved.
    """

    revision: int
    encode: Callable[[], bytes] | None


class Saved(NamedTuple):
    """
    A captured state.

    Attributes:
        state: Returns the bytes of everything that changes with nearly every message; any thread may call it.
        parts: Name -> part that rarely changes; a revision that is saved already is not saved again.
    """

    state: Callable[[], bytes]
    parts: Mapping[str, Part] = {}
