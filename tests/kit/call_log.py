"""
Reads the log as any NATS client can: the documented subjects, and MessagePack whose fields are known by position.

It imports nothing of the product. Of each span it takes its ids and the number that its sender gave the telling in the
attribute ``telling``; everything else is in what the sender kept.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nats

from kit.call_recount import Sent

STREAM, RAW = "TT_SPANS", "TT_RAW"
#: The attribute in which a sender numbers its tellings.
TELLING = "telling"
#: Positions in a batch and in a span, as in the page on the wire format.
_ID, _SEQUENCE, _PART, _SPANS = 0, 1, 2, 5
_TRACE, _SPAN, _ATTRIBUTES = 0, 1, 18


class Kept(NamedTuple):
    """A telling as its sender kept it: the JSON span, and how it was sent."""

    span: dict[str, Any]
    way: str


def decode(data: bytes) -> Any:
    """Return the MessagePack value in *data*."""
    value, _ = _value(memoryview(data), 0)
    return value


_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_LENGTHS |= {0xDC: ">H", 0xDD: ">I", 0xDE: ">H", 0xDF: ">I"}


def _value(data: memoryview, at: int) -> tuple[Any, int]:
    """Return (the value that begins at *at*, where it ends)."""
    first, at = data[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xE0:
        return first - 0x100, at
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        (number,) = struct.unpack_from(_NUMBERS[first], data, at)
        return number, at + struct.calcsize(_NUMBERS[first])
    if first in _LENGTHS:
        (size,) = struct.unpack_from(_LENGTHS[first], data, at)
        at += struct.calcsize(_LENGTHS[first])
    else:
        size = first & (0x1F if 0xA0 <= first < 0xC0 else 0x0F)
    if first in (0xDC, 0xDD) or 0x90 <= first < 0xA0:
        items = []
        for _ in range(size):
            item, at = _value(data, at)
            items.append(item)
        return items, at
    if first in (0xDE, 0xDF) or 0x80 <= first < 0x90:
        pairs = {}
        for _ in range(size):
            key, at = _value(data, at)
            pairs[key], at = _value(data, at)
        return pairs, at
    content = bytes(data[at : at + size])
    return (content if first in (0xC4, 0xC5, 0xC6) else content.decode()), at + size


def read_log(url: str, kept: Mapping[int, Kept]) -> list[Sent]:
    """Return the batches of the log in its order, with the tellings that their senders *kept*; each has its number."""

    async def read() -> list[bytes]:
        client = await nats.connect(url)
        stream = client.jetstream()
        state = (await stream.stream_info(STREAM)).state
        messages = [await stream.get_msg(STREAM, at) for at in range(max(state.first_seq, 1), state.last_seq + 1)]
        await client.close()
        return [message.data or b"" for message in messages]

    return [_sent(batch, kept) for payload in asyncio.run(read()) for batch in decode(payload)]


def waiting(url: str) -> int:
    """Return how many messages wait for ingest."""

    async def count() -> int:
        client = await nats.connect(url)
        messages = (await client.jetstream().stream_info(RAW)).state.messages
        await client.close()
        return int(messages)

    return asyncio.run(count())


def _sent(batch: Sequence[Any], kept: Mapping[int, Kept]) -> Sent:
    spans, way = [], ""
    for record in batch[_SPANS]:
        number = record[_ATTRIBUTES][TELLING]
        telling = kept[number]
        # A sender that gives no ids learns from the log which ones were made.
        spans.append({"trace_id": record[_TRACE], "span_id": record[_SPAN], **telling.span, TELLING: number})
        way = telling.way
    return Sent(way, spans, f"{batch[_ID]} {batch[_PART]}", batch[_SEQUENCE], f"{batch[_ID]} {batch[_PART]}")
