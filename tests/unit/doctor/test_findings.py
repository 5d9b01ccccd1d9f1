"""What the doctor says of a request is what ingest makes of it."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from kit.otlp_fixtures import CONTENT, FOLDER, Fixture, fixtures
from tokentrace.config import load
from tokentrace.dialect.otlp import map_spans
from tokentrace.records import MODEL_KINDS
from tokentrace.redact import Redactor
from tokentrace_ingest.cleaning import Cleaner
from tokentrace_standalone.doctor.findings import RequestFinding, examine
from tokentrace_standalone.doctor.payload import decode_payload
from tokentrace_standalone.doctor.text import lines_of

PRICER = load(None).pricing.pricer()
CLEANER = Cleaner(Redactor(), PRICER)
#: Times of the fixtures are of this year.
ARRIVED_NS = 1_800_000_000_000_000_000


def found_in(fixture: Fixture) -> RequestFinding:
    return examine(decode_payload(fixture.body), PRICER)


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_kinds_tokens_and_costs_are_those_that_ingest_stores(fixture: Fixture) -> None:
    payload = decode_payload(fixture.body)
    mapped = map_spans(payload.spans, lambda span: PRICER.quote(span, span.ended_ns).cost_nusd)
    found = examine(payload, PRICER)
    assert len(found.spans) == len(payload.spans)
    assert found.told_twice == mapped.saved["calls"]
    for told, reading in zip(found.spans, mapped.readings, strict=True):
        if reading.span is None:
            assert told.not_stored
            continue
        stored = CLEANER.finish(reading.span, "key", told.place, ARRIVED_NS, checked=True)
        assert not told.not_stored
        assert (told.span_id, told.model, told.provider) == (stored.span_id, stored.model, stored.provider)
        assert told.counted == (stored.kind in MODEL_KINDS)
        assert told.status == stored.status
        assert told.response_id == stored.response_id
        assert (told.session_id, told.user_id) == (stored.session_id or "", stored.user_id or "")
        assert (told.ttft_ms or 0) * 1_000_000 == stored.ttft_ns
        if told.counted:
            assert told.tokens is not None
            assert told.cost is not None
            assert (told.tokens.prompt, told.tokens.completion) == (stored.prompt_tokens, stored.completion_tokens)
            assert (told.tokens.cache_read, told.tokens.cache_write_1h) == (
                stored.cache_read_tokens,
                stored.cache_write_1h_tokens,
            )
            assert (told.cost.source, told.cost.reason) == (stored.cost_source, stored.unpriced_reason)
            usd = told.cost.cost_usd
            assert (None if usd is None else Decimal(usd).scaleb(9)) == stored.cost_nusd
            lines = [Decimal(line["cost_usd"]) for line in told.cost.lines]
            assert usd is None or abs(sum(lines) - Decimal(usd)) <= Decimal("5e-10")
        else:
            assert told.cost is None


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_nothing_of_what_was_said_is_shown(fixture: Fixture) -> None:
    found = found_in(fixture)
    for text in ("\n".join(lines_of(found)), msgspec.json.encode(found).decode()):
        assert [content for content in CONTENT if content in text] == []


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_the_text_says_why_of_each_span(fixture: Fixture) -> None:
    found = found_in(fixture)
    text = lines_of(found)
    assert text[0].startswith(f"traces (json): {len(found.spans)} spans, ")
    for name, wanted in (("dialect", len(found.spans)), ("kind", len(found.spans)), ("counts", len(found.spans))):
        assert sum(line.startswith(f"  {name:<9} ") for line in text) == wanted
    for told in found.spans:
        if told.duplicate_of:
            assert any(f"tells the call of span {told.duplicate_of} again: " in line for line in text)
        if told.counted and told.tokens is not None and told.tokens.prompt:
            assert told.tokens.why != "nothing tells what the call used"
    calls = [told for told in found.spans if told.counted]
    assert sum(line.startswith("  cost ") for line in text) == len(calls)


def test_a_call_that_two_instrumentations_tell_is_counted_once_and_says_so() -> None:
    [fixture] = [fixture for fixture in fixtures() if fixture.name.startswith("langfuse+anthropic-sdk/")][:1]
    found = found_in(fixture)
    [loser] = [told for told in found.spans if told.duplicate_of]
    [winner] = [told for told in found.spans if told.counted]
    assert loser.duplicate_of == winner.span_id
    assert (found.told_twice, float(found.saved_usd) > 0) == (1, True)
    assert "one of the two has no response id" in "\n".join(lines_of(found))


def test_logs_and_metrics_are_summed_up() -> None:
    logs = examine(decode_payload((FOLDER / "semconv" / "evaluation_event.logs.json").read_bytes()), PRICER)
    assert lines_of(logs) == ["logs (json): content or evaluations of 1 spans; 1 other records, which are not stored"]
    metrics = decode_payload(b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"name":"a"}]}]}]}')
    assert lines_of(examine(metrics, PRICER))[0].startswith("metrics (json): 1; they are not stored")


def test_control_characters_of_an_emitter_do_not_reach_the_terminal() -> None:
    span = {"traceId": "1" * 32, "spanId": "1" * 16, "name": "x\ny\x1b]0;t\x07"}
    scopes = [{"scope": {"name": "a\x1b[31m"}, "spans": [span]}]
    body = msgspec.json.encode({"resourceSpans": [{"scopeSpans": scopes}]})
    lines = lines_of(examine(decode_payload(body), PRICER))
    assert all(line.isprintable() for line in lines)
