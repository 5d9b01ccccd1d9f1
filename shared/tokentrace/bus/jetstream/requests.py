"""Requests to JetStream that end: API calls and acknowledged publishes over one reply subject."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tokentrace.bad_data import SetAside
from tokentrace.bus.jetstream.codec import decode_answer
from tokentrace.bus.jetstream.errors import ApiError, translate_errors, translate_request_errors
from tokentrace.errors import Unavailable

_TIMEOUT_S = 5.0


class Requests:
    """
    Sends requests and matches the replies to them.

    nats-py's own ``request`` waits with ``asyncio.wait_for``, which in Python 3.11 loses a cancellation that arrives
    together with the reply: a task that sends requests in a loop could not be stopped. All requests share one
    subscription; the last token of the reply subject is the number of the request.
    """

    def __init__(self, client: Client, set_aside: SetAside) -> None:
        self._client, self._set_aside = client, set_aside
        self._waiting: dict[str, tuple[str, asyncio.Future[dict[str, Any]]]] = {}
        self._numbers = itertools.count()
        self._replies = ""

    async def start(self) -> None:
        """Subscribe to the reply subject."""
        self._replies = self._client.new_inbox() + "."
        with translate_errors("subscribe"):
            await self._client.subscribe(
                self._replies + "*", cb=self._on_reply, pending_msgs_limit=0, pending_bytes_limit=0
            )

    def fail_waiting(self) -> None:
        """Fail every request under way: its reply cannot arrive on a connection that is lost."""
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the connection was lost before the answer"))

    async def send(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """
        Return the broker's answer, which may contain an error of JetStream.

        Raises:
            NoRespondersError: Nothing listens on *subject*.
            TimeoutError: No answer came within 5 seconds.
            Unavailable: The connection was lost before the answer.
            nats.errors.Error: The request could not be sent.
        """
        number = str(next(self._numbers))
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = subject, future
        try:
            await self._client.publish(subject, payload, reply=self._replies + number, headers=headers)
            async with asyncio.timeout(_TIMEOUT_S):
                return await future
        finally:
            self._waiting.pop(number, None)

    async def api(self, call: str, body: Any) -> dict[str, Any]:
        """
        Return the answer to the API call *call*, such as ``STREAM.INFO.TT_SPANS``.

        Raises:
            ApiError: JetStream refused the call.
            Unavailable: The request could not be sent, or no answer came.
        """
        with translate_request_errors(call):
            answer = await self.send(f"$JS.API.{call}", json.dumps(body).encode())
        if "error" in answer:
            raise ApiError(answer["error"])
        return answer

    async def _on_reply(self, msg: Msg) -> None:
        number = msg.subject[len(self._replies) :]
        subject, future = self._waiting.get(number, ("", None))
        if future is None or future.done():
            return
        if has_no_responders(msg):
            future.set_exception(nats.errors.NoRespondersError())
            return
        # Another client that listens on the subject can reply too. Ignore a reply that the broker would not send.
        with self._set_aside.guard(subject, "answer"):
            future.set_result(decode_answer(msg.data))


def has_no_responders(msg: Msg) -> bool:
    """Return True if *msg* is the server's notice that nothing listens on the request's subject."""
    return not msg.data and (msg.headers or {}).get("Status") == "503"
