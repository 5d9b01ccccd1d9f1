"""
Delivery: a durable work queue on ``TT_ALERTS`` that all alerters share.

Every event is taken by one of them, tried until its channel accepts it or it is given up, and only then acknowledged; a
kill in between gives it to somebody else. Every attempt carries the same ``Idempotency-Key``, so a receiver can make of
at least once exactly once. What became of each is told on ``tokentrace.deliveries.<project>.<rule>``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal

import httpx
import msgspec

from tokentrace.bad_data import BAD_DATA
from tokentrace.bus import Bus, Delivery, subjects
from tokentrace.errors import Rejected, TokentraceError, shorten
from tokentrace.records import AlertEvent, DeliveryRecord, decode_event
from tokentrace.units import SECOND, parse_instant, render_instant
from tokentrace_alerter.delivery.allowed_hosts import AllowedHosts
from tokentrace_alerter.delivery.callbacks import Callbacks
from tokentrace_alerter.delivery.channel import (
    ALERTMANAGER_EVERY_NS,
    EXPIRES_NS,
    Channel,
    backoff_ns,
    body_of,
    key_of,
    pushed,
    signed,
)
from tokentrace_alerter.delivery.transport import CheckedTransport

log = logging.getLogger("tokentrace.alerter")

DURABLE = "delivery"
AT_ONCE = 8
_TAKE = 64
#: So long an event whose alerter was killed waits for another one.
_ACK_WAIT_S = 10.0
#: So many events may wait here for their turn: those of a destination that hangs are not to keep others out.
_MAX_PENDING = 16_384
#: A firing that is so old has been heard of, and so has its end.
_HEARD_NS = 10 * SECOND
_PUSH = "/api/v2/alerts"
_Episode = tuple[str, str, str]


class Refused(Exception):
    """The receiver will never take it."""


class Failed(Exception):
    """This attempt came to nothing; another may not."""


class DeliveryWorker:
    """
    Takes events off the queue and carries them.

    Args:
        channel_of: Rule name -> its channel now, None if it has none.
        episodes: Events of the episodes that last now, for channels that want to be reminded.
        allowed: The hosts that may be called; what is for another one is given up.
    """

    def __init__(
        self,
        bus: Bus,
        project: str,
        channel_of: Callable[[str], Channel | None],
        episodes: Callable[[], list[AlertEvent]],
        allowed: AllowedHosts,
    ) -> None:
        self._bus, self._project, self._channel_of, self._episodes = bus, project, channel_of, episodes
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._reminders: dict[str, asyncio.Semaphore] = {}
        self._client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,
            transport=CheckedTransport(allowed),
            # What a receiver wants remembered is nobody's business.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        self._calls = Callbacks(AT_ONCE)
        self._held: set[Delivery] = set()
        self._pushed: dict[_Episode, float] = {}
        self._reminding: set[str] = set()
        self.delivered = self.failed = self.expired = 0

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with self._client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._remind())
            tasks.create_task(self._hold())
            room = asyncio.Semaphore(_MAX_PENDING)
            queue = self._bus.consume(subjects.ALERTS, DURABLE, batch=_TAKE, ack_wait_s=_ACK_WAIT_S)
            async with contextlib.aclosing(queue):
                async for taken in queue:
                    for one in taken:
                        await room.acquire()
                        task = tasks.create_task(self._carry(one))
                        task.add_done_callback(lambda _: room.release())

    async def _carry(self, one: Delivery) -> None:
        """One event, whatever becomes of it: no exception leaves here but a cancellation."""
        try:
            await self._carry_event(one, decode_event(one.message.payload))
        except BAD_DATA as exc:
            if not isinstance(exc, Rejected):
                log.exception("alert event %d", one.message.sequence)
            self._bus.set_aside.note(subjects.ALERTS, f"message {one.message.sequence}", exc)
            await self._finish(one, one.term("not an event"))

    async def _carry_event(self, one: Delivery, event: AlertEvent) -> None:
        channel = self._channel_of(event.alert)
        if channel is None or not channel.wants(event):
            await self._finish(one, one.ack())
            return
        self._held.add(one)
        try:
            async with self._turns.setdefault(channel.destination, asyncio.Semaphore(AT_ONCE)):
                why = self._is_stale(event, channel)
                if why:
                    self.expired += 1
                    await self._tell(event, channel, "expired", one.deliveries, why)
                    await self._finish(one, one.ack())
                else:
                    await self._attempt(one, event, channel)
        finally:
            self._held.discard(one)

    async def _hold(self) -> None:
        """Nobody else takes what waits for its turn here."""
        while True:
            await asyncio.sleep(_ACK_WAIT_S / 3)
            for one in list(self._held):
                if one in self._held:
                    await self._answer(one.in_progress())

    async def _attempt(self, one: Delivery, event: AlertEvent, channel: Channel) -> None:
        began = time.monotonic()
        try:
            await self._send(channel, event, again=one.deliveries > 1)
        except Failed as exc:
            if one.deliveries <= channel.max_retries:
                await self._tell(event, channel, "retry", one.deliveries, str(exc), began)
                await self._finish(one, one.nak(backoff_ns(one.deliveries) / SECOND))
                return
            await self._give_up(one, event, channel, f"{exc}; given up after {one.deliveries} attempts", began)
        except Refused as exc:
            await self._give_up(one, event, channel, str(exc), began)
        else:
            self.delivered += 1
            await self._tell(event, channel, "delivered", one.deliveries, "", began)
            await self._finish(one, one.ack())

    async def _give_up(self, one: Delivery, event: AlertEvent, channel: Channel, why: str, began: float) -> None:
        self.failed += 1
        log.error("rule %s: its event of %s is not delivered: %s", event.alert, event.fired_at, why)
        await self._tell(event, channel, "dead", one.deliveries, why, began)
        await self._finish(one, one.term("not delivered"))

    async def _finish(self, one: Delivery, answer: Awaitable[None]) -> None:
        # Held any longer, it would not come again when it is asked to.
        self._held.discard(one)
        await self._answer(answer)

    async def _answer(self, answer: Awaitable[None]) -> None:
        # An answer that is lost brings the event again, under the same key.
        with contextlib.suppress(TokentraceError):
            await answer

    async def _tell(
        self,
        event: AlertEvent,
        channel: Channel,
        outcome: Literal["delivered", "retry", "dead", "expired"],
        attempt: int,
        error: str,
        began: float | None = None,
    ) -> None:
        record = DeliveryRecord(
            rule=event.alert,
            fired_at=event.fired_at,
            status=event.status,
            group=event.group,
            key=key_of(event),
            channel=channel.type,
            destination=_without_secrets(channel.destination),
            outcome=outcome,
            attempt=attempt,
            error=shorten(error, 300),
            at=render_instant(time.time_ns()),
            took_ms=None if began is None else round((time.monotonic() - began) * 1000, 3),
        )
        subject = subjects.deliveries(self._project, event.alert)
        with contextlib.suppress(TokentraceError):
            await self._bus.publish(subject, msgspec.json.encode(record), id=f"{record.key}#{attempt}#{outcome}")

    def _is_stale(self, event: AlertEvent, channel: Channel) -> str:
        """Why nobody wants to hear *event* any more; "" = somebody does."""
        old = parse_instant(event.fired_at) < time.time_ns() - EXPIRES_NS
        if old and not self._lasts(event):
            return "its episode is over, and it is an hour old"
        # To an Alertmanager both episodes are one alert, and the last word counts.
        if channel.type == "alertmanager" and any(
            (one.alert, one.group) == (event.alert, event.group)
            and parse_instant(one.starts_at) > parse_instant(event.starts_at)
            for one in self._episodes()
        ):
            return "another episode has begun"
        return ""

    def _lasts(self, event: AlertEvent) -> bool:
        """The episode of *event* is not over."""
        return _episode(event) in map(_episode, self._episodes())

    async def _send(self, channel: Channel, event: AlertEvent, *, again: bool) -> None:
        """
        One attempt.

        Args:
            again: It is not the first one.

        Raises:
            Failed, Refused: It was not accepted.
        """
        if channel.type == "stdout":
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
            sys.stdout.flush()
        elif channel.type == "custom":
            await self._call(channel, event)
        elif channel.type == "alertmanager":
            now_ns = time.time_ns()
            # At first it may be here before the alerter has heard of it.
            heard = again or parse_instant(event.fired_at) < now_ns - _HEARD_NS
            body = msgspec.json.encode([pushed(event, now_ns, over=heard and not self._lasts(event))])
            await self._post(channel, channel.url + _PUSH, body, {})
        else:
            body = body_of(channel, event)
            headers = {"Idempotency-Key": key_of(event)}
            if channel.secret:
                headers["X-Tokentrace-Signature"] = signed(channel.secret, body)
            await self._post(channel, channel.url, body, headers)

    async def _post(self, channel: Channel, url: str, body: bytes, own: Mapping[str, str]) -> None:
        headers = httpx.Headers({"Content-Type": "application/json", "User-Agent": "tokentrace"})
        headers.update(channel.headers)
        headers.update(own)
        try:
            async with (
                asyncio.timeout(channel.timeout_ns / SECOND),
                self._client.stream("POST", url, content=body, headers=headers, timeout=None) as answer,
            ):
                pass  # What else it says nobody reads.
        except Rejected as exc:
            raise Refused(str(exc)) from exc
        except TimeoutError as exc:
            raise Failed(f"no answer within {channel.timeout_ns / SECOND:g} s") from exc
        except (httpx.LocalProtocolError, httpx.InvalidURL, ValueError) as exc:
            # The text would repeat a header or an address, either of which may be a secret.
            raise Refused(f"cannot be sent: {type(exc).__name__}") from exc
        except httpx.HTTPError as exc:
            raise Failed(f"no answer: {type(exc).__name__}") from exc
        except Exception as exc:
            raise Refused(f"cannot be sent: {type(exc).__name__}") from exc
        if answer.status_code >= 500:
            raise Failed(f"HTTP {answer.status_code}")
        if not answer.is_success:
            raise Refused(f"HTTP {answer.status_code}")

    async def _call(self, channel: Channel, event: AlertEvent) -> None:
        try:
            await self._calls.call(channel.target, msgspec.to_builtins(event), channel.timeout_ns)
        except TimeoutError as exc:
            raise Failed(str(exc) or f"did not return within {channel.timeout_ns / SECOND:g} s") from exc
        except Exception as exc:
            raise Failed(f"{type(exc).__name__}: {shorten(str(exc), 100)}") from exc

    async def _remind(self) -> None:
        """An Alertmanager forgets what nobody renews; every alerter renews, which does no harm."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(1.0)
                for name, events in self._due().items():
                    channel = self._channel_of(name)
                    if channel is not None and name not in self._reminding:
                        self._reminding.add(name)
                        tasks.create_task(self._renew(name, channel, events))

    def _due(self) -> dict[str, list[AlertEvent]]:
        """The episodes that an Alertmanager is to be reminded of now, by rule."""
        now, every_s = time.monotonic(), ALERTMANAGER_EVERY_NS / SECOND
        lasting: set[_Episode] = set()
        due: dict[str, list[AlertEvent]] = {}
        for event in self._episodes():
            channel = self._channel_of(event.alert)
            if channel is not None and channel.type == "alertmanager":
                lasting.add(_episode(event))
                if now >= self._pushed.setdefault(_episode(event), now + every_s):
                    due.setdefault(event.alert, []).append(event)
        self._pushed = {episode: at for episode, at in self._pushed.items() if episode in lasting}
        return due

    async def _renew(self, name: str, channel: Channel, events: list[AlertEvent]) -> None:
        try:
            async with self._reminders.setdefault(channel.destination, asyncio.Semaphore(AT_ONCE)):
                lasting = set(map(_episode, self._episodes()))
                events = [event for event in events if _episode(event) in lasting]
                for event in events:
                    self._pushed[_episode(event)] = time.monotonic() + ALERTMANAGER_EVERY_NS / SECOND
                if events:
                    body = msgspec.json.encode([pushed(event, time.time_ns()) for event in events])
                    await self._post(channel, channel.url + _PUSH, body, {})
        except (Failed, Refused) as exc:
            log.warning("rule %s: its Alertmanager was not reminded: %s", name, exc)
        finally:
            self._reminding.discard(name)


def _episode(event: AlertEvent) -> _Episode:
    return event.alert, "".join(event.group.values()), event.starts_at


def _without_secrets(destination: str) -> str:
    """An address without what may be a password in it."""
    try:
        url = httpx.URL(destination)
    except httpx.InvalidURL:
        return "an address"
    if not url.host:
        return destination
    return str(url.copy_with(username=None, password=None, query=None))
