"""
The names of the attributes of a record that is sent on by OTLP, for the module that writes them and the one that reads
them.

A value that OpenTelemetry's conventions for generative AI have a name for is sent under that name. Everything else that
a record says has a name that begins with ``tokentrace.``.
"""

from __future__ import annotations

from collections.abc import Mapping

#: The instrumentation scope of records.
SCOPE = "tokentrace"
PREFIX = "tokentrace."
#: An attribute of a record whose name is in ``CONVENTIONS`` or begins with ``PREFIX`` is sent under this beginning.
ATTRIBUTE = "tokentrace.attribute."
#: Name -> key of the attributes with content that are sent under a name of the conventions instead of their key.
RENAMED = "tokentrace.renamed"
#: Amounts of units that the conventions have no name for: ``tokentrace.usage.web_searches``.
USAGE = "tokentrace.usage."
#: ``Span.pricing_context`` by key.
CONTEXT = "tokentrace.pricing_context."
#: Resource attribute with the ids of the pipelines that have sent a span on.
VIA = "tokentrace.via"

REQUEST_MODEL, RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
PROVIDER = "gen_ai.provider.name"
#: Our name of a provider -> that of the conventions, if they differ.
PROVIDERS: Mapping[str, str] = {
    "aws": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "moonshotai": "moonshot_ai",
    "x-ai": "x_ai",
}
#: Field of ``Span`` -> its name. A roll-up has ``PREFIX`` and the field instead, because its tokens repeat those of the
#: calls below it, and a receiver may add up whatever has these names.
TOKENS: Mapping[str, str] = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_write.input_tokens",
    "cache_write_1h_tokens": "anthropic.usage.cache_creation.ephemeral_1h_input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
}
#: Unit in ``Span.usage`` -> its name; these are parts of the tokens.
MODALITIES: Mapping[str, str] = {
    "input_text_tokens": "gen_ai.usage.text.input_tokens",
    "input_audio_tokens": "gen_ai.usage.audio.input_tokens",
    "input_image_tokens": "gen_ai.usage.image.input_tokens",
    "output_text_tokens": "gen_ai.usage.text.output_tokens",
    "output_audio_tokens": "gen_ai.usage.audio.output_tokens",
    "output_image_tokens": "gen_ai.usage.image.output_tokens",
    "cache_text_read_tokens": "gen_ai.usage.text.cache_read.input_tokens",
    "cache_audio_read_tokens": "gen_ai.usage.audio.cache_read.input_tokens",
    "cache_image_read_tokens": "gen_ai.usage.image.cache_read.input_tokens",
}
#: Field -> its name.
IDS: Mapping[str, str] = {
    "response_id": "gen_ai.response.id",
    "session_id": "session.id",
    "user_id": "user.id",
}
#: Fields that have ``PREFIX`` and their own name, if they are given.
FIELDS = (
    "ttft_ns",
    "cost_nusd",
    "score",
    "cost_source",
    "cost_model",
    "unpriced_reason",
    "usage_state",
    "scope",
    "source",
)
#: Key of an attribute with what was sent or answered -> its name.
CONTENT: Mapping[str, str] = {
    "instructions": "gen_ai.system_instructions",
    "tool.arguments": "gen_ai.tool.call.arguments",
    "tool.result": "gen_ai.tool.call.result",
    "tool.definitions": "gen_ai.tool.definitions",
}
#: Key of an attribute -> (its name if it is a list of messages in JSON, its name if it is another text).
MESSAGES: Mapping[str, tuple[str, str]] = {
    "input": ("gen_ai.input.messages", "input.value"),
    "output": ("gen_ai.output.messages", "output.value"),
}

OPERATION = "gen_ai.operation.name"
ERROR_TYPE = "error.type"
COSTS = ("gen_ai.usage.cost", "operation.cost")
#: Names that are written beside what is read, for receivers that know only the conventions. If a record has an
#: attribute of such a name, it is sent as it is, but for a cost: the cost of the record is right.
BESIDE = (
    OPERATION,
    ERROR_TYPE,
    "gen_ai.agent.name",
    "gen_ai.conversation.id",
    "gen_ai.request.stream",
    "gen_ai.response.finish_reasons",
    "gen_ai.response.time_to_first_chunk",
    "gen_ai.tool.call.id",
    "gen_ai.tool.name",
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.total_tokens",
)
#: Names that are not an attribute of the record when they are read.
CONVENTIONS = frozenset(
    {
        REQUEST_MODEL,
        RESPONSE_MODEL,
        PROVIDER,
        *TOKENS.values(),
        *MODALITIES.values(),
        *IDS.values(),
        *COSTS,
        *BESIDE,
    }
)
