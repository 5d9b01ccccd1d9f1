"""What uses of the SDK of OpenAI ask for, and the spans that they must make, for ``sdk_cases_openai``."""

from __future__ import annotations

from typing import Any

from kit.llm_answers import CHAT_ID, RESPONSE_ID

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello."}]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]
FORM: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "city", "strict": True, "schema": {"type": "object", "properties": {}}},
}
COUNTS = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "cache_read_tokens": 64,
    "reasoning_tokens": 12,
    "usage_state": "",
}
NONE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cache_read_tokens": 0, "reasoning_tokens": 0}
HEAD = {
    "name": "chat.completions",
    "kind": "llm",
    "status": "ok",
    "model": "gpt-4o-2024-08-06",
    "response_id": CHAT_ID,
    "scope": "tokentrace.openai",
    "pricing_context": {"service_tier": "default"},
    "error": "",
}
CHAT = {**HEAD, **COUNTS, "attributes": {"finish_reason": "stop", "request_model": "gpt-4o"}}
#: A stream that ends before its usage, or of a host that is not asked for it.
UNCOUNTED = {**HEAD, **NONE, "usage_state": "missing", "attributes": {"stream_end": None, "request_model": "gpt-4o"}}
CLOSED = {**UNCOUNTED, "attributes": {"stream_end": "closed"}}
CANCELLED = {**UNCOUNTED, "attributes": {"stream_end": "cancelled"}}
FAILED = {**UNCOUNTED, "status": "error"}
COUNTED = {**COUNTS}
TWO = {"name": "completions", "kind": "llm", "status": "ok", "response_id": CHAT_ID}
RESPONSE = {
    "name": "responses",
    "kind": "llm",
    "status": "ok",
    "model": "gpt-5-2025-08-07",
    "response_id": RESPONSE_ID,
    "prompt_tokens": 80,
    "completion_tokens": 20,
    "total_tokens": 100,
    "cache_read_tokens": 16,
    "reasoning_tokens": 8,
    "usage_state": "",
    "attributes": {"finish_reason": "completed", "request_model": "gpt-5"},
}
QUERY: dict[str, Any] = {"model": "gpt-5", "input": "Say hello."}
