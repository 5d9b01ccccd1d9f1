"""``tokentrace demo``: lifelike traffic until interrupted, and a live table of it."""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import Counter

from tokentrace import Reporter
from tokentrace.errors import ConfigError
from tokentrace.units import SECOND, parse_duration
from tokentrace_standalone.demo_traffic import SERVICES, Request, make_request, mood

_COLUMNS = (("requests", 10), ("spans", 10), ("tokens", 13), ("errors", 8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``demo``."""
    parser.add_argument(
        "--url", default="nats://127.0.0.1:4222", help="nats:// or http:// (default nats://127.0.0.1:4222)"
    )
    parser.add_argument("--rate", type=float, default=5.0, metavar="N", help="user requests a second (default 5)")
    parser.add_argument("--for", dest="duration", metavar="DURATION", help="stop after this long, such as 60s")
    parser.add_argument("--seed", type=int, help="make the same traffic again")


class _Table:
    """What was sent, by service: redrawn on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._tty = sys.stdout.isatty()
        self._counts: dict[str, Counter[str]] = {service.name: Counter() for service in SERVICES}
        self._drawn = 0.0
        self._lines = 0

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
        """All spans so far."""
        return sum(counts["spans"] for counts in self._counts.values())

    def draw(self, reporter: Reporter, *, now: bool = False) -> None:
        """Show it, unless it was shown a moment ago."""
        if not now and time.monotonic() - self._drawn < (0.5 if self._tty else 10.0):
            return
        self._drawn = time.monotonic()
        stats = reporter.stats()
        account = f"{stats.acked} of {self.spans} spans accepted, {stats.dropped + stats.failed} lost"
        if not self._tty:
            print(f"{mood(time.time_ns())}: {account}", flush=True)
            return
        lines = ["service".ljust(16) + "".join(f"{key:>{width}}" for key, width in _COLUMNS)]
        for name, counts in self._counts.items():
            row = "".join(f"{counts[key]:>{width},}" for key, width in _COLUMNS)
            lines.append(f"{name:<16}{row}")
        lines.append(f"mood: {mood(time.time_ns()):<8} {account}; Ctrl-C ends it")
        up = f"\x1b[{self._lines}A" if self._lines else ""
        print(up + "\n".join(f"\x1b[2K{line}" for line in lines), flush=True)
        self._lines = len(lines)


def demo(given: argparse.Namespace) -> int:
    """Send until interrupted; returns 0 when everything was accepted."""
    if not 0 < given.rate <= 10_000:
        raise ConfigError("--rate: must be over 0 and at most 10000")
    duration_s = parse_duration(given.duration) / SECOND if given.duration else float("inf")
    dice = random.Random(given.seed)
    table = _Table()
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    began = time.monotonic()
    due = began
    with Reporter("demo", given.url) as reporter:
        while not stopping and time.monotonic() - began < duration_s:
            request = make_request(dice, time.time_ns())
            for span in request.spans:
                reporter.report(span)
            table.add(request)
            table.draw(reporter)
            due += dice.expovariate(given.rate)
            while not stopping and (wait := due - time.monotonic()) > 0:
                time.sleep(min(wait, 0.1))
        reporter.flush(10)
        table.draw(reporter, now=True)
        stats = reporter.stats()
    return 0 if stats.acked == table.spans else 1
