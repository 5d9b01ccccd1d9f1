"""The trace of one request, whatever protocol the server speaks. A fault of ours is logged and changes no request."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qs

from tokentrace.client.tracing import OpenSpan, RemoteParent, Trace, Tracer, default_tracer
from tokentrace.records import is_id
from tokentrace.redact import REDACTED, Redactor

log = logging.getLogger("tokentrace.middleware")

P = ParamSpec("P")
R = TypeVar("R")

#: Requests to these paths make no trace.
DEFAULT_SKIP = ("/", "*/health*")
#: A part of a path that is an id: at least eight digits, a UUID, or at least eight hex digits, one of them 0 to 9.
_ID = re.compile(
    r"(?<=/)(?:\d{8,}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|(?=[a-fA-F]*\d)[0-9a-fA-F]{8,})(?=/|$)"
)
#: Headers that hold credentials, besides those that a redactor knows by their names.
_CREDENTIALS = frozenset({"cookie", "set-cookie", "proxy-authorization", "www-authenticate"})
_MAX_PARAMETERS = 100
_MAX_FAULTS = 100
#: The faults that were logged; each is logged once.
_known_faults: set[str] = set()


def guarded(fn: Callable[P, R]) -> Callable[P, R | None]:
    """Return *fn* made safe: instead of raising it returns None, and each kind of fault is logged once."""

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return fn(*args, **kwargs)
        except Exception as exc:
            kind = f"{fn.__qualname__}: {type(exc).__name__}: {exc}"
            if kind not in _known_faults and len(_known_faults) < _MAX_FAULTS:
                _known_faults.add(kind)
                log.warning("a request is not traced as it should be: %s", kind, exc_info=True)
            return None

    return call


class Requests:
    """
    What the middlewares have in common: their options, and the start of a trace.

    Args:
        tracer: Makes the traces; None = the default tracer, at each request.
        session_header: The header with the id of the session.
        include_details: True = the root span has the headers, the address and the user agent, without secrets.
        skip: Patterns of paths without a trace, as ``fnmatch`` reads them.
        name: Returns the name of a root span for a method and a path; None = both, ids replaced by ``{id}``.
        route_names: True = the path in the name is the template of the framework's route, where that is known.
    """

    def __init__(
        self,
        tracer: Tracer | None,
        session_header: str,
        include_details: bool,
        skip: Sequence[str],
        name: Callable[[str, str], str] | None,
        route_names: bool,
    ) -> None:
        self._tracer, self._session_header, self._details = tracer, session_header.lower(), include_details
        self._skip, self._name, self.route_names = tuple(skip), name or default_name, route_names
        self._redactor = Redactor()

    @guarded
    def begin(
        self, method: str, path: str, query: str, headers: Mapping[str, str], address: str
    ) -> RequestTrace | None:
        """
        Start the trace of a request.

        Args:
            query: The query, encoded.
            headers: Names in lower case, and values.
            address: The address of the client; "" = unknown.

        Returns:
            None if the path is skipped, or after a fault.
        """
        if any(fnmatchcase(path, pattern) for pattern in self._skip):
            return None
        tracer = self._tracer or default_tracer()
        parent = tracer.extract(headers)
        session_id = headers.get(self._session_header, "").strip()
        if not is_id(session_id):
            session_id = (parent.session_id if isinstance(parent, RemoteParent) else None) or str(uuid.uuid4())
        attributes: dict[str, Any] = {"method": method, "path": path}
        if query:
            attributes["query"] = _parameters(query)
        if self._details:
            attributes |= {"headers": shown_headers(headers), "ip": address, "userAgent": headers.get("user-agent", "")}
        name = self._redactor.text(self._name(method, path))
        trace = tracer.start(name, parent=parent, session_id=session_id)
        root = trace.span(name, kind="http", attributes=self._redactor.mapping(attributes))
        return RequestTrace(trace, root, method, session_id, self._redactor if self._details else None)


def default_name(method: str, path: str) -> str:
    """Return ``METHOD path``, with ``{id}`` for ids in the path, because names are a dimension of metrics."""
    return f"{method} {_ID.sub('{id}', path)}"


def _parameters(query: str) -> dict[str, object] | str:
    try:
        parsed = parse_qs(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        return query
    return {name: values[0] if len(values) == 1 else values for name, values in parsed.items()}


def shown_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* without cookies and credentials."""
    return {name: REDACTED if name.lower() in _CREDENTIALS else value for name, value in headers.items()}


class RequestTrace:
    """
    The trace of one request, and its root span, which ends once. No method raises.

    Args:
        method: The method of the request.
        redactor: Removes secrets from the headers of the answer; None = they are not recorded.
    """

    def __init__(self, trace: Trace, root: OpenSpan, method: str, session_id: str, redactor: Redactor | None) -> None:
        self.trace, self.root, self.method, self._session_id = trace, root, method, session_id
        self._redactor = redactor
        self._begin_ns = time.perf_counter_ns()
        self._status = 0
        self._failed = self._complete = self._ended = False

    @property
    def answer_headers(self) -> list[tuple[str, str]]:
        """The headers that every answer gets."""
        return [("x-session-id", self._session_id), ("x-trace-id", self.trace.id)]

    @property
    def has_ended(self) -> bool:
        """True after the end of the root span."""
        return self._ended

    @property
    def has_answer(self) -> bool:
        """True if the application has begun to answer, or has failed."""
        return bool(self._status) or self._failed

    @guarded
    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Take note of the HTTP status and of the headers of the answer."""
        self._status = status
        attributes: dict[str, Any] = {"statusCode": status}
        if self._redactor is not None:
            attributes |= self._redactor.mapping({"responseHeaders": shown_headers(headers)})
        self.root.set(attributes=attributes)

    @guarded
    def named(self, template: str) -> None:
        """Name the root span after the template of its route; "" = it is unknown."""
        if template:
            self.root.set(name=f"{self.method} {template}")

    @guarded
    def fail(self, error: BaseException | str) -> None:
        """Take note that the request ended with *error*."""
        self._failed = True
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            self.root.set(attributes={"stream_end": "cancelled"})
        else:
            self.root.fail(error)

    @guarded
    def disconnected(self) -> None:
        """End the root span, because the client went away before the end of the answer."""
        if not self._ended:
            self.root.set(attributes={"disconnected": True})
            self.end()

    @guarded
    def completed(self) -> None:
        """Take note that the answer is complete; after a 5xx, the exception that may still come tells the reason."""
        self._complete = True
        if self._status < 500:
            self.end()
        elif not self._ended:
            self.root.set(latency_ms=(time.perf_counter_ns() - self._begin_ns) / 1e6)

    @guarded
    def closed(self) -> None:
        """End the root span, because the server has closed the answer."""
        if self._complete or self._failed or self.method == "HEAD":
            self.end()
        else:
            self.disconnected()

    @guarded
    def end(self) -> None:
        """End the root span and the trace; a second call does nothing."""
        if self._ended:
            return
        self._ended = True
        if self._status >= 400 and not self._failed:
            self.root.set(status="error", error=f"HTTP {self._status}")
        self.root.end()
        self.trace.end()
