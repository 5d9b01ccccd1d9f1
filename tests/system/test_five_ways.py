"""One call that is told in five ways is five equal spans with equal costs and receipts."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from msgspec.structs import replace

from kit.five_ways import CALLS, SESSION, USER, WAYS, Call, tell
from kit.http_spans import await_trace
from kit.nats_client import read_stream
from kit.pipeline import Pipeline
from kit.receipts import ask_receipt
from tokentrace.records import Span, decode_batches


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("five"))
    serving.start()
    yield serving
    assert serving.stop() == 0


def logged(pipeline: Pipeline, ids: dict[str, tuple[str, str]]) -> dict[str, Span]:
    """Return way -> the span in the log, without what the ways do not share: ids, attributes, arrival and source."""
    batches = [batch for payload in read_stream(pipeline, "TT_SPANS") for batch in decode_batches(payload)]
    by_id = {(span.trace_id, span.span_id): span for batch in batches for span in batch.spans}
    return {
        way: replace(by_id[pair], trace_id="", span_id="", response_id="", attributes={}, arrived_ns=0, source="")
        for way, pair in ids.items()
        if by_id[pair].response_id.startswith("chatcmpl-") and by_id[pair].source == way
    }


def shown_cost(pipeline: Pipeline, trace_id: str) -> Any:
    [span] = await_trace(pipeline, trace_id)["spans"]
    return span["cost_usd"]


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
    costs = {way: shown_cost(pipeline, trace_id) for way, (trace_id, _) in ids.items()}
    assert costs == dict.fromkeys(WAYS, costs["spans"])
    spans = logged(pipeline, ids)
    first = spans["spans"]
    assert spans == dict.fromkeys(WAYS, first)
    assert (first.user_id, first.session_id) == (str(USER), SESSION)
    assert first.pricing_context == ({"service_tier": call.tier} if call.tier else None)
    assert (first.latency_ns, first.ttft_ns, first.score) == (1_240_000_000, 87_500_000, 500_000_000)
    receipts = {way: receipt(pipeline, *pair) for way, pair in ids.items()}
    assert receipts == dict.fromkeys(WAYS, receipts["spans"])
    assert costs["spans"] > 0
    if not call.tier:
        assert Decimal(repr(costs["spans"])) == standard_price(call)
