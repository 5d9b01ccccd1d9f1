"""Random spans as ingest stores them, for tests of the export by OTLP."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tokentrace.dialect.otlp import own_names
from tokentrace.records import FREE_REASONS, KINDS, MAX_COST_NUSD, MODEL_KINDS, OTHER_UNITS, Span, settle_usage

START_NS = 1_790_000_000 * 1_000_000_000
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_IDS = st.one_of(
    st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.uuids().map(str),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    st.sampled_from(["0", "0" * 16, "0" * 32, "A" * 16, "A" * 32]),
)
_VALUES = st.recursive(
    st.one_of(_TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=5,
)
#: Names that the export uses itself, and names that it changes.
_KEYS = st.sampled_from(
    sorted(
        own_names.CONVENTIONS
        | {"tokentrace.kind", "tokentrace.cost_nusd", "tokentrace.renamed", "tokentrace.attribute.x"}
        | {*own_names.CONTENT, *own_names.CONTENT.values(), *own_names.MESSAGES, "input.value", "output.value"}
        | {"gen_ai.input.messages", "finish_reason", "requested_model", "tool.name", "error_type", "plan"}
    )
)
_ATTRIBUTES = st.dictionaries(
    st.one_of(_KEYS, _TEXT.filter(lambda key: bool(key) and not key.startswith(("tt.", "eval.")))), _VALUES, max_size=6
)
_MESSAGES = st.sampled_from(['[{"role": "user", "content": "Hi"}]', "Hi", "[1]", "[", '[{"role": "user"}, 1]'])
_PROVIDERS = st.one_of(
    st.sampled_from(["", "openai", "anthropic", "x_ai", *own_names.PROVIDERS, *own_names.PROVIDERS.values()]), _TEXT
)


@st.composite
def stored_spans(draw: st.DrawFn) -> Span:
    """Draw a span with ids, times and a cost, as it stands in the log."""
    count = st.integers(0, 2**31)
    read, write_1h, write_5m, fresh = (draw(st.one_of(st.just(0), count)) for _ in range(4))
    reasoning, answer = (draw(st.one_of(st.just(0), count)) for _ in range(2))
    write = write_1h + write_5m
    prompt, completion = read + write + fresh, reasoning + answer
    kind: Any = draw(st.sampled_from(KINDS))
    status: Any = draw(st.sampled_from(["ok", "error", "timeout"]))
    total = prompt + completion + draw(st.one_of(st.just(0), st.integers(1, 1000)))
    usage = draw(st.dictionaries(st.sampled_from(sorted(OTHER_UNITS)), st.integers(1, 2**31), max_size=3))
    model = draw(st.one_of(st.just("gpt-4o"), _TEXT))
    state: Any = draw(st.sampled_from(["", "partial", "estimated"]))
    if kind in MODEL_KINDS and status == "ok":
        model = model or "gpt-4o"
        if not (total or any(usage.values())):
            state = draw(st.sampled_from(["none", "missing"]))
    latency = draw(st.integers(0, 10**12))
    stated = draw(st.one_of(st.just(latency), st.integers(0, 10**12)))
    cost = draw(st.one_of(st.none(), st.just(0), st.integers(1, MAX_COST_NUSD)))
    source: Any = {None: "unpriced", 0: draw(st.sampled_from(["free", "reported"]))}.get(cost, "priced")
    attributes = draw(_ATTRIBUTES) | draw(st.dictionaries(st.sampled_from(["input", "output"]), _MESSAGES))
    return settle_usage(
        Span(
            trace_id=draw(_IDS),
            span_id=draw(_IDS),
            parent_span_id=draw(st.one_of(st.none(), _IDS)),
            name=draw(_TEXT),
            kind=kind,
            caller=draw(st.one_of(_TEXT, st.just("unknown_service"), st.just("unknown_service:x"))),
            model=model,
            provider=draw(_PROVIDERS),
            status=status,
            started_ns=START_NS,
            ended_ns=START_NS + latency,
            latency_ns=stated,
            ttft_ns=draw(st.integers(0, min(latency, stated))) if status == "ok" else 0,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=total,
            cache_read_tokens=read,
            cache_write_tokens=write,
            cache_write_1h_tokens=write_1h,
            reasoning_tokens=reasoning,
            usage=usage or None,
            usage_state=state,
            cost_nusd=cost,
            cost_source=source,
            cost_model=draw(st.sampled_from(["", "openai:gpt-4o@genai-prices-0.2.3"])),
            unpriced_reason="no_usage" if cost is None else draw(st.sampled_from(FREE_REASONS)) if cost == 0 else "",
            score=draw(st.one_of(st.none(), st.integers(0, 10**9))),
            attributes=attributes,
            error=draw(_TEXT),
            error_stack=draw(_TEXT),
            session_id=draw(st.one_of(st.none(), _IDS)),
            user_id=draw(st.one_of(st.none(), _IDS)),
            response_id=draw(st.sampled_from(["", "chatcmpl-AbCdEfGhIjKlMn", "msg_1"])),
            pricing_context=draw(st.one_of(st.none(), st.just({"service_tier": "flex"}))),
            scope=draw(st.sampled_from(["", "openinference.instrumentation.openai"])),
            source=draw(st.sampled_from(["reporter", "spans", "mist", "costkatana", "nats"])),
            adjusted=tuple(draw(st.lists(_TEXT, max_size=2))),
            arrived_ns=START_NS + latency,
        )
    )
