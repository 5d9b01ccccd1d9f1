"""
Which requests a service answers at all: the door that every request passes, on the long and on the short way.

A server on this machine can be reached by every web page that this machine's browser shows. What a page may do is
decided by three headers that its script cannot choose:

*Host.* A page whose name resolves to this machine (DNS rebinding) is of the same origin as this server, but its name is
in ``Host``. So a request must name the server by a loopback name, by the address at which it arrived, or by a name in
``http_server.hosts``.

*Origin.* A browser sends it with every request to another origin that its page could read, and with every POST. It
must be this server's own, or, where spans are sent, one of ``http_server.allowed_origins``. Programs send none.

*Content-Type.* A browser asks before it sends a type that no form has. So the types of forms are refused, and a body
without a type, or with the one that curl and Python's urllib send if they are told none, is taken only from a request
that no browser has made.

Then the token or key is checked (``service/credentials.py``), or the cookie that stands for it (``service/login.py``),
and whether it has the scope that the request needs. Where OTLP is posted, the token may also be the password of basic
authentication, because some exporters know no other. A browser sends a cookie with every
request, whichever page makes it, so a method that changes something needs this server's own ``Origin`` beside it, and a
request that the page of another origin makes is answered as if it had no cookie.

``Admission.admit`` is the one place for all of this.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from tokentrace.access import Scope, needed_scope
from tokentrace.config import Settings
from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.records import BATCH_TYPE
from tokentrace.service.audit import KEY_ID, audited
from tokentrace.service.credentials import Credentials, Grant, OverRate
from tokentrace.service.login import Login
from tokentrace.service.otlp_answers import MEDIA, OTLP_PATHS, encoding_of
from tokentrace.service.web import refusal

#: Key of the scope of an admitted request: True if requests need a token or a key.
NEEDS_TOKEN = "tokentrace.needs_token"
OPEN_PATHS = ("/healthz", "/readyz")
#: Paths below these take spans from pages of ``http_server.allowed_origins``, besides those of ``Admission``.
_SPANS_BELOW = ("/api/traces/",)
_READ = frozenset({b"host", b"origin", b"content-type", b"authorization", b"cookie", b"sec-fetch-site"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HAVE_BODIES = frozenset({"POST", "PUT", "PATCH"})
_JSON = b"application/json"
_TAKEN = frozenset({_JSON, b"text/json", BATCH_TYPE.encode()})
#: What curl and Python's urllib send with a body if they are told no type; a form of a page sends it too.
_UNTOLD = frozenset({b"", b"application/x-www-form-urlencoded"})
#: ``Sec-Fetch-Site`` of a request that a page of another origin made.
_FOREIGN = frozenset({b"cross-site", b"same-site"})
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{0,5})?")
#: Most characters of a path that a refusal shows.
_MOST_SHOWN = 100
#: Most values of ``Host`` that are remembered as good.
_MOST_HOSTS = 64
#: The answer to a browser's question whether a page may post; the browser remembers it for ten minutes.
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Encoding, Content-Type, Idempotency-Key, "
    "X-Service-Name, X-Session-Id",
    "Access-Control-Max-Age": "600",
}
#: Headers of an answer that such a page may read.
_SHOWN_HEADERS = "Retry-After, X-Session-Id, X-Trace-Id"
_ORIGIN_HELP = "http_server.public_url and http_server.allowed_origins say which pages may ask"


class Admission:
    """
    What a service asks of every request.

    Attributes:
        open_paths: Paths that need no token.
        allowed_origins: Other origins whose pages may send spans.
        login: Makes and checks the cookies that stand for a token or key; None = no cookie is taken.

    Args:
        credentials: The token and keys, one of which every path except *open_paths* needs if there are any.
        hosts: Names and addresses of this server besides the loopback names.
        public_url: Origin under which browsers reach this server, if a proxy stands in front; "" = what ``Host`` says.
        allowed_origins: Other origins whose pages may send spans.
        spans_paths: Paths to which such pages may post, besides those below ``/api/traces/``.
        login: As the attribute.
    """

    def __init__(
        self,
        *,
        credentials: Credentials | None = None,
        open_paths: Collection[str] = OPEN_PATHS,
        hosts: Iterable[str] = (),
        public_url: str = "",
        allowed_origins: Iterable[str] = (),
        spans_paths: Iterable[str] = (),
        login: Login | None = None,
    ) -> None:
        self.login = login
        self.open_paths = frozenset(open_paths)
        self._credentials = credentials or Credentials()
        self._hosts = frozenset(_plain(host) for host in hosts)
        self._public_origin = public_url.encode()
        self.allowed_origins = frozenset(origin.encode() for origin in allowed_origins)
        self._spans_paths = frozenset(spans_paths)
        self._good_hosts: set[bytes] = set()

    @classmethod
    def of(
        cls,
        settings: Settings,
        addresses: Iterable[str] = (),
        login: Login | None = None,
        credentials: Credentials | None = None,
    ) -> Admission:
        """
        Return the admission of a service with *settings* and *login* that listens on *addresses*.

        Args:
            credentials: What it takes; None = the token of *settings* only.
        """
        http = settings.http_server
        return cls(
            credentials=credentials or Credentials(http.auth_token, settings.nats.project),
            open_paths=settings.open_paths,
            hosts=[*http.hosts, *http.public_hosts, *addresses],
            public_url=http.public_url.removesuffix("/"),
            allowed_origins=http.allowed_origins,
            spans_paths=(http.ingest_path, "/mist", *OTLP_PATHS),
            login=login,
        )

    @property
    def needs_token(self) -> bool:
        """True if requests need a token or a key."""
        return self._credentials.needed

    def opening(self, paths: Iterable[str]) -> Admission:
        """Return the same admission, in which *paths* need no token either."""
        other = object.__new__(Admission)
        other.__dict__.update(self.__dict__, open_paths=self.open_paths.union(paths))
        return other

    def admit(self, scope: ASGIScope) -> Response | None:
        """Return the refusal of a request; None = it may be answered."""
        sent = {name: value for name, value in scope["headers"] if name in _READ}
        host = sent.get(b"host")
        if host not in self._good_hosts and not self._is_served(host, scope):
            if host is None:
                return refusal(scope, "Host: is missing", 400)
            return refusal(scope, f"Host: {_shown(host)} is not served here; http_server.hosts lists more names", 403)
        origin = sent.get(b"origin")
        if origin is not None and not self._is_own(origin, host, scope) and not self.is_allowed(origin, scope):
            return refusal(scope, f"Origin: {_shown(origin)} is another than this server's; {_ORIGIN_HELP}", 403)
        if scope["method"] in _HAVE_BODIES:
            content_type = sent.get(b"content-type", b"")
            if content_type != _JSON:
                site = sent.get(b"sec-fetch-site", b"")
                if origin is None and site in _FOREIGN:
                    return refusal(scope, f"Sec-Fetch-Site: {_shown(site)}: {_ORIGIN_HELP}", 403)
                wanted = _wanted(content_type, scope["path"], from_browser=origin is not None or bool(site))
                if wanted:
                    return refusal(scope, f"Content-Type: {_shown(content_type)} is not taken, send {wanted}", 415)
        if scope["path"] not in self.open_paths and self._credentials.needed:
            return self._check_token(sent, scope)
        return None

    def is_audited(self, scope: ASGIScope) -> bool:
        """Return True if the request changes something, so that who asked is logged."""
        return (
            scope["method"] not in _SAFE
            and scope["path"] not in self.open_paths
            and needed_scope(scope["method"], scope["path"], self._spans_paths) == "admin"
        )

    def authorize(self, authorization: bytes, wanted: Scope, what: str, *, basic: bool) -> None:
        """
        Check the token or key in the header *authorization*, if one is needed.

        Args:
            wanted: The scope that it must have.
            what: What it is for, such as ``POST /v1/traces``.
            basic: It may also be the password of a user.

        Raises:
            Rejected: 401, it is missing or not good; 403, it does not allow this.
            OverRate: It is used too often.
        """
        if self._credentials.needed:
            self._find(authorization, basic=basic).check(wanted, what)

    def _find(self, authorization: bytes, *, basic: bool) -> Grant:
        scheme, _, token = authorization.partition(b" ")
        scheme, token = scheme.lower(), token.strip()
        if scheme == b"basic" and basic:
            scheme, token = b"bearer", _password(token)
        if scheme != b"bearer":
            raise Rejected("missing or wrong bearer token", status=401)
        return self._credentials.find(token)

    def _check_token(self, sent: Mapping[bytes, bytes], scope: ASGIScope) -> Response | None:
        """Return the refusal of a request whose headers *sent* have neither a good token or key nor a good cookie."""
        method, path = scope["method"], scope["path"]
        wanted, what = needed_scope(method, path, self._spans_paths), f"{method} {shorten(path, _MOST_SHOWN)}"
        authorization = sent.get(b"authorization", b"")
        try:
            grant = None
            if not authorization and self.login is not None and sent.get(b"sec-fetch-site") not in _FOREIGN:
                cookies = sent.get(b"cookie", b"")
                grant = self.login.grant_of(scope, cookies) if cookies else None
                origin = sent.get(b"origin")
                is_own = origin and self._is_own(origin, sent.get(b"host"), scope)
                if grant is not None and method not in _SAFE and not is_own:
                    return refusal(scope, "Origin: is missing or not this server's, and a cookie needs it", 403)
            grant = grant or self._find(authorization, basic=path in OTLP_PATHS)
            scope[KEY_ID] = grant.id
            grant.check(wanted, what)
        except OverRate as exc:
            return refusal(scope, str(exc), exc.status, {"Retry-After": str(exc.retry_after_s)})
        except Rejected as exc:
            challenge = {"WWW-Authenticate": "Bearer"} if exc.status == 401 else {}
            return refusal(scope, str(exc), exc.status, challenge)
        return None

    def is_allowed(self, origin: bytes, scope: ASGIScope) -> bool:
        """Return True if a page of another *origin* may send the spans of this request."""
        if origin not in self.allowed_origins or scope["method"] not in ("POST", "OPTIONS"):
            return False
        path: str = scope["path"]
        return path in self._spans_paths or path.startswith(_SPANS_BELOW)

    def _is_served(self, host: bytes | None, scope: ASGIScope) -> bool:
        """Return True if *host* names this server; a client of HTTP/1.0, which no browser is, need not name it."""
        if host is None:
            return str(scope.get("http_version", "1.1")) < "1.1"
        match = _HOST.fullmatch(host.decode("latin-1").lower())
        if match is None:
            return False
        name = _plain(match[1] or match[2])
        server = scope.get("server") or ("", 0)
        if not (_is_loopback(name) or name in self._hosts or name == _plain(str(server[0]))):
            return False
        if len(self._good_hosts) < _MOST_HOSTS:
            self._good_hosts.add(host)
        return True

    def _is_own(self, origin: bytes, host: bytes | None, scope: ASGIScope) -> bool:
        own = self._public_origin or scope.get("scheme", "http").encode() + b"://" + (host or b"").lower()
        return origin == own


class Door:
    """An application that passes to *app* the requests that *admission* admits, and refuses the others."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app, self._admission = app, admission

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        admission = self._admission
        if admission.allowed_origins:
            origin = next((value for name, value in scope["headers"] if name == b"origin"), b"")
            if admission.is_allowed(origin, scope):
                send = _readable_by(origin, send)
                if scope["method"] == "OPTIONS":
                    await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, send)
                    return
        refusal = admission.admit(scope)
        if admission.is_audited(scope):
            send = audited(scope, send)
        if refusal is None:
            scope[NEEDS_TOKEN] = admission.needs_token
            await self._app(scope, receive, send)
        else:
            await refusal(scope, receive, send)


def _readable_by(origin: bytes, send: Send) -> Send:
    """Return *send* with the headers that let a page of *origin* read the answer; no cookie is ever allowed."""
    shown = [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _SHOWN_HEADERS.encode()),
        (b"vary", b"Origin"),
    ]

    async def readable(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *shown]
        await send(message)

    return readable


def _wanted(content_type: bytes, path: str, *, from_browser: bool) -> str:
    """Return which types *path* takes; "" = *content_type* is one of them."""
    if path in OTLP_PATHS:
        return "" if encoding_of(content_type.decode("latin-1")) else " or ".join(MEDIA.values())
    media = content_type.partition(b";")[0].strip().lower()
    is_taken = not from_browser if media in _UNTOLD else media in _TAKEN or media.endswith(b"+json")
    return "" if is_taken else "application/json"


def _password(sent: bytes) -> bytes:
    """Return the password of basic authentication; b"" = *sent* holds none."""
    try:
        return base64.b64decode(sent, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _plain(name: str) -> str:
    """Return a name or an address in the one spelling in which it is compared."""
    name = name.strip("[]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _shown(value: bytes) -> str:
    return quoted(value.decode("latin-1"))
