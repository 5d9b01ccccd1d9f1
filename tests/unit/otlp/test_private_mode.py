"""In the mode ``metadata_only`` no captured span keeps what was sent or answered, and facts stay."""

from __future__ import annotations

import msgspec
import pytest

from kit.otlp_fixtures import CONTENT, FOLDER, Fixture, fixtures
from tokentrace.dialect.otlp import map_logs, map_spans
from tokentrace.dialect.otlp.json_wire import decode_logs, decode_traces
from tokentrace.redact import Redactor

PRIVATE = Redactor(mode="metadata_only")
CONTENT_KEYS = frozenset(
    {
        "input",
        "output",
        "instructions",
        "tool.arguments",
        "tool.result",
        "tool.definitions",
        "prompt.template",
        "prompt.variables",
        "raw.content",
    }
)
#: Facts that sound like content, which this mode drops as well.
ALSO_DROPPED = frozenset(
    {
        "ai.prompt.toolChoice",
        "ai.request.headers.user-agent",
        "gen_ai.output.type",
        "gen_ai.request.encoding_formats",
        "gen_ai.request.service_tier",
    }
)


@pytest.mark.parametrize("fixture", fixtures(), ids=lambda fixture: fixture.name)
def test_no_prompt_is_left_of_a_captured_span_and_no_fact_is_lost(fixture: Fixture) -> None:
    for span in map_spans(decode_traces(fixture.body)).spans:
        private = PRIVATE.span(span)
        shown = msgspec.json.encode(private).decode()
        assert [text for text in CONTENT if text in shown] == []
        gone = {key for key, value in span.attributes.items() if private.attributes[key] != value}
        assert gone <= CONTENT_KEYS | ALSO_DROPPED
        kept = msgspec.structs.replace(
            private, attributes=span.attributes, error=span.error, error_stack=span.error_stack
        )
        assert kept == span


def test_the_captured_spans_hold_every_text_that_is_looked_for() -> None:
    shown = "".join(msgspec.json.encode(map_spans(decode_traces(f.body)).spans).decode() for f in fixtures())
    assert [text for text in CONTENT if text not in shown] == []


@pytest.mark.parametrize("name", ["otel-genai/openai.chat", "otel-openai-v2/openai.tools", "semconv/evaluation_event"])
def test_no_prompt_is_left_of_captured_log_records(name: str) -> None:
    mapped = map_logs(decode_logs((FOLDER / f"{name}.logs.json").read_bytes()))
    assert mapped.annotations
    for annotation in mapped.annotations:
        shown = msgspec.json.encode(PRIVATE.annotation(annotation)).decode()
        assert [text for text in (*CONTENT, "Answers the question") if text in shown] == []
