"""``GET /traces/{id}/spans/{span_id}/receipt`` explains a cost: its origin, its confidence, its lines."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from kit.cases import check_all
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
    lines_of,
    receipt_of,
    send,
    send_for_receipt,
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("receipts")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    yield serving
    assert serving.stop() == 0


def test_a_cost_from_the_price_tables_is_exact_and_names_them(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, cache_read_tokens=100, reasoning_tokens=64)
    assert receipt["cost_usd"] == "0.002435"
    assert (receipt["confidence"], receipt["reason"], receipt["counted"]) == ("exact", None, True)
    version = f"genai-prices-{genai_prices.__version__}"
    price = receipt["price"]
    assert (price["source"], price["version"]) == (f"openai:gpt-4o@{version}", version)
    assert (price["matched_model"], price["tier"]) == ("gpt-4o", None)
    assert lines_of(receipt) == {
        "input_tokens": (412, Decimal("2.5"), 1_000_000),
        "cache_read_tokens": (100, Decimal("1.25"), 1_000_000),
        "output_tokens": (128, Decimal(10), 1_000_000),
    }


def test_a_model_name_with_a_date_matches_its_model(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, model="gpt-4o-2024-08-06")
    assert (receipt["model"], receipt["price"]["matched_model"]) == ("gpt-4o-2024-08-06", "gpt-4o")


def test_the_price_is_that_of_the_end_of_the_call(pipeline: Pipeline) -> None:
    """claude-opus-4-6 lost its long-context tier on 2026-03-13."""
    call = {"model": "claude-opus-4-6", "provider": "anthropic", "prompt_tokens": 200_001, "comp_tokens": 0}
    before = send_for_receipt(pipeline, **call, ended_at="2026-03-12T23:59:59.900Z")
    after = send_for_receipt(pipeline, **call, ended_at="2026-03-13T00:00:00.000Z")
    assert (before["price"]["priced_at"], before["cost_usd"]) == ("2026-03-12T23:59:59.900Z", "2.00001")
    assert (after["price"]["priced_at"], after["cost_usd"]) == ("2026-03-13T00:00:00.000Z", "1.000005")


def test_a_call_that_ends_in_the_future_is_priced_at_its_arrival(pipeline: Pipeline) -> None:
    ends = datetime.now(UTC) + timedelta(days=400)
    receipt = send_for_receipt(pipeline, ended_at=ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
    at = datetime.fromisoformat(receipt["price"]["priced_at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_reported_cost_is_one_line(pipeline: Pipeline) -> None:
    costs = [0.000000001, 0.00448, 0.1, 1e-8, 999_999.999999999]
    spans = [call_with_ids(cost_usd=usd, cost_model="gpt-4o@2025-01") for usd in costs]
    send(pipeline, spans)

    def check(span: dict[str, Any]) -> None:
        receipt = receipt_of(pipeline, span)
        assert (receipt["confidence"], receipt["reason"]) == ("reported", None)
        assert [(line["unit"], line["amount"], line["per"]) for line in receipt["lines"]] == [("reported", 1, 1)]
        assert cost_nusd(receipt) == round(Decimal(repr(span["cost_usd"])).scaleb(9))
        price = receipt["price"]
        assert (price["source"], price["version"], price["matched_model"]) == ("gpt-4o@2025-01", "2025-01", "gpt-4o")

    check_all({repr(span["cost_usd"]): span for span in spans}, check)


def test_the_name_of_a_price_needs_no_version(pipeline: Pipeline) -> None:
    price = send_for_receipt(pipeline, cost_usd=0.5, cost_model="our-contract")["price"]
    assert (price["source"], price["version"]) == ("our-contract", None)


def test_a_configured_price_is_overridden(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(
        pipeline, model="In-House-7B", provider="", prompt_tokens=1001, comp_tokens=333, cache_read_tokens=7
    )
    assert receipt["confidence"] == "overridden"
    assert (receipt["price"]["version"], receipt["price"]["matched_model"]) == ("configuration", "in-house-7b")
    assert lines_of(receipt) == {
        "input_tokens": (994, Decimal("0.333333"), 1_000_000),
        "cache_read_tokens": (7, Decimal("0.05"), 1_000_000),
        "output_tokens": (333, Decimal("1.000001"), 1_000_000),
    }
    assert receipt["rounding"] == "-0.000000000335"


def test_a_unit_without_a_rate_makes_a_cost_partly_priced(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, model="text-embedding-3-small", prompt_tokens=3, comp_tokens=1)
    assert (receipt["confidence"], receipt["reason"]) == ("partly_priced", "no_rate:output_tokens")
    assert (receipt["cost_usd"], list(lines_of(receipt))) == ("0.00000006", ["input_tokens"])
    receipt = send_for_receipt(pipeline, usage={"bananas": 3, "web_searches": 2})
    assert (receipt["confidence"], receipt["reason"]) == ("partly_priced", "no_rate:bananas")
    assert list(lines_of(receipt)) == ["input_tokens", "output_tokens", "web_searches"]
    receipt = send_for_receipt(pipeline, model="in-house-7b", usage={"web_searches": 2})
    assert (receipt["confidence"], receipt["reason"]) == ("partly_priced", "no_rate:web_searches")


def test_a_call_without_a_known_price_is_unpriced_with_a_reason(pipeline: Pipeline) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"model": "no-such-model"}, "unknown_model"),
        ({"provider": "no-such-provider"}, "unknown_model"),
        ({"model": "", "status": "error"}, "no_model"),
        ({"prompt_tokens": 0, "comp_tokens": 0, "total_tokens": 640}, "no_split"),
        ({"model": "whisper-1"}, "no_token_rate"),
        ({"prompt_tokens": 2**40, "comp_tokens": 2**40}, "over_bounds"),
        ({"prompt_tokens": 0, "comp_tokens": 0, "usage": {"bananas": 3}}, "no_rate:bananas"),
        ({"model": "no-such-model", "cost_usd": 0}, "unknown_model"),
    ]
    spans = [call_with_ids(**fields) for fields, _ in cases]
    send(pipeline, spans)

    def check(case: tuple[dict[str, Any], str]) -> None:
        span, reason = case
        receipt = receipt_of(pipeline, span)
        assert (receipt["cost_usd"], receipt["total_cost_usd"], receipt["lines"]) == (None, None, [])
        assert (receipt["confidence"], receipt["reason"]) == ("unpriced", reason)

    check_all({str(case): (span, case[1]) for case, span in zip(cases, spans, strict=True)}, check)


def test_a_reported_zero_with_tokens_is_ignored_and_priced(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, cost_usd=0)
    assert (receipt["confidence"], receipt["cost_usd"]) == ("reported_zero_ignored", "0.00256")
    assert list(lines_of(receipt)) == ["input_tokens", "output_tokens"]
    trusted = send_for_receipt(pipeline, cost_usd=0, provider="Ollama", model="llama3")
    assert (trusted["confidence"], trusted["cost_usd"], list(lines_of(trusted))) == ("reported", "0", ["reported"])


def tiered() -> tuple[str, str, int]:
    """Return (provider, model, start of the first tier) of a model whose input has tiers at all times."""
    for provider in providers:
        for model in provider.models:
            rate = model.prices.input_mtok if isinstance(model.prices, ModelPrice) else None
            if isinstance(rate, TieredPrices) and genai_price(provider, model, 9, 9) is not None:
                return provider.id, model.id, rate.tiers[0].start
    raise AssertionError("no model has tiers")


def genai_price(provider: Provider, model: ModelInfo, prompt: int, completion: int) -> Decimal | None:
    """Return the price according to genai-prices, or None if it does not find the model by its name."""
    usage = Usage(input_tokens=prompt, output_tokens=completion)
    try:
        price = genai_prices.calc_price(usage, model.id, provider_id=provider.id)
    except LookupError:
        return None
    return price.total_price if (price.provider.id, price.model.id) == (provider.id, model.id) else None


def test_a_tier_is_named_and_charged_from_one_token_above_its_start(pipeline: Pipeline) -> None:
    provider, model, start = tiered()
    fields = {"provider": provider, "model": model, "comp_tokens": 10}
    below = send_for_receipt(pipeline, **fields, prompt_tokens=start)
    above = send_for_receipt(pipeline, **fields, prompt_tokens=start + 1)
    assert (below["price"]["tier"], above["price"]["tier"]) == (0, start)
    (low_amount, low_rate, _), (high_amount, high_rate, _) = (
        lines_of(receipt)["input_tokens"] for receipt in (below, above)
    )
    assert (low_amount, high_amount) == (start, start + 1)
    assert high_rate > low_rate
    for receipt in (below, above):
        amounts = amounts_of(receipt)
        usage = Usage(input_tokens=amounts["input_tokens"], output_tokens=10)
        expected = genai_prices.calc_price(usage, model, provider_id=provider).total_price
        assert Decimal(receipt["cost_usd"]) == expected.quantize(Decimal(1).scaleb(-9), ROUND_HALF_EVEN)


def test_each_kind_of_cached_token_has_its_own_line(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(
        pipeline,
        provider="anthropic",
        model="claude-sonnet-4-0",
        prompt_tokens=100,
        comp_tokens=9,
        cache_read_tokens=20,
        cache_write_tokens=50,
        cache_write_1h_tokens=10,
    )
    assert amounts_of(receipt) == {
        "input_tokens": 30,
        "cache_read_tokens": 20,
        "cache_write_tokens": 40,
        "cache_write_1h_tokens": 10,
        "output_tokens": 9,
    }
    assert cost_nusd(receipt) == 30 * 3000 + 20 * 300 + 40 * 3750 + 10 * 6000 + 9 * 15_000


def test_reasoning_tokens_have_a_line_if_they_have_a_price(pipeline: Pipeline) -> None:
    priced = [
        (provider.id, model.id)
        for provider in providers
        for model in provider.models
        if isinstance(model.prices, ModelPrice) and getattr(model.prices, "output_reasoning_mtok", None) is not None
    ]
    spans = [
        call_with_ids(provider=provider, model=model, comp_tokens=100, reasoning_tokens=60)
        for provider, model in priced
    ]
    send(pipeline, spans)

    def check(span: dict[str, Any]) -> None:
        amounts = amounts_of(receipt_of(pipeline, span))
        assert (amounts["output_tokens"], amounts["output_reasoning_tokens"]) == (40, 60)

    check_all({f"{span['provider']}:{span['model']}": span for span in spans}, check)
    plain = send_for_receipt(pipeline, comp_tokens=100, reasoning_tokens=60)
    assert lines_of(plain)["output_tokens"][0] == 100


def test_units_of_the_usage_map_have_their_own_lines(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, usage={"web_searches": 3})
    assert (receipt["confidence"], receipt["cost_usd"]) == ("exact", "0.03256")
    assert lines_of(receipt)["web_searches"] == (3, Decimal(10), 1000)
    audio = send_for_receipt(pipeline, model="whisper-1", prompt_tokens=0, comp_tokens=0, usage={"audio_seconds": 90})
    assert (audio["cost_usd"], lines_of(audio)) == ("0.009", {"audio_seconds": (90, Decimal("0.36"), 3600)})


def test_an_embedding_is_charged_for_its_input(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(
        pipeline, kind="embedding", model="text-embedding-3-small", prompt_tokens=1003, comp_tokens=0
    )
    assert (receipt["confidence"], receipt["cost_usd"], receipt["counted"]) == ("exact", "0.00002006", True)


def test_a_tool_without_a_cost_costs_nothing(pipeline: Pipeline) -> None:
    receipt = send_for_receipt(pipeline, kind="tool", model="", provider="", prompt_tokens=0, comp_tokens=0)
    assert (receipt["cost_usd"], receipt["lines"], receipt["rounding"], receipt["counted"]) == ("0", [], "0", True)
    assert (receipt["confidence"], receipt["price"]["source"]) == ("exact", None)


def test_a_roll_up_has_a_receipt_and_is_not_counted(pipeline: Pipeline) -> None:
    cases = {}
    for kind in ("agent", "workflow", "chain", "http"):
        root = call_without_tokens(trace_id=fresh("trace"), kind=kind, model="", cost_usd=0.25)
        leaf = call_with_ids(trace_id=root["trace_id"], parent_span_id=root["span_id"], cost_usd=0.25)
        cases[kind] = (root, leaf)
    send(pipeline, [span for case in cases.values() for span in case])

    def check(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
        rolled, counted = (receipt_of(pipeline, span) for span in case)
        assert (rolled["counted"], rolled["cost_usd"], rolled["confidence"]) == (False, "0.25", "reported")
        assert (counted["counted"], counted["cost_usd"]) == (True, "0.25")
        assert pipeline.get(f"/traces/{case[0]['trace_id']}").json()["total_cost_usd"] == 0.25

    check_all(cases, check)


def test_a_mist_span_has_a_receipt(pipeline: Pipeline) -> None:
    trace, end_ns = uuid.uuid4().hex, time.time_ns()
    attrs = {"model": "gpt-4o", "provider": "openai", "tokens_in": 512, "tokens_out": 128}
    span = {"trace_id": trace, "span_id": "1", "operation": "infer", "start_ns": end_ns - 10**9, "end_ns": end_ns}
    message = {"version": "1", "id": "1", "source": "t", "type": "trace.span", "payload": {**span, "attrs": attrs}}
    assert pipeline.post("/mist", json.dumps(message).encode()).status == 202
    pipeline.until(lambda: ask_receipt(pipeline, trace, "1").status == 200, "stored")
    receipt = ask_receipt(pipeline, trace, "1").json()
    assert_adds_up(receipt)
    assert (receipt["cost_usd"], receipt["confidence"]) == ("0.00256", "exact")


def test_the_receipt_of_an_unknown_span_is_a_404(pipeline: Pipeline) -> None:
    span = call_with_ids()
    send(pipeline, [span])
    for trace_id, span_id in ((span["trace_id"], "absent"), ("absent", span["span_id"]), ("absent", "absent")):
        answer = ask_receipt(pipeline, trace_id, span_id)
        assert (answer.status, answer.json()) == (404, {"error": "span not found"})


def test_a_receipt_takes_no_parameters(pipeline: Pipeline) -> None:
    span = call_with_ids()
    send(pipeline, [span])
    answer = pipeline.get(f"/traces/{span['trace_id']}/spans/{span['span_id']}/receipt?format=mist")
    assert answer.status == 400
    assert "format" in answer.json()["error"]


def test_a_receipt_is_found_by_any_printable_ids(pipeline: Pipeline) -> None:
    odd = ["a b", "a?b", "a%b", "a'b", 'a"b', "a;--", "..", "a+b", "{a}", "receipt", "a%2Fb"]
    pairs = [(fresh("odd") + end, end) for end in odd]
    pairs += [(fresh("slash") + end, span_id) for end, span_id in (("a/b", "1"), ("ab", "1/2"), ("a/b", "/"))]
    spans = [call_with_ids(trace_id=trace_id, span_id=span_id) for trace_id, span_id in pairs]
    send(pipeline, spans)

    def check(span: dict[str, Any]) -> None:
        assert receipt_of(pipeline, span)["cost_usd"] == "0.00256"

    check_all({f"{span['trace_id']} {span['span_id']}": span for span in spans}, check)


def test_the_receipt_is_that_of_the_first_telling_of_a_span(pipeline: Pipeline) -> None:
    span = call_with_ids(cost_usd=0.5)
    send(pipeline, [span])
    second = {**span, "cost_usd": 0.75}
    assert pipeline.post("/spans", second).status == 202

    def shown() -> Any:
        return pipeline.get(f"/traces/{span['trace_id']}").json()

    pipeline.until(lambda: shown()["spans"][0].get("later_versions") == 1, "told again")
    assert receipt_of(pipeline, span)["cost_usd"] == "0.5"
    assert shown()["total_cost_usd"] == 0.5


def test_the_receipt_of_a_call_that_another_span_told_first_says_that_it_does_not_count(pipeline: Pipeline) -> None:
    told = call_with_ids(response_id=fresh("chatcmpl-0123456789ab"))
    again = {**told, "span_id": "again"}
    send(pipeline, [told])
    send(pipeline, [again])
    assert [receipt_of(pipeline, span)["counted"] for span in (told, again)] == [True, False]
    assert receipt_of(pipeline, again)["cost_usd"] == receipt_of(pipeline, told)["cost_usd"]
    assert (
        pipeline.get(f"/traces/{told['trace_id']}").json()["total_cost_usd"]
        == receipt_of(pipeline, told)["total_cost_usd"]
    )
