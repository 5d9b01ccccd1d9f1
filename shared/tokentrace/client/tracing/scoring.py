"""Where a tracer sends the scores of calls that have ended."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from tokentrace.client.transports import ScoreQueue, Transport
from tokentrace.errors import ConfigError


class Api(NamedTuple):
    """
    The HTTP api, as the arguments of a tracer name it.

    Attributes:
        url: Its base URL; None = the environment or the transport knows it.
        token: Bearer token; None = the environment knows it, or there is none.
    """

    url: str | None = None
    token: str | None = None


class Scores:
    """
    The scores of a tracer. Nothing is opened before the first one.

    Args:
        api: Where they go.
        transport: The transport of the tracer; a pipeline inside of the program has an api of its own.
    """

    def __init__(self, api: Api, transport: Transport) -> None:
        self._api, self._transport = api, transport
        self._lock = threading.RLock()
        self._queue: ScoreQueue | None = None

    def score(self, value: float | None, trace_id: str, span_id: str | None, name: str) -> None:
        """Queue a score; ConfigError if no api is known."""
        with self._lock:
            if self._queue is None:
                self._queue = self._open()
            queue = self._queue
        queue.score(value, trace_id=trace_id, span_id=span_id, name=name)

    def _open(self) -> ScoreQueue:
        url = self._api.url or os.environ.get("TOKENTRACE_API_URL") or _url_of(self._transport)
        if not url:
            raise ConfigError("score: needs the HTTP api: neither api_url nor TOKENTRACE_API_URL is set")
        token = os.environ.get("TOKENTRACE_TOKEN", "") if self._api.token is None else self._api.token
        return ScoreQueue(url, token)

    def flush(self, timeout: float | None) -> bool:
        """Wait until every score is accepted or lost; return False if *timeout*, seconds, passed first."""
        return self._queue is None or self._queue.flush(timeout)

    def close(self, timeout: float) -> None:
        """Send the scores that wait within *timeout* seconds."""
        if self._queue is not None:
            self._queue.close(timeout)


def _url_of(transport: Transport) -> str:
    """Return the URL of the api of a pipeline inside of the program; "" = there is none."""
    own = str(getattr(transport, "url", ""))
    return own or next(filter(None, map(_url_of, getattr(transport, "children", ()))), "")
