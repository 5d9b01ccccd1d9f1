"""
The alerter: the tasks around ``AlerterMachine``.

They are the runner that folds the log into the machine, the readers of the alert stream and of the rules, backfill,
delivery, and the answers to requests about rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from tokentrace.bus import Bus, Message, subjects
from tokentrace.config import Settings
from tokentrace.errors import ConfigError, Conflict, Rejected, Unavailable, quoted
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.records import decode_event, encode_event
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.bootstrap import agreed_capacity
from tokentrace.service.checked_transport import check_proxy
from tokentrace.service.follow import Follower
from tokentrace.service.health import Health, Sample
from tokentrace.service.machine import Effect
from tokentrace.service.retry import until_available
from tokentrace.service.runner import Runner
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace.units import SECOND, parse_duration
from tokentrace_alerter.backfill import Backfiller
from tokentrace_alerter.delivery import DeliveryWorker, load_target
from tokentrace_alerter.event_memory import continuing, is_needless
from tokentrace_alerter.links import linked
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rule_store import RuleStore
from tokentrace_alerter.rules import Rule, compile_rule
from tokentrace_alerter.stored_rules import RuleChange

log = logging.getLogger("tokentrace.alerter")

NAME = "alerter"
GROUP = "alerter"
#: When another alerter published first, its event must arrive within this time, seconds.
_WINNER_WAIT_S = 5.0
#: How often kept channels that are not needed any more are looked for, seconds.
_FORGET_EVERY_S = 600.0


@dataclass(frozen=True)
class Config:
    """
    The configuration of the alerter.

    Attributes:
        rules: The rules of the configuration file.
        project: The project in the alert subjects.
        snapshot_every_s: Longest time between two snapshots, seconds.
        cooldown_ns: Cooldown of the rules that name none, nanoseconds; None = the length of their window.
        customs: Custom metrics by name.
        allowed: The hosts that events may be delivered to.
        proxy: URL of the proxy for webhooks and Alertmanagers; "" = none.
        shards: Shard count.
        public_url: URL under which browsers reach the api, for the links in events; "" = events have no links.
    """

    rules: tuple[Rule, ...]
    project: str
    snapshot_every_s: float = 60.0
    cooldown_ns: int | None = None
    customs: dict[str, CustomMetric] = field(default_factory=dict)
    allowed: AllowedHosts = field(default_factory=AllowedHosts)
    proxy: str = ""
    shards: int = 1
    public_url: str = ""

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """
        Return the alerter's part of *settings*.

        Raises:
            ConfigError: A rule, a custom metric, the cooldown or a host is invalid; the text names the key.
        """
        cooldown_ns = None
        if settings.alert_cooldown is not None:
            try:
                cooldown_ns = parse_duration(settings.alert_cooldown)
            except Rejected as exc:
                raise ConfigError(f"alert_cooldown: {exc}") from exc
        customs = parse_custom_metrics(settings.customs)
        rules = [
            compile_rule(rule, f"alerts[{index}]", cooldown_ns, customs) for index, rule in enumerate(settings.alerts)
        ]
        repeated = [name for name, count in Counter(rule.name for rule in rules).items() if count > 1]
        if repeated:
            raise ConfigError(f"alerts: two rules have the name {quoted(repeated[0])}")
        allowed = AllowedHosts.parse(settings.alert_delivery.allow_hosts, "alert_delivery.allow_hosts")
        proxy = settings.alert_delivery.proxy
        check_proxy(proxy, allowed, "alert_delivery.proxy")
        for index, rule in enumerate(rules):
            if rule.delivery is not None and rule.delivery.type == "custom":
                load_target(rule.delivery.target)
            if rule.delivery is not None and rule.delivery.url:
                try:
                    allowed.check_url(rule.delivery.url)
                except Rejected as exc:
                    raise ConfigError(f"alerts[{index}].delivery.url: {exc}") from exc
        every_s = settings.storage.snapshot_interval / SECOND
        return cls(
            tuple(rules),
            settings.nats.project,
            every_s,
            cooldown_ns,
            customs,
            allowed,
            proxy,
            settings.nats.shards,
            settings.http_server.public_url,
        )


class Alerter:
    """The alerter: reads spans, evaluates rules, publishes and delivers events, and answers requests about rules."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.machine = AlerterMachine(config.rules, config.project, shards=config.shards)
        self.rule_store = RuleStore(
            bus, config.rules, config.customs, config.cooldown_ns, config.allowed, config.shards
        )
        self.delivery_worker = DeliveryWorker(
            bus,
            config.project,
            self.rule_store.channel,
            self._rules_read,
            self.machine.open_episodes,
            config.allowed,
            config.proxy,
        )
        #: Alert subject -> sequence of its last event.
        self._last: dict[str, int] = {}
        self._new_events = asyncio.Condition()
        self._events_read = asyncio.Event()
        self.backfiller = Backfiller(bus, self.machine)
        self.published = 0
        self.runner = Runner(
            bus,
            self.machine,
            stream=subjects.SPANS,
            filters=[subjects.ALL_SPANS],
            service=NAME,
            shard=0,
            perform=self._perform,
            save_every_s=config.snapshot_every_s,
            on_caught_up=self._caught_up,
            on_loaded=self._loaded,
            clock="stream",
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Run until *stopping* is set, and until the deliveries that are under way then have ended or take too long."""
        # Before anything is evaluated, the rules created at run time and all earlier events must be known.
        try:
            changes = await unless_stopped(stopping, until_available(self.rule_store.open))
            capacity = await unless_stopped(stopping, agreed_capacity(self.bus, self.config.shards))
        except Stopped:
            return
        self.machine.remember(capacity)
        self.rule_store.apply_to(self.machine, changes)
        stop = asyncio.create_task(stopping.wait())
        async with self.bus.serve(subjects.QUERY_ALERTS, self._answer, group=GROUP):
            tasks = [
                asyncio.create_task(self._follow_events()),
                asyncio.create_task(self._follow_rules()),
                asyncio.create_task(self.backfiller.run()),
                asyncio.create_task(self._forget_channels()),
            ]
            known = asyncio.create_task(self._know_events())
            try:
                await asyncio.wait([known, stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
                if not stopping.is_set():
                    ending = [
                        asyncio.create_task(self.delivery_worker.run(stopping)),
                        asyncio.create_task(self.runner.run(stopping)),
                    ]
                    tasks += ending
                    done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
                    if stop in done:
                        await asyncio.gather(*ending)
                    for task in done:
                        task.result()
            finally:
                running = [*tasks, known, stop]
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _know_events(self) -> None:
        """Return when all earlier events are known; episodes whose rule is gone are ended once the log is read."""
        await self._events_read.wait()
        # A rule was created before it fired, so the rules are read after the events.
        if await self.rule_store.read_changes():
            self.machine.events.settle()

    async def _rules_read(self) -> None:
        await self.rule_store.read_changes()

    async def _forget_channels(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_EVERY_S)
            with contextlib.suppress(Unavailable):
                await self.rule_store.forget_channels(self.machine.events, self.bus.clock.now_ns())

    def _loaded(self) -> None:
        self.machine.start_anew_if_ahead(self.bus.clock.now_ns())
        for evaluator in self.machine.evaluators.values():
            if evaluator.backfilling:
                self.backfiller.ask(evaluator.rule)

    def _caught_up(self) -> None:
        self.machine.caught_up = True

    async def _follow_events(self) -> None:
        async with Follower(
            self.bus,
            subjects.ALERTS,
            [subjects.ALL_ALERTS],
            None,
            reader="alerter.events",
            on_caught_up=self._events_read.set,
        ) as chunks:
            async for chunk in chunks:
                async with self._new_events:
                    for message in chunk.messages:
                        if message.sequence > self._last.get(message.subject, 0):
                            self._last[message.subject] = message.sequence
                            self._apply_event(message)
                    self._new_events.notify_all()

    def _apply_event(self, message: Message) -> None:
        with self.bus.set_aside.guard(subjects.ALERTS, f"message {message.sequence}"):
            event = decode_event(message.payload, message.time_ns)
            # An episode of another project is not open without a rule because its rule is unknown here.
            is_own = subjects.parse_project(message.subject) == self.config.project
            if is_own or event.alert in self.machine.evaluators:
                self.machine.apply_event(event)

    async def _follow_rules(self) -> None:
        async for change in self.rule_store.changes():
            self._apply_change(change)

    def _apply_change(self, change: RuleChange) -> None:
        change.apply_to(self.machine)
        if change.rule is not None:
            log.info("rule %s: evaluated from now on", change.name)
            if self.machine.evaluators[change.name].backfilling:
                self.backfiller.ask(change.rule)

    async def _perform(self, effect: Effect) -> None:
        event = decode_event(effect.payload)
        if event.status == "firing":
            # Nothing may be awaited between the look at the last event and the condition under which ours is published.
            await self.rule_store.keep_channel(event)
        before = self.machine.last_event(event)
        if is_needless(event, before, earlier=self.machine.events.is_earlier(event)):
            log.debug("%s: an event for this or a later instant is published already", effect.subject)
            return
        event = linked(continuing(event, before), self.config.public_url)
        while True:
            last = self._last.get(effect.subject, 0)
            try:
                ack = await self.bus.publish(effect.subject, encode_event(event), id=effect.id, expect_last=last)
                break
            except Conflict:
                # Another alerter published first, and its event has still to be read here. If it is about the same
                # instance, it replaces ours. If it is about another instance, ours is still to be published.
                if not await self._wait_for_newer(effect.subject, last):
                    # The events about a deleted user are erased, the last one of a rule perhaps among them.
                    held = await self._last_held(effect.subject)
                    if held >= last:
                        raise Rejected(
                            f"{effect.subject}: the broker refused the event as outdated, but no newer one arrived "
                            f"within {_WINNER_WAIT_S:g} s"
                        ) from None
                    self._last[effect.subject] = held
                    continue
                if self.machine.last_event(event) is not before:
                    log.debug("%s: another alerter published first", effect.subject)
                    return
        self._last[effect.subject] = max(ack.sequence, self._last.get(effect.subject, 0))
        self.machine.apply_event(event)
        if not ack.duplicate:
            self.published += 1

    async def _last_held(self, subject: str) -> int:
        """Return the sequence of the last event of *subject* that the stream holds now; 0 = there is none."""
        last = 0
        async with Follower(
            self.bus, subjects.ALERTS, [subject], None, reader="alerter.last_event", until_caught_up=True
        ) as chunks:
            async for chunk in chunks:
                last = max([last, *(message.sequence for message in chunk.messages)])
        return last

    async def _wait_for_newer(self, subject: str, last: int) -> bool:
        """Wait for an event of *subject* after the sequence *last*; return False if none arrives in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WINNER_WAIT_S), self._new_events:
                await self._new_events.wait_for(lambda: self._last.get(subject, 0) > last)
        return self._last.get(subject, 0) > last

    async def _answer(self, payload: bytes) -> AsyncIterator[bytes]:
        yield await self.rule_store.answer(payload, self.machine, self.bus.clock.now_ns())

    def health(self) -> Health:
        """Return ready if the broker has no problem and the messages that the log held at the start are folded."""
        missing = list(self.bus.problems)
        if not self.runner.progress.caught_up:
            missing.append("alert rules")
        details: dict[str, object] = {"rules": len(self.machine.evaluators)}
        if self.rule_store.hidden:
            details["hidden_rules_of_file"] = self.rule_store.hidden
        overflow = {
            name: evaluator.overflow.span_count
            for name, evaluator in self.machine.evaluators.items()
            if evaluator.overflow.span_count
        }
        if overflow:
            details["overflow"] = overflow
        return Health(missing, details)

    def samples(self) -> Iterator[Sample]:
        """Yield the metrics of the alerter."""
        yield Sample("tokentrace_alerter_spans_total", "Spans folded.", self.machine.spans)
        yield Sample("tokentrace_alerter_events_total", "Events published.", self.published)
        yield Sample("tokentrace_alerter_delivered_total", "Events delivered.", self.delivery_worker.delivered)
        yield Sample(
            "tokentrace_alerter_undelivered_total",
            "Events whose delivery failed for good.",
            self.delivery_worker.failed,
        )
        yield Sample(
            "tokentrace_alerter_expired_total",
            "Events not delivered because their episode was over.",
            self.delivery_worker.expired,
        )
        yield Sample("tokentrace_alerter_lag_messages", "Messages still to read.", self.runner.progress.pending)
        if self.machine.time_ns:
            age_s = (self.bus.clock.now_ns() - self.machine.time_ns) / SECOND
            yield Sample("tokentrace_alerter_last_message_age_seconds", "Age of the last message folded.", age_s)
