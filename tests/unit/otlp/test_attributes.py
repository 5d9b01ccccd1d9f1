"""The attributes of a record: own keys for facts and content, and what an emitter sent besides."""

from __future__ import annotations

import json
from typing import Any

from kit.otlp_calls import chat, mapped
from tokentrace.dialect.otlp.ladders import table_of
from tokentrace.dialect.otlp.plan import Plans
from tokentrace.records import MAX_ATTRIBUTES, MAX_VALUE_BYTES


def test_an_applications_own_attributes_have_the_names_that_it_gave_them() -> None:
    for key in ("ai.telemetry.metadata.plan", "langfuse.trace.metadata.plan", "traceloop.association.properties.plan"):
        assert chat({key: "pro"}).attributes["plan"] == "pro"
    assert chat({"langfuse.observation.metadata.plan": '"pro"'}).attributes["plan"] == "pro"
    openinference = {
        "openinference.span.kind": "LLM",
        "metadata": '{"plan": "pro", "session_id": 7, "ls_provider": "x"}',
    }
    span = chat(openinference)
    assert (span.attributes["plan"], span.session_id) == ("pro", "7")
    assert chat({"tag.tags": '["a", "b"]'}).attributes["tags"] == ["a", "b"]


def test_flattened_messages_become_one_text_in_their_order() -> None:
    flat: dict[str, Any] = {f"llm.input_messages.{number}.message.content": f"text {number}" for number in range(12)}
    flat |= {f"llm.input_messages.{number}.message.role": "user" for number in range(12)}
    flat["llm.input_messages.3.message.tool_calls.0.tool_call.function.name"] = "weather"
    span = chat(flat | {"openinference.span.kind": "LLM"})
    messages = json.loads(span.attributes["input"])
    assert [message["content"] for message in messages] == [f"text {number}" for number in range(12)]
    assert messages[3]["tool_calls"] == [{"function": {"name": "weather"}}]
    assert not [key for key in span.attributes if key.startswith("llm.")]


def test_values_in_place_of_messages_stay_beside_them_and_are_not_changed() -> None:
    own = {"role": "user"}
    flat = {"gen_ai.prompt.0": own, "gen_ai.prompt.0.content": "text", "gen_ai.prompt.1.content": "a"}
    span = chat(flat | {"gen_ai.prompt.1": "b"})
    assert json.loads(span.attributes["input"]) == {
        "0": {"role": "user"},
        "0.content": "text",
        "1": {"content": "a", "": "b"},
    }
    assert own == {"role": "user"}


def test_too_much_never_loses_a_call() -> None:
    many = {f"custom.{number}": number for number in range(300)}
    long = {"gen_ai.input.messages": "word " * 30_000, "k" * 400: 1, "gen_ai.tool.definitions": "ü" * 40_000}
    span = chat(many | long, name="n" * 500, scope="s" * 500)
    assert len(span.attributes) <= MAX_ATTRIBUTES
    assert any("left out" in note for note in span.adjusted)
    cut = chat(long)
    assert len(cut.attributes["input"].encode()) <= MAX_VALUE_BYTES
    assert cut.attributes["input"].endswith("bytes]")
    assert any(note.startswith("attributes.input: cut") for note in cut.adjusted)


def test_keys_that_mean_something_here_cannot_be_forged() -> None:
    span = chat({"tt.shard": 1, "eval.score": 4.0, "eval.tone": 0.5, "duplicate_of": "x", "tokens.rule": "x", "": 1})
    assert span.attributes["otlp.tt.shard"] == 1
    assert span.attributes["otlp.eval.score"] == 4.0
    assert span.attributes["eval.tone"] == 0.5
    assert span.attributes["otlp.duplicate_of"] == "x"
    assert (span.attributes["otlp.tokens.rule"], span.attributes["tokens.rule"]) == ("x", "inclusive")


def test_values_that_a_record_cannot_hold_become_text() -> None:
    deep: Any = "end"
    for _ in range(40):
        deep = [deep]
    span = chat({"bytes": b"\x00\x01", "big": 2**80, "inf": float("inf"), "deep": deep, "empty": ""})
    assert (span.attributes["bytes"], span.attributes["big"]) == ("AAE=", str(2**80))
    assert "inf" not in span.attributes
    assert "empty" not in span.attributes
    assert "deep" in span.attributes


def test_parameters_that_an_emitter_made_up_are_not_shown() -> None:
    asked = {"gen_ai.request.temperature": 0.2, "gen_ai.request.seed": 0, "gen_ai.request.max_tokens": -1}
    span = chat(asked, scope="openlit.instrumentation.openai")
    assert {key for key in span.attributes if key.startswith("gen_ai.request")} == {"gen_ai.request.temperature"}
    parameters = {"temperature": 1, "max_tokens": "Infinity", "top_p": 0.5}
    langfuse = {
        "langfuse.observation.type": "generation",
        "langfuse.observation.model.parameters": json.dumps(parameters),
    }
    shown = chat(langfuse).attributes
    assert {key: value for key, value in shown.items() if key.startswith("gen_ai.request")} == {
        "gen_ai.request.top_p": 0.5
    }


def test_a_tools_arguments_are_what_it_got_and_not_its_schema() -> None:
    span = mapped(
        {
            "openinference.span.kind": "TOOL",
            "tool.name": "weather",
            "tool.parameters": '{"type": "object"}',
            "input.value": '{"city": "Paris"}',
            "output.value": "sunny",
        }
    )
    assert span.attributes["tool.name"] == "weather"
    assert (span.attributes["tool.arguments"], span.attributes["tool.result"]) == ('{"city": "Paris"}', "sunny")
    assert span.attributes["tool.definitions"] == '{"type": "object"}'


def test_what_the_program_says_of_itself_is_kept_but_for_the_machine() -> None:
    resource = {"service.name": "shop", "deployment.environment": "test", "process.pid": 1, "host.name": "h", "tt.x": 1}
    span = chat({}, resource=resource)
    assert span.caller == "shop"
    assert {key for key in span.attributes if key in (*resource, "otlp.tt.x")} == {
        "deployment.environment",
        "otlp.tt.x",
    }
    assert chat({}, resource={"service.name": "unknown_service:python"}).caller == ""


def test_plans_of_names_that_never_come_again_do_not_stay() -> None:
    plans = Plans(table_of())
    for request in range(300):
        names = [f"custom.{request}.{number}" for number in range(1_000)]
        assert len(plans.of(names).kept) == 1_000
    assert plans.size <= 50_000
