"""The spans that ``make.py`` sends: the same at every run, but for when they end."""

from __future__ import annotations

import random
from typing import Any

from tokentrace.client.reporter import Reporter
from tokentrace.records import Span
from tokentrace.units import DAY, HOUR, MINUTE, SECOND, render_instant

SHARDS = 4
MODELS = (
    ("gpt-4o", "openai", "llm"),
    ("gpt-4o-mini", "openai", "llm"),
    ("claude-sonnet-4-5", "anthropic", "llm"),
    ("gemini-2.5-flash", "google", "llm"),
    ("house-model", "house", "llm"),
    ("nobody-prices-this", "somewhere", "llm"),
    ("text-embedding-3-small", "openai", "embedding"),
)
OTHER_KINDS = ("tool", "retrieval", "database", "custom", "http", "agent", "workflow", "chain")
CALLERS = ("checkout", "search", "support", "")


class Traffic:
    """The same spans at every run, but for when they end."""

    def __init__(self, now_ns: int) -> None:
        self.random, self.now_ns = random.Random(9), now_ns
        self.traces = 0
        self.ids: list[tuple[str, str]] = []

    def ended(self) -> int:
        """
        An instant of the last ten minutes, or within ten minutes of some hours or days ago.

        Not anywhere in between: a snapshot has a piece for every stretch of time that holds something, and hundreds of
        pieces would only make the tests slow.
        """
        ago = self.random.choice([0, 0, 5 * HOUR, 19 * HOUR, 3 * DAY, 24 * DAY])
        return self.now_ns - ago - self.random.randrange(SECOND, 10 * MINUTE)

    def trace(self) -> list[dict[str, Any]]:
        """Spans of one trace, of every sort there is."""
        roll, self.traces = self.random, self.traces + 1
        trace_id = f"trace-{self.traces:03d}"
        ended_ns, caller = self.ended(), roll.choice(CALLERS)
        user = roll.choice(["alice", "bob", "carol", None])
        spans: list[dict[str, Any]] = []
        for number in range(roll.randrange(1, 6)):
            status = roll.choices(["ok", "error", "timeout"], [8, 1, 1])[0]
            span: dict[str, Any] = {
                "trace_id": trace_id,
                "span_id": f"{trace_id}-{number}",
                "parent_span_id": f"{trace_id}-{roll.randrange(number)}" if number else None,
                "name": roll.choice(["answer", "summarize", "plan", "search"]),
                "caller": caller,
                "status": status,
                "latency_ms": roll.randrange(5, 9000),
                "started_at": render_instant(ended_ns - roll.randrange(10, 9000) * SECOND // 1000),
                "ended_at": render_instant(ended_ns),
                "user_id": user,
                "session_id": f"own-{self.traces % 7}" if self.traces % 3 == 0 else None,
                "attributes": self.attributes(),
            }
            if status != "ok":
                span["error"] = f"it failed, mail admin{number}@example.com"
            if number and roll.random() < 0.35:
                span["kind"] = roll.choice(OTHER_KINDS)
                if roll.random() < 0.3:
                    span["cost_usd"] = roll.randrange(1, 90_000) / 1e7
            else:
                span |= self.call()
            spans.append({key: value for key, value in span.items() if value is not None})
            self.ids.append((trace_id, span["span_id"]))
        return spans

    def call(self) -> dict[str, Any]:
        roll = self.random
        model, provider, kind = roll.choice(MODELS)
        prompt = roll.randrange(1, 20_000)
        made = {"model": model, "provider": provider, "kind": kind, "prompt_tokens": prompt}
        if kind == "llm":
            made |= {"comp_tokens": roll.randrange(1, 3000), "ttft_ms": roll.randrange(1, 900)}
            if roll.random() < 0.3:
                made["cache_read_tokens"] = roll.randrange(prompt)
        if roll.random() < 0.2:
            made["cost_usd"] = roll.randrange(1, 10**9) / 1e9
        return made

    def attributes(self) -> dict[str, Any]:
        roll = self.random
        found: dict[str, Any] = {"workflow": roll.choice(["billing", "refunds", "legal"])}
        if roll.random() < 0.4:
            found["documents"] = roll.choice([1, 2.5, -3, 1000])
        if roll.random() < 0.3:
            found["eval.score"] = roll.randrange(1000) / 1000
        if roll.random() < 0.2:
            found["step"] = roll.choice(["first", "second"])
        return found


def mist(number: int, now_ns: int) -> dict[str, Any]:
    payload = {
        "trace_id": f"mist-{number}",
        "span_id": f"mist-{number}-0",
        "operation": "infer",
        "start_ns": now_ns - 2 * SECOND,
        "end_ns": now_ns - SECOND - number * 1000,
        "status": ["ok", "error"][number % 2],
        "attrs": {"model": "gpt-4o-mini", "provider": "openai", "tokens_in": 300 + number, "tokens_out": 40},
    }
    head = {"version": "1", "id": f"mist-message-{number}", "source": "infermux", "type": "trace.span"}
    return {**head, "timestamp_ns": now_ns, "payload": payload}


def report(url: str, first: int, count: int) -> None:
    """Spans of a reporter, in numbered batches."""
    reporter = Reporter("batch job", url, shards=SHARDS)
    for number in range(first, first + count):
        reporter.report(
            Span(
                trace_id=f"reported-{number // 3}",
                span_id=f"reported-{number}",
                name="nightly",
                model="gpt-4o",
                provider="openai",
                prompt_tokens=100 + number,
                completion_tokens=number,
                attributes={"workflow": "billing", "documents": number},
            )
        )
        if number % 10 == 9:
            reporter.flush(10)
    reporter.close()
