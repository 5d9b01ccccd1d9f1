"""
Delivery: a durable work queue on ``TT_ALERTS`` that all alerters share.

An alerter takes an event and makes one attempt. It removes the event from the queue if the channel has accepted it, or
if it is given up. Otherwise the broker delivers the event again after a pause, to any alerter. If an alerter is killed,
the broker gives its events to others after ``ack_wait_s``. Every attempt at a webhook has the same ``Idempotency-Key``,
so that the receiver can drop repetitions. The outcome of every attempt is published on
``tokentrace.deliveries.<project>.<rule>``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import httpx
import msgspec

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Delivery, subjects
from tokentrace.errors import Rejected, TokentraceError, shorten
from tokentrace.records import AlertEvent, DeliveryRecord, decode_event
from tokentrace.units import HOUR, SECOND, parse_instant, render_instant
from tokentrace_alerter.delivery.alertmanager import Alertmanagers
from tokentrace_alerter.delivery.allowed_hosts import AllowedHosts
from tokentrace_alerter.delivery.callbacks import Callbacks
from tokentrace_alerter.delivery.channel import Channel, backoff_ns, idempotency_key
from tokentrace_alerter.delivery.episodes import OpenEpisodes
from tokentrace_alerter.delivery.webhook import NO_SUCCESS, Failed, Refused, WebhookSender

log = logging.getLogger("tokentrace.alerter")

DURABLE = "delivery"
#: Limit of concurrent deliveries of one alerter to one destination.
AT_ONCE = 8
_FETCH = 64
#: Seconds after which the broker gives the events of a killed alerter to another one.
_ACK_WAIT_S = 10.0
#: Limit of events that one alerter holds. It is high, so that a destination that hangs does not delay others.
_MAX_PENDING = 16_384
#: An event that is older than this is not delivered if its episode is over, nanoseconds.
EXPIRES_NS = HOUR


class DeliveryWorker:
    """
    Takes events from the queue and delivers them.

    Args:
        channel_of: Returns the channel of an event, which is that of the firing that began its episode, although the
            rule may be deleted or changed since; None = the event is not delivered.
        rules_read: Returns once the changes of rules that came before this call are known here.
        open_episodes: Returns the last event of every instance that is firing now.
        allowed: The hosts that may be called. A delivery to another host is given up.

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
    ) -> None:
        self._bus, self._project, self._channel_of = bus, project, channel_of
        self._rules_read = rules_read
        self._limits: dict[str, asyncio.Semaphore] = {}
        self._sender = WebhookSender(allowed)
        self._episodes = OpenEpisodes(open_episodes)
        self._alertmanagers = Alertmanagers(self._sender, channel_of, self._episodes, AT_ONCE, bus.clock)
        self._callbacks = Callbacks(AT_ONCE)
        #: Events that this alerter has taken and not acknowledged yet.
        self._held: set[Delivery] = set()
        self.delivered = self.failed = self.expired = 0

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with self._sender, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._alertmanagers.renew_forever())
            tasks.create_task(self._extend_ack_wait())
            room = asyncio.Semaphore(_MAX_PENDING)
            queue = self._bus.consume(subjects.ALERTS, DURABLE, batch=_FETCH, ack_wait_s=_ACK_WAIT_S)
            async with contextlib.aclosing(queue):
                async for deliveries in queue:
                    for delivery in deliveries:
                        await room.acquire()
                        task = tasks.create_task(self._deliver(delivery))
                        task.add_done_callback(lambda _: room.release())

    async def _deliver(self, delivery: Delivery) -> None:
        """Deliver one event; record an event that cannot be handled, and remove it from the queue."""
        try:
            await self._deliver_event(delivery, decode_event(delivery.message.payload, delivery.message.time_ns))
        except BAD_DATA as exc:
            if not isinstance(exc, Rejected):
                log.exception("alert event %d cannot be delivered", delivery.message.sequence)
            self._bus.set_aside.note(subjects.ALERTS, f"message {delivery.message.sequence}", exc)
            await self._finish(delivery, delivery.term("not an event"))

    async def _deliver_event(self, delivery: Delivery, event: AlertEvent) -> None:
        # Another alerter may have published this event for a rule that has changed since this one last looked.
        await self._rules_read()
        channel = self._channel_of(event)
        if channel is None or not channel.wants(event):
            await self._finish(delivery, delivery.ack())
            return
        self._held.add(delivery)
        try:
            async with self._limits.setdefault(channel.destination, asyncio.Semaphore(AT_ONCE)):
                expired = self._expiry_reason(event, channel)
                if expired:
                    self.expired += 1
                    await self._record(event, channel, "expired", delivery.deliveries, expired)
                    await self._finish(delivery, delivery.ack())
                else:
                    await self._attempt(delivery, event, channel)
        finally:
            self._held.discard(delivery)

    async def _extend_ack_wait(self) -> None:
        """Tell the broker that the held events are in progress, so that it gives them to no other alerter."""
        while True:
            await asyncio.sleep(_ACK_WAIT_S / 3)
            for delivery in list(self._held):
                if delivery in self._held:
                    await self._acknowledge(delivery.in_progress())

    async def _attempt(self, delivery: Delivery, event: AlertEvent, channel: Channel) -> None:
        attempt, began = delivery.deliveries, time.monotonic()
        try:
            await self._send(channel, event, again=attempt > 1)
        except Failed as exc:
            if attempt <= channel.max_retries:
                await self._record(event, channel, "retry", attempt, str(exc), began)
                await self._finish(delivery, delivery.nak(backoff_ns(attempt) / SECOND))
                return
            await self._give_up(delivery, event, channel, f"{exc}; given up after {attempt} attempts", began)
        except Refused as exc:
            await self._give_up(delivery, event, channel, str(exc), began)
        else:
            self.delivered += 1
            await self._record(event, channel, "delivered", attempt, "", began)
            await self._finish(delivery, delivery.ack())

    async def _give_up(
        self, delivery: Delivery, event: AlertEvent, channel: Channel, reason: str, began: float
    ) -> None:
        self.failed += 1
        log.error("rule %s: its event of %s is not delivered: %s", event.alert, event.fired_at, reason)
        await self._record(event, channel, "dead", delivery.deliveries, reason, began)
        await self._finish(delivery, delivery.term("not delivered"))

    async def _finish(self, delivery: Delivery, acknowledgement: Awaitable[None]) -> None:
        # Discard first: "in progress" after a nak would cancel the redelivery that the nak has scheduled.
        self._held.discard(delivery)
        await self._acknowledge(acknowledgement)

    async def _acknowledge(self, acknowledgement: Awaitable[None]) -> None:
        # If the acknowledgement is lost, the broker delivers the event again; a webhook then gets the same key.
        with contextlib.suppress(TokentraceError):
            await acknowledgement

    async def _record(
        self,
        event: AlertEvent,
        channel: Channel,
        outcome: Literal["delivered", "retry", "dead", "expired"],
        attempt: int,
        error: str,
        began: float | None = None,
    ) -> None:
        """Publish the outcome of an attempt; if the broker does not accept the record, it is dropped."""
        record = DeliveryRecord(
            rule=event.alert,
            fired_at=event.fired_at,
            status=event.status,
            group=event.group,
            key=idempotency_key(event),
            channel=channel.type,
            destination=_without_secrets(channel.destination),
            outcome=outcome,
            attempt=attempt,
            error=shorten(error, 300),
            at=render_instant(self._bus.clock.now_ns()),
            took_ms=None
            if began is None or error.startswith(NO_SUCCESS)
            else round((time.monotonic() - began) * 1000, 3),
        )
        subject = subjects.deliveries(self._project, event.alert)
        with contextlib.suppress(TokentraceError):
            await self._bus.publish(subject, msgspec.json.encode(record), id=f"{record.key}#{attempt}#{outcome}")

    def _expiry_reason(self, event: AlertEvent, channel: Channel) -> str:
        """Return why *event* is too late to be delivered; "" = it is not too late."""
        old = parse_instant(event.fired_at) < self._bus.clock.now_ns() - EXPIRES_NS
        if old and not self._episodes.include(event):
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


def _without_secrets(destination: str) -> str:
    """Return *destination* for a record: a URL loses its user, password and query, which may be secrets."""
    try:
        url = httpx.URL(destination)
    except httpx.InvalidURL:
        return "an address"
    if not url.host:
        return destination
    return str(url.copy_with(username=None, password=None, query=None))
