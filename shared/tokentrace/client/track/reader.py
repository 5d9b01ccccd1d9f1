"""What looks at the frames of an answer: the contract, and the reader of a whole JSON body."""

from __future__ import annotations

from typing import Any

import msgspec

#: Everything of a JSON answer that a span is made of; large vectors and images are skipped.
_HEAD = (
    *("id", "object", "type", "model", "status", "error", "usage", "x_groq", "service_tier", "tool_usage"),
    *("choices", "output", "content", "stop_reason", "incomplete_details"),
    *("usageMetadata", "modelVersion", "responseId", "candidates", "serviceTier", "stopReason"),
)
_Head = msgspec.defstruct("_Head", [(name, Any, msgspec.UNSET) for name in _HEAD])
_decoder = msgspec.json.Decoder(_Head)


def decode_head(data: bytes) -> dict[str, Any]:
    """
    Return what a span needs of the JSON object *data*.

    Raises:
        msgspec.DecodeError: *data* is no JSON object.
    """
    head = _decoder.decode(data)
    return {name: value for name in _HEAD if (value := getattr(head, name)) is not msgspec.UNSET}


class Reader:
    """
    Looks at the frames of one answer, in their order. The subclasses know one protocol each.

    Attributes:
        first_token: Whether a frame with output has arrived.
        complete: Whether the provider has said that the answer is complete.
        error: What an error event said; "" = there was none.
        error_type: The provider's word for the kind of the error.
        keeps_text: Whether ``output`` is asked for afterwards.
    """

    def __init__(self) -> None:
        self.first_token = self.complete = self.keeps_text = False
        self.error = self.error_type = ""

    def frame(self, data: bytes) -> None:
        """
        Look at the content of a frame.

        Raises:
            msgspec.DecodeError: *data* is not what the protocol says.
        """
        raise NotImplementedError

    def response(self) -> dict[str, Any]:
        """Return what the frames said so far, in the form of an answer that is not streamed; {} if nothing."""
        raise NotImplementedError

    def output(self) -> list[dict[str, Any]]:
        """Return the messages of the answer, in the form of an answer that is not streamed."""
        return []

    def has_final_usage(self) -> bool:
        """Return True if the usage that was stated is that of the whole answer."""
        return self.complete

    def failed(self, error: Any) -> None:
        """Take note of the error event *error*: an object with a message, or a text."""
        found = error if isinstance(error, dict) else {"message": error}
        self.error = str(found.get("message") or error or "error")
        self.error_type = str(found.get("type") or found.get("code") or "")


class JsonReader(Reader):
    """Reads an answer that is one JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self._head: dict[str, Any] = {}

    def frame(self, data: bytes) -> None:
        """Read the whole body."""
        self._head = decode_head(data)
        self.complete = True

    def response(self) -> dict[str, Any]:
        """Return the body."""
        return self._head
