"""Values within a response, which is an object of an SDK or its JSON as a dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any


def get(response: object, *names: str) -> Any:
    """Return the first value of *response* that is not None under *names*: keys of a mapping, else attributes."""
    for name in names:
        value = response.get(name) if isinstance(response, Mapping) else getattr(response, name, None)
        if value is not None:
            return value
    return None


def items(response: object, *names: str) -> Iterator[Any]:
    """Yield the elements of the list under *names*; nothing if there is no list."""
    value = get(response, *names)
    if isinstance(value, (list, tuple)):
        yield from value


def text(response: object, *names: str) -> str:
    """Return the text under *names*, that of an enumeration included; "" if there is none."""
    value = get(response, *names)
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, str) else ""
