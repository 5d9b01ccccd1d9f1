"""
Pushing alerts to Alertmanagers, and renewing them while their episode lasts.

An Alertmanager resolves an alert by itself at the time of its ``endsAt``. So every firing is pushed with an end four
minutes ahead, and is pushed again every minute. Every alerter does this: pushing an alert twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from tokentrace.bus import BrokerClock
from tokentrace.records import AlertEvent
from tokentrace.units import MINUTE, SECOND, parse_instant
from tokentrace_alerter.delivery.channel import Channel
from tokentrace_alerter.delivery.episodes import Episode, OpenEpisodes, episode_of
from tokentrace_alerter.delivery.payload import alertmanager_alert
from tokentrace_alerter.delivery.webhook import Failed, Refused, WebhookSender

log = logging.getLogger("tokentrace.alerter")

RENEW_EVERY_NS = MINUTE
_PATH = "/api/v2/alerts"
#: Time within which an alerter is expected to read a published firing from the alert stream, nanoseconds.
_APPLIED_NS = 10 * SECOND
#: (Rule, destination): what one request renews. After a change of a rule its episodes may have two destinations.
_Renewal = tuple[str, str]


class Alertmanagers:
    """
    Pushes events to the Alertmanagers that rules name, and renews the alerts of open episodes.

    Args:
        channel_of: Returns the channel of an event; None = it is not delivered.
        at_once: Limit of concurrent renewals for one destination.
        clock: Tells when an alert ends.
    """

    def __init__(
        self,
        sender: WebhookSender,
        channel_of: Callable[[AlertEvent], Channel | None],
        episodes: OpenEpisodes,
        at_once: int,
        clock: BrokerClock,
    ) -> None:
        self._clock = clock
        self._sender, self._channel_of, self._episodes, self._at_once = sender, channel_of, episodes, at_once
        self._limits: dict[str, asyncio.Semaphore] = {}
        #: Episode -> monotonic time, seconds, at which it is renewed next.
        self._renew_at: dict[Episode, float] = {}
        #: What is being renewed at the moment -> the task that does it.
        self._renewing: dict[_Renewal, asyncio.Task[None]] = {}

    async def send(self, channel: Channel, event: AlertEvent, *, again: bool) -> None:
        """
        Push *event* once.

        Args:
            again: True = this is not the first attempt.

        Raises:
            Failed, Refused: As ``WebhookSender.post``.
        """
        renewal = self._renewing.get((event.alert, channel.destination))
        if renewal is not None:
            # If it arrived after a resolution, it would open the alert again.
            await asyncio.wait([renewal])
        now_ns = self._clock.now_ns()
        # This alerter may deliver a new firing before it has read it from the alert stream, and so before it counts the
        # episode as open.
        applied = again or parse_instant(event.fired_at) < now_ns - _APPLIED_NS
        over = applied and not self._episodes.include(event)
        await self._push(channel, [alertmanager_alert(event, now_ns, over=over)])

    async def renew_forever(self) -> None:
        """Push the alerts of open episodes again every minute, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(1.0)
                for key, (channel, events) in self._due().items():
                    if key not in self._renewing:
                        self._renewing[key] = tasks.create_task(self._renew(key, channel, events))

    def _due(self) -> dict[_Renewal, tuple[Channel, list[AlertEvent]]]:
        """Return the last events of the episodes to renew now."""
        now, every_s = time.monotonic(), RENEW_EVERY_NS / SECOND
        current: set[Episode] = set()
        due: dict[_Renewal, tuple[Channel, list[AlertEvent]]] = {}
        for event in self._episodes:
            channel = self._channel_of(event)
            if channel is not None and channel.type == "alertmanager":
                current.add(episode_of(event))
                if now >= self._renew_at.setdefault(episode_of(event), now + every_s):
                    due.setdefault((event.alert, channel.destination), (channel, []))[1].append(event)
        self._renew_at = {episode: at for episode, at in self._renew_at.items() if episode in current}
        return due

    async def _renew(self, key: _Renewal, channel: Channel, events: list[AlertEvent]) -> None:
        try:
            async with self._limits.setdefault(channel.destination, asyncio.Semaphore(self._at_once)):
                # Some episodes may have ended while this task waited.
                current = set(map(episode_of, self._episodes))
                events = [event for event in events if episode_of(event) in current]
                for event in events:
                    self._renew_at[episode_of(event)] = time.monotonic() + RENEW_EVERY_NS / SECOND
                if events:
                    await self._push(channel, [alertmanager_alert(event, self._clock.now_ns()) for event in events])
        except (Failed, Refused) as exc:
            log.warning("rule %s: its alerts were not renewed in the Alertmanager: %s", key[0], exc)
        finally:
            del self._renewing[key]

    async def _push(self, channel: Channel, alerts: list[dict[str, object]]) -> None:
        await self._sender.post(channel, channel.url + _PATH, msgspec.json.encode(alerts), {})
