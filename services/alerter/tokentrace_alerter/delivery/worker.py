"""
Delivery: a durable work queue on ``TT_ALERTS`` that all alerters share.

An alerter takes an event, waits until the earlier events of its instance are delivered or given up, and makes attempts
until the channel accepts the event or it is given up. Meanwhile it tells the broker that the event is in progress. If
the alerter is killed, the broker gives its events to others after ``ack_wait_s``; if it is stopped, it gives them back
itself. Every attempt at a webhook has the same ``Idempotency-Key``, so that the receiver can drop repetitions.

The outcome of every attempt is published on ``tokentrace.deliveries.<project>.<rule>`` before the event leaves the
queue. All alerters read these records: they say which events are done, how often an event was tried, and which
receivers asked to wait; see ``ledger``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Delivery, subjects
from tokentrace.errors import Rejected, TokentraceError, shorten
from tokentrace.records import AlertEvent, DeliveryRecord, decode_event
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.retry import until_available
from tokentrace.units import DAY, HOUR, SECOND, parse_instant, render_instant
from tokentrace_alerter.delivery.alertmanager import Alertmanagers
from tokentrace_alerter.delivery.callbacks import Callbacks
from tokentrace_alerter.delivery.channel import Channel, idempotency_key
from tokentrace_alerter.delivery.episodes import OpenEpisodes
from tokentrace_alerter.delivery.ledger import LOOK_AGAIN_S, Ledger
from tokentrace_alerter.delivery.webhook import NO_SUCCESS, Failed, Refused, WebhookSender

log = logging.getLogger("tokentrace.alerter")

#: Limit of concurrent deliveries of one alerter to one destination.
AT_ONCE = 8
_FETCH = 64
#: Seconds after which the broker gives the events of a killed alerter to another one.
_ACK_WAIT_S = 10.0
#: A firing that is older than this is not delivered if its episode is over, nanoseconds.
EXPIRES_NS = HOUR
#: How long attempts do not count because the receiver asks to wait, nanoseconds after the event.
ASKED_TO_WAIT_NS = DAY
#: How long a stopped alerter waits for the attempts that are under way, seconds.
DRAIN_S = 15.0
#: How long the record of an outcome is tried to be published before the event leaves the queue without it, seconds.
_RECORD_S = 30.0


class _Held:
    """An event that this alerter has taken from the queue; *attempting* = it is being sent."""

    def __init__(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        self.delivery, self.task = delivery, task
        self.attempting = self.finished = False


class DeliveryWorker:
    """
    Takes events from the queue and delivers them.

    Args:
        channel_of: Returns the channel of an event, which is that of the firing that began its episode, although the
            rule may be deleted or changed since; None = the event is not delivered.
        rules_read: Returns once the changes of rules that came before this call are known here.
        open_episodes: Returns the last event of every instance that is firing now.
        allowed: The hosts that may be called. A delivery to another host is given up.
        proxy: URL of the proxy for webhooks and Alertmanagers; "" = none.

    Attributes:
        delivered, failed, expired: Number of events accepted, given up and too late, since the start.
    """

    def __init__(
        self,
        bus: Bus,
        project: str,
        channel_of: Callable[[AlertEvent], Channel | None],
        rules_read: Callable[[], Awaitable[None]],
        open_episodes: Callable[[], list[AlertEvent]],
        allowed: AllowedHosts,
        proxy: str = "",
    ) -> None:
        self._bus, self._project, self._channel_of = bus, project, channel_of
        self._limits: dict[str, asyncio.Semaphore] = {}
        self._sender = WebhookSender(allowed, bus.clock, proxy)
        self._episodes = OpenEpisodes(open_episodes)
        self._alertmanagers = Alertmanagers(self._sender, channel_of, self._episodes, AT_ONCE, bus.clock)
        self._callbacks = Callbacks(AT_ONCE)
        self._ledger = Ledger(bus, subjects.DELIVERY, channel_of, rules_read)
        #: Sequence -> the event with that sequence, which this alerter has taken and not finished yet.
        self._held: dict[int, _Held] = {}
        self._draining = False
        self.delivered = self.failed = self.expired = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until *stopping* is set; then finish the attempts under way and give all other events back."""
        async with self._sender, asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._alertmanagers.renew_forever()),
                tasks.create_task(self._extend_ack_wait()),
                tasks.create_task(self._ledger.run()),
            ]
            taking = tasks.create_task(self._take(tasks))
            await stopping.wait()
            self._draining = True
            taking.cancel()
            await asyncio.wait([taking])
            await self._drain()
            for task in background:
                task.cancel()

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        # The broker limits how many events are in progress, so there is no other limit here.
        queue = self._bus.consume(subjects.ALERTS, subjects.DELIVERY, batch=_FETCH, ack_wait_s=_ACK_WAIT_S)
        async with contextlib.aclosing(queue):
            async for deliveries in queue:
                for delivery in deliveries:
                    tasks.create_task(self._deliver(delivery))

    async def _drain(self) -> None:
        """Wait for the attempts under way, but not for ever, and give the other events back to the queue."""
        for held in self._held.values():
            if not held.attempting:
                held.task.cancel()
        if self._held:
            await asyncio.wait([held.task for held in self._held.values()], timeout=DRAIN_S)
        for held in self._held.values():
            held.task.cancel()

    async def _deliver(self, delivery: Delivery) -> None:
        """Deliver one event; record an event that cannot be handled, and remove it from the queue."""
        sequence = delivery.message.sequence
        known = self._held.get(sequence)
        if known is not None:
            # The broker has not heard in time that the event is in progress.
            known.delivery = delivery
            return
        if self._draining:
            await self._acknowledge(delivery.nak())
            return
        task = asyncio.current_task()
        assert task is not None
        held = self._held[sequence] = _Held(delivery, task)
        try:
            await self._deliver_event(held, decode_event(delivery.message.payload, delivery.message.time_ns))
        except BAD_DATA as exc:
            if not isinstance(exc, Rejected):
                log.exception("alert event %d cannot be delivered", sequence)
            self._bus.set_aside.note(subjects.ALERTS, f"message {sequence}", exc)
            self._ledger.finish(sequence, "dead")
            await self._finish(held, held.delivery.term("not an event"))
        finally:
            # Forget it first: "in progress" after a nak would cancel the redelivery that the nak has scheduled.
            del self._held[sequence]
            if not held.finished:
                await self._acknowledge(held.delivery.nak())

    async def _deliver_event(self, held: _Held, event: AlertEvent) -> None:
        sequence, order = held.delivery.message.sequence, self._ledger.order
        await self._ledger.know(held.delivery.message, event)
        while not self._draining and not held.finished:
            channel = self._channel_of(event)
            if channel is None or not channel.wants(event):
                self._ledger.finish(sequence, "unwanted")
            if channel is None or order.is_done(sequence):
                await self._finish(held, held.delivery.ack())
            elif not order.may_go(sequence):
                await self._ledger.turn(sequence)
            elif (wait_s := self._ledger.wait_s(sequence, channel.destination)) > 0:
                # Not longer, because the rule may be changed meanwhile.
                await asyncio.sleep(min(wait_s, LOOK_AGAIN_S))
            else:
                async with self._limits.setdefault(channel.destination, asyncio.Semaphore(AT_ONCE)):
                    await until_available(self._ledger.refresh)
                    late = self._ledger.wait_s(sequence, channel.destination) > 0
                    if order.may_go(sequence) and not order.is_done(sequence) and not late:
                        await self._attempt(held, event, channel)

    async def _extend_ack_wait(self) -> None:
        """Tell the broker that the held events are in progress, so that it gives them to no other alerter."""
        while True:
            await asyncio.sleep(_ACK_WAIT_S / 3)
            for sequence, held in list(self._held.items()):
                if self._held.get(sequence) is held and not held.finished:
                    await self._acknowledge(held.delivery.in_progress())

    async def _attempt(self, held: _Held, event: AlertEvent, channel: Channel) -> None:
        sequence = held.delivery.message.sequence
        attempt = self._ledger.order.attempts(sequence) + 1
        began = time.monotonic()
        held.attempting = True
        expired = self._expiry_reason(sequence, event, channel)
        if expired:
            self.expired += 1
            record = self._record(event, channel, "expired", attempt, expired)
        else:
            try:
                await self._send(channel, event, again=attempt > 1)
            except Failed as exc:
                record = self._after_failure(sequence, event, channel, exc, attempt, began)
            except Refused as exc:
                record = self._give_up(event, channel, attempt, str(exc), began)
            else:
                self.delivered += 1
                record = self._record(event, channel, "delivered", attempt, "", began)
        await self._publish(record)
        self._ledger.note(record)
        if record.outcome == "dead":
            await self._finish(held, held.delivery.term("not delivered"))
        elif record.outcome != "retry":
            await self._finish(held, held.delivery.ack())
        held.attempting = False

    def _after_failure(
        self, sequence: int, event: AlertEvent, channel: Channel, error: Failed, attempt: int, began: float
    ) -> DeliveryRecord:
        """Return the record of a failed attempt, after which there is either another one or none."""
        asked_s = error.retry_after_s
        if channel.max_retries == 0 or parse_instant(event.fired_at) < self._bus.clock.now_ns() - ASKED_TO_WAIT_NS:
            asked_s = None
        failures = self._ledger.order.failures(sequence) + (asked_s is None)
        if failures > channel.max_retries:
            return self._give_up(event, channel, attempt, f"{error}; given up after {attempt} attempts", began)
        return self._record(event, channel, "retry", attempt, str(error), began, asked_s)

    def _give_up(self, event: AlertEvent, channel: Channel, attempt: int, reason: str, began: float) -> DeliveryRecord:
        self.failed += 1
        log.error("rule %s: its event of %s is not delivered: %s", event.alert, event.fired_at, reason)
        return self._record(event, channel, "dead", attempt, reason, began)

    async def _finish(self, held: _Held, acknowledgement: Awaitable[None]) -> None:
        held.finished = True
        await self._acknowledge(acknowledgement)

    async def _acknowledge(self, acknowledgement: Awaitable[None]) -> None:
        # If the acknowledgement is lost, the broker delivers the event again, and its record says that it is done.
        with contextlib.suppress(TokentraceError):
            await acknowledgement

    def _record(
        self,
        event: AlertEvent,
        channel: Channel,
        outcome: Literal["delivered", "retry", "dead", "expired"],
        attempt: int,
        error: str,
        began: float | None = None,
        retry_after_s: float | None = None,
    ) -> DeliveryRecord:
        return DeliveryRecord(
            rule=event.alert,
            fired_at=event.fired_at,
            status=event.status,
            group=event.group,
            key=idempotency_key(event),
            channel=channel.type,
            destination=channel.shown_destination,
            outcome=outcome,
            attempt=attempt,
            error=shorten(error, 300),
            at=render_instant(self._bus.clock.now_ns()),
            took_ms=None
            if began is None or error.startswith(NO_SUCCESS)
            else round((time.monotonic() - began) * 1000, 3),
            retry_after_s=retry_after_s,
        )

    async def _publish(self, record: DeliveryRecord) -> None:
        """
        Publish *record*.

        The other alerters need it for the order. So an outcome is tried for a while, and a record that the broker
        refuses is dropped: the others then see from the queue itself that the event is done.
        """
        subject = subjects.deliveries(self._project, record.rule)
        payload, id = msgspec.json.encode(record), f"{record.key}#{record.attempt}#{record.outcome}"
        with contextlib.suppress(TokentraceError, TimeoutError):
            if record.outcome == "retry":
                await self._bus.publish(subject, payload, id=id)
                return
            async with asyncio.timeout(_RECORD_S):
                await until_available(lambda: self._bus.publish(subject, payload, id=id))

    def _expiry_reason(self, sequence: int, event: AlertEvent, channel: Channel) -> str:
        """Return why *event* is too late to be delivered; "" = it is not too late."""
        if self._ledger.order.is_untold(sequence):
            return "its firing was too late to be delivered"
        old = parse_instant(event.fired_at) < self._bus.clock.now_ns() - EXPIRES_NS
        if old and event.status == "firing" and not self._episodes.include(event):
            return "its episode is over, and it is an hour old"
        # An Alertmanager sees two episodes of an instance as one alert: a late event of the first would end the second.
        if channel.type == "alertmanager" and self._episodes.supersede(event):
            return "another episode has begun"
        return ""

    async def _send(self, channel: Channel, event: AlertEvent, *, again: bool) -> None:
        """
        Deliver *event* once.

        Args:
            again: True = this is not the first attempt.

        Raises:
            Failed: The channel did not accept the event; another attempt may succeed.
            Refused: The channel did not accept the event, and will not accept it later.
        """
        if channel.type == "stdout":
            try:
                sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
                sys.stdout.flush()
            except OSError as exc:
                raise Failed(f"stdout: {exc}") from exc
        elif channel.type == "custom":
            await self._call(channel, event)
        elif channel.type == "alertmanager":
            await self._alertmanagers.send(channel, event, again=again)
        else:
            await self._sender.send(channel, event)

    async def _call(self, channel: Channel, event: AlertEvent) -> None:
        try:
            await self._callbacks.call(channel.target, msgspec.to_builtins(event), channel.timeout_ns)
        except TimeoutError as exc:
            raise Failed(str(exc) or f"did not return within {channel.timeout_ns / SECOND:g} s") from exc
        except Exception as exc:
            raise Failed(f"{type(exc).__name__}: {shorten(str(exc), 100)}") from exc
