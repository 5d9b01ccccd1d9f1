"""The attributes of a record: own keys for facts, the emitter's other attributes, and own keys for content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Most attributes of a mapped span; a span that turns out to be told twice gets some more.
MAX_KEPT = 120


def merged(
    facts: Mapping[str, Any], free: Mapping[str, Any], content: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """
    Return the attributes of a record: *facts*, then *free*, then *content*, as many as fit.

    A fact wins over an attribute of the same name. If there are too many, content is left out first.

    Args:
        notes: How many were left out is appended.
    """
    attributes = {**free, **facts, **content}
    if len(attributes) <= MAX_KEPT:
        return attributes
    attributes = {**facts, **attributes}
    notes.append(f"attributes: {len(attributes) - MAX_KEPT} of {len(attributes)} left out")
    return dict(list(attributes.items())[:MAX_KEPT])
