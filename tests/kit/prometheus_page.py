"""The documented series of ``GET /metrics/prometheus``, and functions that read the page."""

from __future__ import annotations

import subprocess
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from kit.debian import program
from kit.pipeline import Pipeline

PAGE = "/metrics/prometheus"
LATENCY_EDGES = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10000, 30000)
TOKEN_EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
#: Name of a documented family -> (type, labels of its series).
FAMILIES = {
    "tokentrace_cost_total": ("counter", {"model", "provider", "caller"}),
    "tokentrace_spans_total": ("counter", {"status", "model", "provider"}),
    "tokentrace_tokens_total": ("counter", {"model", "token_type"}),
    "tokentrace_prompt_tokens_total": ("counter", {"model", "provider"}),
    "tokentrace_completion_tokens_total": ("counter", {"model", "provider"}),
    "tokentrace_errors_total": ("counter", {"model", "provider"}),
    "tokentrace_timeouts_total": ("counter", {"model", "provider"}),
    "tokentrace_unpriced_spans_total": ("counter", {"model", "provider"}),
    "tokentrace_partly_priced_spans_total": ("counter", {"model", "provider"}),
    "tokentrace_unpriced_tokens_total": ("counter", {"reason"}),
    "tokentrace_latency_ms": ("histogram", {"model"}),
    "tokentrace_ttft_ms": ("histogram", {"model"}),
    "tokentrace_prompt_tokens": ("histogram", {"model"}),
    "tokentrace_completion_tokens": ("histogram", {"model"}),
    "tokentrace_cost_per_call": ("gauge", set()),
    "tokentrace_error_rate": ("gauge", set()),
    "tokentrace_timeout_rate": ("gauge", set()),
    "tokentrace_quality_score": ("gauge", {"model"}),
    "tokentrace_quality_score_p10": ("gauge", set()),
    "tokentrace_quality_score_p50": ("gauge", set()),
    "tokentrace_transport_sent_total": ("counter", set()),
    "tokentrace_transport_failed_total": ("counter", set()),
    "tokentrace_transport_dropped_total": ("counter", set()),
    "tokentrace_transport_queue_depth": ("gauge", set()),
    "tokentrace_alert_firings_total": ("counter", {"rule"}),
    "tokentrace_alert_delivery_failed_total": ("counter", {"rule"}),
    "tokentrace_custom_legal_doc_cost_total": ("counter", set()),
    "tokentrace_custom_agent_steps_total": ("counter", set()),
    "tokentrace_custom_answer_score": ("gauge", set()),
    "tokentrace_custom_legal_prompt_tokens": ("gauge", set()),
}
HISTOGRAMS = {
    "tokentrace_latency_ms": ("latency_ms", LATENCY_EDGES),
    "tokentrace_ttft_ms": ("ttft_ms", LATENCY_EDGES),
    "tokentrace_prompt_tokens": ("prompt_tokens", TOKEN_EDGES),
    "tokentrace_completion_tokens": ("comp_tokens", TOKEN_EDGES),
}
#: Characters that the text format has to escape, and letters beyond ASCII.
ODD = 'mo"del\\n {x="y"} 日本'
RULE = 'spans "over" 50 %\\n Ü'
SETTINGS = f"""
alerts:
  - name: '{RULE}'
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    cooldown: 1h
custom_metrics:
  - {{name: legal_doc_cost, type: sum, field: cost, filter_key: document_type, filter_val: legal}}
  - {{name: agent_steps, type: count, filter_key: step_name}}
  - {{name: answer_score, type: avg, field: attr.eval.score}}
  - {{name: legal_prompt_tokens, type: p95, field: prompt_tokens, filter_key: document_type, filter_val: legal}}
"""

Labels = frozenset[tuple[str, str]]
#: (Name of the sample, its labels) -> value.
Series = dict[tuple[str, Labels], float]


def parse(text: str) -> Series:
    """Return all samples of a page; check that each series occurs once."""
    samples: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, key
            samples[key] = sample.value
    return samples


def by(series: Series, name: str, *labels: str) -> dict[Any, float]:
    """Return the values of *name* summed by *labels*; a key is a text for one label, a tuple for several."""
    sums: dict[Any, float] = {}
    for (sample, pairs), value in series.items():
        if sample == name:
            values = dict(pairs)
            key = values[labels[0]] if len(labels) == 1 else tuple(values[label] for label in labels)
            sums[key] = sums.get(key, 0) + value
    return sums


def one(series: Series, name: str) -> float:
    """Return the value of the series *name*, which has no labels."""
    return series[name, frozenset()]


def total(series: Series, name: str) -> float:
    return sum(value for (sample, _), value in series.items() if sample == name)


def cumulative(series: Series) -> Series:
    """Return the samples that must never decrease: counters, and all parts of histograms."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in series.items() if key[0].startswith("tokentrace_") and key[0].endswith(ends)}


def wait_fired(pipeline: Pipeline, path: str) -> None:
    """Wait until the page shows a firing; fail after 20 s."""

    def fired() -> bool:
        answer = pipeline.get(path)
        return answer.status == 200 and total(parse(answer.body.decode()), "tokentrace_alert_firings_total") > 0

    pipeline.until(fired, "a firing in the page", 20)


def lint(page: bytes) -> subprocess.CompletedProcess[bytes]:
    promtool = program("prometheus", "promtool")
    return subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60)
