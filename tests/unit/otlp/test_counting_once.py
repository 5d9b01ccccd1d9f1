"""A call that several instrumentations tell counts once, within a request and across requests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from kit.otlp_fixtures import POORER_OUTSIDE, UNKNOWN_WRAPPERS, Fixture, fixtures, with_own_ids
from kit.random_otlp import STARTED_NS, make_otlp
from tokentrace.dedup import Deduplicator
from tokentrace.dialect.otlp import Mapped, OtlpSpan, map_spans
from tokentrace.dialect.otlp.json_wire import decode_traces
from tokentrace.pricing import Pricer
from tokentrace.records import MODEL_KINDS, Batch, Span, same_call
from tokentrace.units import MINUTE, MS, SECOND, usd_to_nusd

PRICER = Pricer()
LONG_ID = "chatcmpl-0123456789abcdef"
#: The record has a price, and the expected total has none.
PRICED = {"langfuse/openai.embeddings": (1, 1_280)}


def price(span: Span) -> int | None:
    return PRICER.quote(span).cost_nusd


class Reader:
    """A reader of the log, which counts each call once."""

    def __init__(self) -> None:
        self.dedup = Deduplicator()
        self.calls = self.nusd = self.requests = 0

    def read(self, mapped: Mapped) -> None:
        """Fold what a request became; each is a batch of its own."""
        self.requests += 1
        spans = [replace(span, arrived_ns=span.ended_ns, cost_nusd=price(span)) for span in mapped.spans]
        batch = Batch(id=f"request-{self.requests}", spans=spans)
        taken = self.dedup.take(batch, STARTED_NS + MINUTE, "default").batch
        for span in taken.spans if taken is not None else ():
            if span.kind in MODEL_KINDS:
                self.calls += 1
                self.nusd += span.cost_nusd or 0

    @property
    def totals(self) -> tuple[int, int]:
        return self.calls, self.nusd


def expected_totals(fixture: Fixture) -> tuple[int, int]:
    totals = fixture.expected["totals"]
    return PRICED.get(fixture.name, (totals["calls"], usd_to_nusd(totals["cost_usd"])))


def depth(span: OtlpSpan, spans: Sequence[OtlpSpan]) -> int:
    by_id = {other.span_id: other for other in spans}
    steps = 0
    while span.parent_span_id in by_id:
        span, steps = by_id[span.parent_span_id], steps + 1
    return steps


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
@pytest.mark.parametrize("inner_first", [True, False], ids=["inner-first", "outer-first"])
def test_a_request_for_each_span_counts_calls_once_but_for_the_named_exceptions(
    fixture: Fixture, *, inner_first: bool
) -> None:
    spans = decode_traces(with_own_ids(fixture))
    reader = Reader()
    for span in sorted(spans, key=lambda span: depth(span, spans), reverse=inner_first):
        reader.read(map_spans([span], price))
    exceptions = UNKNOWN_WRAPPERS if inner_first else UNKNOWN_WRAPPERS | POORER_OUTSIDE
    assert reader.totals == exceptions.get(fixture.name, expected_totals(fixture))


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_a_request_that_comes_twice_counts_once(fixture: Fixture) -> None:
    spans = decode_traces(with_own_ids(fixture))
    reader = Reader()
    for _ in range(2):
        reader.read(map_spans(spans, price))
    assert reader.totals == expected_totals(fixture)


# -- within a request


def call(number: int, **fields: Any) -> OtlpSpan:
    """Return a call of gpt-4o-mini with 1200 + 300 tokens; the keyword *extra* adds attributes."""
    extra = fields.pop("extra", {})
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.usage.input_tokens": 1200,
        "gen_ai.usage.output_tokens": 300,
        "gen_ai.response.id": LONG_ID,
        **extra,
    }
    attributes = {key: value for key, value in attributes.items() if value is not None}
    return make_otlp(**{"span_id": f"{number:016x}", "attributes": attributes, **fields})


def counted(*spans: OtlpSpan) -> list[int]:
    """Return the numbers of the spans that count as calls."""
    return [int(span.span_id, 16) for span in map_spans(spans, price).spans if span.kind in MODEL_KINDS]


def test_the_richer_of_two_tellings_counts_and_takes_over_what_only_the_other_knows() -> None:
    poor = call(1, scope="wrapper", extra={"session.id": "s-1", "user.id": "u-1"})
    rich = call(2, scope="sdk", extra={"gen_ai.usage.cache_read.input_tokens": 1024})
    mapped = map_spans([poor, rich], price)
    lost, kept = mapped.spans
    assert (lost.kind, kept.kind) == ("chain", "llm")
    assert (kept.session_id, kept.user_id, kept.cache_read_tokens) == ("s-1", "u-1", 1024)
    assert lost.attributes["duplicate_of"] == kept.span_id
    assert (lost.attributes["rollup.prompt_tokens"], lost.attributes["rollup.completion_tokens"]) == (1200, 300)
    assert (lost.total_tokens, lost.cost_nusd, lost.usage_state) == (0, None, "")
    # What the poorer one would have cost.
    assert mapped.saved == {"calls": 1, "nusd": 360_000}
    assert (mapped.readings[0].why_duplicate, mapped.readings[0].duplicate_of) == ("response id", kept.span_id)
    assert mapped.readings[1].why_duplicate == ""


def test_a_long_response_id_counts_again_after_more_than_a_minute() -> None:
    later = call(2, started_ns=STARTED_NS + 2 * MINUTE, ended_ns=STARTED_NS + 2 * MINUTE + SECOND, scope="sdk")
    assert counted(call(1), later) == [1, 2]
    assert counted(call(1), later._replace(started_ns=STARTED_NS, ended_ns=STARTED_NS + SECOND)) == [1]


def test_parallel_calls_of_one_instrumentation_with_one_short_id_all_count() -> None:
    spans = [call(number, extra={"gen_ai.response.id": "chatcmpl-7"}) for number in range(1, 21)]
    assert counted(*spans) == list(range(1, 21))


def test_a_short_id_told_by_two_instrumentations_counts_once_if_the_usage_is_near() -> None:
    short = {"gen_ai.response.id": "chatcmpl-7"}
    first, near = call(1, extra=short), call(2, scope="sdk", extra={**short, "gen_ai.usage.output_tokens": 301})
    assert counted(first, near) == [1]
    other = call(2, scope="sdk", extra={**short, "gen_ai.usage.output_tokens": 400})
    assert counted(first, other) == [1, 2]


def test_a_response_that_is_fetched_again_is_no_call() -> None:
    fetched = call(
        2,
        extra={
            "gen_ai.operation.name": "fetch_response",
            "gen_ai.usage.input_tokens": None,
            "gen_ai.usage.output_tokens": None,
        },
    )
    assert counted(call(1), fetched) == [1]


def test_an_anthropic_request_id_joins_tellings_of_different_scopes() -> None:
    ids = {"gen_ai.response.id": "msg_0123456789abcdef", "anthropic.request.id": "req_0123456789abcdef"}
    sdk = call(1, scope="com.anthropic.sdk.python", extra=ids)
    server = call(2, scope="com.anthropic.claude-platform", extra={**ids, "gen_ai.response.id": None})
    assert counted(sdk, server) == [1]
    assert counted(sdk, server._replace(scope=sdk.scope)) == [1, 2]


def test_a_free_attribute_called_request_id_joins_nothing() -> None:
    first = call(1, extra={"gen_ai.response.id": None, "request_id": "web-1"})
    other = call(2, scope="sdk", extra={"gen_ai.response.id": None, "request_id": "web-1"})
    assert counted(first, other) == [1, 2]


def around(inner: OtlpSpan, number: int, kind: str, **extra: Any) -> OtlpSpan:
    """Return a span around *inner* of a kind of OpenInference."""
    none = dict.fromkeys(("gen_ai.operation.name", "gen_ai.response.id"))
    usage = dict.fromkeys(("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")) if kind != "LLM" else {}
    return call(number, scope="outer", extra={**none, **usage, "openinference.span.kind": kind, **extra})


def test_a_call_around_a_call_is_a_wrapper_if_it_has_no_id_and_no_other_usage() -> None:
    inner = call(1, parent_span_id=f"{2:016x}")
    assert counted(inner, around(inner, 2, "LLM")) == [1]
    nothing = dict.fromkeys(("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"))
    assert counted(inner, around(inner, 2, "LLM", **nothing)) == [1]
    assert counted(inner, around(inner, 2, "LLM", **{"gen_ai.usage.output_tokens": 900})) == [1, 2]
    assert counted(inner, around(inner, 2, "LLM", **{"gen_ai.response.id": "chatcmpl-fedcba9876543210"})) == [1, 2]


def test_a_call_with_two_wrappers_counts_once_in_every_order() -> None:
    inner = call(1, parent_span_id=f"{2:016x}")
    middle = around(inner, 2, "LLM")._replace(parent_span_id=f"{3:016x}", scope="middle")
    outer = around(inner, 3, "LLM")
    for order in itertools.permutations((inner, middle, outer)):
        mapped = map_spans(order, price)
        assert [span.span_id for span in mapped.spans if span.kind == "llm"] == [inner.span_id]
        assert {reading.duplicate_of for reading in mapped.readings} == {"", inner.span_id}


def test_thousands_of_calls_with_one_short_id_take_no_time_each_for_the_others() -> None:
    comparisons = 0

    def counting(first: Span, other: Span) -> bool:
        nonlocal comparisons
        comparisons += 1
        return same_call(first, other)

    spans = [call(number, extra={"gen_ai.response.id": "chatcmpl-7"}) for number in range(1, 1001)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokentrace.dialect.otlp.once.same_call", counting)
        assert len(counted(*spans)) == 1000
    assert comparisons <= 16 * 1000


def test_chains_may_be_between_a_wrapper_and_its_call_and_agents_may_not() -> None:
    inner = call(1, parent_span_id=f"{2:016x}")
    wrapper = around(inner, 3, "LLM")
    for kind, calls in (("CHAIN", [1]), ("AGENT", [1, 3]), ("TOOL", [1, 3])):
        between = around(inner, 2, kind)._replace(parent_span_id=wrapper.span_id)
        assert counted(inner, between, wrapper) == calls


def test_a_wrapper_is_looked_for_four_steps_up_at_most() -> None:
    inner = call(1, parent_span_id=f"{2:016x}")
    for chains, calls in ((4, 1), (5, 2)):
        between = [
            around(inner, number, "CHAIN")._replace(parent_span_id=f"{number + 1:016x}")
            for number in range(2, 2 + chains)
        ]
        assert len(counted(inner, *between, around(inner, 2 + chains, "LLM"))) == calls


def test_a_failure_that_two_spans_tell_one_around_the_other_counts_once() -> None:
    failed = {"status": 2, "extra": {"gen_ai.usage.input_tokens": None, "gen_ai.usage.output_tokens": None}}
    inner = call(1, parent_span_id=f"{2:016x}", **failed)
    outer = call(2, scope="outer", **failed)
    mapped = map_spans([inner, outer], price)
    assert [span.kind for span in mapped.spans] == ["llm", "chain"]
    assert mapped.readings[1].why_duplicate == "failed wrapper"
    assert mapped.saved == {"calls": 1, "nusd": 0}


def test_spans_that_are_their_own_ancestors_end_the_search() -> None:
    first = call(1, parent_span_id=f"{2:016x}", extra={"gen_ai.response.id": None})
    other = call(2, parent_span_id=f"{1:016x}", extra={"gen_ai.response.id": None}, scope="sdk")
    assert len(counted(first, other)) == 1
    own = call(3, parent_span_id=f"{3:016x}")
    assert counted(own) == [3]


def test_the_time_to_the_first_text_is_kept_over_that_to_the_first_chunk() -> None:
    chunk = call(
        1,
        extra={"gen_ai.response.time_to_first_chunk": 0.1, "gen_ai.usage.cache_read.input_tokens": 1024},
        scope="genai",
    )
    text = call(2, extra={"gen_ai.client.operation.time_to_first_chunk": 0.3}, scope="pydantic-ai")
    kept = map_spans([chunk, text], price).spans[0]
    assert (kept.kind, kept.ttft_ns) == ("llm", 300 * MS)
    assert kept.attributes["ttft.source"] == "gen_ai.client.operation.time_to_first_chunk"
