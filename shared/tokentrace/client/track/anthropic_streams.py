"""The reader of Anthropic's message streams."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from tokentrace.client.track.reader import Reader

#: What makes an event after the first token worth decoding. In a text of an answer the quotes are escaped.
_EVENT = re.compile(rb'"type"\s*:\s*"(?:message_start|message_delta|message_stop|content_block_start|error)"')


class MessagesReader(Reader):
    """Reads the events of a message. The counts of ``message_delta`` are final; those of the start are not."""

    def __init__(self) -> None:
        super().__init__()
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._stop_reason: str | None = None
        self._blocks: dict[int, dict[str, Any]] = {}

    def frame(self, data: bytes) -> None:
        """Look at an event."""
        if self.first_token and not self.keeps_text and _EVENT.search(data) is None:
            return
        event = msgspec.json.decode(data)
        kind = event.get("type")
        if kind == "message_start":
            self._message = event.get("message") or {}
            self._usage = dict(self._message.get("usage") or {})
        elif kind == "message_delta":
            stated = event.get("usage") or {}
            self._usage |= {name: value for name, value in stated.items() if value is not None}
            self._stop_reason = (event.get("delta") or {}).get("stop_reason") or self._stop_reason
        elif kind == "message_stop":
            self.complete = True
        elif kind == "content_block_start":
            self._blocks[event.get("index", 0)] = dict(event.get("content_block") or {})
        elif kind == "content_block_delta":
            self.first_token = True
            self._delta(event)
        elif kind == "error":
            self.failed(event.get("error"))

    def _delta(self, event: dict[str, Any]) -> None:
        if not self.keeps_text:
            return
        block, delta = self._blocks.setdefault(event.get("index", 0), {"type": "text"}), event.get("delta") or {}
        for name, kept in (("text", "text"), ("thinking", "thinking"), ("partial_json", "partial_json")):
            if isinstance(delta.get(name), str):
                block[kept] = block.get(kept, "") + delta[name]

    def has_final_usage(self) -> bool:
        """Return True if the message has ended."""
        return self.complete or self._stop_reason is not None

    def response(self) -> dict[str, Any]:
        """Return the message so far, without its texts."""
        if not self._message:
            return {}
        blocks = [{"type": block.get("type")} for block in self._blocks.values()]
        return {**self._message, "usage": self._usage or None, "stop_reason": self._stop_reason, "content": blocks}

    def output(self) -> list[dict[str, Any]]:
        """Return the message."""
        content = []
        for block in self._blocks.values():
            partial = block.get("partial_json")
            content.append({**block, "input": partial} if partial else block)
        return [{"role": "assistant", "content": content}] if content else []
