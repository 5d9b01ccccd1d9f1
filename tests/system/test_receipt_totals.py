"""The receipts of all spans add up to every total that is shown, and a cost stays if prices change."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import genai_prices
import pytest

from kit.json_spans import fresh
from kit.pipeline import Pipeline
from kit.receipts import (
    SETTINGS,
    amounts_of,
    ask_receipt,
    assert_adds_up,
    call_with_ids,
    call_without_tokens,
    cost_nusd,
    receipt_of,
    send,
    send_for_receipt,
)

DEMO_S, DEMO_RATE = 4, "25"
CONFIDENCES = {"exact", "reported", "overridden", "partly_priced", "unpriced", "reported_zero_ignored"}


class Traffic(NamedTuple):
    """Demo traffic and a span of every kind of cost, with the receipts of all of them."""

    pipeline: Pipeline
    spans: list[dict[str, Any]]
    receipts: list[dict[str, Any]]


def special_spans() -> list[dict[str, Any]]:
    """Return spans with costs of every origin, of kinds that count and kinds that do not."""
    trace = fresh("special")
    spans = [
        call_with_ids(cost_usd=0.000000001),
        call_with_ids(cost_usd=0.1),
        call_with_ids(cost_usd=0.2),
        call_with_ids(cost_usd=0),
        call_with_ids(provider="ollama", model="llama3", cost_usd=0),
        call_with_ids(model="in-house-7b", provider=""),
        call_with_ids(model="in-house-7b", provider="", cache_read_tokens=17),
        call_with_ids(model="no-such-model"),
        call_with_ids(model="text-embedding-3-small", kind="embedding", prompt_tokens=3, comp_tokens=0),
        call_with_ids(model="text-embedding-3-small", prompt_tokens=7, comp_tokens=1),
        call_with_ids(usage={"web_searches": 3, "bananas": 2}),
        call_without_tokens(kind="tool", model="", provider=""),
        call_without_tokens(kind="tool", model="", provider="", cost_usd=0.0125),
        call_without_tokens(status="error", model=""),
        *(call_without_tokens(kind=kind, model="", cost_usd=5) for kind in ("agent", "workflow", "chain", "http")),
    ]
    return [{**span, "trace_id": trace, "caller": "special"} for span in spans]


def all_spans(serving: Pipeline) -> list[dict[str, Any]]:
    """Return the spans of all pages of ``GET /traces``, with the ids of their traces."""
    spans: list[dict[str, Any]] = []
    offset = 0
    while ids := serving.get(f"/traces?limit=100&offset={offset}").json()["trace_ids"]:
        offset += len(ids)
        for trace_id in ids:
            spans += [{**span, "trace_id": trace_id} for span in serving.get(f"/traces/{trace_id}").json()["spans"]]
    return spans


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    directory = tmp_path_factory.mktemp("traffic")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    try:
        special = special_spans()
        command = [sys.executable, "-m", "tokentrace_standalone", "demo", "--url", serving.nats_url]
        demo = subprocess.Popen(
            [*command, "--for", f"{DEMO_S}s", "--rate", DEMO_RATE], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        send(serving, special)
        output, _ = demo.communicate(timeout=DEMO_S + 30)
        assert demo.returncode == 0, output.decode()
        (sent,) = re.findall(r"(\d+) of \1 spans accepted, 0 lost", output.decode().splitlines()[-1])
        expected = int(sent) + len(special)
        serving.until(lambda: serving.get("/stats").json()["total_spans"] == expected, "counted")
        serving.until(lambda: serving.get("/health").json()["stored_spans"] == expected, "stored")
        spans = all_spans(serving)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda span: ask_receipt(serving, span["trace_id"], span["span_id"]), spans))
        assert {answer.status for answer in answers} == {200}
        yield Traffic(serving, spans, [answer.json() for answer in answers])
    finally:
        serving.stop()


def test_the_receipts_add_up_to_every_total_to_the_nano_dollar(traffic: Traffic) -> None:
    serving = traffic.pipeline
    counted = sum(cost_nusd(receipt) for receipt in traffic.receipts if receipt["counted"])
    assert len(traffic.receipts) > 100
    assert counted > 10**7
    assert counted < sum(cost_nusd(receipt) for receipt in traffic.receipts), "some are roll-ups"
    shown = serving.get("/metrics?window=24h").json()
    assert round(shown["cost"]["total_usd"] * 1e9) == counted
    assert round(serving.get("/metrics/cost?window=1h").json()["total_usd"] * 1e9) == counted
    assert round(serving.get("/metrics/total_cost?window=1h").json()["value"] * 1e9) == counted
    assert round(serving.get("/stats").json()["total_cost_usd"] * 1e9) == counted
    listed, offset = 0, 0
    while traces := serving.get(f"/traces?limit=200&offset={offset}").json()["traces"]:
        offset += len(traces)
        listed += sum(round(trace["total_cost_usd"] * 1e9) for trace in traces)
    assert listed == counted
    by_model = serving.get("/metrics/cost_by_model?window=24h").json()["value"]
    expected: dict[str, int | None] = {}
    for receipt in traffic.receipts:
        if receipt["counted"]:
            model = receipt["model"] or "unknown"
            cost = None if receipt["cost_usd"] is None else cost_nusd(receipt)
            expected[model] = cost if expected.get(model) is None else (expected[model] or 0) + (cost or 0)
    assert {model: None if usd is None else round(usd * 1e9) for model, usd in by_model.items()} == expected
    assert None in expected.values(), "a model of which no cost is known"


def test_the_receipts_agree_with_the_counts_of_unpriced_spans(traffic: Traffic) -> None:
    shown = traffic.pipeline.get("/metrics/cost?window=24h").json()
    counted = [receipt for receipt in traffic.receipts if receipt["counted"]]
    unpriced = [receipt for receipt in counted if receipt["confidence"] == "unpriced"]
    partly = [receipt for receipt in counted if receipt["confidence"] == "partly_priced"]
    assert (shown["unpriced_span_count"], shown["partly_priced_span_count"]) == (len(unpriced), len(partly)) == (2, 2)
    by_model = {"no-such-model": (1, 0), "unknown": (1, 0), "text-embedding-3-small": (0, 1), "gpt-4o": (0, 1)}
    assert shown["unpriced_by_model"] == {
        model: {"unpriced_span_count": whole, "partly_priced_span_count": part}
        for model, (whole, part) in by_model.items()
    }


def test_every_receipt_adds_up_and_belongs_to_its_span(traffic: Traffic) -> None:
    for span, receipt in zip(traffic.spans, traffic.receipts, strict=True):
        assert_adds_up(receipt)
        assert "note" not in receipt
        assert (receipt["trace_id"], receipt["span_id"]) == (span["trace_id"], span["span_id"])
        assert (receipt["model"], receipt["provider"]) == (span["model"], span["provider"])
        assert receipt["total_cost_usd"] == span["cost_usd"]
        assert receipt["counted"] == (span["kind"] not in ("http", "agent", "workflow", "chain"))
    assert {receipt["confidence"] for receipt in traffic.receipts} == CONFIDENCES


def test_each_token_of_demo_traffic_is_charged_once(traffic: Traffic) -> None:
    checked = 0
    for span, receipt in zip(traffic.spans, traffic.receipts, strict=True):
        if span["kind"] != "llm" or span.get("caller") == "special":
            continue
        checked += 1
        amounts = amounts_of(receipt)
        assert receipt["confidence"] == "exact"
        cached = span.get("cache_read_tokens", 0)
        expected = {
            "input_tokens": span["prompt_tokens"] - cached,
            "cache_read_tokens": cached,
            "output_tokens": span["comp_tokens"],
        }
        assert amounts == {unit: amount for unit, amount in expected.items() if amount}
        assert receipt["price"]["version"] == f"genai-prices-{genai_prices.__version__}"
    assert checked > 50


def test_a_cost_stays_if_prices_change_and_its_receipt_says_that_the_rates_are_unknown(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        by_table, reported, unpriced = (
            call_with_ids(),
            call_with_ids(cost_usd=0.5),
            call_with_ids(model="in-house-7b", provider=""),
        )
        send(serving, [by_table, reported, unpriced])
        before = [receipt_of(serving, span) for span in (by_table, reported, unpriced)]
        assert serving.stop() == 0
        models = (
            "{gpt-4o: {prompt_per_1m: 1, completion_per_1m: 1}, in-house-7b: {prompt_per_1m: 1, completion_per_1m: 1}}"
        )
        (tmp_path / "tokentrace.yml").write_text(f"pricing:\n  models: {models}\n", encoding="utf-8")
        serving.start()
        after = [receipt_of(serving, span) for span in (by_table, reported, unpriced)]
        changed = after[0]
        assert (changed["cost_usd"], changed["confidence"], changed["price"]["source"]) == (
            "0.00256",
            "exact",
            before[0]["price"]["source"],
        )
        assert [line["unit"] for line in changed["lines"]] == ["as_priced_then"]
        assert "cannot be recomputed with the installed prices" in changed["note"]
        assert after[1:] == before[1:], "a reported cost stays, and an unpriced span is not priced later"
        later = send_for_receipt(serving)
        assert (later["cost_usd"], later["confidence"]) == ("0.00064", "overridden")
        assert round(serving.metrics()["cost"]["total_usd"] * 1e9) == 2_560_000 + 500_000_000 + 640_000
    finally:
        serving.stop()
