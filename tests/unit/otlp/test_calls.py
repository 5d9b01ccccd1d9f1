"""What a span says of its call: kind, provider, model, time to the first token, how it ended, and cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from genai_prices.data import providers

from kit.otlp_calls import CHAT, PRICER, chat, mapped, price, read
from kit.random_otlp import STARTED_NS, make_otlp
from tokentrace.dialect.otlp import OtlpEvent, map_spans
from tokentrace.dialect.otlp.finish_words import finish_word
from tokentrace.dialect.otlp.providers import provider_at, provider_of
from tokentrace.units import MS


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("OpenAI", "openai"),
        ("openai.responses", "openai"),
        ("openai_like", ""),
        ("openai-compatible", ""),
        ("openaix", "openaix"),
        ("az.ai.openai", "azure"),
        ("azure_openai", "azure"),
        ("aws.bedrock", "aws"),
        ("amazon-bedrock", "aws"),
        ("gcp.gen_ai", "google"),
        ("google.vertex.anthropic", "google"),
        ("gemini", "google"),
        ("mistral_ai", "mistral"),
        ("mistralai", "mistral"),
        ("x_ai", "x-ai"),
        ("xai.chat", "x-ai"),
        ("moonshot_ai", "moonshotai"),
        ("together_ai", "together"),
        ("My Own", "my own"),
        ("", ""),
    ],
)
def test_a_provider_has_the_name_of_the_price_list(name: str, provider: str) -> None:
    assert provider_of(name) == provider


def test_hosts_of_the_price_list_are_known_by_the_provider_that_charges() -> None:
    hosts = {
        "https://api.openai.com/v1": "openai",
        "api.anthropic.com": "anthropic",
        "https://api.groq.com/openai/v1": "groq",
        "https://api.deepseek.com": "deepseek",
        "https://api.mistral.ai/v1": "mistral",
        "https://api.x.ai/v1": "x-ai",
        "https://api.together.xyz/v1": "together",
        "https://api.fireworks.ai/inference/v1": "fireworks",
        "https://openrouter.ai/api/v1": "openrouter",
        "https://api.perplexity.ai": "perplexity",
        "https://api.cerebras.ai/v1": "cerebras",
        "https://api.moonshot.ai/v1": "moonshotai",
        "https://api.cohere.com": "cohere",
        "https://generativelanguage.googleapis.com/v1beta": "google",
        "https://shop.openai.azure.com/": "azure",
        "bedrock-runtime.us-east-1.amazonaws.com": "aws",
    }
    assert {host: provider_at(host) for host in hosts} == hosts
    assert set(hosts.values()) <= {provider.id for provider in providers}
    for unknown in ("llm.test", "localhost", "evil-api.openai.com.example.org", "notopenrouter.ai", "", "://"):
        assert provider_at(unknown) == ""


def test_a_compatible_host_is_the_provider_and_not_the_library() -> None:
    assert chat({"server.address": "api.groq.com"}).provider == "groq"
    assert chat({"gen_ai.openai.api_base": "https://api.deepseek.com/v1"}).provider == "deepseek"
    assert chat({"server.address": "llm.test"}).provider == "openai"
    assert chat({"gen_ai.provider.name": "anthropic", "server.address": "api.groq.com"}).provider == "anthropic"


def test_the_model_that_answered_counts_and_the_requested_one_is_a_fact() -> None:
    span = chat({"gen_ai.response.model": "gpt-4o-mini-2024-07-18"})
    assert (span.model, span.attributes["requested_model"]) == ("gpt-4o-mini-2024-07-18", "gpt-4o-mini")
    assert "requested_model" not in chat({"gen_ai.response.model": "gpt-4o-mini"}).attributes


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"gen_ai.operation.name": "fetch_response"}, "custom"),
        ({"gen_ai.operation.name": "invoke_workflow"}, "workflow"),
        ({"gen_ai.operation.name": "search_memory"}, "retrieval"),
        ({"gen_ai.operation.name": "something_new"}, "custom"),
        ({"openinference.span.kind": "RERANKER"}, "retrieval"),
        ({"openinference.span.kind": "GUARDRAIL"}, "custom"),
        ({"langfuse.observation.type": "retriever"}, "retrieval"),
        ({"langfuse.observation.type": "event"}, "custom"),
        ({"ai.operationId": "ai.embedMany.doEmbed"}, "embedding"),
        ({"ai.operationId": "ai.embedMany"}, "chain"),
        ({"traceloop.span.kind": "task"}, "chain"),
        ({"llm.request.type": "completion"}, "llm"),
        ({"gen_ai.tool.name": "weather"}, "tool"),
        ({"gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3}, "llm"),
        ({"gen_ai.request.model": "m"}, "custom"),
        ({"db.system.name": "postgresql"}, "database"),
        ({"http.request.method": "GET"}, "http"),
        ({}, "custom"),
    ],
)
def test_the_first_rule_that_fits_tells_the_kind(attributes: dict[str, Any], kind: str) -> None:
    assert mapped(attributes, name="x").kind == kind


def test_a_name_tells_kind_and_model_only_under_the_scope_of_an_instrumentation() -> None:
    span = mapped({}, name="chat claude-sonnet-4-5", scope="openlit.instrumentation.anthropic", status=2)
    assert (span.kind, span.model, span.provider) == ("llm", "claude-sonnet-4-5", "anthropic")
    assert mapped({}, name="chat with my friends", scope="app").kind == "custom"


@pytest.mark.parametrize("name", ["anthropic.messages.count_tokens", "openai.fetch_response"])
def test_a_span_that_names_a_model_and_does_not_call_it_is_no_call(name: str) -> None:
    span = chat({"gen_ai.operation.name": None}, name=name)
    assert (span.kind, span.total_tokens, span.response_id) == ("custom", 0, "")


def test_evaluations_of_openinference_are_scores_from_0_to_1_and_else_numbers() -> None:
    told = {"annotations.0.annotation.name": "tone", "annotations.0.annotation.score": 0.5}
    told |= {"evaluations.0.evaluation.name": "stars", "evaluations.0.evaluation.score": 4}
    span = chat({"openinference.span.kind": "LLM"} | told)
    assert (span.attributes["eval.tone"], span.attributes["evaluation.stars"]) == (0.5, 4)


def test_a_span_that_only_says_that_a_call_began_is_dropped() -> None:
    pending = make_otlp(attributes=CHAT | {"logfire.span_type": "pending_span"}, scope="pydantic-ai")
    result = map_spans([pending, make_otlp(attributes=CHAT)])
    assert [reading.kind for reading in result.readings] == ["pending", "llm"]
    assert (len(result.spans), result.readings[0].span, result.bad) == (1, None, [])


def test_a_reading_names_the_dialect_or_other() -> None:
    assert read(make_otlp(attributes=CHAT)).dialect == "semconv"
    assert read(make_otlp(attributes={"http.request.method": "GET"})).dialect == "other"
    assert read(make_otlp(attributes=CHAT, scope="litellm")).dialect == "litellm"
    assert read(make_otlp(attributes=CHAT, scope="logfire.openai")).dialect == "logfire"


def test_a_reading_names_attributes_that_the_record_does_not_hold() -> None:
    reading = read(make_otlp(attributes=CHAT | {"gen_ai.usage.prompt_tokens": 9, "logfire.msg": "x", "own": 1}))
    assert reading.ignored == ("gen_ai.usage.prompt_tokens", "logfire.msg")


@pytest.mark.parametrize(
    ("attributes", "fields", "ns"),
    [
        ({"gen_ai.response.time_to_first_chunk": 0.1}, {}, 100 * MS),
        ({"gen_ai.client.operation.time_to_first_chunk": "0.25"}, {}, 250 * MS),
        ({"ai.response.msToFirstChunk": 119.5}, {}, 119_500_000),
        ({"langfuse.observation.completion_start_time": '"2026-01-01T00:00:00.146Z"'}, {}, 146 * MS),
        ({"gen_ai.server.time_to_first_token": 0.1, "gen_ai.request.stream": True}, {}, 100 * MS),
        # Of a call that does not stream, it is the duration.
        ({"gen_ai.server.time_to_first_token": 0.1}, {}, 0),
        ({}, {"events": (OtlpEvent("gen_ai.content.completion.chunk", STARTED_NS + 80 * MS, {}),)}, 80 * MS),
        # Longer than the call, so the next one counts.
        ({"gen_ai.response.time_to_first_chunk": 7, "ai.response.msToFirstChunk": 5}, {}, 5 * MS),
        ({"gen_ai.response.time_to_first_chunk": -1}, {}, 0),
        ({"gen_ai.response.time_to_first_chunk": 0.1}, {"ended_ns": 0}, 0),
    ],
)
def test_the_time_to_the_first_token_is_within_the_call(attributes: Any, fields: Any, ns: int) -> None:
    span = chat(attributes, **fields)
    assert span.ttft_ns == ns
    assert ("ttft.source" in span.attributes) is (ns > 0)


@pytest.mark.parametrize(
    ("started", "ended"),
    [(0, 0), (1, 2), (STARTED_NS, 0), (0, STARTED_NS), (STARTED_NS, STARTED_NS - 1), (STARTED_NS, 2**63 - 1)],
)
def test_instants_that_cannot_be_true_leave_the_call(started: int, ended: int) -> None:
    result = map_spans([make_otlp(attributes=CHAT, started_ns=started, ended_ns=ended)])
    assert len(result.spans) == 1
    assert result.spans[0].latency_ns == 0


@pytest.mark.parametrize(
    ("message", "attributes", "status"),
    [
        ("", {"error.type": "APITimeoutError"}, "timeout"),
        ("", {"error.type": "openai.APITimeoutError"}, "timeout"),
        ("", {"error.type": "client_timeout_error"}, "timeout"),
        ("", {"error.type": "DEADLINE_EXCEEDED"}, "timeout"),
        ("", {"http.response.status_code": 504}, "timeout"),
        ("", {"error.code": "408"}, "timeout"),
        ("Request timed out.", {}, "timeout"),
        ("The operation was aborted due to timeout", {}, "timeout"),
        ("slow", {"error.type": "RateLimitError", "http.response.status_code": 429}, "error"),
        ("", {}, "error"),
    ],
)
def test_an_error_is_a_timeout_if_type_code_or_message_says_so(message: str, attributes: Any, status: str) -> None:
    assert chat(attributes, status=2, message=message).status == status
    assert chat(attributes, status=1, message=message).status == "ok"


def test_an_exception_event_gives_message_type_and_stack() -> None:
    exception = {
        "exception.type": "openai.RateLimitError",
        "exception.message": "slow down",
        "exception.stacktrace": "at x",
    }
    span = chat({"gen_ai.response.id": "r-1"}, status=2, events=(OtlpEvent("exception", 0, exception),))
    assert (span.error, span.error_stack, span.attributes["error.type"]) == (
        "slow down",
        "at x",
        "openai.RateLimitError",
    )
    # Some emitters put an id of their own there.
    assert span.response_id == ""


def test_words_for_the_end_of_a_call_are_the_same_for_all_providers() -> None:
    words = {
        "end_turn": "stop",
        "STOP": "stop",
        "completed": "stop",
        "tool_use": "tool_calls",
        "tool-calls": "tool_calls",
    }
    words |= {"tool_call": "tool_calls", "max_tokens": "length", "content_filter": "content_filter", "Odd": "odd"}
    assert {word: finish_word(word) for word in words} == words
    for given in (["end_turn"], '["end_turn"]', "end_turn"):
        assert chat({"gen_ai.response.finish_reasons": given}).attributes["finish_reason"] == "stop"
    messages = [
        {"role": "assistant", "parts": [{"content": '"finish_reason": "forged"'}], "finish_reason": "max_tokens"}
    ]
    answered = {"gen_ai.output.messages": json.dumps(messages)}
    assert chat(answered).attributes["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("attributes", "nusd", "source"),
    [
        ({"gen_ai.cost.total_cost": 0.00028319999999999994}, 283_200, "reported"),
        ({"operation.cost": 0.5}, 500_000_000, "reported"),
        ({"llm.cost.total": "0.25"}, 250_000_000, "reported"),
        # A 0 means that the emitter knows no price.
        ({"gen_ai.cost.total_cost": 0}, 360_000, "priced"),
        ({"gen_ai.cost.total_cost": -1}, 360_000, "priced"),
        # OpenLIT's own price list counts only if ours has no price.
        ({"gen_ai.usage.cost": 0.5}, 360_000, "priced"),
        ({"gen_ai.usage.total_cost": 0.5}, 360_000, "priced"),
        ({"gen_ai.usage.cost": 0.5, "gen_ai.request.model": "my-own-model"}, 500_000_000, "reported"),
        ({"gen_ai.cost.total_cost": 1e-12}, 0, "reported"),
        ({}, 360_000, "priced"),
    ],
)
def test_a_reported_cost_over_0_counts(attributes: dict[str, Any], nusd: int, source: str) -> None:
    quote = PRICER.quote(chat(attributes))
    assert (quote.cost_nusd, quote.source) == (nusd, source)


def test_an_answer_from_a_cache_costs_nothing() -> None:
    span = chat({"litellm.cache_hit": "True", "gen_ai.cost.total_cost": 0.5}, scope="litellm")
    assert span.kind == "llm"
    assert PRICER.quote(span) == (0, "reported", "", "cache_hit")


def test_costs_that_differ_by_more_than_a_percent_are_counted_by_scope() -> None:
    otlp = [
        make_otlp(span_id=f"{number:016x}", scope="litellm", attributes=CHAT | {"gen_ai.cost.total_cost": cost})
        for number, cost in enumerate((0.00036, 0.000362, 0.0004, 0.0001), 1)
    ]
    assert map_spans(otlp, price).disagreements == {"litellm": 2}
    assert map_spans(otlp).disagreements == {}
