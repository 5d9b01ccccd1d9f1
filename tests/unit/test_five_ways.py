"""One call that is told in five ways becomes five equal records with equal costs and receipts."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from msgspec.structs import replace

from kit.builders import make_batch
from kit.five_ways import CALLS, SESSION, USER, WAYS, Call, as_document, as_katana, as_mist, as_span, started_at
from kit.http_spans import mist_message
from kit.peers import HttpEndpoint
from kit.raw_messages import make_cleaner
from kit.reporting import WAIT_S
from tokentrace.client.reporter import Reporter
from tokentrace.dialect import docs, mist
from tokentrace.dialect.costkatana import Place, decode_ingest, end_of, start_of
from tokentrace.pricing import Pricer
from tokentrace.records import Batch, Span, decode_batches, encode_batches, whole_amounts

PRICER = Pricer()


def told(call: Call) -> dict[str, Span]:
    """Return way -> *call* as ingest stores it when it is told in that way."""
    at = started_at()
    arrived_ns = round(at.timestamp()) * 10**9 + 5 * 10**9
    document = json.dumps(as_document(call, "key", at)).encode()
    reported = as_span(call, "key", at)
    reported = replace(reported, usage=whole_amounts(call.usage) if call.usage else None)
    [batch] = decode_batches(encode_batches([make_batch(reported)]))
    [katana] = decode_ingest(json.dumps(as_katana(call, "key", at)).encode())
    started = start_of(katana, "key-span", Place("key-trace", SESSION), arrived_ns)
    spans = {
        "spans": docs.decode_spans(document),
        "nats": docs.decode_spans(document, source="nats"),
        "reporter": batch.spans,
        "mist": [mist.decode_message(mist_message(as_mist(call, "key", at)))],
        "costkatana": [end_of(started, katana, arrived_ns)],
    }
    stored = {}
    for way in WAYS:
        cleaned = make_cleaner().clean(Batch(id=way, spans=spans[way]), arrived_ns, checked=way != "reporter")
        assert [letter.reason for letter in cleaned.dead_letters] == []
        [stored[way]] = cleaned.parts[0].spans
    return stored


@pytest.mark.parametrize("name", CALLS)
def test_a_call_told_in_five_ways_is_the_same_record_with_the_same_receipt(name: str) -> None:
    call = CALLS[name]
    spans = told(call)
    assert {way: span.source for way, span in spans.items()} == {way: way for way in WAYS}
    same = {way: replace(span, source="", attributes={}) for way, span in spans.items()}
    first = same["spans"]
    assert same == dict.fromkeys(WAYS, first)
    assert (first.user_id, first.session_id, first.response_id) == (str(USER), SESSION, "chatcmpl-key")
    assert (first.latency_ns, first.ttft_ns, first.score) == (1_240_000_000, 87_500_000, 500_000_000)
    assert first.pricing_context == ({"service_tier": call.tier} if call.tier else None)
    assert (first.cost_nusd or 0) > 0
    receipts = {way: PRICER.receipt(span) for way, span in spans.items()}
    assert receipts == dict.fromkeys(WAYS, receipts["spans"])
    assert receipts["spans"].explained
    assert all(span.attributes["eval.score"] == 0.5 for span in spans.values())


def test_a_fraction_of_a_second_is_priced_exactly() -> None:
    span = told(CALLS["a fraction"])["spans"]
    assert span.usage == {"audio_microseconds": 18_470_000}
    [line] = PRICER.receipt(span).lines
    assert (line.amount, line.per) == (Decimal("18.47"), 3600)
    assert span.cost_nusd == round(Fraction(1847, 100) * Fraction(line.rate_usd) * 10**9 / 3600)
    assert docs.render_span(span)["usage"] == {"audio_seconds": 18.47}


def test_a_reporter_takes_a_fraction_of_a_second_and_refuses_that_of_a_search() -> None:
    with HttpEndpoint() as endpoint, Reporter("five", endpoint.url) as reporter:
        for model, usage in (("whisper-large-v3", {"audio_seconds": 18.47}), ("gpt-4o", {"web_searches": 1.5})):
            amounts: Any = usage
            reporter.report(Span(model=model, usage=amounts))
        assert reporter.flush(WAIT_S)
        assert (reporter.stats().acked, reporter.stats().rejected) == (1, 1)
    [batch] = decode_batches(endpoint.bodies[0])
    assert batch.spans[0].usage == {"audio_microseconds": 18_470_000}
    assert "usage.web_searches" in batch.refused[0].reason


def test_the_tier_of_a_call_decides_its_price_in_every_way() -> None:
    call = CALLS["a tier"]._replace(tokens=(100_000, 10_000, 0, 0, 0, 0))
    assert {span.cost_nusd for span in told(call).values()} == {200_000_000}
    assert {span.cost_nusd for span in told(call._replace(tier="")).values()} == {400_000_000}
