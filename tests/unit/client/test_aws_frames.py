"""The frames of AWS are decoded as botocore decodes them, and what is no frame does no harm."""

from __future__ import annotations

import base64
import json
from itertools import pairwise
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from kit.aws_events import chunk, event, exception, frame
from tokentrace.client.track.aws_frames import AwsFrames

_json = st.dictionaries(st.text(max_size=8), st.text(max_size=40) | st.integers(), max_size=4)


def _parts(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def _contents(data: bytes) -> list[bytes]:
    frames = AwsFrames()
    return [frames.content(found) for found in frames.feed(data)]


@pytest.mark.long
@given(st.lists(_json, min_size=1, max_size=5), st.lists(st.integers(min_value=0), max_size=8))
def test_events_are_those_that_botocore_reads_however_the_bytes_arrive(bodies: list[Any], cuts: list[int]) -> None:
    data = b"".join(chunk(body) for body in bodies)
    theirs = EventStreamBuffer()
    theirs.add_data(data)
    frames = AwsFrames()
    found = [text for part in _parts(data, cuts) for text in frames.feed(part)]
    assert b"".join(found) == data
    assert [json.loads(frames.content(text)) for text in found] == bodies
    payloads = [json.loads(base64.b64decode(json.loads(message.payload)["bytes"])) for message in theirs]
    assert payloads == bodies
    assert (frames.broken, frames.finish()) == (False, b"")


def test_a_frame_that_reports_an_error_becomes_an_error_event() -> None:
    (text,) = _contents(exception("throttlingException", "slow down"))
    assert json.loads(text) == {"type": "error", "error": {"type": "throttlingException", "message": "slow down"}}
    unmodeled = frame({":message-type": "error", ":error-code": "500", ":error-message": "gone"}, b"")
    (text,) = _contents(unmodeled)
    assert json.loads(text) == {"type": "error", "error": {"type": "500", "message": "gone"}}


def test_other_frames_hold_nothing() -> None:
    assert _contents(event("initial-response", {}) + chunk({"a": 1})) == [b"", b'{"a": 1}']
    assert _contents(event("chunk", {"bytes": "no base64!"}) + event("chunk", [])) == [b"", b""]


@pytest.mark.long
@given(_json, st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_nothing_is_read_from_a_frame_with_a_changed_byte(body: Any, place: int, change: int) -> None:
    data = bytearray(chunk(body))
    data[place % len(data)] ^= change
    assert not any(_contents(bytes(data)))


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_any_bytes_are_taken(parts: list[bytes]) -> None:
    frames = AwsFrames()
    for part in parts:
        for found in frames.feed(part):
            frames.content(found)
    assert frames.content(frames.finish()) == b""
