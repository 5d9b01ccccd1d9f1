"""``tokentrace tail``: prints spans and alerts as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import msgspec
import typer

from tokentrace.bus import Bus, Message, jetstream, subjects
from tokentrace.errors import Rejected
from tokentrace.records import Position, Span, decode_batches, decode_event
from tokentrace.service import runtime
from tokentrace.service.follow import Follower
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import MS, nusd_to_usd, render_instant

_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class Flags(NamedTuple):
    """The flags of ``tokentrace tail``; None = the flag was not given."""

    nats: str
    model: str | None
    caller: str | None
    status: str | None
    alerts: bool
    json: bool


def tail(
    nats: Annotated[str, typer.Option(metavar="URL", help="NATS server.")] = "nats://127.0.0.1:4222",
    model: Annotated[str | None, typer.Option(help="Show only spans of this model.")] = None,
    caller: Annotated[str | None, typer.Option(help="Show only spans of this caller.")] = None,
    status: Annotated[
        Literal["ok", "error", "timeout"] | None, typer.Option(help="Show only spans with this status.")
    ] = None,
    alerts: Annotated[bool, typer.Option("--alerts", help="Show only alerts.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> int:
    """Show spans and alerts as they happen."""
    flags = Flags(nats, model, caller, status, alerts, json)
    return runtime.run("tokentrace", lambda stopping: _tail(flags, stopping))


async def _tail(flags: Flags, stopping: asyncio.Event) -> None:
    """Print spans and alerts until *stopping* is set."""
    async with contextlib.AsyncExitStack() as stack:
        connecting = stack.enter_async_context(jetstream.connect(flags.nats, name="tokentrace tail"))
        bus = await unless_stopped(stopping, connecting)
        printer = _Printer(flags)
        tasks = [asyncio.create_task(_follow(bus, subjects.ALERTS, subjects.ALL_ALERTS, printer.alert))]
        if not flags.alerts:
            tasks.append(asyncio.create_task(_follow(bus, subjects.SPANS, subjects.ALL_SPANS, printer.spans)))
        stop = asyncio.create_task(stopping.wait())
        done, pending = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done:
            task.result()


async def _follow(bus: Bus, stream: str, pattern: str, show: Callable[[Message], None]) -> None:
    """Call *show* for each message of *stream* that is stored from now on."""
    state = await until_available(lambda: bus.state(stream))
    after = Position(state.created_ns, state.last_sequence)
    async with Follower(bus, stream, [pattern], after, reader="tail") as chunks:
        async for chunk in chunks:
            for message in chunk.messages:
                show(message)


class _Printer:
    """Prints alerts, and the spans that pass the filters; in colour on a terminal, unless as JSON."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags
        self._colour = sys.stdout.isatty() and not flags.json

    def spans(self, message: Message) -> None:
        """Print the spans of *message* that pass the filters."""
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
        flags = self._flags
        filters = ((flags.model, span.model), (flags.caller, span.caller), (flags.status, span.status))
        return all(wanted is None or wanted == value for wanted, value in filters)

    def _span(self, span: Span) -> None:
        if self._flags.json:
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
        """Print the alert event in *message*."""
        if self._flags.json:
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
