"""The dashboard over a real Prometheus that scrapes a pipeline: each query has data, and its numbers are right."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.debian import program
from kit.environment import ROOT
from kit.grafana import defaults, panels, query_of, substituted, variables
from kit.pipeline import TRACE, Pipeline, finish, http, replay
from kit.prometheus_page import LATENCY_EDGES, PAGE
from kit.prometheus_server import PrometheusServer

#: Between two scrapes, seconds, and the smallest step of a panel. Both are 15 s in the files that are shipped.
SCRAPE_S = 1
RULES = """
alerts:
  - {name: busy, metric: span_count, op: gte, threshold: 1000, window: 1h, eval_interval: 1s, cooldown: 1h}
"""
BATCH = {"model": "gpt-4.1", "provider": "openai", "caller": "batch", "prompt_tokens": 1000, "comp_tokens": 100}
SONNET = {**BATCH, "model": "claude-sonnet-4-5", "provider": "anthropic"}
FIRST = {**BATCH, "model": "gpt-4o", "caller": "chat"}
#: Latency of the calls beside the replay, milliseconds, in each of two rounds.
ROUND = [
    {**FIRST, "latency_ms": 75},
    {**BATCH, "latency_ms": 250, "attributes": {"eval.score": 0.5}},
    {**BATCH, "latency_ms": 40000, "status": "error", "error": "rate limit"},
    {**SONNET, "latency_ms": 1000, "attributes": {"eval.score": 0.9}},
]
SPANS = 19366 + 2 * len(ROUND)
DOCUMENT = (ROOT / "docs" / "how-to" / "monitor-with-grafana.md").read_text(encoding="utf-8")
EXTRA = [line for block in re.findall(r"^```promql\n(.*?)^```", DOCUMENT, re.M | re.S) for line in block.splitlines()]


def shipped_config(port: int, token_file: Path) -> str:
    """Return ``deploy/prometheus.yml`` for an api on *port* of this machine and short intervals."""
    text = (ROOT / "deploy" / "prometheus.yml").read_text(encoding="utf-8")
    changes = {
        "scrape_interval: 15s": f"scrape_interval: {SCRAPE_S}s\n  scrape_timeout: {SCRAPE_S}s",
        "/tmp/token": str(token_file),
        "api:9090": f"127.0.0.1:{port}",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


class Monitored(NamedTuple):
    """A pipeline that has everything, and the Prometheus that watched it; times are Unix seconds."""

    pipeline: Pipeline
    prometheus: PrometheusServer
    began_s: int
    ended_s: int

    def panel(self, title: str, **selected: Any) -> dict[str, dict[float, float]]:
        """Return (value of the label in the legend -> time -> value) of a panel, as Grafana would ask for it."""
        query = substituted(query_of(title), {**defaults(), **selected}, SCRAPE_S, SCRAPE_S)
        return self.series(query, panels()[title]["targets"][0]["legendFormat"].strip("{}"))

    def series(self, query: str, label: str) -> dict[str, dict[float, float]]:
        found = self.prometheus.query_range(query, self.began_s, self.ended_s, SCRAPE_S)
        assert all(set(labels) == {label} for labels, _ in found), found
        return {labels[label]: values for labels, values in found}

    def counters(self, title: str, **selected: Any) -> dict[str, float]:
        """Return the last values of the counters below the rates of a panel: without what Prometheus estimates."""
        query = re.sub(r"(?:rate|increase)\((\w+\{[^}]*\})\[\$window\]\)", r"\1", query_of(title))
        assert query != query_of(title)
        sent = substituted(query, {**defaults(), **selected}, SCRAPE_S, SCRAPE_S)
        label = panels()[title]["targets"][0]["legendFormat"].strip("{}")
        return {found["metric"][label]: float(found["value"][1]) for found in self.prometheus.query(sent)}

    def api(self, path: str) -> Any:
        answer = self.pipeline.get(path)
        assert answer.status == 200, answer.body
        return answer.json()


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Replay the hour, with a round of calls before and after it, while Prometheus scrapes from the beginning."""
    program("prometheus", "prometheus")
    directory = tmp_path_factory.mktemp("monitored")
    (directory / "tokentrace.yml").write_text(RULES)
    # Without a token the file is empty.
    token = directory / "token"
    token.write_text("")
    pipeline = Pipeline(directory)
    prometheus = PrometheusServer(directory / "prometheus", shipped_config(pipeline.port, token), 1)

    def seen(query: str) -> None:
        pipeline.until(lambda: prometheus.query(query) != [], query)

    try:
        pipeline.start()
        prometheus.start()
        # The rule is seen before it fires, over more than one step.
        seen('count_over_time(tokentrace_alert_firings_total{rule="busy"}[1h]) >= 4')
        (first,) = prometheus.query("timestamp(min_over_time(up[1h]))")
        began_s = int(float(first["value"][0])) - 300
        assert pipeline.post("/spans", ROUND).status == 202
        seen(f"sum(tokentrace_spans_total) == {len(ROUND)}")
        finish(replay(pipeline, "--speed", "max"))
        assert pipeline.post("/spans", ROUND).status == 202
        seen(f"sum(tokentrace_spans_total) == {SPANS}")
        seen("sum(tokentrace_alert_firings_total) == 1")
        pipeline.until(lambda: pipeline.metrics()["span_count"] == SPANS, "all in /metrics")
        yield Monitored(pipeline, prometheus, began_s, math.ceil(time.time()) + SCRAPE_S)
    finally:
        prometheus.stop()
        pipeline.stop()


@pytest.mark.parametrize("title", list(panels()))
def test_every_panel_has_data(monitored: Monitored, title: str) -> None:
    found = monitored.panel(title)
    assert found
    assert any(value > 0 for values in found.values() for value in values.values())


def test_the_filters_offer_what_the_api_has_seen(monitored: Monitored) -> None:
    for name, dimension in (("model", "model"), ("provider", "provider"), ("caller", "caller")):
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables()[name]["definition"])
        assert match is not None
        offered = monitored.prometheus.ask(f"label/{match[2]}/values", {"match[]": match[1]})
        known = monitored.api(f"/metrics/span_count?window=30d&groupby={dimension}")[f"by_{dimension}"]
        assert set(offered) == set(known)
        assert len(known) > 1


def test_cost_over_time_is_the_money_of_the_api(monitored: Monitored) -> None:
    costs = monitored.api("/metrics?window=30d")["cost"]["by_model"]
    assert costs["gpt-4o"] > 96.791325
    per_minute = monitored.counters("Cost over time")
    assert {model: value / 60 for model, value in per_minute.items()} == pytest.approx(costs, rel=1e-12)
    shown = monitored.panel("Cost over time", window="1h")
    assert set(shown) == set(costs)
    for model, values in shown.items():
        counter = f'tokentrace_cost_total{{model="{model}"}}'
        then: dict[str, str | float] = {"query": f"min(count_over_time({counter}[1h]))", "time": monitored.ended_s}
        (scraped,) = monitored.prometheus.ask("query", then)["result"]
        # The first round is not an increase. Prometheus extends what it saw by at most 1.1 pauses on each side.
        increase = costs[model] - min(monitored.series(f"sum by (model) ({counter})", "model")[model].values())
        pauses = int(scraped["value"][1]) - 1
        assert increase * 0.999999 <= values[max(values)] * 60 <= increase * (1 + 2.2 / pauses), model


def test_the_filters_select_what_the_api_selects(monitored: Monitored) -> None:
    cost = monitored.api("/metrics/total_cost?window=30d&model=gpt-4.1&caller=batch")["value"]
    chosen = monitored.counters("Cost over time", model=["gpt-4.1"], caller=["batch"])
    assert chosen == {"gpt-4.1": pytest.approx(60 * cost, rel=1e-12)}
    assert monitored.counters("Cost over time", model=["gpt-4.1"], caller=["chat"]) == {}
    two = monitored.panel("Model usage breakdown", model=["gpt-4.1", "claude-sonnet-4-5"])
    assert set(two) == {"gpt-4.1", "claude-sonnet-4-5"}
    assert set(monitored.panel("Model usage breakdown", provider=["anthropic"])) == {"claude-sonnet-4-5"}
    assert set(monitored.panel("Quality score over time", model=["gpt-4.1"])) == {"gpt-4.1"}


def test_the_heatmap_counts_every_call_in_its_bucket(monitored: Monitored) -> None:
    with TRACE.open() as file:
        rows = list(csv.reader(file))[1:]
    took = [int(prompt) * 0.25 + int(completion) * 20 for _, prompt, completion in rows]
    took += [float(str(call["latency_ms"])) for call in ROUND] * 2
    held = {float(edge): count for edge, count in monitored.counters("Latency heatmap").items()}
    assert held == {edge: sum(ms <= edge for ms in took) for edge in (*LATENCY_EDGES, math.inf)}
    assert held[math.inf] == monitored.api("/metrics/span_count?window=30d")["value"] == SPANS


def test_the_bars_add_up_to_the_spans_of_the_api(monitored: Monitored) -> None:
    """A model that was never seen before is counted with its first calls."""
    bars = {model: sum(values.values()) for model, values in monitored.panel("Model usage breakdown").items()}
    assert bars == monitored.api("/metrics/span_count?window=30d&groupby=model")["by_model"]
    assert sum(bars.values()) == SPANS


def test_the_quality_is_that_of_the_api(monitored: Monitored) -> None:
    shown = {model: values[max(values)] for model, values in monitored.panel("Quality score over time").items()}
    assert shown == {"gpt-4.1": 0.5, "claude-sonnet-4-5": 0.9}
    assert shown == monitored.api("/metrics/quality_by_model?window=1h")["by_model"]


def test_the_alert_history_lists_each_firing_once(monitored: Monitored) -> None:
    rows = monitored.panel("Alert history")
    assert {rule: list(values.values()) for rule, values in rows.items()} == {"busy": [1]}
    assert monitored.api("/metrics/alert_firings")["value"] == 1


@pytest.mark.parametrize("query", EXTRA)
def test_every_query_of_the_guide_has_data(monitored: Monitored, query: str) -> None:
    assert len(EXTRA) > 8
    assert monitored.prometheus.query(query)


REPLAYED = """
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'tokentrace_transport_sent_total{instance="a"}'
        values: '0 0 0 stale 0 0 0 0'
      - series: 'tokentrace_spans_total{instance="a", model="old", provider="p", status="ok"}'
        values: '900 900 905 stale 909 909 909 910'
      - series: 'tokentrace_spans_total{instance="b", model="old", provider="p", status="ok"}'
        values: '900 900 905 905 905 909 909 910'
      - series: 'tokentrace_spans_total{instance="a", model="new", provider="p", status="ok"}'
        values: '_ _ _ _ _ 7 8 8'
    promql_expr_test:
"""


def test_the_bars_lose_nothing_to_failed_scrapes_and_count_no_replica_twice(tmp_path: Path) -> None:
    """What was there at the first scrape is no bar: it came before."""
    bars = {0: {}, 1: {"old": 0}, 2: {"old": 5}, 4: {"old": 4}, 5: {"old": 0, "new": 7}, 6: {"old": 0, "new": 1}}
    query = substituted(query_of("Model usage breakdown"), defaults(), 60, 60)
    text = REPLAYED
    for minute, found in bars.items():
        samples = [{"labels": f'{{model="{model}"}}', "value": count} for model, count in found.items()]
        text += f"      - {json.dumps({'expr': query, 'eval_time': f'{minute}m', 'exp_samples': samples})}\n"
    (tmp_path / "test.yml").write_text(text)
    promtool = program("prometheus", "promtool")
    done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_sends_the_token_that_requests_need(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    token = tmp_path / "token"
    token.write_text("a token for scrapes")
    pipeline = Pipeline(tmp_path / "serve", env={"TOKENTRACE_AUTH_TOKEN": token.read_text()})
    prometheus = PrometheusServer(tmp_path / "prometheus", shipped_config(pipeline.port, token), 1)
    try:
        pipeline.start()
        assert http("GET", pipeline.url + PAGE).status == 401
        prometheus.start()
        token.write_text("another token")
        pipeline.until(lambda: prometheus.query("up == 0") != [], "refused with a wrong token")
    finally:
        prometheus.stop()
        pipeline.stop()
