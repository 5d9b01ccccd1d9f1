"""Spans of Cost Katana: bodies that a client sends, and the records that are made from them."""

from __future__ import annotations

import json
from typing import Any

from kit.builders import ENDED_NS
from tokentrace.dialect.costkatana import (
    Place,
    decode_end,
    decode_start,
    end_of,
    start_of,
)
from tokentrace.records import Span, Started
from tokentrace.units import MS

NOW_NS = ENDED_NS + 7 * MS


SPAN_ID = "5f0c7d1e-6f0f-4a57-9a0e-3f0a6a1c2b3d"


WHERE = Place("root-of-all", "session-1")


#: START and END have a value for each field of a start and an end in Cost Katana's SDK, except ``error``.
START: dict[str, Any] = {
    "sessionId": "session-1",
    "parentId": "parent-1",
    "name": "answer",
    "type": "llm",
    "metadata": {"userId": "u-1", "label": "support", "provider": "openai", "step": 1, "deep": {"a": [1, "b"]}},
    "startedAt": "2026-03-15T14:23:01.441Z",
}


END: dict[str, Any] = {
    "status": "ok",
    "model": "gpt-4o",
    "tokens": {"input": 512, "output": 128},
    "costUSD": 0.00448,
    "tool": "search",
    "resourceIds": ["doc-1", "doc-2"],
    "metadata": {"step": 2, "ttft_ms": 320.5, "eval.score": 0.875},
    "endedAt": "2026-03-15T15:23:02.681+01:00",
}


def encoded(**fields: Any) -> bytes:
    """Return *fields* as a JSON body."""
    return json.dumps(fields).encode()


def started(caller: str = "", **overrides: Any) -> Started:
    """Return the record of START with *overrides*."""
    return start_of(decode_start(encoded(**{**START, **overrides})), SPAN_ID, WHERE, NOW_NS, caller)


def finished(end: dict[str, Any] | None = None, *, caller: str = "", **overrides: Any) -> Span:
    """Return the span that START with *overrides* becomes when it ends with *end* (None = END)."""
    return end_of(started(caller, **overrides), decode_end(encoded(**(END if end is None else end))), NOW_NS)
