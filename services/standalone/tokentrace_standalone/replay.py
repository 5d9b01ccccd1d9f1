"""``tokentrace replay``: sends the calls of a trace file through reporters."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer
from msgspec.structs import replace
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tokentrace import Reporter
from tokentrace.errors import ConfigError, Rejected
from tokentrace.records import Span
from tokentrace.units import SECOND, ms_to_ns, parse_instant

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
#: The replay pauses while more spans than this wait in a reporter. A reporter drops spans at a much higher limit.
_MAX_WAITING = 20_000
#: The replay ends if no further span is accepted for this time, seconds.
_GIVE_UP_S = 60.0
_MAX_MS_PER_TOKEN = 1e6


class Call(NamedTuple):
    """A line of the file: when a request was made, Unix nanoseconds, and its tokens."""

    started_ns: int
    prompt_tokens: int
    completion_tokens: int


class Flags(NamedTuple):
    """The flags of ``tokentrace replay`` that determine the fields of the spans."""

    model: str
    provider: str
    caller: str
    name: str
    ending: str
    ms_per_prompt_token: float
    ms_per_token: float


def read_calls(path: Path) -> list[Call]:
    """
    Return the calls of a trace file, in the order of the file.

    Raises:
        ConfigError: The file cannot be read, or its first line is wrong, or a line is invalid; the text says which.
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


def spans_of(calls: Sequence[Call], flags: Flags, now_ns: int) -> list[Span]:
    """
    Return one span for each call.

    The latency of a span is the sum over its tokens. Unless ``ending`` is ``file``, all times are shifted so that the
    last span ends at *now_ns*, Unix nanoseconds.
    """
    latencies = [
        ms_to_ns(call.prompt_tokens * flags.ms_per_prompt_token + call.completion_tokens * flags.ms_per_token)
        for call in calls
    ]
    ends = [call.started_ns + latency for call, latency in zip(calls, latencies, strict=True)]
    shift = 0 if flags.ending == "file" else now_ns - max(ends)
    run = os.urandom(8).hex()
    return [
        Span(
            trace_id=f"{run}{index:016x}",
            span_id=f"{index:016x}",
            name=flags.name,
            model=flags.model,
            provider=flags.provider,
            caller=flags.caller,
            prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens,
            total_tokens=call.prompt_tokens + call.completion_tokens,
            latency_ns=latency,
            started_ns=call.started_ns + shift,
            ended_ns=end + shift,
        )
        for index, (call, latency, end) in enumerate(zip(calls, latencies, ends, strict=True))
    ]


def replay(
    file: Annotated[str, typer.Argument(metavar="FILE.csv", help="Lines of TIMESTAMP,ContextTokens,GeneratedTokens.")],
    model: Annotated[str, typer.Option(help="Model of the spans.")],
    url: Annotated[
        str, typer.Option(metavar="URL", help="Where to send: nats:// or http://.")
    ] = "nats://127.0.0.1:4222",
    provider: Annotated[str, typer.Option(help="Provider of the spans.")] = "",
    caller: Annotated[str, typer.Option(help="Caller of the spans.")] = "replay",
    name: Annotated[str, typer.Option(help="Name of the spans.")] = "replay",
    speed: Annotated[
        str, typer.Option(metavar="N|max", help="Speed as a multiple of that in the file; max = without waiting.")
    ] = "1",
    ending: Annotated[
        Literal["now", "file", "sent"],
        typer.Option(
            help="now: shift all times so that the last span ends now; file: keep them; sent: each span ends when it "
            "is sent."
        ),
    ] = "now",
    ms_per_prompt_token: Annotated[float, typer.Option(metavar="X", help="Latency of a prompt token in ms.")] = 0.0,
    ms_per_token: Annotated[float, typer.Option(metavar="Y", help="Latency of a completion token in ms.")] = 0.0,
    reporters: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Number of reporters that send.")] = 1,
) -> int:
    """
    Send a trace file through reporters.

    The exit code is 0 only if every span was accepted.
    """
    if not url:
        raise ConfigError("--url: must not be empty")
    for flag, value in (("--ms-per-prompt-token", ms_per_prompt_token), ("--ms-per-token", ms_per_token)):
        if not 0 <= value <= _MAX_MS_PER_TOKEN:
            raise ConfigError(f"{flag}: must be from 0 to {_MAX_MS_PER_TOKEN:g}")
    calls = read_calls(Path(file))
    factor = _parse_speed(speed)
    if not calls:
        print("nothing to send", file=sys.stderr)
        return 0
    flags = Flags(model, provider, caller, name, ending, ms_per_prompt_token, ms_per_token)
    spans = spans_of(calls, flags, time.time_ns())
    senders = [Reporter(caller, url) for _ in range(reporters)]
    began = time.monotonic()
    with _Bar(len(spans), senders) as bar:
        for index, span in enumerate(_paced(spans, factor, bar)):
            sender = senders[index % len(senders)]
            if index % 256 == 0:
                while sender.stats().queue_depth > _MAX_WAITING:
                    bar.draw()
                    time.sleep(0.01)
            if ending == "sent":
                ended = time.time_ns()
                span = replace(span, started_ns=ended - span.latency_ns, ended_ns=ended)
            sender.report(span)
            if index % 1024 == 0:
                bar.draw()
        complete = _wait_for_all(senders, bar)
    for sender in senders:
        sender.close()
    bar.print_result(time.monotonic() - began)
    return 0 if complete and bar.acked() == len(spans) else 1


def _parse_speed(text: str) -> float | None:
    """Return the speed in *text*; None for ``max``. Raise ``ConfigError`` if it is neither."""
    if text == "max":
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < 1e9:
        raise ConfigError(f"--speed: {text!r} is neither max nor a number between 0 and 1e9")
    return speed


def _paced(spans: Sequence[Span], speed: float | None, bar: _Bar) -> Iterator[Span]:
    """Yield *spans* in the order of their starts, *speed* times as fast; without waiting if *speed* is None."""
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
    """Wait until every span is accepted, refused or dropped; return False if none was accepted for a minute."""
    progress, since = -1, time.monotonic()
    while not all(reporter.flush(0.1) for reporter in reporters):
        bar.draw()
        if bar.acked() != progress:
            progress, since = bar.acked(), time.monotonic()
        elif time.monotonic() - since > _GIVE_UP_S:
            return False
    return True


class _Bar(contextlib.ExitStack):
    """Shows how many spans were accepted: as a bar on a terminal, elsewhere as a line every five seconds."""

    def __init__(self, total: int, reporters: Sequence[Reporter]) -> None:
        super().__init__()
        self._total, self._reporters = total, reporters
        self._progress = self._start_progress() if sys.stderr.isatty() else None
        self._interval_s = 5.0 if self._progress is None else 0.1
        self._drawn = time.monotonic()

    def _start_progress(self) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("accepted"))
        progress = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        progress.add_task("", total=self._total)
        return self.enter_context(progress)

    def acked(self) -> int:
        """Return the number of spans accepted so far."""
        return sum(reporter.stats().acked for reporter in self._reporters)

    def draw(self) -> None:
        """Show the number of accepted spans, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self._drawn < self._interval_s:
            return
        self._drawn = now
        if self._progress is None:
            print(f"{self.acked()}/{self._total} accepted", file=sys.stderr, flush=True)
        else:
            self._progress.update(self._progress.task_ids[0], completed=self.acked(), refresh=True)

    def print_result(self, seconds: float) -> None:
        """Print how many spans were accepted, dropped and refused, and how fast."""
        stats = [reporter.stats() for reporter in self._reporters]
        acked, dropped = sum(each.acked for each in stats), sum(each.dropped for each in stats)
        refused = sum(each.failed + each.rejected for each in stats)
        print(
            f"{acked} of {self._total} spans accepted, {dropped} dropped, {refused} refused, "
            f"in {seconds:.1f} s ({acked / max(seconds, 1e-9):,.0f} spans/s)",
            flush=True,
        )
