"""``GET /metrics/prometheus`` of separate services, and what a real Prometheus scrapes while they are killed."""

from __future__ import annotations

import contextlib
import csv
import itertools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from kit.debian import program
from kit.pipeline import TRACE, Answer, SeparateServices, finish, replay
from kit.prometheus_page import (
    LATENCY_EDGES,
    PAGE,
    SETTINGS,
    TOKEN_EDGES,
    Series,
    by,
    cumulative,
    one,
    parse,
    total,
    wait_fired,
)
from kit.prometheus_server import PrometheusServer
from kit.services import start_service

pytestmark = pytest.mark.story

# --- separate processes, two aggregators with one shard each


class Sharded(SeparateServices):
    """Separate services with two shards, an aggregator for each, and an alerter."""

    SERVICES = ("ingest", "aggregator", "second", "alerter", "api")

    def __init__(self, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__(directory, env={"TOKENTRACE_SHARD_COUNT": "2", **(env or {})})

    def start_one(self, name: str) -> None:
        module = "aggregator" if name == "second" else name
        own = {"aggregator": {"TOKENTRACE_OWN_SHARDS": "0"}, "second": {"TOKENTRACE_OWN_SHARDS": "1"}}.get(name, {})
        flags = ["--nats", self.broker.url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            f"tokentrace_{module}", flags, directory=self.directory, env={**self.env, **own}, log=self.log
        )

    def wait_page(self, path: str = PAGE) -> None:
        self.until(lambda: self.get(path).status == 200, f"200 at {path}")


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[Callable[..., Sharded]]:
    """Yield a function that starts services with *settings*; they are stopped after the test."""
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


@pytest.mark.story
def test_the_page_is_503_while_an_aggregator_is_missing_and_the_same_as_before_when_it_is_back(
    sharded: Callable[..., Sharded],
) -> None:
    """No snapshot is saved, so a restarted aggregator reads the whole log again."""
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
    # An aggregator that hangs counts as missing.
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


class Prometheus(PrometheusServer):
    """
    A real Prometheus that scrapes *port* as two jobs.

    The job ``often`` scrapes every 200 ms. The job ``patient`` has a timeout of 1200 ms, so that it also gets the
    response that the api sends when a shard is silent.
    """

    JOBS: Mapping[str, str] = {"often": "200ms", "patient": "1200ms"}

    def __init__(self, directory: Path, port: int) -> None:
        jobs = [
            f"  - {{job_name: {job}, scrape_interval: {pause}, scrape_timeout: {pause}, metrics_path: {PAGE},"
            f' static_configs: [{{targets: ["127.0.0.1:{port}"]}}]}}\n'
            for job, pause in self.JOBS.items()
        ]
        super().__init__(directory, "scrape_configs:\n" + "".join(jobs), len(jobs))

    def wait(self, spans: int, seconds: float = 60.0) -> None:
        """Wait until both jobs have scraped a page with *spans* spans or more."""
        deadline = time.monotonic() + seconds
        seen: dict[str, float] = {}
        while time.monotonic() < deadline:
            found = self.query("sum by (job) (tokentrace_spans_total)")
            seen = {one["metric"]["job"]: float(one["value"][1]) for one in found}
            if len(seen) == len(self.JOBS) and min(seen.values()) >= spans:
                return
            time.sleep(0.05)
        raise AssertionError(f"{seen} of {spans} spans after {seconds} s; the last scrapes said {self.problems()}")

    def scrapes(self, job: str) -> tuple[list[float], list[Series]]:
        """Return (``up`` of every scrape, the samples of each successful scrape), as stored, in order of time."""
        ups: dict[float, float] = {}
        pages: dict[float, Series] = {}
        for found in self.query(f'{{job="{job}"}}[1h]'):
            labels = {key: value for key, value in found["metric"].items() if key not in ("job", "instance")}
            name = labels.pop("__name__")
            for at, value in found["values"]:
                if name == "up":
                    ups[at] = float(value)
                else:
                    pages.setdefault(at, {})[name, frozenset(labels.items())] = float(value)
        return [ups[at] for at in sorted(ups)], [pages[at] for at in sorted(ups) if ups[at] == 1]


def expected_of_the_hour() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (prompt tokens, completion tokens, latency in milliseconds) of all calls of the replay."""
    with TRACE.open() as file:
        rows = list(csv.reader(file))[1:]
    prompts, completions = (np.array([int(row[column]) for row in rows]) for column in (1, 2))
    return prompts, completions, prompts * 0.25 + completions * 20


def test_a_real_prometheus_sees_no_counter_decrease_while_every_service_is_killed_in_turn(
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
        assert 0 in ups, "no scrape failed"
        counted = [total(page, "tokentrace_spans_total") for page in pages]
        assert len(set(counted)) > 5, "too few pages between the first and the last span"
        for earlier, later in itertools.pairwise(pages):
            before, after = cumulative(earlier), cumulative(later)
            fallen = {key: (value, after.get(key)) for key, value in before.items() if not after.get(key, -1) >= value}
            assert fallen == {}
        assert_the_hour(pages[-1])


def assert_the_hour(last: Series) -> None:
    """Check that the last scrape has the known totals and histograms of the replayed hour."""
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
