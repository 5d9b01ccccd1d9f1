"""
Bedrock through boto3: one span for each ``converse``, ``converse_stream``, ``invoke_model`` and
``invoke_model_with_response_stream``.

Every operation of a client goes through ``_make_api_call``, outside of the retries. A streamed answer is an event
stream, which is watched itself: it may be read in several loops, so it ends when it has been read, closed or dropped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from tokentrace.client.tracing import SpanFields, Tracer
from tokentrace.client.track.call import Call, error_attributes
from tokentrace.client.track.classes import Wrapper, unwatch_object, watch_object
from tokentrace.client.track.faults import guarded

#: Operation of the API -> name of the span.
_OPERATIONS = {
    "Converse": "converse",
    "ConverseStream": "converse_stream",
    "InvokeModel": "invoke_model",
    "InvokeModelWithResponseStream": "invoke_model_with_response_stream",
}
#: Counts of ``invoke_model``: the end of the header's name, the key in the metrics of a stream -> the name that
#: ``converse`` has for the same.
_COUNTS = {
    ("input-token-count", "inputTokenCount"): "inputTokens",
    ("output-token-count", "outputTokenCount"): "outputTokens",
    ("cache-read-input-token-count", "cacheReadInputTokenCount"): "cacheReadInputTokens",
    ("cache-write-input-token-count", "cacheWriteInputTokenCount"): "cacheWriteInputTokens",
}
_METRICS = b"amazon-bedrock-invocationMetrics"
#: Events of a model that hold no token yet.
_NO_TOKEN = ("message_start", "content_block_start", "ping")
Json = dict[str, Any]


def accepts(target: object) -> bool:
    """Return True if *target* is a boto3 client of the service ``bedrock-runtime``."""
    if not any(f"{cls.__module__}.{cls.__name__}" == "botocore.client.BaseClient" for cls in type(target).__mro__):
        return False
    service = getattr(getattr(getattr(target, "meta", None), "service_model", None), "service_name", "")
    return bool(service == "bedrock-runtime")


def watch(client: Any, tracer: Tracer | None) -> None:
    """
    Track one client.

    Args:
        client: What ``boto3.client("bedrock-runtime")`` returned.
        tracer: Where spans go; None = the default tracer.
    """
    watch_object(client, {"_make_api_call": _make_api_call}, tracer)


def unwatch(client: Any) -> None:
    """Track *client* no longer."""
    unwatch_object(client)


@guarded
def _begin(tracer: Tracer | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    names = ("operation_name", "api_params")
    operation, parameters = (kwargs[name] if name in kwargs else args[at] for at, name in enumerate(names))
    name = _OPERATIONS.get(operation)
    if name is None:
        return None
    model = str(parameters.get("modelId") or "").rpartition("/")[2]
    return Call.begin(
        tracer,
        name,
        kind="embedding" if "embed" in model else "llm",
        provider="aws",
        model=model,
        scope="tokentrace.boto3",
        attributes={"request_model": model},
    )


def _make_api_call(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def make_api_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(tracer_of(self), args, kwargs)
        if call is None:
            return original(self, *args, **kwargs)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as exc:
            _fail(call, exc)
            raise
        if not _watch_stream(call, result):
            _end(call, result)
        return result

    return make_api_call


@guarded
def _fail(call: Call, error: BaseException) -> None:
    call.fail(error, attributes=_attributes(error))


def _attributes(error: BaseException) -> dict[str, object]:
    attributes = error_attributes(error)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        # ``ClientError`` is one class for all errors of the API.
        attributes["error_type"] = (response.get("Error") or {}).get("Code") or attributes["error_type"]
        status = (response.get("ResponseMetadata") or {}).get("HTTPStatusCode")
        if isinstance(status, int):
            attributes["http_status"] = status
    return attributes


@guarded
def _end(call: Call, result: Json) -> None:
    answer: Json | None = result
    if "usage" not in result:
        headers = (result.get("ResponseMetadata") or {}).get("HTTPHeaders") or {}
        counts = {
            name: int(headers[f"x-amzn-bedrock-{header}"])
            for (header, _), name in _COUNTS.items()
            if f"x-amzn-bedrock-{header}" in headers
        }
        answer = {"usage": counts, "ResponseMetadata": result.get("ResponseMetadata")} if counts else None
    call.end(answer)


@guarded
def _watch_stream(call: Call, result: Json) -> bool:
    """Watch the event stream of a streamed answer; False = the answer has none."""
    for name in ("stream", "body"):
        events = result.get(name)
        if events is not None and type(events).__name__ == "EventStream":
            stream = _Stream(call, result.get("ResponseMetadata"))
            watch_object(events, _EVENT_STREAM, stream)
            weakref.finalize(events, stream.leave)
            return True
    return False


class _Stream:
    """
    What the events of a stream have told so far.

    Args:
        call: The call.
        metadata: ``ResponseMetadata`` of the answer.
    """

    def __init__(self, call: Call, metadata: object) -> None:
        self.call = call
        self._answer: Json = {"ResponseMetadata": metadata}
        self._tools: list[Json] = []
        self._first = False

    @guarded
    def see(self, event: Json) -> None:
        """Look at one event."""
        if "chunk" in event:
            self._see_chunk(event["chunk"].get("bytes") or b"")
        elif "contentBlockDelta" in event:
            self.call.first_token()
        elif "contentBlockStart" in event:
            if "toolUse" in (event["contentBlockStart"].get("start") or {}):
                self._tools.append({"toolUse": {}})
        elif "messageStop" in event:
            self._answer["stopReason"] = event["messageStop"].get("stopReason")
        elif "metadata" in event:
            self._answer |= {name: event["metadata"].get(name) for name in ("usage", "serviceTier")}

    def _see_chunk(self, data: bytes) -> None:
        if self._first and _METRICS not in data:
            return
        event = msgspec.json.decode(data)
        if not self._first and event.get("type") not in _NO_TOKEN:
            self._first = True
            self.call.first_token()
        metrics = event.get(_METRICS.decode())
        if metrics:
            counts = {name: metrics[key] for (_, key), name in _COUNTS.items() if key in metrics}
            self._answer["usage"] = counts

    def _told(self) -> Json | None:
        if not self._answer.get("usage"):
            return None
        return {**self._answer, "output": {"message": {"content": self._tools}}}

    def _state(self) -> SpanFields:
        # The counts come with the last event, so they are whole or missing.
        return {"usage_state": "" if self._answer.get("usage") else "missing"}

    @guarded
    def end(self) -> None:
        """End the call: the stream was read to its end."""
        self.call.end(self._told())

    @guarded
    def fail(self, error: BaseException) -> None:
        """End the call: reading raised *error*."""
        fields = self._state()
        fields["attributes"] = _attributes(error)
        self.call.fail(error, self._told(), **fields)

    @guarded
    def leave(self) -> None:
        """End the call, unless it has ended: the application reads no further."""
        self.call.leave("closed", self._told(), **self._state())


def _iterate(original: Callable[..., Any], stream_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def iterate(self: Any) -> Iterator[Any]:
        stream: _Stream = stream_of(self)
        try:
            for event in original(self):
                stream.see(event)
                yield event
        except GeneratorExit:
            # The loop was left; another one may read on.
            raise
        except BaseException as exc:
            stream.fail(exc)
            raise
        stream.end()

    return iterate


def _close(original: Callable[..., Any], stream_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def close(self: Any) -> Any:
        stream_of(self).leave()
        return original(self)

    return close


_EVENT_STREAM: dict[str, Wrapper] = {"__iter__": _iterate, "close": _close}
