"""Computes the depth of spans below their roots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

#: (Trace id, span id): a span id is unique only within its trace.
Key = tuple[str, str]


class Node(Protocol):
    """What places a span in a tree."""

    @property
    def trace_id(self) -> str:
        """Id of its trace."""
        ...

    @property
    def span_id(self) -> str:
        """Id of the span."""
        ...

    @property
    def parent_span_id(self) -> str | None:
        """Id of its parent; None = it is a root."""
        ...


def depths(spans: Sequence[Node]) -> dict[Key, int]:
    """
    Return for each span the number of its ancestors that are in *spans*; in a cycle of parents one span gets 0.

    A parent is looked up in the trace of its child first, then in the other traces.
    """
    parent_of: dict[Key, str | None] = {(span.trace_id, span.span_id): span.parent_span_id for span in spans}
    elsewhere: dict[str, Key] = {}
    if len({span.trace_id for span in spans}) > 1:
        elsewhere = {span_id: (trace_id, span_id) for trace_id, span_id in parent_of}
    depth_of: dict[Key, int] = {}
    for key in parent_of:
        chain: list[Key] = []
        passed: set[Key] = set()
        at: Key | None = key
        while at is not None and at not in depth_of and at not in passed:
            chain.append(at)
            passed.add(at)
            parent = parent_of[at]
            if parent is None:
                at = None
            else:
                in_trace = (at[0], parent)
                at = in_trace if in_trace in parent_of else elsewhere.get(parent)
        below = depth_of[at] + 1 if at is not None and at in depth_of else 0
        for offset, member in enumerate(reversed(chain)):
            depth_of[member] = below + offset
    return depth_of
