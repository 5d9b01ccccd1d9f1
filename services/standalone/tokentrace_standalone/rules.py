"""``tokentrace rules check`` and ``tokentrace rules backtest``: rules before they wake somebody."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time

from tokentrace.bus import jetstream
from tokentrace.config import load
from tokentrace.errors import ConfigError, Rejected
from tokentrace.records import AlertEvent
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import parse_duration, parse_instant, render_duration
from tokentrace_alerter.backtest import backtest
from tokentrace_alerter.service import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of both."""
    what = parser.add_subparsers(dest="what", required=True, metavar="check|backtest")
    check = what.add_parser("check", help="are the rules of a file valid?")
    check.add_argument("file", metavar="FILE", help="a tokentrace.yml")
    tested = what.add_parser("backtest", help="what would the rules of a file have said?")
    tested.add_argument("file", metavar="FILE", help="a tokentrace.yml")
    tested.add_argument("--from", dest="start", metavar="WHEN", help="RFC 3339, or how long ago: 6h (default: all)")
    tested.add_argument("--to", dest="end", metavar="WHEN", help="RFC 3339, or how long ago (default: now)")
    tested.add_argument("--nats", metavar="URL", help="NATS server (default nats://127.0.0.1:4222)")


def check(given: argparse.Namespace) -> int:
    """
    Say what the rules are.

    Raises:
        ConfigError: One of them is not valid; names it and the key.
    """
    rules = Config.of(load(given.file)).rules
    for rule in rules:
        every = render_duration(rule.eval_interval_ns)
        grouped = f" by {rule.group_by}" if rule.group_by else ""
        print(f"{rule.name}: {rule.metric}{grouped} {rule.op} {rule.threshold:g} over {rule.window}, every {every}")
    print(f"{len(rules)} rules are valid")
    return 0


async def run_backtest(given: argparse.Namespace, stopping: asyncio.Event) -> None:
    """Print a line for every event; ends by itself, or when *stopping* is set."""
    await unless_stopped(stopping, _run_backtest(given))


async def _run_backtest(given: argparse.Namespace) -> None:
    settings = load(given.file, overrides={"nats.url": given.nats})
    config = Config.of(settings)
    if not config.rules:
        raise ConfigError(f"{given.file}: there are no rules in it")
    now_ns = time.time_ns()
    start, end = _when("--from", given.start, now_ns), _when("--to", given.end, now_ns)
    async with jetstream.connect(settings.nats.url, name="tokentrace rules backtest") as bus:
        told = 0
        events = backtest(bus, config.rules, config.project, start, now_ns if end is None else end)
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            async for event in events:
                told += 1
                print(_line(event), flush=True)
    print(f"{told} events")


def _line(event: AlertEvent) -> str:
    group = "".join(f" {key}={value}" for key, value in event.group.items())
    shown = "no data" if event.value is None else f"{event.value:.6g}"
    return f"{event.fired_at} {event.status:<8} {event.alert}{group} {event.metric} {shown} ({event.span_count} spans)"


def _when(flag: str, text: str | None, now_ns: int) -> int | None:
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
