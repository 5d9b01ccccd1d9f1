"""``tokentrace rules check`` and ``tokentrace rules backtest``: test rules before they are used."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from tokentrace.config import load
from tokentrace.errors import ConfigError, Rejected
from tokentrace.records import AlertEvent
from tokentrace.service import runtime
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import parse_duration, parse_instant, render_duration

if TYPE_CHECKING:
    from tokentrace_alerter.service import Config

app = typer.Typer(help="Check alert rules, and see which events they would have published.")

_File = Annotated[str, typer.Argument(metavar="FILE", help="A tokentrace.yml.")]


@app.command()
def check(file: _File) -> None:
    """Check the rules of a file, and print them."""
    from tokentrace_alerter.service import Config

    rules = Config.of(load(file)).rules
    for rule in rules:
        every = render_duration(rule.eval_interval_ns)
        grouped = f" by {rule.group_by}" if rule.group_by else ""
        print(f"{rule.name}: {rule.metric}{grouped} {rule.op} {rule.threshold:g} over {rule.window}, every {every}")
        if rule.misses_late_scores:
            print(f"{rule.name}: note: it selects spans by a score, and ignores scores that are given later")
    print("1 rule is valid" if len(rules) == 1 else f"{len(rules)} rules are valid")


@app.command("backtest")
def run_backtest(
    file: _File,
    start: Annotated[
        str | None, typer.Option("--from", metavar="WHEN", help="RFC 3339, or how long ago: 6h. Default: all.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="WHEN", help="RFC 3339, or how long ago. Default: now.")
    ] = None,
    nats: Annotated[str | None, typer.Option(metavar="URL", help="NATS server. Default: nats.url of the file.")] = None,
) -> int:
    """Run the rules of a file over the stored log, and print each event that they would have published."""
    from tokentrace_alerter.service import Config

    async def run(stopping: asyncio.Event) -> None:
        settings = load(file, overrides={"nats.url": nats})
        config = Config.of(settings)
        if not config.rules:
            raise ConfigError(f"{file}: there are no rules in it")
        now_ns = time.time_ns()
        start_ns, end_ns = _when("--from", start, now_ns), _when("--to", end, now_ns)
        interval = start_ns, now_ns if end_ns is None else end_ns
        await unless_stopped(stopping, _print_events(settings.nats.url, config, *interval))

    return runtime.run("tokentrace", run)


async def _print_events(url: str, config: Config, start_ns: int | None, end_ns: int) -> None:
    from tokentrace.bus import jetstream
    from tokentrace_alerter.backtest import backtest

    async with jetstream.connect(url, name="tokentrace rules backtest") as bus:
        count = 0
        events = backtest(bus, config.rules, config.project, start_ns, end_ns, shards=config.shards)
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            async for event in events:
                count += 1
                print(_line(event), flush=True)
    print(f"{count} events")


def _line(event: AlertEvent) -> str:
    group = "".join(f" {key}={value}" for key, value in event.group.items())
    value = "no data" if event.value is None else f"{event.value:.6g}"
    return f"{event.fired_at} {event.status:<8} {event.alert}{group} {event.metric} {value} ({event.span_count} spans)"


def _when(flag: str, text: str | None, now_ns: int) -> int | None:
    """Return the instant in *text*, Unix nanoseconds: RFC 3339, or a duration before *now_ns*; None for None."""
    if text is None:
        return None
    try:
        return now_ns - parse_duration(text)
    except Rejected:
        pass
    try:
        return parse_instant(text)
    except Rejected as exc:
        raise ConfigError(f"{flag}: {exc}, nor how long ago, such as 6h") from exc
