"""
The names under which emitters tell the same fact, as data: the first name of a ladder that is present wins.

How it works. ``table_of`` turns ladders into one table from a name to its places. A span is read by one pass over its
own attributes with this table, not by asking for every name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokentrace.dialect.otlp import values

Read = Callable[[Any], Any]
#: Slot -> (how a value is read, the names in order).
Ladders = Mapping[str, tuple[Read, tuple[str, ...]]]


class Place(NamedTuple):
    """
    What a name tells.

    Attributes:
        slot: The fact.
        rank: The place of the name in the ladder of the fact; the lowest one wins.
        read: Returns the value as the fact needs it; None = it tells nothing.
    """

    slot: str
    rank: int
    read: Read


class Entry(NamedTuple):
    """
    What is done with an attribute.

    Attributes:
        places: The facts that it may tell.
        key: The key under which it also stays an attribute of the record; "" = it does not.
    """

    places: tuple[Place, ...]
    key: str = ""


Table = Mapping[str, Entry]

#: Facts of every span. The attribute itself is not kept, because a field or an own key has its value.
COMMON: Ladders = {
    "model": (
        values.text,
        (
            "langfuse.observation.model.name",
            "gen_ai.response.model",
            "llm.response.model_name",
            "llm.model_name",
            "embedding.model_name",
            "ai.response.model",
            "gen_ai.request.model",
            "ai.model.id",
        ),
    ),
    "requested_model": (values.text, ("gen_ai.request.model", "llm.request.model_name", "ai.model.id")),
    "provider": (
        values.text,
        (
            "gen_ai.provider.name",
            "gen_ai.system",
            "llm.provider",
            "llm.system",
            "ai.model.provider",
            "error.llm_provider",
        ),
    ),
    "provider_model": (values.text, ("litellm.provider.model",)),
    "session": (
        values.id_text,
        (
            "session.id",
            "gen_ai.conversation.id",
            "langfuse.session.id",
            "traceloop.association.properties.session_id",
            "ai.telemetry.metadata.sessionId",
        ),
    ),
    "user": (
        values.id_text,
        (
            "user.id",
            "enduser.id",
            "langfuse.user.id",
            "traceloop.association.properties.user_id",
            "ai.telemetry.metadata.userId",
            "llm.user",
            "gen_ai.request.user",
        ),
    ),
    "response_id": (values.unquoted, ("gen_ai.response.id", "ai.response.id", "langfuse.observation.metadata.id")),
    "finish": (
        values.first_word,
        (
            "gen_ai.response.finish_reasons",
            "llm.finish_reason",
            "ai.response.finishReason",
            "anthropic.message.stop_reason",
            "langfuse.observation.metadata.finish_reason",
        ),
    ),
    "service_tier": (
        values.text,
        (
            "openai.response.service_tier",
            "gen_ai.openai.response.service_tier",
            "anthropic.response.service_tier",
        ),
    ),
    "tags": (values.tags, ("tag.tags", "langfuse.trace.tags", "ai.telemetry.metadata.tags")),
    "tool": (values.text, ("gen_ai.tool.name", "tool.name", "ai.toolCall.name")),
    "tool_call_id": (values.text, ("gen_ai.tool.call.id", "ai.toolCall.id", "tool.id")),
    "stack": (values.text, ("error.stack_trace",)),
    "message": (values.text, ("error.message", "langfuse.observation.status_message")),
    # Cost in dollars. The second ladder counts only if the call cannot be priced: OpenLIT has prices of its own.
    "cost": (values.number, ("gen_ai.cost.total_cost", "operation.cost", "llm.cost.total")),
    "weak_cost": (values.number, ("gen_ai.usage.cost", "gen_ai.usage.total_cost")),
    "langfuse_costs": (values.present, ("langfuse.observation.cost_details",)),
    # Content.
    "arguments": (
        values.content,
        (
            "gen_ai.tool.call.arguments",
            "gen_ai.tool.args",
            "ai.toolCall.args",
            "traceloop.entity.input",
            "langfuse.observation.input",
            "input.value",
        ),
    ),
    "result": (
        values.content,
        (
            "gen_ai.tool.call.result",
            "ai.toolCall.result",
            "traceloop.entity.output",
            "langfuse.observation.output",
            "output.value",
        ),
    ),
    "input": (
        values.content,
        (
            "gen_ai.input.messages",
            "llm.input_messages.*",
            "gen_ai.prompt.*",
            "gen_ai.prompt",
            "ai.prompt.messages",
            "ai.prompt",
            "langfuse.observation.input",
            "input.value",
            "traceloop.entity.input",
            "pydantic_ai.all_messages",
            "all_messages_events",
            "ai.values",
            "ai.value",
            "embedding.embeddings.*",
            "reranker.input_documents.*",
        ),
    ),
    "output": (
        values.content,
        (
            "gen_ai.output.messages",
            "llm.output_messages.*",
            "gen_ai.completion.*",
            "gen_ai.completion",
            "ai.response.text",
            "ai.response.object",
            "ai.response.toolCalls",
            "langfuse.observation.output",
            "output.value",
            "traceloop.entity.output",
            "retrieval.documents.*",
            "reranker.output_documents.*",
            "gen_ai.retrieval.documents",
        ),
    ),
    "instructions": (values.content, ("gen_ai.system_instructions",)),
    "evaluations": (values.content, ("annotations.*",)),
    "more_evaluations": (values.content, ("evaluations.*",)),
    "definitions": (
        values.content,
        (
            "gen_ai.tool.definitions",
            "ai.prompt.tools",
            "llm.tools.*",
            "llm.request.functions.*",
            "tool.parameters",
            "gen_ai.tool.description",
            "tool.description",
        ),
    ),
    "template": (values.content, ("llm.prompt_template.template",)),
    "template_variables": (values.content, ("llm.prompt_template.variables",)),
    # Tokens: input, output, total, cache reads, cache writes, those kept for an hour, reasoning, uncached input.
    "I": (
        values.count,
        (
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.prompt_tokens",
            "llm.token_count.prompt",
            "ai.usage.inputTokens",
            "ai.usage.promptTokens",
            "ai.usage.tokens",
        ),
    ),
    "O": (
        values.count,
        (
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.completion_tokens",
            "llm.token_count.completion",
            "ai.usage.outputTokens",
            "ai.usage.completionTokens",
        ),
    ),
    "T": (
        values.count,
        ("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total", "ai.usage.totalTokens"),
    ),
    "R": (
        values.count,
        (
            "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.cache_read_input_tokens",
            "gen_ai.usage.details.cache_read_tokens",
            "gen_ai.usage.details.cache_read_input_tokens",
            "gen_ai.usage.details.cached_tokens",
            "gen_ai.usage.input_tokens.cached",
            "llm.token_count.prompt_details.cache_read",
            "ai.usage.inputTokenDetails.cacheReadTokens",
            "ai.usage.cachedInputTokens",
        ),
    ),
    "W": (
        values.count,
        (
            "gen_ai.usage.cache_write.input_tokens",
            "gen_ai.usage.cache_creation.input_tokens",
            "gen_ai.usage.cache_creation_input_tokens",
            "gen_ai.usage.details.cache_write_tokens",
            "gen_ai.usage.details.cache_creation_input_tokens",
            "gen_ai.usage.input_tokens.cache_write",
            "llm.token_count.prompt_details.cache_write",
            "ai.usage.inputTokenDetails.cacheWriteTokens",
        ),
    ),
    "H": (
        values.count,
        (
            "anthropic.usage.cache_creation.ephemeral_1h_input_tokens",
            "gen_ai.usage.details.ephemeral_1h_input_tokens",
        ),
    ),
    "G": (
        values.count,
        (
            "gen_ai.usage.reasoning.output_tokens",
            "gen_ai.usage.reasoning_tokens",
            "gen_ai.usage.details.reasoning_tokens",
            "gen_ai.usage.output_tokens.reasoning",
            "llm.token_count.completion_details.reasoning",
            "ai.usage.outputTokenDetails.reasoningTokens",
            "ai.usage.reasoningTokens",
            "llm.usage.reasoning_tokens",
        ),
    ),
    "N": (values.count, ("ai.usage.inputTokenDetails.noCacheTokens",)),
    "compacted_input": (values.count, ("anthropic.usage.compaction.input_tokens",)),
    "compacted_output": (values.count, ("anthropic.usage.compaction.output_tokens",)),
    # Parts by modality; they are included in the numbers above.
    "input_audio_tokens": (
        values.count,
        ("gen_ai.usage.audio.input_tokens", "llm.token_count.prompt_details.audio", "gen_ai.usage.input_audio_tokens"),
    ),
    "output_audio_tokens": (
        values.count,
        (
            "gen_ai.usage.audio.output_tokens",
            "llm.token_count.completion_details.audio",
            "gen_ai.usage.output_audio_tokens",
        ),
    ),
    "input_image_tokens": (values.count, ("gen_ai.usage.image.input_tokens",)),
    "output_image_tokens": (values.count, ("gen_ai.usage.image.output_tokens",)),
    "cache_audio_read_tokens": (values.count, ("gen_ai.usage.audio.cache_read.input_tokens",)),
    "cache_image_read_tokens": (values.count, ("gen_ai.usage.image.cache_read.input_tokens",)),
    # The provider's own usage object.
    "langfuse_usage": (values.present, ("langfuse.observation.usage_details",)),
    "raw_usage": (values.present, ("gen_ai.usage.raw",)),
    "litellm_usage": (values.present, ("metadata.usage_object",)),
    "provider_metadata": (values.present, ("ai.response.providerMetadata",)),
    # Time to the first token; the docstring of ``ttft`` has the units.
    "ttft_chunk": (values.number, ("gen_ai.response.time_to_first_chunk",)),
    "ttft_client": (values.number, ("gen_ai.client.operation.time_to_first_chunk",)),
    "ttft_start": (values.unquoted, ("langfuse.observation.completion_start_time",)),
    "ttft_ms_chunk": (values.number, ("ai.response.msToFirstChunk",)),
    "ttft_server": (values.number, ("gen_ai.server.time_to_first_token",)),
    "request_type": (values.text, ("llm.request.type",)),
    "logfire_type": (values.text, ("logfire.span_type",)),
    # What an agent's span says of all its calls together.
    "rollup_input": (values.count, ("gen_ai.aggregated_usage.input_tokens",)),
    "rollup_output": (values.count, ("gen_ai.aggregated_usage.output_tokens",)),
    # JSON objects that are read only if they are needed.
    "metadata": (values.present, ("metadata",)),
    "parameters": (
        values.present,
        ("llm.invocation_parameters", "embedding.invocation_parameters", "langfuse.observation.model.parameters"),
    ),
    "raw_output": (values.text, ("output.value",)),
}

#: Facts whose attribute is kept as well.
KEPT: Ladders = {
    "langfuse_type": (values.text, ("langfuse.observation.type",)),
    "openinference_kind": (values.text, ("openinference.span.kind",)),
    "vercel_operation": (values.text, ("ai.operationId",)),
    "traceloop_kind": (values.text, ("traceloop.span.kind",)),
    "operation": (values.text, ("gen_ai.operation.name",)),
    "entity": (values.text, ("traceloop.entity.name",)),
    "http": (values.text, ("http.request.method", "http.method")),
    "database": (values.text, ("db.system.name", "db.system")),
    "http_status": (values.text_or_number, ("http.response.status_code", "http.status_code")),
    "error_type": (values.text, ("error.type",)),
    "error_code": (values.text_or_number, ("error.code",)),
    "stream": (values.flag, ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming")),
    "host": (values.text, ("server.address",)),
    "api_base": (values.text, ("gen_ai.openai.api_base",)),
    "cache_hit": (values.flag, ("litellm.cache_hit",)),
}

#: Names of kept attributes -> the key of the record. A record that may hold no content loses texts under names with
#: words such as ``request`` and ``response``, and these are no content.
RENAMED: dict[str, str] = {
    "anthropic.request.id": "anthropic.request_id",
    "gen_ai.openai.response.system_fingerprint": "system_fingerprint",
    "http.request.method": "http.method",
    "openai.response.system_fingerprint": "system_fingerprint",
}

#: What a record does not need: it describes the emitter, repeats a fact in another form, or is a large vector.
IGNORED: tuple[str, ...] = (
    "ai.embedding",
    "ai.embeddings",
    "ai.response.avgOutputTokensPerSecond",
    "ai.response.msToFinish",
    "ai.response.timestamp",
    "gen_ai.client.operation.duration",
    "gen_ai.client.operation.time_per_output_chunk",
    "gen_ai.client.token.usage",
    "gen_ai.server.time_per_output_token",
    "gen_ai.cost.cache_creation_cost",
    "gen_ai.cost.cache_read_cost",
    "gen_ai.cost.input_cost",
    "gen_ai.cost.original_cost",
    "gen_ai.cost.output_cost",
    "gen_ai.cost.reasoning_cost",
    "gen_ai.cost.tool_usage_cost",
    "input.mime_type",
    "output.mime_type",
    "langfuse.internal.is_app_root",
    "logfire.json_schema",
    "logfire.level_num",
    "logfire.msg",
    "logfire.msg_template",
    "openlit.agent.version_hash",
    "operation.name",
    "resource.name",
    "service.name",
    "telemetry.sdk.name",
    "ai.usage.outputTokenDetails.textTokens",
)

#: Beginnings of names that say nothing that a record needs, unless a ladder has the whole name.
IGNORED_FAMILIES: tuple[str, ...] = ("gen_ai.aggregated_usage.", "gen_ai.usage.details.")

#: Beginnings of names of which each has a number: ``gen_ai.prompt.0.content``. Each family is one fact, its table.
NUMBERED: tuple[str, ...] = (
    "llm.input_messages.",
    "llm.output_messages.",
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.tools.",
    "llm.request.functions.",
    "embedding.embeddings.",
    "retrieval.documents.",
    "reranker.input_documents.",
    "reranker.output_documents.",
    "annotations.",
    "evaluations.",
)

#: Beginnings of names that an application chose: ``ai.telemetry.metadata.plan`` is ``plan``.
CUSTOM: tuple[str, ...] = (
    "ai.telemetry.metadata.",
    "langfuse.trace.metadata.",
    "langfuse.observation.metadata.",
    "traceloop.association.properties.",
)

#: Own keys that an emitter's attribute must not forge; those of content are not among them, because what an emitter
#: puts there is content.
OWN_KEYS = frozenset(
    {
        "anthropic.request_id",
        "cost.reported_usd",
        "duplicate_of",
        "incomplete",
        "rollup.completion_tokens",
        "rollup.cost_nusd",
        "rollup.prompt_tokens",
        "tokens.note",
        "tokens.rule",
        "ttft.source",
    }
)


def table_of(*ladders: Ladders, ignored: tuple[str, ...] = (), renamed: Mapping[str, str] = {}) -> Table:
    """
    Return name -> what is done with it, for the ladders of all families and *ladders*.

    Args:
        ladders: The family's own; a ladder continues that of the same fact.
        ignored: Names that say nothing more in this family.
        renamed: More names of kept attributes -> the key of the record.
    """
    table: dict[str, list[Place]] = {name: [] for name in (*IGNORED, *ignored, *RENAMED, *renamed)}
    lengths: dict[str, int] = {}
    for ladder in (COMMON, KEPT, *ladders):
        for slot, (read, names) in ladder.items():
            for name in names:
                rank = lengths[slot] = lengths.get(slot, -1) + 1
                table.setdefault(name, []).append(Place(slot, rank, read))
    kept = {name: name for _, names in KEPT.values() for name in names} | RENAMED | dict(renamed)
    return {name: Entry(tuple(places), kept.get(name, "")) for name, places in table.items()}
