"""Bodies: however they are cut into pieces and encoded, frames are found and only the usage asked for is left out."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.client.track.anthropic_streams import MessagesReader
from tokentrace.client.track.decoding import Decoder
from tokentrace.client.track.frames import MAX_JSON_BYTES, EventFrames, WholeBody
from tokentrace.client.track.hiding import Hider
from tokentrace.client.track.openai_streams import ChatReader, EventReader, ResponsesReader
from tokentrace.client.track.providers import provider_of_url
from tokentrace.client.track.reader import Reader

ENDS = ("\n\n", "\r\n\r\n", "\r\r")
#: Texts of an answer that look like the keys of a frame.
TEXTS = st.sampled_from(["Hello", '"usage":null', ',"usage": null}', '"choices":[]', '"usage":{"a":1}', "\n\n", "é"])


@st.composite
def chat_streams(draw: st.DrawFn) -> list[tuple[str, bytes, bytes]]:
    """Draw the frames of a stream: the kind of each, with the option for usage, and as it would be without."""
    end = draw(st.sampled_from(ENDS))
    made = []
    for kind in draw(st.lists(st.sampled_from(["text", "filter", "comment", "usage"]), max_size=8)):
        if kind == "comment":
            frame = f": ping{end}".encode()
            made.append((kind, frame, frame))
            continue
        chunk: dict[str, Any] = {"id": "c", "choices": [], "model": "m"}
        if kind == "text":
            chunk["choices"] = [{"index": 0, "delta": {"content": draw(TEXTS)}}]
        usage = {"prompt_tokens": 1, "completion_tokens": 2} if kind == "usage" else None
        spaces = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
        with_usage = json.dumps({**chunk, "usage": usage}, separators=spaces)
        without = json.dumps(chunk, separators=spaces)
        made.append((kind, f"data: {with_usage}{end}".encode(), b"" if usage else f"data: {without}{end}".encode()))
    return made


def pieces(draw: st.DrawFn | Any, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.data(), chat_streams(), st.sampled_from(["", "identity", "gzip", "deflate"]))
def test_only_what_came_for_the_option_is_left_out(
    data: st.DataObject, stream: list[tuple[str, bytes, bytes]], encoding: str
) -> None:
    sent = b"".join(frame for _, frame, _ in stream)
    if encoding in ("gzip", "deflate"):
        encoder = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        sent = encoder.compress(sent) + encoder.flush()
    hider = Hider(encoding)
    got = b"".join([*(hider.kept(piece) for piece in pieces(data.draw, sent)), hider.rest()])
    if encoding in ("gzip", "deflate"):
        got = zlib.decompress(got, wbits=31 if encoding == "gzip" else 15)
    assert got == b"".join(without for _, _, without in stream)


@given(st.data(), st.lists(st.sampled_from(["data: a", "event: b", ": c"]), max_size=6), st.sampled_from(ENDS))
def test_frames_are_found_wherever_a_body_is_cut(data: st.DataObject, lines: list[str], end: str) -> None:
    body = "".join(f"{line}{end}" for line in lines).encode() + b"data: rest"
    frames = EventFrames()
    found = [frame for piece in pieces(data.draw, body) for frame in frames.feed(piece)]
    assert found == [f"{line}{end}".encode() for line in lines]
    assert frames.finish() == b"data: rest"


@pytest.mark.parametrize("wbits", [15, -15], ids=["with header", "without header"])
def test_deflate_is_undone_with_and_without_its_header(wbits: int) -> None:
    encoder = zlib.compressobj(wbits=wbits)
    sent = encoder.compress(b"hello" * 100) + encoder.flush()
    decoder = Decoder("deflate")
    assert decoder.decode(sent[:7]) + decoder.decode(sent[7:]) == b"hello" * 100


def test_a_body_over_the_limit_is_not_kept() -> None:
    body = WholeBody()
    body.feed(b"x" * MAX_JSON_BYTES)
    assert len(body.finish()) == MAX_JSON_BYTES
    body.feed(b"x")
    assert body.finish() == b""


@pytest.mark.parametrize("reader", [ChatReader, ResponsesReader, MessagesReader, EventReader])
@given(st.data())
def test_a_reader_takes_any_json_or_says_what_is_wrong_and_has_an_answer(
    reader: type[Reader], data: st.DataObject
) -> None:
    """A vendor may send anything: whatever a reader raises is a fault that the stream does not notice."""
    made = reader()
    values = st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["type", "choices", "delta", "usage", "message", "error", "x"]), inner)
        ),
        max_leaves=6,
    )
    for value in data.draw(st.lists(values, max_size=3)):
        try:
            made.frame(json.dumps(value).encode())
        except (AttributeError, TypeError, ValueError):
            continue  # ``safely`` in ``body`` takes it
    assert isinstance(made.response(), dict)
    assert isinstance(made.has_final_usage(), bool)


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.openai.com/v1/", "openai"),
        ("https://api.openai.com.evil.example/v1/", ""),
        ("https://api.anthropic.com/", "anthropic"),
        ("https://api.deepseek.com/v1/", "deepseek"),
        ("https://api.groq.com/openai/v1/", "groq"),
        ("https://openrouter.ai/api/v1/", "openrouter"),
        ("https://east.openai.azure.com/openai/", "azure"),
        ("https://bedrock-runtime.us-east-1.amazonaws.com/", "aws"),
        ("http://127.0.0.1:8000/v1/", ""),
    ],
)
def test_the_address_of_a_client_tells_the_provider(url: str, provider: str) -> None:
    assert provider_of_url(url) == provider
