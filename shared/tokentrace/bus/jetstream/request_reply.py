"""Request and reply between services: several replies to one request, and replies larger than a message."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tokentrace.bad_data import UNREADABLE, SetAside
from tokentrace.bus.contract import HEADROOM_BYTES, Handler, WaitPolicy
from tokentrace.bus.jetstream.codec import join_parts, split
from tokentrace.bus.jetstream.errors import translate_errors
from tokentrace.bus.jetstream.pull import Inbox, unsubscribe
from tokentrace.bus.jetstream.requests import has_no_responders
from tokentrace.errors import TokentraceError

log = logging.getLogger("tokentrace.bus")


async def request_many(
    client: Client, set_aside: SetAside, subject: str, payload: bytes, wait_policy: WaitPolicy
) -> list[bytes]:
    """Return all replies, as ``Bus.request_many``; a reply that was sent in parts is joined here."""
    answers: list[bytes] = []
    parts: dict[str, dict[int, bytes]] = {}
    async with Inbox(client) as inbox:
        with translate_errors(subject):
            await client.publish(subject, payload, reply=inbox.subject)
            sent_at = asyncio.get_running_loop().time()
            until, wait_s = 0.0, wait_policy(answers)
            while wait_s > until:
                until = wait_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(sent_at + until):
                        arrived = await inbox.take()
                    for msg in arrived:
                        if has_no_responders(msg):
                            return answers
                        with set_aside.guard(subject, "part of an answer"):
                            answer = join_parts(msg, parts)
                            if answer is not None:
                                answers.append(answer)
                    # There may be more replies before that time.
                    until = 0.0
                wait_s = wait_policy(answers)
    return answers


@contextlib.asynccontextmanager
async def serve(client: Client, set_aside: SetAside, subject: str, handler: Handler, group: str) -> AsyncIterator[None]:
    """Answer requests while the context is open, as ``Bus.serve``."""
    part_bytes = int(client.max_payload) - HEADROOM_BYTES

    async def answer(msg: Msg) -> None:
        try:
            async for payload in handler(msg.data):
                for headers, part in split(payload, part_bytes):
                    await client.publish(msg.reply, part, headers=headers)
        except nats.errors.Error as exc:
            log.info("answer to %s was not sent: %s", subject, exc)
        except TokentraceError as exc:
            log.warning("request on %s failed: %s", subject, exc)
        except UNREADABLE as exc:
            log.exception("request on %s failed", subject)
            set_aside.note(subject, "request", exc)

    answering: set[asyncio.Task[None]] = set()

    async def begin(msg: Msg) -> None:
        # nats-py waits for this callback before it passes the next request, so a slow answer runs in its own task.
        task = asyncio.create_task(answer(msg))
        answering.add(task)
        task.add_done_callback(answering.discard)

    with translate_errors(f"subscribe {subject}"):
        subscription = await client.subscribe(subject, queue=group, cb=begin)
    try:
        yield
    finally:
        await unsubscribe(client, subscription)
        for task in answering:
            task.cancel()
