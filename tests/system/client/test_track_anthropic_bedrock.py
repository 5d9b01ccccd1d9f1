"""Anthropic's own client for Bedrock: its streams are frames of AWS, and a call is one span as elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from kit.aws_events import chunk, exception, frame
from kit.scripted_http import Answer, ScriptedServer, json_answer, scripted_server
from tokentrace import BufferTransport, Span, Tracer, instrument
from tokentrace.client.track.faults import faults
from tokentrace.records import check_span

_MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
_MESSAGE: dict[str, Any] = {
    "id": "msg_bdrk_01ABCDEFGHIJKLMNOP",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 70, "cache_read_input_tokens": 30, "output_tokens": 20},
}
_BEGUN = {**_MESSAGE, "content": [], "stop_reason": None, "usage": {**_MESSAGE["usage"], "output_tokens": 1}}
_FRAMES = [
    chunk(event)
    for event in (
        {"type": "message_start", "message": _BEGUN},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}},
        {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 70, "outputTokenCount": 20}},
    )
]
_ASKED: dict[str, Any] = {"model": _MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def kept() -> Iterator[BufferTransport]:
    before = faults()
    yield BufferTransport()
    assert faults() == before


def _stream(*frames: bytes, cut: bool = False) -> Answer:
    # In pieces that are no frames.
    data = b"".join(frames)
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    return Answer(pieces, content_type="application/vnd.amazon.eventstream", cut=cut)


def _options(server: ScriptedServer) -> dict[str, Any]:
    return {"api_key": "k", "aws_region": "eu-west-1", "base_url": server.url, "max_retries": 0}


def _only(kept: BufferTransport) -> Span:
    (span,) = kept.spans
    check_span(span)
    assert (span.provider, span.attributes["request_model"]) == ("aws", _MODEL)
    return span


def _counts(span: Span) -> tuple[int, int, int, str]:
    return span.prompt_tokens, span.completion_tokens, span.cache_read_tokens, span.usage_state


def test_an_answer_is_one_span(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(json_answer(_MESSAGE))
    with instrument(anthropic.AnthropicBedrock(**_options(server)), tracer=Tracer(kept)) as client:
        client.messages.create(**_ASKED)
    assert server.requests[0].path == f"/model/{_MODEL}/invoke"
    assert _counts(_only(kept)) == (100, 20, 30, "")


def test_a_stream_of_frames_is_that_of_a_plain_client_and_one_span(
    server: ScriptedServer, kept: BufferTransport
) -> None:
    server.script(_stream(*_FRAMES))
    with anthropic.AnthropicBedrock(**_options(server)) as plain:
        expected = list(plain.messages.create(**_ASKED, stream=True))
    with instrument(anthropic.AnthropicBedrock(**_options(server)), tracer=Tracer(kept)) as client:
        assert list(client.messages.create(**_ASKED, stream=True)) == expected
    span = _only(kept)
    assert _counts(span) == (100, 20, 30, "")
    assert 0 < span.ttft_ns <= span.latency_ns


async def test_an_asynchronous_stream_of_frames_is_one_span(server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(_stream(*_FRAMES))
    async with (
        instrument(anthropic.AsyncAnthropicBedrock(**_options(server)), tracer=Tracer(kept)) as client,
        client.messages.stream(**_ASKED) as stream,
    ):
        assert (await stream.get_final_message()).usage.output_tokens == 20
    assert _counts(_only(kept)) == (100, 20, 30, "")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("end", ["left", "exception", "cut", "no frames"])
def test_every_other_end_of_the_stream_is_one_span(end: str, server: ScriptedServer, kept: BufferTransport) -> None:
    server.script(
        {
            "left": _stream(*_FRAMES),
            "exception": _stream(*_FRAMES[:3], exception("throttlingException", "slow down")),
            "cut": _stream(*_FRAMES[:3], cut=True),
            "no frames": _stream(frame({":message-type": "event"}, b"{}"), b"\0" * 200),
        }[end]
    )
    with instrument(anthropic.AnthropicBedrock(**_options(server)), tracer=Tracer(kept)) as client:
        stream = client.messages.create(**_ASKED, stream=True)
        if end == "left":
            next(iter(stream))
            stream.close()
        else:
            with pytest.raises(Exception, match=r"throttling|slow down|peer closed|Connection|[Cc]hecksum"):
                list(stream)
        del stream
    gc.collect()
    span = _only(kept)
    # A body that arrives whole and is no event stream says nothing of the call.
    assert span.status == ("ok" if end in ("left", "no frames") else "error")
    if end == "no frames":
        assert span.usage_state == "missing"
    if end in ("exception", "cut"):
        assert _counts(span)[0] == 100
        assert span.usage_state == "partial"
    if end == "exception":
        assert "slow down" in span.error
