"""
The prompts and answers in the captured OTLP requests, found in them without the mapping of the product.

An attribute that holds content is known by its name. Its value is a text, or JSON or the ``repr`` of Python objects, in
which content is what has the name of content.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.otlp_fixtures import FOLDER

#: Names of attributes whose whole value is content, and the bodies of log records.
_ATTRIBUTES = re.compile(
    r"gen_ai\.(input\.messages|output\.messages|system_instructions|tool\.args)"
    r"|gen_ai\.(prompt|completion)\..*\.(content|arguments)"
    r"|gen_ai\.tool\.call\.(arguments|result)|gen_ai\.tool\.description|gen_ai\.evaluation\.explanation"
    r"|(input|output)\.value|llm\.(input|output)_messages\..*\.(content|text|arguments)|llm\.prompt_template\..*"
    r"|ai\.prompt(\.messages)?|ai\.response\.(text|toolCalls|object)|ai\.toolCall\.(args|result)|ai\.values?"
    r"|langfuse\.(observation|trace)\.(input|output)|traceloop\.entity\.(input|output)|embedding\..*\.text"
    r"|llm\.(openai|anthropic|None)\.(messages|choices|content|system|input)|pydantic_ai\.all_messages|final_result"
    r"|tool_(arguments|response)|arguments|response_data|body"
)
#: Names, in JSON, of content.
_CONTENT = re.compile(r"content|text|arguments|args|kwargs|input|output|result|system|prompt|thinking|description")
#: Shorter texts may be part of anything.
_SHORTEST = 5


def otlp_files() -> list[Path]:
    """Return the files of the captured requests with spans or with log records."""
    return sorted(path for path in FOLDER.rglob("*.json") if not path.name.endswith(".expected.json"))


def texts_of(path: Path) -> set[str]:
    """Return the prompts, answers, and arguments and results of tools in the request *path*."""
    return {text for text in _found(json.loads(path.read_text())) if len(text) >= _SHORTEST}


def _found(node: Any) -> Iterator[str]:
    """Yield the content in a part of a request."""
    if isinstance(node, list):
        for item in node:
            yield from _found(item)
    elif isinstance(node, dict):
        if isinstance(node.get("key"), str) and _ATTRIBUTES.fullmatch(node["key"]):
            yield from _texts(_plain(node.get("value", {})), is_content=True)
        for key, item in node.items():
            if key == "body":
                yield from _texts(_plain(item), is_content=True)
            yield from _found(item)


def _plain(value: dict[str, Any]) -> Any:
    """Return what an ``AnyValue`` holds."""
    if "kvlistValue" in value:
        return {item["key"]: _plain(item.get("value", {})) for item in value["kvlistValue"].get("values", ())}
    if "arrayValue" in value:
        return [_plain(item) for item in value["arrayValue"].get("values", ())]
    return value.get("stringValue")


def _texts(value: Any, *, is_content: bool) -> Iterator[str]:
    if isinstance(value, str):
        parsed = _parsed(value)
        if parsed is not None:
            yield from _texts(parsed, is_content=is_content)
        elif is_content:
            yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, is_content=is_content)
    elif isinstance(value, dict):
        is_said = is_content and not value.keys() & {
            "type",
            "role",
            "content",
            "text",
            "id",
            "model",
            "messages",
            "candidates",
        }
        for key, item in value.items():
            yield from _texts(item, is_content=bool(_CONTENT.fullmatch(key)) or (is_said and _is_data(key)))


def _is_data(key: str) -> bool:
    """Return False for the names of other facts than content."""
    return key not in ("name", "finish_reason", "index", "toolCallId", "toolName")


def _parsed(text: str) -> Any:
    """Return what *text* holds if it is JSON or a ``repr`` of a list, a dict or a text; None if it is plain text."""
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
