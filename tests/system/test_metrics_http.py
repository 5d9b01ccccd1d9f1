"""Everything below ``GET /metrics``, asked of a real ``tokentrace serve``: shapes, numbers, refusals, gaps, kills."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kit.environment import plain_environment
from kit.pipeline import Answer, Apart, Pipeline, free_port, http
from tokentrace.bus import jetstream, subjects
from tokentrace.errors import ConfigError
from tokentrace.metrics import ALIASES, BREAKDOWNS, GROUPS, METRICS, parse_custom_metric, parse_custom_metrics
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


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("metrics")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    yield serving
    assert serving.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """Starts pipelines of a test's own."""
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


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


def make(**fields: Any) -> dict[str, Any]:
    made = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
    return {"trace_id": fresh("trace"), "span_id": fresh("span"), **made}


def send(serving: Pipeline, spans: Sequence[Mapping[str, Any]]) -> None:
    """Have *spans* folded and stored; what is sent last is stored last."""
    answer = serving.post("/spans", [*spans, mark := make(kind="custom", model="", name=fresh("mark"))])
    assert answer.status == 202, answer.body
    path = f"/metrics/span_count?window=30d&kind=custom&name={mark['name']}"
    serving.until(lambda: serving.get(path).json()["value"] == 1, "folded")
    serving.until(lambda: serving.get(f"/traces/{mark['trace_id']}").status == 200, "stored")


def ask(serving: Pipeline, path: str, /, **query: str) -> Any:
    """The answer to ``/metrics<path>``; an attribute is given as attr__name."""
    given = {key.replace("attr__", "attr."): value for key, value in query.items()}
    answer = serving.get(f"/metrics{path}?{urlencode(given)}")
    deadline = time.monotonic() + 20
    while answer.status == 503 and time.monotonic() < deadline:
        time.sleep(0.5)  # on a busy machine an aggregator may take longer than it is waited for
        answer = serving.get(f"/metrics{path}?{urlencode(given)}")
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


# --- spans whose numbers are known -----------------------------------------------------------------------------------


def make_traffic(caller: str) -> list[dict[str, Any]]:
    """Model calls of every status, an embedding, a tool and an agent, one call unpriced and one in part."""
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
        make(model="nobody-knows-this", provider="", latency_ms=50, attributes=tag),
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


#: What the price tables make of the calls that report no cost, nano-dollars; None = unpriced.
PRICED = {"nobody-knows-this": None, "text-embedding-3-small": 60}


def nusd(span: Mapping[str, Any]) -> int | None:
    return round(span["cost_usd"] * 1e9) if "cost_usd" in span else PRICED[span["model"]]


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    """A caller, and the spans of it."""
    caller = fresh("traffic")
    spans = make_traffic(caller)
    send(pipeline, spans)
    return caller, spans


class Expected:
    """What some spans come to, counted one by one."""

    def __init__(self, spans: Iterable[Mapping[str, Any]], kind: str = "") -> None:
        every = [span for span in spans if kind in ("", "all", span["kind"])]
        self.calls = [span for span in every if span["kind"] == "llm" or kind]
        self.paid = [span for span in every if span["kind"] not in ROLLUPS]
        self.scores = [a["eval.score"] for a in (span["attributes"] for span in every) if "eval.score" in a]

    def numbers(self, field: str, *, unset: bool = False) -> list[float]:
        found = [span.get(field, 0) for span in self.calls]
        return [value for value in found if value] if unset else found

    def share(self, *statuses: str) -> float | None:
        return self.count(*statuses) / len(self.calls) if self.calls else None

    def count(self, *statuses: str) -> int:
        return sum(span.get("status", "ok") in statuses for span in self.calls)

    @property
    def cost(self) -> float:
        return sum(nusd(span) or 0 for span in self.paid) / 1e9

    def metric(self, name: str) -> tuple[float | None, int]:
        """(Value, how many spans it is made of) of a single number."""
        calls, paid = len(self.calls), len(self.paid)
        times, first = self.numbers("latency_ms", unset=True), self.numbers("ttft_ms", unset=True)
        prompts, completions = self.numbers("prompt_tokens"), self.numbers("comp_tokens")
        quantiles = {
            "latency": times,
            "ttft": first,
            "prompt_token": prompts,
            "completion_token": completions,
            "quality": self.scores,
        }
        family, _, percent = name.rpartition("_p")
        if family in quantiles and percent.isdigit():
            values = quantiles[family]
            return float(np.quantile(values, int(percent) / 100)) if values else None, len(values)
        found: dict[str, tuple[float | None, int]] = {
            "total_cost": (self.cost if paid else None, paid),
            "cost_per_call": (self.cost / calls if calls else None, calls),
            "unpriced_span_count": (sum(nusd(span) is None for span in self.paid) if paid else None, paid),
            "prompt_tokens": (sum(prompts) if calls else None, calls),
            "completion_tokens": (sum(completions) if calls else None, calls),
            "total_tokens": (sum(prompts) + sum(completions) if calls else None, calls),
            "latency_avg": (float(np.mean(times)) if times else None, len(times)),
            "error_rate": (self.share("error", "timeout"), calls),
            "error_count": (self.count("error", "timeout") if calls else None, calls),
            "timeout_rate": (self.share("timeout"), calls),
            "timeout_count": (self.count("timeout") if calls else None, calls),
            "span_count": (calls or None, calls),
            "quality_score": (float(np.mean(self.scores)) if self.scores else None, len(self.scores)),
        }
        return found[name]


def grouped(spans: Iterable[Mapping[str, Any]], dimension: str) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for span in spans:
        default = "ok" if dimension == "status" else ""
        found.setdefault(span.get(dimension, default) or "unknown", []).append(span)
    return dict(sorted(found.items()))


def assert_coverage(shown: Mapping[str, Any], window: str = "1h") -> None:
    """from <= ended < to covers the window and little more, and nothing is missing from it."""
    asked, now = timedelta(microseconds=parse_duration(window) / 1000), datetime.now(UTC)
    begins, ends = moment(shown["from"]), moment(shown["to"])
    assert ends - begins >= asked
    assert ends - begins <= asked * 1.01 + timedelta(seconds=61)
    assert now - timedelta(seconds=30) < ends <= now + timedelta(seconds=2)
    assert shown["since"] is None
    assert "incomplete" not in shown


# --- one number ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_by_name_is_what_its_spans_come_to(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, spans = traffic
    for kind in ("", "llm", "tool", "agent", "embedding", "retrieval", "all"):
        shown = ask(pipeline, f"/{name}", caller=caller, **({"kind": kind} if kind else {}))
        value, count = Expected(spans, kind).metric(name)
        assert shown["value"] == (None if value is None else pytest.approx(value, rel=1e-9)), kind
        assert (shown["window"], shown["metric"], shown["span_count"]) == ("1h", name, count), kind
        assert_coverage(shown)
        assert set(shown) - {"quantile_error", "exemplars"} == {
            *("window", "metric", "value", "span_count"),
            *("from", "to", "since"),
        }
        assert ("quantile_error" in shown) == bool(METRICS[name].fields)
        assert shown.get("quantile_error", 0) == 0, "exact below 100"
        family = name.partition("_")[0]
        assert ("exemplars" in shown) == (family in ("latency", "ttft", "cost") or name == "total_cost")


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_metric_by_dimension_is_that_of_each_part(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], dimension: str
) -> None:
    caller, spans = traffic
    for name in ("total_cost", "latency_p95", "error_rate", "quality_score", "span_count", "prompt_token_p50"):
        shown = ask(pipeline, f"/{name}", caller=caller, groupby=dimension)
        parts = {value: Expected(part).metric(name)[0] for value, part in grouped(spans, dimension).items()}
        found = shown[f"by_{dimension}"]
        assert list(found) == sorted(found)
        for value, want in parts.items():
            assert found.get(value) == (None if want is None else pytest.approx(want, rel=1e-9)), (name, value)
        assert set(found) <= set(parts)
        assert shown["value"] == pytest.approx(Expected(spans).metric(name)[0])


@pytest.mark.parametrize(("alias", "name"), [(alias, name) for alias, name in ALIASES.items() if alias not in GROUPS])
def test_another_name_of_a_metric_is_answered_under_its_own(pipeline: Pipeline, alias: str, name: str) -> None:
    shown = ask(pipeline, f"/{alias}")
    assert shown["metric"] == name
    assert shown["value"] == ask(pipeline, f"/{name}")["value"]


@pytest.mark.parametrize("name", TRANSPORT)
def test_what_reporters_tell_is_a_number(pipeline: Pipeline, name: str) -> None:
    assert ask(pipeline, f"/{name}") == {"metric": name, "value": 0}
    assert ask(pipeline, "")["transport"][name.removeprefix("transport_")] == 0


@pytest.mark.parametrize("name", FIRINGS)
def test_firings_are_a_number_and_a_map_by_rule(pipeline: Pipeline, name: str) -> None:
    assert ask(pipeline, f"/{name}") == {"metric": name, "value": 0, "by_rule": {}}
    assert ask(pipeline, "")["alerts"] == {"firings": {}, "delivery_failed": {}}


# --- groups and splits -----------------------------------------------------------------------------------------------


def expected_groups(spans: Sequence[Mapping[str, Any]], kind: str = "") -> dict[str, dict[str, Any]]:
    """Group -> what is documented of it, or ours, for *spans*."""
    of = Expected(spans, kind)

    def value(name: str) -> float | None:
        return of.metric(name)[0]

    return {
        "cost": {
            "total_usd": of.cost,
            "per_call_usd": value("cost_per_call"),
            "unpriced_span_count": sum(nusd(span) is None for span in of.paid),
            "partly_priced_span_count": sum("cost_usd" not in span and nusd(span) is not None for span in of.paid),
        },
        "tokens": {
            "prompt_total": value("prompt_tokens") or 0,
            "completion_total": value("completion_tokens") or 0,
            "total": value("total_tokens") or 0,
            "cache_read_total": sum(of.numbers("cache_read_tokens")),
            "cache_write_total": 0,
            "cache_write_1h_total": 0,
            "reasoning_total": sum(of.numbers("reasoning_tokens")),
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
    "nobody-knows-this": {"unpriced_span_count": 1, "partly_priced_span_count": 0},
    "text-embedding-3-small": {"unpriced_span_count": 0, "partly_priced_span_count": 1},
}


@pytest.mark.parametrize("kind", ["", "llm", "tool", "all"])
def test_the_groups_are_what_their_spans_come_to(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], kind: str
) -> None:
    caller, spans = traffic
    asked = {"caller": caller, **({"kind": kind} if kind else {})}
    whole = ask(pipeline, "", **asked)
    of = Expected(spans, kind)
    assert whole["span_count"] == len(of.calls)
    assert_coverage(whole)
    by_model = {model: Expected(part, kind) for model, part in grouped(spans, "model").items()}
    for group, wanted in expected_groups(spans, kind).items():
        shown = dict(whole[group])
        if group == "cost":
            assert shown.pop("by_model") == pytest.approx(
                {model: part.cost for model, part in by_model.items() if part.cost or part.calls}
            )
            assert shown.pop("unpriced_by_model") == ({} if kind == "tool" else UNPRICED)
        assert shown == close_to(wanted)
        alone = ask(pipeline, f"/{group}", **asked)
        assert {key: alone.pop(key) for key in whole[group]} == whole[group]
        extra = {"quantile_error"} if GROUPS[group].fields else set()
        extra |= {"exemplars"} if group in ("cost", "latency") else set()
        assert set(alone) == {"window", "span_count", "from", "to", "since"} | extra
        assert alone["span_count"] == whole["span_count"]
    known = {*GROUPS, *CUSTOM, "window", "span_count", "transport", "alerts", "quantile_error", "from", "to", "since"}
    assert set(whole) == known


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_group_by_dimension_is_that_of_each_part(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], dimension: str
) -> None:
    caller, spans = traffic
    parts = {value: expected_groups(part) for value, part in grouped(spans, dimension).items()}
    key = f"by_{dimension}"
    for group in GROUPS:
        shown = ask(pipeline, f"/{group}", caller=caller, groupby=dimension)
        for value, found in shown[key].items():
            wanted = parts[value][group]
            if group == "cost":
                assert found == pytest.approx(wanted["total_usd"])
            else:
                assert found == close_to(wanted), (group, value)
        if group != "cost":
            assert not set(shown) & set(parts[value][group]), "the numbers over everything are dropped"
    whole = ask(pipeline, "", caller=caller, groupby=dimension)
    for value, found in whole[key].items():
        assert found["span_count"] == len(Expected(grouped(spans, dimension)[value]).calls)
        for group in GROUPS:
            assert found[group] == close_to(parts[value][group]), (group, value)


def test_maps_by_dimension_sum_to_the_whole(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    for name, split in BREAKDOWNS.items():
        if not split.dimension:
            continue
        shown = ask(pipeline, f"/{name}", caller=caller)
        assert set(shown) - {"quantile_error"} == {
            *("window", "metric", "value", f"by_{split.dimension}"),
            *("span_count", "from", "to", "since"),
        }
        assert shown["value"] == shown[f"by_{split.dimension}"]
        assert_coverage(shown)
    for dimension in ("model", "caller", "provider"):
        shown = ask(pipeline, f"/cost_by_{dimension}", caller=caller)["value"]
        wanted = {value: Expected(part).cost for value, part in grouped(spans, dimension).items()}
        assert {value: usd for value, usd in shown.items() if usd} == pytest.approx(
            {value: usd for value, usd in wanted.items() if usd}
        )
        assert sum(round(usd * 1e9) for usd in shown.values()) == round(Expected(spans).cost * 1e9)
    tokens = ask(pipeline, "/tokens_by_model", caller=caller)["value"]
    assert all(set(part) == {"prompt", "completion", "total"} for part in tokens.values())
    assert sum(part["total"] for part in tokens.values()) == Expected(spans).metric("total_tokens")[0]
    for model, found in ask(pipeline, "/latency_by_model", caller=caller)["value"].items():
        part = Expected(grouped(spans, "model")[model])
        assert found == close_to({f"p{p}_ms": part.metric(f"latency_p{p}")[0] for p in (50, 95, 99)})
    scored = ask(pipeline, "/quality_by_model", caller=caller)["value"]
    assert "nobody-knows-this" not in scored, "nothing of it is scored"
    assert scored == pytest.approx(
        {
            model: Expected(part).metric("quality_score")[0]
            for model, part in grouped(spans, "model").items()
            if Expected(part).scores
        }
    )


# --- attributes ------------------------------------------------------------------------------------------------------


def test_an_attribute_groups_with_and_without_its_prefix(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    caller, spans = traffic
    parts: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        if "workflow" in span["attributes"]:
            parts.setdefault(span["attributes"]["workflow"], []).append(span)
    for key in ("workflow", "attr.workflow"):
        for group in GROUPS:
            shown = ask(pipeline, f"/{group}", caller=caller, groupby=key)["by_workflow"]
            assert list(shown) == sorted(parts), "spans without it are left out"
            for value, part in parts.items():
                wanted = expected_groups(part)[group]
                assert shown[value] == (pytest.approx(wanted["total_usd"]) if group == "cost" else close_to(wanted))
        whole = ask(pipeline, "", caller=caller, groupby=key)
        assert {value: found["span_count"] for value, found in whole["by_workflow"].items()} == {
            value: len(part) for value, part in parts.items()
        }
        assert whole["span_count"] == len(Expected(spans).calls)
        for name in ("latency_p95", "error_rate", "total_cost"):
            shown = ask(pipeline, f"/{name}", caller=caller, groupby=key)["by_workflow"]
            assert shown == close_to({value: Expected(part).metric(name)[0] for value, part in parts.items()})


def test_maps_by_attribute(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    for key in ("workflow", "attr.workflow"):
        shown = ask(pipeline, "/cost_by_attribute", caller=caller, key=key)
        parts = {value: [s for s in spans if s["attributes"].get("workflow") == value] for value in shown["value"]}
        assert list(parts) == ["check", "plan", "write"]
        assert shown["value"] == shown["by_workflow"]
        assert shown["value"] == pytest.approx({value: Expected(part).cost for value, part in parts.items()})
        assert_coverage(shown)
    shown = ask(pipeline, "/quality_by_attribute", caller=caller, key="document_type")["value"]
    assert shown == pytest.approx({"legal": 0.2, "news": 0.2})
    for name in ("cost_by_attribute", "quality_by_attribute"):
        assert ask(pipeline, f"/{name}", caller=caller, key="nobody_has_this")["value"] == {}
    money = ask(pipeline, "/cost_by_attribute", caller=caller, key="tag")["value"]
    assert money == pytest.approx({caller: Expected(spans).cost})


@pytest.mark.parametrize("name", ["cost_by_attribute", "quality_by_attribute"])
def test_a_map_by_attribute_needs_its_key(pipeline: Pipeline, name: str) -> None:
    for query in ("", "?key=", "?window=1h"):
        assert refused(pipeline.get(f"/metrics/{name}{query}"), 400).startswith("key: ")
    assert refused(pipeline.get(f"/metrics/{name}?key=a&key=b"), 400) == "key: given twice"
    assert refused(pipeline.get(f"/metrics/{name}?key=a&groupby=model"), 400).startswith("groupby: ")


def test_a_key_of_nothing_but_the_prefix_is_400(pipeline: Pipeline) -> None:
    assert "key" in refused(pipeline.get("/metrics/cost_by_attribute?key=attr."), 400)


@pytest.mark.parametrize("path", ["", "/cost", "/error_rate", "/cost_by_model", "/attr.depth", "/cost/series"])
def test_nothing_else_takes_a_key(pipeline: Pipeline, path: str) -> None:
    assert refused(pipeline.get(f"/metrics{path}?key=workflow"), 400).startswith("key: ")


def test_a_filter_by_attribute_leaves_the_spans_that_have_it(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    caller, spans = traffic
    mine = [span for span in spans if span["attributes"].get("workflow") == "plan"]
    for group, wanted in expected_groups(mine).items():
        shown = ask(pipeline, f"/{group}", caller=caller, attr__workflow="plan")
        assert {key: shown[key] for key in wanted} == close_to(wanted)
        assert shown["span_count"] == len(mine)
    for name in METRICS:
        value, count = Expected(mine).metric(name)
        shown = ask(pipeline, f"/{name}", caller=caller, attr__workflow="plan")
        assert (shown["value"], shown["span_count"]) == (value if value is None else pytest.approx(value), count), name
    both = ask(pipeline, "", caller=caller, attr__workflow="plan", attr__document_type="legal")
    assert both["span_count"] == sum(span["attributes"].get("document_type") == "legal" for span in mine)
    models = ask(pipeline, "/cost", caller=caller, attr__workflow="plan", groupby="model")
    assert models["by_model"] == {"gpt-4o": pytest.approx(Expected(mine).cost)}


def test_a_filter_that_every_span_passes_changes_nothing(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    """The cells and the store say the same: every group, every metric, every grouping, every metric of one's own."""
    caller, spans = traffic
    moving = ("from", "to")

    def same(path: str, **query: str) -> None:
        found = [ask(pipeline, path, **query), ask(pipeline, path, **query, attr__tag=caller)]
        plain, filtered = ({key: value for key, value in one.items() if key not in moving} for one in found)
        if "groupby" in query:
            key = f"by_{query['groupby']}"
            # Of a group that only roll-ups are in there is nothing to be said either way.
            extra = set(filtered[key]) - set(plain[key])
            assert extra <= {value for value, part in grouped(spans, query["groupby"]).items() if is_silent(part)}
            filtered[key] = {value: one for value, one in filtered[key].items() if value not in extra}
        assert filtered == plain

    for path in ("", *(f"/{name}" for name in (*GROUPS, *METRICS, *CUSTOM))):
        same(path, caller=caller)
    for dimension in DIMENSIONS:
        for path in ("", "/cost", "/latency", "/quality", "/latency_p95", "/agent_steps"):
            same(path, caller=caller, groupby=dimension)
    for kind in ("tool", "all", "agent"):
        same("", caller=caller, kind=kind)


def is_silent(spans: Sequence[Mapping[str, Any]]) -> bool:
    return not Expected(spans).calls and not Expected(spans).paid and not Expected(spans).scores


def test_a_group_of_roll_ups_alone_is_not_shown_whoever_counts(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [make(caller=caller), make(caller=caller, kind="http", model="", prompt_tokens=0, comp_tokens=0)]
    send(pipeline, [{**span, "attributes": {"tag": caller}} for span in spans])
    plain = ask(pipeline, "/errors", caller=caller, groupby="model")["by_model"]
    assert list(plain) == ["gpt-4o"]
    assert ask(pipeline, "/errors", caller=caller, groupby="model", attr__tag=caller)["by_model"] == plain


def test_a_numeric_attribute_is_a_metric(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, _ = traffic
    for name, values in (
        ("depth", [-4, 0, 4]),
        ("ratio", [0, 0.5, 1]),
        ("eval.score", [0, 0.1, 0.2, 0.3, 0.4, 0.9, 1]),
    ):
        shown = ask(pipeline, f"/attr.{name}", caller=caller)
        assert {key: shown.pop(key) for key in ("count", "sum", "avg", "p50", "p95")} == {
            "count": len(values),
            "sum": pytest.approx(sum(values)),
            "avg": pytest.approx(sum(values) / len(values)),
            "p50": pytest.approx(np.quantile(values, 0.5)),
            "p95": pytest.approx(np.quantile(values, 0.95)),
        }
        assert (shown.pop("window"), shown.pop("metric")) == ("1h", f"attr.{name}")
        assert set(shown) == {"from", "to", "since", "left_out", "skipped"}
    by_status = ask(pipeline, "/attr.depth", caller=caller, groupby="status")["by_status"]
    assert {status: found["sum"] for status, found in by_status.items()} == {"error": 4, "ok": -4}
    by_step = ask(pipeline, "/attr.depth", caller=caller, groupby="attr.step_name")["by_step_name"]
    assert by_step["plan"]["count"] == 3
    assert ask(pipeline, "/attr.depth", caller=caller, attr__workflow="check")["count"] == 1
    assert ask(pipeline, "/attr.eval.score", caller=caller, kind="tool")["avg"] == 0.9
    for name in ("workflow", "nobody_has_this"):
        empty = ask(pipeline, f"/attr.{name}", caller=caller)
        assert [empty[key] for key in ("count", "sum", "avg", "p50", "p95")] == [0, None, None, None, None]


#: Attribute keys and values that quoting, JSON paths or SQL might trip over.
ODD = (
    *(
        '"',
        "'",
        "\\",
        "`",
        ";--",
        "'); DROP TABLE spans; --",
        "x' OR '1'='1",
        "{spans}",
        "{}",
        "?",
        "%s",
        "$1",
        "$",
        "$.a",
    ),
    *(
        "a.b",
        "a..b",
        ".",
        "a/b~c",
        "a~1b",
        "/",
        "~",
        "*",
        "#-1",
        "[0]",
        "0",
        "-1",
        " ",
        "a b",
        "a+b",
        "a&b=c",
        "%",
        "%41",
    ),
    *("\t", "\n", "\x00", "\x7f", "日本", "é", "e\u0301", "\U0001f600", "\u202e", "<script>", "null", "true", "1e3"),
    *("model", "cost_nusd", "own", "spans", "attributes", "value", "x" * 256),
)


def test_keys_and_values_of_every_kind_are_found_as_they_are(pipeline: Pipeline) -> None:
    caller = fresh("odd")
    spans = [make(caller=caller, cost_usd=n + 1, attributes={key: key, "same": key}) for n, key in enumerate(ODD)]
    send(pipeline, spans)
    everything = {key: float(number) for number, key in enumerate(ODD, start=1)}
    assert ask(pipeline, "/cost_by_attribute", caller=caller, key="same")["value"] == everything
    for number, key in enumerate(ODD, start=1):
        for query in ({f"attr.{key}": key}, {"attr.same": key}, {f"attr.{key}": key, "attr.same": key}):
            shown = ask(pipeline, "/cost", caller=caller, **query)
            assert (shown["total_usd"], shown["span_count"]) == (number, 1), query
        shown = ask(pipeline, "/total_cost", caller=caller, groupby=f"attr.{key}")
        assert shown[f"by_{key}"] == {key: number}
        shown = ask(pipeline, "/cost_by_attribute", caller=caller, key=key)
        assert (shown["value"], shown[f"by_{key}"]) == ({key: number}, {key: number})
        if key not in DIMENSIONS:
            assert ask(pipeline, "/cost", caller=caller, groupby=key)[f"by_{key}"] == {key: number}
        for other in (key + "x", key.swapcase() if key.swapcase() != key else key * 2):
            if other not in ODD:
                assert ask(pipeline, "/cost", caller=caller, **{f"attr.{key}": other})["span_count"] == 0


def test_odd_values_of_dimensions_are_found_as_they_are(pipeline: Pipeline) -> None:
    tag = fresh("odd")
    names = [text for text in ODD if len(text) < 200]
    send(pipeline, [make(caller=tag, name=name, cost_usd=0.5, attributes={"tag": tag}) for name in names])
    assert ask(pipeline, "/cost", caller=tag, groupby="name")["by_name"] == dict.fromkeys(names, 0.5)
    for name in names:
        assert ask(pipeline, "/cost", caller=tag, name=name)["span_count"] == 1
        assert ask(pipeline, "/cost", caller=tag, name=name, attr__tag=tag)["span_count"] == 1


@pytest.mark.parametrize(
    "query",
    [
        *({key: fresh("nobody")} for key in ("model", "provider", "caller", "name", "status", "attr__x", "attr__tag")),
        *({key: ""} for key in ("model", "caller", "attr__tag")),
        {"attr__tag": "\x00"},
    ],
)
def test_a_filter_that_nothing_passes_is_no_error(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], query: dict[str, str]
) -> None:
    shown = ask(pipeline, "", **query)
    assert shown["span_count"] == 0
    for group, wanted in expected_groups([]).items():
        assert {key: shown[group][key] for key in wanted} == wanted
    assert (shown["cost"]["by_model"], shown["cost"]["unpriced_by_model"]) == ({}, {})
    assert [shown[name] for name in CUSTOM] == [None] * len(CUSTOM)
    for name in ("latency_p95", "total_cost", "error_rate", "span_count", *CUSTOM):
        found = ask(pipeline, f"/{name}", **query)
        assert (found["value"], found["span_count"], found.get("exemplars", [])) == (None, 0, [])
    for path, key in (("/cost", "model"), ("/latency", "model"), ("/latency_p50", "workflow"), ("", "model")):
        assert ask(pipeline, path, **query, groupby=key)[f"by_{key}"] == {}
    assert ask(pipeline, "/cost_by_attribute", **query, key="workflow")["value"] == {}


def test_an_empty_dimension_is_called_unknown(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    mine = [span for span in spans if not span["provider"]]
    shown = ask(pipeline, "/cost", caller=caller, provider="unknown")
    assert shown["total_usd"] == pytest.approx(Expected(mine).cost)
    again = ask(pipeline, "/cost", caller=caller, provider="unknown", attr__tag=caller)
    assert again["total_usd"] == shown["total_usd"]


# --- the tail --------------------------------------------------------------------------------------------------------


def tail_of(serving: Pipeline, path: str, size: int, **query: str) -> list[dict[str, Any]]:
    """The exemplars; a busy machine has to be asked again, because it gives finding them up after a while."""
    for _ in range(50):
        found: list[dict[str, Any]] = ask(serving, path, **query)["exemplars"]
        if found or not size:
            return found
        time.sleep(0.1)
    return []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/latency", "latency_ms"),
        ("/latency_p99", "latency_ms"),
        ("/latency_avg", "latency_ms"),
        ("/ttft_p95", "ttft_ms"),
        ("/cost", "cost_usd"),
        ("/total_cost", "cost_usd"),
        ("/cost_per_call", "cost_usd"),
    ],
)
def test_the_exemplars_are_the_largest_and_can_be_looked_at(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], path: str, field: str
) -> None:
    caller, spans = traffic

    def largest(kind: str, keep: Callable[[dict[str, Any]], bool]) -> list[tuple[str, float]]:
        of = Expected(filter(keep, spans), kind)
        tail = of.paid if field == "cost_usd" else of.calls
        found = [(span["trace_id"], span[field]) for span in tail if span.get(field)]
        return sorted(found, key=lambda one: -one[1])[:3]

    for query, keep in (
        ({}, lambda span: True),
        ({"model": "gpt-4o"}, lambda span: span["model"] == "gpt-4o"),
        ({"status": "error"}, lambda span: span.get("status") == "error"),
        ({"attr__workflow": "write"}, lambda span: span["attributes"].get("workflow") == "write"),
        ({"groupby": "model"}, lambda span: True),
    ):
        for kind in ("", "tool", "all"):
            asked = {"caller": caller, **query, **({"kind": kind} if kind else {})}
            wanted = largest(kind, keep)
            assert [(one["trace_id"], one[field]) for one in tail_of(pipeline, path, len(wanted), **asked)] == [
                (trace, pytest.approx(value)) for trace, value in wanted
            ], asked
    for one in tail_of(pipeline, path, 3, caller=caller):
        shown = pipeline.get(f"/traces/{one['trace_id']}").json()["spans"]
        assert {span["span_id"]: span.get(field) for span in shown}[one["span_id"]] == pytest.approx(one[field])


def test_the_exemplars_are_of_different_traces(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    same = fresh("trace")
    spans = [make(caller=caller, trace_id=same, latency_ms=ms) for ms in (900, 800, 700)]
    spans += [make(caller=caller, latency_ms=ms) for ms in (600, 500, 400)]
    send(pipeline, spans)
    found = tail_of(pipeline, "/latency", 3, caller=caller)
    assert [one["latency_ms"] for one in found] == [900, 600, 500]
    assert found[0]["trace_id"] == same


@pytest.mark.parametrize("name", ["cost_of_legal", "latency_of_legal"])
def test_the_exemplars_of_a_metric_of_ones_own_are_spans_it_measures(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, spans = traffic
    legal = {span["trace_id"] for span in spans if span["attributes"].get("document_type") == "legal"}
    found = ask(pipeline, f"/{name}", caller=caller).get("exemplars", [])
    assert {one["trace_id"] for one in found} <= legal


# --- refusals --------------------------------------------------------------------------------------------------------

EVERYWHERE = (
    *("", "/cost", "/tokens", "/latency", "/errors", "/quality", "/error_rate", "/total_cost_usd", "/legal_doc_cost"),
    *("/cost_by_model", "/cost_by_attribute?key=x", "/attr.depth", "/transport_sent", "/alert_firings"),
    *("/cost/series", "/latency_p95/series", "/agent_steps/series"),
)


def with_query(path: str, query: str) -> str:
    return f"/metrics{path}{'&' if '?' in path else '?'}{query}"


@pytest.mark.parametrize("path", EVERYWHERE)
def test_a_parameter_that_nobody_reads_or_that_cannot_be_meant_is_400_by_its_name(
    pipeline: Pipeline, path: str
) -> None:
    queries = [
        *("windw=1h", "Window=1h", "limit=5", "since=2026-01-01T00:00:00Z", "attr=x", "attr.=x", "=x", "%F0=1"),
        *("window=1h&window=1h", "kind=llm&kind=tool", "model=a&model=a", "caller=&caller=", "attr.a=1&attr.a=2"),
        *("window=", "window=abc", "window=5", "window=-1h", "window=0s", "window=999ms", "window=1h%20"),
        *("window=292y", "window=NaNs", "window=1e9s", "window=%00", "window=99999999d"),
        *("kind=banana", "kind=LLM", "kind=llm,tool", "kind=%00", "groupby=attr."),
        *(() if path.endswith("/series") else ("step=1m",)),
    ]
    for query in queries:
        if path.startswith("/cost_by_") and query.startswith("groupby"):
            continue
        error = refused(pipeline.get(with_query(path, query)), 400)
        name = query.partition("=")[0].replace("%F0", "\\ufffd")
        assert error.startswith(name), (query, error)


@pytest.mark.parametrize(
    "name",
    [
        *("banana", "COST", "cost%20", "latency_p42", "attr.", "attr", "by_model", "tokentrace_cost_total", "x" * 300),
        *("%00", "'", "error_rate%27", "series", "prometheus2", "日本", "__class__"),
    ],
)
def test_an_unknown_metric_is_404_and_names_the_known(pipeline: Pipeline, name: str) -> None:
    for path in (quote(name, safe="%"), quote(name, safe="%") + "/series"):
        error = refused(pipeline.get(f"/metrics/{path}"), 404)
        assert error.startswith("unknown metric ")
        assert len(error) < 2000
        for known in (*GROUPS, *METRICS, *BREAKDOWNS, *TRANSPORT, *CUSTOM):
            assert known in error


def test_the_known_metrics_are_named_with_the_firings(pipeline: Pipeline) -> None:
    error = refused(pipeline.get("/metrics/banana"), 404)
    assert [name for name in FIRINGS if name not in error] == []


@pytest.mark.parametrize("name", ["cost_by_model", "transport_sent"])
def test_that_a_metric_has_no_series_is_said_as_such(pipeline: Pipeline, name: str) -> None:
    assert "unknown metric" not in refused(pipeline.get(f"/metrics/{name}/series"), 404)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_metrics_are_only_read(pipeline: Pipeline, method: str) -> None:
    for path in ("", "/cost", "/cost/series", "/prometheus"):
        assert http(method, f"{pipeline.url}/metrics{path}", b"{}").status == 405


# --- in steps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GROUPS, *METRICS, *CUSTOM])
def test_a_series_covers_its_window_in_steps(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, _ = traffic
    shown = ask(pipeline, f"/{name}/series", caller=caller, step="10m")
    assert set(shown) - {"quantile_error"} == {"window", "metric", "step", "points", "from", "to", "since"}
    assert (shown["window"], shown["metric"], shown["step"]) == ("1h", name, "10m")
    assert_coverage(shown)
    times = [moment(point["at"]) for point in shown["points"]]
    assert times[0] == moment(shown["from"])
    assert times == sorted(times)
    assert times[-1] < moment(shown["to"])
    assert all(at.minute % 10 == at.second == 0 for at in times[1:])
    assert {after - before for before, after in itertools.pairwise(times[1:])} <= {timedelta(minutes=10)}
    whole = ask(pipeline, "", caller=caller)
    filled = [point for point in shown["points"] if point["span_count"]]
    assert sum(point["span_count"] for point in filled) == whole["span_count"]
    if len(filled) == 1:
        found = filled[0]["value"]
        if name in GROUPS:
            wanted = {key: value for key, value in whole[name].items() if not key.endswith("by_model")}
            assert found == wanted
        elif name in METRICS:
            assert found == ask(pipeline, f"/{name}", caller=caller)["value"]
        else:
            assert found == whole[name]


@pytest.mark.parametrize(
    ("window", "steps"), [("20m", ("1s", "7s")), ("1h", ("10s", "30s", "2h")), ("24h", ("1m",)), ("7d", ("10m",))]
)
def test_the_steps_add_up_to_the_window(pipeline: Pipeline, window: str, steps: Sequence[str]) -> None:
    caller = fresh("caller")
    now = datetime.now(UTC)
    length = timedelta(microseconds=parse_duration(window) / 1000)
    ends = [now - length * fraction / 997 for fraction in range(1, 900, 41)]
    spans = [
        make(caller=caller, ended_at=end.isoformat(), cost_usd=0.000001 * (n + 1), model=f"m{n % 3}", latency_ms=n)
        for n, end in enumerate(ends)
    ]
    send(pipeline, spans)
    for step in ("", *steps):
        query = {"window": window, "caller": caller, "groupby": "model", **({"step": step} if step else {})}
        shown = ask(pipeline, "/total_cost/series", **query)
        whole = ask(pipeline, "/total_cost", window=window, caller=caller, groupby="model")
        points = shown["points"]
        assert len(points) <= 2002
        assert sum(point["span_count"] for point in points) == len(spans)
        assert sum(round((point["value"] or 0) * 1e9) for point in points) == round(whole["value"] * 1e9)
        assert sorted(shown["by_model"]) == ["m0", "m1", "m2"]
        for model, own in shown["by_model"].items():
            assert [point["at"] for point in own] == [point["at"] for point in points]
            added = sum(round((point["value"] or 0) * 1e9) for point in own)
            assert added == round(whole["by_model"][model] * 1e9)
        for at, model in ((0, "m0"), (len(points) - 1, "m1")):
            parts = [shown["by_model"][name][at]["span_count"] for name in shown["by_model"]]
            assert sum(parts) == points[at]["span_count"], model
        width = timedelta(microseconds=parse_duration(shown["step"]) / 1000)
        for point in points:
            begins = moment(point["at"])
            ends_at = min(
                begins + width - timedelta(seconds=begins.timestamp() % width.total_seconds()), moment(shown["to"])
            )
            inside = sum(begins <= datetime.fromisoformat(span["ended_at"]) < ends_at for span in spans)
            assert point["span_count"] == inside, point
        if not step:
            assert 2 <= len(points) <= 200


@pytest.mark.parametrize(
    ("window", "step", "finest"),
    [
        ("1h", "1s", "10s"),
        ("1h", "15s", "10s"),
        ("1h", "10.5s", "10s"),
        ("1h", "500ms", "10s"),
        ("1h", "0s", "10s"),
        ("20m", "1500ms", "1s"),
        ("24h", "10s", "1m"),
        ("7d", "1m", "10m"),
        ("30d", "10m", "1h"),
        ("1000d", "10m", "1h"),
        ("36h", "1m", "2m"),
        ("3h", "1s", "10s"),
    ],
)
def test_a_step_that_cannot_be_had_is_400_and_names_the_finest_that_can(
    pipeline: Pipeline, window: str, step: str, finest: str
) -> None:
    error = refused(pipeline.get(f"/metrics/span_count/series?window={window}&step={step}"), 400)
    assert error.startswith("step: ")
    assert re.search(rf"\b{finest}\b", error), error


def test_a_step_of_over_2000_points_is_400_and_the_one_it_names_is_taken(pipeline: Pipeline) -> None:
    for window, step in (("36h", "1m"), ("35h", "1m"), ("6h", "10s")):
        answer = pipeline.get(f"/metrics/span_count/series?window={window}&step={step}")
        if answer.status == 200:
            assert len(answer.json()["points"]) <= 2001
            continue
        error = refused(answer, 400)
        finest = re.findall(r"\b[\d]+[a-z]+\b", error)[-1]
        shown = ask(pipeline, "/span_count/series", window=window, step=finest)
        assert len(shown["points"]) <= 2002


@pytest.mark.parametrize(("window", "step"), [("100d", "1h"), ("99999d", "1d")])
def test_a_step_is_judged_by_the_points_there_will_be(pipeline: Pipeline, window: str, step: str) -> None:
    shown = ask(pipeline, "/span_count/series", window=window, step=step)
    assert len(shown["points"]) < 800


@pytest.mark.parametrize("step", ["", "abc", "60", "-1m", "1x", "1m%20", "%00", "1h2", "9999999999h"])
def test_a_bad_step_is_400(pipeline: Pipeline, step: str) -> None:
    assert refused(pipeline.get(f"/metrics/cost/series?step={step}"), 400).startswith("step: ")


def test_a_step_given_twice_is_400(pipeline: Pipeline) -> None:
    assert refused(pipeline.get("/metrics/cost/series?step=1m&step=1m"), 400) == "step: given twice"


@pytest.mark.parametrize("query", ["groupby=workflow", "groupby=attr.workflow", "attr.workflow=plan"])
def test_a_series_by_attribute_is_400(pipeline: Pipeline, query: str) -> None:
    assert "attributes" in refused(pipeline.get(f"/metrics/cost/series?{query}"), 400)


@pytest.mark.parametrize("name", [*BREAKDOWNS, *(name for name in (*TRANSPORT, *FIRINGS)), "attr.depth"])
def test_what_has_no_series_is_404(pipeline: Pipeline, name: str) -> None:
    refused(pipeline.get(f"/metrics/{name}/series"), 404)


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/cost", "/latency", "/error_rate", "/cost_by_model", "/cost/series"])
@pytest.mark.parametrize("window", ["1h", "6h", "24h", "7d", "30d", "2h30m", "90m", "5400s", "1h0m30.5s", "1s"])
def test_an_answer_says_which_interval_it_is_about(pipeline: Pipeline, path: str, window: str) -> None:
    shown = ask(pipeline, path, window=window)
    assert shown["window"] == window
    if window != "1s":
        assert_coverage(shown, window)


@pytest.mark.parametrize("path", ["", "/cost", "/error_rate", "/cost_by_model", "/latency/series", "/legal_doc_cost"])
def test_a_window_longer_than_what_is_kept_says_since_when(pipeline: Pipeline, path: str) -> None:
    shown = ask(pipeline, path, window="400d")
    since = moment(shown["since"])
    assert abs(datetime.now(UTC) - timedelta(days=31) - since) < timedelta(minutes=1)
    assert moment(shown["from"]) <= since


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/cost", {"groupby": "workflow"}),
        ("", {"groupby": "attr.workflow"}),
        ("/error_rate", {"attr__workflow": "plan"}),
        ("/cost_by_attribute", {"key": "workflow"}),
        ("/attr.depth", {}),
    ],
)
def test_by_attribute_there_is_no_more_than_the_store_keeps(
    pipeline: Pipeline, path: str, query: dict[str, str]
) -> None:
    assert ask(pipeline, path, window="6d", **query)["since"] is None
    since = moment(ask(pipeline, path, window="30d", **query)["since"])
    assert abs(datetime.now(UTC) - timedelta(days=7) - since) < timedelta(minutes=1)


# --- metrics of one's own --------------------------------------------------------------------------------------------


def test_metrics_of_ones_own_stand_beside_the_others(
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


def serve_with(directory: Path, settings: str) -> subprocess.CompletedProcess[str]:
    (directory / "tokentrace.yml").write_text(settings, encoding="utf-8")
    environment = plain_environment()
    command = [sys.executable, "-m", "tokentrace_standalone", "serve"]
    return subprocess.run(
        [*command, "--addr", "127.0.0.1:0", "--also", "none", "--nats-port", str(free_port())],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ("[{name: total_cost, type: count}]", "custom_metrics[0].name"),
        ("[{name: cost, type: count}]", "custom_metrics[0].name"),
        ("[{name: total_cost_usd, type: count}]", "custom_metrics[0].name"),
        ("[{name: fine, type: count}, {name: cost_by_model, type: count}]", "custom_metrics[1].name"),
        ("[{name: prometheus, type: count}]", "custom_metrics[0].name"),
        ("[{name: a b, type: count}]", "custom_metrics[0].name"),
        ("[{name: twice, type: count}, {name: twice, type: sum, field: cost}]", "custom_metrics"),
        ("[{name: mine, type: sum, field: costs}]", "custom_metrics[0].field"),
        ("[{name: mine, type: sum}]", "custom_metrics[0].field"),
        ("[{name: mine, type: avg, field: attr.}]", "custom_metrics[0].field"),
        ("[{name: mine, type: median, field: cost}]", "custom_metrics[0].type"),
        ("[{name: mine, type: sum, field: cost, filter: x}]", "custom_metrics[0]"),
        ("[{type: count}]", "custom_metrics[0]"),
    ],
)
def test_a_metric_of_ones_own_that_cannot_be_meant_ends_the_start_with_2(
    tmp_path: Path, settings: str, key: str
) -> None:
    ended = serve_with(tmp_path, f"custom_metrics: {settings}\n")
    assert ended.returncode == 2, (ended.returncode, ended.stderr)
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob("**/js")), "nothing was started"


@pytest.mark.parametrize("name", ["transport_sent", "alert_firings", "by_model"])
def test_a_name_that_means_something_else_below_metrics_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_custom_metric({"name": name, "type": "count"}, "custom_metrics[0]")


def test_two_metrics_of_ones_own_that_are_one_to_prometheus_are_refused() -> None:
    with pytest.raises(ConfigError, match="name"):
        parse_custom_metrics(
            [{"name": "steps", "type": "count"}, {"name": "steps_total", "type": "avg", "field": "cost"}]
        )


LATER = "custom_metrics:\n  - {name: legal_cost, type: sum, field: cost, filter_key: kind_of, filter_val: legal}\n"


def legal(number: int) -> list[dict[str, Any]]:
    return [make(cost_usd=0.5, attributes={"kind_of": "legal"}) for _ in range(number)]


def saved(serving: Pipeline) -> list[str]:
    """The snapshots of the aggregator."""

    async def names() -> list[str]:
        async with jetstream.connect(serving.nats_url, name="test") as bus:
            return [name for name in await bus.objects(subjects.SNAPSHOTS).names() if name.startswith("aggregator.0.")]

    return asyncio.run(names())


def test_a_metric_defined_later_says_since_when(start: Callable[..., Pipeline]) -> None:
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
        assert moment(ask(serving, "")["since"]) == since, "it is one of the numbers"
        assert moment(ask(serving, "/legal_cost/series", step="10m")["since"]) == since
        assert ask(serving, "/cost")["since"] is None, "it is not one of these"
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
    assert (shown["value"], moment(shown["since"]) > since) == (None, True), "what means something else begins anew"


def test_a_metric_defined_before_anything_was_saved_measures_everything(start: Callable[..., Pipeline]) -> None:
    serving = start(env={"TOKENTRACE_SNAPSHOT_INTERVAL": "1h"})
    send(serving, legal(3))
    assert saved(serving) == []
    serving.kill()
    (serving.directory / "tokentrace.yml").write_text(LATER, encoding="utf-8")
    serving.start()
    shown = ask(serving, "/legal_cost")
    assert (shown["value"], shown["span_count"], shown["since"]) == (1.5, 3, None)


# --- a part is away --------------------------------------------------------------------------------------------------


class Halved(Apart):
    """Two shards, and an aggregator for each of them."""

    SERVICES = ("ingest", "aggregator", "second", "api")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, env={"TOKENTRACE_SHARD_COUNT": "2"})

    def start_one(self, name: str) -> None:
        module = "aggregator" if name == "second" else name
        own = {"aggregator": {"TOKENTRACE_SHARDS": "0"}, "second": {"TOKENTRACE_SHARDS": "1"}}.get(name, {})
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


def test_without_a_shard_every_answer_is_incomplete_and_says_which(tmp_path: Path) -> None:
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
        assert "shards [1]" in refused(services.get("/metrics/prometheus"), 503), "a gap, never a smaller number"
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


# --- counters --------------------------------------------------------------------------------------------------------

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def cumulative(page: bytes) -> Series:
    """Every sample that may never fall."""
    ends = ("_total", "_bucket", "_count", "_sum")
    found: Series = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            if sample.name.startswith("tokentrace_") and sample.name.endswith(ends):
                found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def test_counters_survive_kills_and_never_fall(start: Callable[..., Pipeline]) -> None:
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
        """Sent until it is acknowledged; a span with ids counts once however often it is sent."""
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
