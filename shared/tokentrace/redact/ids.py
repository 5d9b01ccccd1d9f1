"""The keyed hash that replaces ids of people and of their business, so that they can be grouped but not read."""

from __future__ import annotations

import hashlib
import hmac
import re

from tokentrace.redact.keys import words

#: What a hashed id begins with.
HASHED = "h_"
_HASHED = re.compile(r"h_[0-9a-f]{32}")
#: Ids of records and requests, which say nothing about a person and by which records are found.
_TECHNICAL = frozenset({"trace", "span", "parent", "session", "message", "response", "request", "correlation", "run"})


class IdHash:
    """
    A stable keyed hash: the first 128 bits of HMAC-SHA256, in hex, after ``h_``.

    Args:
        key: The secret key. Without it, the id of a hash can be found only by trying ids at the api.
    """

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __call__(self, id: str) -> str:
        """Return the hash of *id*; a text that is a hash, and "", are returned unchanged."""
        if not id or _HASHED.fullmatch(id):
            return id
        return HASHED + hmac.new(self._key, id.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()[:32]


def is_technical(key: str) -> bool:
    """Return True if *key*, which is that of an id, names a record or a request: ``trace_id``, ``requestId``."""
    parts = [part for part in words(key) if not part.isdigit()]
    owner = parts[-2] if len(parts) > 1 else parts[0].removesuffix("s").removesuffix("id") if parts else ""
    return owner in _TECHNICAL
