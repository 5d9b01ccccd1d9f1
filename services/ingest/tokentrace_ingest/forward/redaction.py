"""
Removal of secrets from requests of OTLP that are sent on to other backends.

How it works. Each text and each attribute is redacted with the settings for records. In the mode ``metadata_only`` a
record keeps its content under a few own keys, which are emptied. A request has the names of its emitter, so there the
rule is the reverse: a text under a name of a library for models stays only if the name is known to be a fact. Names of
other kinds, such as ``plan``, follow the rule for attributes of records. Numbers stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Literal

from google.protobuf.descriptor import FieldDescriptor

from tokentrace.dialect.otlp import own_names, values
from tokentrace.dialect.otlp.ladders import COMMON, CUSTOM, KEPT
from tokentrace.redact import DROPPED, REDACTED, RedactionCounts, Redactor

Rule = Literal["fact", "content", "other"]

#: Facts of ``ladders`` whose value is content, or an object that may hold some.
_CONTENT_SLOTS = frozenset(
    {
        *("arguments", "result", "input", "output", "instructions", "definitions", "template", "template_variables"),
        *("message", "stack", "metadata", "parameters", "raw", "raw_output", "provider_metadata"),
    }
)
#: Names that libraries for models begin with: an unknown text under one is taken for content.
_LIBRARIES = (
    *("gen_ai.", "llm.", "ai.", "langfuse.", "traceloop.", "openinference.", "logfire.", "pydantic_ai.", "litellm."),
    *("input.", "output.", "tool.", "tool_", "retrieval.", "reranker.", "embedding.", "openai.", "anthropic."),
    *("metadata.", "annotations.", "evaluations.", "hidden_params", "mcp.", "crewai.", "langgraph.", "openlit."),
)
#: Texts of libraries that are no content and no fact of a record.
_MORE_FACTS = frozenset(
    {
        *("error.type", "error.code", "exception.type", "event.name", "span.type", "tool_name", "tool_use_id"),
        *("gen_ai.agent.id", "gen_ai.agent.name", "gen_ai.output.type", "gen_ai.tool.type", "gen_ai.token.type"),
        *("gen_ai.data_source.id", "gen_ai.evaluation.name", "gen_ai.evaluation.score.label"),
        *("gen_ai.request.encoding_formats", "gen_ai.request.reasoning.level", "gen_ai.prompt.name"),
        *("input.mime_type", "output.mime_type", "openai.api.type", "traceloop.workflow.name", "request_id"),
        *("anthropic.request.id", "openai.response.system_fingerprint", "stop_reason", "model"),
        *("ai.telemetry.functionId", "langfuse.environment", "langfuse.release", "langfuse.observation.level"),
        *("gen_ai.agent.call.id", "litellm.call_id", "ai.response.timestamp", "openlit.agent.version_hash"),
        *("anthropic.organization.id", "gen_ai.openai.response.system_fingerprint"),
        *(own_names.PREFIX + field for field in (*own_names.FIELDS, "kind", "status", "provider", "caller")),
        *(own_names.PREFIX + field for field in ("trace_id", "span_id", "parent_span_id")),
    }
)
#: Names of other libraries that hold content.
_MORE_CONTENT = frozenset(
    {
        *("user_prompt", "request_data", "response_data", "final_result", "all_messages_events", "tool_arguments"),
        *("tool_response", "tool_input", "tool_parameters", "tool_result", "exception.message"),
        *("exception.stacktrace", "error.message", "error.stack_trace", "tokentrace.error", own_names.RENAMED),
    }
)
_FACTS = _MORE_FACTS | {
    name
    for ladders in (COMMON, KEPT)
    for slot, (_, names) in ladders.items()
    if slot not in _CONTENT_SLOTS
    for name in names
}
_CONTENT = _MORE_CONTENT | {name for slot in _CONTENT_SLOTS & COMMON.keys() for name in COMMON[slot][1]}
#: Beginnings of names whose rest an application chose.
_CHOSEN = (*CUSTOM, own_names.ATTRIBUTE)
#: Objects in JSON with counts that no other attribute has, beside texts of the provider.
_WITH_COUNTS = frozenset(COMMON["provider_metadata"][1])
_USERS = frozenset(COMMON["user"][1])
#: Fields of messages that are no text of a person: they are W3C's, or name a schema.
_TECHNICAL = frozenset({"trace_state", "schema_url", "unit"})


@lru_cache(20_000)
def rule_of(name: str) -> Rule:
    """Return what a text under the attribute *name* is: a fact, content, or what the rule for records says."""
    if name in _CONTENT:
        return "content"
    if name in _FACTS:
        return "fact"
    if name.startswith(_CHOSEN):
        return "other"
    return "content" if name.startswith(_LIBRARIES) else "other"


def _own_part(name: str) -> str:
    """Return the part of *name* that an application chose."""
    return next((name[len(prefix) :] for prefix in _CHOSEN if name.startswith(prefix)), name)


def _numbers_in(text: str) -> str:
    """Return an object in JSON with every text in it emptied; "" if *text* is none."""
    found = values.mapping(text)
    return values.encoded(_emptied(found)) if found else ""


def _emptied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _emptied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_emptied(item) for item in value]
    return "" if isinstance(value, str) else value


def redact_request(request: Any, redactor: Redactor, redactions: RedactionCounts) -> None:
    """
    Remove secrets from *request*, a message of ``dialect.otlp.messages``, in place.

    Fields that this version of OTLP does not know are removed, because nothing can be said about them.

    Args:
        redactions: Counts of removed secrets by kind are added to it.
    """
    request.DiscardUnknownFields()
    _Walk(redactor, redactions).message(request, within=request.DESCRIPTOR.name)


class _Walk:
    def __init__(self, redactor: Redactor, redactions: RedactionCounts) -> None:
        self._redactor, self._redactions = redactor, redactions
        self._drops = redactor.drops_content

    def message(self, message: Any, *, within: str) -> None:
        """Redact the fields of *message*; *within* is the name of the message that holds its attributes."""
        name = message.DESCRIPTOR.name
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_STRING:
                self._text_field(message, field, value)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                if not field.is_repeated:
                    if field.message_type.name == "AnyValue":
                        self._value("body", value, drop=self._drops)
                    else:
                        self.message(value, within=name)
                elif field.message_type.name == "KeyValue":
                    self.pairs(value, strict=self._drops and name in ("Event", "LogRecord"))
                else:
                    for item in value:
                        self.message(item, within=name)

    def _text_field(self, message: Any, field: FieldDescriptor, value: Any) -> None:
        if field.name in _TECHNICAL:
            return
        if field.is_repeated:
            value[:] = [self._redactor.text(item, self._redactions) for item in list(value)]
            return
        if self._drops and message.DESCRIPTOR.name == "Status":
            self._note(DROPPED)
            message.ClearField(field.name)
            return
        clean = self._redactor.text(value, self._redactions)
        if clean is not value:
            setattr(message, field.name, clean)

    def pairs(self, pairs: Iterable[Any], *, strict: bool = False, drop: bool = False) -> None:
        """
        Redact attributes.

        Args:
            strict: True = texts stay only under names that are known to be facts, because they are those of an event.
            drop: True = they are a part of content.
        """
        for pair in pairs:
            key = self._redactor.text(pair.key, self._redactions)
            if key is not pair.key:
                pair.key = key
            content = drop or (self._drops and self._is_content(key, strict=strict))
            self._value(key, pair.value, drop=content)

    def _is_content(self, key: str, *, strict: bool) -> bool:
        rule = rule_of(key)
        if rule == "other":
            return strict or self._redactor.is_content(_own_part(key))
        return rule == "content"

    def _value(self, key: str, value: Any, *, drop: bool) -> None:
        which = value.WhichOneof("value")
        if which == "string_value":
            self._string(key, value, drop=drop)
        elif which == "bytes_value":
            self._bytes(key, value, drop=drop)
        elif which == "array_value":
            for item in value.array_value.values:
                self._value(key, item, drop=drop)
        elif which == "kvlist_value":
            if self._redactor.is_sensitive(key):
                self._note("key_value")
                value.string_value = REDACTED
            else:
                self.pairs(value.kvlist_value.values, drop=drop)
        elif which in ("int_value", "double_value"):
            number = getattr(value, which)
            clean = self._redactor.value(_own_part(key), number, self._redactions)
            if clean is not number:
                value.string_value = str(clean)

    def _string(self, key: str, value: Any, *, drop: bool) -> None:
        text = value.string_value
        if not text or text == REDACTED:
            return
        if self._redactor.is_sensitive(key):
            self._note("key_value")
            value.string_value = REDACTED
        elif drop:
            self._note(DROPPED)
            value.string_value = _numbers_in(text) if key in _WITH_COUNTS else ""
        elif key in _USERS:
            # The user of a record is hashed, or stays as it is.
            value.string_value = self._redactor.user_id(text, self._redactions)
        elif self._redactor.hashes(_own_part(key)):
            value.string_value = self._redactor.value(_own_part(key), text, self._redactions)
        else:
            clean = self._redactor.text(text, self._redactions)
            if clean is not text:
                value.string_value = clean

    def _bytes(self, key: str, value: Any, *, drop: bool) -> None:
        if drop or self._redactor.is_sensitive(key):
            self._note(DROPPED if drop else "key_value")
            value.string_value = REDACTED
            return
        try:
            text = value.bytes_value.decode()
        except UnicodeDecodeError:
            return
        clean = self._redactor.text(text, self._redactions)
        if clean != text:
            value.string_value = clean

    def _note(self, kind: str) -> None:
        self._redactions[kind] = self._redactions.get(kind, 0) + 1
