"""``tokentrace demo``: sends realistic traffic until interrupted, and shows what was sent."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import time
from collections import Counter
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from tokentrace import Reporter
from tokentrace.units import SECOND, parse_duration
from tokentrace_standalone.demo_traffic import SERVICES, Request, condition, make_request

_COLUMNS = ("requests", "spans", "tokens", "errors")
_REDRAW_S, _PRINT_S = 0.5, 10.0


def demo(
    url: Annotated[
        str, typer.Option(metavar="URL", help="Where to send: nats:// or http://.")
    ] = "nats://127.0.0.1:4222",
    rate: Annotated[float, typer.Option(metavar="N", max=10_000, help="User requests per second.")] = 5.0,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Stop after this time, such as 60s.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the random numbers.")] = None,
) -> int:
    """
    Send realistic traffic until interrupted.

    The exit code is 0 only if every span was accepted.
    """
    if not rate > 0:
        raise typer.BadParameter("must be over 0", param_hint="'--rate'")
    if not url:
        raise typer.BadParameter("must not be empty", param_hint="'--url'")
    duration_s = float("inf") if duration is None else parse_duration(duration) / SECOND
    dice = random.Random(seed)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    began = time.monotonic()
    due = began
    with Reporter("demo", url) as reporter, _Display(reporter) as display:
        while not stopping and time.monotonic() - began < duration_s:
            request = make_request(dice, time.time_ns())
            for span in request.spans:
                reporter.report(span)
            display.add(request)
            display.draw()
            due += dice.expovariate(rate)
            while not stopping and (wait := due - time.monotonic()) > 0:
                time.sleep(min(wait, 0.1))
        reporter.flush(10)
        display.draw(now=True)
        return 0 if reporter.stats().acked == display.spans else 1


class _Display(contextlib.ExitStack):
    """Shows what was sent: on a terminal as a live table by service, elsewhere as a line every ten seconds."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter
        self._counts: dict[str, Counter[str]] = {service.name: Counter() for service in SERVICES}
        self._drawn = 0.0
        self._live = self.enter_context(Live(auto_refresh=False)) if sys.stdout.isatty() else None

    def add(self, request: Request) -> None:
        """Count *request*."""
        counts = self._counts[request.service]
        counts["requests"] += 1
        for span in request.spans:
            counts["spans"] += 1
            counts["tokens"] += span.total_tokens
            counts["errors"] += span.status != "ok" and bool(span.model)

    @property
    def spans(self) -> int:
        """Number of spans sent so far."""
        return sum(counts["spans"] for counts in self._counts.values())

    def draw(self, *, now: bool = False) -> None:
        """Show the counts, unless they were shown a moment ago and *now* is False."""
        interval_s = _PRINT_S if self._live is None else _REDRAW_S
        if not now and time.monotonic() - self._drawn < interval_s:
            return
        self._drawn = time.monotonic()
        stats = self._reporter.stats()
        summary = f"{stats.acked} of {self.spans} spans accepted, {self._reporter.dropped} lost"
        state = condition(time.time_ns())
        if self._live is None:
            print(f"{state}: {summary}", flush=True)
            return
        table = Table("service", caption=f"{state}: {summary}; Ctrl-C ends the demo", caption_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right")
        for name, counts in self._counts.items():
            table.add_row(name, *(f"{counts[column]:,}" for column in _COLUMNS))
        self._live.update(table, refresh=True)
