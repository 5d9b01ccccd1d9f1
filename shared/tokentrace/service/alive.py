"""
Which services are alive: every process answers a question on the subject of each service that it runs.

The question needs no entry in a bucket, which would outlive a process that is killed, and which a full disk would make
look dead. The broker knows at once that the subject has no listener, so only a process that hangs is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

import msgspec
import structlog

from tokentrace.bad_data import reading
from tokentrace.bus import Bus, subjects
from tokentrace.errors import TokentraceError
from tokentrace.service.forward_state import ForwardState
from tokentrace.service.health import Health

log = structlog.stdlib.get_logger(__name__)

#: How long the first answer of a service is awaited: normally, and if the last call had none; seconds.
_FIRST_S, _SILENT_S = 5.0, 1.0
#: How long after the call the answers of its other processes are awaited: the known ones, and new ones too; seconds.
_OTHERS_S, _NEW_S = 0.5, 1.0
_AGAIN_S = 1.0


class Answer(msgspec.Struct, frozen=True):
    """
    The answer of one process.

    Attributes:
        missing: What the service waits for before it is ready, as ``Health.missing``.
        skew_ns: By how much the clock of its host is ahead of the broker's, nanoseconds; None = not measured yet.
        forward: Target of ``otlp.forward`` -> its state, of an ingest that has some.
    """

    missing: list[str]
    skew_ns: int | None
    forward: dict[str, ForwardState] = {}


_answers = msgspec.json.Decoder(Answer)


async def answer_alive(bus: Bus, services: Mapping[str, Callable[[], Health]], stopping: asyncio.Event) -> None:
    """
    Answer for this process until *stopping* is set.

    Args:
        services: Name -> health of each service that the process runs.
    """
    stop = asyncio.create_task(stopping.wait())
    try:
        while not stopping.is_set():
            try:
                async with contextlib.AsyncExitStack() as stack:
                    for name, health in services.items():
                        handler = _handler(bus, health)
                        await stack.enter_async_context(bus.serve(subjects.alive(name), handler))
                    await stop
            except TokentraceError as exc:
                # The connection was lost between the start and the subscription.
                log.info("not yet subscribed: %s", exc)
                await asyncio.wait([stop], timeout=_AGAIN_S)
    finally:
        stop.cancel()


def _handler(bus: Bus, health: Callable[[], Health]) -> Callable[[bytes], AsyncIterator[bytes]]:
    async def answer(_: bytes) -> AsyncIterator[bytes]:
        state = health()
        yield msgspec.json.encode(Answer(list(state.missing), bus.clock.skew_ns(), state.details.get("forward", {})))

    return answer


class Seen(NamedTuple):
    """
    What is known of a service.

    Attributes:
        answers: The answers of its processes now.
        silent_s: Seconds since the last answer of one; None = none has answered since this process asks.
    """

    answers: list[Answer]
    silent_s: float | None


class Roll:
    """
    Asks the processes of *services* whether they are alive, and remembers how many there were.

    ``count`` waits for a second, so that new processes are noticed. ``call`` returns as soon as as many processes have
    answered as the last time, and waits only for a second for a service of which none has answered the last time.
    """

    def __init__(self, bus: Bus, services: tuple[str, ...]) -> None:
        self._bus, self._services = bus, services
        self._processes = dict.fromkeys(services, 1)
        self._answered_at: dict[str, float] = {}

    async def call(self) -> dict[str, Seen]:
        """
        Return service -> what is known of it.

        Raises:
            Unavailable: The broker cannot be reached.
        """
        seen = await asyncio.gather(*(self._ask(name, expected=self._processes[name]) for name in self._services))
        return dict(zip(self._services, seen, strict=True))

    async def count(self) -> None:
        """Count the processes of every service; raises ``Unavailable`` if the broker cannot be reached."""
        await asyncio.gather(*(self._ask(name, expected=None) for name in self._services))

    async def _ask(self, service: str, *, expected: int | None) -> Seen:
        subject = subjects.alive(service)
        answers: list[Answer] = []
        read = 0

        def wait_policy(replies: list[bytes]) -> float:
            nonlocal read
            # Another client may answer as well, with anything.
            for reply in replies[read:]:
                with self._bus.set_aside.guard(subject, "answer"), reading("answer"):
                    answers.append(_answers.decode(reply))
            read = len(replies)
            if not answers:
                return _SILENT_S if expected == 0 else _FIRST_S
            if expected is None:
                return _NEW_S
            return _OTHERS_S if len(answers) < expected else 0

        await self._bus.request_many(subject, b"", wait_policy)
        now = asyncio.get_running_loop().time()
        if answers:
            self._answered_at[service] = now
        self._processes[service] = len(answers)
        last = self._answered_at.get(service)
        return Seen(answers, None if last is None else now - last)
