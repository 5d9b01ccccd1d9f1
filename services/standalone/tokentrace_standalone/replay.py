"""``tokentrace replay``: send a real trace file through reporters."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace as change

from tokentrace import Reporter
from tokentrace.errors import ConfigError, Rejected
from tokentrace.records import Span
from tokentrace.units import SECOND, ms_to_ns, parse_instant

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
#: Spans waiting in one reporter before the replay waits: well below where a reporter drops.
_MAX_WAITING = 20_000
_GIVE_UP_S = 60.0


class Call(NamedTuple):
    """A line of the file: when a request came, Unix nanoseconds, and its tokens."""

    started_ns: int
    prompt_tokens: int
    completion_tokens: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``replay``."""
    parser.add_argument("file", metavar="FILE.csv", help="TIMESTAMP,ContextTokens,GeneratedTokens")
    parser.add_argument(
        "--url", default="nats://127.0.0.1:4222", help="nats:// or http:// (default nats://127.0.0.1:4222)"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--provider", default="")
    parser.add_argument("--caller", default="replay")
    parser.add_argument("--name", default="replay", help="operation of the spans (default replay)")
    parser.add_argument("--speed", default="1", metavar="N|max", help="times as fast as it happened (default 1)")
    parser.add_argument(
        "--ending",
        choices=("now", "file", "sent"),
        default="now",
        help="move times so that the last end is now (default), keep them, or have every call end as it is sent",
    )
    parser.add_argument(
        "--ms-per-prompt-token", type=float, default=0.0, metavar="X", help="latency; 0 = unset (default)"
    )
    parser.add_argument("--ms-per-token", type=float, default=0.0, metavar="Y", help="latency; 0 = unset (default)")
    parser.add_argument("--reporters", type=int, default=1, metavar="N", help="send through N reporters (default 1)")


def read_calls(path: Path) -> list[Call]:
    """
    The calls of a trace file, in its order.

    Raises:
        ConfigError: It cannot be read; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if tuple(header) != _COLUMNS:
                raise ConfigError(f"{path}: the first line must be {','.join(_COLUMNS)}")
            return [_call(row, path, number) for number, row in enumerate(rows, start=2) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc


def _call(row: Sequence[str], path: Path, number: int) -> Call:
    try:
        stamp, prompt, completion = row
        return Call(parse_instant(stamp.strip() + "Z"), int(prompt), int(completion))
    except (ValueError, Rejected) as exc:
        raise ConfigError(f"{path}, line {number}: {exc}") from exc


def spans_of(calls: Sequence[Call], given: argparse.Namespace, now_ns: int) -> list[Span]:
    """One span for each call; latency is a sum over its tokens, time is moved as ``--ending`` says."""
    latencies = [
        ms_to_ns(call.prompt_tokens * given.ms_per_prompt_token + call.completion_tokens * given.ms_per_token)
        for call in calls
    ]
    ends = [call.started_ns + latency for call, latency in zip(calls, latencies, strict=True)]
    shift = 0 if given.ending == "file" else now_ns - max(ends)
    run = os.urandom(8).hex()
    return [
        Span(
            trace_id=f"{run}{index:016x}",
            span_id=f"{index:016x}",
            name=given.name,
            model=given.model,
            provider=given.provider,
            caller=given.caller,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            total_tokens=call.prompt_tokens + call.completion_tokens,
            latency_ns=latency,
            started_ns=call.started_ns + shift,
            ended_ns=end + shift,
        )
        for index, (call, latency, end) in enumerate(zip(calls, latencies, ends, strict=True))
    ]


def replay(given: argparse.Namespace) -> int:
    """Send the file; returns 0 only when every span was accepted."""
    calls = read_calls(Path(given.file))
    speed = _parse_speed(given.speed)
    if given.reporters < 1:
        raise ConfigError("--reporters: must be over 0")
    if not calls:
        print("nothing to send", file=sys.stderr)
        return 0
    spans = spans_of(calls, given, time.time_ns())
    reporters = [Reporter(given.caller, given.url) for _ in range(given.reporters)]
    bar = _Bar(len(spans), reporters)
    began = time.monotonic()
    for index, span in enumerate(_paced(spans, speed, bar)):
        reporter = reporters[index % len(reporters)]
        if index % 256 == 0:
            while reporter.stats().queue_depth > _MAX_WAITING:
                bar.draw()
                time.sleep(0.01)
        if given.ending == "sent":
            ended = time.time_ns()
            span = change(span, started_ns=ended - span.latency_ns, ended_ns=ended)
        reporter.report(span)
        if index % 1024 == 0:
            bar.draw()
    complete = _wait_for_all(reporters, bar)
    for reporter in reporters:
        reporter.close()
    bar.finish(time.monotonic() - began)
    return 0 if complete and bar.acked() == len(spans) else 1


def _parse_speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise ConfigError(f"--speed: {text!r} is neither max nor a number over 0")
    return speed


def _paced(spans: Sequence[Span], speed: float | None, bar: _Bar) -> Iterator[Span]:
    """*spans* in the order and, unless *speed* is None, at the pace in which they started."""
    ordered = sorted(spans, key=lambda span: span.started_ns)
    first, began = ordered[0].started_ns, time.monotonic()
    for span in ordered:
        if speed is not None:
            ahead = (span.started_ns - first) / SECOND / speed - (time.monotonic() - began)
            while ahead > 0.001:
                bar.draw()
                time.sleep(min(ahead, 0.1))
                ahead = (span.started_ns - first) / SECOND / speed - (time.monotonic() - began)
        yield span


def _wait_for_all(reporters: Sequence[Reporter], bar: _Bar) -> bool:
    """False when for a minute nothing more was accepted."""
    progress, since = -1, time.monotonic()
    while not all(reporter.flush(0.1) for reporter in reporters):
        bar.draw()
        if bar.acked() != progress:
            progress, since = bar.acked(), time.monotonic()
        elif time.monotonic() - since > _GIVE_UP_S:
            return False
    return True


class _Bar:
    """How much has been accepted: redrawn on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, reporters: Sequence[Reporter]) -> None:
        self._total, self._reporters = total, reporters
        self._tty = sys.stderr.isatty()
        self._every_s = 0.1 if self._tty else 5.0
        self._drawn = time.monotonic()

    def acked(self) -> int:
        """Spans accepted so far."""
        return sum(reporter.stats().acked for reporter in self._reporters)

    def draw(self) -> None:
        """Show it, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self._drawn < self._every_s:
            return
        self._drawn = now
        acked = self.acked()
        filled = 40 * acked // self._total
        line = f"[{'#' * filled}{'.' * (40 - filled)}] {acked}/{self._total} accepted"
        print(f"\r{line}" if self._tty else line, end="" if self._tty else "\n", file=sys.stderr, flush=True)

    def finish(self, seconds: float) -> None:
        """The result."""
        totals = [sum(column) for column in zip(*(reporter.stats() for reporter in self._reporters), strict=True)]
        start = "\r\x1b[K" if self._tty else ""
        print(
            f"{start}{totals[1]} of {self._total} spans accepted, {totals[2]} dropped, {totals[3]} refused, "
            f"in {seconds:.1f} s ({totals[1] / max(seconds, 1e-9):,.0f} spans/s)",
            flush=True,
        )
