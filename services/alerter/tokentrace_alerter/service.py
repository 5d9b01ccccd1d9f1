"""The alerter as a service: one machine over all shards, its events on the alert subject, answers about its rules."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.routing import BaseRoute

from tokentrace.bus import Bus, subjects
from tokentrace.errors import ConfigError, Conflict, Rejected
from tokentrace.http import Health, Sample
from tokentrace.machine import Effect
from tokentrace.metric.custom import parse_customs
from tokentrace.pump import Pump
from tokentrace.records import AlertEvent
from tokentrace.settings import AlertRule, Settings
from tokentrace.units import SECOND, parse_duration
from tokentrace_alerter.channel import to_stdout
from tokentrace_alerter.machine import Alerter as Machine
from tokentrace_alerter.rule import Rule, parse_rule

log = logging.getLogger("tokentrace.alerter")

NAME = "alerter"
_events = msgspec.json.Decoder(AlertEvent)


@dataclass(frozen=True)
class Config:
    """
    What an alerter has to know.

    Attributes:
        project: Whose alert subjects.
        snapshot_every_s: At least this often, seconds.
    """

    rules: tuple[Rule, ...]
    project: str
    snapshot_every_s: float = 60.0

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
        customs = parse_customs(settings.customs)
        rules = [parse_rule(one, f"alerts[{n}]", cooldown_ns, customs) for n, one in enumerate(given)]
        repeated = [name for name, count in Counter(rule.name for rule in rules).items() if count > 1]
        if repeated:
            raise ConfigError(f"alerts: the name {repeated[0]!r} is used twice")
        return cls(tuple(rules), settings.nats.project, settings.storage.snapshot_interval / SECOND)


def _plain(rule: AlertRule) -> dict[str, Any]:
    fields = msgspec.structs.asdict(rule)
    if rule.delivery is not None:
        fields["delivery"] = msgspec.structs.asdict(rule.delivery)
    return fields


class Alerter:
    """Watches, decides, publishes."""

    def __init__(self, bus: Bus, config: Config) -> None:
        self.bus, self.config = bus, config
        self.machine = Machine(config.rules, config.project)
        self._subjects = {subjects.alerts(config.project, rule.name): rule for rule in config.rules}
        self._last: dict[str, int] = {}
        self._read_events = asyncio.Event()
        self.published = 0
        self.pump = Pump(
            bus,
            self.machine,
            stream=subjects.SPANS,
            filters=[subjects.ALL_SPANS],
            service=NAME,
            shard=0,
            perform=self._perform,
            save_every_s=config.snapshot_every_s,
            on_caught_up=self._caught_up,
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Watch until *stopping* is set."""
        async with self.bus.serve(subjects.QUERY_ALERTS, self._answer):
            events = asyncio.create_task(self._follow_events())
            try:
                reading = asyncio.create_task(self._read_events.wait())
                stop = asyncio.create_task(stopping.wait())
                # What was fired before has to be known before anything is decided.
                await asyncio.wait([reading, stop, events], return_when=asyncio.FIRST_COMPLETED)
                reading.cancel()
                stop.cancel()
                if not stopping.is_set():
                    await self.pump.run(stopping)
            finally:
                events.cancel()
                await asyncio.gather(events, return_exceptions=True)

    def _caught_up(self) -> None:
        self.machine.caught_up = True

    async def _follow_events(self) -> None:
        async with contextlib.aclosing(self.bus.follow(subjects.ALERTS, [subjects.ALL_ALERTS], None)) as feed:
            async for chunk in feed:
                for message in chunk.messages:
                    if message.sequence > self._last.get(message.subject, 0):
                        self._last[message.subject] = message.sequence
                        self._learn(message.payload)
                if chunk.pending == 0:
                    self._read_events.set()

    def _learn(self, payload: bytes) -> None:
        try:
            self.machine.learn(_events.decode(payload))
        except msgspec.DecodeError as exc:
            log.warning("an event on the alert subject cannot be read: %s", exc)

    async def _perform(self, effect: Effect) -> None:
        rule = self._subjects[effect.subject]
        try:
            ack = await self.bus.publish(
                effect.subject, effect.payload, id=effect.id, expect_last=self._last.get(effect.subject, 0)
            )
        except Conflict:
            # Another alerter was first; its event is on the way through the feed and says what holds.
            log.info("%s: somebody else was first", rule.name)
            return
        self._last[effect.subject] = max(ack.sequence, self._last.get(effect.subject, 0))
        if not ack.duplicate:
            self.published += 1
            if rule.stdout and effect.id.endswith("@firing"):
                to_stdout(effect.payload)

    async def _answer(self, payload: bytes) -> list[bytes]:
        return [msgspec.json.encode(self.machine.render(time.time_ns()))]

    def health(self) -> Health:
        """Ready when it has read what there was."""
        missing = [] if self.bus.connected else ["nats"]
        if not self.pump.progress.caught_up:
            missing.append("alert rules")
        return Health(missing, {"rules": len(self.config.rules)})

    def samples(self) -> Iterator[Sample]:
        """Its own metrics."""
        yield Sample("tokentrace_alerter_spans_total", "Spans seen.", self.machine.spans)
        yield Sample("tokentrace_alerter_events_total", "Events published.", self.published)
        yield Sample("tokentrace_alerter_lag_messages", "Messages still to read.", self.pump.progress.pending)

    def routes(self) -> list[BaseRoute]:
        """Its HTTP side: nothing but health, which every program adds."""
        return []
