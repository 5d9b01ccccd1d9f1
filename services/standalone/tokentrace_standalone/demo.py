"""``tokentrace demo``: sends realistic traffic until interrupted, and shows what was sent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import typer

from tokentrace import Reporter
from tokentrace.errors import ConfigError, Unavailable
from tokentrace.rollup import HORIZON_NS
from tokentrace.units import DAY, SECOND, parse_duration, render_duration
from tokentrace_standalone.demo_display import Display
from tokentrace_standalone.demo_history import JOB, Job, condition_at, nightly_jobs, request_ages, requests_in
from tokentrace_standalone.demo_pipeline import served
from tokentrace_standalone.demo_records import RecordSender, broken_spans
from tokentrace_standalone.demo_rules import PREFIX, DemoRules
from tokentrace_standalone.demo_traffic import Request, Traffic, condition

_NATS_URL, _API_URL = "nats://127.0.0.1:4222", "http://127.0.0.1:8700"
#: While more spans than this wait in the reporter, no more are made. It drops spans at a much higher limit.
_MAX_WAITING = 2_000
#: Spans of the past that are sent each second, at most: the page is used meanwhile.
_HISTORY_RATE = 2_000
_FLUSH_S = 30.0
#: What happened within this time is sent first, seconds.
_RECENT_S = 2 * 3600
#: How often the rules are tried, once a second; an alerter that reads the log answers late.
_RULE_ATTEMPTS = 30
#: When the first job starts and how often one starts, seconds of the schedule; and how long each of its parts takes.
_FIRST_JOB_S, _JOB_EVERY_S, _JOB_PART_S = 20.0, 180.0, 12.0
_HISTORY_HELP = (
    f"First send this much past traffic, with days and nights, at most {HORIZON_NS // DAY}d. Metrics, traces and "
    "sessions show it at the times when it happened. The history of alerts cannot reach back: a rule is evaluated at "
    "the time of the broker, so it begins with the demo. All of it is stored as if it had arrived now."
)
_API_HELP = (
    f"Where the rules {PREFIX}… are made: http://, or none. Default: --url if that is HTTP, {_API_URL} if --url is not "
    "given, otherwise none."
)


class _Options(NamedTuple):
    """
    What is sent, and where to.

    Attributes:
        api: Where rules are made; "" = nowhere.
        duration_s: How long live traffic is sent, seconds; may be infinite.
        own_pipeline: True = the pipeline ends with the demo, and its rules with it.
    """

    url: str
    api: str
    rate: float
    duration_s: float
    seed: int | None
    history_s: float
    own_pipeline: bool = False


def demo(
    url: Annotated[
        str | None, typer.Option(metavar="URL", help=f"Where to send: nats:// or http://. Default: {_NATS_URL}.")
    ] = None,
    rate: Annotated[
        float, typer.Option(metavar="N", max=10_000, help="User requests per second, at the busiest time.")
    ] = 5.0,
    duration: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="Stop after this time, such as 60s.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed sends the same calls again, with new ids and times.")
    ] = None,
    history: Annotated[str | None, typer.Option(metavar="DURATION", help=_HISTORY_HELP)] = None,
    api: Annotated[str | None, typer.Option(metavar="URL|none", help=_API_HELP)] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Start a pipeline of its own, with data in a temporary directory.")
    ] = False,
    addr: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="With --serve: where it listens. Default: 127.0.0.1:8700.")
    ] = None,
    remove_rules: Annotated[
        bool, typer.Option("--remove-rules", help=f"Only remove all rules whose name begins with {PREFIX}.")
    ] = False,
) -> int:
    """
    Send realistic traffic until interrupted.

    It also makes alert rules for this traffic. Nothing is sent elsewhere than to --url and --api.
    The exit code is 0 only if every span was accepted.
    """
    if not rate > 0:
        raise typer.BadParameter("must be over 0", param_hint="'--rate'")
    if url == "":
        raise typer.BadParameter("must not be empty", param_hint="'--url'")
    if addr is not None and not serve:
        raise ConfigError("--addr: needs --serve, which starts what listens there")
    if serve and (url or api or remove_rules):
        raise ConfigError("--serve: starts a pipeline of its own, so --url, --api and --remove-rules have no meaning")
    duration_s = float("inf") if duration is None else parse_duration(duration) / SECOND
    history_ns = 0 if history is None else parse_duration(history)
    if history_ns > HORIZON_NS:
        reach = f"{HORIZON_NS // DAY}d, which is how far metrics reach back"
        raise ConfigError(f"--history: {render_duration(history_ns)} is more than {reach}")
    chosen_api = api if api is not None else _default_api(url)
    options = _Options(
        url or _NATS_URL, "" if chosen_api == "none" else chosen_api, rate, duration_s, seed, history_ns / SECOND
    )
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        if remove_rules:
            return _remove_rules(options.api)
        with contextlib.ExitStack() as stack:
            check: Callable[[], None] = _nothing_to_check
            if serve:
                serving = stack.enter_context(served(addr or "127.0.0.1:8700", lambda: stopped))
                print(f"The page is at {serving.url}/; Ctrl-C ends the demo and its pipeline.", flush=True)
                options = options._replace(url=serving.nats_url, api=serving.url, own_pipeline=True)
                check = serving.check
            return asyncio.run(_Demo(options, lambda: stopped, check).run())
    except Unavailable as exc:
        print(f"tokentrace demo: {exc}", file=sys.stderr)
        return 1


def _default_api(url: str | None) -> str:
    if url is None:
        return _API_URL
    return url if url.startswith(("http://", "https://")) else "none"


def _nothing_to_check() -> None:
    """The pipeline is not this command's own."""


def _remove_rules(api: str) -> int:
    if not api:
        raise ConfigError("--remove-rules: needs --api, where the rules are")
    with DemoRules(api) as rules:
        names = rules.remove()
    print(f"removed: {', '.join(names)}" if names else f"there is no rule whose name begins with {PREFIX}")
    return 0


class _Demo:
    """
    Sends the history and then live traffic.

    Args:
        stopping: Returns True once the user wants to stop.
        check: Raises ``Unavailable`` if the pipeline cannot come back.
    """

    def __init__(self, options: _Options, stopping: Callable[[], bool], check: Callable[[], None]) -> None:
        self._options, self._stopping, self._check = options, stopping, check
        self._dice, self._job_dice = random.Random(options.seed), random.Random(options.seed)
        self._began = time.monotonic()
        #: When the next request is due, and the start or next part of the job, seconds after *began*.
        self._due_s, self._job_due_s = 0.0, _FIRST_JOB_S
        self._job: Job | None = None
        self._job_parts = 0

    async def run(self) -> int:
        """Send until it is time to stop, and return the exit code."""
        options = self._options
        self._records = RecordSender(options.url)
        with Reporter("demo", options.url) as self._reporter, Display(self._reporter) as self._display:
            made = await (self._send_history() if options.history_s else self._make_rules())
            self._began = time.monotonic()
            traffic = Traffic(self._dice)
            while await self._until_due():
                if self._job_due_s < self._due_s:
                    self._go_on_with_job()
                    continue
                self._send(traffic.request(time.time_ns(), self._state(), self._due_s))
                self._display.draw(self._state())
                self._due_s += self._dice.expovariate(options.rate)
            kept = await self._records.close(_FLUSH_S)
            await asyncio.to_thread(self._reporter.flush, _FLUSH_S)
            self._display.draw(self._state(), now=True)
            accepted = kept and self._reporter.stats().acked == self._display.spans
        if self._records.refusal:
            print(f"tokentrace demo: {self._records.refusal}", file=sys.stderr)
        if made and not options.own_pipeline:
            print(f"The rules {', '.join(made)} stay; tokentrace demo --remove-rules removes them.")
        return 0 if accepted else 1

    def _state(self) -> str:
        # With a seed the schedule decides, because the clock would make each run different.
        return condition(time.time_ns() if self._options.seed is None else int(self._due_s * SECOND))

    async def _until_due(self) -> bool:
        """Wait until the next request or the job is due; return False once it is time to stop."""
        duration_s = self._options.duration_s
        due_s = min(self._due_s, self._job_due_s)
        await asyncio.sleep(0)
        while not self._stopping() and (wait := self._began + min(due_s, duration_s) - time.monotonic()) > 0:
            self._check()
            await asyncio.sleep(min(wait, 0.1))
        # With a seed the schedule decides, and otherwise the clock, also if the schedule is not kept.
        is_late = self._options.seed is None and time.monotonic() - self._began >= duration_s
        return not (self._stopping() or is_late or due_s >= duration_s)

    def _send(self, request: Request) -> None:
        for span in request.spans:
            self._reporter.report(span)
        if request.messages:
            self._records.put("messages", request.messages)
        if request.session_ends:
            self._records.put("session_ends", request.session_ends)
        self._display.add(request.service, request.spans)

    def _go_on_with_job(self) -> None:
        """Start the job, or send its next part."""
        if self._job is None:
            self._job, self._job_parts = Job(self._job_dice, time.time_ns()), 0
            self._records.put("started", [self._job.start()])
            self._job_due_s += _JOB_PART_S
            return
        span = self._job.part(time.time_ns())
        self._reporter.report(span)
        self._display.add(JOB, [span])
        self._job_parts += 1
        self._job_due_s += _JOB_PART_S
        if self._job_parts > Job.PARTS:
            self._job, self._job_due_s = None, self._job_due_s + _JOB_EVERY_S

    async def _send_history(self) -> list[str]:
        """Send the past up to now: first the last hours, so that there is something to see; return the rules made."""
        options = self._options
        dice = random.Random(None if options.seed is None else f"{options.seed} history")
        now_ns = time.time_ns()
        ages = request_ages(dice, options.history_s, requests_in(options.history_s, options.rate))
        recent = [age_s for age_s in ages if age_s < _RECENT_S]
        await self._send_past(Traffic(dice), recent, now_ns)
        made = await self._make_rules()
        self._records.put("spans", broken_spans())
        for started, spans in nightly_jobs(dice, now_ns, options.history_s):
            self._records.put("started", [started])
            for span in spans:
                self._reporter.report(span)
            self._display.add(JOB, spans)
        await self._send_past(Traffic(dice), ages[: len(ages) - len(recent)], now_ns)
        while not self._stopping() and not await asyncio.to_thread(self._reporter.flush, 0.2):
            self._display.draw("history")
            self._check()
        return made

    async def _send_past(self, traffic: Traffic, ages: Sequence[float], now_ns: int) -> None:
        """Send the requests that were made *ages* seconds before *now_ns*, the oldest first."""
        began, before = time.monotonic(), self._display.spans
        for number, age_s in enumerate(ages):
            if self._stopping():
                return
            self._send(traffic.request(now_ns - int(age_s * SECOND), condition_at(age_s), -age_s))
            if number % 64 == 0:
                self._display.draw("history")
                self._check()
                await asyncio.sleep(0)
                while not self._stopping() and self._is_early(began, before):
                    self._check()
                    await asyncio.sleep(0.02)

    def _is_early(self, began: float, before: int) -> bool:
        """Return whether so much was sent since *began* that the pipeline would have no time to answer questions."""
        sent = self._display.spans - before
        return sent > (time.monotonic() - began) * _HISTORY_RATE or self._reporter.stats().queue_depth > _MAX_WAITING

    async def _make_rules(self) -> list[str]:
        """Make the rules and return their names; without an API that answers, say so and return none."""
        if not self._options.api:
            return []
        with DemoRules(self._options.api) as rules:
            for attempt in range(_RULE_ATTEMPTS):
                try:
                    return await asyncio.to_thread(rules.make, self._options.rate)
                except Unavailable as exc:
                    if self._stopping() or attempt == _RULE_ATTEMPTS - 1:
                        print(f"tokentrace demo: no rules are made: {exc}", file=sys.stderr)
                        return []
                await asyncio.sleep(1)
        return []
