"""HTTP requests of the client: one keep-alive connection, and another attempt for what may succeed later."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tokentrace.client import lifecycle
from tokentrace.errors import ConfigError, Rejected, Unavailable
from tokentrace.shown import shown_url

if TYPE_CHECKING:
    import http.client

#: HTTP statuses below 500 that ask for another attempt: request timeout, too early, too many requests.
_RETRY_STATUSES = (408, 425, 429)
#: How much of an answer is read, bytes.
_MAX_ANSWER_BYTES = 1024 * 1024
#: A longer Retry-After counts as this one, seconds.
_MAX_RETRY_AFTER_S = 600
#: Connections of the parent in a forked child. They are never collected, because a thread of the parent may have held a
#: lock of theirs at the fork.
_of_parent: list[object] = []


class Retries(NamedTuple):
    """
    How often a request is repeated.

    Attributes:
        most: Most attempts after the first one.
        first_pause_s: Pause before the first of them, seconds; it doubles with each.
    """

    most: int
    first_pause_s: float


class Poster:
    """
    Sends POST requests to one URL. Only one thread may use it at a time.

    Args:
        url: ``http(s)://host:port/path``.
        headers: Headers of each request.
        timeout_s: How long one attempt waits for the server, seconds.
        path: The path, if *url* names none.

    Raises:
        ConfigError: *url* or a header cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float, *, path: str = "/") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigError("transport: the host or port of the URL cannot be read") from exc
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("transport: the URL must start with http:// or https:// and name a host")
        if port == 0:
            raise ConfigError("transport: the URL names port 0, which cannot be connected to")
        if "@" in parts.netloc:
            raise ConfigError("transport: the URL must not contain a user or a password; use a header")
        self._tls, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = (path if parts.path in ("", "/") else parts.path) + (f"?{parts.query}" if parts.query else "")
        if not (self._path.isascii() and self._path.isprintable() and " " not in self._path):
            raise ConfigError("transport: the path of the URL contains characters that must be percent-encoded")
        self.shown = shown_url(url)
        self._headers = {name: _checked(name, value) for name, value in headers.items()}
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def post(
        self,
        body: bytes,
        headers: Mapping[str, str],
        retries: Retries,
        pause: Callable[[float], bool],
        remaining: Callable[[float], float],
        on_trouble: Callable[[str], None] = lambda reason: None,
    ) -> bytes:
        """
        Send *body*, several times if need be, and return the answer.

        Args:
            headers: More headers.
            pause: Waits for so many seconds; False = the time is up.
            remaining: Limits a time in seconds to what is left.
            on_trouble: Called with the reason of each failed attempt that is followed by another.

        Raises:
            Unavailable: No attempt was accepted.
            Rejected: The server refuses the request; ``status`` is 400-499, or 400 for a redirect.
        """
        for attempt in range(retries.most + 1):
            try:
                return self._once(body, headers, remaining)
            except Unavailable as exc:
                wait = max(retries.first_pause_s * 2**attempt, exc.retry_after_s)
                if attempt == retries.most:
                    raise
                on_trouble(str(exc))
                if not pause(wait):
                    raise
        raise AssertionError("unreachable")

    def _once(self, body: bytes, headers: Mapping[str, str], remaining: Callable[[float], float]) -> bytes:
        with lifecycle.importing:
            import encodings.idna  # noqa: F401 - sockets import it when they first look up a name
            import http.client

            if self._tls:
                import ssl  # noqa: F401 - for ``_connect``
        while True:
            kept, self._connection = self._connection, None
            connection = kept or self._connect()
            connection.timeout = remaining(self._timeout_s)
            try:
                if kept is not None and kept.sock is not None:
                    kept.sock.settimeout(connection.timeout)
                connection.request("POST", self._path, body, {**self._headers, **headers})
                response = connection.getresponse()
                answer = response.read(_MAX_ANSWER_BYTES)
                if response.isclosed() and not response.will_close:
                    self._connection = connection
                else:
                    connection.close()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as exc:
                connection.close()
                if kept is not None:
                    continue  # the server had closed the idle connection
                raise self._no_answer(exc) from exc
            except (OSError, http.client.HTTPException) as exc:
                connection.close()
                raise self._no_answer(exc) from exc
            return self._answer(response.status, answer, response.getheader("Retry-After"))

    def _no_answer(self, exc: BaseException) -> Unavailable:
        detail = f": {exc.strerror}" if isinstance(exc, OSError) and exc.strerror else ""
        return Unavailable(f"POST to {self.shown}: {type(exc).__name__}{detail}", retry_after_s=0)

    def _answer(self, status: int, answer: bytes, retry_after: str | None) -> bytes:
        if 200 <= status < 300:
            return answer
        text = f"POST to {self.shown}: {status} {answer[:120]!r}"
        if status >= 500 or status in _RETRY_STATUSES:
            raise Unavailable(text, retry_after_s=_seconds(retry_after))
        raise Rejected(text, status=status if 400 <= status < 500 else 400)

    def _connect(self) -> http.client.HTTPConnection:
        import http.client

        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port)
        import ssl

        return http.client.HTTPSConnection(self._host, self._port, context=ssl.create_default_context())

    def close(self) -> None:
        """Close the idle connection, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def forget(self) -> None:
        """Give the connection up in a forked child, without a word to the server, which the parent still talks to."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.sock is not None:
                os.close(connection.sock.detach())
            _of_parent.append(connection)


def _checked(name: str, value: str) -> str:
    if not name or not all(letter.isalnum() or letter in "!#$%&'*+-.^_`|~" for letter in name) or not name.isascii():
        raise ConfigError("transport: the name of a header is not a token of HTTP")
    if not value.isascii() or not value.replace("\t", " ").isprintable():
        raise ConfigError(f"transport: the header {name} contains characters that are not printable ASCII")
    return value


def _seconds(retry_after: str | None) -> int:
    """Return the seconds that the header Retry-After asks for, which holds them or an instant; 0 = none."""
    text = (retry_after or "").strip()
    if not text:
        return 0
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), _MAX_RETRY_AFTER_S)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0
    return min(max(round(seconds), 0), _MAX_RETRY_AFTER_S)
