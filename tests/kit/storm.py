"""Sends random requests and messages to running services, many at a time, and checks every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from kit import otlp
from kit.environment import PATIENCE
from kit.random_http import HttpCase, RandomHttp
from kit.random_nats import NatsCase, nats_case

#: How many clients send at a time.
CLIENTS = 8
#: How long an answer may take, seconds.
_ANSWER_S = 10.0 * PATIENCE
#: A client of NATS asks after so many messages whether the broker has taken them.
_NATS_GROUP = 20


class Reply(NamedTuple):
    """The head and the body of an answer; the body of an endless answer is not read."""

    status: int
    headers: dict[str, str]
    body: bytes


class Storm:
    """
    Random requests to the servers on *ports* and random messages to the broker on *nats_port*.

    Case *n* is a function of *seed* and *n*, whatever was sent before.

    Attributes:
        statuses: Status -> number of answers; 0 = the connection was closed without an answer.
        failures: A text for each wrong answer, at most 20.
    """

    def __init__(self, seed: int, requests: RandomHttp, ports: Sequence[int], nats_port: int) -> None:
        self._seed, self._requests, self._ports, self._nats_port = seed, requests, ports, nats_port
        self.statuses: Counter[int] = Counter()
        self.messages = 0
        self.failures: list[str] = []

    def run(self, numbers: Iterable[int]) -> None:
        """Send the cases *numbers*: of five, three are HTTP requests and two NATS messages."""
        asyncio.run(self._run(list(numbers)))

    async def _run(self, numbers: list[int]) -> None:
        http = iter([number for number in numbers if number % 5 < 3])
        nats = iter([number for number in numbers if number % 5 >= 3])
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(self._ask(http))
            for _ in range(2):
                tasks.create_task(self._publish(nats))

    def _dice(self, number: int) -> random.Random:
        return random.Random(f"{self._seed} {number}")

    # -- HTTP

    async def _ask(self, numbers: Iterable[int]) -> None:
        kept: dict[int, _Connection] = {}
        for number in numbers:
            dice = self._dice(number)
            port = dice.choice(self._ports)
            case = self._requests.case(dice)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    reply = await self._exchange(case, port, kept)
            except TimeoutError:
                self._fail(number, case.sent, "no answer in time")
                continue
            self.statuses[reply.status if reply else 0] += 1
            if reply is None and case.whole:
                self._fail(number, case.sent, "no answer")
            elif reply is not None and (wrong := _fault(reply, case)):
                self._fail(number, case.sent, f"{wrong}: {reply.status} {reply.body[-300:]!r}")
        for connection in kept.values():
            await connection.close()

    async def _exchange(self, case: HttpCase, port: int, kept: dict[int, _Connection]) -> Reply | None:
        if not case.whole:
            connection = await _Connection.open(port)
            try:
                return await connection.exchange(case)
            finally:
                await connection.close()
        for _ in range(2):
            # The server may close a connection that was kept, at the moment at which it is used again.
            fresh = port not in kept
            connection = await _Connection.open(port) if fresh else kept.pop(port)
            reply: Reply | None = None
            try:
                reply = await connection.exchange(case)
            finally:
                if reply is not None and connection.stays:
                    kept[port] = connection
                else:
                    await connection.close()
            if reply is not None or fresh:
                return reply
        return None

    # -- NATS

    async def _publish(self, numbers: Iterable[int]) -> None:
        group: list[int] = []
        for number in numbers:
            group.append(number)
            if len(group) == _NATS_GROUP:
                await self._send(group)
                group = []
        await self._send(group)

    async def _send(self, numbers: Sequence[int]) -> None:
        """Publish a group on a connection of its own, because the broker closes it after an invalid message."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._nats_port)
        try:
            async with asyncio.timeout(_ANSWER_S):
                writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _STORM.* 1\r\n')
                for number in numbers:
                    writer.write(_wire(nats_case(self._dice(number)), number))
                writer.write(b"PING\r\n")
                await writer.drain()
                while line := await reader.readline():
                    if line.startswith((b"PONG", b"-ERR")):
                        break
            self.messages += len(numbers)
        except ConnectionError:
            self.messages += len(numbers)
        except TimeoutError:
            self._fail(numbers[0], b"", "the broker does not answer")
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _fail(self, number: int, sent: bytes, text: str) -> None:
        if len(self.failures) < 20:
            self.failures.append(f"case {number}: {text}; sent {sent[:600]!r}")


def _wire(case: NatsCase, number: int) -> bytes:
    reply = f"_STORM.{number} " if case.asks else ""
    if case.headers is None:
        return f"PUB {case.subject} {reply}{len(case.payload)}\r\n".encode() + case.payload + b"\r\n"
    sizes = f"{len(case.headers)} {len(case.headers) + len(case.payload)}"
    return f"HPUB {case.subject} {reply}{sizes}\r\n".encode() + case.headers + case.payload + b"\r\n"


def _fault(reply: Reply, case: HttpCase) -> str:
    """Return what is wrong with an answer; "" = nothing."""
    if reply.status >= 500:
        return "" if reply.status == 503 and "retry-after" in reply.headers else "a failure"
    if reply.status >= 400 and case.whole and case.method != "HEAD":
        # The HTTP parser answers in plain text what it cannot read.
        if reply.headers.get("content-type", "").startswith("text/plain"):
            return ""
        text = _text_of(reply)
        if text is None:
            return "an error without a text"
        if not text or len(text) > 2000:
            return "an error without a short text"
    return ""


def _text_of(reply: Reply) -> str | None:
    """Return the text of an error, which is a ``google.rpc.Status`` where OTLP is posted; None = it has none."""
    try:
        if reply.headers.get("content-type") == otlp.TYPES["protobuf"]:
            return str(Status.FromString(reply.body).message)
        body = json.loads(reply.body)
        return str(body["message"] if "code" in body else body["error"])
    except (ValueError, KeyError, TypeError, DecodeError):
        return None


class _Connection:
    """A connection to an HTTP server; *stays* = it can be used again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.stays = True

    @classmethod
    async def open(cls, port: int) -> _Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 20))

    async def close(self) -> None:
        """Close the connection without waiting for what is not sent."""
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def exchange(self, case: HttpCase) -> Reply | None:
        """Send *case* and return its answer; None if there is none."""
        try:
            self._writer.write(case.sent)
            if case.leave == "close":
                await asyncio.wait_for(self._writer.drain(), 1)
                return None
            if case.leave == "reset":
                sock = self._writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return None
            await self._writer.drain()
            if case.leave == "half":
                self._writer.write_eof()
            return await self._read(case.method)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.stays = False
            return None

    async def _read(self, method: str) -> Reply:
        status = 100
        while 100 <= status < 200:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split(" ", 2)[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        self.stays = headers.get("connection", "").lower() != "close"
        if method.upper() == "HEAD" or status in (204, 304):
            return Reply(status, headers, b"")
        if headers.get("content-type", "").startswith("text/event-stream"):
            self.stays = False
            return Reply(status, headers, b"")
        return Reply(status, headers, await self._body(headers))

    async def _body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int((await self._reader.readline()).split(b";")[0], 16):
                parts.append((await self._reader.readexactly(size + 2))[:-2])
            await self._reader.readline()
            return b"".join(parts)
        self.stays = False
        return await self._reader.read(1 << 24)
