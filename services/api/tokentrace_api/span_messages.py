"""
The messages of a call, read from the attributes in which instrumentations keep them.

Known are the semantic conventions of OpenTelemetry (JSON, and the older attributes with a number for each message),
OpenInference, and the names that the AI SDK and hand-written code use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from tokentrace.bad_data import UNREADABLE

Direction = Literal["input", "output"]
PartType = Literal["text", "reasoning", "tool_call", "tool_result", "media", "other"]

#: Direction -> groups of attributes with all of its messages, the most exact group first; a group is read as a whole.
_GROUPS: Mapping[Direction, Sequence[tuple[str, ...]]] = {
    "input": (
        ("gen_ai.system_instructions", "gen_ai.input.messages"),
        ("ai.prompt.messages",),
        ("gen_ai.prompt",),
        ("input.value",),
        ("ai.prompt",),
        ("messages",),
        ("prompt",),
        ("input",),
    ),
    "output": (
        ("gen_ai.output.messages",),
        ("ai.response.text", "ai.response.toolCalls"),
        ("gen_ai.completion",),
        ("output.value",),
        ("completion",),
        ("response",),
        ("output",),
    ),
}
#: Direction -> the role of a message that names none.
_ROLES: Mapping[Direction, str] = {"input": "user", "output": "assistant"}
_SYSTEM = "gen_ai.system_instructions"
#: ``gen_ai.prompt.0.content``, ``llm.input_messages.0.message.content``: the number of the message, and what of it.
_NUMBERED = re.compile(
    r"(?P<group>gen_ai\.prompt|gen_ai\.completion|llm\.input_messages|llm\.output_messages)"
    r"\.(?P<number>[0-9]{1,6})\.(?:message\.)?(?P<field>.+)",
    re.DOTALL,
)
_OUTPUTS = ("gen_ai.completion", "llm.output_messages")
#: ``tool_calls.0.name``, ``tool_calls.0.tool_call.function.arguments``
_TOOL = re.compile(r"tool_calls\.(?P<number>[0-9]{1,4})\.(?:tool_call\.)?(?:function\.)?(?P<field>name|arguments)")
#: ``contents.0.message_content.text``
_CONTENT = re.compile(r"contents\.(?P<number>[0-9]{1,4})\.message_content\.(?P<field>.+)", re.DOTALL)
_REDACTED = re.compile(r"\[(?:[A-Z_]+_)?REDACTED\]")
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)")
#: So long a word of these letters is no text.
_BASE64 = re.compile(r"(?:data:[\w.+/;=-]{0,100}base64,)?[A-Za-z0-9+/_-]{512,}={0,2}")
_CALLS = ("tool_call", "tool-call", "tool_use", "function_call", "custom_tool_call")
_RESULTS = ("tool_call_response", "tool_result", "tool-result", "function_call_output")
_MEDIA = (
    "image",
    "image_url",
    "input_image",
    "audio",
    "input_audio",
    "video",
    "file",
    "input_file",
    "document",
    "blob",
)
_REASONING = ("reasoning", "thinking")
_TEXTS = ("content", "text", "reasoning", "thinking", "refusal", "output_text")


class Part(NamedTuple):
    """
    A part of a message.

    Attributes:
        text: Its text; of a call of a tool, its arguments; of media, their address or "".
        name: Name of the tool, or media type; "" = unknown.
        size: Number of characters of base64 that are left out.
    """

    type: PartType
    text: str
    name: str = ""
    size: int = 0


class Said(NamedTuple):
    """A message: who said it, its parts, and the attribute that holds it."""

    direction: Direction
    role: str
    parts: list[Part]
    source: str


def messages_of(attributes: Mapping[str, Any]) -> list[Said]:
    """Return the messages in *attributes*, the input first; of attributes that repeat each other, the most exact."""
    found: list[Said] = []
    numbered = list(_numbered(attributes))
    for direction, groups in _GROUPS.items():
        said = [message for message in numbered if message.direction == direction]
        for group in groups:
            if said:
                break
            for name in group:
                if name in attributes:
                    role = "system" if name == _SYSTEM else _ROLES[direction]
                    read = [Said(direction, *message, name) for message in _read(attributes[name], role)]
                    said += [message for message in read if message.parts]
        found += said
    return found


def redactions_in(parts: Sequence[Part]) -> int:
    """Return how many marks of removed text *parts* have."""
    return sum(len(_REDACTED.findall(part.text)) for part in parts)


def _read(value: Any, role: str) -> Iterator[tuple[str, list[Part]]]:
    """Yield (role, parts) of each message in *value*, which is text, JSON as text, or what JSON stands for."""
    if isinstance(value, str):
        if value.lstrip()[:1] in ("[", "{"):
            try:
                value = msgspec.json.decode(value)
            except UNREADABLE:
                # It only looks like JSON, or was cut.
                yield role, [text_part(value)]
                return
        else:
            yield role, [text_part(value)] if value else []
            return
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):
        value = value["messages"]
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, str) or (isinstance(item, Mapping) and _is_part(item)) for item in items):
        yield role, [_part(item) for item in items]
        return
    for item in items:
        yield _message(item, role)


def _is_part(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("type"), str) and not {"role", "parts", "message"} & item.keys()


def _message(item: Any, role: str) -> tuple[str, list[Part]]:
    if isinstance(item, Mapping) and isinstance(item.get("message"), Mapping):
        item = item["message"]
    if not isinstance(item, Mapping) or not {"role", "content", "parts", "tool_calls"} & item.keys():
        return role, [Part("other", *_without_base64(_json(item)))] if item not in (None, {}) else []
    given = item.get("parts", item.get("content"))
    parts = _parts(given)
    if item.get("tool_call_id"):
        parts = [part._replace(type="tool_result") if part.type == "text" else part for part in parts]
    if item.get("refusal"):
        parts.append(text_part(str(item["refusal"])))
    calls = item.get("tool_calls")
    parts += (
        [_part({"type": "tool_call", **call}) for call in calls if isinstance(call, Mapping)]
        if isinstance(calls, list)
        else []
    )
    said = item.get("role")
    return (said if isinstance(said, str) and said else role), parts


def _parts(given: Any) -> list[Part]:
    if given is None or given == "":
        return []
    return [_part(part) for part in given] if isinstance(given, list) else [_part(given)]


def _part(part: Any) -> Part:
    if not isinstance(part, Mapping):
        return text_part(part if isinstance(part, str) else _json(part))
    kind = part.get("type", "text")
    if kind in _CALLS or isinstance(part.get("function"), Mapping):
        function = part["function"] if isinstance(part.get("function"), Mapping) else part
        return _tool(function)
    if kind in _RESULTS:
        return Part("tool_result", *_without_base64(_as_text(_first(part, "response", "result", "output", "content"))))
    if kind in _MEDIA:
        return _media(part)
    held = _first(part, *_TEXTS)
    if held is None:
        return Part("other", *_without_base64(_json(part)))
    text = text_part(_as_text(held))
    return text._replace(type="reasoning") if kind in _REASONING else text


def _tool(function: Mapping[str, Any]) -> Part:
    arguments = _first(function, "arguments", "input", "args")
    text, _, size = _without_base64("" if arguments is None else _as_text(arguments))
    return Part("tool_call", text, str(_first(function, "name", "toolName") or ""), size)


def _media(part: Mapping[str, Any]) -> Part:
    """Return media without their content."""
    whole = _json(part)
    size = sum(len(found) for found in _BASE64.findall(whole))
    held = [part, *(value for value in part.values() if isinstance(value, Mapping))]
    media = next(
        (value for each in held if (value := _first(each, "mime_type", "media_type", "mediaType", "format"))), ""
    )
    uri = _DATA_URI.search(whole)
    addresses = [each.get(name) for each in held for name in ("url", "uri", "image_url")]
    address = next((each for each in addresses if isinstance(each, str) and not each.startswith("data:")), "")
    return Part("media", address, str(media or (uri[1] if uri else "")), size)


def _numbered(attributes: Mapping[str, Any]) -> Iterator[Said]:
    """Yield the messages of which each field has an attribute of its own."""
    messages: dict[tuple[str, int], dict[str, Any]] = {}
    for name, value in attributes.items():
        if match := _NUMBERED.fullmatch(name):
            messages.setdefault((match["group"], int(match["number"])), {})[match["field"]] = value
    for (group, number), fields in sorted(messages.items(), key=lambda item: item[0]):
        direction: Direction = "output" if group in _OUTPUTS else "input"
        contents: dict[int, dict[str, Any]] = {}
        calls: dict[int, dict[str, Any]] = {}
        for field, value in fields.items():
            if match := _TOOL.fullmatch(field):
                calls.setdefault(int(match["number"]), {})[match["field"]] = value
            elif match := _CONTENT.fullmatch(field):
                contents.setdefault(int(match["number"]), {})[match["field"]] = value
        role = fields.get("role")
        content = fields.get("content")
        parts = _parts(content)
        parts += [_part(contents[at]) for at in sorted(contents)]
        parts += [_tool(calls[at]) for at in sorted(calls)]
        if parts:
            said = role if isinstance(role, str) and role else _ROLES[direction]
            yield Said(direction, said, parts, f"{group}.{number}")


def _first(held: Mapping[str, Any], *names: str) -> Any:
    """Return the first of the values under *names* that is there and not null."""
    return next((held[name] for name in names if held.get(name) is not None), None)


def _as_text(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and _is_part(part) for part in value):
        return "\n".join(_part(part).text for part in value)
    return value if isinstance(value, str) else _json(value)


def text_part(text: str) -> Part:
    """Return *text* as a part of a message, without long runs of base64."""
    return Part("text", *_without_base64(text))


def _without_base64(text: str) -> tuple[str, str, int]:
    """Return (*text* with a note for each long run of base64; ""; number of characters left out)."""
    size = sum(len(found) for found in _BASE64.findall(text))
    if not size:
        return text, "", 0
    return _BASE64.sub(lambda found: f"[{len(found[0])} characters of base64]", text), "", size


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
