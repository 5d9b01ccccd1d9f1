"""
One call to a provider: an open span that ends once, whatever happens, and its lease on a budget.

The methods of ``Call`` never raise: a fault is reported by ``faults``, and the application does not notice it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

from tokentrace.client import usage
from tokentrace.client.tracing import OpenSpan, Parent, SpanFields, Tracer, default_tracer, failure, is_suppressed
from tokentrace.client.track.budgets import Reserved
from tokentrace.client.track.faults import guarded, safely
from tokentrace.client.track.messages import input_text, output_text
from tokentrace.records import Span

#: How a stream ended without having been read to its end: the application closed it or was cancelled, or the provider
#: ended it before its last frame.
StreamEnd = Literal["closed", "cancelled", "cut"]
_COUNTS = ("prompt_tokens", "completion_tokens", "usage")
#: Header in which SDKs of OpenAI and Anthropic say how often they sent the request again.
_RETRIES = "x-stainless-retry-count"
_REQUEST_IDS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid")


class Call:
    """
    A call that is running. It ends once, at the first of ``end``, ``fail`` and ``leave``.

    Args:
        span: The open span of the call.
        captures: Whether the messages of request and answer are kept.

    Attributes:
        reserved: What the call has reserved of a budget; None = no budget.
        finish: Ends the call with what its answer has told so far; None = no answer has begun.
    """

    def __init__(self, span: OpenSpan, *, captures: bool = False) -> None:
        self.span, self.captures = span, captures
        self.reserved: Reserved | None = None
        self.finish: Callable[[], object] | None = None
        self._ended = False
        self._started_ns = time.perf_counter_ns()

    @classmethod
    @guarded
    def begin(
        cls, tracer: Tracer | None, name: str, /, *, parent: Parent | None = None, **fields: Unpack[SpanFields]
    ) -> Call | None:
        """
        Open the span of a call.

        Args:
            tracer: None = the default tracer.
            name: The name of the span.
            parent: What the span is below; None = what is current.
            fields: Fields of the span.

        Returns:
            None inside a block of ``suppress``, and after a fault.
        """
        if is_suppressed():
            return None
        tracer = tracer or default_tracer()
        call = cls(tracer.span(name, parent=parent, **fields), captures=tracer.capture == "messages")
        tracer.keep(call)
        return call

    @guarded
    def set(self, **fields: Unpack[SpanFields]) -> None:
        """Set fields of the span."""
        self.span.set(**fields)

    @guarded
    def first_token(self) -> None:
        """Say that the first token has arrived now."""
        self.span.first_token()

    @guarded
    def asked(self, body: Mapping[str, Any]) -> None:
        """Keep the messages of the request *body*, if messages are kept."""
        if self.captures and (text := input_text(body)):
            self.span.set(attributes={"gen_ai.input.messages": text})

    @guarded
    def answered(self, http_response: Any) -> None:
        """Set what *http_response*, one of httpx, tells beside its body."""
        headers = http_response.headers
        request_id = next((value for name in _REQUEST_IDS if (value := headers.get(name))), "")
        self._attributes(request_id=request_id, resend_count=_resends(http_response.request))

    @guarded
    def end(
        self,
        response: object = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        ended_ns: int | None = None,
        **fields: Unpack[SpanFields],
    ) -> None:
        """
        End the call.

        Args:
            response: What the provider answered, in a form that ``usage.read`` knows; None = nothing more is known.
            messages: The messages of a streamed answer.
            ended_ns: When the call ended, by ``time.perf_counter_ns``; None = now.
            fields: Further fields; they win over those of *response*.
        """
        if self._ended or self.span.is_inherited:
            return
        self._ended, self.finish = True, None
        try:
            safely(self._read, response, messages or [], fields)
            if ended_ns is not None:
                self.span.set(latency_ms=max(ended_ns - self._started_ns, 0) / 1e6)
        finally:
            self._settle(self.span.end())

    def _read(self, response: object, messages: list[dict[str, Any]], fields: SpanFields) -> None:
        found = usage.read(response) if response is not None else SpanFields()
        # The route knows what was called; an answer knows only its form.
        found.pop("kind", None)
        if not fields.get("usage_state"):
            fields.pop("usage_state", None)
        elif not any(found.get(name) or fields.get(name) for name in _COUNTS):
            fields["usage_state"] = "missing"
        # One after the other: the attributes and the notes of both are kept.
        self.span.set(**found)
        self.span.set(**fields)
        if self.captures and (text := output_text(response, messages)):
            self.span.set(attributes={"gen_ai.output.messages": text})

    @guarded
    def fail(self, error: BaseException, response: object = None, /, **fields: Unpack[SpanFields]) -> None:
        """
        End the call with what was raised: a failure, or a cancellation by the application.

        Args:
            error: The exception.
            response: What the provider had answered until then; its usage is partial.
            fields: Further fields.
        """
        if self._ended:
            return
        if not isinstance(error, Exception):
            # CancelledError, GeneratorExit, KeyboardInterrupt: the application stopped; the provider did not fail.
            self.leave("cancelled", response, **fields)
            return
        # What ``parse()`` refuses because it was cut by the length was billed all the same.
        completion = _value(error, "completion")
        failed: dict[str, Any] = {**(safely(failure, error) or {"status": "error"}), **fields}
        failed["attributes"] = {**(safely(error_attributes, error) or {}), **(fields.get("attributes") or {})}
        if response is not None:
            failed.setdefault("usage_state", "partial")
        self.end(completion if completion is not None else response, **failed)

    @guarded
    def leave(
        self, how: StreamEnd, response: object = None, *, ended_ns: int | None = None, **fields: Unpack[SpanFields]
    ) -> None:
        """
        End the call with a stream that was not read to its end.

        Args:
            how: closed, cancelled or cut.
            response: What the provider had answered until then; its usage is partial unless *fields* says otherwise.
            ended_ns: When the call ended, by ``time.perf_counter_ns``; None = now.
            fields: Further fields.
        """
        given: dict[str, Any] = {"usage_state": "partial", **fields}
        given["attributes"] = {"stream_end": how, **(fields.get("attributes") or {})}
        self.end(response, ended_ns=ended_ns, **given)

    @guarded
    def stop(self) -> None:
        """End the call at the end of the tracer, with what its answer has told so far."""
        if self.finish is not None:
            self.finish()
        self.leave("closed")

    def _attributes(self, **values: object) -> None:
        given = {name: value for name, value in values.items() if value}
        if given:
            self.span.set(attributes=given)

    @guarded
    def abandon(self) -> None:
        """Give back what was reserved, for a call that was not made; there is no span."""
        self._ended = True
        if self.reserved is not None:
            self.reserved.release()

    def _settle(self, span: Span) -> None:
        reserved, self.reserved = self.reserved, None
        if reserved is not None:
            reserved.settle(span)


def error_attributes(error: BaseException) -> dict[str, object]:
    """Return the attributes of a span whose call raised *error*."""
    body = _value(error, "body")
    inner = body.get("error", body) if isinstance(body, dict) else None
    stated = (inner.get("type") or inner.get("code")) if isinstance(inner, dict) else None
    attributes: dict[str, object] = {"error_type": stated if isinstance(stated, str) else type(error).__name__}
    for name in ("status_code", "code"):
        status = _value(error, name)
        if isinstance(status, int) and not isinstance(status, bool):
            attributes["http_status"] = status
            break
    if isinstance(request_id := _value(error, "request_id"), str):
        attributes["request_id"] = request_id
    if resends := _resends(_value(_value(error, "response"), "request") or _value(error, "request")):
        attributes["resend_count"] = resends
    return attributes


def _value(owner: object, name: str) -> Any:
    """Return the attribute *name*; None if there is none, or if it fails, as in an error of httpx without a request."""
    try:
        return getattr(owner, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign exception may raise anything
        return None


def _resends(request: object) -> int:
    """Return how often the SDK sent *request* again, as its own header says."""
    headers = getattr(request, "headers", None)
    text = headers.get(_RETRIES) if headers is not None else None
    return int(text) if isinstance(text, str) and text.isdigit() else 0
