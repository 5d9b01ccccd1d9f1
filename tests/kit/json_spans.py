"""Builders of spans in the JSON form of ``POST /spans``, with ids that no other test uses."""

from __future__ import annotations

import uuid
from typing import Any


def fresh(prefix: str) -> str:
    """Return a new id that starts with *prefix*."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


def json_span(**fields: Any) -> dict[str, Any]:
    """Return a call to gpt-4o with new ids; *fields* are added or replaced."""
    return {
        "trace_id": fresh("trace"),
        "span_id": fresh("span"),
        "name": "x",
        "kind": "llm",
        "model": "gpt-4o",
        "prompt_tokens": 10,
        "comp_tokens": 2,
        "cost_usd": 0.5,
        **fields,
    }


def json_call(**fields: Any) -> dict[str, Any]:
    """Return a valid call to gpt-4o with 512 + 128 tokens, without ids and without a cost."""
    return {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
