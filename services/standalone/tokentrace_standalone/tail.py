"""``tokentrace tail``: spans and alerts as they happen, in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable

import msgspec

from tokentrace.bus import Bus, Message, jetstream, subjects
from tokentrace.errors import Rejected
from tokentrace.records import Position, Span, decode_batches, decode_event
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import MS, nusd_to_usd, render_instant

_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``tail``."""
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", metavar="URL", help="default nats://127.0.0.1:4222")
    parser.add_argument("--model", help="only spans of this model")
    parser.add_argument("--caller", help="only spans of this caller")
    parser.add_argument("--status", choices=("ok", "error", "timeout"), help="only spans with this status")
    parser.add_argument("--alerts", action="store_true", help="only alerts")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


async def tail(given: argparse.Namespace, stopping: asyncio.Event) -> None:
    """Print until *stopping* is set."""
    async with contextlib.AsyncExitStack() as stack:
        connecting = stack.enter_async_context(jetstream.connect(given.nats, name="tokentrace tail"))
        bus = await unless_stopped(stopping, connecting)
        printer = _Printer(given)
        tasks = [asyncio.create_task(_follow(bus, subjects.ALERTS, subjects.ALL_ALERTS, printer.alert))]
        if not given.alerts:
            tasks.append(asyncio.create_task(_follow(bus, subjects.SPANS, subjects.ALL_SPANS, printer.spans)))
        stop = asyncio.create_task(stopping.wait())
        done, pending = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()


async def _follow(bus: Bus, stream: str, pattern: str, show: Callable[[Message], None]) -> None:
    state = await until_available(lambda: bus.state(stream))
    after = Position(state.created_ns, state.last_sequence)
    async with Follower(bus, stream, [pattern], after, reader="tail") as chunks:
        async for chunk in chunks:
            for message in chunk.messages:
                show(message)


class _Printer:
    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._colour = sys.stdout.isatty() and not given.json

    def spans(self, message: Message) -> None:
        """The spans of one message that pass the filters."""
        try:
            batches = decode_batches(message.payload)
        except Rejected as exc:
            self._print(f"{render_instant(message.time_ns)} unreadable message {message.sequence}: {exc}", _RED)
            return
        for batch in batches:
            for span in batch.spans:
                if self._passes(span):
                    self._span(span)

    def _passes(self, span: Span) -> bool:
        given = self._given
        return all(
            wanted is None or wanted == value
            for wanted, value in ((given.model, span.model), (given.caller, span.caller), (given.status, span.status))
        )

    def _span(self, span: Span) -> None:
        if self._given.json:
            fields = dict(zip(span.__struct_fields__, msgspec.to_builtins(span), strict=True))
            self._print(msgspec.json.encode(fields).decode())
            return
        cost = "unpriced" if span.cost_nusd is None else f"${nusd_to_usd(span.cost_nusd):.6f}"
        line = (
            f"{render_instant(span.ended_ns)} {span.status:<7} {span.kind:<9} {span.caller or '-':<16} "
            f"{span.model or span.name:<22} {span.prompt_tokens:>7} → {span.completion_tokens:<6} "
            f"{span.latency_ns / MS:>8.0f} ms {cost:>11}"
        )
        self._print(f"{line} {span.error}".rstrip(), _RED if span.status != "ok" else "" if span.model else _DIM)

    def alert(self, message: Message) -> None:
        """One event of a rule."""
        if self._given.json:
            self._print(message.payload.decode("utf-8", "replace"))
            return
        try:
            event = decode_event(message.payload)
        except Rejected as exc:
            self._print(f"unreadable alert {message.sequence}: {exc}", _RED)
            return
        self._print(
            f"{event.fired_at} ALERT {event.alert}: {event.status}, {event.message}, window {event.window}", _YELLOW
        )

    def _print(self, line: str, colour: str = "") -> None:
        print(f"{colour}{line}{_PLAIN}" if self._colour and colour else line, flush=True)
