"""Readers of the streams of OpenAI and of vendors that speak its protocol."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tokentrace.client.track.reader import Reader

#: What makes a frame after the first token worth decoding. In a text of an answer the quotes are escaped.
_CHAT = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"|"error"\s*:\s*[{"]|"name"\s*:')
_EVENT = re.compile(rb'"type"\s*:\s*"(?:response\.(?:created|completed|incomplete|failed|cancelled)|error)"')
_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
_DONE = b"[DONE]"


class ChatReader(Reader):
    """Reads the stream of a chat or text completion."""

    def __init__(self) -> None:
        super().__init__()
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._finish_reason = ""
        self._tools: dict[tuple[int, int], dict[str, str]] = {}
        self._texts: dict[int, list[str]] = {}
        self._is_usage_last = False

    def frame(self, data: bytes) -> None:
        """Look at a chunk. The last one, with usage and without a choice, comes only if the request asks for it."""
        if data.startswith(_DONE):
            self.complete = True
            return
        if self.first_token and not self.keeps_text and _CHAT.search(data) is None:
            return
        chunk = msgspec.json.decode(data)
        if not isinstance(chunk, dict):
            return
        if chunk.get("error"):
            self.failed(chunk["error"])
            return
        for name in ("id", "model", "service_tier", "object"):
            if chunk.get(name):
                self._head[name] = chunk[name]
        usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
        choices = chunk.get("choices") or []
        if isinstance(usage, dict):
            self._usage = usage
            self._is_usage_last = not choices
        for choice in choices:
            self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index") or 0
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        calls = delta.get("tool_calls") or []
        if text or calls or any(delta.get(name) for name in ("reasoning_content", "reasoning", "refusal", "audio")):
            self.first_token = True
        if delta.get("function_call"):
            calls = [{"index": 0, "function": delta["function_call"]}]
            self.first_token = True
        if self.keeps_text and isinstance(text, str):
            self._texts.setdefault(index, []).append(text)
        for call in calls:
            known = self._tools.setdefault((index, call.get("index") or 0), {"id": "", "name": "", "arguments": ""})
            function = call.get("function") or {}
            known["id"] = call.get("id") or known["id"]
            known["name"] = function.get("name") or known["name"]
            if self.keeps_text:
                known["arguments"] += function.get("arguments") or ""
        if choice.get("finish_reason"):
            self._finish_reason = choice["finish_reason"]

    def has_final_usage(self) -> bool:
        """Return True if usage came without a choice, or the answer is complete: some vendors count in each chunk."""
        return self._usage is not None and (self._is_usage_last or self.complete or bool(self._finish_reason))

    def response(self) -> dict[str, Any]:
        """Return the completion so far, without its texts."""
        if not self._head and self._usage is None:
            return {}
        calls = [{"id": call["id"]} for call in self._tools.values()]
        choice = {"finish_reason": self._finish_reason or None, "message": {"tool_calls": calls}}
        form = str(self._head.get("object") or "chat.completion").removesuffix(".chunk")
        return {**self._head, "object": form, "usage": self._usage, "choices": [choice]}

    def output(self) -> list[dict[str, Any]]:
        """Return one message for each choice."""
        messages = []
        for index in sorted({*self._texts, *(choice for choice, _ in self._tools)}):
            calls = [
                {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
                for (choice, _), call in self._tools.items()
                if choice == index
            ]
            messages.append({"role": "assistant", "content": "".join(self._texts.get(index, [])), "tool_calls": calls})
        return messages


class ResponsesReader(Reader):
    """Reads the events of the responses API."""

    def __init__(self) -> None:
        super().__init__()
        self._response: dict[str, Any] = {}

    def frame(self, data: bytes) -> None:
        """Look at an event. Those that end an answer hold all of it."""
        if data.startswith(_DONE):
            return
        if not self.first_token and b'.delta"' in data:
            kind = msgspec.json.decode(data).get("type", "")
            self.first_token = isinstance(kind, str) and kind.endswith(".delta")
            return
        if _EVENT.search(data) is None:
            return
        event = msgspec.json.decode(data)
        kind = event.get("type", "")
        if kind == "error" or (not kind and event.get("error")):
            self.failed(event.get("error") or event)
        elif kind == "response.created" or kind in _ENDS:
            self._response = event.get("response") or {}
            self.complete = kind in _ENDS
        if kind == "response.failed":
            self.failed(self._response.get("error") or "the response failed")

    def has_final_usage(self) -> bool:
        """Return True if the answer has ended."""
        return self.complete

    def response(self) -> dict[str, Any]:
        """Return the newest state of the response."""
        return self._response


class EventReader(Reader):
    """Reads the events of images and transcriptions: the one that ends the answer states the usage."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, Any] = {}

    def frame(self, data: bytes) -> None:
        """Look at an event."""
        if data.startswith(_DONE):
            self.complete = True
            return
        if b'"usage"' in data or b'"error"' in data:
            event = msgspec.json.decode(data)
            if event.get("error"):
                self.failed(event["error"])
            elif isinstance(event.get("usage"), dict):
                self._last = {"usage": event["usage"]}
                self.complete = True
        elif b'.delta"' in data or b'.partial_image"' in data:
            self.first_token = True
        elif b'.done"' in data or b'.completed"' in data:
            self.complete = True

    def response(self) -> dict[str, Any]:
        """Return the usage."""
        return self._last
