"""Where the events of an episode go while rules change and disappear."""

from __future__ import annotations

from typing import Any

from kit.alert_events import START_NS, make_event, make_resolved
from tokentrace.records import AlertEvent
from tokentrace.units import HOUR, MINUTE, render_instant
from tokentrace_alerter.delivery import Channel
from tokentrace_alerter.event_memory import EventMemory
from tokentrace_alerter.kept_channels import KeptChannel, channel_of, keep, needed

OLD, NEW = Channel(type="http", url="http://old"), Channel(type="http", url="http://new")


def firing(began_ns: int, fired_ns: int | None = None, **overrides: Any) -> AlertEvent:
    fired = render_instant(fired_ns or began_ns)
    return make_event(starts_at=render_instant(began_ns), fired_at=fired, **overrides)


def test_an_episode_goes_where_its_first_firing_went() -> None:
    first = firing(START_NS)
    kept = keep([], first, OLD)
    assert kept == [KeptChannel(OLD, START_NS)]
    for current in (NEW, None):
        assert channel_of(kept, first, current) == OLD
        assert channel_of(kept, firing(START_NS, START_NS + MINUTE), current) == OLD
        assert channel_of(kept, make_resolved(starts_at=first.starts_at), current) == OLD


def test_a_firing_that_repeats_does_not_move_its_episode() -> None:
    kept = keep([], firing(START_NS), OLD)
    assert keep(kept, firing(START_NS, START_NS + MINUTE), NEW) == kept


def test_the_next_episode_goes_where_the_rule_says_then() -> None:
    kept = keep(keep([], firing(START_NS), OLD), firing(START_NS + MINUTE), NEW)
    assert channel_of(kept, firing(START_NS), NEW) == OLD
    assert channel_of(kept, firing(START_NS + MINUTE), NEW) == NEW
    assert channel_of(kept, firing(START_NS + MINUTE), None) == NEW


def test_an_episode_of_a_rule_that_had_no_delivery_is_not_delivered_by_an_earlier_channel() -> None:
    kept = keep(keep([], firing(START_NS), OLD), firing(START_NS + MINUTE), None)
    assert channel_of(kept, firing(START_NS + MINUTE), None) is None
    assert channel_of(kept, firing(START_NS), None) == OLD


def test_a_new_secret_for_the_same_destination_is_used_at_once() -> None:
    kept = keep([], firing(START_NS), OLD)
    renewed = Channel(type="http", url="http://old", secret="new", send_resolved=True)
    assert channel_of(kept, firing(START_NS), renewed) == renewed
    assert keep(kept, firing(START_NS + MINUTE), renewed) == kept


def test_an_episode_that_began_before_channels_were_kept_goes_where_the_rule_says() -> None:
    assert channel_of([], firing(START_NS), NEW) == NEW
    kept = keep([], firing(START_NS, START_NS + MINUTE), NEW)
    assert channel_of(kept, make_resolved(starts_at=firing(START_NS).starts_at), None) == NEW


def test_nothing_is_kept_for_a_rule_without_delivery() -> None:
    assert keep([], firing(START_NS), None) == []


def test_a_channel_is_forgotten_when_no_delivery_can_follow() -> None:
    kept = [KeptChannel(OLD, START_NS), KeptChannel(NEW, START_NS + HOUR)]
    name = make_event().alert
    events = EventMemory(lambda _: None)
    events.apply(firing(START_NS))
    now_ns = START_NS + 10 * HOUR

    def left(after_ns: int, *, exists: bool) -> list[Channel | None]:
        return [one.channel for one in needed(kept, events, name, exists=exists, after_ns=after_ns)]

    assert left(now_ns, exists=False) == [OLD]
    assert left(now_ns, exists=True) == [OLD, NEW]
    events.apply(make_resolved(starts_at=firing(START_NS).starts_at))
    assert left(now_ns, exists=True) == [NEW]
    assert left(now_ns, exists=False) == []
    assert left(START_NS, exists=False) == [OLD, NEW]
