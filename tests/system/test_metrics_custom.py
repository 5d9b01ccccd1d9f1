"""Custom metrics, missing shards, and counters through kills, with a real ``tokentrace serve``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.cases import check_all
from kit.commands import Command, Ended, run_commands
from kit.metrics_http import (
    SETTINGS,
    ask,
    assert_coverage,
    grouped,
    make,
    moment,
    refused,
    send,
    send_traffic,
    serve_metrics,
)
from kit.pipeline import Pipeline, SeparateServices, free_port
from kit.services import start_service
from tokentrace.bus import jetstream, subjects
from tokentrace.errors import ConfigError
from tokentrace.metrics import parse_custom_metric, parse_custom_metrics


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    return send_traffic(pipeline)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Yield a function that starts a pipeline with its own settings; all are stopped after the test."""
    started: list[Pipeline] = []

    def start(settings: str = "", env: Mapping[str, str] | None = None) -> Pipeline:
        serving = Pipeline(tmp_path / f"own-{len(started)}", env=env)
        (serving.directory / "tokentrace.yml").write_text(settings, encoding="utf-8")
        started.append(serving)
        serving.start()
        return serving

    yield start
    for serving in started:
        serving.stop()


# --- custom metrics


def test_custom_metrics_are_shown_with_the_built_in_ones(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    caller, spans = traffic
    legal = [span for span in spans if span["attributes"].get("document_type") == "legal"]
    scores = [span["attributes"]["eval.score"] for span in spans if "eval.score" in span["attributes"]]
    times = [span["latency_ms"] for span in legal if span["latency_ms"]]
    wanted = {
        "legal_doc_cost": (sum(span["cost_usd"] for span in legal), len(legal)),
        "agent_steps": (3, 3),
        "answer_score": (sum(scores) / len(scores), len(scores)),
        "legal_prompts": (float(np.quantile([span["prompt_tokens"] for span in legal], 0.95)), len(legal)),
        "latency_of_legal": (sum(times) / len(times), len(times)),
        "cost_of_legal": (sum(span["cost_usd"] for span in legal) / len(legal), len(legal)),
    }
    whole = ask(pipeline, "", caller=caller)
    for name, (value, count) in wanted.items():
        assert whole[name] == pytest.approx(value)
        shown = ask(pipeline, f"/{name}", caller=caller)
        assert (shown["metric"], shown["value"], shown["span_count"]) == (name, pytest.approx(value), count)
        assert_coverage(shown)
    by_model = ask(pipeline, "/legal_doc_cost", caller=caller, groupby="model")["by_model"]
    for model, part in grouped(legal, "model").items():
        assert by_model[model] == pytest.approx(sum(span["cost_usd"] for span in part))
    assert {model for model, value in by_model.items() if value is not None} == set(grouped(legal, "model"))
    by_type = ask(pipeline, "/answer_score", caller=caller, groupby="document_type")["by_document_type"]
    assert by_type == pytest.approx({"legal": 0.2, "news": 0.2})
    assert ask(pipeline, "/answer_score", caller=caller, kind="tool")["value"] == 0.9


#: Invalid settings -> the key that the error names.
INVALID = {
    "[{name: total_cost, type: count}]": "custom_metrics[0].name",
    "[{name: cost, type: count}]": "custom_metrics[0].name",
    "[{name: total_cost_usd, type: count}]": "custom_metrics[0].name",
    "[{name: fine, type: count}, {name: cost_by_model, type: count}]": "custom_metrics[1].name",
    "[{name: prometheus, type: count}]": "custom_metrics[0].name",
    "[{name: a b, type: count}]": "custom_metrics[0].name",
    "[{name: twice, type: count}, {name: twice, type: sum, field: cost}]": "custom_metrics",
    "[{name: mine, type: sum, field: costs}]": "custom_metrics[0].field",
    "[{name: mine, type: sum}]": "custom_metrics[0].field",
    "[{name: mine, type: avg, field: attr.}]": "custom_metrics[0].field",
    "[{name: mine, type: median, field: cost}]": "custom_metrics[0].type",
    "[{name: mine, type: sum, field: cost, filter: x}]": "custom_metrics[0]",
    "[{type: count}]": "custom_metrics[0]",
}


def test_an_invalid_custom_metric_ends_the_start_with_exit_code_2(tmp_path: Path) -> None:
    starts = []
    for number, settings in enumerate(INVALID):
        words = ["serve", "--addr", "127.0.0.1:0", "--also", "none", "--nats-port", str(free_port())]
        starts.append(Command(tmp_path / str(number), words))
        starts[-1].directory.mkdir()
        (starts[-1].directory / "tokentrace.yml").write_text(f"custom_metrics: {settings}\n", encoding="utf-8")
    ends = dict(zip(INVALID, zip(run_commands(starts), INVALID.values(), strict=True), strict=True))
    check_all(ends, assert_named)
    assert not list(tmp_path.glob("**/js")), "nothing was started"


def assert_named(refusal: tuple[Ended, str]) -> None:
    ended, key = refusal
    assert ended.code == 2, ended
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", ["transport_sent", "alert_firings", "by_model"])
def test_a_custom_metric_cannot_have_the_name_of_another_path_below_metrics(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_custom_metric({"name": name, "type": "count"}, "custom_metrics[0]")


def test_two_custom_metrics_with_the_same_prometheus_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_custom_metrics(
            [{"name": "steps", "type": "count"}, {"name": "steps_total", "type": "avg", "field": "cost"}]
        )


LATER = "custom_metrics:\n  - {name: legal_cost, type: sum, field: cost, filter_key: kind_of, filter_val: legal}\n"


def legal(number: int) -> list[dict[str, Any]]:
    return [make(cost_usd=0.5, attributes={"kind_of": "legal"}) for _ in range(number)]


def saved(serving: Pipeline) -> list[str]:
    """Return the names of the snapshots of the aggregator."""

    async def names() -> list[str]:
        async with jetstream.connect(serving.nats_url, name="test") as bus:
            return [name for name in await bus.objects(subjects.SNAPSHOTS).names() if name.startswith("aggregator.0.")]

    return asyncio.run(names())


def test_a_custom_metric_added_later_states_since_when_it_is_measured(start: Callable[..., Pipeline]) -> None:
    serving = start()
    send(serving, legal(3))
    before = datetime.now(UTC)
    assert serving.stop() == 0
    (serving.directory / "tokentrace.yml").write_text(LATER, encoding="utf-8")
    serving.start()
    shown = ask(serving, "/legal_cost")
    since = moment(shown["since"])
    assert (shown["value"], shown["span_count"]) == (None, 0)
    assert before - timedelta(seconds=20) < since <= datetime.now(UTC)
    assert moment(shown["from"]) < since
    send(serving, legal(2))
    for again in range(2):
        shown = ask(serving, "/legal_cost")
        assert (shown["value"], shown["span_count"]) == (1.0, 2)
        assert moment(shown["since"]) == since
        assert moment(ask(serving, "")["since"]) == since, "the overview includes the custom metric"
        assert moment(ask(serving, "/legal_cost/series", step="10m")["since"]) == since
        assert ask(serving, "/cost")["since"] is None, "the cost group does not include the custom metric"
        serving.until(lambda: ask(serving, "/legal_cost", window="1s")["since"] is None, "measured all along", 10)
        page = serving.get("/metrics/prometheus").body.decode()
        assert "tokentrace_custom_legal_cost_total 1.0" in page
        if not again:
            serving.kill()
            serving.start()
    changed = LATER.replace("legal}", "news}")
    assert serving.stop() == 0
    (serving.directory / "tokentrace.yml").write_text(changed, encoding="utf-8")
    serving.start()
    shown = ask(serving, "/legal_cost")
    assert (shown["value"], moment(shown["since"]) > since) == (None, True), "a changed metric begins anew"


def test_a_custom_metric_added_before_the_first_snapshot_measures_everything(start: Callable[..., Pipeline]) -> None:
    serving = start(env={"TOKENTRACE_SNAPSHOT_INTERVAL": "1h"})
    send(serving, legal(3))
    assert saved(serving) == []
    serving.kill()
    (serving.directory / "tokentrace.yml").write_text(LATER, encoding="utf-8")
    serving.start()
    shown = ask(serving, "/legal_cost")
    assert (shown["value"], shown["span_count"], shown["since"]) == (1.5, 3, None)


# --- a shard is missing


class Halved(SeparateServices):
    """Separate services with two shards, each with its own aggregator."""

    SERVICES = ("ingest", "aggregator", "second", "api")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, env={"TOKENTRACE_SHARD_COUNT": "2"})

    def start_one(self, name: str) -> None:
        module = "aggregator" if name == "second" else name
        own = {"aggregator": {"TOKENTRACE_OWN_SHARDS": "0"}, "second": {"TOKENTRACE_OWN_SHARDS": "1"}}.get(name, {})
        flags = ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            f"tokentrace_{module}", flags, directory=self.directory, env={**self.env, **own}, log=self.log
        )


def test_while_a_shard_is_missing_every_answer_is_incomplete_and_names_it(tmp_path: Path) -> None:
    services = Halved(tmp_path)
    services.start()
    try:
        ingest = Pipeline(tmp_path)
        ingest.port = services.ports["ingest"]
        spans = [make(cost_usd=1, attributes={"workflow": "plan"}) for _ in range(24)]
        for span in spans:
            assert ingest.post("/spans", span).status == 202
        services.until(lambda: ask(services, "")["span_count"] == 24, "all of both shards")
        services.until(lambda: services.get("/traces").json()["total"] == 24, "stored")
        assert "incomplete" not in ask(services, "")
        services.kill_one("second")
        whole = ask(services, "")
        mine = whole["span_count"]
        assert 0 < mine < 24
        paths = ["", "/cost", "/latency", "/error_rate", "/cost_by_model", "/attr.depth", "/transport_sent"]
        paths += ["/cost/series", "/span_count/series"]
        for path in paths:
            shown = ask(services, path)
            assert (shown["incomplete"], shown["missing_shards"]) == (True, [1]), path
        by_attribute = ask(services, "/cost", groupby="workflow")
        assert (by_attribute["incomplete"], by_attribute["missing_shards"]) == (True, [1])
        assert by_attribute["total_usd"] == mine
        key = ask(services, "/cost_by_attribute", key="workflow")
        assert key["incomplete"]
        stats = services.get("/stats").json()
        assert (stats["incomplete"], stats["missing_shards"], stats["total_spans"]) == (True, [1], mine)
        assert "shards [1]" in refused(services.get("/metrics/prometheus"), 503), "counters never decrease"
        services.kill_one("aggregator")
        for path in paths:
            answer = services.get(f"/metrics{path}")
            refused(answer, 503)
            assert "retry-after" in {name.lower() for name in answer.headers}
        refused(services.get("/metrics/prometheus"), 503)
        services.start_one("aggregator")
        services.start_one("second")
        services.until(lambda: ask(services, "")["span_count"] == 24, "all of both shards again")
        services.until(lambda: services.get("/metrics/prometheus").status == 200, "a page again")
        assert "incomplete" not in ask(services, "")
    finally:
        services.stop()


# --- counters

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def cumulative(page: bytes) -> Series:
    """Return the samples of counters and histograms, which must never decrease."""
    ends = ("_total", "_bucket", "_count", "_sum")
    found: Series = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name.startswith("tokentrace_") and sample.name.endswith(ends):
                found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def test_counters_never_decrease_through_kills(start: Callable[..., Pipeline]) -> None:
    serving = start(SETTINGS)
    pages: list[Series] = []
    stopping = threading.Event()

    def scrape() -> None:
        while not stopping.wait(0.02):
            with contextlib.suppress(OSError, HTTPException):
                answer = serving.get("/metrics/prometheus")
                assert answer.status in (200, 503), answer.body
                if answer.status == 200:
                    pages.append(cumulative(answer.body))

    def sure(span: dict[str, Any]) -> None:
        """Send *span* until it is acknowledged; a span with ids counts once even if it is sent repeatedly."""
        while True:
            with contextlib.suppress(OSError, HTTPException):
                if serving.post("/spans", span).status == 202:
                    return
            time.sleep(0.02)

    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        spans = []
        for number in range(120):
            attributes = {"document_type": ("legal", "news")[number % 2]}
            spans.append(
                make(
                    model=f"m{number % 3}",
                    cost_usd=0.001 * (number + 1),
                    latency_ms=number * 37,
                    status=("ok", "error", "timeout")[number % 3],
                    attributes=attributes,
                )
            )
            sure(spans[-1])
            if number in (30, 60, 90):
                time.sleep((0.0, 0.3, 1.2)[number // 30 - 1])
                serving.kill()
                serving.start(wait=number != 60)
        serving.until(lambda: ask(serving, "")["span_count"] == len(spans), "all")
        time.sleep(0.2)
    finally:
        stopping.set()
        scraping.join()
    pages.append(cumulative(serving.get("/metrics/prometheus").body))
    assert len(pages) > 10
    for before, after in itertools.pairwise(pages):
        for key, value in before.items():
            assert after.get(key, -1) >= value, (key, value, after.get(key))
    last = pages[-1]

    def total(name: str, **labels: str) -> float:
        return sum(value for (sample, own), value in last.items() if sample == name and labels.items() <= set(own))

    assert total("tokentrace_spans_total") == len(spans)
    assert total("tokentrace_errors_total") == 80
    assert total("tokentrace_timeouts_total", model="m2") == 40
    assert total("tokentrace_prompt_tokens_total") == 512 * len(spans)
    assert total("tokentrace_cost_total") == pytest.approx(sum(span["cost_usd"] for span in spans), rel=1e-12)
    assert total("tokentrace_latency_ms_count") == len(spans) - 1
    assert total("tokentrace_latency_ms_sum") == sum(span["latency_ms"] for span in spans)
    documents = [span for span in spans if span["attributes"]["document_type"] == "legal"]
    assert total("tokentrace_custom_legal_doc_cost_total") == pytest.approx(sum(span["cost_usd"] for span in documents))
