"""Responses of each provider, written from the types of its SDK, and what a span must say about them."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Golden(NamedTuple):
    """
    A response.

    Attributes:
        json: The response as the provider sends it.
        fields: The fields that it must have, as ``SpanFields`` names them, without ids.
        extractor: Provider and flavour of the extractor in genai-prices; None = it has none for this form.
        sdk_class: Class of the SDK that holds it, ``module:name``; "" = the SDK hands out dicts, or is not installed.
    """

    json: dict[str, Any]
    fields: dict[str, Any]
    extractor: tuple[str, str] | None
    sdk_class: str = ""

    def sdk_object(self) -> Any:
        """Return the response as the object that its SDK makes of it."""
        module, _, name = self.sdk_class.partition(":")
        return getattr(import_module(module), name).model_validate(self.json)


CHAT: dict[str, Any] = {
    "id": "chatcmpl-CXk2v0Zq3mFvT1Yb7HqWfN4sR8aLd",
    "object": "chat.completion",
    "created": 1_767_000_000,
    "model": "gpt-4o-2024-08-06",
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
                    {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
                ],
            },
        }
    ],
    "usage": {
        "prompt_tokens": 1200,
        "completion_tokens": 300,
        "total_tokens": 1500,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0, "accepted_prediction_tokens": 0},
    },
}

RESPONSE: dict[str, Any] = {
    "id": "resp_68af4030baa48193b0b43b4c2a176a1a0e6967589f080e78",
    "object": "response",
    "created_at": 1_767_000_000,
    "status": "completed",
    "model": "gpt-5-2025-08-07",
    "service_tier": "flex",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "output": [
        {"id": "rs_1", "type": "reasoning", "summary": []},
        {
            "id": "ws_1",
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "nats"},
        },
        {
            "id": "fc_1",
            "call_id": "call_1",
            "type": "function_call",
            "name": "weather",
            "arguments": "{}",
            "status": "completed",
        },
    ],
    "usage": {
        "input_tokens": 328,
        "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 0},
        "output_tokens": 252,
        "output_tokens_details": {"reasoning_tokens": 192},
        "total_tokens": 580,
    },
}

MESSAGE: dict[str, Any] = {
    "id": "msg_01Aq9w938a90dw8q01KmZ4Rt",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "content": [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    ],
    "usage": {
        "input_tokens": 50,
        "cache_read_input_tokens": 4000,
        "cache_creation_input_tokens": 600,
        "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 210,
        "output_tokens_details": {"thinking_tokens": 90},
        "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 1},
        "service_tier": "standard",
    },
}

GENERATED: dict[str, Any] = {
    "responseId": "mAitaLmkHPPlz7IPvtfUqQ4",
    "modelVersion": "gemini-2.5-flash",
    "candidates": [
        {
            "content": {"role": "model", "parts": [{"text": "sunny"}, {"functionCall": {"name": "time", "args": {}}}]},
            "finishReason": "STOP",
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 1000,
        "candidatesTokenCount": 80,
        "thoughtsTokenCount": 40,
        "toolUsePromptTokenCount": 30,
        "cachedContentTokenCount": 500,
        "totalTokenCount": 1150,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 742},
            {"modality": "IMAGE", "tokenCount": 258},
        ],
        "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 500}],
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 80}],
        "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}],
    },
}

GOLDEN: dict[str, Golden] = {
    "openai chat": Golden(
        CHAT,
        {
            "model": "gpt-4o-2024-08-06",
            "prompt_tokens": 1200,
            "completion_tokens": 300,
            "total_tokens": 1500,
            "cache_read_tokens": 1024,
            "reasoning_tokens": 64,
            "pricing_context": {"service_tier": "default"},
            "attributes": {"finish_reason": "tool_calls", "tool_calls": 2},
        },
        ("openai", "chat"),
        "openai.types.chat:ChatCompletion",
    ),
    "openai chat with audio": Golden(
        {
            **CHAT,
            "model": "gpt-4o-audio-preview",
            "choices": [],
            "service_tier": None,
            "usage": {
                "prompt_tokens": 300,
                "completion_tokens": 200,
                "total_tokens": 500,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 250},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 150},
            },
        },
        {
            "model": "gpt-4o-audio-preview",
            "prompt_tokens": 300,
            "completion_tokens": 200,
            "total_tokens": 500,
            "usage": {"input_audio_tokens": 250, "output_audio_tokens": 150},
        },
        ("openai", "chat"),
        "openai.types.chat:ChatCompletion",
    ),
    "openai responses": Golden(
        RESPONSE,
        {
            "model": "gpt-5-2025-08-07",
            "prompt_tokens": 328,
            "completion_tokens": 252,
            "total_tokens": 580,
            "cache_read_tokens": 128,
            "reasoning_tokens": 192,
            "usage": {"web_searches": 1},
            "pricing_context": {"service_tier": "flex"},
            "attributes": {"finish_reason": "completed", "tool_calls": 1},
        },
        ("openai", "responses"),
        "openai.types.responses:Response",
    ),
    "openai decisions": Golden(
        {
            "model": "gpt-6-luna",
            "answers": [{"type": "predicate", "probability": 0.9}],
            "usage": {
                "input_tokens": 90,
                "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 10},
                "output_tokens": 4,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 94,
            },
        },
        {
            "model": "gpt-6-luna",
            "prompt_tokens": 90,
            "completion_tokens": 4,
            "total_tokens": 94,
            "cache_read_tokens": 64,
            "cache_write_tokens": 10,
        },
        ("openai", "responses"),
        "openai.types.decision:Decision",
    ),
    "openai embeddings": Golden(
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        {
            "kind": "embedding",
            "model": "text-embedding-3-small",
            "prompt_tokens": 8,
            "completion_tokens": 0,
            "total_tokens": 8,
        },
        ("openai", "embeddings"),
        "openai.types:CreateEmbeddingResponse",
    ),
    "openai transcription by tokens": Golden(
        {
            "text": "hello",
            "usage": {
                "type": "tokens",
                "input_tokens": 14,
                "input_token_details": {"text_tokens": 4, "audio_tokens": 10},
                "output_tokens": 45,
                "total_tokens": 59,
            },
        },
        {"prompt_tokens": 14, "completion_tokens": 45, "total_tokens": 59, "usage": {"input_audio_tokens": 10}},
        None,
        "openai.types.audio:Transcription",
    ),
    "openai transcription by seconds": Golden(
        {"text": "hello", "usage": {"type": "duration", "seconds": 8.47}},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "usage": {"audio_seconds": 9}},
        None,
        "openai.types.audio:Transcription",
    ),
    "openai images": Golden(
        {
            "created": 1_767_000_000,
            "data": [{"b64_json": "aGk="}],
            "usage": {
                "input_tokens": 150,
                "input_tokens_details": {"text_tokens": 50, "image_tokens": 100},
                "output_tokens": 1000,
                "output_tokens_details": {"text_tokens": 0, "image_tokens": 1000},
                "total_tokens": 1150,
            },
        },
        {
            "prompt_tokens": 150,
            "completion_tokens": 1000,
            "total_tokens": 1150,
            "usage": {"input_image_tokens": 100, "output_image_tokens": 1000},
        },
        ("openai", "images"),
        "openai.types:ImagesResponse",
    ),
    "anthropic": Golden(
        MESSAGE,
        {
            "model": "claude-sonnet-4-5-20250929",
            "prompt_tokens": 4650,
            "completion_tokens": 210,
            "total_tokens": 4860,
            "cache_read_tokens": 4000,
            "cache_write_tokens": 600,
            "cache_write_1h_tokens": 200,
            "reasoning_tokens": 90,
            "usage": {"web_searches": 3},
            "pricing_context": {"service_tier": "standard"},
            "attributes": {"finish_reason": "tool_use", "tool_calls": 1},
        },
        ("anthropic", "default"),
        "anthropic.types:Message",
    ),
    "anthropic with a compaction": Golden(
        {
            **MESSAGE,
            "content": [],
            "stop_reason": "end_turn",
            "usage": {
                "input_tokens": 100,
                "output_tokens": 20,
                "cache_read_input_tokens": 0,
                "cache_creation_input_tokens": 0,
                "speed": "fast",
                "iterations": [
                    {
                        "type": "compaction",
                        "input_tokens": 7000,
                        "output_tokens": 500,
                        "cache_read_input_tokens": 1000,
                        "cache_creation_input_tokens": 0,
                    },
                    {
                        "type": "message",
                        "input_tokens": 100,
                        "output_tokens": 20,
                        "cache_read_input_tokens": 0,
                        "cache_creation_input_tokens": 0,
                    },
                ],
            },
        },
        {
            "model": "claude-sonnet-4-5-20250929",
            "prompt_tokens": 8100,
            "completion_tokens": 520,
            "total_tokens": 8620,
            "cache_read_tokens": 1000,
            "pricing_context": {"speed": "fast"},
            "attributes": {"finish_reason": "end_turn"},
        },
        None,
        "anthropic.types.beta:BetaMessage",
    ),
    "google": Golden(
        GENERATED,
        {
            "model": "gemini-2.5-flash",
            "prompt_tokens": 1030,
            "completion_tokens": 120,
            "total_tokens": 1150,
            "cache_read_tokens": 500,
            "reasoning_tokens": 40,
            "usage": {"input_tool_tokens": 30, "input_image_tokens": 258, "cache_image_read_tokens": 0},
            "attributes": {"finish_reason": "STOP", "tool_calls": 1},
        },
        ("google", "default"),
    ),
    "google with audio and video": Golden(
        {
            "modelVersion": "gemini-2.5-flash",
            "usageMetadata": {
                "promptTokenCount": 900,
                "candidatesTokenCount": 10,
                "totalTokenCount": 910,
                "promptTokensDetails": [
                    {"modality": "TEXT", "tokenCount": 100},
                    {"modality": "AUDIO", "tokenCount": 300},
                    {"modality": "VIDEO", "tokenCount": 500},
                ],
                "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 10}],
            },
        },
        {
            "model": "gemini-2.5-flash",
            "prompt_tokens": 900,
            "completion_tokens": 10,
            "total_tokens": 910,
            "usage": {"input_audio_tokens": 300, "input_video_tokens": 500},
        },
        ("google", "default"),
    ),
    "bedrock converse": Golden(
        {
            "output": {"message": {"role": "assistant", "content": [{"text": "hi"}, {"toolUse": {"name": "time"}}]}},
            "stopReason": "tool_use",
            "usage": {
                "inputTokens": 30,
                "outputTokens": 40,
                "cacheReadInputTokens": 200,
                "cacheWriteInputTokens": 100,
                "totalTokens": 370,
            },
            "metrics": {"latencyMs": 1200},
            "ResponseMetadata": {"RequestId": "0d6a1b7e-9f5e-4a6c-8d2a-5a0e0d1f2b3c"},
        },
        {
            "prompt_tokens": 330,
            "completion_tokens": 40,
            "total_tokens": 370,
            "cache_read_tokens": 200,
            "cache_write_tokens": 100,
            "attributes": {
                "finish_reason": "tool_use",
                "tool_calls": 1,
                "request_id": "0d6a1b7e-9f5e-4a6c-8d2a-5a0e0d1f2b3c",
            },
        },
        ("aws", "default"),
    ),
}
