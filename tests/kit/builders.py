"""Builders of a valid span and a valid batch; a test passes only the fields that matter to it."""

from __future__ import annotations

from itertools import count
from typing import Any

from tokentrace.records import Batch, Span
from tokentrace.units import MS

#: The documented example span: 2026-03-15T14:23:01.441Z to 14:23:02.681Z, Unix nanoseconds.
STARTED_NS = 1_773_584_581_441_000_000
ENDED_NS = STARTED_NS + 1240 * MS


_numbers = count(2)


def make_span(**overrides: Any) -> Span:
    """
    Return a finished call to gpt-4o with 512 + 128 tokens in 1240 ms.

    ``total_tokens`` is the sum if not given; ``span_id`` is unique if not given, because a span that is told twice
    counts once.
    """
    fields: dict[str, Any] = {
        "trace_id": "7f3a1c2b-0000-4000-8000-000000000001",
        "span_id": f"a1b2c3d4-0000-4000-8000-{next(_numbers):012x}",
        "name": "summarize-document",
        "kind": "llm",
        "model": "gpt-4o",
        "provider": "openai",
        "status": "ok",
        "started_ns": STARTED_NS,
        "ended_ns": ENDED_NS,
        "latency_ns": 1240 * MS,
        "prompt_tokens": 512,
        "completion_tokens": 128,
        "arrived_ns": ENDED_NS,
        "source": "spans",
        **overrides,
    }
    fields.setdefault("total_tokens", fields["prompt_tokens"] + fields["completion_tokens"])
    return Span(**fields)


def make_batch(*spans: Span, **overrides: Any) -> Batch:
    """Return the first batch of a reporter, with *spans* or else one default span."""
    fields: dict[str, Any] = {
        "id": "shop.web.0123456789abcdef0123456789abcdef",
        "sequence": 1,
        "arrived_ns": ENDED_NS,
        "source": "web",
        "spans": list(spans) or [make_span()],
        **overrides,
    }
    return Batch(**fields)
