"""Functions that create the raw stream ``TT_RAW`` on a broker and read what reporters have published to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import NamedTuple

import nats

from tokentrace.bus import jetstream, subjects
from tokentrace.bus.access import Access
from tokentrace.records import Batch, decode_batches


class StoredBatch(NamedTuple):
    """
    A message of ``TT_RAW``.

    Attributes:
        id: The message id, from the header ``Nats-Msg-Id``.
        payload: The encoded batch.
    """

    subject: str
    id: str
    payload: bytes

    @property
    def batch(self) -> Batch:
        """The decoded batch; the message must hold exactly one."""
        (batch,) = decode_batches(self.payload)
        return batch


def create_streams(url: str, access: Access = Access()) -> None:  # noqa: B008 - it is immutable
    """Create all streams of tokentrace on the broker at *url*."""

    async def create() -> None:
        async with jetstream.connect(url, name="test", access=access) as bus:
            for stream in subjects.streams():
                await bus.ensure(stream)

    asyncio.run(create())


def read_raw(url: str) -> list[StoredBatch]:
    """Return all messages of ``TT_RAW`` in the order of the stream, without removing them."""

    async def read() -> list[StoredBatch]:
        client = await nats.connect(url)
        stream = client.jetstream()
        state = (await stream.stream_info(subjects.RAW)).state
        messages = []
        for sequence in range(max(state.first_seq, 1), state.last_seq + 1):
            message = await stream.get_msg(subjects.RAW, sequence)
            assert message.subject is not None
            messages.append(StoredBatch(message.subject, (message.headers or {})["Nats-Msg-Id"], message.data or b""))
        await client.close()
        return messages

    return asyncio.run(read())


def span_names(messages: list[StoredBatch]) -> Counter[str]:
    """Return how often each span name occurs in *messages*."""
    return Counter(span.name for message in messages for span in message.batch.spans)
