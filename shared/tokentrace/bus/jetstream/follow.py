"""Following a stream: a consumer without acknowledgements that notices every message it loses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client

from tokentrace.bus.contract import Chunk, Message
from tokentrace.bus.jetstream.codec import state_of
from tokentrace.bus.jetstream.errors import ApiError
from tokentrace.bus.jetstream.pull import Inbox, Pull, parse_meta
from tokentrace.bus.jetstream.requests import Requests
from tokentrace.errors import Unavailable
from tokentrace.records import Position
from tokentrace.units import SECOND

log = logging.getLogger("tokentrace.bus")

#: A small number, because the broker keeps, for each message on the way, a buffer of the size of the largest that
#: it ever held. Reading 256 at once is no faster.
_BATCH = 64
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.05, 1.0


class Followers:
    """
    Creates followers of streams.

    JetStream numbers the messages it sends to a consumer (the consumer sequence). Messages that are on the way when
    the connection breaks are lost without an error; the only sign is a gap in the consumer sequence. After a gap,
    2.5 s of silence or a reconnect, the follower creates a new consumer that starts after the last message it yielded.
    """

    def __init__(self, client: Client, requests: Requests) -> None:
        self._client, self._requests = client, requests

    async def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """Yield chunks without end, as ``Bus.follow``; Unavailable once the connection is closed for good."""
        position, pause = after, _MIN_PAUSE_S
        while True:
            try:
                async for chunk in self.follow_once(stream, subjects, position):
                    pause = _MIN_PAUSE_S
                    yield chunk
                    position = chunk.after(position)
            except (Unavailable, ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
                if self._client.is_closed:
                    raise Unavailable("the connection to NATS is closed") from exc
                log.debug("follow %s: %s", stream, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE_S)

    async def follow_once(
        self, stream: str, subjects: Sequence[str], after: Position | None
    ) -> AsyncGenerator[Chunk, None]:
        """
        Yield chunks from one consumer.

        Raises:
            Unavailable: The consumer died or lost a message, or the broker did not answer.
            ApiError: JetStream refused to describe the stream or to create the consumer.
        """
        info = state_of(await self._requests.api(f"STREAM.INFO.{stream}", {}))
        start = after.sequence if after is not None else 0
        # A consumer that starts after the end of the stream waits without an error, so compare with the end first.
        rewound = after is not None and (info.created_ns != after.created_ns or info.last_sequence < start)
        if rewound:
            start = 0
        # JetStream skips discarded messages without an error, so compare with the first message that is left.
        missing = (start + 1, info.first_sequence - 1) if info.first_sequence > start + 1 and not rewound else None
        async with Inbox(self._client) as inbox:
            config = _consumer_config(inbox.name, subjects, start + 1)
            create = f"CONSUMER.CREATE.{stream}.{inbox.name}"
            consumer = await self._requests.api(create, {"stream_name": stream, "config": config})
            try:
                # An empty stream sends nothing, so the pending count at creation tells that the reader has caught up.
                if consumer["num_pending"] == 0 or rewound or missing:
                    yield Chunk([], consumer["num_pending"], info.created_ns, missing, rewound)
                pull = Pull(self._client, stream, inbox, _BATCH)
                expected = 0
                async for batch in pull.batches():
                    messages, pending, has_gap = [], 0, False
                    for msg in batch:
                        meta = parse_meta(msg.reply)
                        if meta.consumer_sequence != expected + 1:
                            has_gap = True
                            break
                        expected, pending = meta.consumer_sequence, meta.pending
                        messages.append(Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {}))
                    if messages:
                        yield Chunk(messages, pending, info.created_ns)
                    if has_gap:
                        raise Unavailable("messages were lost on the way")
            finally:
                # The broker keeps an abandoned consumer for a minute and allows a stream a thousand consumers, but
                # loading a snapshot of 150 pieces creates 150 of them.
                with contextlib.suppress(nats.errors.Error, OSError):
                    await self._client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{inbox.name}")


def _consumer_config(name: str, subjects: Sequence[str], start: int) -> dict[str, Any]:
    return {
        "name": name,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start,
        "filter_subjects": list(subjects),
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 60 * SECOND,
    }
