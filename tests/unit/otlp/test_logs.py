"""Log records with content or evaluations become annotations of their spans; all others are counted."""

from __future__ import annotations

import json
from typing import Any

from kit.otlp_fixtures import FOLDER
from tokentrace.dialect.otlp import OtlpLog, map_logs
from tokentrace.dialect.otlp.json_wire import decode_logs
from tokentrace.records import MAX_VALUE_BYTES, check_attributes


def captured(name: str) -> list[OtlpLog]:
    return decode_logs((FOLDER / f"{name}.logs.json").read_bytes())


def make_log(event: str, body: Any = None, **attributes: Any) -> OtlpLog:
    return OtlpLog(f"{1:032x}", f"{2:016x}", event, 0, attributes, body, "app", {})


def test_an_event_for_each_message_makes_one_input_and_one_output_a_span() -> None:
    mapped = map_logs(captured("otel-openai-v2/openai.tools"))
    assert [annotation.span_id for annotation in mapped.annotations] == [f"{1:016x}", f"{2:016x}"]
    assert mapped.ignored == 0
    asked = json.loads(mapped.annotations[1].attributes["input"])
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "tool"]
    assert asked[1]["content"] == "How is the weather in Paris?"
    answered = json.loads(mapped.annotations[1].attributes["output"])
    assert answered[0]["message"]["content"] == "It is sunny in Paris."


def test_an_event_with_all_details_gives_content_and_no_usage() -> None:
    (annotation,) = map_logs(captured("otel-genai/openai.chat")).annotations
    assert set(annotation.attributes) <= {"input", "output", "instructions"}
    assert "How is the weather in Paris?" in annotation.attributes["input"]


def test_an_evaluation_is_a_score_from_0_to_1_and_else_a_number() -> None:
    mapped = map_logs(captured("semconv/evaluation_event"))
    # The second one names a response and no span.
    assert mapped.ignored == 1
    assert [annotation.attributes for annotation in mapped.annotations] == [
        {
            "eval.Relevance": 0.9,
            "evaluation.Relevance.label": "relevant",
            "evaluation.Relevance.content": "Answers the question.",
        }
    ]
    event = "gen_ai.evaluation.result"
    high = make_log(event, **{"gen_ai.evaluation.name": "Help fulness", "gen_ai.evaluation.score.value": 4.0})
    assert map_logs([high]).annotations[0].attributes == {"evaluation.Help_fulness": 4.0}


def test_other_log_records_are_counted() -> None:
    mapped = map_logs(
        [
            make_log("claude_code.api_request", cost_usd=1.0),
            make_log(""),
            make_log("gen_ai.choice")._replace(span_id=""),
        ]
    )
    assert mapped == ([], 3)


def test_the_name_of_an_event_may_be_an_attribute() -> None:
    log = make_log("", {"content": "hello"}, **{"event.name": "gen_ai.user.message"})
    assert json.loads(map_logs([log]).annotations[0].attributes["input"]) == [{"role": "user", "content": "hello"}]


def test_a_long_message_is_cut() -> None:
    (annotation,) = map_logs([make_log("gen_ai.user.message", {"content": "word " * 20_000})]).annotations
    assert len(annotation.attributes["input"].encode()) <= MAX_VALUE_BYTES
    check_attributes(annotation.attributes)
