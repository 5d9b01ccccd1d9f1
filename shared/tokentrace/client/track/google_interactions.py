"""
The interactions API of google-genai, which has a generated client of its own: one span for each request to create one.

A long answer is made of several requests, whose usage the SDK adds up. So what is watched is ``do_request`` of the
generated classes, through which each request goes, outside of its retries; a streamed answer has not been read there.
An interaction that runs in the background has no usage when it is created, and what fetches it later is not tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tokentrace.client.track.body import is_unread, observe
from tokentrace.client.track.call import Call
from tokentrace.client.track.classes import Wrapper, watch_object
from tokentrace.client.track.faults import guarded, safely
from tokentrace.client.track.reader import Reader

Json = dict[str, Any]

#: Count of an interaction -> what ``generate_content`` calls the same.
_COUNTS = {
    "total_input_tokens": "promptTokenCount",
    "total_cached_tokens": "cachedContentTokenCount",
    "total_thought_tokens": "thoughtsTokenCount",
    "total_tool_use_tokens": "toolUsePromptTokenCount",
    "total_tokens": "totalTokenCount",
}
_DETAILS = {
    "input_tokens_by_modality": "promptTokensDetails",
    "output_tokens_by_modality": "candidatesTokensDetails",
    "cached_tokens_by_modality": "cacheTokensDetails",
    "tool_use_tokens_by_modality": "toolUsePromptTokensDetails",
}


class _Request(msgspec.Struct):
    model: Any = None
    agent: Any = None


class _Interaction(msgspec.Struct):
    """What is read of an interaction; its steps, which may be large, are skipped."""

    id: Any = None
    model: Any = None
    status: Any = None
    usage: Any = None


class _Event(msgspec.Struct):
    event_type: str = ""
    interaction: _Interaction | None = None
    error: Any = None


_requests = msgspec.json.Decoder(_Request)
_interactions = msgspec.json.Decoder(_Interaction)
_events = msgspec.json.Decoder(_Event)


def _answer(told: _Interaction) -> Json:
    """Return *told* in the form of an answer of ``generate_content``, which ``usage.read`` knows."""
    answer: Json = {"responseId": told.id, "modelVersion": told.model}
    if told.status:
        answer["candidates"] = [{"finishReason": told.status}]
    usage = told.usage
    if not isinstance(usage, Mapping):
        return answer
    counts: Json = {theirs: usage[ours] for ours, theirs in _COUNTS.items() if usage.get(ours) is not None}
    made, thoughts = usage.get("total_output_tokens") or 0, usage.get("total_thought_tokens") or 0
    given = (usage.get("total_input_tokens") or 0) + (usage.get("total_tool_use_tokens") or 0)
    if thoughts and usage.get("total_tokens") == given + made:
        made -= thoughts  # they were among the output
    counts["candidatesTokenCount"] = made
    for ours, theirs in _DETAILS.items():
        counts[theirs] = [
            {"modality": str(part.get("modality") or "").upper(), "tokenCount": part.get("tokens")}
            for part in usage.get(ours) or ()
        ]
    return {**answer, "usageMetadata": counts}


class _EventReader(Reader):
    """Reads the events of a streamed interaction."""

    def __init__(self) -> None:
        super().__init__()
        self._told = _Interaction()

    def frame(self, data: bytes) -> None:
        """Read one event."""
        if not data.startswith(b"{"):
            return
        event = _events.decode(data)
        if event.event_type == "step.delta":
            self.first_token = True
        elif event.event_type == "error":
            self.failed(event.error)
        if event.interaction is not None:
            for name in ("id", "model", "status", "usage"):
                setattr(self._told, name, getattr(event.interaction, name) or getattr(self._told, name))
        if event.event_type == "interaction.completed":
            self.complete = True

    def response(self) -> Json:
        """Return what the events said so far."""
        return _answer(self._told)


def _begin(tracer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
    """Open a span if an interaction is created; None = this request is not tracked."""
    context = kwargs["hook_ctx"] if "hook_ctx" in kwargs else args[0]
    if context.operation_id != "CreateInteraction":
        return None
    request = kwargs["request"] if "request" in kwargs else args[1]
    body = _requests.decode(request.content)
    model = body.model or body.agent
    return Call.begin(
        tracer,
        "interactions",
        kind="llm",
        provider="google",
        model=model,
        scope="tokentrace.google",
        attributes={"request_model": model},
    )


@guarded
def _end(call: Call, response: Any) -> None:
    """End a call with *response*, one of httpx, or let it end with the body that is still to be read."""
    if response.status_code >= 400:
        attributes = {"http_status": response.status_code, "error_type": "HTTPStatusError"}
        call.end(status="error", error=f"HTTP {response.status_code}", attributes=attributes)
    elif not is_unread(response):
        call.end(safely(lambda: _answer(_interactions.decode(response.content))))
    elif not observe(response, call, _EventReader):
        call.end()


def _do_request(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def do_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = safely(_begin, tracer_of(self), args, kwargs)
        if call is None:
            return original(self, *args, **kwargs)
        try:
            response = original(self, *args, **kwargs)
        except BaseException as exc:
            call.fail(exc)
            raise
        _end(call, response)
        return response

    return do_request


def _do_request_async(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    async def do_request_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = safely(_begin, tracer_of(self), args, kwargs)
        if call is None:
            return await original(self, *args, **kwargs)
        try:
            response = await original(self, *args, **kwargs)
        except BaseException as exc:
            call.fail(exc)
            raise
        _end(call, response)
        return response

    return do_request_async


#: Class of the generated client -> its methods that are watched.
BASES: dict[str, dict[str, Wrapper]] = {
    "BaseSDK": {"do_request": _do_request},
    "AsyncBaseSDK": {"do_request_async": _do_request_async},
}


def _interactions_of(original: Callable[..., Any], tracer_of: Callable[[Any], Any]) -> Callable[..., Any]:
    def interactions(self: Any) -> Any:
        resource = original(self)
        safely(_watch, resource, tracer_of(self))
        return resource

    return interactions


def _watch(resource: Any, tracer: Any) -> None:
    for base in type(resource).__mro__:
        if base.__name__ in BASES:
            watch_object(resource, BASES[base.__name__], tracer)


#: What is watched of a client. The generated client is made, and loaded, when it is first used.
RESOURCES: dict[str, Wrapper] = {"interactions": _interactions_of}
