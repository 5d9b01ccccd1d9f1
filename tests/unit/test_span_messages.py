"""The messages of a call are read from the attributes of each known instrumentation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace_api.span_messages import Part, messages_of, redactions_in

TEXT = "Write to [EMAIL_REDACTED], key [REDACTED]"
SAID = [("input", "system", "Be brief"), ("input", "user", TEXT), ("output", "assistant", "Done")]
#: Instrumentation -> its attributes for the conversation ``SAID``.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "OpenTelemetry, JSON": {
        "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief"}]),
        "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": TEXT}]}]),
        "gen_ai.output.messages": [
            {"role": "assistant", "parts": [{"type": "text", "content": "Done"}], "finish_reason": "stop"}
        ],
        "input.value": "repeats the messages",
    },
    "OpenTelemetry, numbered": {
        "gen_ai.prompt.1.content": TEXT,
        "gen_ai.prompt.1.role": "user",
        "gen_ai.prompt.0.role": "system",
        "gen_ai.prompt.0.content": "Be brief",
        "gen_ai.completion.0.role": "assistant",
        "gen_ai.completion.0.content": "Done",
        "gen_ai.completion.0.finish_reason": "stop",
    },
    "OpenInference": {
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be brief",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.contents.0.message_content.type": "text",
        "llm.input_messages.1.message.contents.0.message_content.text": TEXT,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Done",
        "output.value": "Done",
    },
    "AI SDK": {
        "ai.prompt.messages": json.dumps(
            [{"role": "system", "content": "Be brief"}, {"role": "user", "content": TEXT}]
        ),
        "ai.response.text": "Done",
    },
    "a request and a response by hand": {
        "messages": {"messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": TEXT}]},
        "response": "Done",
    },
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_each_instrumentation_says_the_same_conversation(name: str) -> None:
    found = messages_of(ATTRIBUTES[name])
    assert [(said.direction, said.role, "".join(part.text for part in said.parts)) for said in found] == SAID
    assert [redactions_in(said.parts) for said in found] == [0, 2, 0]
    assert {said.source.split(".")[0] for said in found} <= {key.split(".")[0] for key in ATTRIBUTES[name]}


def test_calls_of_tools_and_their_results_are_parts_of_messages() -> None:
    [asked] = messages_of(
        {
            "gen_ai.output.messages": json.dumps(
                [
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"id": "c", "function": {"name": "mail", "arguments": '{"to":"x"}'}}],
                    }
                ]
            )
        }
    )
    assert asked.parts == [Part("tool_call", '{"to":"x"}', "mail")]
    [told] = messages_of({"messages": [{"role": "tool", "tool_call_id": "c", "content": "sent"}]})
    assert (told.role, told.parts) == ("tool", [Part("tool_result", "sent")])
    [flat] = messages_of(
        {"gen_ai.completion.0.tool_calls.0.name": "mail", "gen_ai.completion.0.tool_calls.0.arguments": "{}"}
    )
    assert flat.parts == [Part("tool_call", "{}", "mail")]


def test_media_and_long_base64_are_left_out_and_named() -> None:
    data = "iVBORw0KGgo" * 100
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": data}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "text", "text": f"inline {data} end"},
    ]
    [said] = messages_of({"messages": [{"role": "user", "content": parts}]})
    text, inline, jpeg, linked, within = said.parts
    assert text == Part("text", "look")
    assert (inline.type, inline.text, inline.name) == ("media", "", "image/png")
    assert inline.size >= len(data)
    assert (jpeg.name, jpeg.size) == ("image/jpeg", len(data))
    assert linked == Part("media", "https://example.com/a.png")
    assert within == Part("text", f"inline [{len(data)} characters of base64] end", "", len(data))


def test_text_that_only_looks_like_json_stays_text() -> None:
    [said] = messages_of({"prompt": "[cut off at the lim"})
    assert (said.role, said.parts) == ("user", [Part("text", "[cut off at the lim")])
    assert messages_of({"prompt": "", "model": "gpt-4o"}) == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "parts", "type", "text", "message", "messages", "tool_calls", "function"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
keys = st.sampled_from(
    ["messages", "prompt", "output", "gen_ai.input.messages", "gen_ai.prompt.0.content", "input.value"]
)


@given(st.dictionaries(keys, values | values.map(json.dumps), max_size=3))
def test_no_attributes_of_strangers_fail(attributes: dict[str, Any]) -> None:
    for said in messages_of(attributes):
        assert said.parts
        assert all(isinstance(part.text, str) and isinstance(part.name, str) for part in said.parts)
        assert isinstance(said.role, str)
