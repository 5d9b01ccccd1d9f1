"""
The bus on NATS JetStream: the only module that imports nats.

It speaks the JetStream API in JSON itself and leaves to nats-py what it does well, the connection. What that avoids,
each seen to happen: futures of ``publish_async`` that never end, fetch loops that lose messages on a dropped
connection without a word, key-value watches that are deaf for 16 s after a restart, reads of an overwritten object
that hang for ever.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tokentrace.bus import (
    HEADROOM_BYTES,
    MIN_STREAM_BYTES,
    Chunk,
    Handler,
    Message,
    Position,
    PubAck,
    Stream,
    StreamState,
)
from tokentrace.bus.stores import JetStreamKeyValue, JetStreamObjects
from tokentrace.errors import Conflict, Rejected, TokentraceError, Unavailable
from tokentrace.units import SECOND, parse_instant, render_instant

log = logging.getLogger("tokentrace.bus")

_PUBLISH_WINDOW = 2048
_API_TIMEOUT_S = 5.0
_BEAT_S = 1.0
_EXPIRES_S = 30.0
_FETCH = 256
_PART = "Tokentrace-Part"

_NO_STREAM = 10059
_NO_SPACE = 10047
_NO_MESSAGE = 10037
_DELETE_FAILED = 10043
_WRONG_LAST = (10071, 10164)
#: Refusals that pass: a full stream drains, a leader is elected, a disk gets space again.
_IS_FULL = 10077
_PASSING = (10023, 10008, 10074, 503)


class _Full(Unavailable):
    """A stream holds what it may hold: a healthy broker's answer."""


class _ApiError(TokentraceError):
    """JetStream's own words; translated before anybody outside sees it."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = int(error.get("err_code") or error.get("code") or 0)
        self.status = int(error.get("code") or 0)
        super().__init__(str(error.get("description") or error))

    def translated(self) -> TokentraceError:
        if self.code in _WRONG_LAST:
            return Conflict(str(self))
        if self.code == _IS_FULL:
            return _Full(f"JetStream: {self} ({self.code})")
        if self.code in _PASSING or self.status >= 500:
            return Unavailable(f"JetStream: {self} ({self.code})")
        return Rejected(f"JetStream: {self} ({self.code})")


@contextlib.contextmanager
def _border(what: str) -> Any:
    """Translate everything nats-py raises on the way out."""
    try:
        yield
    except _ApiError as exc:
        raise exc.translated() from exc
    except nats.errors.MaxPayloadError as exc:
        raise Rejected(f"{what}: message is larger than the broker takes", status=413) from exc
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"{what}: nobody answers") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"{what}: {type(exc).__name__}") from exc


@contextlib.asynccontextmanager
async def connect(
    url: str, *, name: str, inbox_prefix: str = "_INBOX", wait_s: float = 10.0
) -> AsyncIterator[JetStream]:
    """
    A connection to the broker at *url*, kept up until the block ends.

    Args:
        name: Shown in the broker's monitoring.
        wait_s: How long the first connection may take, seconds.

    Raises:
        Unavailable: Nobody there within *wait_s*.
    """
    link = _Link(url, name)
    try:
        async with asyncio.timeout(wait_s):
            client = await link.open(inbox_prefix)
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        await link.abandon()
        raise Unavailable(
            f"no NATS server at {_without_secret(url)} ({link.last_error or type(exc).__name__})"
        ) from exc
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
        _abort(client)
        # The socket of a cut connection is closed in the loop's next turn.
        await asyncio.sleep(0)


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


class _Link:
    """Connects, logs what happens to the connection, and cuts a dead one that nats-py waits on."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name
        self.last_error = ""
        self._client: Client | None = None
        self.on_down: Callable[[], None] = lambda: None

    async def open(self, inbox_prefix: str) -> Client:
        client = self._client = Client()
        await client.connect(
            self._url,
            name=self._name,
            inbox_prefix=inbox_prefix,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnect,
            reconnected_cb=self._on_reconnect,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            pending_size=0,
        )
        return client

    def cut(self) -> None:
        """Close the socket of a connection that was never made, without waiting."""
        if self._client is not None:
            _abort(self._client)

    async def abandon(self) -> None:
        """Let go of a connection that was never made."""
        if self._client is None:
            return
        self.cut()
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(1):
                await self._client.close()

    async def _on_error(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self.last_error:
            log.info("nats %s: %s", self._name, text)
        self.last_error = text

    async def _on_disconnect(self) -> None:
        log.info("nats %s: disconnected", self._name)
        self.on_down()

    async def _on_reconnect(self) -> None:
        self.last_error = ""
        log.info("nats %s: connected again", self._name)

    async def watch(self, client: Client) -> None:
        """A dead link with unsent bytes keeps nats-py waiting for a quarter of an hour: abort it after 5 s."""
        stuck = 0
        while True:
            await asyncio.sleep(1)
            stuck = stuck + 1 if client.is_reconnecting else 0
            if stuck == 5:
                stuck = 0
                _abort(client)


def _abort(client: Client) -> None:
    """Cut the socket under *client*; nats-py has no call for it."""
    writer = getattr(getattr(client, "_transport", None), "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


class JetStream:
    """``Bus`` over one NATS connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._window = asyncio.Semaphore(_PUBLISH_WINDOW)
        self._waiting: dict[str, asyncio.Future[PubAck]] = {}
        self._numbers = itertools.count()
        self._acks = ""
        #: Beginning of a subject -> why nothing can be stored on it, since the last time something could.
        self._refused: dict[str, str] = {}

    async def start(self) -> None:
        """Listen for acknowledgements."""
        self._acks = self._client.new_inbox() + "."
        with _border("subscribe"):
            await self._client.subscribe(self._acks + "*", cb=self._on_ack, pending_msgs_limit=0, pending_bytes_limit=0)

    def fail_waiting(self) -> None:
        """End every publish under way: its acknowledgement cannot arrive on a connection that is gone."""
        self._refused.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the connection was lost before the acknowledgement"))

    @property
    def connected(self) -> bool:
        """False while the broker is away."""
        return bool(self._client.is_connected)

    @property
    def troubles(self) -> list[str]:
        """As ``Bus.troubles``."""
        if not self.connected:
            return ["nats"]
        return [f"nats stores nothing on {subject}: {why}" for subject, why in sorted(self._refused.items())]

    @property
    def max_payload(self) -> int:
        """Largest message the broker takes, bytes."""
        return int(self._client.max_payload)

    # -- streams

    async def ensure(self, stream: Stream) -> None:
        """As ``Bus.ensure``."""
        config = _stream_config(stream)
        while True:
            try:
                await self._ensure(config)
                return
            except _ApiError as exc:
                if exc.code != _NO_SPACE or config["max_bytes"] <= MIN_STREAM_BYTES:
                    raise exc.translated() from exc
                config["max_bytes"] //= 2
                log.warning("stream %s: the disk cannot hold it, cut to %d bytes", stream.name, config["max_bytes"])

    async def _ensure(self, config: dict[str, Any]) -> None:
        name = config["name"]
        try:
            info = await self._api(f"STREAM.INFO.{name}", {})
        except _ApiError as exc:
            if exc.code != _NO_STREAM:
                raise
            await self._api(f"STREAM.CREATE.{name}", config)
            return
        current = info["config"]
        wanted = {**current, **config, "persist_mode": current.get("persist_mode", "default")}
        # A stream cut to a small disk stays cut: growing it again is the operator's decision.
        if 0 < current.get("max_bytes", -1) < config["max_bytes"] and info["state"]["bytes"] > 0:
            wanted["max_bytes"] = current["max_bytes"]
        # Nor is a stream cut below what it holds: that would throw away what somebody has not read.
        if wanted["max_bytes"] < info["state"]["bytes"]:
            wanted["max_bytes"] = current["max_bytes"]
        if any(
            current.get(key) != value for key, value in wanted.items() if key != "persist_mode" or value != "default"
        ):
            await self._api(
                f"STREAM.UPDATE.{name}", {k: v for k, v in wanted.items() if (k, v) != ("persist_mode", "default")}
            )

    async def state(self, stream: str) -> StreamState:
        """As ``Bus.state``."""
        with _border(stream):
            return _state(await self._api(f"STREAM.INFO.{stream}", {}))

    async def before(self, stream: str, time_ns: int) -> Position:
        """As ``Bus.before``: the broker counts what a reader from then on would get."""
        # Counted before, so that what comes meanwhile only makes the answer earlier.
        state = await self.state(stream)
        with _border(stream):
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

    async def _api(self, call: str, body: Any) -> dict[str, Any]:
        with _without_api_errors(call):
            reply = await self._client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=_API_TIMEOUT_S)
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer:
            raise _ApiError(answer["error"])
        return answer

    # -- publish

    async def _on_ack(self, msg: Msg) -> None:
        future = self._waiting.pop(msg.subject[len(self._acks) :], None)
        if future is None or future.done():
            return
        if msg.headers and msg.headers.get("Status") == "503":
            future.set_exception(Unavailable("no stream takes this subject yet"))
            return
        try:
            answer = json.loads(msg.data)
            if "error" in answer:
                future.set_exception(_ApiError(answer["error"]).translated())
            else:
                future.set_result(PubAck(int(answer["seq"]), bool(answer.get("duplicate"))))
        except (ValueError, KeyError) as exc:
            future.set_exception(Unavailable(f"acknowledgement not understood: {exc}"))

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
                if self.connected and not isinstance(exc, _Full):
                    self._refused[beginning] = str(exc).removeprefix(f"publish {subject}: ")
                raise
            self._refused.pop(beginning, None)
            return ack

    async def _publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        number = str(next(self._numbers))
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            with _border(f"publish {subject}"):
                await self._client.publish(subject, payload, reply=self._acks + number, headers=headers or None)
                async with asyncio.timeout(_API_TIMEOUT_S):
                    return await future
        finally:
            self._waiting.pop(number, None)

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
            except (Unavailable, _ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
                if self._client.is_closed:
                    raise Unavailable("the connection to NATS is closed") from exc
                log.debug("follow %s: %s", stream, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    async def _follow_once(
        self, stream: str, subjects: Sequence[str], after: Position | None
    ) -> AsyncGenerator[Chunk, None]:
        info = _state(await self._api(f"STREAM.INFO.{stream}", {}))
        start = after.sequence if after is not None else 0
        rewound = after is not None and (info.created_ns != after.created_ns or info.last_sequence < start)
        if rewound:
            start = 0
        missing = (start + 1, info.first_sequence - 1) if info.first_sequence > start + 1 and not rewound else None
        async with _Inbox(self._client) as inbox:
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
            if consumer["num_pending"] == 0 or rewound or missing:
                yield Chunk([], consumer["num_pending"], info.created_ns, missing, rewound)
            pull = _Pull(self._client, stream, inbox, _FETCH)
            expected = 0
            async for batch in pull.batches():
                messages, pending, hole = [], 0, False
                for msg in batch:
                    meta = _meta(msg.reply)
                    if meta.consumer_sequence != expected + 1:
                        hole = True
                        break
                    expected, pending = meta.consumer_sequence, meta.pending
                    messages.append(Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {}))
                if messages:
                    yield Chunk(messages, pending, info.created_ns)
                if hole:
                    raise Unavailable("messages were lost on the way")

    # -- work queue

    async def consume(
        self, stream: str, durable: str, *, batch: int, patience_s: float
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
                            "ack_wait": int(patience_s * SECOND),
                            "max_deliver": -1,
                            "max_ack_pending": 20_000,
                            "deliver_policy": "all",
                        },
                    },
                )
                async with _Inbox(self._client) as inbox:
                    pull = _Pull(self._client, stream, inbox, batch, consumer=durable)
                    async for messages in pull.batches():
                        pause = 0.05
                        yield [JetStreamDelivery(self._client, msg) for msg in messages]
            except (Unavailable, _ApiError, nats.errors.Error, TimeoutError, OSError) as exc:
                if self._client.is_closed:
                    raise Unavailable("the connection to NATS is closed") from exc
                log.debug("consume %s: %s", stream, exc)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)

    # -- request and reply

    async def request(self, subject: str, payload: bytes, *, timeout_s: float) -> bytes:
        """As ``Bus.request``."""
        answers = await self.gather(subject, payload, timeout_s=timeout_s, enough=lambda got: len(got) >= 1)
        if not answers:
            raise Unavailable(f"{subject}: nobody answers")
        return answers[0]

    async def gather(
        self, subject: str, payload: bytes, *, timeout_s: float, enough: Callable[[list[bytes]], bool]
    ) -> list[bytes]:
        """As ``Bus.gather``; an answer over the broker's limit comes in parts and is put together here."""
        answers: list[bytes] = []
        parts: dict[str, dict[int, bytes]] = {}
        async with _Inbox(self._client) as inbox:
            with _border(subject):
                await self._client.publish(subject, payload, reply=inbox.subject)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        while not enough(answers):
                            for msg in await inbox.take():
                                if not msg.data and (msg.headers or {}).get("Status") == "503":
                                    return answers
                                whole = _joined(msg, parts)
                                if whole is not None:
                                    answers.append(whole)
        return answers

    @contextlib.asynccontextmanager
    async def serve(self, subject: str, handler: Handler, *, group: str = "") -> AsyncIterator[None]:
        """As ``Bus.serve``."""
        room = self.max_payload - HEADROOM_BYTES

        async def answer(msg: Msg) -> None:
            try:
                for payload in await handler(msg.data):
                    for headers, part in _split(payload, room):
                        await self._client.publish(msg.reply, part, headers=headers)
            except nats.errors.Error as exc:
                log.info("answer to %s: %s", subject, exc)
            except TokentraceError as exc:
                log.warning("answer to %s: %s", subject, exc)

        with _border(f"subscribe {subject}"):
            subscription = await self._client.subscribe(subject, queue=group, cb=answer)
        try:
            yield
        finally:
            await _unsubscribe(self._client, subscription)

    def kv(self, bucket: str) -> JetStreamKeyValue:
        """As ``Bus.kv``."""
        return JetStreamKeyValue(self, bucket)

    def objects(self, bucket: str) -> JetStreamObjects:
        """As ``Bus.objects``."""
        return JetStreamObjects(self, bucket)

    async def last(self, stream: str, subject: str) -> Message | None:
        """The last message of *subject*; None when there is none."""
        with _border(stream):
            try:
                found = (await self._api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))["message"]
            except _ApiError as exc:
                if exc.code == _NO_MESSAGE:
                    return None
                raise
        headers = _parse_headers(base64.b64decode(found.get("hdrs") or ""))
        payload = base64.b64decode(found.get("data") or "")
        return Message(found["subject"], payload, int(found["seq"]), parse_instant(found["time"]), headers)

    async def subjects(self, stream: str, pattern: str) -> list[str]:
        """The subjects that hold messages."""
        with _border(stream):
            info = await self._api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
        return sorted(info["state"].get("subjects") or {})

    async def erase(self, stream: str, sequence: int) -> None:
        """As ``Bus.erase``; what is merely acknowledged or purged stays readable in the files."""
        with _border(stream):
            try:
                await self._api(f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})
            except _ApiError as exc:
                if exc.code not in (_NO_MESSAGE, _DELETE_FAILED):
                    raise

    async def purge(self, stream: str, subject: str) -> None:
        """Remove the messages of *subject*."""
        with _border(stream):
            await self._api(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def read(self, stream: str, subject: str, count: int) -> list[bytes]:
        """The first *count* payloads of *subject*."""
        payloads: list[bytes] = []
        with _border(stream):
            async with contextlib.aclosing(self._follow_once(stream, [subject], None)) as chunks, asyncio.timeout(30):
                async for chunk in chunks:
                    payloads += [message.payload for message in chunk.messages]
                    if len(payloads) >= count or chunk.pending == 0:
                        break
        return payloads[:count]


@contextlib.contextmanager
def _without_api_errors(call: str) -> Any:
    """``_border`` for a raw request, whose answer may still hold an error of JetStream."""
    try:
        yield
    except nats.errors.NoRespondersError as exc:
        raise Unavailable(f"JetStream {call}: nobody answers") from exc
    except (nats.errors.Error, TimeoutError, OSError) as exc:
        raise Unavailable(f"JetStream {call}: {type(exc).__name__}") from exc


class _Inbox:
    """A private subject and what has arrived on it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.subject = client.new_inbox()
        self.name = self.subject.rpartition(".")[2]
        self._got: list[Msg] = []
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None

    async def __aenter__(self) -> _Inbox:
        with _border("subscribe"):
            self._subscription = await self._client.subscribe(
                self.subject, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._subscription is not None:
            await _unsubscribe(self._client, self._subscription)

    async def _on_message(self, msg: Msg) -> None:
        self._got.append(msg)
        self._wake.set()

    async def take(self) -> list[Msg]:
        """Everything that has arrived, at least one message."""
        while not self._got:
            self._wake.clear()
            await self._wake.wait()
        got, self._got = self._got, []
        return got


async def _unsubscribe(client: Client, subscription: Subscription) -> None:
    if client.is_closed:
        return
    # Gone with the connection is as good as unsubscribed.
    with contextlib.suppress(nats.errors.Error, OSError):
        await subscription.unsubscribe()


class _Pull:
    """Keeps a pull consumer asked, and notices when it has died."""

    def __init__(self, client: Client, stream: str, inbox: _Inbox, batch: int, consumer: str | None = None) -> None:
        self._client, self._inbox, self._batch = client, inbox, batch
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer or inbox.name}"
        ask = {"batch": batch, "expires": int(_EXPIRES_S * SECOND), "idle_heartbeat": int(_BEAT_S * SECOND)}
        self._ask = json.dumps(ask).encode()

    async def batches(self) -> AsyncGenerator[list[Msg], None]:
        """Lists of messages, never empty. Unavailable when nothing, not even a heartbeat, comes any more."""
        room = 0
        connection = self._client.stats["reconnects"]
        while True:
            if room <= self._batch // 2:
                await self._client.publish(self._next, self._ask, reply=self._inbox.subject)
                room += self._batch
            try:
                async with asyncio.timeout(2.5 * _BEAT_S):
                    arrived = await self._inbox.take()
            except TimeoutError as exc:
                raise Unavailable("the consumer is silent") from exc
            if self._client.stats["reconnects"] != connection:
                raise Unavailable("connected anew")
            messages = []
            trouble = ""
            for msg in arrived:
                if msg.reply.startswith("$JS.ACK."):
                    messages.append(msg)
                    room -= 1
                    continue
                headers = msg.headers or {}
                status = headers.get("Status")
                if status in ("404", "408"):
                    room -= int(headers.get("Nats-Pending-Messages", self._batch))
                elif status != "100":
                    trouble = f"{status} {headers.get('Description')}"
            if messages:
                yield messages
            if trouble:
                raise Unavailable(trouble)


class JetStreamDelivery:
    """``Delivery`` of a durable consumer."""

    __slots__ = ("_client", "_reply", "deliveries", "message")

    def __init__(self, client: Client, msg: Msg) -> None:
        meta = _meta(msg.reply)
        self._client, self._reply = client, msg.reply
        self.deliveries = meta.deliveries
        self.message = Message(msg.subject, msg.data, meta.sequence, meta.time_ns, msg.headers or {})

    async def ack(self) -> None:
        """As ``Delivery.ack``; one that is lost brings the message again, and its readers know it."""
        await self._answer(b"+ACK")

    async def nak(self, delay_s: float = 0.0) -> None:
        """As ``Delivery.nak``."""
        await self._answer(b"-NAK " + json.dumps({"delay": int(delay_s * SECOND)}).encode())

    async def term(self, reason: str) -> None:
        """As ``Delivery.term``."""
        await self._answer(b"+TERM " + reason.encode("ascii", "replace")[:200])

    async def in_progress(self) -> None:
        """As ``Delivery.in_progress``."""
        await self._answer(b"+WPI")

    async def _answer(self, word: bytes) -> None:
        with _border("acknowledge"):
            await self._client.publish(self._reply, word)


class _Meta(NamedTuple):
    deliveries: int
    sequence: int
    consumer_sequence: int
    time_ns: int
    pending: int


def _meta(reply: str) -> _Meta:
    """``$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<ns>.<pending>``, or longer."""
    t = reply.split(".")
    at = 4 if len(t) == 9 else 6
    return _Meta(int(t[at]), int(t[at + 1]), int(t[at + 2]), int(t[at + 3]), int(t[at + 4]))


def _stream_config(stream: Stream) -> dict[str, Any]:
    config: dict[str, Any] = {
        "name": stream.name,
        "subjects": list(stream.subjects),
        "retention": "workqueue" if stream.work_queue else "limits",
        "discard": "new" if stream.refuses else "old",
        "storage": "file",
        "num_replicas": 1,
        "max_bytes": stream.max_bytes,
        "max_age": stream.max_age_ns,
        "max_msgs_per_subject": stream.per_subject,
        "duplicate_window": min(stream.duplicate_window_ns, stream.max_age_ns or stream.duplicate_window_ns),
    }
    if stream.kind != "log":
        config |= {"allow_rollup_hdrs": True, "allow_direct": True}
    if stream.kind == "kv":
        config |= {"deny_delete": True, "allow_msg_ttl": True}
    if not stream.durable:
        config["persist_mode"] = "async"
    return config


def _state(info: Mapping[str, Any]) -> StreamState:
    state = info["state"]
    return StreamState(
        created_ns=parse_instant(info["created"]),
        first_sequence=int(state["first_seq"]),
        last_sequence=int(state["last_seq"]),
        messages=int(state["messages"]),
        bytes=int(state["bytes"]),
        max_bytes=int(info["config"].get("max_bytes", -1)),
        first_time_ns=parse_instant(state["first_ts"]) if state["messages"] else 0,
    )


def _split(payload: bytes, room: int) -> list[tuple[dict[str, str] | None, bytes]]:
    if len(payload) <= room:
        return [(None, payload)]
    name = uuid.uuid4().hex
    count = -(-len(payload) // room)
    return [({_PART: f"{name} {i} {count}"}, payload[i * room : (i + 1) * room]) for i in range(count)]


def _joined(msg: Msg, parts: dict[str, dict[int, bytes]]) -> bytes | None:
    label = (msg.headers or {}).get(_PART)
    if label is None:
        return bytes(msg.data)
    name, index, count = label.split()
    have = parts.setdefault(name, {})
    have[int(index)] = msg.data
    if len(have) < int(count):
        return None
    return b"".join(have[i] for i in sorted(parts.pop(name)))


def _parse_headers(block: bytes) -> dict[str, str]:
    lines = block.decode("utf-8", "replace").split("\r\n")[1:]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines if line)}
