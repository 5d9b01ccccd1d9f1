"""The episodes that are open now; deliveries look them up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tokentrace.records import AlertEvent
from tokentrace.units import parse_instant

#: (Rule, instance, start): the identity of an episode.
Episode = tuple[str, str, str]


def episode_of(event: AlertEvent) -> Episode:
    """Return the identity of the episode that *event* belongs to."""
    return event.alert, "".join(event.group.values()), event.starts_at


class OpenEpisodes:
    """
    The open episodes; iterating yields the last event of each.

    Args:
        read: Returns the last event of every instance that is firing now.
    """

    def __init__(self, read: Callable[[], list[AlertEvent]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[AlertEvent]:
        return iter(self._read())

    def include(self, event: AlertEvent) -> bool:
        """Return whether the episode of *event* still lasts."""
        return episode_of(event) in map(episode_of, self._read())

    def supersede(self, event: AlertEvent) -> bool:
        """Return whether a later episode of the same instance is open."""
        return any(
            (other.alert, other.group) == (event.alert, event.group)
            and parse_instant(other.starts_at) > parse_instant(event.starts_at)
            for other in self._read()
        )
