"""The alerter as a service: one machine over all shards, rules that come and go, events, deliveries, answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tokentrace.bus import Bus, Message, subjects
from tokentrace.config import AlertRule, Settings
from tokentrace.errors import ConfigError, Conflict, Rejected
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.records import decode_event
from tokentrace.service.follow import Follower
from tokentrace.service.health import Health, Sample
from tokentrace.service.machine import Effect
from tokentrace.service.retry import until_available
from tokentrace.service.runner import Runner
from tokentrace.service.stopping import Stopped, unless_stopped
from tokentrace.units import SECOND, parse_duration, parse_instant
from tokentrace_alerter.backfill import Backfiller
from tokentrace_alerter.delivery import AllowedHosts, DeliveryWorker, load_target
from tokentrace_alerter.machine import AlerterMachine as Machine
from tokentrace_alerter.rule_store import RuleChange, RuleStore
from tokentrace_alerter.rules import Rule, parse_rule

log = logging.getLogger("tokentrace.alerter")

NAME = "alerter"
GROUP = "alerter"
#: How long an event that lost a race waits to hear of the winner's.
_HEAR_S = 5.0


@dataclass(frozen=True)
class Config:
    """
    What an alerter has to know.

    Attributes:
        project: Whose alert subjects.
        snapshot_every_s: At least this often, seconds.
        cooldown_ns: Of rules that name none; None = their window.
        customs: Metrics of one's own, by name.
        allowed: The hosts that events may be delivered to.
    """

    rules: tuple[Rule, ...]
    project: str
    snapshot_every_s: float = 60.0
    cooldown_ns: int | None = None
    customs: dict[str, CustomMetric] = field(default_factory=dict)
    allowed: AllowedHosts = field(default_factory=AllowedHosts)

    @classmethod
    def of(cls, settings: Settings) -> Config:
        """
        The alerter's part of *settings*.

        Raises:
            ConfigError: Names the rule and the key.
        """
        cooldown_ns = None
        if settings.alert_cooldown is not None:
            try:
                cooldown_ns = parse_duration(settings.alert_cooldown)
            except Rejected as exc:
                raise ConfigError(f"alert_cooldown: {exc}") from exc
        given = [_plain(rule) for rule in settings.alerts]
        customs = parse_custom_metrics(settings.customs)
        rules = [parse_rule(one, f"alerts[{n}]", cooldown_ns, customs) for n, one in enumerate(given)]
        repeated = [name for name, count in Counter(rule.name for rule in rules).items() if count > 1]
        if repeated:
            raise ConfigError(f"alerts: the name {repeated[0]!r} is used twice")
        allowed = AllowedHosts.parse(settings.alert_delivery.allow_hosts)
        for n, rule in enumerate(rules):
            if rule.delivery is not None and rule.delivery.type == "custom":
                load_target(rule.delivery.target)
            if rule.delivery is not None and rule.delivery.url:
                try:
                    allowed.check_url(rule.delivery.url)
                except Rejected as exc:
                    raise ConfigError(f"alerts[{n}].delivery.url: {exc}") from exc
        every_s = settings.storage.snapshot_interval / SECOND
        return cls(tuple(rules), settings.nats.project, every_s, cooldown_ns, customs, allowed)


def _plain(rule: AlertRule) -> dict[str, Any]:
    """A rule of the file in its documented form."""
    plain: dict[str, Any] = msgspec.to_builtins(rule)
    return plain


class Alerter:
    """Watches, decides, publishes, delivers."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.machine = Machine(config.rules, config.project)
        self.rule_store = RuleStore(bus, config.rules, config.customs, config.cooldown_ns, config.allowed)
        self.delivery_worker = DeliveryWorker(
            bus, config.project, self.rule_store.channel, self.machine.episodes, config.allowed
        )
        self._last: dict[str, int] = {}
        self._heard = asyncio.Condition()
        self._read_events = asyncio.Event()
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
        """Watch until *stopping* is set."""
        # The rules people made at run time, and what was fired before, have to be known before anything is decided.
        try:
            changes = await unless_stopped(stopping, until_available(self.rule_store.open))
        except Stopped:
            return
        self.rule_store.apply_to(self.machine, changes)
        stop = asyncio.create_task(stopping.wait())
        async with self.bus.serve(subjects.QUERY_ALERTS, self._answer, group=GROUP):
            tasks = [
                asyncio.create_task(self._follow_events()),
                asyncio.create_task(self._follow_rules()),
                asyncio.create_task(self.backfiller.run()),
            ]
            reading = asyncio.create_task(self._read_events.wait())
            try:
                await asyncio.wait([reading, stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
                if not stopping.is_set():
                    tasks.append(asyncio.create_task(self.delivery_worker.run()))
                    tasks.append(asyncio.create_task(self.runner.run(stopping)))
                    done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
                    if stop in done:
                        await tasks[-1]
                    for task in done:
                        task.result()
            finally:
                others = [*tasks, reading, stop]
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)

    def _loaded(self) -> None:
        for watch in self.machine.watches.values():
            if watch.backfilling:
                self.backfiller.ask(watch.rule)

    def _caught_up(self) -> None:
        self.machine.caught_up = True

    async def _follow_events(self) -> None:
        async with Follower(
            self.bus,
            subjects.ALERTS,
            [subjects.ALL_ALERTS],
            None,
            reader="alerter.events",
            on_caught_up=self._read_events.set,
        ) as chunks:
            async for chunk in chunks:
                async with self._heard:
                    for message in chunk.messages:
                        if message.sequence > self._last.get(message.subject, 0):
                            self._last[message.subject] = message.sequence
                            self._learn(message)
                    self._heard.notify_all()

    def _learn(self, message: Message) -> None:
        with self.bus.set_aside.guard(subjects.ALERTS, f"message {message.sequence}"):
            self.machine.learn(decode_event(message.payload))

    async def _follow_rules(self) -> None:
        async for change in self.rule_store.changes():
            self._change(change)

    def _change(self, change: RuleChange) -> None:
        change.apply_to(self.machine)
        if change.rule is not None:
            log.info("rule %s: watched from now on", change.name)
            self.backfiller.ask(change.rule)

    async def _perform(self, effect: Effect) -> None:
        event = decode_event(effect.payload)
        before = self.machine.heard(event)
        if before is not None and parse_instant(before.fired_at) >= parse_instant(event.fired_at):
            log.debug("%s: somebody has said it already", effect.subject)
            return
        while True:
            last = self._last.get(effect.subject, 0)
            try:
                ack = await self.bus.publish(effect.subject, effect.payload, id=effect.id, expect_last=last)
                break
            except Conflict:
                # Somebody else was first; what they said is on the way through the feed. About the same instance it
                # holds instead of ours; about another one ours is still to be said.
                if not await self._hear(effect.subject, last):
                    raise Rejected(f"{effect.subject}: refused, and nothing newer is heard of") from None
                if self.machine.heard(event) is not before:
                    log.debug("%s: somebody else was first", effect.subject)
                    return
        self._last[effect.subject] = max(ack.sequence, self._last.get(effect.subject, 0))
        self.machine.learn(event)
        if not ack.duplicate:
            self.published += 1

    async def _hear(self, subject: str, last: int) -> bool:
        """An event later than *last* has come in; False if none does for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEAR_S), self._heard:
                await self._heard.wait_for(lambda: self._last.get(subject, 0) > last)
        return self._last.get(subject, 0) > last

    async def _answer(self, payload: bytes) -> AsyncIterator[bytes]:
        yield await self.rule_store.answer(payload, self.machine, time.time_ns())

    def health(self) -> Health:
        """Ready when it has read what there was."""
        missing = list(self.bus.problems)
        if not self.runner.progress.caught_up:
            missing.append("alert rules")
        return Health(missing, {"rules": len(self.machine.watches)})

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        yield Sample("tokentrace_alerter_spans_total", "Spans seen.", self.machine.spans)
        yield Sample("tokentrace_alerter_events_total", "Events published.", self.published)
        yield Sample("tokentrace_alerter_delivered_total", "Events delivered.", self.delivery_worker.delivered)
        yield Sample("tokentrace_alerter_undelivered_total", "Events given up.", self.delivery_worker.failed)
        yield Sample(
            "tokentrace_alerter_expired_total", "Events that came too late to deliver.", self.delivery_worker.expired
        )
        yield Sample("tokentrace_alerter_lag_messages", "Messages still to read.", self.runner.progress.pending)
        if self.machine.time_ns:
            age_s = (time.time_ns() - self.machine.time_ns) / SECOND
            yield Sample("tokentrace_alerter_last_message_age_seconds", "Age of the last message taken in.", age_s)
