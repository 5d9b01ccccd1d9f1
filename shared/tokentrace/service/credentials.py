"""
What a request may present to be answered: the token of the configuration, or a key of the pipeline.

The keys are in the bucket ``tt_keys``. Each service reads it at its start and every two seconds, so a revoked key ends
within five seconds everywhere. While the broker is away, the keys that were read last count.

As soon as there is a token or any key, requests need one. A key that has ended or cannot be read counts for that, so
revoking the last one does not open the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import msgspec
import structlog

from tokentrace.access import SCOPES, ApiKey, Scope, digest_of, id_of, may
from tokentrace.bad_data import reading
from tokentrace.bus import Bus, Entry, subjects
from tokentrace.errors import Rejected, TokentraceError
from tokentrace.service.audit import log as audit
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import MINUTE

log = structlog.stdlib.get_logger(__name__)

#: The id of the token of the configuration.
TOKEN_ID = "token"
#: Seconds between two looks at the bucket.
_LOOK_S = 2.0
#: A use of a key is written at most so often.
_WRITE_USE_NS = MINUTE
_KEY, _USED = "key.", "used."

_decoder = msgspec.json.Decoder(ApiKey)


class Grant(NamedTuple):
    """
    What a token or a key allows.

    Attributes:
        id: The id of the key; ``TOKEN_ID`` for the token.
        digest: SHA-256 of the token or key.
    """

    id: str
    scopes: tuple[Scope, ...]
    digest: bytes

    def check(self, wanted: Scope, what: str) -> None:
        """
        Check that *what*, such as ``PUT /alerts``, which needs the scope *wanted*, is allowed.

        Raises:
            Rejected: 403, it is not.
        """
        if not may(self.scopes, wanted):
            raise Rejected(
                f"key {self.id}: has no scope {wanted}, which {what} needs; it has {', '.join(self.scopes)}", status=403
            )


class OverRate(Rejected):
    """A key is used more often than it may; *retry_after_s* says when the next request is heard."""

    def __init__(self, key: ApiKey, retry_after_s: int) -> None:
        super().__init__(f"key {key.id}: over {key.rate} requests a second; wait {retry_after_s} s", status=429)
        self.retry_after_s = retry_after_s


class Credentials:
    """
    The token and the keys that a service takes.

    Args:
        token: The token of the configuration; "" = none.
        project: The project of this server; a key of another one is refused.
        bus: Where the keys are; None = there are none.
        elapsed: Returns a time that never goes back, seconds.
    """

    def __init__(
        self,
        token: str = "",
        project: str = subjects.DEFAULT_PROJECT,
        bus: Bus | None = None,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._token = token.encode()
        self._token_grant = Grant(TOKEN_ID, SCOPES, digest_of(self._token))
        self._project, self._bus, self._elapsed = project, bus, elapsed
        #: Id -> (requests that the key may make at once, when that was so).
        self._left: dict[str, tuple[float, float]] = {}
        self._keys: Mapping[str, ApiKey] = {}
        self._has_keys = False
        self._sequence = -1
        self._used: dict[str, int] = {}
        self._written: dict[str, int] = {}

    @property
    def needed(self) -> bool:
        """True if requests need a token or a key."""
        return bool(self._token) or self._has_keys

    def find(self, sent: bytes) -> Grant:
        """
        Return what the token or key *sent* allows.

        Raises:
            Rejected: 401, it is wrong, revoked or expired; 403, it is of another project.
            OverRate: 429, it is used more often than it may.
        """
        if self._token and hmac.compare_digest(sent, self._token):
            return self._token_grant
        key = self._keys.get(id_of(sent))
        digest = digest_of(sent)
        if key is None or not hmac.compare_digest(digest.hex(), key.sha256):
            raise Rejected("missing or wrong bearer token", status=401)
        return self._grant(key, digest)

    def of_id(self, id: str) -> Grant:
        """
        Return what the key *id* allows, or the token for ``TOKEN_ID``; for cookies, which hold the id only.

        Raises:
            Rejected: As ``find``.
        """
        if id == TOKEN_ID and self._token:
            return self._token_grant
        key = self._keys.get(id)
        if key is None:
            raise Rejected("missing or wrong bearer token", status=401)
        return self._grant(key, bytes.fromhex(key.sha256))

    def _grant(self, key: ApiKey, digest: bytes) -> Grant:
        assert self._bus is not None
        now_ns = self._bus.clock.now_ns()
        if ended := key.ended(now_ns):
            raise Rejected(f"key {key.id}: {ended}", status=401)
        if key.project != self._project:
            raise Rejected(f"key {key.id}: is of the project {key.project}, and this is {self._project}", status=403)
        if key.rate:
            self._count(key)
        self._used[key.id] = now_ns
        return Grant(key.id, key.scopes, digest)

    def _count(self, key: ApiKey) -> None:
        """Count a request of a key with a limit, which may save up the requests of one second."""
        now = self._elapsed()
        left, at = self._left.get(key.id, (float(key.rate), now))
        left = min(left + (now - at) * key.rate, float(key.rate))
        if left < 1.0:
            self._left[key.id] = left, now
            raise OverRate(key, 1)
        self._left[key.id] = left - 1.0, now

    async def read(self) -> None:
        """
        Read the keys, if the bucket has changed.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        if self._bus is None:
            return
        sequence = (await self._bus.state(f"KV_{subjects.KEYS}")).last_sequence
        if sequence != self._sequence:
            entries = await self._bus.kv(subjects.KEYS).items()
            before, self._keys = self._keys, read_keys(self._bus, entries)
            self._say_changes(before)
            # A record that cannot be read was a key too, and must not open the server.
            self._has_keys = any(name.startswith(_KEY) for name in entries)
            self._sequence = sequence

    def _say_changes(self, before: Mapping[str, ApiKey]) -> None:
        """Log the keys that were made, replaced or revoked since the bucket was read *before*."""
        if self._sequence < 0:
            return
        for key in self._keys.values():
            old = before.get(key.id)
            if old is None:
                audit.info("the key %s was made", key.id, called=key.name, scopes=",".join(key.scopes))
            elif old != key:
                audit.info("the key %s %s", key.id, "was revoked" if key.revoked_ns else "was changed", called=key.name)

    async def follow(self, stopping: asyncio.Event) -> None:
        """Read the keys again and write their last uses, until *stopping* is set."""
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _LOOK_S)
            try:
                await self.read()
                await self._write_uses()
            except TokentraceError as exc:
                log.debug("the keys were not read again: %s", exc)

    async def _write_uses(self) -> None:
        if self._bus is None:
            return
        for id, used_ns in list(self._used.items()):
            if used_ns - self._written.get(id, 0) >= _WRITE_USE_NS:
                await self._bus.kv(subjects.KEYS).put(_USED + id, str(used_ns).encode())
                self._written[id] = used_ns


async def make_credentials(token: str, project: str, bus: Bus, stopping: asyncio.Event) -> Credentials:
    """Return the credentials of a server after reading its keys; raise ``Stopped`` if *stopping* is set meanwhile."""
    credentials = Credentials(token, project, bus)
    await unless_stopped(stopping, until_available(credentials.read))
    return credentials


def record_of(id: str) -> str:
    """Return the name in the bucket of the record of the key *id*."""
    return _KEY + id


def read_keys(bus: Bus, entries: Mapping[str, Entry]) -> dict[str, ApiKey]:
    """Return id -> key; entries that cannot be read are set aside."""
    keys = {}
    for name, entry in entries.items():
        if name.startswith(_KEY):
            with bus.set_aside.guard(subjects.KEYS, f"key {name} revision {entry.revision}"), reading("API key"):
                key = _decoder.decode(entry.value)
                if record_of(key.id) != name:
                    raise Rejected(f"is of the key {key.id}")
                keys[key.id] = key
    return keys


def read_uses(entries: Mapping[str, Entry]) -> dict[str, int]:
    """Return id -> when the key was last used, Unix nanoseconds, to a minute or so."""
    uses = {}
    for name, entry in entries.items():
        if name.startswith(_USED) and entry.value.isdigit():
            uses[name.removeprefix(_USED)] = int(entry.value[:20])
    return uses


def encode_key(key: ApiKey) -> bytes:
    """Return the record of *key*."""
    return msgspec.json.encode(key)


async def change_key(bus: Bus, id: str, **fields: int) -> ApiKey:
    """
    Change *fields* of the record of the key *id*, and return it.

    Raises:
        Rejected: There is no such key.
        Conflict: It was changed by another command meanwhile.
        Unavailable: The broker cannot be reached.
    """
    bucket = bus.kv(subjects.KEYS)
    entry = await until_available(partial(bucket.get, record_of(id)))
    keys = read_keys(bus, {record_of(id): entry}) if entry is not None else {}
    if entry is None or id not in keys:
        raise Rejected(f"{id}: there is no such key; `tokentrace keys list` shows those there are")
    changed = msgspec.structs.replace(keys[id], **fields)
    await bucket.update(record_of(id), encode_key(changed), entry.revision)
    return changed
