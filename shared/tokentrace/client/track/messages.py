"""The messages of a call, in the form of OpenTelemetry's conventions for generative AI, for ``capture="messages"``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tokentrace.client.usage.access import get, items, text

#: Parts that hold files, which are not kept: a text says what they are.
_TEXTS = ("text", "input_text", "output_text", "refusal", "thinking", "summary_text")


def input_text(body: Mapping[str, Any]) -> str:
    """Return the messages of the request *body* as JSON; "" if it has none."""
    named = [body[name] for name in ("system", "instructions") if body.get(name)]
    messages: list[dict[str, Any]] = [{"role": "system", "parts": _parts(text)} for text in named]
    given = body.get("messages", body.get("input", body.get("prompt")))
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if isinstance(given, Iterable):
        messages += [_message(one, "user") for one in given]
    return _json(messages)


def output_text(response: object, streamed: Iterable[Mapping[str, Any]] = ()) -> str:
    """Return the messages of *response*, or those that were *streamed*, as JSON; "" if there are none."""
    messages = [_message(message, "assistant") for message in streamed]
    if not messages:
        messages = [_message(message, "assistant") for choice in items(response, "choices") if (message := _of(choice))]
        messages += [_message(item, "assistant") for item in items(response, "output")]
        if get(response, "stop_reason") is not None and get(response, "content") is not None:
            messages.append(_message(response, "assistant"))
    return _json(messages)


def _of(choice: object) -> Any:
    message = get(choice, "message")
    return message if message is not None else {"content": text(choice, "text")}


def _message(message: object, role: str) -> dict[str, Any]:
    if isinstance(message, str):
        return {"role": role, "parts": _parts(message)}
    parts = _parts(get(message, "content")) if text(message, "type") in ("", "message") else [_part(message)]
    if text(message, "refusal"):
        parts.append({"type": "refusal", "content": text(message, "refusal")})
    for call in items(message, "tool_calls"):
        function = get(call, "function", "custom")
        arguments = get(function, "arguments", "input")
        parts.append(_call(text(call, "id"), text(function, "name"), arguments))
    if text(message, "tool_call_id"):
        answer = get(message, "content")
        parts = [{"type": "tool_call_response", "id": text(message, "tool_call_id"), "response": _plain(answer)}]
    return {"role": text(message, "role") or role, "parts": parts}


def _parts(content: object) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [_part(part) for part in content] if isinstance(content, Iterable) else []


def _part(part: object) -> dict[str, Any]:
    if isinstance(part, (str, int)):
        return {"type": "text", "content": str(part)}
    kind = text(part, "type")
    if kind in _TEXTS:
        return {"type": kind.removeprefix("input_").removeprefix("output_"), "content": text(part, "text", kind)}
    if kind in ("tool_use", "function_call", "custom_tool_call"):
        return _call(text(part, "call_id", "id"), text(part, "name"), get(part, "input", "arguments"))
    if kind in ("tool_result", "function_call_output"):
        answer = _plain(get(part, "content", "output"))
        return {"type": "tool_call_response", "id": text(part, "tool_use_id", "call_id"), "response": answer}
    return {"type": kind or "unknown"}


def _call(call_id: str, name: str, arguments: object) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": _plain(arguments)}


def _plain(value: object) -> Any:
    """Return *value* as JSON holds it; a list of parts without their files."""
    if isinstance(value, list) and value and all(text(part, "type") for part in value):
        return _parts(value)
    return value if isinstance(value, (str, int, float, bool, dict, list)) or value is None else str(value)


def _json(messages: list[dict[str, Any]]) -> str:
    return msgspec.json.encode(messages, enc_hook=str).decode() if messages else ""
