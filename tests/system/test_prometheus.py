"""The page of ``GET /metrics/prometheus``, checked against the spans and with promtool."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from kit.pipeline import Answer, Pipeline
from kit.prometheus_page import (
    FAMILIES,
    HISTOGRAMS,
    ODD,
    PAGE,
    RULE,
    SETTINGS,
    Series,
    by,
    cumulative,
    lint,
    one,
    parse,
    total,
    wait_fired,
)

# --- one page over spans whose numbers are known


def make_spans() -> list[dict[str, Any]]:
    """Return a tool, an agent, and calls of every status, some without a model; values are at and near bucket edges."""
    models = [("gpt-4o", "openai"), ("claude-sonnet-4", "anthropic"), ("", ""), (ODD, "openai")]
    prompts = [0, 1, 64, 65, 128, 129, 4096, 32767, 32768, 32769, 100_000]
    latencies = [0, 0.25, 50, 50.001, 100, 999.999, 1000, 30000, 30000.001, 61000, 0, 200, 3000]
    spans: list[dict[str, Any]] = []
    for number in range(88):
        model, provider = models[number % 4]
        status = ("ok", "ok", "ok", "error", "ok", "timeout")[number // 2 % 6]
        if not model:
            # A call without a model is refused if its status is ok.
            status = ("error", "timeout")[number // 4 % 2]
        attributes: dict[str, Any] = {}
        if number % 3 == 0:
            attributes["eval.score"] = (number % 11) / 10
        if number % 5 < 2:
            attributes["document_type"] = ("legal", "news")[number % 5]
        if number % 7 == 0:
            attributes["step_name"] = "plan"
        latency, ttft = latencies[number % len(latencies)], latencies[number * 5 % len(latencies)]
        spans.append(
            {
                "model": model,
                "provider": provider,
                "caller": ("chat", "batch", "")[number % 3],
                "status": status,
                "prompt_tokens": prompts[number % len(prompts)],
                "comp_tokens": prompts[number * 3 % len(prompts)] + 1,
                "latency_ms": latency,
                # One over the latency would be left out.
                "ttft_ms": ttft if number % 2 and not 0 < latency < ttft else 0,
                "cost_usd": (number + 1) * 0.000125,
                "attributes": attributes,
            }
        )
    # Of other kinds only cost and score count, and of an agent, which is a roll-up kind, only the score.
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
    """Return the sums of ``of(span)`` by *labels*, in the form of ``by``; an empty label is unknown."""
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
    """Drop zeros: a counter without spans may be shown as 0 or not at all."""
    return {key: value for key, value in found.items() if value}


class Shown(NamedTuple):
    """A pipeline with spans, its page before and after they were sent, and the parsed page after."""

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


def test_promtool_warns_only_of_the_two_documented_names_in_ms(shown: Shown) -> None:
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
    # No delivery failed, so only this family has no samples.
    assert set(named) - set(found) <= {"tokentrace_alert_delivery_failed_total"}


def test_counters_equal_the_sums_of_the_spans(shown: Shown) -> None:
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


def test_cost_counts_every_kind_but_roll_up_kinds(shown: Shown) -> None:
    where = ("model", "provider", "caller")
    assert nonzero(by(shown.series, "tokentrace_cost_total", *where)) == pytest.approx(
        count(PAID, *where, of=field("cost_usd")), rel=1e-12
    )


def test_a_missing_dimension_is_unknown(shown: Shown) -> None:
    assert "unknown" in by(shown.series, "tokentrace_latency_ms_count", "model")
    assert ("unknown", "unknown") in by(shown.series, "tokentrace_errors_total", "model", "provider")
    assert "unknown" in by(shown.series, "tokentrace_cost_total", "caller")
    for name, labels in shown.series:
        assert all(value for _, value in labels), (name, labels)


def test_quotes_backslashes_and_letters_beyond_ascii_are_kept_in_labels(shown: Shown) -> None:
    assert ODD in by(shown.series, "tokentrace_latency_ms_count", "model")
    assert by(shown.series, "tokentrace_alert_firings_total", "rule") == {RULE: 1}


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_a_histogram_has_the_documented_buckets_with_the_values_of_the_spans(shown: Shown, name: str) -> None:
    own, edges = HISTOGRAMS[name]
    # A latency or time to first token of 0 means unset.
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


def test_the_page_equals_the_json_metrics(shown: Shown) -> None:
    series, pipeline = shown.series, shown.pipeline
    total_json, hour = pipeline.metrics(), pipeline.metrics("1h")
    assert total(series, "tokentrace_spans_total") == total_json["span_count"]
    assert total(series, "tokentrace_prompt_tokens_total") == total_json["tokens"]["prompt_total"]
    assert total(series, "tokentrace_completion_tokens_total") == total_json["tokens"]["completion_total"]
    assert total(series, "tokentrace_tokens_total") == total_json["tokens"]["total"]
    assert total(series, "tokentrace_cost_total") == pytest.approx(total_json["cost"]["total_usd"], rel=1e-12)
    assert by(series, "tokentrace_cost_total", "model") == pytest.approx(total_json["cost"]["by_model"], rel=1e-12)
    assert total(series, "tokentrace_errors_total") == total_json["errors"]["count"]
    assert total(series, "tokentrace_timeouts_total") == total_json["errors"]["timeout_count"]
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


def test_gauges_equal_the_numbers_of_the_last_hour(shown: Shown) -> None:
    series, scores = shown.series, scores_of(SPANS)
    spent = sum(map(field("cost_usd"), CALLS))
    assert one(series, "tokentrace_cost_per_call") == pytest.approx(spent / len(CALLS), rel=1e-9)
    assert one(series, "tokentrace_error_rate") == pytest.approx(len(list(filter(bad, CALLS))) / len(CALLS))
    late = [span for span in CALLS if span["status"] == "timeout"]
    assert one(series, "tokentrace_timeout_rate") == pytest.approx(len(late) / len(CALLS))
    assert one(series, "tokentrace_quality_score_p10") == pytest.approx(np.quantile(scores, 0.10))
    assert one(series, "tokentrace_quality_score_p50") == pytest.approx(np.quantile(scores, 0.50))
    for model in {text(span, "model") for span in CALLS}:
        own = scores_of(span for span in SPANS if text(span, "model") == model)
        assert by(series, "tokentrace_quality_score", "model")[model] == pytest.approx(sum(own) / len(own))


def test_custom_metrics_are_on_the_page(shown: Shown) -> None:
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
