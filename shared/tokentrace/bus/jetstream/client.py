"""
``Bus`` over one NATS connection.

How it works
------------
NATS gives a process one TCP connection. JetStream, the part of NATS that stores messages, has no protocol of its own:
a call of its API is a message to a subject below ``$JS.API`` with JSON in it, and the answer is a message too. nats-py
has helpers for all of this. We use nats-py only to connect, publish and subscribe, because each helper below failed in
a way that a test shows; the facts are collected in docs/explanation/jetstream.md, the decision is docs/decisions/0040.
Tests without a path are in tests/contract/test_bus.py, those of requests in test_bus_requests.py.

* **Requests and publishes** (``requests``, ``publisher``). The future of ``publish_async`` never ends if the server
  dies, and ``request`` can lose a cancellation in Python 3.11. Here every request has a number, a future and a timeout
  of 5 s, and all futures fail when the connection is lost. Tests:
  ``test_publishing_while_the_broker_is_away_is_unavailable_and_ends``,
  ``test_a_request_that_is_cancelled_as_its_answer_arrives_is_cancelled``.
* **The send buffer** (``connection``). By default nats-py buffers messages while it is disconnected and sends them
  after the caller was told that they failed. The buffer size is 0 here, so a call fails at once (same test).
* **Following** (``follow``, ``pull``). A consumer without acknowledgements loses messages on a broken connection, and
  a dead consumer looks like a quiet stream; neither is an error in nats-py's fetch loop. Here the consumer sequence
  must have no gap, and a message or heartbeat must come within 2.5 s, else a new consumer is created that starts after
  the last message that was yielded. Test: ``test_a_follower_survives_kills_of_the_broker_and_misses_nothing``.
* **Work queues** (``work_queue``). The same pull loop with acknowledgements. A message that reaches JetStream's limit
  of deliveries stays in the queue for ever, so there is no limit, and a reader terminates a message that it gives up.
  Test: ``test_a_terminated_message_is_not_delivered_again``.
* **Buckets and objects** (``kv``, ``objects``, ``contents``). A watch of nats-py receives nothing for 16 s after a
  restart of the broker, so a bucket is followed as the stream that it is. A read of nats-py hangs if the object is
  removed, so a read here checks whether the messages still exist. Tests: ``test_a_bucket_is_followed_as_a_stream``,
  ``test_an_object_that_is_removed_while_it_is_read_is_whole_or_gone``.
* **Request and reply** (``request_reply``). nats-py returns the first reply only and runs one callback at a time. Here
  many replies are collected, large ones in parts, and each request is answered in its own task. Tests:
  ``test_every_server_answers_request_many_and_one_of_each_group``, ``test_a_slow_answer_delays_no_other``.
* **The connection** (``connection``). nats-py waits up to 15 minutes for a dead link with unsent bytes, and stops
  reading at some malformed headers. A watchdog cuts the socket after 5 s, and malformed headers are ignored. Test:
  tests/system/test_foreign_bytes.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

import nats.errors
from nats.aio.client import Client

from tokentrace.bad_data import SetAside
from tokentrace.bus.access import Access
from tokentrace.bus.clock import BrokerClock
from tokentrace.bus.contract import Chunk, Handler, PubAck, Stream, StreamState, WaitPolicy
from tokentrace.bus.jetstream import request_reply, streams, work_queue
from tokentrace.bus.jetstream.codec import state_of
from tokentrace.bus.jetstream.connection import Connection, abort
from tokentrace.bus.jetstream.contents import StreamContents
from tokentrace.bus.jetstream.errors import translate_errors
from tokentrace.bus.jetstream.follow import Followers
from tokentrace.bus.jetstream.kv import JetStreamKeyValue
from tokentrace.bus.jetstream.objects import JetStreamObjects
from tokentrace.bus.jetstream.publisher import Publisher
from tokentrace.bus.jetstream.requests import Requests
from tokentrace.bus.subjects import SPANS
from tokentrace.bus.urls import parse_urls, shown_urls
from tokentrace.errors import Unavailable
from tokentrace.records import Position
from tokentrace.units import SECOND, parse_instant, render_instant


@contextlib.asynccontextmanager
async def connect(
    url: str,
    *,
    name: str,
    inbox_prefix: str = "_INBOX",
    wait_s: float = 10.0,
    access: Access = Access(),  # noqa: B008 - it is immutable
) -> AsyncIterator[JetStream]:
    """
    Connect to the broker at *url* and stay connected until the context ends.

    Args:
        url: For a cluster, the URLs of several servers separated by commas; one that answers is used.
        name: The name of the connection in the broker's monitoring.
        inbox_prefix: The beginning of the subjects on which the connection receives replies.
        wait_s: How long the first connection may take, seconds.
        access: What admits the client, beside what stands in *url*.

    Raises:
        Unavailable: No server accepted the connection within *wait_s*, or a file of *access* cannot be used.
        ConfigError: *url* is not a NATS URL, or *access* contradicts itself.
    """
    link = Connection(parse_urls(url), name, access)
    try:
        async with asyncio.timeout(wait_s):
            client = await link.open(inbox_prefix)
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        await link.abandon()
        raise Unavailable(f"no NATS server at {shown_urls(url)} ({link.last_error or type(exc).__name__})") from exc
    except Unavailable:
        await link.abandon()
        raise
    except asyncio.CancelledError:
        link.cut()
        raise
    bus = JetStream(client)
    link.on_down = bus.fail_waiting
    watchdog = asyncio.create_task(link.watch(client))
    try:
        await bus.start()
        yield bus
    finally:
        link.closing = True
        watchdog.cancel()
        # Closing fails if the broker has died; the connection is over in either case.
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(2):
                await client.close()
        abort(client)
        # asyncio closes the socket of an aborted connection in its next iteration.
        await asyncio.sleep(0)


class JetStream:
    """``Bus`` over one NATS connection; each method is documented in the contract."""

    def __init__(self, client: Client) -> None:
        self._client = client
        #: As ``Bus.clock``.
        self.clock = BrokerClock()
        self.set_aside = SetAside(self.clock.now_ns)
        self._requests = Requests(client, self.set_aside)
        self._publisher = Publisher(client, self._requests)
        self._followers = Followers(client, self._requests)
        self._contents = StreamContents(self._requests, self._publisher, self._followers, self.set_aside)

    async def start(self) -> None:
        """Subscribe to the replies of JetStream."""
        await self._requests.start()

    def fail_waiting(self) -> None:
        """Fail every request under way and clear ``problems``; called when the connection is lost."""
        self._publisher.forget_problems()
        self._requests.fail_waiting()

    @property
    def connected(self) -> bool:
        """As ``Bus.connected``."""
        return bool(self._client.is_connected)

    @property
    def problems(self) -> list[str]:
        """As ``Bus.problems``."""
        return self._publisher.problems if self.connected else ["nats"]

    @property
    def max_payload(self) -> int:
        """As ``Bus.max_payload``."""
        return int(self._client.max_payload)

    async def ensure(self, stream: Stream, *, resize: bool = False) -> str:
        """As ``Bus.ensure``."""
        with translate_errors(f"stream {stream.name}"):
            return await streams.ensure(self._requests.api, stream, resize=resize)

    async def state(self, stream: str) -> StreamState:
        """As ``Bus.state``."""
        sent_ns = self.clock.elapsed_ns()
        with translate_errors(stream):
            info = await self._requests.api(f"STREAM.INFO.{stream}", {})
            # In a cluster another stream may be led by another server, and the times of spans are those of this one.
            if stream == SPANS and "ts" in info:
                self.clock.note(parse_instant(info["ts"]), sent_ns)
            return state_of(info)

    async def position_at(self, stream: str, time_ns: int) -> Position:
        """Ask the broker how many messages a consumer from *time_ns* on would receive; see ``Bus.position_at``."""
        # Read the state first: messages that arrive after it make the result earlier, never too late.
        state = await self.state(stream)
        with translate_errors(stream):
            name = uuid.uuid4().hex
            config = {
                "name": name,
                "deliver_policy": "by_start_time",
                "opt_start_time": render_instant(time_ns),
                "ack_policy": "none",
                "mem_storage": True,
                "inactive_threshold": 5 * SECOND,
            }
            create = f"CONSUMER.CREATE.{stream}.{name}"
            consumer = await self._requests.api(create, {"stream_name": stream, "config": config})
            await self._requests.api(f"CONSUMER.DELETE.{stream}.{name}", {})
        return Position(state.created_ns, max(state.last_sequence - int(consumer["num_pending"]), 0))

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        id: str | None = None,
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """As ``Bus.publish``; the broker has 5 s to acknowledge."""
        return await self._publisher.publish(subject, payload, id=id, expect_last=expect_last, headers=headers)

    def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """As ``Bus.follow``."""
        return self._followers.follow(stream, subjects, after)

    def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[work_queue.JetStreamDelivery], None]:
        """As ``Bus.consume``."""
        return work_queue.consume(self._client, self._requests, stream, durable, batch=batch, ack_wait_s=ack_wait_s)

    async def done_up_to(self, stream: str, durable: str) -> int:
        """As ``Bus.done_up_to``."""
        return await work_queue.done_up_to(self._requests, stream, durable)

    async def delivered_up_to(self, stream: str, durable: str) -> int | None:
        """As ``Bus.delivered_up_to``."""
        return await work_queue.delivered_up_to(self._requests, stream, durable)

    async def erase(self, stream: str, sequence: int) -> None:
        """As ``Bus.erase``."""
        await self._contents.erase(stream, sequence)

    async def notify(self, subject: str, payload: bytes) -> None:
        """As ``Bus.notify``."""
        with translate_errors(subject):
            await self._client.publish(subject, payload)

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """As ``Bus.request``."""
        answers = await self.request_many(subject, payload, lambda answers: 0 if answers else timeout_s)
        if not answers:
            raise Unavailable(f"{subject}: no answer")
        return answers[0]

    async def request_many(self, subject: str, payload: bytes, wait_policy: WaitPolicy) -> list[bytes]:
        """As ``Bus.request_many``."""
        return await request_reply.request_many(self._client, self.set_aside, subject, payload, wait_policy)

    def serve(self, subject: str, handler: Handler, *, group: str = "") -> contextlib.AbstractAsyncContextManager[None]:
        """As ``Bus.serve``."""
        return request_reply.serve(self._client, self.set_aside, subject, handler, group)

    def kv(self, bucket: str) -> JetStreamKeyValue:
        """As ``Bus.kv``."""
        return JetStreamKeyValue(self._contents, bucket)

    def objects(self, bucket: str) -> JetStreamObjects:
        """As ``Bus.objects``."""
        return JetStreamObjects(self._contents, bucket)
