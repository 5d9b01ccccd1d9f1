"""
What the alert stream says about every instance of every rule, and which episodes no rule owns any more; without I/O.

A rule owns an episode if its labels are those of the events: metric, filter, level and key of the group. Receivers tell
episodes apart by these labels. An episode without an owner will not be evaluated again, so it must be ended: its rule
was deleted, replaced or removed from the configuration, or it has other labels now.

Events of earlier rules
-----------------------
A rule may be deleted and another one created under its name. The time of the change is kept; episodes that began up to
it belong to the earlier rule, and the later one does not inherit its state. An episode of an earlier rule that is still
open is ended at the time of the change, so all alerters end it with the same event. An alerter that has not read the
change yet may go on with such an episode after that time: its events belong to the earlier rule too.

Other alerters
--------------
During an upgrade an alerter may have a file without the rule that another alerter still evaluates. What that one
publishes is therefore not ended at once, but a minute after its last event. ``settle`` marks what is ended without
waiting: the episodes that were open when this alerter started.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from tokentrace.records import AlertEvent
from tokentrace.units import MINUTE, MS, parse_instant
from tokentrace_alerter.rules import Rule, instance_of, owns

#: (Key of the group, its value): an instance of a rule; ("", "") for an ungrouped rule.
Instance = tuple[str, str]
#: How long after the last event of another alerter its episode is ended here, nanoseconds.
PATIENCE_NS = MINUTE


class Abandoned(NamedTuple):
    """
    An open episode that no rule owns.

    Attributes:
        last: Its last event, a firing.
        earlier: True = it belongs to an earlier rule of that name, which was deleted or replaced.
    """

    last: AlertEvent
    earlier: bool

    @property
    def key(self) -> tuple[str, Instance, str]:
        """What tells it apart from other abandoned episodes."""
        return self.last.alert, instance_key(self.last), self.last.starts_at if self.earlier else ""


class EventMemory:
    """
    The last event and the last firing of every instance.

    Args:
        rule_of: Returns the rule with a name; None = there is none.
    """

    def __init__(self, rule_of: Callable[[str], Rule | None]) -> None:
        self._rule_of = rule_of
        #: Rule -> instance -> its last event ("last") and its last firing ("firing"), which together are its state.
        self._current: dict[str, dict[Instance, dict[str, AlertEvent]]] = {}
        #: Rule -> (instance, start) -> the last event of an open episode of an earlier rule of that name.
        self._earlier: dict[str, dict[tuple[Instance, str], AlertEvent]] = {}
        #: Rule -> instant of the newest event of it and of earlier rules of its name, Unix nanoseconds.
        self._newest_ns: dict[str, int] = {}
        #: Name of a rule -> instant up to which episodes began with an earlier rule of that name, Unix nanoseconds.
        self.ignored_upto: dict[str, int] = {}
        #: Digest of the id of a deleted user -> instant up to which events about that user are ignored.
        self.forgotten_users: dict[bytes, int] = {}
        #: Rule -> (instance, start if it began with an earlier rule, else "") -> the last event of an open episode that
        #: no rule owns.
        self._abandoned: dict[str, dict[tuple[Instance, str], AlertEvent]] = {}
        #: Keys of the abandoned episodes that were open when this alerter started.
        self._settled: set[tuple[str, Instance, str]] = set()

    def apply(self, event: AlertEvent) -> Mapping[str, AlertEvent] | None:
        """
        Remember *event*.

        Returns:
            The state of its instance; None = it belongs to an earlier rule, or is about a deleted user.
        """
        if self.is_forgotten(event):
            return None
        name, instance = event.alert, instance_key(event)
        self._newest_ns[name] = max(self._newest_ns.get(name, 0), parse_instant(event.fired_at))
        if self.is_earlier(event):
            self._set_earlier(event)
            return None
        events = self._current.setdefault(name, {}).setdefault(instance, {})
        # It may come after later ones: as the end of an episode of an earlier rule, while its change is unknown here.
        for which in ("firing", "last") if event.status == "firing" else ("last",):
            if which not in events or parse_instant(events[which].fired_at) <= parse_instant(event.fired_at):
                events[which] = event
        self._note(events["last"], earlier=False)
        return events

    def _set_earlier(self, last: AlertEvent) -> None:
        """Remember *last*, the last event of an episode of an earlier rule, while that episode is open."""
        episodes, key = self._earlier.setdefault(last.alert, {}), (instance_key(last), last.starts_at)
        if last.status == "firing":
            episodes[key] = last
        else:
            episodes.pop(key, None)
        self._note(last, earlier=True)

    def ignore(self, name: str, upto_ns: int) -> None:
        """Let the episodes of *name* that began up to *upto_ns*, Unix nanoseconds, be those of an earlier rule."""
        self.ignored_upto[name] = max(upto_ns, self.ignored_upto.get(name, 0))
        for instance, events in self._current.pop(name, {}).items():
            later = {which: event for which, event in events.items() if not self.is_earlier(event)}
            if "last" in later:
                self._current.setdefault(name, {})[instance] = later
            else:
                self._set_earlier(events["last"])
        self.review(name)

    def newest_ns(self, name: str) -> int:
        """Return the instant of the newest event of the rule *name*, Unix nanoseconds; 0 = there is none."""
        return self._newest_ns.get(name, 0)

    def states(self, name: str) -> Iterator[tuple[Instance, Mapping[str, AlertEvent]]]:
        """Yield each instance of the rule *name* with its last event and its last firing."""
        yield from self._current.get(name, {}).items()

    def last(self, event: AlertEvent) -> AlertEvent | None:
        """
        Return the last known event about the same instance of the same rule as *event*; None = there is none.

        If *event* belongs to an earlier rule, that is the last event of its episode, and None if that has ended.
        """
        name, instance = event.alert, instance_key(event)
        if self.is_earlier(event):
            return self._earlier.get(name, {}).get((instance, event.starts_at))
        return self._current.get(name, {}).get(instance, {}).get("last")

    def forget(self, name: str, value: str) -> None:
        """Forget the instances of the rule *name* whose group has this *value*."""
        instances, episodes = self._current.get(name, {}), self._earlier.get(name, {})
        for instance in [instance for instance in instances if instance[1] == value]:
            del instances[instance]
        for key in [key for key in episodes if key[0][1] == value]:
            del episodes[key]
        self.review(name)

    def forget_user(self, user: str, instant_ns: int) -> None:
        """Ignore events about the deleted *user* up to *instant_ns*, Unix nanoseconds."""
        self.forgotten_users[_digest(user)] = instant_ns

    def restore_forgotten_users(self, forgotten: Mapping[bytes, int]) -> None:
        """Take ``forgotten_users`` from a snapshot, and forget what is remembered about these users."""
        self.forgotten_users |= forgotten
        for name in {*self._current, *self._earlier}:
            last = [events["last"] for events in self._current.get(name, {}).values()]
            for event in (*last, *self._earlier.get(name, {}).values()):
                if self.is_forgotten(event):
                    self.forget(name, instance_key(event)[1])

    def is_forgotten(self, event: AlertEvent) -> bool:
        """Return whether *event* is about a user who was deleted after it, or by whose deletion it was resolved."""
        return any(
            key.removeprefix("attr.") == "user_id"
            and parse_instant(event.fired_at) <= self.forgotten_users.get(_digest(value), 0)
            for key, value in event.group.items()
        )

    def settle(self) -> None:
        """Let what is abandoned now be ended without waiting for other alerters."""
        self._settled = {(name, *key) for name, found in self._abandoned.items() for key in found}

    def abandoned(self, now_ns: int) -> Iterator[tuple[Abandoned, int]]:
        """Yield the abandoned episodes to end at *now_ns*, with the instant of the end; both are Unix nanoseconds."""
        for name, found in self._abandoned.items():
            for (instance, start), last in found.items():
                fired_ns = parse_instant(last.fired_at)
                if start:
                    upto_ns = self.ignored_upto[name]
                    yield Abandoned(last, True), upto_ns if fired_ns <= upto_ns else fired_ns + MS
                elif (name, instance, start) in self._settled or now_ns >= fired_ns + PATIENCE_NS:
                    yield Abandoned(last, False), max(now_ns, fired_ns + MS)

    def delivers_since(self, name: str, from_ns: int, to_ns: int, after_ns: int) -> bool:
        """
        Return whether deliveries may follow for an episode of *name* that began from *from_ns* on and before *to_ns*.

        Some may while it is open, or if its last event is later than *after_ns*. All are Unix nanoseconds.
        """
        last = [events["last"] for events in self._current.get(name, {}).values()]
        return any(
            from_ns <= parse_instant(event.starts_at) < to_ns
            and (event.status == "firing" or parse_instant(event.fired_at) > after_ns)
            for event in (*last, *self._earlier.get(name, {}).values())
        )

    def is_earlier(self, event: AlertEvent) -> bool:
        """Return whether *event* belongs to an earlier rule of its name."""
        return parse_instant(event.starts_at or event.fired_at) <= self.ignored_upto.get(event.alert, 0)

    def review(self, name: str) -> None:
        """Find the abandoned episodes of the rule *name* anew: the rule or its events have changed."""
        self._abandoned.pop(name, None)
        for last in self._earlier.get(name, {}).values():
            self._note(last, earlier=True)
        for events in self._current.get(name, {}).values():
            self._note(events["last"], earlier=False)

    def _note(self, last: AlertEvent, *, earlier: bool) -> None:
        """Note whether the episode whose last event is *last* is abandoned."""
        name, instance, start = Abandoned(last, earlier).key
        rule = self._rule_of(name)
        if last.status == "firing" and (earlier or rule is None or not owns(rule, last)):
            self._abandoned.setdefault(name, {})[instance, start] = last
        elif name in self._abandoned:
            self._abandoned[name].pop((instance, start), None)
            if not self._abandoned[name]:
                del self._abandoned[name]


def _digest(user: str) -> bytes:
    return hashlib.sha256(user.encode()).digest()[:16]


def instance_key(event: AlertEvent) -> Instance:
    """Return the instance that *event* is about, with the key of its group."""
    return next(iter(event.group.items()), ("", ""))


def event_id(event: AlertEvent) -> str:
    """Return the message id of *event*: the same for the same rule, instance, instant and status."""
    # The broker compares ids over the whole stream, and the eight digits of two rule ids may be equal.
    rule = hashlib.sha256(event.alert.encode()).hexdigest()[:24]
    message_id = f"{event.rule_id}@{event.fired_at}@{event.status}@{rule}"
    instance = instance_of(event)
    return f"{message_id}@{hashlib.sha256(instance.encode()).hexdigest()[:16]}" if instance else message_id


def is_needless(event: AlertEvent, before: AlertEvent | None, *, earlier: bool) -> bool:
    """
    Return whether *event* need not be published.

    Args:
        before: The last event about its instance; None = there is none.
        earlier: True = *event* is about an episode of an earlier rule, and *before* None means that it has ended.
    """
    if before is None:
        return earlier
    if event.status == "resolved" and before.status == "resolved":
        return True
    before_ns, event_ns = parse_instant(before.fired_at), parse_instant(event.fired_at)
    # The end of an abandoned episode may be at the instant of its last firing.
    return before_ns >= event_ns and not (
        before_ns == event_ns and (before.status, event.status) == ("firing", "resolved")
    )


def continuing(event: AlertEvent, before: AlertEvent | None) -> AlertEvent:
    """
    Return *event* with the start of its episode, as it follows from *before*, the last event about its instance.

    An alerter may have decided *event* before it read that another alerter had begun or ended the episode.
    """
    if before is None:
        return event
    start = before.starts_at if before.status == "firing" else event.fired_at
    return msgspec.structs.replace(event, starts_at=start)
