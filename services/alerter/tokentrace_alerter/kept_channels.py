"""
Where an episode is delivered although its rule has changed, or is gone.

The events of an episode go where its first firing went. So before a rule fires, its channel is kept in the entry of the
rule in ``tt_rules``, with the instant from which episodes use it. It is kept while deliveries may follow, also after
the rule was deleted or removed from the configuration; nothing else knows then where the end belongs.

A channel with the same type and destination as that of the rule now is the same channel, whatever its headers or its
secret are: the rule's own, which is newer, is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokentrace.records import AlertEvent, Instant
from tokentrace.units import parse_instant
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.event_memory import EventMemory

FOR_EVER = 1 << 63


class KeptChannel(msgspec.Struct, frozen=True):
    """
    The channel of the episodes that began at *since_ns* or later, until the next kept channel begins.

    Attributes:
        channel: None = these episodes are not delivered.
        since_ns: Unix nanoseconds.
    """

    channel: Channel | None
    since_ns: Instant


def channel_of(kept: Sequence[KeptChannel], event: AlertEvent, current: Channel | None) -> Channel | None:
    """
    Return the channel of *event*; None = it is not delivered.

    Args:
        kept: What is kept for the rule, in order of ``since_ns``.
        current: The channel of the rule now; None = it has none, or there is no such rule.
    """
    found = _covering(kept, parse_instant(event.starts_at))
    if found is None or _place(found.channel) == _place(current):
        return current
    return found.channel


def keep(kept: Sequence[KeptChannel], firing: AlertEvent, current: Channel | None) -> list[KeptChannel]:
    """Return *kept* with the channel that delivers the episode of *firing*; an episode that lasts keeps its channel."""
    began_ns = parse_instant(firing.starts_at)
    found = _covering(kept, began_ns)
    lasts = firing.starts_at != firing.fired_at
    if (found is not None and lasts) or _place(found.channel if found else None) == _place(current):
        return list(kept)
    others = [one for one in kept if one.since_ns != began_ns]
    return sorted([*others, KeptChannel(current, began_ns)], key=lambda one: one.since_ns)


def needed(
    kept: Sequence[KeptChannel], events: EventMemory, name: str, *, exists: bool, after_ns: int
) -> list[KeptChannel]:
    """
    Return what of *kept* the rule *name* still needs.

    Args:
        events: What is known of its episodes.
        exists: True = there is such a rule, so its last channel is kept in any case.
        after_ns: A channel that was used after this instant may have deliveries to come, Unix nanoseconds.
    """
    ends = [*(one.since_ns for one in kept[1:]), FOR_EVER]
    return [
        one
        for one, until_ns in zip(kept, ends, strict=False)
        if (until_ns == FOR_EVER and exists)
        or one.since_ns > after_ns
        or FOR_EVER > until_ns > after_ns
        or events.delivers_since(name, one.since_ns, until_ns, after_ns)
    ]


def _covering(kept: Sequence[KeptChannel], began_ns: int) -> KeptChannel | None:
    return next((one for one in reversed(kept) if one.since_ns <= began_ns), None)


def _place(channel: Channel | None) -> tuple[str, str] | None:
    return None if channel is None else (channel.type, channel.destination)
