"""``Bus`` over one NATS connection."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tokentrace.bad_data import UNREADABLE, SetAside
from tokentrace.bus.contract import HEADROOM_BYTES, Chunk, Handler, Message, PubAck, Stream, StreamState, WaitPolicy
from tokentrace.bus.jetstream import streams
from tokentrace.bus.jetstream.codec import decode_answer, join_parts, parse_headers, split, state_of
from tokentrace.bus.jetstream.connection import Connection, abort, parse_urls, without_secret
from tokentrace.bus.jetstream.errors import (
    DELETE_FAILED,
    NO_MESSAGE,
    ApiError,
    Full,
    translate_errors,
    translate_request_errors,
)
from tokentrace.bus.jetstream.kv import JetStreamKeyValue
from tokentrace.bus.jetstream.objects import JetStreamObjects
from tokentrace.bus.jetstream.pull import Inbox, JetStreamDelivery, Pull, parse_meta, unsubscribe
from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.records import Position
from tokentrace.units import SECOND, parse_instant, render_instant

log = logging.getLogger("tokentrace.bus")

_PUBLISH_WINDOW = 2048
_API_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 30.0
#: What has not come by then may have been removed.
_STALLED_S = 0.5
_FETCH = 256


@contextlib.asynccontextmanager
async def connect(
    url: str, *, name: str, inbox_prefix: str = "_INBOX", wait_s: float = 10.0
) -> AsyncIterator[JetStream]:
    """
    A connection to the broker at *url*, kept up until the block ends.

    Args:
        url: Of a cluster the URLs of several servers, separated by commas: one that answers is taken.
        name: Shown in the broker's monitoring.
        wait_s: How long the first connection may take, seconds.

    Raises:
        Unavailable: Nobody there within *wait_s*.
        ConfigError: *url* is not one.
    """
    link = Connection(parse_urls(url), name)
    try:
        async with asyncio.timeout(wait_s):
            client = await link.open(inbox_prefix)
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        await link.abandon()
        raise Unavailable(f"no NATS server at {without_secret(url)} ({link.last_error or type(exc).__name__})") from exc
    except asyncio.CancelledError:
        link.cut()
        raise
    bus = JetStream(client)
    link.on_down = bus.fail_waiting
    watchdog = asyncio.create_task(link.watch(client), name="nats watchdog")
    try:
        await bus.start()
        yield bus
    finally:
        watchdog.cancel()
        # A broker that died takes its goodbye with it; the connection is over either way.
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(2):
                await client.close()
        abort(client)
        # The socket of a cut connection is closed in the loop's next turn.
        await asyncio.sleep(0)


class JetStream:
    """``Bus`` over one NATS connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._window = asyncio.Semaphore(_PUBLISH_WINDOW)
        self._waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._numbers = itertools.count()
        self._replies = ""
        #: Beginning of a subject -> why nothing can be stored on it, since the last time something could.
        self._refused: dict[str, str] = {}
        self.set_aside = SetAside()

    async def start(self) -> None:
        """Listen for acknowledgements and other answers of JetStream's."""
        self._replies = self._client.new_inbox() + "."
        with translate_errors("subscribe"):
            await self._client.subscribe(
                self._replies + "*", cb=self._on_reply, pending_msgs_limit=0, pending_bytes_limit=0
            )

    def fail_waiting(self) -> None:
        """End every request under way: its answer cannot arrive on a connection that is gone."""
        self._refused.clear()
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the connection was lost before the answer"))

    @property
    def connected(self) -> bool:
        """False while the broker is away."""
        return bool(self._client.is_connected)

    @property
    def problems(self) -> list[str]:
        """As ``Bus.troubles``."""
        if not self.connected:
            return ["nats"]
        return [f"nats stores nothing on {subject}: {why}" for subject, why in sorted(self._refused.items())]

    @property
    def max_payload(self) -> int:
        """Largest message the broker takes, bytes."""
        return int(self._client.max_payload)

    # -- streams

    async def ensure(self, stream: Stream, *, resize: bool = False) -> str:
        """As ``Bus.ensure``."""
        with translate_errors(f"stream {stream.name}"):
            return await streams.ensure(self._api, stream, resize=resize)

    async def state(self, stream: str) -> StreamState:
        """As ``Bus.state``."""
        with translate_errors(stream):
            return state_of(await self._api(f"STREAM.INFO.{stream}", {}))

    async def position_at(self, stream: str, time_ns: int) -> Position:
        """As ``Bus.before``: the broker counts what a reader from then on would get."""
        # Counted before, so that what comes meanwhile only makes the answer earlier.
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
            consumer = await self._api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
            await self._api(f"CONSUMER.DELETE.{stream}.{name}", {})
        return Position(state.created_ns, max(state.last_sequence - int(consumer["num_pending"]), 0))

    async def _ask(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """
        The broker's answer to a request; ``NoRespondersError`` when nobody listens there.

        nats-py's own waits with ``asyncio.wait_for``, which loses a cancellation that comes together with the answer in
        Python 3.11: whoever asks in a loop could not be stopped.
        """
        number = str(next(self._numbers))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = subject, future
        try:
            await self._client.publish(subject, payload, reply=self._replies + number, headers=headers)
            async with asyncio.timeout(_API_TIMEOUT_S):
                return await future
        finally:
            self._waiting.pop(number, None)

    async def _on_reply(self, msg: Msg) -> None:
        number = msg.subject[len(self._replies) :]
        subject, future = self._waiting.get(number, ("", None))
        if future is None or future.done():
            return
        if _is_nobody(msg):
            future.set_exception(nats.errors.NoRespondersError())
            return
        # Any client that listens on the subject may answer as well: the broker's own answer is still to come.
        with self.set_aside.guard(subject, "answer"):
            future.set_result(decode_answer(msg.data))

    async def _api(self, call: str, body: Any) -> dict[str, Any]:
        with translate_request_errors(call):
            answer = await self._ask(f"$JS.API.{call}", json.dumps(body).encode())
        if "error" in answer:
            raise ApiError(answer["error"])
        return answer

    # -- publish

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        id: str | None = None,
        expect_last: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> PubAck:
        """As ``Bus.publish``; ends within 5 s, whatever the broker does."""
        sent: dict[str, str] = dict(headers or {})
        if id is not None:
            sent["Nats-Msg-Id"] = id
        if expect_last is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect_last)
        beginning = ".".join(subject.split(".", 2)[:2])
        async with self._window:
            try:
                ack = await self._publish(subject, payload, sent)
            except Unavailable as exc:
                # A full work queue says so; what is meant here is a store that fails, and may go on failing.
                if self.connected and not isinstance(exc, Full):
                    self._refused[beginning] = str(exc).removeprefix(f"publish {subject}: ")
                raise
            self._refused.pop(beginning, None)
            return ack

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        with translate_errors(f"publish {subject}"):
            try:
                answer = await self._ask(subject, payload, headers or None)
            except nats.errors.NoRespondersError as exc:
                raise Unavailable("no stream takes this subject yet") from exc
            if "error" in answer:
                raise ApiError(answer["error"])
            return PubAck(answer["seq"], bool(answer.get("duplicate")))

    # -- follow

    async def follow(self, stream: str, subjects: Sequence[str], after: Position | None) -> AsyncGenerator[Chunk, None]:
        """As ``Bus.follow``: an ack-less consumer, made anew whenever its own numbering shows a hole."""
        position, pause = after, 0.05
        while True:
            try:
                async for chunk in self._follow_once(stream, subjects, position):
                    pause = 0.05
                    yield chunk
                    position = chunk.after(position)
            except (Unavailable, ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
                if self._client.is_closed:
                    raise Unavailable("the connection to NATS is closed") from exc
                log.debug("follow %s: %s", stream, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _follow_once(
        self, stream: str, subjects: Sequence[str], after: Position | None
    ) -> AsyncGenerator[Chunk, None]:
        info = state_of(await self._api(f"STREAM.INFO.{stream}", {}))
        start = after.sequence if after is not None else 0
        rewound = after is not None and (info.created_ns != after.created_ns or info.last_sequence < start)
        if rewound:
            start = 0
        missing = (start + 1, info.first_sequence - 1) if info.first_sequence > start + 1 and not rewound else None
        async with Inbox(self._client) as inbox:
            consumer = await self._api(
                f"CONSUMER.CREATE.{stream}.{inbox.name}",
                {
                    "stream_name": stream,
                    "config": {
                        "name": inbox.name,
                        "deliver_policy": "by_start_sequence",
                        "opt_start_seq": start + 1,
                        "filter_subjects": list(subjects),
                        "ack_policy": "none",
                        "mem_storage": True,
                        "num_replicas": 1,
                        "inactive_threshold": 60 * SECOND,
                    },
                },
            )
            try:
                if consumer["num_pending"] == 0 or rewound or missing:
                    yield Chunk([], consumer["num_pending"], info.created_ns, missing, rewound)
                pull = Pull(self._client, stream, inbox, _FETCH)
                expected = 0
                async for batch in pull.batches():
                    messages, pending, hole = [], 0, False
                    for msg in batch:
                        meta = parse_meta(msg.reply)
                        if meta.consumer_sequence != expected + 1:
                            hole = True
                            break
                        expected, pending = meta.consumer_sequence, meta.pending
                        messages.append(Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {}))
                    if messages:
                        yield Chunk(messages, pending, info.created_ns)
                    if hole:
                        raise Unavailable("messages were lost on the way")
            finally:
                # A stream takes a thousand consumers, and one left behind stays for a minute: 150 pieces of a snapshot
                # are as many.
                with contextlib.suppress(nats.errors.Error, OSError):
                    await self._client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{inbox.name}")

    # -- work queue

    async def consume(
        self, stream: str, durable: str, *, batch: int, ack_wait_s: float
    ) -> AsyncGenerator[Sequence[JetStreamDelivery], None]:
        """As ``Bus.consume``: one durable consumer, shared by all who name it."""
        pause = 0.05
        while True:
            try:
                await self._api(
                    f"CONSUMER.CREATE.{stream}.{durable}",
                    {
                        "stream_name": stream,
                        "config": {
                            "name": durable,
                            "durable_name": durable,
                            "ack_policy": "explicit",
                            "ack_wait": int(ack_wait_s * SECOND),
                            "max_deliver": -1,
                            "max_ack_pending": 20_000,
                            "deliver_policy": "all",
                        },
                    },
                )
                async with Inbox(self._client) as inbox:
                    pull = Pull(self._client, stream, inbox, batch, consumer=durable)
                    async for messages in pull.batches():
                        pause = 0.05
                        yield [JetStreamDelivery(self._client, msg) for msg in messages]
            except (Unavailable, ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
                if self._client.is_closed:
                    raise Unavailable("the connection to NATS is closed") from exc
                log.debug("consume %s: %s", stream, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    # -- request and reply

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """As ``Bus.request``."""
        answers = await self.request_many(subject, payload, lambda got: 0 if got else timeout_s)
        if not answers:
            raise Unavailable(f"{subject}: nobody answers")
        return answers[0]

    async def request_many(self, subject: str, payload: bytes, patience: WaitPolicy) -> list[bytes]:
        """As ``Bus.gather``; an answer over the broker's limit comes in parts and is put together here."""
        answers: list[bytes] = []
        parts: dict[str, dict[int, bytes]] = {}
        async with Inbox(self._client) as inbox:
            with translate_errors(subject):
                await self._client.publish(subject, payload, reply=inbox.subject)
                asked = asyncio.get_running_loop().time()
                with contextlib.suppress(TimeoutError):
                    while wait_s := patience(answers):
                        async with asyncio.timeout_at(asked + wait_s):
                            came = await inbox.take()
                        for msg in came:
                            if _is_nobody(msg):
                                return answers
                            with self.set_aside.guard(subject, "part of an answer"):
                                whole = join_parts(msg, parts)
                                if whole is not None:
                                    answers.append(whole)
        return answers

    @contextlib.asynccontextmanager
    async def serve(self, subject: str, handler: Handler, *, group: str = "") -> AsyncIterator[None]:
        """As ``Bus.serve``."""
        room = self.max_payload - HEADROOM_BYTES

        async def answer(msg: Msg) -> None:
            try:
                async for payload in handler(msg.data):
                    for headers, part in split(payload, room):
                        await self._client.publish(msg.reply, part, headers=headers)
            except nats.errors.Error as exc:
                log.info("answer to %s: %s", subject, exc)
            except TokentraceError as exc:
                log.warning("answer to %s: %s", subject, exc)
            except UNREADABLE as exc:
                log.exception("answer to %s", subject)
                self.set_aside.note(subject, "question", exc)

        answering: set[asyncio.Task[None]] = set()

        async def begin(msg: Msg) -> None:
            # nats-py waits for this before it hands over the next request, which a slow answer must not hold up.
            task = asyncio.create_task(answer(msg))
            answering.add(task)
            task.add_done_callback(answering.discard)

        with translate_errors(f"subscribe {subject}"):
            subscription = await self._client.subscribe(subject, queue=group, cb=begin)
        try:
            yield
        finally:
            await unsubscribe(self._client, subscription)
            for task in answering:
                task.cancel()

    def kv(self, bucket: str) -> JetStreamKeyValue:
        """As ``Bus.kv``."""
        return JetStreamKeyValue(self, bucket)

    def objects(self, bucket: str) -> JetStreamObjects:
        """As ``Bus.objects``."""
        return JetStreamObjects(self, bucket)

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of *subject*; None when there is none."""
        with translate_errors(stream):
            try:
                found = (await self._api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))["message"]
            except ApiError as exc:
                if exc.code == NO_MESSAGE:
                    return None
                raise
        headers = parse_headers(base64.b64decode(found.get("hdrs") or ""))
        payload = base64.b64decode(found.get("data") or "")
        return Message(found["subject"], payload, int(found["seq"]), parse_instant(found["time"]), headers)

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects that hold messages."""
        with translate_errors(stream):
            info = await self._api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return sorted(info["state"].get("subjects") or {})

    async def erase(self, stream: str, sequence: int) -> None:
        """As ``Bus.erase``; what is merely acknowledged or purged stays readable in the files."""
        with translate_errors(stream):
            try:
                await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
            except ApiError as exc:
                if exc.code not in (NO_MESSAGE, DELETE_FAILED):
                    raise

    async def purge(self, stream: str, subject: str) -> None:
        """Remove the messages of *subject*."""
        with translate_errors(stream):
            await self._api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def read(self, stream: str, subject: str, count: int) -> list[bytes]:
        """The first *count* payloads of *subject*; fewer when they are removed meanwhile."""
        payloads: list[bytes] = []
        chunks = self._follow_once(stream, [subject], None)
        with translate_errors(stream):
            async with contextlib.aclosing(chunks), asyncio.timeout(_READ_TIMEOUT_S):
                while len(payloads) < count:
                    step = asyncio.ensure_future(anext(chunks))
                    try:
                        while not (await asyncio.wait([step], timeout=_STALLED_S))[0]:
                            if not await self.subjects(stream, subject):
                                return payloads
                    finally:
                        step.cancel()
                        await asyncio.wait([step])
                    chunk = step.result()
                    payloads += [message.payload for message in chunk.messages]
                    if chunk.pending == 0:
                        break
        return payloads[:count]


def _is_nobody(msg: Msg) -> bool:
    return not msg.data and (msg.headers or {}).get("Status") == "503"
