"""
Delivery: a durable work queue on ``TT_ALERTS`` that all alerters share.

Every event is taken by one of them, tried until its channel accepts it or it is given up, and only then acknowledged; a
kill in between gives it to somebody else. Every attempt carries the same ``Idempotency-Key``, so a receiver can make of
at least once exactly once. What became of each is told on ``tokentrace.deliveries.<project>.<rule>``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import httpx
import msgspec

from tokentrace.bus import Bus, Delivery, subjects
from tokentrace.errors import ConfigError, TokentraceError, shorten
from tokentrace.records import AlertEvent, DeliveryRecord
from tokentrace.units import SECOND, parse_instant, render_instant
from tokentrace_alerter.channel import (
    ALERTMANAGER_EVERY_NS,
    EXPIRES_NS,
    Channel,
    backoff_ns,
    body_of,
    key_of,
    pushed,
    signed,
)
from tokentrace_alerter.rule import Rule

log = logging.getLogger("tokentrace.alerter")

DURABLE = "delivery"
AT_ONCE = 8
_TAKE = 64
_PATIENCE_S = 30.0
_MAX_PENDING = 1000


class Refused(Exception):
    """The receiver will never take it."""


class Failed(Exception):
    """This attempt came to nothing; another may not."""


class Courier:
    """
    Takes events off the queue and carries them.

    Args:
        rules: Name -> rule, as they are now.
        episodes: Events of the episodes that last now, for channels that want to be reminded.
    """

    def __init__(
        self, bus: Bus, project: str, rules: Callable[[str], Rule | None], episodes: Callable[[], list[AlertEvent]]
    ) -> None:
        self._bus, self._project, self._rules, self._episodes = bus, project, rules, episodes
        self._turns: dict[str, asyncio.Semaphore] = {}
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False)
        self._pushed: dict[tuple[str, str], float] = {}
        self.delivered = self.failed = self.expired = 0

    async def run(self) -> None:
        """Deliver until cancelled."""
        async with self._client, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._remind())
            room = asyncio.Semaphore(_MAX_PENDING)
            queue = self._bus.consume(subjects.ALERTS, DURABLE, batch=_TAKE, patience_s=_PATIENCE_S)
            async with contextlib.aclosing(queue):
                async for taken in queue:
                    for one in taken:
                        await room.acquire()
                        task = tasks.create_task(self._carry(one))
                        task.add_done_callback(lambda _: room.release())

    async def _carry(self, one: Delivery) -> None:
        """One event, whatever becomes of it: no exception leaves here but a cancellation."""
        try:
            event = msgspec.json.decode(one.message.payload, type=AlertEvent)
        except msgspec.DecodeError as exc:
            log.warning("an event on the alert subject cannot be read: %s", exc)
            await self._answer(one.term("not an event"))
            return
        rule = self._rules(event.alert)
        channel = rule.delivery if rule is not None else None
        if rule is None or channel is None or not channel.wants(event):
            await self._answer(one.ack())
            return
        if self._is_stale(event):
            self.expired += 1
            await self._tell(event, channel, "expired", one.deliveries, "its episode is over, and it is an hour old")
            await self._answer(one.ack())
            return
        beat = asyncio.create_task(self._hold(one))
        try:
            async with self._turns.setdefault(channel.destination, asyncio.Semaphore(AT_ONCE)):
                await self._attempt(one, event, channel)
        finally:
            beat.cancel()

    async def _hold(self, one: Delivery) -> None:
        """Nobody else takes it while it waits for its turn here."""
        while True:
            await asyncio.sleep(_PATIENCE_S / 3)
            await self._answer(one.in_progress())

    async def _attempt(self, one: Delivery, event: AlertEvent, channel: Channel) -> None:
        began = time.monotonic()
        try:
            await self._send(channel, event)
        except Failed as exc:
            if one.deliveries <= channel.max_retries:
                await self._tell(event, channel, "retry", one.deliveries, str(exc), began)
                await self._answer(one.nak(backoff_ns(one.deliveries) / SECOND))
                return
            await self._give_up(one, event, channel, f"{exc}; given up after {one.deliveries} attempts", began)
        except Refused as exc:
            await self._give_up(one, event, channel, str(exc), began)
        else:
            self.delivered += 1
            await self._tell(event, channel, "delivered", one.deliveries, "", began)
            await self._answer(one.ack())

    async def _give_up(self, one: Delivery, event: AlertEvent, channel: Channel, why: str, began: float) -> None:
        self.failed += 1
        log.error("rule %s: its event of %s is not delivered: %s", event.alert, event.fired_at, why)
        await self._tell(event, channel, "dead", one.deliveries, why, began)
        await self._answer(one.term("not delivered"))

    async def _answer(self, answer: Any) -> None:
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

    def _is_stale(self, event: AlertEvent) -> bool:
        old = parse_instant(event.fired_at) < time.time_ns() - EXPIRES_NS
        return old and not self._lasts(event)

    def _lasts(self, event: AlertEvent) -> bool:
        """The episode of *event* is not over."""
        return any(
            (one.alert, one.group, one.starts_at) == (event.alert, event.group, event.starts_at)
            for one in self._episodes()
        )

    async def _send(self, channel: Channel, event: AlertEvent) -> None:
        """
        One attempt.

        Raises:
            Failed, Refused: It was not accepted.
        """
        if channel.type == "stdout":
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
            sys.stdout.flush()
        elif channel.type == "custom":
            await _call(channel, event)
        elif channel.type == "alertmanager":
            body = msgspec.json.encode(pushed(event, time.time_ns()))
            await self._post(channel, channel.url + "/api/v2/alerts", body, {})
        else:
            body = body_of(channel, event)
            headers = {"Idempotency-Key": key_of(event)}
            if channel.secret:
                headers["X-Tokentrace-Signature"] = signed(channel.secret, body)
            await self._post(channel, channel.url, body, headers)

    async def _post(self, channel: Channel, url: str, body: bytes, own: Mapping[str, str]) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "tokentrace", **channel.headers, **own}
        try:
            async with (
                asyncio.timeout(channel.timeout_ns / SECOND),
                self._client.stream("POST", url, content=body, headers=headers, timeout=None) as answer,
            ):
                pass  # What else it says nobody reads.
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

    async def _remind(self) -> None:
        """An Alertmanager forgets what nobody renews; every alerter renews, which does no harm."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            lasting = set()
            for event in self._episodes():
                rule = self._rules(event.alert)
                if rule is None or rule.delivery is None or rule.delivery.type != "alertmanager":
                    continue
                name = (event.alert, key_of(event))
                lasting.add(name)
                due = self._pushed.setdefault(name, now + ALERTMANAGER_EVERY_NS / SECOND)
                if now >= due and self._lasts(event):
                    self._pushed[name] = now + ALERTMANAGER_EVERY_NS / SECOND
                    try:
                        await self._send(rule.delivery, event)
                    except (Failed, Refused) as exc:
                        log.warning("rule %s: its Alertmanager was not reminded: %s", event.alert, exc)
            self._pushed = {name: due for name, due in self._pushed.items() if name in lasting}


def _without_secrets(destination: str) -> str:
    """An address without what may be a password in it."""
    try:
        url = httpx.URL(destination)
    except httpx.InvalidURL:
        return "an address"
    if not url.host:
        return destination
    return str(url.copy_with(username=None, password=None, query=None))


def load_target(target: str) -> Callable[..., Any]:
    """
    What ``package.module:name`` is.

    Raises:
        ConfigError: It is not there, or cannot be called.
    """
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f"delivery.target: {target!r}: {exc}") from exc
    found = getattr(found, "deliver", found)
    if inspect.isclass(found) or not callable(found):
        raise ConfigError(f"delivery.target: {target!r} is neither a function nor an object with deliver()")
    call: Callable[..., Any] = found
    return call


async def _call(channel: Channel, event: AlertEvent) -> None:
    payload = msgspec.to_builtins(event)
    try:
        async with asyncio.timeout(channel.timeout_ns / SECOND):
            deliver = load_target(channel.target)
            asynchronous = inspect.iscoroutinefunction(deliver) or inspect.iscoroutinefunction(
                getattr(deliver, "__call__", None)  # noqa: B004 - an object may be called asynchronously
            )
            answer = deliver(payload) if asynchronous else await asyncio.to_thread(deliver, payload)
            if inspect.isawaitable(answer):
                await answer
    except TimeoutError as exc:
        raise Failed(f"did not return within {channel.timeout_ns / SECOND:g} s") from exc
    except Exception as exc:
        raise Failed(f"{type(exc).__name__}: {shorten(str(exc), 100)}") from exc
