"""Claude Code: short names that only its own spans may claim; its input leaves out cached tokens."""

from __future__ import annotations

from tokentrace.dialect.otlp import values
from tokentrace.dialect.otlp.family import Family, KindRule
from tokentrace.dialect.otlp.ladders import Ladders, table_of
from tokentrace.dialect.otlp.plan import Plans
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Kind

_TYPES: dict[str, Kind] = {"llm_request": "llm", "tool": "tool", "interaction": "agent"}
_OWN: Ladders = {
    "model": (values.text, ("model",)),
    "I": (values.count, ("input_tokens",)),
    "O": (values.count, ("output_tokens",)),
    "R": (values.count, ("cache_read_tokens",)),
    "W": (values.count, ("cache_creation_tokens",)),
    "ttft_ms": (values.number, ("ttft_ms",)),
    "finish": (values.first_word, ("stop_reason",)),
    "tool": (values.text, ("tool_name",)),
    "tool_call_id": (values.text, ("tool_use_id",)),
    "arguments": (values.content, ("tool_arguments", "tool_input", "tool_parameters")),
    "result": (values.content, ("tool_response", "tool_result")),
    "input": (values.content, ("user_prompt", "prompt")),
    "type": (values.text, ("span.type",)),
}


def _kind_of(view: View) -> KindRule:
    return KindRule(_TYPES.get(view.get("type"), "custom"), "span.type")


def _inside(view: View, kind: str) -> None:
    view.add("provider", "anthropic", "name")


def _excludes_cached(_view: View, _provider: str) -> bool:
    return True


CLAUDE_CODE = Family(
    "claude_code",
    Plans(table_of(_OWN, renamed={"request_id": "anthropic.request_id"})),
    _kind_of,
    excludes_cached=_excludes_cached,
    inside=_inside,
)
