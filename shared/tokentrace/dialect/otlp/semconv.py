"""OpenTelemetry's conventions for generative AI, and whatever follows no other rules: the official instrumentations,
the Anthropic SDK, OpenLIT, Vercel from version 7 on, and applications of their own."""

from __future__ import annotations

import re

from tokentrace.dialect.otlp.family import Family, KindRule
from tokentrace.dialect.otlp.ladders import table_of
from tokentrace.dialect.otlp.plan import Plans
from tokentrace.dialect.otlp.view import View
from tokentrace.records import Kind

_OPERATIONS: dict[str, Kind] = {
    "chat": "llm",
    "text_completion": "llm",
    "completion": "llm",
    "generate_content": "llm",
    "responses": "llm",
    "embeddings": "embedding",
    "embedding": "embedding",
    "execute_tool": "tool",
    "retrieval": "retrieval",
    "search_memory": "retrieval",
    "invoke_agent": "agent",
    "create_agent": "agent",
    "agent_step": "agent",
    "invoke_workflow": "workflow",
    "plan": "chain",
    "execute_task": "chain",
}
_REQUEST_TYPES: dict[str, Kind] = {
    "chat": "llm",
    "completion": "llm",
    "embedding": "embedding",
    "embeddings": "embedding",
}
_NAME = re.compile(r"(chat|text_completion|generate_content|embeddings|execute_tool|invoke_agent) (\S.*)")
#: Ends of the names of spans that name a model, and do not call it.
_NO_CALLS = ("count_tokens", "fetch_response")
#: Beginnings of the scopes of instrumentations for models: the name of their span tells what was called.
_SCOPES = (
    "openlit.",
    "openinference.",
    "opentelemetry.instrumentation.openai",
    "opentelemetry.instrumentation.anthropic",
    "opentelemetry.instrumentation.genai",
    "opentelemetry.instrumentation.google_gen",
    "opentelemetry.instrumentation.vertexai",
    "opentelemetry.instrumentation.bedrock",
    "opentelemetry.util.genai",
    "com.anthropic.",
    "pydantic-ai",
    "logfire.",
    "litellm",
    "gen_ai",
)


def kind_of(view: View) -> KindRule:
    """Return the kind of a span by the conventions; the first rule that fits."""
    facts, get = view.facts, view.get
    if view.span.name.endswith(_NO_CALLS):
        return KindRule("custom", "name")
    if operation := get("operation"):
        return KindRule(_OPERATIONS.get(operation, "custom"), "gen_ai.operation.name")
    if (request := get("request_type")) in _REQUEST_TYPES:
        return KindRule(_REQUEST_TYPES[request], "llm.request.type")
    if "pydantic_ai.all_messages" in view.span.attributes or view.span.name == "agent run":
        return KindRule("agent", "agent run")
    if "gen_ai.tool.name" in view.span.attributes:
        return KindRule("tool", "gen_ai.tool.name")
    if "model" in facts and not facts.keys().isdisjoint(("I", "O", "T")):
        return KindRule("llm", "model and usage")
    if (named := _NAME.fullmatch(view.span.name)) and view.span.scope.startswith(_SCOPES):
        return KindRule(
            _OPERATIONS[named[1]], "name", named[2] if named[1] not in ("execute_tool", "invoke_agent") else ""
        )
    if "http" in facts:
        return KindRule("http", "http.request.method", is_known=False)
    if "database" in facts:
        return KindRule("database", "db.system", is_known=False)
    return KindRule("custom", "", is_known=False)


PLANS = Plans(table_of())
#: In the JSON of messages; within a text of a message the quotes would be escaped.
_FINISH = re.compile(r'"finish_reason":\s*"([^"\\]*)"')
#: What OpenLIT sends as asked for when nothing was.
_INVENTED: dict[str, float] = {
    "gen_ai.request.seed": 0,
    "gen_ai.request.max_tokens": -1,
    "gen_ai.request.temperature": 1,
    "gen_ai.request.top_p": 1,
    "gen_ai.request.top_k": 1,
    "gen_ai.request.frequency_penalty": 0,
    "gen_ai.request.presence_penalty": 0,
}


def inside(view: View, kind: str) -> None:
    """Add why the call ended, if only the messages that were answered say it."""
    if kind == "llm" and "finish" not in view.facts and view.name("output") == "gen_ai.output.messages":
        words = _FINISH.findall(view.get("output"))
        view.add("finish", words[-1] if words else None, "gen_ai.output.messages")


def _inside_openlit(view: View, kind: str) -> None:
    inside(view, kind)
    # A failed call to Anthropic has no attributes.
    view.add("provider", view.span.scope.rpartition(".")[2], "scope")
    for name, value in _INVENTED.items():
        if view.free.get(name) == value:
            del view.free[name]


def _openlit_excludes(_view: View, provider: str) -> bool:
    return provider in ("anthropic", "aws")


SEMCONV = Family("semconv", PLANS, kind_of, inside=inside)
#: OpenLIT follows the conventions, but passes on the input of Anthropic as Anthropic counts it.
OPENLIT = SEMCONV._replace(excludes_cached=_openlit_excludes, inside=_inside_openlit)
