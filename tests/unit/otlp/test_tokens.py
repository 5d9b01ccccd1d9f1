"""The tokens of a call: whatever the emitter counts, the input is whole and its parts are in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.otlp_calls import CHAT, PRICER, chat, mapped


def cached(provider: str, **extra: Any) -> dict[str, Any]:
    """Return a call whose emitter says 1000 input, 300 read and 200 written tokens."""
    return {
        **CHAT,
        "gen_ai.provider.name": provider,
        "gen_ai.usage.input_tokens": 1000,
        "gen_ai.usage.cache_read.input_tokens": 300,
        "gen_ai.usage.cache_write.input_tokens": 200,
        **extra,
    }


@pytest.mark.parametrize(
    ("scope", "provider", "operation", "prompt"),
    [
        ("app", "anthropic", None, 1000),
        ("openlit.instrumentation.anthropic", "anthropic", None, 1500),
        ("openlit.instrumentation.bedrock", "aws.bedrock", None, 1500),
        ("openlit.instrumentation.openai", "openai", None, 1000),
        ("ai", "anthropic.messages", "ai.generateText.doGenerate", 1500),
        ("ai", "openai.chat", "ai.generateText.doGenerate", 1000),
    ],
)
def test_whether_the_input_holds_short_caches_depends_on_emitter_and_provider(
    scope: str, provider: str, operation: str | None, prompt: int
) -> None:
    span = mapped(cached(provider, **{"ai.operationId": operation}), scope=scope)
    assert (span.prompt_tokens, span.cache_read_tokens, span.cache_write_tokens) == (prompt, 300, 200)
    assert span.attributes["tokens.rule"] == ("inclusive" if prompt == 1000 else "exclusive")


def test_an_emitter_that_tells_what_was_not_cached_counts_caches_as_input() -> None:
    span = mapped(
        {
            **cached("anthropic", **{"ai.operationId": "ai.streamText.doStream"}),
            "ai.usage.inputTokenDetails.noCacheTokens": 500,
        },
        scope="ai",
    )
    assert (span.prompt_tokens, span.attributes["tokens.rule"]) == (1000, "inclusive")


def test_more_cached_tokens_than_input_are_beside_it() -> None:
    span = chat({"gen_ai.usage.input_tokens": 100, "gen_ai.usage.cache_read.input_tokens": 3000})
    assert (span.prompt_tokens, span.attributes["tokens.rule"]) == (3100, "exclusive")
    assert "beside" in span.attributes["tokens.note"]


@pytest.mark.parametrize("zero", [None, 0])
def test_a_successful_call_that_counts_nothing_is_missing_its_usage_and_is_not_free(zero: int | None) -> None:
    span = chat({"gen_ai.usage.input_tokens": zero, "gen_ai.usage.output_tokens": zero})
    assert (span.usage_state, span.total_tokens) == ("missing", 0)
    assert PRICER.quote(span) == (None, "unpriced", PRICER.quote(span).model, "no_usage")
    failed = chat({"gen_ai.usage.input_tokens": zero, "gen_ai.usage.output_tokens": zero}, status=2)
    assert failed.usage_state == ""


def test_a_stream_that_the_application_left_is_incomplete_and_priced_partly() -> None:
    span = chat({"gen_ai.usage.output_tokens": None})
    assert (span.usage_state, span.attributes["incomplete"]) == ("partial", True)
    assert PRICER.quote(span).reason == "partial_usage"
    # An embedding has no output.
    embedding = chat({"gen_ai.operation.name": "embeddings", "gen_ai.usage.output_tokens": None})
    assert (embedding.usage_state, "incomplete" in embedding.attributes) == ("", False)


def test_tokens_may_be_text_or_whole_floats_and_never_bools() -> None:
    span = chat({"gen_ai.usage.input_tokens": "1521", "gen_ai.usage.output_tokens": 30.0})
    assert (span.prompt_tokens, span.completion_tokens) == (1521, 30)
    for rubbish in (True, "many", 1.5, -3, float("inf"), 2**50, b"\x01", [1]):
        other = chat({"gen_ai.usage.input_tokens": rubbish, "gen_ai.usage.prompt_tokens": 7})
        assert other.prompt_tokens == 7


def test_the_providers_own_object_wins_if_its_output_is_that_of_the_attributes() -> None:
    usage = {"input_tokens": 100, "output_tokens": 300, "cache_read_input_tokens": 3000}
    raw = {"gen_ai.usage.raw": json.dumps(usage), "gen_ai.provider.name": "anthropic"}
    span = chat(raw, scope="logfire.anthropic")
    assert (span.prompt_tokens, span.cache_read_tokens) == (3100, 3000)
    assert span.attributes["tokens.rule"] == "native:gen_ai.usage.raw"
    other = chat({**raw, "gen_ai.usage.output_tokens": 299}, scope="logfire.anthropic")
    assert (other.prompt_tokens, other.attributes["tokens.rule"]) == (1200, "inclusive")


def test_an_object_as_python_prints_it_is_read_whatever_its_texts_are() -> None:
    for note in ("None", "it's", 'a "quote"'):
        usage = {"prompt_tokens": 50, "completion_tokens": 300, "prompt_tokens_details": None, "note": note}
        span = chat({"metadata.usage_object": str(usage)}, scope="litellm")
        assert (span.prompt_tokens, span.attributes["tokens.rule"]) == (50, "native:litellm.usage_object")
    long = str({"prompt_tokens": 50, "completion_tokens": 300, "note": "it's \"" + "x" * 20_000})
    assert chat({"metadata.usage_object": long}, scope="litellm").prompt_tokens == 1200


def test_langfuses_own_object_has_disjoint_parts() -> None:
    usage = {
        "input": 100,
        "input_cache_read": 30,
        "input_cache_creation": 20,
        "input_cache_creation_1h": 5,
        "output": 7,
    }
    span = mapped(
        {
            "langfuse.observation.type": "generation",
            "langfuse.observation.model.name": "claude-sonnet-4-5",
            "langfuse.observation.usage_details": json.dumps({**usage, "output_reasoning": 3}),
        }
    )
    assert (span.prompt_tokens, span.cache_read_tokens, span.cache_write_tokens) == (155, 30, 25)
    assert (span.cache_write_1h_tokens, span.completion_tokens, span.reasoning_tokens) == (5, 10, 3)


def test_parts_that_contradict_their_whole_are_left_out_and_the_call_stays() -> None:
    span = chat({"gen_ai.usage.audio.input_tokens": 5000, "gen_ai.usage.cache_read.input_tokens": 10})
    assert (span.prompt_tokens, span.completion_tokens, span.usage, span.cache_read_tokens) == (1200, 300, None, 0)
    assert "contradict" in span.attributes["tokens.note"]


def test_audio_tokens_are_parts() -> None:
    span = chat({"gen_ai.usage.audio.input_tokens": 200})
    assert (span.prompt_tokens, span.total_tokens, span.usage) == (1200, 1500, {"input_audio_tokens": 200})


def test_a_compaction_is_beside_the_usage() -> None:
    extra = {"anthropic.usage.compaction.input_tokens": 50, "anthropic.usage.compaction.output_tokens": 5}
    span = chat(extra, scope="com.anthropic.sdk.python")
    assert (span.prompt_tokens, span.completion_tokens, span.total_tokens) == (1250, 305, 1555)


def test_a_total_alone_is_kept_and_not_split() -> None:
    span = chat({"gen_ai.usage.input_tokens": None, "gen_ai.usage.output_tokens": None, "gen_ai.usage.total_tokens": 9})
    assert (span.prompt_tokens, span.total_tokens) == (0, 9)
    assert PRICER.quote(span).reason == "no_split"


def test_an_agents_usage_is_shown_and_never_counted() -> None:
    agent = {"gen_ai.operation.name": "invoke_agent"}
    span = chat(agent | {"operation.cost": 0.5})
    assert (span.kind, span.total_tokens, span.cost_nusd, span.usage) == ("agent", 0, None, None)
    assert span.attributes["rollup.prompt_tokens"] == 1200
    assert span.attributes["rollup.completion_tokens"] == 300
    assert span.attributes["cost.reported_usd"] == 0.5
    aggregated = {"gen_ai.aggregated_usage.input_tokens": 7, "gen_ai.aggregated_usage.output_tokens": 2}
    summed = mapped(agent | aggregated | {"gen_ai.aggregated_usage.details.reasoning_tokens": 1})
    assert summed.attributes["rollup.prompt_tokens"] == 7
    assert not [key for key in summed.attributes if key.startswith("gen_ai.aggregated")]
