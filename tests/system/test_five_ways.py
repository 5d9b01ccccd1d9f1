"""One call that is told in five ways is five equal spans with equal costs and receipts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price

from kit.five_ways import CALLS, SESSION, USER, WAYS, Call, as_document, as_katana, as_mist, as_span, started_at
from kit.http_spans import assert_accepted, await_trace, mist_message
from kit.json_spans import fresh
from kit.nats_client import RAW, publish
from kit.pipeline import Pipeline
from kit.receipts import ask_receipt
from tokentrace import Reporter


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("five"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def tell(pipeline: Pipeline, call: Call) -> dict[str, tuple[str, str]]:
    """Tell *call* in each way; return way -> (trace id, span id)."""
    at, keys = started_at(), {way: fresh(way) for way in WAYS}
    assert_accepted(pipeline.post("/spans", as_document(call, keys["spans"], at)))
    publish(pipeline, (RAW, json.dumps(as_document(call, keys["nats"], at)).encode()))
    reporter = Reporter("five", pipeline.nats_url)
    reporter.report(as_span(call, keys["reporter"], at))
    reporter.close()
    assert reporter.stats().acked == 1
    answer = pipeline.post("/mist", mist_message(as_mist(call, keys["mist"], at)))
    assert answer.status == 202, answer.body
    answer = pipeline.post("/api/traces/ingest", as_katana(call, keys["costkatana"], at))
    assert answer.status == 200, answer.body
    ids = {way: (f"{key}-trace", f"{key}-span") for way, key in keys.items()}
    return {**ids, "costkatana": (f"{keys['costkatana']}-span", f"{keys['costkatana']}-span")}


def shown(pipeline: Pipeline, trace_id: str) -> dict[str, Any]:
    """Return the stored span without its ids and without its attributes, which Cost Katana keeps as they were sent."""
    [span] = await_trace(pipeline, trace_id)["spans"]
    assert span["response_id"].startswith("chatcmpl-")
    return {name: value for name, value in span.items() if name not in ("span_id", "response_id", "attributes")}


def receipt(pipeline: Pipeline, trace_id: str, span_id: str) -> Any:
    answer = ask_receipt(pipeline, trace_id, span_id).json()
    return {name: value for name, value in answer.items() if name not in ("trace_id", "span_id")}


def standard_price(call: Call) -> Decimal:
    """Return the price of *call* by genai-prices, in US dollars, rounded to nano-dollars."""
    prompt, completion, read, write, hour, reasoning = call.tokens
    tokens: dict[str, Any] = {
        "input_tokens": prompt,
        "output_tokens": completion,
        "cache_read_tokens": read,
        "cache_write_tokens": write,
        "cache_write_1h_tokens": hour,
        "output_reasoning_tokens": reasoning,
        **{name: Decimal(repr(amount)) for name, amount in call.usage.items()},
    }
    used = Usage(**{name: amount for name, amount in tokens.items() if amount})
    price = calc_price(used, call.model, provider_id=call.provider)
    return price.total_price.quantize(Decimal(1).scaleb(-9), rounding=ROUND_HALF_EVEN)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_told_in_five_ways_is_five_equal_spans_with_equal_receipts(pipeline: Pipeline, name: str) -> None:
    call = CALLS[name]
    ids = tell(pipeline, call)
    spans = {way: shown(pipeline, trace_id) for way, (trace_id, _) in ids.items()}
    first = spans["spans"]
    assert spans == dict.fromkeys(WAYS, first)
    assert (first["user_id"], first["session_id"]) == (str(USER), SESSION)
    assert first.get("service_tier", "") == call.tier
    assert first.get("usage", {}) == call.usage
    assert (first["latency_ms"], first["ttft_ms"]) == (1240, 87.5)
    receipts = {way: receipt(pipeline, *pair) for way, pair in ids.items()}
    assert receipts == dict.fromkeys(WAYS, receipts["spans"])
    if not call.tier:
        assert Decimal(repr(first["cost_usd"])) == standard_price(call)
