"""The sentences about what is missing in calls."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from tokentrace.units import DAY, HOUR, MINUTE
from tokentrace_api.coverage_emitters import ANY, Emitter, Fact, emitter_of
from tokentrace_api.coverage_gaps import Gap, Looked, gaps_of, silence_of
from tokentrace_api.reads import Quiet, Told

#: Scopes of captured spans, and what sends them.
SCOPES = {
    "opentelemetry.instrumentation.openai_v2": "opentelemetry-instrumentation-openai-v2",
    "opentelemetry.util.genai.handler": "opentelemetry-instrumentation-genai",
    "opentelemetry.instrumentation.genai.openai": "opentelemetry-instrumentation-genai",
    "com.anthropic.sdk.python": "the Anthropic SDK",
    "opentelemetry.instrumentation.openai.v1": "OpenLLMetry",
    "opentelemetry.instrumentation.anthropic": "OpenLLMetry",
    "opentelemetry.instrumentation.langchain": "OpenLLMetry for LangChain",
    "openinference.instrumentation.openai": "OpenInference",
    "openlit.instrumentation.openai": "OpenLIT",
    "logfire.openai": "Logfire",
    "pydantic-ai": "pydantic-ai",
    "langfuse-sdk": "Langfuse",
    "litellm": "LiteLLM",
    "ai": "Vercel AI SDK",
    "gen_ai": "Vercel AI SDK 7",
    "an.app": "unknown",
}
EMITTERS = [emitter_of("otlp", scope) for scope in SCOPES] + [
    emitter_of(source, "") for source in ("reporter", "spans", "mist", "costkatana", "nats", "other")
]


def row(**fields: Any) -> Told:
    """Return 100 successful calls that tell everything."""
    full = dict.fromkeys(("calls", "ok", "used", "counted", "cached", "writes", "writes_1h"), 100)
    full |= dict.fromkeys(("ttft", "sessions", "users", "responses"), 100)
    names = {"caller": "shop", "scope": "litellm", "source": "otlp", "newest": (), "newest_reported": ()}
    return Told(**{**full, **names, "reported": 0, "first_ns": 1, "last_ns": 2, **fields})


def whats(gaps: list[Gap]) -> list[str]:
    return [gap.what for gap in gaps]


@pytest.mark.parametrize(("scope", "name"), SCOPES.items())
def test_the_sender_is_known_by_its_scope(scope: str, name: str) -> None:
    assert emitter_of("otlp", scope).name == name


@pytest.mark.parametrize("emitter", EMITTERS, ids=lambda emitter: emitter.name)
def test_calls_that_tell_everything_have_no_gap(emitter: Emitter) -> None:
    assert gaps_of(row(), Looked(streamed=9, streamed_ttft=9, compared=9), emitter) == []


@pytest.mark.parametrize("emitter", EMITTERS, ids=lambda emitter: emitter.name)
def test_each_gap_is_one_sentence_that_says_what_to_change(emitter: Emitter) -> None:
    nothing = dict.fromkeys(("used", "cached", "writes_1h", "ttft", "sessions", "users", "responses"), 0)
    looked = Looked(streamed=9, compared=9, differing=2, pairs=(("openlit", 3),))
    gaps = gaps_of(row(**nothing), looked, emitter)
    assert {"usage", "duplicates", "cost", "response_id", "ttft", "session", "user"} <= set(whats(gaps))
    for gap in gaps:
        told, _, change = gap.advice.partition(": ")
        assert change, gap.advice
        assert gap.advice.endswith(".")
        assert not gap.advice.endswith("..")
        assert "\n" not in gap.advice
        assert told[0].isdigit() or told[0].isupper()


def test_every_fact_has_advice_that_holds_for_all_senders() -> None:
    assert set(ANY) == set(get_args(Fact))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"used": 98}, "usage"),
        ({"responses": 89}, "response_id"),
        ({"sessions": 49}, "session"),
        ({"users": 49}, "user"),
    ],
)
def test_a_fact_may_be_missing_in_some_calls_without_a_gap(changed: dict[str, int], what: str) -> None:
    [(name, calls)] = changed.items()
    emitter = emitter_of("otlp", "an.app")
    [gap] = gaps_of(row(**changed), Looked(), emitter)
    assert (gap.what, gap.calls) == (what, 100 - calls)
    assert gap.advice.startswith(f"{100 - calls} of 100 ")
    assert gaps_of(row(**{name: calls + 1}), Looked(), emitter) == []


def test_what_an_instrumentation_never_tells_is_a_gap_only_while_it_is_missing() -> None:
    silent = row(cached=0, writes_1h=0, ttft=0)
    assert whats(gaps_of(silent, Looked(), emitter_of("otlp", "opentelemetry.instrumentation.openai_v2"))) == [
        "cached",
        "ttft",
    ]
    assert whats(gaps_of(silent, Looked(), emitter_of("otlp", "litellm"))) == ["ttft"]
    assert whats(gaps_of(silent, Looked(), emitter_of("otlp", "openlit.openai"))) == ["cache_1h"]
    assert gaps_of(silent, Looked(), emitter_of("otlp", "an.app")) == []
    few = silent._replace(counted=19)
    assert whats(gaps_of(few, Looked(), emitter_of("otlp", "opentelemetry.instrumentation.openai_v2"))) == ["ttft"]


def test_streams_without_a_first_token_are_a_gap_of_their_own() -> None:
    emitter = emitter_of("otlp", "an.app")
    [gap] = gaps_of(row(ttft=0), Looked(streamed=10, streamed_ttft=4), emitter)
    assert (gap.what, gap.calls) == ("ttft", 6)
    assert gaps_of(row(ttft=0), Looked(streamed=10, streamed_ttft=5), emitter) == []


def test_the_sentence_of_openai_streams_names_include_usage() -> None:
    [gap] = gaps_of(row(used=0), Looked(), emitter_of("otlp", "opentelemetry.instrumentation.openai_v2"))
    assert 'stream_options={"include_usage": True}' in gap.advice


@pytest.mark.parametrize(
    ("quiet", "words"),
    [
        (Quiet("shop", "", 10 * HOUR, 20 * MINUTE, 10 * HOUR), ["No call for 1d", "at most 20m", "service runs"]),
        (Quiet("shop", "", 10 * HOUR, 20 * MINUTE, 33 * HOUR), ["1970-01-02T09:00:00", "its instrumentation"]),
        (Quiet("shop", "openlit.openai", 10 * HOUR, MINUTE, 33 * HOUR), ["openlit.openai", "installed SDK"]),
    ],
)
def test_the_sentence_about_silence_says_what_else_came(quiet: Quiet, words: list[str]) -> None:
    said = silence_of(quiet, 10 * HOUR + DAY)
    assert [word for word in words if word not in said] == []
    assert said.endswith(".")
