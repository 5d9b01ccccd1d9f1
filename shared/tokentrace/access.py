"""
API keys: the form of a key, the record that is kept of it, and what it may do.

A key is ``tt_<id>_<secret>``: ten hexadecimal digits that name it, and 32 random bytes in base64. It is shown once,
when it is made. What is kept is its SHA-256: no slow hash is needed, because 32 random bytes cannot be guessed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Collection, Iterable
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from tokentrace.errors import Rejected, quoted

Scope = Literal["ingest", "read", "admin"]
#: ``ingest`` sends spans, scores and messages; ``read`` asks; ``admin`` changes rules, deletes, and does the other two.
SCOPES: tuple[Scope, ...] = get_args(Scope)
#: Length of an id and of the random part.
ID_BYTES, SECRET_BYTES = 5, 32
MAX_NAME = 100
MAX_RATE = 1_000_000

_FORM = re.compile(rb"tt_([0-9a-f]{10})_[A-Za-z0-9_-]{43}")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
#: Paths of POST requests that send something, besides those of spans, and that only ask.
_SENDS = ("/api/traces/", "/api/sessions/")
_SCORES = "/scores"
_ASKS = frozenset({"/alerts/preview"})


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is kept of a key.

    Attributes:
        id: Ten hexadecimal digits.
        name: What its owner calls it.
        project: The project that it is for.
        scopes: What it may do.
        sha256: SHA-256 of the key, hexadecimal.
        created_ns: When it was made, Unix nanoseconds.
        expires_ns: When it ends by itself, Unix nanoseconds; 0 = it does not.
        revoked_ns: When it was revoked, Unix nanoseconds; 0 = it was not.
        rate: Most requests a second, at each service; 0 = there is no limit.
    """

    id: Annotated[str, Meta(pattern="^[0-9a-f]{10}$")]
    name: Annotated[str, Meta(max_length=MAX_NAME)]
    project: str
    scopes: tuple[Scope, ...]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    created_ns: Annotated[int, Meta(ge=0)]
    expires_ns: Annotated[int, Meta(ge=0)] = 0
    revoked_ns: Annotated[int, Meta(ge=0)] = 0
    rate: Annotated[int, Meta(ge=0, le=MAX_RATE)] = 0

    def ended(self, now_ns: int) -> str:
        """Return why the key is no longer good at *now_ns*, as in "is revoked"; "" = it is good."""
        if self.revoked_ns and self.revoked_ns <= now_ns:
            return "is revoked"
        return "has expired" if self.expires_ns and self.expires_ns <= now_ns else ""


def make_key(
    name: str, project: str, scopes: Collection[str], *, random: bytes, now_ns: int, expires_ns: int = 0, rate: int = 0
) -> tuple[str, ApiKey]:
    """
    Return a key and what is to be kept of it.

    Args:
        scopes: What it may do, of ``SCOPES``.
        random: ``ID_BYTES + SECRET_BYTES`` random bytes.

    Raises:
        Rejected: The name is empty, long or not printable, or a scope is unknown.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise Rejected(f"name: {quoted(name)} is not a printable text of 1 to {MAX_NAME} characters")
    id, secret = random[:ID_BYTES].hex(), base64.urlsafe_b64encode(random[ID_BYTES:]).rstrip(b"=").decode()
    key = f"tt_{id}_{secret}"
    digest = digest_of(key.encode()).hex()
    return key, ApiKey(
        id=id,
        name=name,
        project=project,
        scopes=parse_scopes(scopes),
        sha256=digest,
        created_ns=now_ns,
        expires_ns=expires_ns,
        rate=rate,
    )


def parse_scopes(scopes: Iterable[str]) -> tuple[Scope, ...]:
    """
    Return *scopes* without repetitions, in the order of ``SCOPES``.

    Raises:
        Rejected: There is none, or one is unknown.
    """
    given = set(scopes)
    unknown = sorted(given.difference(SCOPES))
    if unknown or not given:
        what = f"{quoted(unknown[0])} is none" if unknown else "name one"
        raise Rejected(f"scopes: {what} of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in given)


def digest_of(key: bytes) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key).digest()


def id_of(key: bytes) -> str:
    """Return the id in *key*; "" = it has not the form of a key."""
    match = _FORM.fullmatch(key)
    return match[1].decode() if match else ""


def may(scopes: Collection[str], wanted: Scope) -> bool:
    """Return True if *scopes* allow what needs the scope *wanted*."""
    return wanted in scopes or "admin" in scopes


def needed_scope(method: str, path: str, spans_paths: Collection[str]) -> Scope:
    """
    Return the scope that a request needs.

    Args:
        spans_paths: The paths to which spans are posted.
    """
    if method in _SAFE:
        return "read"
    if method == "POST":
        if path in spans_paths or path == _SCORES or path.startswith(_SENDS):
            return "ingest"
        if path in _ASKS:
            return "read"
    return "admin"
