"""``GET /metrics/prometheus``: its page, and what promtool and a real Prometheus make of it through kills."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.debian import program
from kit.pipeline import TRACE, Answer, Pipeline, SeparateServices, finish, free_port, http, replay

PAGE = "/metrics/prometheus"
LATENCY_EDGES = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10000, 30000)
TOKEN_EDGES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
#: Documented family -> (type, labels of its series).
FAMILIES = {
    "tokentrace_cost_total": ("counter", {"model", "provider", "caller"}),
    "tokentrace_spans_total": ("counter", {"status", "model", "provider"}),
    "tokentrace_tokens_total": ("counter", {"model", "token_type"}),
    "tokentrace_prompt_tokens_total": ("counter", {"model", "provider"}),
    "tokentrace_completion_tokens_total": ("counter", {"model", "provider"}),
    "tokentrace_errors_total": ("counter", {"model", "provider"}),
    "tokentrace_timeouts_total": ("counter", {"model", "provider"}),
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
#: What a text format has to escape, and letters beyond ASCII.
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
    """Every sample of a page, each series once."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def by(series: Series, name: str, *labels: str) -> dict[Any, float]:
    """The values of *name* added up by the values of *labels*: a text for one label, a tuple for more."""
    found: dict[Any, float] = {}
    for (sample, own), value in series.items():
        if sample == name:
            given = dict(own)
            key = given[labels[0]] if len(labels) == 1 else tuple(given[label] for label in labels)
            found[key] = found.get(key, 0) + value
    return found


def one(series: Series, name: str) -> float:
    """The value of a series without labels."""
    return series[name, frozenset()]


def total(series: Series, name: str) -> float:
    return sum(value for (sample, _), value in series.items() if sample == name)


def cumulative(series: Series) -> Series:
    """What may never fall: counters, and every part of a histogram."""
    ends = ("_total", "_bucket", "_count", "_sum")
    return {key: value for key, value in series.items() if key[0].startswith("tokentrace_") and key[0].endswith(ends)}


def wait_fired(pipeline: Pipeline, path: str) -> None:
    """Until the rule has fired: from then on the page stands still."""

    def fired() -> bool:
        answer = pipeline.get(path)
        return answer.status == 200 and total(parse(answer.body.decode()), "tokentrace_alert_firings_total") > 0

    pipeline.until(fired, "a firing in the page", 20)


def lint(page: bytes) -> subprocess.CompletedProcess[bytes]:
    promtool = program("prometheus", "promtool")
    return subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60)


# --- one page over spans whose numbers are known


def make_spans() -> list[dict[str, Any]]:
    """Calls on and beside the edges of all buckets, of every status, with and without a model."""
    models = [("gpt-4o", "openai"), ("claude-sonnet-4", "anthropic"), ("", ""), (ODD, "openai")]
    prompts = [0, 1, 64, 65, 128, 129, 4096, 32767, 32768, 32769, 100_000]
    latencies = [0, 0.25, 50, 50.001, 100, 999.999, 1000, 30000, 30000.001, 61000, 0, 200, 3000]
    spans: list[dict[str, Any]] = []
    for number in range(88):
        model, provider = models[number % 4]
        status = ("ok", "ok", "ok", "error", "ok", "timeout")[number // 2 % 6]
        if not model:
            # A call that went well has a model.
            status = ("error", "timeout")[number // 4 % 2]
        attributes: dict[str, Any] = {}
        if number % 3 == 0:
            attributes["eval.score"] = (number % 11) / 10
        if number % 5 < 2:
            attributes["document_type"] = ("legal", "news")[number % 5]
        if number % 7 == 0:
            attributes["step_name"] = "plan"
        spans.append(
            {
                "model": model,
                "provider": provider,
                "caller": ("chat", "batch", "")[number % 3],
                "status": status,
                "prompt_tokens": prompts[number % len(prompts)],
                "comp_tokens": prompts[number * 3 % len(prompts)] + 1,
                "latency_ms": latencies[number % len(latencies)],
                "ttft_ms": latencies[number * 5 % len(latencies)] if number % 2 else 0,
                "cost_usd": (number + 1) * 0.000125,
                "attributes": attributes,
            }
        )
    # Kinds other than llm: a tool's money and score count and nothing else of it does, of an agent's only the score.
    other = {"model": "gpt-4o", "provider": "openai", "caller": "chat", "latency_ms": 77, "prompt_tokens": 7}
    spans.append({**other, "kind": "tool", "cost_usd": 0.5, "attributes": {"eval.score": 0.05}})
    spans.append({**other, "kind": "agent", "cost_usd": 0.25, "status": "error", "attributes": {"eval.score": 0.95}})
    return spans


SPANS = make_spans()
CALLS = [span for span in SPANS if "kind" not in span]
PAID = [span for span in SPANS if span.get("kind") != "agent"]


def text(span: Mapping[str, Any], label: str) -> str:
    return str(span.get(label, "ok" if label == "status" else "")) or "unknown"


def count(spans: Iterable[Mapping[str, Any]], *labels: str, of: Callable[[Any], float] = lambda _: 1) -> dict[Any, Any]:
    """What *spans* come to by *labels*, as ``by`` gives it; the model of nobody is unknown."""
    found: dict[Any, float] = {}
    for span in spans:
        values = tuple(text(span, label) for label in labels)
        key = values[0] if len(labels) == 1 else values
        found[key] = found.get(key, 0) + of(span)
    return found


def field(name: str) -> Callable[[Any], float]:
    return lambda span: float(span[name])


def bad(span: Mapping[str, Any]) -> bool:
    return bool(span["status"] in ("error", "timeout"))


def nonzero(found: Mapping[Any, float]) -> dict[Any, float]:
    """A counter that has not counted yet may be shown as 0 or not at all."""
    return {key: value for key, value in found.items() if value}


class Shown(NamedTuple):
    """A pipeline that has everything, and its page before and after."""

    pipeline: Pipeline
    before: Answer
    page: Answer
    series: Series


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    directory = tmp_path_factory.mktemp("page")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    try:
        before = serving.get(PAGE)
        sent = serving.post("/spans", SPANS)
        assert sent.status == 202, sent.body
        serving.until(lambda: serving.metrics("1h")["span_count"] == len(CALLS), "all in /metrics")
        wait_fired(serving, PAGE)
        page = serving.get(PAGE)
        assert page.status == 200, page.body
        yield Shown(serving, before, page, parse(page.body.decode()))
    finally:
        serving.stop()


def test_the_page_is_the_text_format_0_0_4(shown: Shown) -> None:
    for answer in (shown.before, shown.page):
        assert answer.status == 200
        assert {key.lower(): value for key, value in answer.headers.items()}["content-type"].startswith(
            "text/plain; version=0.0.4"
        )
        assert answer.body.endswith(b"\n")


def test_a_page_of_a_pipeline_without_spans_parses_and_counts_nothing(shown: Shown) -> None:
    series = parse(shown.before.body.decode())
    counted = {key: value for key, value in cumulative(series).items() if value}
    assert counted == {}


def test_promtool_reads_the_page_of_a_pipeline_without_spans(shown: Shown) -> None:
    done = lint(shown.before.body)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    assert {line.split()[0] for line in complaints} <= {"tokentrace_latency_ms", "tokentrace_ttft_ms"}, complaints


def test_promtool_complains_of_the_two_documented_names_in_ms_and_of_nothing_else(shown: Shown) -> None:
    done = lint(shown.page.body)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    assert {line.split()[0] for line in complaints} == {"tokentrace_latency_ms", "tokentrace_ttft_ms"}, complaints
    assert len(complaints) == 2, complaints
    assert all("abbreviated units" in line for line in complaints), complaints


@pytest.mark.parametrize("name", FAMILIES)
def test_a_documented_family_has_one_help_one_type_and_all_its_samples_below_them(shown: Shown, name: str) -> None:
    lines = shown.page.body.decode().splitlines()
    kind, _ = FAMILIES[name]
    assert [line for line in lines if line.startswith(f"# TYPE {name} ")] == [f"# TYPE {name} {kind}"]
    (help_line,) = [line for line in lines if line.startswith(f"# HELP {name} ")]
    assert help_line.removeprefix(f"# HELP {name} ").strip()
    start = lines.index(help_line)
    assert lines[start + 1] == f"# TYPE {name} {kind}"
    parts = "(_bucket|_sum|_count)" if kind == "histogram" else ""
    own = re.compile(rf"{name}{parts}[ {{]")
    places = [index for index, line in enumerate(lines) if own.match(line)]
    assert places == list(range(start + 2, start + 2 + len(places)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokentrace_cost_total", "Total cost in USD."),
        ("tokentrace_latency_ms", "Inference latency in milliseconds."),
        ("tokentrace_spans_total", "Total spans recorded."),
    ],
)
def test_the_documented_help_texts_are_used(shown: Shown, name: str, said: str) -> None:
    assert f"# HELP {name} {said}" in shown.page.body.decode().splitlines()


def test_every_series_has_the_documented_labels(shown: Shown) -> None:
    named = {}
    for name, (kind, labels) in FAMILIES.items():
        if kind == "histogram":
            named[name + "_bucket"] = labels | {"le"}
            named[name + "_sum"] = named[name + "_count"] = labels
        else:
            named[name] = labels
    found = {sample: {key for key, _ in labels} for sample, labels in shown.series if sample in named}
    assert found == {name: named[name] for name in found}
    # Of deliveries that failed there are none; everything else has been seen.
    assert set(named) - set(found) <= {"tokentrace_alert_delivery_failed_total"}


def test_counters_are_what_was_sent(shown: Shown) -> None:
    series = shown.series
    where = ("model", "provider")
    assert nonzero(by(series, "tokentrace_spans_total", "status", *where)) == count(CALLS, "status", *where)
    tokens = by(series, "tokentrace_tokens_total", "token_type", "model")
    assert {kind for kind, _ in tokens} == {"prompt", "completion"}
    for name, own in (("prompt", "prompt_tokens"), ("completion", "comp_tokens")):
        sent = count(CALLS, *where, of=field(own))
        assert nonzero(by(series, f"tokentrace_{name}_tokens_total", *where)) == nonzero(sent)
        by_model = {model: value for (kind, model), value in tokens.items() if kind == name}
        assert by_model == count(CALLS, "model", of=field(own))
    assert nonzero(by(series, "tokentrace_errors_total", *where)) == count(filter(bad, CALLS), *where)
    late = [span for span in CALLS if span["status"] == "timeout"]
    assert nonzero(by(series, "tokentrace_timeouts_total", *where)) == count(late, *where)


def test_money_is_counted_over_every_kind_that_costs(shown: Shown) -> None:
    where = ("model", "provider", "caller")
    assert nonzero(by(shown.series, "tokentrace_cost_total", *where)) == pytest.approx(
        count(PAID, *where, of=field("cost_usd")), rel=1e-12
    )


def test_what_a_span_does_not_say_is_unknown(shown: Shown) -> None:
    assert "unknown" in by(shown.series, "tokentrace_latency_ms_count", "model")
    assert ("unknown", "unknown") in by(shown.series, "tokentrace_errors_total", "model", "provider")
    assert "unknown" in by(shown.series, "tokentrace_cost_total", "caller")
    for name, labels in shown.series:
        assert all(value for _, value in labels), (name, labels)


def test_quotes_backslashes_and_letters_of_all_kinds_come_through_in_labels(shown: Shown) -> None:
    assert ODD in by(shown.series, "tokentrace_latency_ms_count", "model")
    assert by(shown.series, "tokentrace_alert_firings_total", "rule") == {RULE: 1}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_has_the_documented_buckets_which_hold_what_was_sent(shown: Shown, name: str) -> None:
    own, edges = HISTOGRAMS[name]
    # Of latency and time to first token 0 means unset.
    timed = own.endswith("_ms")
    sent: dict[str, list[float]] = {}
    for span in CALLS:
        if span[own] or not timed:
            sent.setdefault(text(span, "model"), []).append(float(span[own]))
    for model, values in sent.items():
        buckets = {
            float(dict(labels)["le"]): value
            for (sample, labels), value in shown.series.items()
            if sample == f"{name}_bucket" and dict(labels)["model"] == model
        }
        assert list(buckets) == [*edges, math.inf], "in this order"
        assert buckets == {edge: sum(value <= edge for value in values) for edge in (*edges, math.inf)}
        assert list(buckets.values()) == sorted(buckets.values())
        labels = frozenset({("model", model)})
        assert shown.series[f"{name}_count", labels] == buckets[math.inf] == len(values)
        assert shown.series[f"{name}_sum", labels] == pytest.approx(sum(values), rel=1e-9)
    assert set(nonzero(by(shown.series, f"{name}_count", "model"))) == set(sent)


def test_the_page_says_the_same_as_the_json(shown: Shown) -> None:
    series, pipeline = shown.series, shown.pipeline
    lifetime, hour = pipeline.metrics(), pipeline.metrics("1h")
    assert total(series, "tokentrace_spans_total") == lifetime["span_count"]
    assert total(series, "tokentrace_prompt_tokens_total") == lifetime["tokens"]["prompt_total"]
    assert total(series, "tokentrace_completion_tokens_total") == lifetime["tokens"]["completion_total"]
    assert total(series, "tokentrace_tokens_total") == lifetime["tokens"]["total"]
    assert total(series, "tokentrace_cost_total") == pytest.approx(lifetime["cost"]["total_usd"], rel=1e-12)
    assert by(series, "tokentrace_cost_total", "model") == pytest.approx(lifetime["cost"]["by_model"], rel=1e-12)
    assert total(series, "tokentrace_errors_total") == lifetime["errors"]["count"]
    assert total(series, "tokentrace_timeouts_total") == lifetime["errors"]["timeout_count"]
    for label in ("model", "provider", "status"):
        grouped = pipeline.get(f"/metrics?window=30d&groupby={label}").json()[f"by_{label}"]
        counts = {name: group["span_count"] for name, group in grouped.items()}
        assert by(series, "tokentrace_spans_total", label) == nonzero(counts)
    assert one(series, "tokentrace_cost_per_call") == pytest.approx(hour["cost"]["per_call_usd"], rel=1e-12)
    assert one(series, "tokentrace_error_rate") == pytest.approx(hour["errors"]["rate"], rel=1e-12)
    assert one(series, "tokentrace_quality_score_p10") == pytest.approx(hour["quality"]["score_p10"], rel=1e-12)
    assert one(series, "tokentrace_quality_score_p50") == pytest.approx(hour["quality"]["score_p50"], rel=1e-12)
    timeouts = pipeline.get("/metrics/timeout_rate").json()["value"]
    assert one(series, "tokentrace_timeout_rate") == pytest.approx(timeouts, rel=1e-12)
    scores = pipeline.get("/metrics/quality_score?groupby=model").json()["by_model"]
    assert by(series, "tokentrace_quality_score", "model") == pytest.approx(
        {model: value for model, value in scores.items() if value is not None}, rel=1e-12
    )


def scores_of(spans: Iterable[Mapping[str, Any]]) -> list[float]:
    found = [span["attributes"].get("eval.score") for span in spans]
    return [score for score in found if score is not None]


def test_gauges_are_what_was_sent_within_the_hour(shown: Shown) -> None:
    series, scores = shown.series, scores_of(SPANS)
    paid = sum(map(field("cost_usd"), PAID))
    assert one(series, "tokentrace_cost_per_call") == pytest.approx(paid / len(CALLS), rel=1e-9)
    assert one(series, "tokentrace_error_rate") == pytest.approx(len(list(filter(bad, CALLS))) / len(CALLS))
    late = [span for span in CALLS if span["status"] == "timeout"]
    assert one(series, "tokentrace_timeout_rate") == pytest.approx(len(late) / len(CALLS))
    assert one(series, "tokentrace_quality_score_p10") == pytest.approx(np.quantile(scores, 0.10))
    assert one(series, "tokentrace_quality_score_p50") == pytest.approx(np.quantile(scores, 0.50))
    for model in {text(span, "model") for span in CALLS}:
        own = scores_of(span for span in SPANS if text(span, "model") == model)
        assert by(series, "tokentrace_quality_score", "model")[model] == pytest.approx(sum(own) / len(own))


def test_metrics_of_ones_own_are_in_the_page(shown: Shown) -> None:
    series = shown.series
    legal = [span for span in SPANS if span["attributes"].get("document_type") == "legal"]
    steps = [span for span in SPANS if "step_name" in span["attributes"]]
    scores = scores_of(SPANS)
    costs, prompts = [span["cost_usd"] for span in legal], [span["prompt_tokens"] for span in legal]
    assert one(series, "tokentrace_custom_legal_doc_cost_total") == pytest.approx(sum(costs), rel=1e-12)
    assert one(series, "tokentrace_custom_agent_steps_total") == len(steps)
    assert one(series, "tokentrace_custom_answer_score") == pytest.approx(sum(scores) / len(scores))
    assert one(series, "tokentrace_custom_legal_prompt_tokens") == pytest.approx(np.quantile(prompts, 0.95))
    own = {name for name, _ in series if name.startswith("tokentrace_custom_")}
    assert own == {name for name in FAMILIES if name.startswith("tokentrace_custom_")}


# --- every service a process of its own, each of two aggregators with half of the spans


class Sharded(SeparateServices):
    """Two shards, an aggregator for each, and an alerter."""

    SERVICES = ("ingest", "aggregator", "second", "alerter", "api")

    def __init__(self, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, env={"TOKENTRACE_SHARD_COUNT": "2", **(env or {})})

    def start_one(self, name: str) -> None:
        module = "aggregator" if name == "second" else name
        own = {"aggregator": {"TOKENTRACE_OWN_SHARDS": "0"}, "second": {"TOKENTRACE_OWN_SHARDS": "1"}}.get(name, {})
        flags = ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        with self.log.open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", f"tokentrace_{module}", *flags],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**self.env, **own},
                start_new_session=True,
            )

    def wait_page(self, path: str = PAGE) -> None:
        self.until(lambda: self.get(path).status == 200, f"200 at {path}")


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Callable[..., Sharded]]:
    """Starts services with *settings*."""
    started: list[Sharded] = []

    def start(settings: str, env: Mapping[str, str] | None = None) -> Sharded:
        (tmp_path / "tokentrace.yml").write_text(settings, encoding="utf-8")
        services = Sharded(tmp_path, env=env)
        started.append(services)
        services.start()
        return services

    yield start
    for services in started:
        services.stop()


def test_without_an_aggregator_it_is_503_and_with_all_of_them_again_the_same_page(
    sharded: Callable[..., Sharded],
) -> None:
    """No snapshot is taken, so that who comes back has to read everything again."""
    where = "/own/telemetry"
    services = sharded(f"http_server: {{prometheus_path: {where}}}\n{SETTINGS}", {"TOKENTRACE_SNAPSHOT_INTERVAL": "1h"})
    finish(replay(services, "--speed", "max"))
    services.until(lambda: services.metrics()["span_count"] == 19366, "all in /metrics")
    wait_fired(services, where)
    whole = parse(services.get(where).body.decode())
    assert total(whole, "tokentrace_spans_total") == 19366
    answers: list[Answer] = []

    def ask() -> int:
        with contextlib.suppress(OSError):
            answers.append(services.get(where))
            return answers[-1].status
        return 0

    def back() -> None:
        services.until(lambda: ask() == 200, "200 again")
        for _ in range(5):
            assert ask() == 200

    def away() -> None:
        services.until(lambda: ask() == 503, "503", 10)
        for _ in range(5):
            assert ask() == 503

    for names in (["second"], ["aggregator"], ["aggregator", "second"]):
        for name in names:
            services.kill_one(name)
        away()
        for name in names:
            services.start_one(name)
        back()
    # One that hangs is as good as away.
    os.kill(services.running["second"].pid, signal.SIGSTOP)
    try:
        away()
    finally:
        os.kill(services.running["second"].pid, signal.SIGCONT)
    back()
    services.kill_one("api")
    services.start_one("api")
    back()
    assert {answer.status for answer in answers} == {200, 503}
    for answer in answers:
        if answer.status == 200:
            assert cumulative(parse(answer.body.decode())) == cumulative(whole)
        else:
            assert list(answer.json()) == ["error"]


class Prometheus:
    """
    A real Prometheus in a process group of its own, which scrapes *port* as two jobs: one often, and one so patiently
    that it gets every answer the api gives when a shard is silent.
    """

    JOBS: Mapping[str, str] = {"often": "200ms", "patient": "1200ms"}

    def __init__(self, directory: Path, port: int) -> None:
        self._binary = program("prometheus", "prometheus")
        self._directory, self._target, self._port = directory, port, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "prometheus.log"

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory / "prometheus.yml"
        jobs = [
            f"  - {{job_name: {job}, scrape_interval: {pause}, scrape_timeout: {pause}, metrics_path: {PAGE},"
            f' static_configs: [{{targets: ["127.0.0.1:{self._target}"]}}]}}\n'
            for job, pause in self.JOBS.items()
        ]
        config.write_text("scrape_configs:\n" + "".join(jobs))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            # Seconds pass before it knows its targets.
            with contextlib.suppress(OSError, ValueError):
                if len(self._query("up == 1")) == len(self.JOBS):
                    return
            time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-3000:])

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _ask(self, path: str) -> Any:
        answer = http("GET", f"http://127.0.0.1:{self._port}/api/v1/{path}").json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def _query(self, expression: str) -> list[dict[str, Any]]:
        return list(self._ask(f"query?query={quote(expression)}")["result"])

    def wait(self, spans: int, seconds: float = 60.0) -> None:
        """Until both jobs have seen that many spans."""
        deadline = time.monotonic() + seconds
        seen: dict[str, float] = {}
        while time.monotonic() < deadline:
            found = self._query("sum by (job) (tokentrace_spans_total)")
            seen = {one["metric"]["job"]: float(one["value"][1]) for one in found}
            if len(seen) == len(self.JOBS) and min(seen.values()) >= spans:
                return
            time.sleep(0.05)
        problems = [target["lastError"] for target in self._ask("targets")["activeTargets"]]
        raise AssertionError(f"{seen} of {spans} spans after {seconds} s; the last scrapes said {problems}")

    def scrapes(self, job: str) -> tuple[list[float], list[Series]]:
        """(``up`` of every scrape, the samples of those that succeeded), in order of time, as they were stored."""
        ups: dict[float, float] = {}
        pages: dict[float, Series] = {}
        for found in self._query(f'{{job="{job}"}}[1h]'):
            labels = {key: value for key, value in found["metric"].items() if key not in ("job", "instance")}
            name = labels.pop("__name__")
            for at, value in found["values"]:
                if name == "up":
                    ups[at] = float(value)
                else:
                    pages.setdefault(at, {})[name, frozenset(labels.items())] = float(value)
        return [ups[at] for at in sorted(ups)], [pages[at] for at in sorted(ups) if ups[at] == 1]


def expected_of_the_hour() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(Prompt tokens, completion tokens, milliseconds) of every call of the replay."""
    with TRACE.open() as file:
        rows = list(csv.reader(file))[1:]
    prompts, completions = (np.array([int(row[column]) for row in rows]) for column in (1, 2))
    return prompts, completions, prompts * 0.25 + completions * 20


def test_a_real_prometheus_never_sees_a_counter_fall_while_every_service_is_killed_in_turn(
    sharded: Callable[..., Sharded], tmp_path: Path
) -> None:
    program("prometheus", "prometheus")
    services = sharded(SETTINGS)
    services.wait_page()
    prometheus = Prometheus(tmp_path / "prometheus", services.port)
    prometheus.start()
    try:
        sending = replay(services, "--speed", "200")
        prometheus.wait(1)
        for name in ("ingest", "aggregator", "alerter", "second", "api"):
            time.sleep(0.7)
            services.kill_one(name)
            time.sleep(0.8)
            services.start_one(name)
            services.wait_page()
        finish(sending)
        prometheus.wait(19366)
        scraped = {job: prometheus.scrapes(job) for job in prometheus.JOBS}
    finally:
        prometheus.stop()

    for ups, pages in scraped.values():
        assert 0 in ups, "nobody was missed"
        counted = [total(page, "tokentrace_spans_total") for page in pages]
        assert len(set(counted)) > 5, "there is nothing to see between the first and the last span"
        for earlier, later in itertools.pairwise(pages):
            before, after = cumulative(earlier), cumulative(later)
            fallen = {key: (value, after.get(key)) for key, value in before.items() if not after.get(key, -1) >= value}
            assert fallen == {}
        assert_the_hour(pages[-1])


def assert_the_hour(last: Series) -> None:
    """The known totals of the hour, and every histogram of it."""
    prompts, completions, latencies = expected_of_the_hour()
    assert total(last, "tokentrace_spans_total") == len(prompts) == 19366
    assert by(last, "tokentrace_cost_total", "model", "provider", "caller") == {("gpt-4o", "openai", "chat"): 96.791325}
    assert total(last, "tokentrace_prompt_tokens_total") == prompts.sum() == 22361870
    assert total(last, "tokentrace_completion_tokens_total") == completions.sum() == 4088665
    assert by(last, "tokentrace_tokens_total", "token_type") == {"prompt": 22361870, "completion": 4088665}
    for name, values, edges in (
        ("tokentrace_latency_ms", latencies, LATENCY_EDGES),
        ("tokentrace_prompt_tokens", prompts, TOKEN_EDGES),
        ("tokentrace_completion_tokens", completions, TOKEN_EDGES),
    ):
        assert {float(edge): held for edge, held in by(last, f"{name}_bucket", "le").items()} == {
            edge: (values <= edge).sum() for edge in (*edges, math.inf)
        }
        assert total(last, f"{name}_count") == 19366
        assert total(last, f"{name}_sum") == pytest.approx(float(values.sum()), rel=1e-12)
    assert total(last, "tokentrace_alert_firings_total") == 1
    assert 0 < one(last, "tokentrace_transport_sent_total") <= 19366
