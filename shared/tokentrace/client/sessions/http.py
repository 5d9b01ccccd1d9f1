"""HTTP requests of the client of sessions: idle connections are kept, and belong to one process."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from tokentrace.client import lifecycle
from tokentrace.client.sessions.words import Json
from tokentrace.errors import ConfigError, Rejected, Unavailable, quoted, shorten
from tokentrace.shown import shown_url

if TYPE_CHECKING:
    from http.client import HTTPConnection

#: HTTP statuses below 500 that ask for another attempt: request timeout, too early, too many requests.
_RETRY_STATUSES = (408, 425, 429)


class Connections:
    """
    Connections to one service. They may be shared between threads; a forked child opens its own.

    Args:
        url: The base URL of the service.
        headers: Headers for each request.

    Raises:
        ConfigError: *url* is not an HTTP URL.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        try:
            parts = urlsplit(url)
            self._tls, self._host = parts.scheme == "https", parts.hostname or ""
            self._port = parts.port or (443 if self._tls else 80)
        except ValueError as exc:
            raise ConfigError("api_url: the host or port cannot be read") from exc
        if parts.scheme not in ("http", "https") or not self._host:
            raise ConfigError(f"api_url: {quoted(shown_url(url))} is not http://… or https://…")
        self._base = parts.path.rstrip("/")
        self._headers = dict(headers)
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        #: How many writes failed.
        self.failures = 0
        lifecycle.register(self)

    def count_failure(self) -> None:
        """Count a write that failed."""
        with self._lock:
            self.failures += 1

    def request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None, timeout_s: float
    ) -> Json:
        """
        Send a request and return the JSON object in the response.

        Args:
            path: The path, without that of the base URL.
            timeout_s: The time limit of each network operation, seconds.

        Raises:
            Rejected: The service refuses the request; ``status`` is the HTTP status, or 400 for a redirect.
            Unavailable: The service cannot be reached, does not respond in time or not with a JSON object, or responds
                with status 408, 425, 429 or 5xx.
        """
        from http.client import HTTPException

        try:
            status, answer = self._exchange(
                method, self._base + path, body, {**self._headers, **(headers or {})}, timeout_s
            )
        except TimeoutError as exc:
            raise Unavailable("Trace API request timeout") from exc
        except (OSError, HTTPException) as exc:
            raise Unavailable(f"Trace API error: {type(exc).__name__}") from exc
        except ValueError as exc:
            # http.client refuses characters that a header or a path must not contain.
            raise Rejected(f"Trace API error: {shorten(exc)}") from exc
        if status >= 500 or status in _RETRY_STATUSES:
            raise Unavailable(f"Trace API error: {_message(answer, status)}")
        if status >= 300:
            raise Rejected(f"Trace API error: {_message(answer, status)}", status=max(status, 400))
        try:
            return msgspec.json.decode(answer, type=Json)
        except msgspec.DecodeError as exc:
            raise Unavailable("Trace API error: the response is not a JSON object") from exc

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        from http.client import RemoteDisconnected

        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is not None:
            try:
                return self._exchange_over(connection, method, path, body, headers, timeout_s)
            except (RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # The service closed the idle connection, perhaps after it read the request. Every request can be sent
                # again safely: it only reads, or contains ids by which the service recognises the repetition.
                connection.close()
        return self._exchange_over(self._connect(timeout_s), method, path, body, headers, timeout_s)

    def _exchange_over(
        self,
        connection: HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
        timeout_s: float,
    ) -> tuple[int, bytes]:
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        idle = self._idle
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = response.status, response.read()
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if idle is self._idle:
                idle.append(connection)
                return answer
        # The client was closed, or this is a forked child and the connection is the parent's.
        connection.close()
        return answer

    def _connect(self, timeout_s: float) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        if not self._tls:
            return HTTPConnection(self._host, self._port, timeout=timeout_s)
        import ssl

        return HTTPSConnection(self._host, self._port, timeout=timeout_s, context=ssl.create_default_context())

    def close(self) -> None:
        """Close all idle connections. The next request opens a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def begin_close(self, timeout: float) -> None:
        """Do nothing: no thread has to be asked to end."""

    def finish_close(self) -> None:
        """Close all idle connections at the end of the program."""
        self.close()

    def reset(self) -> None:
        """Forget the connections of the parent in a forked child: an answer on them may be the parent's."""
        self._lock = threading.Lock()
        self.failures = 0
        self.close()


def _message(answer: bytes, status: int) -> str:
    try:
        body = msgspec.json.decode(answer, type=Json)
    except msgspec.DecodeError:
        body = {}
    texts = (body.get(name) for name in ("message", "error"))
    return shorten(next((text for text in texts if isinstance(text, str) and text), f"HTTP {status}"), 400)
