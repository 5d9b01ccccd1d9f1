"""A pipeline with known traffic, queries of metrics, and the expected numbers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from kit.json_spans import fresh
from kit.pipeline import Answer, Pipeline
from tokentrace.units import parse_duration

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DIMENSIONS = ("model", "caller", "provider", "name", "status", "kind")
ROLLUPS = ("http", "agent", "workflow", "chain")
TRANSPORT = ("transport_sent", "transport_failed", "transport_dropped", "transport_queue_depth")
FIRINGS = ("alert_firings", "alert_delivery_failed")
SETTINGS = """
custom_metrics:
  - {name: legal_doc_cost, type: sum, field: cost, filter_key: document_type, filter_val: legal}
  - {name: agent_steps, type: count, filter_key: attr.step_name}
  - {name: answer_score, type: avg, field: attr.eval.score}
  - {name: legal_prompts, type: p95, field: prompt_tokens, filter_key: document_type, filter_val: legal}
  - {name: latency_of_legal, type: avg, field: latency_ms, filter_key: document_type, filter_val: legal}
  - {name: cost_of_legal, type: avg, field: cost, filter_key: document_type, filter_val: legal}
"""
CUSTOM = ("legal_doc_cost", "agent_steps", "answer_score", "legal_prompts", "latency_of_legal", "cost_of_legal")


def make(**fields: Any) -> dict[str, Any]:
    made = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
    return {"trace_id": fresh("trace"), "span_id": fresh("span"), **made}


def send(serving: Pipeline, spans: Sequence[Mapping[str, Any]]) -> None:
    """Send *spans* and wait until they are folded and stored."""
    answer = serving.post("/spans", [*spans, mark := make(kind="custom", model="", name=fresh("mark"))])
    assert answer.status == 202, answer.body
    path = f"/metrics/span_count?window=30d&kind=custom&name={mark['name']}"
    serving.until(lambda: serving.get(path).json()["value"] == 1, "folded")
    serving.until(lambda: serving.get(f"/traces/{mark['trace_id']}").status == 200, "stored")


def ask(serving: Pipeline, path: str, /, **query: str) -> Any:
    """Return the answer to ``/metrics<path>``; ``attr__x`` is the parameter ``attr.x``. A 503 is retried for 20 s."""
    parameters = {key.replace("attr__", "attr."): value for key, value in query.items()}
    answer = serving.get(f"/metrics{path}?{urlencode(parameters)}")
    deadline = time.monotonic() + 20
    while answer.status == 503 and time.monotonic() < deadline:
        time.sleep(0.5)  # on a busy machine an aggregator may not answer in time
        answer = serving.get(f"/metrics{path}?{urlencode(parameters)}")
    assert answer.status == 200, (path, query, answer.status, answer.body[:500])
    return answer.json()


def refused(answer: Answer, status: int) -> str:
    assert answer.status == status, (answer.status, answer.body[:500])
    body = answer.json()
    assert list(body) == ["error"], body
    return str(body["error"])


def moment(text: str) -> datetime:
    assert INSTANT.fullmatch(text), text
    return datetime.fromisoformat(text)


def make_traffic(caller: str) -> list[dict[str, Any]]:
    """Return calls of every status, an embedding, a tool and an agent; one call is unpriced, one is partly priced."""
    spans = []
    for number in range(12):
        attributes: dict[str, Any] = {"tag": caller, "workflow": ("plan", "write", "check")[number % 3]}
        if number < 5:
            attributes |= {"eval.score": number / 10, "document_type": ("legal", "news")[number % 2]}
        if number % 4 == 0:
            attributes |= {"step_name": "plan", "depth": number - 4, "ratio": number / 8}
        spans.append(
            make(
                model=("gpt-4o", "gpt-4o-mini", "own-7b")[number % 3],
                provider="openai" if number % 3 < 2 else "",
                name=f"step-{number % 2}",
                prompt_tokens=100 * (number + 1),
                comp_tokens=10 * number,
                cost_usd=0.001 * (number + 1),
                latency_ms=number * 100,
                ttft_ms=number * 7 if number % 2 else 0,
                status={8: "error", 9: "timeout", 10: "error"}.get(number, "ok"),
                attributes=attributes,
                cache_read_tokens=number,
                reasoning_tokens=number,
            )
        )
    tag = {"tag": caller}
    spans += [
        make(model="no-such-model", provider="", latency_ms=50, attributes=tag),
        make(model="text-embedding-3-small", prompt_tokens=3, comp_tokens=1, attributes=tag, cost_usd=None),
        make(kind="embedding", model="text-embedding-3-small", prompt_tokens=1000, comp_tokens=0, cost_usd=0.5),
        make(kind="tool", model="", cost_usd=4, latency_ms=9000, attributes={**tag, "eval.score": 0.9}),
        make(kind="agent", model="", cost_usd=90, latency_ms=9999, attributes={**tag, "eval.score": 1, "only": "me"}),
    ]
    for span in spans:
        span["caller"] = caller
        span["attributes"] = {**span.get("attributes", {}), **tag}
        if span["kind"] in ("tool", "agent"):
            span["prompt_tokens"] = span["comp_tokens"] = 0
        if span.get("cost_usd", 0) is None:
            del span["cost_usd"]
    return spans


#: Model -> cost of its call that reports none, nano-dollars, by the price tables; None = unpriced.
PRICED = {"no-such-model": None, "text-embedding-3-small": 60}


def nusd(span: Mapping[str, Any]) -> int | None:
    return round(span["cost_usd"] * 1e9) if "cost_usd" in span else PRICED[span["model"]]


class Expected:
    """The expected numbers of *spans*; *kind* "" = calls are of kind llm, cost and scores of every kind."""

    def __init__(self, spans: Iterable[Mapping[str, Any]], kind: str = "") -> None:
        every = [span for span in spans if kind in ("", "all", span["kind"])]
        self.calls = [span for span in every if span["kind"] == "llm" or kind]
        self.spent = [span for span in self.calls if span["kind"] not in ROLLUPS]
        self.priced = [span for span in self.spent if nusd(span) is not None]
        self.paid = [span for span in every if span["kind"] not in ROLLUPS]
        self.scores = [a["eval.score"] for a in (span["attributes"] for span in every) if "eval.score" in a]

    def numbers(self, field: str, *, unset: bool = False) -> list[float]:
        values = [span.get(field, 0) for span in self.calls]
        return [value for value in values if value] if unset else values

    def share(self, *statuses: str) -> float | None:
        return self.count(*statuses) / len(self.calls) if self.calls else None

    def count(self, *statuses: str) -> int:
        return sum(span.get("status", "ok") in statuses for span in self.calls)

    @property
    def cost(self) -> float | None:
        known = [cost for span in self.paid if (cost := nusd(span)) is not None]
        return sum(known) / 1e9 if known else None

    def metric(self, name: str) -> tuple[float | None, int]:
        """Return (value, number of contributing spans) of a metric."""
        calls, paid = len(self.calls), len(self.paid)
        times, first = self.numbers("latency_ms", unset=True), self.numbers("ttft_ms", unset=True)
        prompts, completions = (
            [span.get(field, 0) for span in self.spent] for field in ("prompt_tokens", "comp_tokens")
        )
        split = [span for span in self.spent if span.get("prompt_tokens") or span.get("comp_tokens")]
        quantiles = {
            "latency": times,
            "ttft": first,
            "prompt_token": [span.get("prompt_tokens", 0) for span in split],
            "completion_token": [span.get("comp_tokens", 0) for span in split],
            "quality": self.scores,
        }
        family, _, percent = name.rpartition("_p")
        if family in quantiles and percent.isdigit():
            values = quantiles[family]
            return float(np.quantile(values, int(percent) / 100)) if values else None, len(values)
        others: dict[str, tuple[float | None, int]] = {
            "total_cost": (self.cost, paid),
            "cost_per_call": (
                sum(nusd(span) or 0 for span in self.priced) / 1e9 / len(self.priced) if self.priced else None,
                len(self.priced),
            ),
            "unpriced_span_count": (sum(nusd(span) is None for span in self.paid), paid),
            "partly_priced_span_count": (
                sum("cost_usd" not in span and nusd(span) is not None for span in self.paid),
                paid,
            ),
            "prompt_tokens": (sum(prompts) if self.spent else None, len(self.spent)),
            "completion_tokens": (sum(completions) if self.spent else None, len(self.spent)),
            "total_tokens": (sum(prompts) + sum(completions) if self.spent else None, len(self.spent)),
            "latency_avg": (float(np.mean(times)) if times else None, len(times)),
            "error_rate": (self.share("error", "timeout"), calls),
            "error_count": (self.count("error", "timeout"), calls),
            "timeout_rate": (self.share("timeout"), calls),
            "timeout_count": (self.count("timeout"), calls),
            "span_count": (calls, calls),
            "quality_score": (float(np.mean(self.scores)) if self.scores else None, len(self.scores)),
        }
        return others[name]


def grouped(spans: Iterable[Mapping[str, Any]], dimension: str) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for span in spans:
        default = "ok" if dimension == "status" else ""
        groups.setdefault(span.get(dimension, default) or "unknown", []).append(span)
    return dict(sorted(groups.items()))


def assert_coverage(shown: Mapping[str, Any], window: str = "1h") -> None:
    """Check that the interval of the answer contains the window and little more, and that the answer is complete."""
    asked, now = timedelta(microseconds=parse_duration(window) / 1000), datetime.now(UTC)
    begins, ends = moment(shown["from"]), moment(shown["to"])
    assert ends - begins >= asked
    assert ends - begins <= asked * 1.01 + timedelta(seconds=61)
    assert now - timedelta(seconds=30) < ends <= now + timedelta(seconds=2)
    assert shown["since"] is None
    assert "incomplete" not in shown


def expected_groups(spans: Sequence[Mapping[str, Any]], kind: str = "") -> dict[str, dict[str, Any]]:
    """Return group of metrics -> its expected numbers for *spans*."""
    of = Expected(spans, kind)

    def value(name: str) -> float | None:
        return of.metric(name)[0]

    return {
        "cost": {
            "total_usd": of.cost,
            "per_call_usd": value("cost_per_call"),
            "unpriced_span_count": sum(nusd(span) is None for span in of.paid),
            "partly_priced_span_count": value("partly_priced_span_count"),
            "span_count": len(of.paid),
            "per_call_span_count": len(of.priced),
        },
        "tokens": {
            "prompt_total": value("prompt_tokens"),
            "completion_total": value("completion_tokens"),
            "unclassified_total": 0 if of.spent else None,
            "total": value("total_tokens"),
            "cache_read_total": sum(of.numbers("cache_read_tokens")) if of.spent else None,
            "cache_write_total": 0 if of.spent else None,
            "cache_write_1h_total": 0 if of.spent else None,
            "reasoning_total": sum(of.numbers("reasoning_tokens")) if of.spent else None,
            "prompt_p50": value("prompt_token_p50"),
            "prompt_p95": value("prompt_token_p95"),
            "completion_p50": value("completion_token_p50"),
            "completion_p95": value("completion_token_p95"),
        },
        "latency": {
            "p50_ms": value("latency_p50"),
            "p95_ms": value("latency_p95"),
            "p99_ms": value("latency_p99"),
            "avg_ms": value("latency_avg"),
            "ttft_p50_ms": value("ttft_p50"),
            "ttft_p95_ms": value("ttft_p95"),
        },
        "errors": {
            "rate": value("error_rate"),
            "count": of.count("error", "timeout"),
            "timeout_rate": value("timeout_rate"),
            "timeout_count": of.count("timeout"),
        },
        "quality": {
            "score_avg": value("quality_score"),
            "score_p10": value("quality_p10"),
            "score_p50": value("quality_p50"),
            "scored_span_count": len(of.scores),
        },
    }


def close_to(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if value is None else pytest.approx(value, rel=1e-9) for key, value in wanted.items()}


UNPRICED = {
    "no-such-model": {"unpriced_span_count": 1, "partly_priced_span_count": 0},
    "text-embedding-3-small": {"unpriced_span_count": 0, "partly_priced_span_count": 1},
}


def serve_metrics(directory: Path) -> Iterator[Pipeline]:
    """Start a pipeline with custom metrics, yield it, and stop it."""
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    yield serving
    assert serving.stop() == 0


def send_traffic(serving: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    """Send the spans of ``make_traffic`` for a new caller; return (caller, spans)."""
    caller = fresh("traffic")
    spans = make_traffic(caller)
    send(serving, spans)
    return caller, spans
