"""
Login: a browser sends the token or a key once and gets a cookie, which then stands for it on every route.

The cookie is ``HttpOnly``, so no script can read it, and ``SameSite=Strict``. It holds the id of the key, the project,
the scopes and the end of the login, and a code (HMAC-SHA-256) over them. The secret of the code is kept in ``tt_meta``
for all replicas, and the hash of the token or key is part of the code's key: with another token no earlier cookie is
valid. What a cookie allows is looked up at every use, so it ends with its key.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta
from starlette.types import Scope

from tokentrace.access import id_of
from tokentrace.bus import Bus, subjects
from tokentrace.errors import Conflict, Rejected, Unavailable
from tokentrace.service.credentials import TOKEN_ID, Credentials, Grant, OverRate
from tokentrace.service.retry import until_available

#: Key of ``tt_meta`` whose value is the secret.
SECRET_KEY = "cookie_secret"
_SECRET_BYTES = 32
#: How long a login lasts, seconds.
LASTS_S = 12 * 3600
#: Wrong tokens that one address may send in ``_WITHIN_S`` seconds.
_MOST_WRONG, _WITHIN_S = 10, 60.0
#: Most addresses whose wrong tokens are remembered.
_MOST_ADDRESSES = 1024
#: The scope in the cookie of the token.
_ALL = "all"


class _Claims(msgspec.Struct, array_like=True):
    """What a cookie says; *key* is an id, and *until* is its end, Unix seconds."""

    key: str
    project: str
    scope: str
    until: int


class LoginInput(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a login."""

    token: Annotated[str, Meta(max_length=4096)]


class TooMany(Rejected):
    """Too many wrong tokens came from one address; *retry_after_s* says when the next try is heard."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"token: over {_MOST_WRONG} wrong ones in {_WITHIN_S:.0f} s; wait {retry_after_s} s", status=429
        )
        self.retry_after_s = retry_after_s


class Login:
    """
    Makes and checks the cookies of a server.

    Attributes:
        secret: The secret that all replicas share; None = it is not known yet, and no cookie is valid.

    Args:
        credentials: The token and the keys that log in.
        secret: As the attribute.
        project: The project whose data the server shows.
        public_url: Origin under which browsers reach this server, if a proxy stands in front; "" = what ``Host`` says.
        now: Returns the time, Unix seconds.
        elapsed: Returns a time that never goes back, seconds.
    """

    def __init__(
        self,
        credentials: Credentials,
        secret: bytes | None = None,
        *,
        project: str = subjects.DEFAULT_PROJECT,
        public_url: str = "",
        now: Callable[[], float],
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self.secret = secret
        self._credentials = credentials
        self._project = project
        self._public = urlsplit(public_url)
        self._now, self._elapsed = now, elapsed
        #: Address -> times of its wrong tokens; the address that was wrong last is at the end.
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    @property
    def needed(self) -> bool:
        """True if the server needs a token or a key."""
        return self._credentials.needed

    def enter(self, token: str, scope: Scope) -> tuple[str, int]:
        """
        Return the value of ``Set-Cookie`` for a request that sent *token*, and the end of the login, Unix seconds.

        Raises:
            TooMany: The address of the request sent too many wrong tokens.
            Rejected: 401, the token is wrong, or a key that has ended; 403, it is a key of another project.
            OverRate: The key is used more often than it may.
            Unavailable: The secret of the cookies is not known yet.
        """
        if self.secret is None:
            raise Unavailable("session: the secret of the cookies is not known yet", retry_after_s=2)
        address = str((scope.get("client") or ("", 0))[0])
        now = self._elapsed()
        wrong = [at for at in self._wrong.get(address, ()) if now - at < _WITHIN_S]
        if len(wrong) >= _MOST_WRONG:
            raise TooMany(max(1, round(_WITHIN_S - (now - wrong[0]))))
        try:
            grant = self._credentials.find(token.encode())
        except OverRate:
            raise
        except Rejected as exc:
            self._wrong[address] = [*wrong, now]
            self._wrong.move_to_end(address)
            if len(self._wrong) > _MOST_ADDRESSES:
                self._wrong.popitem(last=False)
            if id_of(token.encode()):
                raise
            raise Rejected("token: is wrong", status=exc.status) from exc
        self._wrong.pop(address, None)
        until = int(self._now()) + LASTS_S
        scopes = _ALL if grant.id == TOKEN_ID else "+".join(grant.scopes)
        claims = msgspec.json.encode(_Claims(grant.id, self._project, scopes, until))
        value = f"{_text(claims)}.{_text(_code(self.secret, grant.digest, claims))}"
        return f"{self.cookie_name(scope)}={value}; Max-Age={LASTS_S}{self._rules(scope)}", until

    def leave(self, scope: Scope) -> str:
        """Return the value of ``Set-Cookie`` that removes the cookie from the browser."""
        return f"{self.cookie_name(scope)}=; Max-Age=0{self._rules(scope)}"

    def grant_of(self, scope: Scope, cookies: bytes) -> Grant | None:
        """Return what the cookie of this server in *cookies*, a ``Cookie`` header, allows; None = none is valid."""
        name = self.cookie_name(scope).encode()
        for part in cookies.split(b";"):
            found, _, value = part.strip().partition(b"=")
            if found == name and (grant := self._grant(value)) is not None:
                return grant
        return None

    def cookie_name(self, scope: Scope) -> str:
        """
        Return the name of the cookie: it has the port, because browsers share cookies between the ports of a host.

        On https it has the prefix with which a browser takes it only from this very host.
        """
        if self._public.scheme:
            port = self._public.port or (443 if self._public.scheme == "https" else 80)
        else:
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            after = host.rpartition(b":")[2]
            port = int(after) if after.isdigit() else 443 if self._is_secure(scope) else 80
        return f"{'__Host-' if self._is_secure(scope) else ''}tokentrace-{port}"

    def _is_secure(self, scope: Scope) -> bool:
        return (self._public.scheme or scope.get("scheme", "http")) == "https"

    def _rules(self, scope: Scope) -> str:
        return "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if self._is_secure(scope) else "")

    def _grant(self, value: bytes) -> Grant | None:
        text, _, code = value.partition(b".")
        if self.secret is None:
            return None
        try:
            claims, sent = _bytes(text), _bytes(code)
            said = msgspec.json.decode(claims, type=_Claims)
            grant = self._credentials.of_id(said.key)
        except OverRate:
            raise
        except (ValueError, Rejected):
            return None
        if not hmac.compare_digest(sent, _code(self.secret, grant.digest, claims)):
            return None
        return grant if said.project == self._project and said.until > self._now() else None


def _code(secret: bytes, digest: bytes, claims: bytes) -> bytes:
    return hmac.digest(hmac.digest(secret, digest, "sha256"), claims, "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: bytes) -> bytes:
    """Return the bytes that *text* stands for; raise ValueError if it is not base64."""
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


async def agreed_secret(bus: Bus) -> bytes:
    """Return the secret of the cookies of all replicas; the first one makes it."""
    meta = bus.kv(subjects.META)
    # Read before writing, because on a full disk only reading works.
    entry = await until_available(partial(meta.get, SECRET_KEY))
    if entry is None:
        made = secrets.token_bytes(_SECRET_BYTES)
        try:
            await until_available(partial(meta.create, SECRET_KEY, made))
        except Conflict:
            entry = await until_available(partial(meta.get, SECRET_KEY))
        if entry is None:
            return made
    if len(entry.value) < _SECRET_BYTES:
        bus.set_aside.note(subjects.META, f"key {SECRET_KEY} revision {entry.revision}", "too short; a new one is made")
        made = secrets.token_bytes(_SECRET_BYTES)
        await until_available(partial(meta.update, SECRET_KEY, made, entry.revision))
        return made
    return entry.value
