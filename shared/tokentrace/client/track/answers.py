"""The end of a tracked call whose answer has come: parsed by the SDK, raw, or a body that is still to be read."""

from __future__ import annotations

from typing import Any

from tokentrace.client.track.background import Background
from tokentrace.client.track.body import is_unread, observe
from tokentrace.client.track.call import Call
from tokentrace.client.track.reader import decode_head
from tokentrace.client.track.rules import Route

background = Background()


def take(call: Call, route: Route, result: object, *, hides_usage: bool) -> None:
    """
    End *call* with *result*, or let it end with the body that *result* will read.

    Args:
        call: The call.
        route: What was called.
        result: What the method ``request`` of the SDK returned.
        hides_usage: Whether the application did not ask for the usage of the stream.
    """
    response = http_response_of(result)
    if response is None:
        if not background.keep(call, result):
            call.end(result)
        return
    call.answered(response)
    if is_unread(response):
        if not observe(response, call, route.reader, hides_usage=hides_usage):
            call.end()
        return
    head = _decoded(response)
    if head is None or not background.keep(call, head):
        call.end(head)


def take_fetched(result: object) -> None:
    """End the call in the background whose finished answer is *result*."""
    response = http_response_of(result)
    if response is None:
        background.fetched(result)
    elif not is_unread(response) and (head := _decoded(response)) is not None:
        background.fetched(head)


def http_response_of(result: object) -> Any:
    """Return the response of httpx within *result*, a stream or a raw response; None if the SDK has parsed it."""
    if _is_response(result):
        return result
    values = getattr(result, "__dict__", {})
    return next((values[name] for name in ("response", "http_response") if _is_response(values.get(name))), None)


def _is_response(value: object) -> bool:
    return any(
        cls.__name__ == "Response" and cls.__module__.partition(".")[0] in ("httpx", "httpx2")
        for cls in type(value).__mro__
    )


def _decoded(response: Any) -> dict[str, Any] | None:
    """Return what a span needs of a body that was read; None if it is no JSON."""
    if "json" not in response.headers.get("content-type", ""):
        return None
    return decode_head(response.content)
