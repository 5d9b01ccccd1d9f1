"""The line of a span: ingest's own decoder makes the same span of it, and no secret is in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kit.builders import STARTED_NS, make_span
from kit.examples import examples
from tokentrace.client.transports.rendering import Renderer, encode
from tokentrace.dialect.docs import decode_spans, render_span
from tokentrace.errors import Rejected
from tokentrace.records import KINDS, MAX_COST_NUSD, Span, is_response_id, settle_usage
from tokentrace.redact import Redactor
from tokentrace.units import MS, SCORE_ONE

ids = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1, max_size=20)
names = st.text(max_size=20)
scalars = st.one_of(
    names, st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
nested = st.recursive(
    scalars | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
keys = st.text(min_size=1, max_size=20).filter(lambda key: not key.startswith(("tt.", "eval.")))
#: Removes nothing, so that random texts are compared as they are.
OPEN = Redactor(mode="off")


@st.composite
def reported_spans(draw: st.DrawFn) -> Span:
    """Draw a valid span as an application reports it: times in nanoseconds, attributes of any form."""
    cached, written, reasoning = (draw(st.integers(0, 2**30)) for _ in range(3))
    prompt = draw(st.integers(max(1, cached + written), 2**39))
    completion = draw(st.integers(reasoning, 2**39))
    started = draw(st.integers(STARTED_NS, STARTED_NS + 2**40))
    latency = draw(st.integers(1, 2**40))
    cost = draw(st.none() | st.integers(1, MAX_COST_NUSD))
    return Span(
        trace_id=draw(ids),
        span_id=draw(ids),
        parent_span_id=draw(st.none() | ids),
        name=draw(names),
        kind=draw(st.sampled_from(KINDS)),
        caller=draw(names),
        model=draw(names.filter(bool)),
        provider=draw(names),
        status=draw(st.sampled_from(["ok", "error", "timeout"])),
        started_ns=draw(st.sampled_from([0, started])),
        ended_ns=started + latency,
        latency_ns=draw(st.sampled_from([0, latency])),
        ttft_ns=draw(st.integers(0, latency)),
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        cost_nusd=cost,
        score=draw(st.none() | st.integers(0, SCORE_ONE)),
        attributes=draw(st.dictionaries(keys, nested, max_size=4)),
        error=draw(names),
        error_stack=draw(names),
        session_id=draw(st.none() | ids),
        user_id=draw(st.none() | ids),
        cost_source="reported" if cost is not None and draw(st.booleans()) else "",
        cache_read_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=draw(st.integers(0, written)),
        reasoning_tokens=reasoning,
        usage=draw(st.none() | st.dictionaries(names, st.integers(0, 2**40), min_size=1, max_size=2)),
        usage_state=draw(st.sampled_from(["", "partial", "estimated"])),
        pricing_context=draw(st.none() | st.dictionaries(ids, names.filter(bool), min_size=1, max_size=3)),
        response_id=draw(st.just("") | ids.filter(is_response_id)),
        scope=draw(names),
    )


def expected(span: Span) -> Span:
    """Return what ingest must make of the line of *span*, written without the code under test."""
    attributes: dict[str, Any] = {}
    for key, value in span.attributes.items():
        if value is not None:
            attributes[key] = msgspec.json.encode(value).decode() if isinstance(value, (dict, list)) else value
    if span.score is not None:
        attributes["eval.score"] = span.score / SCORE_ONE
    latency = span.latency_ns or (span.ended_ns - span.started_ns if span.started_ns else 0)
    return settle_usage(
        replace(
            span,
            attributes=attributes,
            latency_ns=latency,
            started_ns=(span.started_ns or span.ended_ns - span.latency_ns) // MS * MS,
            ended_ns=span.ended_ns // MS * MS,
            source="spans",
        )
    )


def test_a_line_states_the_total_of_tokens_and_a_start() -> None:
    span = Span(model="gpt-4o", prompt_tokens=512, completion_tokens=128, latency_ns=5 * MS, ended_ns=STARTED_NS)
    shown = json.loads(Renderer(OPEN).line(encode(span)).json)
    assert (shown["total_tokens"], shown["started_at"]) == (640, "2026-03-15T14:23:01.436Z")


@settings(max_examples=examples(300), deadline=None)
@given(reported_spans())
def test_ingest_makes_the_same_span_of_a_line(span: Span) -> None:
    line = Renderer(OPEN).line(encode(span))
    assert b"\n" not in line.json
    assert not line.truncated
    assert None not in json.loads(line.json).get("attributes", {}).values()
    assert decode_spans(line.json) == [expected(span)]
    assert decode_spans(b"[" + line.json + b"]") == [expected(span)]


def test_a_line_of_a_plain_span_is_the_documented_json() -> None:
    span = make_span(attributes={"step": 1}, cost_nusd=4_480_000)
    assert json.loads(Renderer(None).line(encode(span)).json) == render_span(span)


def test_secrets_are_not_in_a_line() -> None:
    span = make_span(
        name="mail to kim@example.com",
        error="Authorization: Bearer sk-geheim0123456789geheim0123456789",
        attributes={"password": "geheim", "deep": {"list": [{"api_key": "geheim"}]}},
    )
    line = Renderer(None).line(encode(span)).json
    assert b"geheim" not in line
    assert b"kim@" not in line
    [back] = decode_spans(line)
    assert json.loads(back.attributes["deep"]) == {"list": [{"api_key": "[REDACTED]"}]}


def test_a_span_with_a_long_text_is_cut_and_says_so() -> None:
    line = Renderer(None).line(encode(make_span(error="x" * 100_000)))
    [back] = decode_spans(line.json)
    assert line.truncated
    assert back.error.endswith("…[cut, 100000 bytes]")
    assert back.adjusted == ("error: cut, 100000 bytes",)


def test_a_span_without_a_time_ends_when_it_is_sent() -> None:
    [back] = decode_spans(Renderer(None).line(encode(Span(name="x", kind="custom"))).json)
    assert back.ended_ns > STARTED_NS


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": ""}, "model: required when kind is llm and status is ok"),
        ({"prompt_tokens": -1, "total_tokens": 1}, "prompt_tokens"),
        ({"attributes": {"x": float("nan")}}, "attributes: 'x' is not a finite number"),
        ({"trace_id": "a\nb"}, "trace_id: "),
        ({"kind": "unheard"}, "kind"),
    ],
)
def test_a_span_that_ingest_would_refuse_is_rejected_with_the_name_of_the_field(
    fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Rejected, match=reason):
        Renderer(None).line(encode(make_span(**fields)))


def test_the_reason_of_a_rejection_contains_no_secret() -> None:
    with pytest.raises(Rejected) as raised:
        Renderer(None).line(encode(make_span(trace_id="kim@example.com\n")))
    assert "kim@" not in str(raised.value)


class Unreadable:
    """A value of an application that no encoder takes."""


def test_a_value_that_cannot_be_encoded_is_rejected_where_it_is_sent() -> None:
    with pytest.raises(Rejected, match=r"cannot be encoded: .*Unreadable"):
        encode(make_span(attributes={"x": Unreadable()}))


def test_half_of_a_surrogate_pair_becomes_a_replacement_character() -> None:
    [back] = decode_spans(Renderer(None).line(encode(make_span(name="a\ud800b"))).json)
    assert back.name == "a\ufffdb"


class Failing(Redactor):
    """A redactor of an application that fails."""

    def span(self, span: Span, redactions: Any = None) -> Span:
        raise RuntimeError("no rules")


def test_a_span_on_which_the_redactor_fails_is_rejected_and_not_written_as_it_is() -> None:
    with pytest.raises(Rejected, match="the transport failed on it: RuntimeError"):
        Renderer(Failing()).line(encode(make_span()))
