"""The events of random rules equal those of a second implementation, also with restarts and with two alerters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.alert_recount import (
    Sent,
    Stream,
    assert_told,
    flat,
    make_sent,
    parse,
    random_rules,
    random_streams,
    recount,
)
from kit.alert_story import (
    OFFSETS,
    SETTLED,
    Drawing,
    Story,
    ns,
    play,
    slow,
)
from kit.examples import examples
from tokentrace.records import AlertEvent
from tokentrace.units import SECOND
from tokentrace_alerter.event_memory import event_id
from tokentrace_alerter.rules import Rule


@settings(max_examples=examples(150), deadline=None)
@given(written=random_rules(), stream=random_streams, silent=st.sampled_from([0, 0, 25, 33]))
def test_the_events_of_any_rule_equal_a_second_implementation(
    written: dict[str, Any], stream: Stream, silent: int
) -> None:
    rule, messages = parse(written), make_sent(stream)
    story = Story(rule)
    if silent:
        story.silence(silent)
    for message in messages:
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
    end = int(messages[-1][0].stored) + 20
    story.tick(end + rule.lag_ns / SECOND + SETTLED)
    assert_told(story.published, recount(written, flat(messages), end, silent))


@settings(max_examples=examples(150), deadline=None)
@given(written=random_rules(), stream=random_streams, cut=st.integers(0, 30))
def test_a_silence_holds_back_what_the_same_rule_fires_without_it(
    written: dict[str, Any], stream: Stream, cut: int
) -> None:
    """Without what depends on an open episode: the silenced rule has none."""
    written = {**written, "no_data": "ignore", "recovery_threshold": None}
    rule, messages = parse({key: value for key, value in written.items() if value is not None}), make_sent(stream)
    end = int(messages[-1][0].stored) + 20
    loud, quiet = Story(rule), Story(rule)
    quiet.alerter.silence("any", ns(10_000), ns(1))
    for number, message in enumerate(messages):
        for story in (loud, quiet):
            story.send(message[0].stored, *(sent_span.span for sent_span in message))
        if number == cut:
            saved = quiet.snapshot()
            quiet.silences, quiet.silenced_at = {"any": ns(10_000)}, ns(1)
            quiet.restart(saved)
    for story in (loud, quiet):
        story.tick(end + rule.lag_ns / SECOND + SETTLED)
    assert quiet.published == []
    assert quiet.shown(end)["held_back"] == sum(event.status == "firing" for event in loud.published)
    quiet.alerter.silence("any", 0, ns(1))
    assert quiet.shown(end)["held_back"] == sum(event.status == "firing" for event in loud.published)
    quiet.alerter.silence("any", ns(10_000), ns(2))
    assert quiet.shown(end)["held_back"] == 0


@st.composite
def random_drawings(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """Draw a rule, and marks as in ``Drawing.seen`` of values that cross its threshold often."""
    rule: dict[str, Any] = {
        "name": "any",
        "metric": "latency_avg",
        "op": draw(st.sampled_from(["gt", "gte", "lt", "lte"])),
        "threshold": 500,
        "window": draw(st.sampled_from(["1s", "1s", "2s"])),
        "eval_interval": "1s",
        "cooldown": draw(st.sampled_from(["0s", "0s", "2s", "4s"])),
        "no_data": draw(st.sampled_from(["ignore", "ignore", "fire", "keep"])),
        "for": draw(st.sampled_from(["0s", "1s", "2s", "3s"])),
        "min_spans": draw(st.sampled_from([0, 0, 2])),
    }
    if draw(st.booleans()):
        rule["recovery_threshold"] = 400 if rule["op"] in ("gt", "gte") else 600
    return rule, draw(st.text("##..-1=~_", min_size=5, max_size=24))


@settings(max_examples=examples(250), deadline=None)
@given(drawing=random_drawings(), killed=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=3))
def test_the_events_of_any_drawing_equal_a_second_implementation_through_kills(
    drawing: tuple[dict[str, Any], str], killed: list[tuple[int, int]]
) -> None:
    """The alerter is killed after up to three instants, and restored from the snapshot of any instant until then."""
    (written, seen), sign = drawing, 1 if drawing[0]["op"] in ("gt", "gte") else -1
    snapshots: list[bytes] = []

    def after(story: Story, instant: int) -> None:
        snapshots.append(story.snapshot())
        for at_instant, saved in killed:
            if at_instant == instant:
                story.restart(snapshots[min(saved, len(snapshots) - 1)])

    said, _ = play(Drawing("", written, seen, "", ""), after)
    sent = [
        Sent(second + 0.5, slow(second + 0.5, 500 + sign * OFFSETS[mark]))
        for second, mark in enumerate(seen)
        for _ in range({"-": 0, "1": 1}.get(mark, 2))
    ]
    expected = {event.instant: event.status[0].upper() for event in recount(written, sent, len(seen))}
    assert said == "".join(expected.get(instant, ".") for instant in range(1, len(seen) + 1))


def disturbed(written: Mapping[str, Any], messages: list[list[Sent]], seed: int, *, older: bool) -> Story:
    """Send *messages* with random ticks and restarts in between; *older* = a restart may use any earlier snapshot."""
    dice, rule = random.Random(seed), parse(written)
    story = Story(rule)
    snapshots = [story.snapshot()]
    for number, message in enumerate(messages):
        story.send(message[0].stored, *(sent_span.span for sent_span in message))
        last = number + 1 == len(messages)
        upto = message[0].stored + 5 if last else messages[number + 1][0].stored
        for _ in range(dice.choice([0, 0, 1, 3])):
            story.tick(SETTLED + message[0].stored + dice.random() * (upto - message[0].stored))
            if dice.random() < 0.4:
                snapshots.append(story.snapshot())
        if dice.random() < 0.4:
            story.tick(0)
            snapshots.append(story.snapshot())
            story.restart(dice.choice(snapshots) if older else snapshots[-1])
    story.tick(int(messages[-1][0].stored) + 20 + rule.lag_ns / SECOND + SETTLED)
    return story


@settings(max_examples=examples(120), deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_restarts_at_any_time_give_the_same_events(written: dict[str, Any], stream: Stream, seed: int) -> None:
    messages = make_sent(stream)
    story = disturbed(written, messages, seed, older=False)
    assert_told(story.published, recount(written, flat(messages), int(messages[-1][0].stored) + 20))


@settings(max_examples=examples(150), deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_kills_at_any_time_with_older_snapshots_give_the_same_events(
    written: dict[str, Any], stream: Stream, seed: int
) -> None:
    messages = make_sent(stream)
    story = disturbed(written, messages, seed, older=True)
    assert_told(story.published, recount(written, flat(messages), int(messages[-1][0].stored) + 20))


class Subject:
    """The alert subject that two alerters share: its events in order, and message id -> sequence of the event."""

    def __init__(self) -> None:
        self.events: list[AlertEvent] = []
        self.ids: dict[str, int] = {}


class Rival(Story):
    """An alerter that shares an alert subject with another one."""

    def __init__(self, rule: Rule, subject: Subject) -> None:
        self.subject, self.heard = subject, 0
        super().__init__(rule)

    def hear(self) -> None:
        for event in self.subject.events[self.heard :]:
            self.alerter.apply_event(event)
        self.heard = len(self.subject.events)

    def tick(self, now: float) -> list[AlertEvent]:
        """Publish each event as the service does: on the condition that all events of the subject have been read."""
        for effect in list(self.alerter.tick(ns(now))):
            event = msgspec.json.decode(effect.payload, type=AlertEvent)
            before = self.alerter.last_event(event)
            while True:
                known = self.subject.ids.get(event_id(event))
                if known is None and self.heard < len(self.subject.events):
                    self.hear()
                    if self.alerter.last_event(event) is not before:
                        break
                    continue
                if known is None:
                    self.subject.events.append(event)
                    known = self.subject.ids[event_id(event)] = len(self.subject.events)
                self.heard = max(self.heard, known)
                self.alerter.apply_event(event)
                break
            self.alerter.performed(effect)
        return []


@settings(max_examples=examples(100), deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_two_alerters_at_different_speeds_publish_together_what_one_publishes(
    written: dict[str, Any], stream: Stream, seed: int
) -> None:
    dice, messages, subject = random.Random(seed), make_sent(stream), Subject()
    rule = parse(written)
    rivals = [Rival(rule, subject), Rival(rule, subject)]
    read = [0, 0]
    while min(read) < len(messages):
        who = dice.choice([n for n in (0, 1) if read[n] < len(messages)])
        message = messages[read[who]]
        read[who] += 1
        rivals[who].send(message[0].stored, *(sent_span.span for sent_span in message))
        if dice.random() < 0.6:
            rivals[who].tick(message[0].stored)
        if dice.random() < 0.3:
            rivals[who].hear()
    end = int(messages[-1][0].stored) + 20
    for rival in dice.sample(rivals, 2):
        rival.tick(end + rule.lag_ns / SECOND + SETTLED)
    assert_told(subject.events, recount(written, flat(messages), end))
