"""What the answers of Gemini tell of a call: whole ones, and those that come in chunks."""

from __future__ import annotations

from typing import Any

import msgspec

from tokentrace.client.tracing import SpanFields
from tokentrace.client.track.call import Call
from tokentrace.client.track.faults import guarded


class _Part(msgspec.Struct, rename="camel"):
    function_call: Any = None


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: Any = None


class _Embeddings(msgspec.Struct):
    statistics: dict[str, Any] | None = None


class _Prediction(msgspec.Struct):
    embeddings: _Embeddings | None = None


class _Answer(msgspec.Struct, rename="camel"):
    """What is read of a body; the rest, which may be megabytes, is skipped."""

    usage_metadata: Any = None
    model_version: Any = None
    response_id: Any = None
    candidates: list[_Candidate] | None = None
    predictions: list[_Prediction] | None = None


_decoder = msgspec.json.Decoder(_Answer)


def _read(result: Any) -> _Answer:
    """Return what *result* of a request, or a chunk of it, tells: its body is JSON; early versions return a dict."""
    if isinstance(result, dict):
        return msgspec.convert(result, _Answer)
    return _decoder.decode(result.body) if result.body else _Answer()


@guarded
def end(call: Call, result: Any) -> None:
    """End a call with what the API answered."""
    answer, fields = None, SpanFields()
    try:
        answer = _read(result)
        if answer.predictions:
            fields["prompt_tokens"] = sum(_tokens(prediction) for prediction in answer.predictions)
    finally:
        call.end(answer, **fields)


def _tokens(prediction: _Prediction) -> int:
    """Return the tokens of one text that Vertex embedded."""
    statistics = (prediction.embeddings and prediction.embeddings.statistics) or {}
    return int(statistics.get("token_count") or 0)


class Stream:
    """
    What the chunks of a stream have told so far: the usage is cumulative, so the last one counts.

    Args:
        call: The call.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._told = _Answer(candidates=[])

    @guarded
    def see(self, chunk: Any) -> None:
        """Look at one chunk."""
        answer, told = _read(chunk), self._told
        told.usage_metadata = answer.usage_metadata or told.usage_metadata
        told.model_version = answer.model_version or told.model_version
        told.response_id = answer.response_id or told.response_id
        for candidate in answer.candidates or ():
            parts = candidate.content.parts if candidate.content else None
            if parts:
                self.call.first_token()
            if candidate.finish_reason or any(part.function_call is not None for part in parts or ()):
                told.candidates = [*(told.candidates or ()), candidate]

    def _state(self) -> SpanFields:
        """Return what is known of the usage of a stream that was not read to its end."""
        complete = any(candidate.finish_reason for candidate in self._told.candidates or ())
        return {"usage_state": "" if complete else "partial"}

    @guarded
    def end(self) -> None:
        """End the call: the stream was read to its end."""
        self.call.end(self._told)

    @guarded
    def fail(self, error: BaseException) -> None:
        """End the call: reading raised *error*."""
        self.call.fail(error, self._told, **self._state())

    @guarded
    def leave(self) -> None:
        """End the call, unless it has ended: the application reads no further."""
        self.call.leave("closed", self._told, **self._state())
