"""The captured requests of 25 emitters: each span becomes what its emitter meant, and each call counts once."""

from __future__ import annotations

from typing import Any

import pytest

from kit.otlp_fixtures import BETTER, Fixture, fixtures
from tokentrace.dialect.otlp import OtlpSpan, map_spans
from tokentrace.dialect.otlp.json_wire import decode_traces as decode_json
from tokentrace.dialect.otlp.protobuf_wire import decode_traces as decode_protobuf
from tokentrace.pricing import Pricer
from tokentrace.records import MODEL_KINDS, Span
from tokentrace.units import usd_to_nusd

PRICER = Pricer()
#: The usage object in ``output.value`` and the attributes agree.
RULES = {"openinference-google-genai": "native:output.value"}
SAME = (
    "kind",
    "scope",
    "caller",
    "status",
    "parent_span_id",
    "trace_id",
    "prompt_tokens",
    "completion_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "session_id",
    "user_id",
)


def price(span: Span) -> int | None:
    return PRICER.quote(span).cost_nusd


def shown(span: Span) -> dict[str, Any]:
    """Return *span* in the form of ``expected``; what is unknown is None."""
    fields = {name: getattr(span, name) for name in SAME}
    counts = {name: value for name, value in fields.items() if name.endswith("_tokens")}
    is_counted = span.kind in MODEL_KINDS and any(counts.values())
    cost = price(span) if span.kind in MODEL_KINDS else None
    return {
        **fields,
        **({} if is_counted else dict.fromkeys(counts)),
        # The expected texts are cut.
        "error": span.error[:200] or None,
        "model": span.model or None,
        "provider": span.provider,
        "response_id": span.response_id or None,
        "cost_usd": None if cost is None else cost / 1e9,
        "latency_ms": round(span.latency_ns / 1e6),
        "ttft_ms": round(span.ttft_ns / 1e6) or None,
        "ttft_source": span.attributes.get("ttft.source"),
        "token_rule": span.attributes.get("tokens.rule"),
        "duplicate_of": span.attributes.get("duplicate_of"),
        "tool": span.attributes.get("tool.name") if span.kind == "tool" else None,
    }


def differences(spans: list[Span], fixture: Fixture) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Return span id -> field -> (expected, mapped) where the two differ."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    mapped = {span.span_id: shown(span) for span in spans}
    for span_id, expected in fixture.expected["spans"].items():
        wanted = dict.fromkeys(mapped[span_id]) | {name: expected.get(name) for name in mapped[span_id]}
        wanted["provider"] = expected.get("provider", mapped[span_id]["provider"])
        wanted["model"] = expected.get("model", mapped[span_id]["model"])
        if wanted["token_rule"]:
            wanted["token_rule"] = RULES.get(fixture.name.partition("/")[0], wanted["token_rule"])
        if expected["kind"] not in MODEL_KINDS:
            wanted["token_rule"] = None
        for name, value in wanted.items():
            value = BETTER.get((fixture.name, span_id, name), value)
            if _nusd(name, mapped[span_id][name]) != _nusd(name, value):
                found.setdefault(span_id, {})[name] = (value, mapped[span_id][name])
    return found


def _nusd(name: str, value: Any) -> Any:
    return usd_to_nusd(value) if name == "cost_usd" and value is not None else value


@pytest.mark.parametrize("wire", [decode_json, decode_protobuf], ids=["json", "protobuf"])
@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_each_span_of_a_captured_request_is_what_its_emitter_meant(fixture: Fixture, wire: Any) -> None:
    otlp: list[OtlpSpan] = wire(fixture.body if wire is decode_json else fixture.protobuf())
    mapped = map_spans(otlp, price)
    assert not mapped.bad
    assert len(mapped.readings) == len(otlp)
    assert {span.span_id for span in mapped.spans} == set(fixture.expected["spans"])
    assert differences(mapped.spans, fixture) == {}
    calls = [span for span in mapped.spans if span.kind in MODEL_KINDS]
    assert len(calls) == fixture.expected["totals"]["calls"]
    cost = usd_to_nusd(fixture.expected["totals"]["cost_usd"])
    better = sum(
        usd_to_nusd(value) for (name, _, field), value in BETTER.items() if (name, field) == (fixture.name, "cost_usd")
    )
    assert sum(price(span) or 0 for span in calls) == cost + better
