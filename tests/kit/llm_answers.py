"""The bodies and the streams that ``llm_server`` answers in the protocols of OpenAI and Anthropic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

CHAT_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 12, "audio_tokens": 0},
}
RESPONSE_USAGE = {
    "input_tokens": 80,
    "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 8},
    "total_tokens": 100,
}
MESSAGE_USAGE = {
    "input_tokens": 50,
    "cache_read_input_tokens": 400,
    "cache_creation_input_tokens": 60,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 21,
    "service_tier": "standard",
}
EMBEDDING_USAGE = {"prompt_tokens": 8, "total_tokens": 8}
CHAT_ID = "chatcmpl-CXk2v0Zq3mFvT1Yb7HqWfN4sR8aLd"
RESPONSE_ID = "resp_68af4030baa48193b0b43b4c2a176a1a0e6967589f080e78"
MESSAGE_ID = "msg_01Aq9w938a90dw8q01KmZ4Rt"
REQUEST_ID = "req_011CSHoEeqs5C35K2UUqR7Fy"


class Said(NamedTuple):
    """
    What the server says in an answer.

    Attributes:
        id: The id of the answer.
        usage: The usage, as the protocol writes it.
        content: The text.
        finish_reason: Why a chat completion ended.
        model: The model that answers; empty = the one that was asked for, with a date.
    """

    id: str
    usage: Mapping[str, Any]
    content: str = "Hello, world"
    finish_reason: str = "stop"
    model: str = ""

    def model_of(self, asked: dict[str, Any], default: str, date: str) -> str:
        """Return the model that answers the request *asked*."""
        return self.model or asked.get("model", default) + date


def protocol_of(path: str) -> str:
    """Return messages, responses, embeddings or chat: the protocol of the address *path*."""
    if "messages" in path:
        return "messages"
    if "/responses" in path:
        return "responses"
    return "embeddings" if path.endswith("/embeddings") else "chat"


#: Protocol -> the id and the usage of an answer.
DEFAULTS: dict[str, Said] = {
    "chat": Said(CHAT_ID, CHAT_USAGE),
    "responses": Said(RESPONSE_ID, RESPONSE_USAGE),
    "messages": Said(MESSAGE_ID, MESSAGE_USAGE),
    "embeddings": Said("", EMBEDDING_USAGE),
}


def refusal(status: int, path: str) -> dict[str, Any]:
    """Return the body of an answer that is an error."""
    error = {"type": "rate_limit_error" if status == 429 else "server_error", "message": f"no answer: {status}"}
    if protocol_of(path) == "messages":
        return {"type": "error", "error": error, "request_id": REQUEST_ID}
    return {"error": {**error, "code": None, "param": None}}


def whole(path: str, asked: dict[str, Any], said: Said) -> dict[str, Any]:
    """Return the body of an answer that is no stream; responses have a function of their own."""
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [0.25, 0.5]}]
        return {"object": "list", "model": asked["model"], "data": data, "usage": said.usage}
    if path.endswith("/decisions"):
        return {"model": asked["model"], "answers": [], "usage": RESPONSE_USAGE}
    if path.endswith("/transcriptions"):
        return {"text": "hello", "usage": {"type": "duration", "seconds": 8.47}}
    if path.endswith("/count_tokens"):
        return {"input_tokens": 5}
    if path.endswith("/models"):
        return {"object": "list", "data": []}
    if protocol_of(path) == "messages":
        return _message(asked, said, "tool_use" if _wants_a_tool(asked) else "end_turn")
    if path.endswith("/chat/completions"):
        message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
        if _wants_a_tool(asked):
            function = {"name": "weather", "arguments": '{"city": "Rome"}'}
            message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        reason = "tool_calls" if _wants_a_tool(asked) else said.finish_reason
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {**_chat(asked, "chat.completion", said), "choices": [choice], "usage": said.usage}
    choice = {"index": 0, "text": said.content, "finish_reason": "stop", "logprobs": None}
    return {**_chat(asked, "text_completion", said), "choices": [choice], "usage": said.usage}


def _wants_a_tool(asked: dict[str, Any]) -> bool:
    """Return True if there are tools in the request, and no result of one at its end."""
    last: dict[str, Any] = asked.get("messages", [{}])[-1]
    blocks = last.get("content")
    has_result = isinstance(blocks, list) and any(block.get("type") == "tool_result" for block in blocks)
    return bool(asked.get("tools")) and last.get("role") != "tool" and not has_result


def _chat(asked: dict[str, Any], form: str, said: Said) -> dict[str, Any]:
    model = said.model_of(asked, "gpt-4o", "-2024-08-06")
    return {"id": said.id, "object": form, "created": 1_767_000_000, "model": model, "service_tier": "default"}


def response(asked: dict[str, Any], status: str, said: Said) -> dict[str, Any]:
    """Return an object of the Responses API; only a completed one has an output and a usage."""
    text = {"type": "output_text", "text": "Hello, world", "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]}
    is_done = status == "completed"
    return {
        "id": said.id,
        "object": "response",
        "created_at": 1_767_000_000,
        "status": status,
        "model": said.model_of(asked, "gpt-5", "-2025-08-07"),
        "service_tier": "default",
        "output": [item] if is_done else [],
        "usage": said.usage if is_done else None,
        **dict.fromkeys(("error", "incomplete_details", "instructions"), None),
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "background": bool(asked.get("background")),
    }


def _message(
    asked: dict[str, Any], said: Said, stop_reason: str | None, output_tokens: int | None = None
) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": "Hello, world"}] if stop_reason else []
    if stop_reason == "tool_use":
        content.append({"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}})
    return {
        "id": said.id,
        "type": "message",
        "role": "assistant",
        "model": said.model_of(asked, "claude-sonnet-4-5", "-20250929"),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "content": content,
        "usage": dict(said.usage) if output_tokens is None else {**said.usage, "output_tokens": output_tokens},
    }


def frames(path: str, asked: dict[str, Any], said: Said, error_after: int | None = None) -> Iterator[bytes]:
    """Yield the frames of a stream; with *error_after* an error event comes after as many of them, and is the last."""
    protocol = protocol_of(path)
    if protocol == "messages":
        made = list(_message_frames(asked, said))
        error = _event({"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}})
    elif protocol == "responses":
        made = list(_response_frames(asked, said))
        error = _event({"type": "error", "code": "server_error", "message": "overloaded", "param": None})
    else:
        made = list(_chat_frames(path, asked, said))
        error = b'data: {"error": {"type": "server_error", "message": "overloaded"}}\n\n'
    if error_after is None:
        yield from made
    else:
        yield from [*made[:error_after], error]


def _chat_frames(path: str, asked: dict[str, Any], said: Said) -> Iterator[bytes]:
    is_chat = path.endswith("/chat/completions")
    base = _chat(asked, "chat.completion.chunk" if is_chat else "text_completion", said)
    with_usage = (asked.get("stream_options") or {}).get("include_usage")

    def chunk(choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        value = {**base, "choices": choices, **({"usage": usage} if with_usage else {})}
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    def choice(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        if not is_chat:
            return [{"index": 0, "text": delta.get("content", ""), "finish_reason": reason, "logprobs": None}]
        return [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]

    if is_chat:
        yield chunk(choice({"role": "assistant", "content": "", "refusal": None}))
    if _wants_a_tool(asked):
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
        yield chunk(choice({"tool_calls": [call]}))
        for part in ('{"city"', ': "Rome"}'):
            yield chunk(choice({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}))
    else:
        half = len(said.content) // 2
        for part in (said.content[:half], said.content[half:]):
            yield chunk(choice({"content": part}))
    yield chunk(choice({}, "tool_calls" if _wants_a_tool(asked) else said.finish_reason))
    if with_usage:
        yield chunk([], said.usage)
    yield b"data: [DONE]\n\n"


def _response_frames(asked: dict[str, Any], said: Said) -> Iterator[bytes]:
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    done = response(asked, "completed", said)
    item = {**done["output"][0], "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(asked, "in_progress", said)},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        {"type": "response.output_text.delta", **place, "delta": "Hello", "logprobs": []},
        {"type": "response.output_text.delta", **place, "delta": ", world", "logprobs": []},
        {"type": "response.output_text.done", **place, "text": "Hello, world", "logprobs": []},
        {"type": "response.content_part.done", **place, "part": {**part, "text": "Hello, world"}},
        {"type": "response.output_item.done", "output_index": 0, "item": done["output"][0]},
        {"type": "response.completed", "response": done},
    ]
    for number, event in enumerate(events):
        yield _event({**event, "sequence_number": number})


def _message_frames(asked: dict[str, Any], said: Said) -> Iterator[bytes]:
    yield _event({"type": "message_start", "message": _message(asked, said, None, output_tokens=1)})
    yield _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
    yield _event({"type": "ping"})
    for text in ("Hello", ", world"):
        yield _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})
    yield _event({"type": "content_block_stop", "index": 0})
    if _wants_a_tool(asked):
        block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
        yield _event({"type": "content_block_start", "index": 1, "content_block": block})
        delta = {"type": "input_json_delta", "partial_json": '{"city": "Rome"}'}
        yield _event({"type": "content_block_delta", "index": 1, "delta": delta})
        yield _event({"type": "content_block_stop", "index": 1})
    end = {"stop_reason": "tool_use" if _wants_a_tool(asked) else "end_turn", "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": end, "usage": {"output_tokens": said.usage["output_tokens"]}})
    yield _event({"type": "message_stop"})


def _event(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()
