"""A plain NATS client beside a running pipeline: it publishes any bytes to any subject."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import nats

from kit.pipeline import Pipeline

T = TypeVar("T")

RAW, SPANS = "tokentrace.raw.default.0", "tokentrace.spans.default.0"


def on_nats(pipeline: Pipeline, work: Callable[[Any], Awaitable[T]]) -> T:
    """
    Run *work* with a new connection and return its result.

    Raises:
        ConnectionError: The broker does not answer.
    """

    async def ignore(_: Exception) -> None:
        """Keep nats-py from logging errors that the test expects."""

    async def run() -> T:
        try:
            client = await nats.connect(
                pipeline.nats_url,
                error_cb=ignore,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0.1,
            )
        except nats.errors.Error as exc:
            raise ConnectionError(f"NATS: {exc}") from exc
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def publish(pipeline: Pipeline, *messages: tuple[str, bytes]) -> None:
    """Publish (subject, payload) pairs to their streams in order, each acknowledged."""

    async def send(client: Any) -> None:
        stream = client.jetstream()
        for subject, payload in messages:
            await stream.publish(subject, payload)

    on_nats(pipeline, send)


def message_count(pipeline: Pipeline, stream: str) -> int:
    """Return how many messages *stream* holds."""

    async def count(client: Any) -> int:
        return int((await client.jetstream().stream_info(stream)).state.messages)

    return on_nats(pipeline, count)


def read_stream(pipeline: Pipeline, stream: str) -> list[bytes]:
    """Return the payloads of all messages that *stream* holds, in order."""

    async def read(client: Any) -> list[bytes]:
        jetstream = client.jetstream()
        state = (await jetstream.stream_info(stream)).state
        numbers = range(state.first_seq, state.last_seq + 1)
        return [(await jetstream.get_msg(stream, number)).data for number in numbers]

    return on_nats(pipeline, read)
