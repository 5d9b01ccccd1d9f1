"""
The machine over time, as drawings: the values of each second, the events, and the states shown.

One character is one second and one instant; time is an argument. A second half tells a recount of its own, written
from the issue, and compares random rules over random streams with it, through restarts and through a second alerter.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_span
from tokentrace.bus import Message
from tokentrace.dedup import FoldedBatches
from tokentrace.metrics import CustomMetric, parse_custom_metrics
from tokentrace.records import AlertEvent, Batch, Span, encode_batches
from tokentrace.units import DAY, MINUTE, SECOND, parse_instant, render_instant
from tokentrace_alerter.machine import AlerterMachine, event_id
from tokentrace_alerter.rules import FilterIndex, Rule, parse_rule
from tokentrace_alerter.rules import window as measure

#: 2026-09-21T14:00:00Z in seconds, a whole hour.
START = 497_222 * 3600
CREATED = 7
#: Once caught up, data older than this is considered complete, seconds.
SETTLED = 0.2
#: Begin of the log, seconds after START: so early that every window is covered.
LONG_AGO = -40 * DAY / SECOND
LETTERS = {
    "inactive": "i",
    "pending": "p",
    "firing": "f",
    "resolved": "r",
    "no_data": "n",
    "warming": "w",
}
CUSTOMS = parse_custom_metrics(
    [
        {"name": "hops", "type": "sum", "field": "attr.hops"},
        {"name": "hop_count", "type": "count", "field": "attr.hops"},
        {"name": "hop_avg", "type": "avg", "field": "attr.hops"},
        {"name": "hop_p95", "type": "p95", "field": "attr.hops"},
        {"name": "spent_on_o3", "type": "sum", "field": "cost", "filter_key": "model", "filter_val": "o3"},
        {"name": "calls_of_somebody", "type": "count", "filter_key": "user"},
    ]
)


def ns(seconds: float) -> int:
    """*seconds* after START as Unix nanoseconds."""
    return START * SECOND + round(seconds * 1000) * (SECOND // 1000)


def make_rule(**overrides: Any) -> Rule:
    """A rule: average latency over 500 ms in the last second, evaluated every second."""
    given = {
        "name": "any",
        "metric": "latency_avg",
        "op": "gt",
        "threshold": 500,
        "window": "1s",
        "eval_interval": "1s",
        "cooldown": "60s",
        **overrides,
    }
    return parse_rule({key: value for key, value in given.items() if value is not None}, "rule", None, CUSTOMS)


def call(ended: float, **overrides: Any) -> Span:
    """A call that ended *ended* seconds after START."""
    return make_span(ended_ns=ns(ended), arrived_ns=ns(ended), **overrides)


def slow(ended: float, latency_ms: float, **overrides: Any) -> Span:
    return call(ended, latency_ns=round(latency_ms * 1e6), **overrides)


def backfill(alerter: AlerterMachine, name: str, message: Message, seen: FoldedBatches) -> None:
    """Fold an older message for the rule *name* alone."""
    watches = {name: alerter.evaluators[name]} if name in alerter.evaluators else {}
    alerter.backfill(watches, FilterIndex({name: watch.rule.filter for name, watch in watches.items()}), message, seen)


class Story:
    """
    An alerter, the log that it reads, and the events that it has published.

    Args:
        began: When the first message of the log was stored, seconds after START; None = the log is empty.
    """

    def __init__(self, *rules: Rule, began: float | None = LONG_AGO, begin: float = 0) -> None:
        self.rules = list(rules)
        self.alerter = AlerterMachine(self.rules, "default")
        self.published: list[AlertEvent] = []
        self.silences: dict[str, int] = {}
        self.log: list[Message] = []
        if began is not None:
            self.send(began)
        self.alerter.caught_up = True
        assert self.tick(begin) == []

    def send(self, at: float, *spans: Span, id: str = "") -> Message:
        """The broker stores one batch *at* seconds after START."""
        number = len(self.log) + 1
        payload = encode_batches([Batch(id=id or f"request-{number}", spans=list(spans))])
        message = Message("tokentrace.spans.default.0", payload, number, ns(at), {})
        self.log.append(message)
        self.alerter.fold(message, CREATED)
        return message

    def tick(self, now: float) -> list[AlertEvent]:
        """Return the events that are published when the clock shows *now*."""
        events = []
        for effect in list(self.alerter.tick(ns(now))):
            self.alerter.performed(effect)
            event = msgspec.json.decode(effect.payload, type=AlertEvent)
            self.alerter.apply_event(event)
            events.append(event)
        self.published += events
        return events

    def silence(self, until: float, name: str = "any") -> None:
        self.silences[name] = ns(until) if until else 0
        self.alerter.silence(name, self.silences[name])

    def shown(self, now: float, name: str = "any") -> dict[str, Any]:
        """Return the rule as ``GET /alerts`` shows it."""
        (found,) = [one for one in self.alerter.render(ns(now)) if one["name"] == name]
        return found

    def snapshot(self) -> bytes:
        return self.alerter.snapshot({}).state()

    def restart(self, snapshot: bytes | None, *rules: Rule) -> None:
        """Start as the service does: silences, events, snapshot, later messages, and backfill of new rules."""
        self.rules = list(rules) or self.rules
        self.alerter = AlerterMachine(self.rules, "default")
        for name, until_ns in self.silences.items():
            self.alerter.silence(name, until_ns)
        for event in self.published:
            self.alerter.apply_event(event)
        if snapshot is not None:
            self.alerter.restore(snapshot, {})
        done = self.alerter.position.sequence if self.alerter.position else 0
        new = [name for name, watch in self.alerter.evaluators.items() if watch.backfilling]
        for message in self.log[done:]:
            self.alerter.fold(message, CREATED)
        for name in new:
            seen = FoldedBatches()
            for message in self.log[:done]:
                backfill(self.alerter, name, message, seen)
            self.alerter.finish_backfill(name, ns(LONG_AGO), self.log[-1].time_ns)
        self.alerter.caught_up = True


def at(event: AlertEvent) -> float:
    """The instant of *event*, seconds after START."""
    return (parse_instant(event.fired_at) - START * SECOND) / SECOND


def seconds(instant: str | None) -> float | None:
    return None if instant is None else (parse_instant(instant) - START * SECOND) / SECOND


def brief(events: Iterable[AlertEvent]) -> list[tuple[float, str]]:
    return [(at(event), event.status) for event in events]


# --- drawings


class Drawing(NamedTuple):
    """
    One rule over time.

    Attributes:
        seen: Each second: ``#`` breaches, ``1`` too but with one span instead of two, ``=`` at the threshold, ``~``
            between it and the recovery threshold, ``_`` at that, ``.`` fine, ``-`` no data.
        said: The event of each instant: F a firing, R a resolution, ``.`` none.
        state: The state shown after each instant, as one of ``LETTERS``.
        silence: (The instant after which the rule is silenced, the second until which).
    """

    what: str
    rule: dict[str, Any]
    seen: str
    said: str
    state: str
    silence: tuple[int, float] = (0, 0)


OFFSETS = {"#": 100, "1": 100, "=": 0, "~": -50, "_": -100, ".": -200}
IGNORE: dict[str, Any] = {}
FIRE, KEEP = {"no_data": "fire"}, {"no_data": "keep"}
AT_ONCE = {"cooldown": "0s"}
BACK = {"recovery_threshold": 400}
BACK_UP = {"recovery_threshold": 600}

DRAWINGS = [
    Drawing("begins and ends", {}, "..###..", "..F..R.", "iifffrr"),
    Drawing("nothing to see", {}, "--..-.", "......", "nniini"),
    Drawing("a breach of one instant", {}, ".#.", ".FR", "ifr"),
    # the operators at their threshold
    Drawing("gt is not at", {"op": "gt", **AT_ONCE}, "=#=.#", ".FR.F", "ifrrf"),
    Drawing("gte is at", {"op": "gte", **AT_ONCE}, "=#=.=", "FFFRF", "fffrf"),
    Drawing("lt is not at", {"op": "lt", **AT_ONCE}, "=#=.#", ".FR.F", "ifrrf"),
    Drawing("lte is at", {"op": "lte", **AT_ONCE}, "=#=.=", "FFFRF", "fffrf"),
    # recovery
    Drawing("gt recovers at", {"op": "gt", "cooldown": "3s", **BACK}, "~#~=~_~#", ".F..FR.F", "iffffrrf"),
    Drawing("gte recovers below", {"op": "gte", **BACK}, "_=_=._=", ".F..R..", "ifffrrr"),
    Drawing("lt recovers at", {"op": "lt", "cooldown": "3s", **BACK_UP}, "~#~=~_~#", ".F..FR.F", "iffffrrf"),
    Drawing("lte recovers above", {"op": "lte", **BACK_UP}, "_=_=._=", ".F..R..", "ifffrrr"),
    Drawing("equal, gt", {"op": "gt", "recovery_threshold": 500, **AT_ONCE}, "=#=#~", ".FRFR", "ifrfr"),
    Drawing("equal, gte", {"op": "gte", "recovery_threshold": 500}, "~#=~", ".F.R", "iffr"),
    Drawing("equal, lt", {"op": "lt", "recovery_threshold": 500, **AT_ONCE}, "=#=#~", ".FRFR", "ifrfr"),
    Drawing("equal, lte", {"op": "lte", "recovery_threshold": 500}, "~#=~", ".F.R", "iffr"),
    # for
    Drawing("for, exactly reached", {"for": "3s"}, ".######.", "....F..R", "ipppfffr"),
    Drawing("for, reached in between", {"for": "2999ms"}, ".######.", "....F..R", "ipppfffr"),
    Drawing("for, just missed", {"for": "3001ms"}, ".######.", ".....F.R", "ippppffr"),
    Drawing("for, one instant short", {"for": "3s"}, ".###....", "........", "ipppiiii"),
    Drawing("for, of an instant", {"for": "1ns"}, ".##.", "..FR", "ipfr"),
    Drawing("for, interrupted once", {"for": "3s"}, ".###.####", "........F", "ipppipppf"),
    Drawing("for, interrupted at the threshold", {"for": "3s"}, ".##=####", ".......F", "ippipppf"),
    Drawing("for, judged by the threshold", {"for": "3s", **BACK}, ".##~####~_", ".......F.R", "ippipppffr"),
    Drawing("for, interrupted by no data", {"for": "3s"}, ".##-####", ".......F", "ippnpppf"),
    Drawing("for, no data is a breach", {"for": "3s", **FIRE}, ".##-####", "....F...", "ipppffff"),
    Drawing("for, no data alone", {"for": "2s", **FIRE}, "..----.", "....F.R", "iippffr"),
    Drawing("for, no data keeps it", {"for": "3s", **KEEP}, ".##-####", "....F...", "ipppffff"),
    Drawing("for, no data when it is due", {"for": "3s", **KEEP}, ".###-##", ".....F.", "ippppff"),
    Drawing("for, kept and then fine", {"for": "3s", **KEEP}, ".##--.##", "........", "ippppipp"),
    Drawing("for, interrupted by too few", {"for": "3s", "min_spans": 2}, ".##1####", ".......F", "ippipppf"),
    Drawing("for, anew for each episode", {"for": "2s", **AT_ONCE}, ".###.###.", "...FR..FR", "ippfrppfr"),
    Drawing("for, over in the cooldown", {"for": "2s", "cooldown": "6s"}, "###.######", "..FR....F.", "ppfrppppff"),
    # no data
    Drawing("no data is no breach", IGNORE, "..--.#-", ".....FR", "iinnifr"),
    Drawing("no data ends what fired", IGNORE, "##--.", "F.R..", "ffrrr"),
    Drawing("no data is a breach", FIRE, "..--..", "..F.R.", "iiffrr"),
    Drawing("no data from the start", FIRE, "----.", "F...R", "ffffr"),
    Drawing("no data goes on firing", {**FIRE, "cooldown": "2s"}, "#----.", "F.F.FR", "fffffr"),
    Drawing("no data changes nothing", KEEP, "--.-", "....", "nnin"),
    Drawing("no data keeps firing", {**KEEP, "cooldown": "2s"}, "##---#.", "F....FR", "ffffffr"),
    Drawing("no data keeps it resolved", KEEP, "#.--", "FR..", "frrr"),
    Drawing("lt, no data is no breach", {"op": "lt"}, "--#-.-", "..FR..", "nnfrrr"),
    Drawing("lt, no data is a breach", {"op": "lt", **FIRE}, ".#-.-", ".F.R.", "iffrr"),
    Drawing("lt, no data keeps it", {"op": "lt", **KEEP}, "-#-#.", ".F..R", "nfffr"),
    # too few
    Drawing("too few fire nothing", {"min_spans": 2}, "11##.", "..F.R", "iiffr"),
    Drawing("too few resolve nothing", {"min_spans": 2}, "##11.", "F...R", "ffffr"),
    Drawing("too few, then none", {"min_spans": 2}, "#1-", "F.R", "ffr"),
    Drawing("too few are not none", {"min_spans": 2, **FIRE}, "1-1.", ".F.R", "iffr"),
    # cooldown
    Drawing("again after each cooldown", {"cooldown": "3s"}, "..#########.", "..F..F..F..R", "iifffffffffr"),
    Drawing("without a cooldown", AT_ONCE, "###.#", "FFFRF", "fffrf"),
    Drawing("back within the cooldown", {"cooldown": "6s"}, "#.#.##########", "FR....F.....F.", "frrrrrffffffff"),
    Drawing("a cooldown just missed", {"cooldown": "2001ms"}, "#######", "F..F..F", "fffffff"),
    # silence
    Drawing("silenced for good", {"silenced": True}, "..##.-", "......", "iiiiin"),
    Drawing("silenced while it fires", {"cooldown": "2s"}, "##########", "F.F...F.F.", "ffffffffff", (3, 7)),
    Drawing("over within the silence", {}, "##....", "F..R..", "fffrrr", (1, 4)),
    Drawing("all of it within the silence", {}, ".###....", "........", "iiiiiiii", (1, 6)),
    Drawing("longer than the silence", {}, ".######.", "....F..R", "iiiifffr", (1, 5)),
    Drawing("pending within the silence", {"for": "3s"}, ".########", "......F..", "ipppppfff", (1, 7)),
    Drawing("silence over when it is due", {"for": "3s"}, ".######.", "....F..R", "ipppfffr", (1, 5)),
    Drawing("no data within the silence", FIRE, ".-----.", "...F..R", "iiifffr", (1, 4)),
]
drawn = pytest.mark.parametrize("drawing", DRAWINGS, ids=[drawing.what for drawing in DRAWINGS])


def play(drawing: Drawing, after: Callable[[Story, int], None] = lambda story, instant: None) -> tuple[str, str]:
    """Play *drawing* and return (events, states shown); *after* is called after each instant."""
    rule = make_rule(**drawing.rule)
    sign = 1 if rule.op in ("gt", "gte") else -1
    lag = rule.lag_ns / SECOND
    story = Story(rule)
    steps = [(second - 0.5, 0, second) for second in range(1, len(drawing.seen) + 1)]
    steps += [(second + lag + SETTLED, 1, second) for second in range(1, len(drawing.seen) + 1)]
    said: dict[float, str] = {}
    states = ""
    for now, looking, second in sorted(steps):
        if not looking:
            mark = drawing.seen[second - 1]
            count = {"-": 0, "1": 1}.get(mark, 2)
            story.send(now, *(slow(now, 500 + sign * OFFSETS[mark]) for _ in range(count)))
            continue
        for event in story.tick(now):
            said[at(event)] = said.get(at(event), "") + {"firing": "F", "resolved": "R"}[event.status]
        states += LETTERS[story.shown(now)["state"]]
        if second == drawing.silence[0]:
            story.silence(drawing.silence[1])
        after(story, second)
    return "".join(said.pop(n, ".") for n in range(1, len(drawing.seen) + 1)) + str(said or ""), states


@drawn
def test_each_drawing_gives_its_events_and_states(drawing: Drawing) -> None:
    assert play(drawing) == (drawing.said, drawing.state)


@drawn
def test_a_restart_after_every_instant_gives_the_same_events(drawing: Drawing) -> None:
    assert play(drawing, lambda story, instant: story.restart(story.snapshot())) == (drawing.said, drawing.state)


@drawn
def test_a_kill_with_an_older_snapshot_gives_the_same_events(drawing: Drawing) -> None:
    """Events since the snapshot are known from the alert stream: none is repeated, early or missing."""
    for killed in range(2, len(drawing.seen)):
        for saved in {1, killed // 2, killed - 1}:
            kept = []

            def after(story: Story, instant: int, saved: int = saved, killed: int = killed, kept: Any = kept) -> None:
                if instant == saved:
                    kept.append(story.snapshot())
                if instant == killed:
                    story.restart(kept[0])

            assert play(drawing, after) == (drawing.said, drawing.state), f"saved at {saved}, killed at {killed}"


@drawn
def test_a_silence_that_is_over_before_the_next_instant_changes_nothing(drawing: Drawing) -> None:
    if drawing.silence == (0, 0):
        assert play(drawing._replace(silence=(1, 1.5))) == (drawing.said, drawing.state)


# --- single stories


def test_after_a_kill_the_next_episode_waits_for_its_for_again() -> None:
    """The snapshot has the pending state of the first episode, which has ended since."""
    #         1   5       10
    #  seen   ....####.#####      for 3 s, snapshot at 6, killed at 9
    #  said   .......FR...FF
    story, snapshot = Story(make_rule(**{"for": "3s", "cooldown": "0s"})), b""
    for second, mark in enumerate("....####.#####", start=1):
        story.send(second - 0.5, slow(second - 0.5, 600 if mark == "#" else 300))
        story.tick(second + SETTLED)
        if second == 6:
            snapshot = story.snapshot()
        if second == 9:
            story.restart(snapshot)
    assert brief(story.published) == [(8, "firing"), (9, "resolved"), (13, "firing"), (14, "firing")]


def test_events_of_another_alerter_end_a_pending_state() -> None:
    """This alerter has read up to 6 and is pending. The other one has published a firing at 8 and its end at 9."""
    rule = make_rule(**{"for": "3s", "cooldown": "0s"})
    ahead, behind = Story(rule), Story(rule)
    for second, mark in enumerate("....####.####", start=1):
        spans = [slow(second - 0.5, 600 if mark == "#" else 300)]
        ahead.send(second - 0.5, *spans)
        ahead.tick(second + SETTLED)
        if second == 9:
            for event in ahead.published:
                behind.alerter.apply_event(event)
        behind.send(second - 0.5, *spans)
        if second <= 6 or second > 9:
            behind.tick(second + SETTLED)
    assert brief(ahead.published) == [(8, "firing"), (9, "resolved"), (13, "firing")]
    assert brief(behind.published) == [(13, "firing")]


def test_an_episode_keeps_its_start_and_the_next_one_has_its_own() -> None:
    story = Story(make_rule(cooldown="2s"))
    for second, mark in enumerate("###..###-##", start=1):
        if mark != "-":
            story.send(second - 0.5, slow(second - 0.5, 600 if mark == "#" else 300))
        story.tick(second + SETTLED)
    told = [(at(e), e.status, seconds(e.starts_at), seconds(e.ends_at)) for e in story.published]
    assert told == [
        (1, "firing", 1, None),
        (3, "firing", 1, None),
        (4, "resolved", 1, 4),
        (6, "firing", 6, None),
        (8, "firing", 6, None),
        (9, "resolved", 6, 9),
        (10, "firing", 10, None),
    ]
    assert story.shown(11.2)["starts_at"] == render_instant(ns(10))


def test_with_a_for_an_episode_starts_when_it_fires_and_its_events_agree() -> None:
    story = Story(make_rule(**{"for": "2s", "cooldown": "2s"}))
    for second in range(1, 8):
        story.send(second - 0.5, slow(second - 0.5, 600 if second < 7 else 300))
        story.tick(second + SETTLED)
    assert brief(story.published) == [(3, "firing"), (5, "firing"), (7, "resolved")]
    assert len({event.starts_at for event in story.published}) == 1


def test_a_silence_does_not_begin_a_new_episode() -> None:
    story = Story(make_rule(cooldown="2s"))
    for second in range(1, 11):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second == 3:
            story.silence(7)
    assert [(at(event), seconds(event.starts_at)) for event in story.published] == [(1, 1), (3, 1), (7, 1), (9, 1)]


def test_while_silenced_the_rule_shows_that_it_would_fire_and_until_when() -> None:
    story = Story(make_rule())
    story.silence(5)
    for second in range(1, 7):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        shown = story.shown(second + SETTLED)
        if second < 5:
            assert (shown["firing"], shown["silenced"]) == (True, True)
            assert (shown["why_not_fired"], shown["last_fired"]) == ("silenced", None)
            assert shown["silenced_until"] == render_instant(ns(5))
        else:
            assert (shown["silenced"], shown["silenced_until"], shown["state"]) == (False, None, "firing")


def test_a_silence_may_be_ended_early_and_made_longer() -> None:
    story = Story(make_rule(cooldown="0s"))
    for second in range(1, 10):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second in (2, 3, 4, 6):
            story.silence({2: 4, 3: 100, 4: 0, 6: 8}[second])
    assert [at(event) for event in story.published] == [1, 2, 5, 6, 8, 9]


def test_a_silence_of_one_rule_does_not_silence_another() -> None:
    story = Story(make_rule(name="any"), make_rule(name="other"))
    story.silence(100)
    story.send(0.5, slow(0.5, 600))
    assert [event.alert for event in story.tick(1 + SETTLED)] == ["other"]


def test_an_ended_episode_is_shown_as_resolved_for_15_minutes() -> None:
    story = Story(make_rule(eval_interval="60s"))
    story.send(59.5, slow(59.5, 600))
    story.tick(60 + SETTLED)
    assert story.shown(61)["state"] == "firing"
    story.tick(120 + SETTLED)
    over = 120 + 15 * MINUTE / SECOND
    story.tick(over - 1)
    assert story.shown(over - 1)["state"] == "resolved"
    story.tick(over + 1)
    assert story.shown(over + 1)["state"] == "no_data"
    story.send(over + 59.5, slow(over + 59.5, 300))
    story.tick(over + 60 + SETTLED)
    assert story.shown(over + 61)["state"] == "inactive"


@pytest.mark.parametrize(
    ("rule", "seen", "why"),
    [
        ({}, "#", None),
        ({}, ".", "ok"),
        ({}, "##", "cooldown"),
        ({}, "-", "no_data"),
        ({"min_spans": 2}, "1", "min_spans"),
        ({"silenced": True}, "#", "silenced"),
        ({"for": "5s"}, "#", "pending"),
    ],
)
def test_the_reason_why_nothing_was_published_is_shown(rule: dict[str, Any], seen: str, why: str | None) -> None:
    shown: list[Any] = []
    play(Drawing("", rule, seen, "", ""), lambda story, n: shown.append(story.shown(n + 0.2)["why_not_fired"]))
    assert shown[-1] == why


def test_with_no_data_keep_a_firing_rule_without_data_is_shown_as_firing() -> None:
    """With ``keep`` the state stays as it was."""
    story = Story(make_rule(no_data="keep"))
    story.send(0.5, slow(0.5, 600))
    for second in (1, 2, 3):
        story.tick(second + SETTLED)
        shown = story.shown(second + SETTLED)
        assert (shown["state"], shown["firing"]) == ("firing", True), second


# --- warming


def states_shown(story: Story, until: int, lag: float) -> str:
    """Return the state shown after each instant, one letter each."""
    shown = ""
    for second in range(1, until + 1):
        story.tick(second + lag + SETTLED)
        shown += LETTERS[story.shown(second)["state"]]
    return shown


def test_no_data_fires_nothing_until_the_window_is_covered() -> None:
    #  0 1                   11
    #  |s|...................|F      window 10 s, known from 0.5 on
    rule = make_rule(metric="span_count", threshold=99, window="10s", no_data="fire", filter={"caller": "nobody"})
    story = Story(rule, began=0.5)
    story.tick(10 + 5 + SETTLED)
    assert story.published == []
    assert story.shown(10.4)["state"] == "warming"
    assert story.shown(10.4)["why_not_fired"] == "warming"
    assert brief(story.tick(11 + 5 + SETTLED)) == [(11, "firing")]


def test_the_time_of_for_begins_when_the_window_is_covered() -> None:
    rule = make_rule(
        **{"metric": "span_count", "threshold": 99, "window": "10s", "no_data": "fire", "for": "3s"},
        filter={"caller": "nobody"},
    )
    story = Story(rule, began=0.5)
    assert brief(story.tick(20 + 5 + SETTLED)) == [(14, "firing")]


def test_a_rule_on_a_low_count_does_not_fire_until_the_window_is_covered() -> None:
    few = {"metric": "span_count", "op": "lt", "threshold": 8, "window": "10s"}
    for began, instants in ((LONG_AGO, list(range(1, 8))), (0.5, [])):
        story = Story(make_rule(**few, cooldown="0s"), began=began)
        for second in range(1, 25):
            story.send(second - 0.5, call(second - 0.5))
        story.tick(18 + 5 + SETTLED)
        assert [at(event) for event in story.published if event.status == "firing"] == instants


def test_a_rule_on_an_average_may_fire_before_the_window_is_covered() -> None:
    story = Story(make_rule(metric="quality_score", op="lt", threshold=0.5, window="10s"), began=0.3)
    story.send(0.5, call(0.5, score=0))
    assert brief(story.tick(1 + 5 + SETTLED)) == [(1, "firing")]


def test_a_rule_on_a_high_sum_may_fire_before_the_window_is_covered() -> None:
    story = Story(make_rule(metric="total_cost", threshold=1, window="1h"), began=0.3)
    story.send(0.5, call(0.5, cost_nusd=2 * 10**9))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]


def test_a_rule_with_change_does_not_fire_until_both_windows_are_covered() -> None:
    rule = make_rule(metric="span_count", threshold=0, op="gte", window="5s", change="absolute", cooldown="0s")
    story = Story(rule, began=0.5)
    for second in range(1, 16):
        story.send(second - 0.4, call(second - 0.4))
    story.tick(15 + SETTLED)
    assert [at(event) for event in story.published if event.status == "firing"] == [11, 12, 13, 14, 15]
    assert story.shown(10.4)["state"] == "firing"


def test_a_warming_rule_shows_warming_until_its_window_is_covered() -> None:
    #   1        10
    #   wwwwwwwwww|ii   a window of 10 s, known from 0.5 on
    story = Story(make_rule(window="10s"), began=0.5)
    for second in range(1, 13):
        story.send(second - 0.4, slow(second - 0.4, 300))
    assert states_shown(story, 12, 0) == "wwwwwwwwwwii"


def test_a_rule_that_fires_while_warming_is_shown_as_firing() -> None:
    story = Story(make_rule(window="10s"), began=0.5)
    story.send(0.6, slow(0.6, 600))
    assert states_shown(story, 3, 0) == "fff"


@pytest.mark.parametrize("restarted", [False, True])
def test_with_an_empty_log_the_window_is_covered_one_window_after_the_start(restarted: bool) -> None:
    """A rule with no_data "fire" must fire although no span was ever sent."""
    story = Story(make_rule(metric="span_count", threshold=99, window="10s", no_data="fire"), began=None)
    story.tick(30)
    if restarted:
        story.restart(story.snapshot())
    story.tick(60)
    assert story.shown(60)["state"] == "firing"
    assert [event.status for event in story.published][:1] == ["firing"]


# --- late spans


def test_a_span_that_is_late_by_less_than_the_window_counts_from_then_on() -> None:
    #   0    1    2    3    4    5
    #   a              |              ended in second 1, stored at 3.5
    story = Story(make_rule(metric="span_count", op="gte", threshold=1, window="5s", cooldown="0s"))
    story.send(3.5, call(0.5))
    assert brief(story.tick(7 + SETTLED)) == [(4, "firing"), (5, "firing"), (6, "resolved")]


@pytest.mark.parametrize(("stored", "fires"), [(5.9, False), (6.0, True), (6.1, True)])
def test_a_span_that_arrives_within_the_lag_counts_for_a_rule_on_low_values(stored: float, fires: bool) -> None:
    """The window of one second that ends at 1 is evaluated at stream time 6."""
    story = Story(make_rule(metric="quality_score", op="lt", threshold=0.5))
    story.send(0.9, call(0.5, score=4 * 10**8))
    story.send(stored, call(0.6, score=10**9))
    assert brief(story.tick(6.5)) == ([(1, "firing")] if fires else [])


@pytest.mark.parametrize("no_data", ["ignore", "fire", "keep"])
@pytest.mark.parametrize("stored", [20, 35, 500, 5000])
def test_a_span_that_is_later_than_the_window_changes_nothing_and_is_counted(stored: float, no_data: str) -> None:
    story = Story(make_rule(metric="span_count", op="gte", threshold=2, window="10s", no_data=no_data, cooldown="0s"))
    story.send(0.5, call(0.5), call(0.5))
    story.tick(stored - 0.5)
    before = len(story.published)
    story.send(stored, call(0.4), call(0.4), call(0.4))
    story.tick(stored + 30)
    assert [event.span_count for event in story.published[before:] if event.span_count] == []
    assert story.shown(stored + 30)["late_spans"] == 3
    story.restart(story.snapshot())
    assert story.shown(stored + 30)["late_spans"] == 3


def test_a_late_span_does_not_revoke_a_resolution() -> None:
    #   0    1    2    3    4       the call of second 2 arrives at 3.5
    story = Story(make_rule(window="2s"))
    story.send(0.5, slow(0.5, 600))
    story.tick(3 + SETTLED)
    story.send(3.5, slow(1.9, 900))
    story.tick(10)
    assert brief(story.published) == [(1, "firing"), (3, "resolved")]


def test_late_spans_are_counted_for_the_rules_whose_filter_they_pass() -> None:
    story = Story(
        make_rule(name="short"), make_rule(name="long", window="1h"), make_rule(name="none", filter={"a": "b"})
    )
    story.send(0.5, call(0.5))
    story.send(100, call(0.5))
    story.tick(102)
    assert [story.shown(102, name)["late_spans"] for name in ("short", "long", "none")] == [1, 0, 0]
    assert [story.shown(102, name)["spans_considered"] for name in ("short", "long", "none")] == [2, 2, 0]


# --- change against the window before


def changes(counts: str, change: str, **overrides: Any) -> str:
    """Return the events of a rule when each second has as many spans as its digit says, ``-`` none."""
    story = Story(make_rule(metric="span_count", cooldown="0s", change=change, **overrides))
    steps = [(second - 0.5, 0, second) for second in range(1, len(counts) + 1)]
    steps += [(second + story.rules[0].lag_ns / SECOND + SETTLED, 1, second) for second in range(1, len(counts) + 1)]
    said = ""
    for now, looking, second in sorted(steps):
        if looking:
            said += "".join(event.status[0].upper() for event in story.tick(now)) or "."
        else:
            mark = counts[second - 1]
            story.send(now, *(call(now) for _ in range(0 if mark == "-" else int(mark))))
    return said


@pytest.mark.parametrize(
    ("op", "threshold", "counts", "said"),
    [
        ("gt", 2, "11345159", "......FF"),
        ("gte", 2, "11345159", "..FR..FF"),
        ("gt", 2, "1139", ".." + ".F"),
        ("gte", 2, "1139", "..FF"),
        ("gt", 0, "1112", "...F"),
        ("gte", 0, "1111", ".FFF"),
        ("lt", -2, "9631", ".FFR"),
        ("lte", -2, "9631", ".FFF"),
        ("lt", 0, "5556", "...."),
        ("lt", 0, "5545", "..FR"),
        ("gt", -100, "-3-3-", "....."),
        ("gt", -100, "33-33", ".FR.F"),
    ],
)
def test_a_change_is_the_difference_to_the_second_before(op: str, threshold: float, counts: str, said: str) -> None:
    assert changes(counts, "absolute", op=op, threshold=threshold) == said


@pytest.mark.parametrize(
    ("op", "threshold", "counts", "said"),
    [
        ("gt", 50, "2346", "...."),
        ("gte", 50, "2346", ".FRF"),
        ("gt", 49.9, "2346", ".FRF"),
        ("lt", -50, "4219", "...."),
        ("lte", -50, "4219", ".FFR"),
        ("gt", 199, "1399-9", ".FFR.."),
    ],
)
def test_a_change_in_percent_is_that_of_the_second_before(op: str, threshold: float, counts: str, said: str) -> None:
    assert changes(counts, "percent", op=op, threshold=threshold) == said


@pytest.mark.parametrize(
    ("before", "now", "absolute", "percent"),
    [
        (4, 6, 2.0, 50.0),
        (6, 4, -2.0, -100 / 3),
        (0, 5, 5.0, None),
        (0, 0, 0.0, None),
        (5, 0, -5.0, -100.0),
        (-4, -6, -2.0, -50.0),
        (-4, 4, 8.0, 200.0),
        (4, 4, 0.0, 0.0),
        (None, 4, None, None),
        (4, None, None, None),
        (None, None, None, None),
    ],
)
@pytest.mark.parametrize("change", ["absolute", "percent"])
def test_the_value_of_a_change(
    change: str, before: float | None, now: float | None, absolute: float | None, percent: float | None
) -> None:
    story = Story(make_rule(metric="hops", change=change, window="2s", op="gte", threshold=-1e9))
    if before is not None:
        story.send(1.5, call(1.5, attributes={"hops": before}))
    if now is not None:
        story.send(3.5, call(3.5, attributes={"hops": now}))
    story.tick(4 + SETTLED)
    value = absolute if change == "absolute" else percent
    shown = story.shown(4 + SETTLED)
    assert shown["current_value"] == (None if value is None else pytest.approx(value))
    assert [event.value for event in story.published if at(event) == 4] == (
        [] if value is None else [shown["current_value"]]
    )
    if now is not None:
        assert shown["span_count"] == 1


def test_a_change_without_a_window_before_is_no_data() -> None:
    for no_data, state in (("ignore", "no_data"), ("keep", "no_data"), ("fire", "firing")):
        story = Story(make_rule(metric="span_count", change="absolute", window="2s", threshold=99, no_data=no_data))
        story.send(3.5, call(3.5))
        story.tick(4 + 5 + SETTLED)
        assert story.shown(4 + SETTLED)["state"] == state


def test_a_change_compares_two_windows_that_touch_and_do_not_overlap() -> None:
    #   0 1 2 3 4 5 6        at 6: [0, 3) before, [3, 6) now
    for ended, value in ((0, 4 - 2), (2.999, 4 - 2), (3, 5 - 1), (5.999, 5 - 1), (6, 4 - 1)):
        story = Story(make_rule(metric="span_count", change="absolute", window="3s", op="gte", threshold=-99))
        spans = [call(1.5), call(4.5), call(4.5), call(4.5), call(4.5)]
        story.send(5.9, *spans, make_span(ended_ns=ns(ended), arrived_ns=ns(5.9)))
        story.tick(6 + SETTLED)
        assert story.shown(6.5)["current_value"] == value, ended


# --- instances


def instances(story: Story, now: float) -> dict[str, dict[str, Any]]:
    return {one["group"]: one for one in story.shown(now)["instances"]}


def play_groups(rule: Rule, seen: Mapping[str, str], **spans: Any) -> dict[str, str]:
    """Play a drawing for each user and return the events of each instance."""
    story, lag = Story(rule), rule.lag_ns / SECOND
    length = max(map(len, seen.values()))
    said = {name: ["."] * length for name in seen}
    steps = [(second - 0.5, 0, second) for second in range(1, length + 1)]
    steps += [(second + lag + SETTLED, 1, second) for second in range(1, length + 1)]
    for now, looking, second in sorted(steps):
        if looking:
            for event in story.tick(now):
                said[next(iter(event.group.values()))][second - 1] = event.status[0].upper()
        else:
            story.send(
                now,
                *(
                    slow(now, 500 + OFFSETS[marks[second - 1]], attributes={"user": name})
                    for name, marks in seen.items()
                    if marks[second - 1] != "-"
                ),
            )
    return {name: "".join(letters) for name, letters in said.items()}


@pytest.mark.parametrize("key", ["user", "attr.user"])
def test_each_instance_has_its_own_state(key: str) -> None:
    seen = {"alice": "..##..", "bob": "#.#.#.", "carol": "......"}
    said = play_groups(make_rule(group_by=key, cooldown="2s"), seen)
    assert said == {"alice": "..F.R.", "bob": "FRFRFR", "carol": "......"}


def test_each_instance_waits_for_its_own_for() -> None:
    seen = {"alice": "####.", "bob": "#.###", "carol": "##-##"}
    said = play_groups(make_rule(**{"group_by": "user", "for": "2s"}), seen)
    assert said == {"alice": "..F.R", "bob": "....F", "carol": "....."}


def test_each_instance_has_its_own_cooldown() -> None:
    seen = {"alice": "########", "bob": "..######"}
    assert play_groups(make_rule(group_by="user", cooldown="3s"), seen) == {"alice": "F..F..F.", "bob": "..F..F.."}


def test_an_event_names_its_instance() -> None:
    story = Story(make_rule(group_by="user", filter={"model": "gpt-4o"}))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    (event,) = story.tick(1 + SETTLED)
    assert (event.group, event.filter) == ({"user": "alice"}, {"model": "gpt-4o"})


@pytest.mark.parametrize(
    ("key", "fields", "names"),
    [
        ("model", [{"model": "o3"}, {"model": "gpt-4o"}, {"model": ""}], ["gpt-4o", "o3", "unknown"]),
        ("caller", [{"caller": "chat"}, {}], ["chat", "unknown"]),
        ("status", [{"status": "ok"}, {"status": "error"}], ["error", "ok"]),
        ("name", [{"name": "sum"}, {"name": "plan"}], ["plan", "sum"]),
        ("user", [{"attributes": {"user": "alice"}}, {}, {"attributes": {"other": "x"}}], ["alice"]),
        ("user", [{"attributes": {"user": None}}], []),
        ("user", [{"attributes": {"user": True}}, {"attributes": {"user": False}}], ["false", "true"]),
        ("user", [{"attributes": {"user": "true"}}, {"attributes": {"user": True}}], ["true"]),
        ("user", [{"attributes": {"user": 3}}, {"attributes": {"user": 0.5}}], ["0.5", "3"]),
        ("user", [{"attributes": {"user": 2**63}}, {"attributes": {"user": -1}}], ["-1", "9223372036854775808"]),
        ("a.b", [{"attributes": {"a": {"b": "in"}}}, {"attributes": {"a.b": "flat"}}], ["flat", "in"]),
        ("attr.model", [{"attributes": {"model": "mine"}}, {}], ["mine"]),
        ("user", [{"attributes": {"user": "ünïcode 🙂"}}], ["ünïcode 🙂"]),
    ],
)
@pytest.mark.parametrize("metric", ["span_count", "calls"])
def test_the_value_of_group_by_is_the_instance(key: str, fields: list[dict[str, Any]], names: list[str], metric: str) -> None:
    calls = CustomMetric(name="calls", type="count")
    rule = parse_rule(
        {
            "name": "any",
            "metric": metric,
            "op": "gte",
            "threshold": 1,
            "window": "1s",
            "eval_interval": "1s",
            "group_by": key,
        },
        "rule",
        None,
        {"calls": calls},
    )
    story = Story(rule)
    story.send(0.5, *(call(0.5, **one) for one in fields))
    assert sorted(event.group[key] for event in story.tick(1 + SETTLED)) == names
    if names:
        assert sum(event.span_count for event in story.published) <= len(fields)


def test_an_empty_attribute_is_a_separate_instance() -> None:
    """It differs from the instance of spans whose attribute is "unknown"."""
    story = Story(make_rule(metric="span_count", op="gte", threshold=1, group_by="user"))
    story.send(0.5, call(0.5, attributes={"user": ""}), *[call(0.5, attributes={"user": "unknown"})] * 2)
    told = {event.group["user"]: event.span_count for event in story.tick(1 + SETTLED)}
    assert told == {"": 1, "unknown": 2}


def test_a_firing_instance_that_vanishes_is_resolved_and_dropped_after_its_cooldown() -> None:
    story = Story(make_rule(group_by="user", cooldown="5s"))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    story.tick(1 + SETTLED)
    assert story.shown(1.2)["instance_count"] == 1
    assert brief(story.tick(2 + SETTLED)) == [(2, "resolved")]
    story.tick(6 + SETTLED)
    assert instances(story, 6)["alice"]["state"] == "resolved"
    assert story.tick(20) == []
    assert (story.shown(20)["instance_count"], story.shown(20)["instances"]) == (0, [])


def test_an_instance_that_never_fired_is_dropped_when_it_vanishes() -> None:
    story = Story(make_rule(group_by="user", window="2s"))
    story.send(0.5, slow(0.5, 300, attributes={"user": "alice"}))
    story.tick(2 + SETTLED)
    assert list(instances(story, 2)) == ["alice"]
    story.tick(4 + SETTLED)
    assert instances(story, 4) == {}


def test_an_instance_that_vanishes_while_pending_is_not_pending_any_more() -> None:
    story = Story(make_rule(**{"group_by": "user", "for": "9s"}))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    story.tick(1 + SETTLED)
    assert instances(story, 1)["alice"]["state"] == "pending"
    story.tick(2 + SETTLED)
    assert story.shown(2)["state"] != "pending"
    assert story.tick(20) == []


def test_an_instance_that_vanishes_within_its_cooldown_is_not_in_breach() -> None:
    #   alice  #.#---    fires, is resolved, comes back within the cooldown, and is gone
    story = Story(make_rule(group_by="user", cooldown="1h"))
    for second, latency in ((1, 600), (2, 300), (3, 600)):
        story.send(second - 0.5, slow(second - 0.5, latency, attributes={"user": "alice"}))
        story.tick(second + SETTLED)
    assert story.shown(3.2)["firing"] is True
    story.tick(10)
    assert story.shown(10)["firing"] is False


def test_no_data_keeps_an_instance_firing() -> None:
    said = play_groups(make_rule(group_by="user", no_data="keep", cooldown="2s"), {"alice": "#---#.", "bob": "......"})
    assert said == {"alice": "F...FR", "bob": "......"}


def test_with_no_data_fire_a_firing_instance_stays_firing_without_data() -> None:
    said = play_groups(make_rule(group_by="user", no_data="fire", cooldown="2s"), {"alice": "#---.", "bob": "....."})
    assert said == {"alice": "F.F.R", "bob": "....."}


def test_with_no_data_fire_an_instance_that_vanishes_fires() -> None:
    """An ungrouped rule would fire, so the grouped one must fire too."""
    said = play_groups(make_rule(group_by="user", no_data="fire"), {"alice": "..--.", "bob": "....."})
    assert said == {"alice": "..F.R", "bob": "....."}


def test_a_rule_that_is_no_longer_grouped_does_not_fire_for_ever() -> None:
    """The configuration removes group_by while the instance "alice" is firing."""
    story = Story(make_rule(group_by="user"))
    story.send(0.5, slow(0.5, 600, attributes={"user": "alice"}))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]
    story.restart(story.snapshot(), make_rule())
    story.tick(2)
    story.send(3.5, slow(3.5, 300))
    story.tick(10)
    assert story.shown(10)["state"] != "firing"
    assert story.alerter.open_episodes() == []


def test_a_rule_that_becomes_grouped_ends_its_earlier_episode() -> None:
    story = Story(make_rule())
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.restart(story.snapshot(), make_rule(group_by="user"))
    story.tick(2)
    story.tick(10)
    assert story.shown(10)["state"] != "firing"
    assert story.alerter.open_episodes() == []


def test_a_silence_applies_to_all_instances() -> None:
    story = Story(make_rule(group_by="user"))
    story.silence(3)
    for second in (1, 2, 3):
        story.send(second - 0.5, *(slow(second - 0.5, 600, attributes={"user": name}) for name in "ab"))
    events = story.tick(3 + SETTLED)
    assert [(at(event), event.group["user"]) for event in events] == [(3, "a"), (3, "b")]


# --- more instances than the limit

FEW = 8


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(measure, "MAX_GROUPS", FEW)
    return FEW


def every(story: Story, instant: float) -> dict[str, int]:
    """Return instance -> span count of the events at *instant*."""
    return {
        next(iter(event.group.values())): event.span_count
        for event in story.published
        if at(event) == instant and event.status == "firing"
    }


def grouped_rule(metric: str = "span_count", **overrides: Any) -> Rule:
    """A rule that fires at every instant for every instance."""
    given = {"metric": metric, "op": "gte", "threshold": -1e300, "window": "10s", "cooldown": "0s", **overrides}
    return make_rule(group_by="user", **given)


def of_users(second: float, counts: Mapping[str, int], **fields: Any) -> list[Span]:
    return [
        call(second, attributes={"user": name, "hops": 1}, **fields)
        for name, count in counts.items()
        for _ in range(count)
    ]


@pytest.mark.parametrize("metric", ["span_count", "hop_count", "latency_p95"])
def test_at_the_limit_the_heaviest_instances_are_kept_and_the_rest_is_other(few: int, metric: str) -> None:
    story = Story(grouped_rule(metric))
    crowd = {f"u{n}": n + 1 for n in range(30)}
    story.send(0.5, *of_users(0.5, crowd, latency_ns=10**9))
    story.tick(1 + SETTLED)
    first = every(story, 1)
    assert sum(first.values()) == sum(crowd.values())
    assert len(first) <= few + 1
    assert first["other"] == sum(crowd.values()) - sum(count for name, count in first.items() if name != "other")
    story.tick(2 + SETTLED)
    second = every(story, 2)
    assert sum(second.values()) == sum(crowd.values())
    stayed = set(second) - {"other"}
    assert 0 < len(stayed) <= few
    assert min(second[name] for name in stayed) >= max(first[name] for name in set(first) - stayed - {"other"})


@pytest.mark.parametrize("metric", ["span_count", "hop_count"])
def test_an_instance_that_becomes_heavy_later_is_kept(few: int, metric: str) -> None:
    story = Story(grouped_rule(metric))
    story.send(0.5, *of_users(0.5, {f"u{n}": 2 for n in range(30)}))
    story.tick(1 + SETTLED)
    assert "heavy" not in every(story, 1)
    for second in range(2, 8):
        story.send(second - 0.5, *of_users(second - 0.5, {"heavy": 20, **{f"v{second}{n}": 1 for n in range(3)}}))
        story.tick(second + SETTLED)
    assert every(story, 7)["heavy"] >= 100
    assert sum(every(story, 7).values()) == 60 + 6 * 23


def test_an_instance_named_other_is_counted_with_the_rest(few: int) -> None:
    story = Story(grouped_rule())
    story.send(0.5, *of_users(0.5, {"other": 5}), *of_users(0.5, {f"u{n}": 1 for n in range(20)}))
    for second in (1, 2, 3):
        story.tick(second + SETTLED)
        assert sum(every(story, second).values()) == 25
        assert every(story, second)["other"] >= 5


crowds = st.lists(
    st.tuples(st.sampled_from([0.3, 1.0, 2.5]), st.dictionaries(st.integers(0, 40), st.integers(1, 4), max_size=15)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    stream=crowds,
    metric=st.sampled_from(["span_count", "hop_count", "latency_p95", "hop_p95"]),
    change=st.sampled_from([None, None, "absolute"]),
    seed=st.integers(0, 2**32),
)
def test_with_any_number_of_instances_every_span_counts_once(
    stream: list[tuple[float, dict[int, int]]], metric: str, change: str | None, seed: int
) -> None:
    """Every span with a user counts in exactly one instance, through restarts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MAX_GROUPS", FEW)
        dice, now = random.Random(seed), 0.2
        story = Story(grouped_rule(metric, change=change), grouped_rule("span_count", name="plain"))
        sent: list[tuple[float, int]] = []
        for pause, counts in stream:
            now += pause
            users = {f"u{number}": count for number, count in counts.items()}
            story.send(now, *of_users(now, users, latency_ns=10**9))
            sent.append((now, sum(users.values())))
            story.tick(now)
            if dice.random() < 0.4:
                story.restart(story.snapshot())
        end = int(now) + 14
        story.tick(end + SETTLED)
        for name in ("any", "plain"):
            if change and name == "any":
                continue
            for instant in range(1, end + 1):
                told = [e.span_count for e in story.published if e.alert == name and at(e) == instant]
                wanted = sum(count for stored, count in sent if instant - 10 <= int(stored) < instant > stored)
                assert sum(told) == wanted, (name, instant)


@pytest.mark.parametrize("metric", ["span_count", "hop_count"])
def test_an_instance_counted_as_other_is_not_without_data(few: int, metric: str) -> None:
    """Thirty users call every second, so no instance is without data."""
    story = Story(make_rule(metric=metric, threshold=1e9, group_by="user", no_data="fire"))
    for second in range(1, 15):
        story.send(second - 0.5, *of_users(second - 0.5, {f"u{n}": 1 + (n + second) % 3 for n in range(30)}))
        story.tick(second)
    assert [(event.group["user"], at(event)) for event in story.published] == []


@pytest.mark.parametrize("no_data", ["ignore", "keep", "fire"])
def test_instances_that_appear_once_are_dropped(few: int, no_data: str) -> None:
    """With group_by on a session id, the number of instances stays within the limit."""
    story = Story(make_rule(metric="span_count", threshold=1e9, group_by="user", no_data=no_data))
    for second in range(1, 60):
        story.send(second - 0.5, *of_users(second - 0.5, {f"session-{second}-{n}": 1 for n in range(3)}))
        story.tick(second)
    assert story.shown(60)["instance_count"] <= few + 1


def test_a_firing_instance_is_kept_although_others_are_heavier(few: int) -> None:
    """
    "Cost per user over 5 dollars": whoever spends them in one call is not over it because others call more often.
    """
    story = Story(make_rule(metric="total_cost", threshold=5, window="60s", group_by="user"))
    spender = call(0.5, attributes={"user": "spender"}, cost_nusd=9 * 10**9)
    story.send(0.5, spender, *of_users(0.5, {f"u{n}": 3 for n in range(30)}, cost_nusd=1))
    story.tick(10 + SETTLED)
    told = [(at(event), event.status) for event in story.published if event.group == {"user": "spender"}]
    assert told == [(1, "firing")]


@pytest.mark.parametrize("no_data", ["ignore", "keep", "fire"])
def test_a_firing_instance_that_becomes_other_is_resolved(few: int, no_data: str) -> None:
    """Without the resolution its receivers would consider the episode open for ever."""
    story = Story(grouped_rule(no_data=no_data))
    for second in range(1, 8):
        story.send(second - 0.5, *of_users(second - 0.5, {f"u{n}": 2 for n in range(few - 1)}))
        story.send(second - 0.5, *of_users(second - 0.5, {f"new-{second}": 3}))
        story.tick(second + SETTLED)
    story.tick(8 + SETTLED)
    last = {event.group["user"]: event for event in story.published}
    shown = {one["group"] for one in story.shown(8)["instances"] if one["state"] == "firing"}
    assert {name for name, event in last.items() if event.status == "firing"} == shown
    ended = [event for event in story.published if event.status == "resolved"]
    assert ended != []
    assert [event for event in ended if "'other'" not in event.message] == []
    assert [event for event in ended if event.starts_at == event.ends_at] == []


def test_the_cooldown_of_an_instance_survives_being_counted_as_other(few: int) -> None:
    story = Story(make_rule(group_by="user", cooldown="1h"))
    for second in range(1, 12):
        spans = [slow(second - 0.5, 300, attributes={"user": f"{second}-{n}"}) for n in range(12)]
        if second in (1, 2, 8):
            spans.insert(0, slow(second - 0.5, 300 if second == 2 else 600, attributes={"user": "alice"}))
        story.send(second - 0.5, *spans)
        story.tick(second + SETTLED)
    told = [(at(event), event.status) for event in story.published if event.group == {"user": "alice"}]
    assert told == [(1, "firing"), (2, "resolved")]


@settings(max_examples=200, deadline=None)
@given(
    stream=st.lists(
        st.dictionaries(st.integers(0, 24), st.sampled_from([300, 600]), max_size=14), min_size=2, max_size=9
    ),
    written=st.fixed_dictionaries(
        {
            "cooldown": st.sampled_from(["0s", "2s", "60s"]),
            "window": st.sampled_from(["1s", "3s"]),
            "for": st.sampled_from(["0s", "0s", "2s"]),
            "no_data": st.sampled_from(["ignore", "keep", "fire"]),
        }
    ),
    killed=st.sets(st.integers(1, 9)),
)
def test_a_restart_gives_the_same_events_with_any_number_of_instances(
    stream: list[dict[int, int]], written: dict[str, Any], killed: set[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "MAX_GROUPS", FEW)
        rule = make_rule(group_by="user", **written)
        stories = [Story(rule), Story(rule)]
        for second, latencies in enumerate(stream, start=1):
            now = second - 0.5
            spans = [slow(now, latency, attributes={"user": f"u{user}"}) for user, latency in latencies.items()]
            for story in stories:
                story.send(now, *spans)
                story.tick(second)
            if second in killed:
                stories[1].restart(stories[1].snapshot())
        for story in stories:
            story.tick(len(stream) + 12)
        assert told(stories[0].published) == told(stories[1].published)


@pytest.mark.parametrize("metric", ["error_rate", "calls_of_somebody"])
def test_below_the_limit_an_instance_counts_its_spans_of_every_status_and_kind(metric: str) -> None:
    """The limit is 1,000 instances, and 600 users with several kinds and statuses are within it."""
    story = Story(grouped_rule(metric))
    users = {f"u{n}": 1 for n in range(600)}
    for status in ("ok", "error", "timeout"):
        story.send(0.5, *of_users(0.5, users, status=status))
    story.tick(1 + SETTLED)
    told = {event.group["user"]: (event.span_count, event.value) for event in story.published}
    assert "other" not in told
    value = pytest.approx(2 / 3) if metric == "error_rate" else 3
    assert [told[name] == (3, value) for name in users].count(False) == 0


# --- a second implementation


class Sent(NamedTuple):
    """A span and when the broker stored it, seconds after START."""

    stored: float
    span: Span


Value = tuple[float | None, int]


def text_of(span: Span, key: str) -> str | None:
    if key in ("model", "provider", "caller", "name", "status", "kind"):
        return getattr(span, key) or "unknown"
    value = span.attributes.get(key.removeprefix("attr."))
    return value if value is None or isinstance(value, str) else json.dumps(value)


def llm(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind == "llm"]


def paid(spans: Iterable[Span]) -> list[Span]:
    return [span for span in spans if span.kind not in ("http", "agent", "workflow", "chain")]


def mean(values: Sequence[float], divisor: float = 1) -> Value:
    return (sum(values) / len(values) / divisor if values else None), len(values)


def p95(values: Sequence[float]) -> Value:
    return (float(np.quantile(values, 0.95)) if values else None), len(values)


def hops(spans: Iterable[Span]) -> list[int]:
    return [span.attributes["hops"] for span in spans if "hops" in span.attributes]


def total(values: Sequence[float]) -> Value:
    return (sum(values) if values else None), len(values)


RECOUNT: dict[str, Callable[[list[Span]], Value]] = {
    "span_count": lambda spans: total([1 for _ in llm(spans)]),
    "total_cost": lambda spans: (
        sum(span.cost_nusd or 0 for span in paid(spans)) / 1e9 if paid(spans) else None,
        len(paid(spans)),
    ),
    "error_rate": lambda spans: mean([span.status != "ok" for span in llm(spans)]),
    "latency_avg": lambda spans: mean([span.latency_ns for span in llm(spans) if span.latency_ns], 1e6),
    "latency_p95": lambda spans: p95([span.latency_ns / 1e6 for span in llm(spans) if span.latency_ns]),
    "quality_score": lambda spans: mean([span.score for span in spans if span.score is not None], 1e9),
    "hops": lambda spans: total(hops(spans)),
    "hop_count": lambda spans: total([1 for _ in hops(spans)]),
    "hop_avg": lambda spans: mean(hops(spans)),
    "hop_p95": lambda spans: p95(hops(spans)),
    "spent_on_o3": lambda spans: total(
        [span.cost_nusd / 1e9 for span in paid(spans) if span.model == "o3" and span.cost_nusd is not None]
    ),
    "calls_of_somebody": lambda spans: total([1 for span in spans if span.attributes.get("user") is not None]),
}


class Told(NamedTuple):
    """The facts of one event."""

    instant: int
    group: str
    status: str
    value: float | None
    count: int
    starts: float


class Instance:
    """The state of one instance in the second implementation."""

    def __init__(self) -> None:
        self.firing = False
        self.starts = self.fired = 0
        self.has_fired = False
        self.pending: int | None = None


def recount(given: Mapping[str, Any], sent: Sequence[Sent], end: int, silent_until: float = 0) -> list[Told]:
    """
    Compute the events of a rule for the instants up to *end*, independently of the product.

    A window holds what ended in it; what is there to be seen is what was stored before the instant, or before five
    seconds later when the rule watches for something falling or missing.
    """
    interval, window = int(given["eval_interval"][:-1]), int(given["window"][:-1])
    lasting, cooldown = int(given.get("for", "0s")[:-1]), int(given["cooldown"][:-1])
    op, threshold = given["op"], given["threshold"]
    no_data, key, change = given.get("no_data", "ignore"), given.get("group_by"), given.get("change")
    lag = 5 if op in ("lt", "lte") or no_data == "fire" else 0
    compare = {
        "gt": lambda a, b: a > b,
        "gte": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "lte": lambda a, b: a <= b,
    }[op]
    told: list[Told] = []
    memory: dict[str, Instance] = {}

    def values(known: Sequence[Span], low: int, high: int) -> dict[str, Value]:
        inside = [span for span in known if ns(low) <= span.ended_ns < ns(high)]
        groups: dict[str, list[Span]] = {} if key else {"": inside}
        if key:
            for span in inside:
                name = text_of(span, key)
                if name is not None:
                    groups.setdefault(name, []).append(span)
        return {name: RECOUNT[given["metric"]](spans) for name, spans in groups.items()}

    for instant in range(1, end + 1):
        if instant % interval:
            continue
        known = [
            one.span
            for one in sent
            if one.stored < instant + lag and all(text_of(one.span, k) == v for k, v in given.get("filter", {}).items())
        ]
        found = values(known, instant - window, instant)
        if change:
            before = values(known, instant - 2 * window, instant - window)
            for name in {*found, *before}:
                value, count = found.get(name, (None, 0))
                old, _ = before.get(name, (None, 0))
                if value is None or old is None or (change == "percent" and old == 0):
                    value = None
                else:
                    value = value - old if change == "absolute" else (value - old) / abs(old) * 100
                found[name] = (value, count)
        for name in sorted({*found, *(name for name, one in memory.items() if one.firing or one.pending is not None)}):
            value, count = found.get(name, (None, 0))
            state = memory.setdefault(name, Instance())
            if value is None or count == 0:
                value, count = (None, count)
                if no_data == "keep":
                    continue
                breach = no_data == "fire"
            elif count < given.get("min_spans", 0):
                state.pending = None
                continue
            else:
                recovery = given.get("recovery_threshold")
                breach = compare(value, recovery if state.firing and recovery is not None else threshold)
            quiet = instant < silent_until
            if not breach:
                state.pending = None
                if state.firing and not quiet:
                    state.firing = False
                    told.append(Told(instant, name, "resolved", value, count, state.starts))
                continue
            if lasting and not state.firing and state.pending is None:
                state.pending = instant
            if quiet or (state.pending is not None and instant - state.pending < lasting):
                continue
            if state.has_fired and instant - state.fired < cooldown:
                continue
            if not state.firing:
                state.starts = instant
            state.firing, state.has_fired, state.fired, state.pending = True, True, instant, None
            told.append(Told(instant, name, "firing", value, count, state.starts))
    return told


def told(events: Iterable[AlertEvent]) -> list[Told]:
    """Return *events* in the order of the second implementation."""
    found = [
        Told(
            int(at(event)),
            next(iter(event.group.values()), ""),
            event.status,
            event.value,
            event.span_count,
            seconds(event.starts_at) or 0,
        )
        for event in events
    ]
    return sorted(found, key=lambda one: (one.instant, one.group))


def assert_told(events: Iterable[AlertEvent], expected: Sequence[Told], *, starts: bool = True) -> None:
    found = told(events)
    if not starts:
        found, expected = [one._replace(starts=0) for one in found], [one._replace(starts=0) for one in expected]
    assert [one._replace(value=None) for one in found] == [one._replace(value=None) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.value == (None if other.value is None else pytest.approx(other.value, rel=1e-6, abs=1e-5)), one


random_spans = st.builds(
    dict,
    age=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.2, 4.9, 5.5, 12.0]),
    kind=st.sampled_from(["llm", "llm", "llm", "tool", "agent"]),
    model=st.sampled_from(["gpt-4o", "o3", ""]),
    status=st.sampled_from(["ok", "ok", "error", "timeout"]),
    cost_nusd=st.sampled_from([None, 0, 10**9, 25 * 10**8]),
    latency_ns=st.sampled_from([0, 10**6, 3 * 10**8, 1_234_567_890]),
    score=st.sampled_from([None, 0, 333_333_333, 10**9]),
    attributes=st.fixed_dictionaries(
        {}, optional={"user": st.sampled_from(["alice", "bob", True, 3]), "hops": st.sampled_from([-3, 0, 1, 2, 8])}
    ),
)
random_streams = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.25, 1.0, 1.0, 1.9, 4.0]), st.lists(random_spans, min_size=1, max_size=4)),
    min_size=2,
    max_size=16,
)
Stream = list[tuple[float, list[dict[str, Any]]]]
THRESHOLDS: dict[str, list[float]] = {
    "span_count": [1, 2, 3],
    "total_cost": [0, 1, 2.5],
    "error_rate": [0, 0.5],
    "latency_p95": [2.7, 290.1],
    "quality_score": [0.3, 0.5],
    "hops": [-1, 0, 2],
    "hop_count": [1, 2],
    "hop_avg": [0, 0.5],
    "hop_p95": [0.25, 1.7],
    "spent_on_o3": [1, 3.1],
    "calls_of_somebody": [1, 2],
}


@st.composite
def random_rules(draw: st.DrawFn, *, plain: bool = False) -> dict[str, Any]:
    """A written rule; *plain* = without cooldown, for and recovery threshold."""
    metric = draw(st.sampled_from(sorted(THRESHOLDS)))
    rule: dict[str, Any] = {
        "name": "any",
        "metric": metric,
        "op": draw(st.sampled_from(["gt", "gt", "gte", "lt", "lte"])),
        "threshold": draw(st.sampled_from(THRESHOLDS[metric])),
        "window": draw(st.sampled_from(["1s", "2s", "3s", "10s", "60s"])),
        "eval_interval": draw(st.sampled_from(["1s", "1s", "2s", "5s"])),
        "cooldown": "0s" if plain else draw(st.sampled_from(["0s", "2s", "5s", "60s"])),
        "no_data": draw(st.sampled_from(["ignore", "ignore", "fire", "keep"])),
    }
    if draw(st.booleans()):
        # Vanished instances of rules with no_data "fire" are tested by single stories.
        rule["group_by"] = draw(st.sampled_from(["model", "user", "attr.user", "status"]))
        rule["no_data"] = "keep" if rule["no_data"] == "fire" else rule["no_data"]
    if draw(st.integers(0, 3)) == 0:
        rule["change"] = draw(st.sampled_from(["absolute", "percent"]))
        rule["threshold"] = draw(st.sampled_from([-1.3, 0.7, 49.9]))
    if draw(st.integers(0, 3)) == 0:
        rule["min_spans"] = draw(st.integers(1, 3))
    if draw(st.integers(0, 3)) == 0:
        rule["filter"] = draw(st.sampled_from([{"model": "o3"}, {"user": "true"}, {"status": "ok", "model": "gpt-4o"}]))
    if not plain and draw(st.booleans()):
        rule["for"] = draw(st.sampled_from(["1s", "2s", "3s", "5s"]))
    if not plain and draw(st.integers(0, 2)) == 0:
        away = draw(st.sampled_from([0, 0.25, 1, 2]))
        rule["recovery_threshold"] = rule["threshold"] + (-away if rule["op"] in ("gt", "gte") else away)
    return rule


def make_sent(stream: Stream) -> list[list[Sent]]:
    """The messages of *stream*, the first 20 s after START."""
    stored, messages = 20.0, []
    for pause, spans in stream:
        stored = round(stored + pause, 3)
        message = []
        for fields in spans:
            rest = {key: value for key, value in fields.items() if key != "age"}
            ended = ns(stored - fields["age"])
            message.append(Sent(stored, make_span(ended_ns=ended, arrived_ns=ns(stored), **rest)))
        messages.append(message)
    return messages


def parse(written: Mapping[str, Any], **overrides: Any) -> Rule:
    return parse_rule({**written, **overrides}, "rule", None, CUSTOMS)


def flat(messages: Iterable[Iterable[Sent]]) -> list[Sent]:
    return [one for message in messages for one in message]


@settings(max_examples=150, deadline=None)
@given(written=random_rules(), stream=random_streams, silent=st.sampled_from([0, 0, 25, 33]))
def test_the_events_of_any_rule_equal_a_second_implementation(written: dict[str, Any], stream: Stream, silent: int) -> None:
    rule, messages = parse(written), make_sent(stream)
    story = Story(rule)
    if silent:
        story.silence(silent)
    for message in messages:
        story.send(message[0].stored, *(one.span for one in message))
    end = int(messages[-1][0].stored) + 20
    story.tick(end + rule.lag_ns / SECOND + SETTLED)
    assert_told(story.published, recount(written, flat(messages), end, silent))


@st.composite
def random_drawings(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """A rule, and values that cross its threshold often."""
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


@settings(max_examples=250, deadline=None)
@given(drawing=random_drawings(), killed=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=3))
def test_the_events_of_any_drawing_equal_a_second_implementation_through_kills(
    drawing: tuple[dict[str, Any], str], killed: list[tuple[int, int]]
) -> None:
    """The alerter is killed after one instant and restored from the snapshot of an earlier one."""
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
    expected = {one.instant: one.status[0].upper() for one in recount(written, sent, len(seen))}
    assert said == "".join(expected.get(instant, ".") for instant in range(1, len(seen) + 1))


def disturbed(written: Mapping[str, Any], messages: list[list[Sent]], seed: int, *, older: bool) -> Story:
    """Play a story with random ticks, snapshots and kills."""
    dice, rule = random.Random(seed), parse(written)
    story = Story(rule)
    snapshots = [story.snapshot()]
    for number, message in enumerate(messages):
        story.send(message[0].stored, *(one.span for one in message))
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


@settings(max_examples=120, deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_restarts_at_any_time_give_the_same_events(written: dict[str, Any], stream: Stream, seed: int) -> None:
    messages = make_sent(stream)
    story = disturbed(written, messages, seed, older=False)
    assert_told(story.published, recount(written, flat(messages), int(messages[-1][0].stored) + 20))


@settings(max_examples=150, deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_kills_at_any_time_with_older_snapshots_give_the_same_events(
    written: dict[str, Any], stream: Stream, seed: int
) -> None:
    messages = make_sent(stream)
    story = disturbed(written, messages, seed, older=True)
    assert_told(story.published, recount(written, flat(messages), int(messages[-1][0].stored) + 20))


class Subject:
    """The alert subject of two alerters: its sequence, and the message ids of the duplicate window."""

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
        """Publish as the service does: on the condition that the last known sequence is still the last."""
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


@settings(max_examples=100, deadline=None)
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
        rivals[who].send(message[0].stored, *(one.span for one in message))
        if dice.random() < 0.6:
            rivals[who].tick(message[0].stored)
        if dice.random() < 0.3:
            rivals[who].hear()
    end = int(messages[-1][0].stored) + 20
    for rival in dice.sample(rivals, 2):
        rival.tick(end + rule.lag_ns / SECOND + SETTLED)
    assert_told(subject.events, recount(written, flat(messages), end))


# --- rules that are added and removed during traffic


def after(expected: Sequence[Told], instant: float) -> list[Told]:
    """Return the events from *instant* on, without a resolution of an episode that began before it."""
    found, said = [], set()
    for one in expected:
        if one.instant > instant and (one.status == "firing" or one.group in said):
            said.add(one.group)
            found.append(one)
    return found


@settings(max_examples=120, deadline=None)
@given(written=random_rules(plain=True), other=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_a_rule_added_at_run_time_publishes_what_it_would_have_published(
    written: dict[str, Any], other: dict[str, Any], stream: Stream, seed: int
) -> None:
    """Messages arrive during the backfill; from then on the rule is evaluated over all spans."""
    dice, messages = random.Random(seed), make_sent(stream)
    rule, neighbour = parse(written, name="new"), parse(other, name="old")
    story = Story(neighbour)
    added, ready = sorted((dice.randrange(len(messages)), dice.randrange(len(messages))))
    waiting: list[Message] = []
    memory, now = FoldedBatches(), 0.0
    for number, message in enumerate(messages):
        if number == added:
            story.alerter.add_rule(rule)
            waiting = list(story.log)
            assert story.shown(message[0].stored, "new")["state"] == "warming"
        story.send(message[0].stored, *(one.span for one in message))
        if dice.random() < 0.2:
            story.send(message[0].stored, *(one.span for one in message), id=f"request-{len(story.log)}")
        for _ in range(dice.choice([0, 1, 5])):
            if waiting:
                backfill(story.alerter, "new", waiting.pop(0), memory)
        story.tick(message[0].stored + dice.choice([0, SETTLED]))
        assert [event for event in story.published if event.alert == "new"] == [] or number > ready
        if number == ready:
            while waiting:
                backfill(story.alerter, "new", waiting.pop(0), memory)
            now = round(message[0].stored + dice.choice([0, 0.1, SETTLED]), 3)
            story.alerter.finish_backfill("new", ns(LONG_AGO), ns(now))
    end = int(messages[-1][0].stored) + 20
    story.tick(end + 5 + SETTLED)
    mine = [event for event in story.published if event.alert == "new" and at(event) <= end]
    assert_told(mine, after(recount(written, flat(messages), end), now), starts=False)
    theirs = [one for one in story.published if one.alert == "old" and at(one) <= end]
    assert_told(theirs, recount(other, flat(messages), end))


@settings(max_examples=60, deadline=None)
@given(written=random_rules(), stream=random_streams, seed=st.integers(0, 2**32))
def test_adding_removing_and_silencing_rules_changes_no_other_rule(
    written: dict[str, Any], stream: Stream, seed: int
) -> None:
    dice, messages = random.Random(seed), make_sent(stream)
    story = Story(parse(written))
    for message in messages:
        for _ in range(dice.choice([0, 1, 2])):
            name = dice.choice(["one", "two"])
            what = dice.choice(["add", "primed", "remove", "silence", "prime"])
            now = ns(message[0].stored)
            if what == "add":
                story.alerter.add_rule(parse({**written, "name": name, "window": dice.choice(["1s", "10s"])}))
            elif what == "primed":
                story.alerter.finish_backfill(name, now - 60 * SECOND, now)
            elif what == "remove":
                story.alerter.remove_rule(name)
            elif what == "silence":
                story.alerter.silence(name, dice.choice([0, now + 5 * SECOND]))
            else:
                backfill(story.alerter, name, dice.choice(story.log), FoldedBatches())
        story.send(message[0].stored, *(one.span for one in message))
        story.tick(message[0].stored)
    for name in ("one", "two"):
        story.alerter.remove_rule(name)
    end = int(messages[-1][0].stored) + 20
    story.tick(end + 5 + SETTLED)
    mine = [event for event in story.published if event.alert == "any" and at(event) <= end]
    assert_told(mine, recount(written, flat(messages), end))


def test_a_rule_added_before_the_first_message_is_evaluated_from_then_on() -> None:
    story = Story(began=None)
    story.alerter.add_rule(make_rule())
    story.alerter.finish_backfill("any", ns(0), ns(0))
    story.send(0.5, slow(0.5, 600))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]


def test_a_rule_is_not_evaluated_during_backfill_and_shows_why() -> None:
    story = Story()
    story.alerter.add_rule(make_rule())
    story.send(0.5, slow(0.5, 600))
    assert story.tick(10) == []
    shown = story.shown(10)
    assert (shown["state"], shown["why_not_fired"], shown["last_evaluated"]) == ("warming", "warming", None)
    assert shown["next_evaluation"] is None


def test_a_backfilled_rule_is_warming_until_its_window_is_covered() -> None:
    story = Story()
    story.alerter.add_rule(make_rule(metric="span_count", op="lt", threshold=5, window="10s"))
    story.alerter.finish_backfill("any", ns(0), ns(3))
    assert states_shown(story, 12, 5) == "wwwwwwwwwnnn"


def test_an_added_rule_does_not_fire_for_earlier_instants() -> None:
    story, memory = Story(), FoldedBatches()
    for second in range(1, 6):
        story.send(second - 0.5, slow(second - 0.5, 600))
    story.alerter.add_rule(make_rule(cooldown="0s", window="3s"))
    for message in story.log:
        backfill(story.alerter, "any", message, memory)
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(5.7))
    assert brief(story.tick(9 + SETTLED)) == [(6, "firing"), (7, "firing"), (8, "resolved")]


def test_a_message_that_is_backfilled_twice_counts_once() -> None:
    story, memory = Story(), FoldedBatches()
    message = story.send(0.5, call(0.5), call(0.5))
    story.alerter.add_rule(make_rule(metric="span_count", op="gte", threshold=1, window="10s"))
    for _ in range(3):
        backfill(story.alerter, "any", message, memory)
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(0.6))
    (event,) = story.tick(1 + SETTLED)
    assert event.span_count == 2


def test_a_rule_changed_at_run_time_is_evaluated_in_its_new_form() -> None:
    story = Story(make_rule(cooldown="0s"))
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.alerter.add_rule(make_rule(cooldown="0s", threshold=1000))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(1.3))
    story.send(1.5, slow(1.5, 700))
    assert brief(story.tick(2 + SETTLED)) == [(2, "resolved")]


def test_a_removed_rule_publishes_nothing_more_not_even_waiting_events() -> None:
    story = Story(make_rule(cooldown="0s"), make_rule(name="other", cooldown="0s"))
    story.send(0.5, slow(0.5, 600))
    story.send(1.5, slow(1.5, 600))
    story.alerter.remove_rule("any")
    assert [(event.alert, at(event)) for event in story.tick(2 + SETTLED)] == [("other", 1), ("other", 2)]
    assert [shown["name"] for shown in story.alerter.render(ns(3))] == ["other"]


def test_a_rule_with_the_name_of_a_removed_one_starts_without_state() -> None:
    """It inherits neither the cooldown nor the episode of the removed rule."""
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, slow(0.5, 600))
    assert brief(story.tick(1 + SETTLED)) == [(1, "firing")]
    story.alerter.remove_rule("any")
    story.alerter.add_rule(make_rule(cooldown="1h"))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(2))
    assert story.shown(2)["state"] != "firing"
    story.send(2.5, slow(2.5, 600))
    (event,) = story.tick(3 + SETTLED)
    assert (at(event), seconds(event.starts_at)) == (3, 3)


def test_a_rule_created_again_starts_without_state_after_a_restart_too() -> None:
    """An alerter that ran at the deletion and one that started later must reach the same state."""
    story = Story(make_rule(cooldown="1h"))
    story.send(0.5, slow(0.5, 600))
    story.tick(1 + SETTLED)
    story.alerter.remove_rule("any")
    story.tick(1.5)
    story.alerter.add_rule(make_rule(cooldown="1h"))
    story.alerter.finish_backfill("any", ns(LONG_AGO), ns(2))
    story.tick(3)
    assert (story.shown(3)["state"], story.alerter.open_episodes()) == ("inactive", [])
    story.restart(story.snapshot(), make_rule(cooldown="1h"))
    assert (story.shown(3)["firing"], story.alerter.open_episodes()) == (False, [])
    assert story.tick(5) == []


# --- restarts with changed rules


def test_a_rule_misses_no_span_while_another_one_is_added() -> None:
    """
    The configuration gets a second rule; what the first one has seen, and what happened while nobody ran, is its own.
    """
    #   1    5     9        12
    #   .....######.........|      killed at 5, started with a second rule at 12
    old, new = make_rule(), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 13):
        if second == 5:
            snapshot = story.snapshot()
        story.send(second - 0.5, slow(second - 0.5, 600 if 5 < second < 10 else 300))
    story.restart(snapshot, old, new)
    story.tick(12 + SETTLED)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing"), (10, "resolved")]


def test_a_breach_stays_pending_while_another_rule_is_added() -> None:
    old, new = make_rule(**{"for": "5s"}), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 10):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second == 4:
            story.restart(story.snapshot(), old, new)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing")]


def test_a_snapshot_taken_during_a_backfill_holds_the_other_rules() -> None:
    old, new = make_rule(**{"for": "5s"}), make_rule(name="new", window="60s")
    story = Story(old)
    for second in range(1, 10):
        story.send(second - 0.5, slow(second - 0.5, 600))
        story.tick(second + SETTLED)
        if second == 4:
            story.alerter.add_rule(new)
            story.restart(story.snapshot(), old, new)
    assert brief(event for event in story.published if event.alert == "any") == [(6, "firing")]


def test_a_new_rule_of_the_configuration_is_backfilled() -> None:
    old, new = make_rule(), make_rule(name="new", metric="span_count", op="gte", threshold=3, window="60s")
    story = Story(old)
    for second in (1, 2, 3):
        story.send(second - 0.5, slow(second - 0.5, 300))
        story.tick(second + SETTLED)
    story.restart(story.snapshot(), old, new)
    assert [(event.alert, at(event), event.span_count) for event in story.tick(5 + SETTLED)] == [("new", 3, 3)]


@pytest.mark.parametrize("key", ["threshold", "cooldown", "level", "silenced", "for", "recovery_threshold"])
def test_a_rule_on_the_same_data_keeps_its_window(key: str) -> None:
    value = {
        "threshold": 400,
        "cooldown": "2s",
        "level": "critical",
        "silenced": True,
        "for": "1s",
        "recovery_threshold": 100,
    }[key]
    assert make_rule(**{key: value}).fingerprint == make_rule().fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("group_by", "user"),
        ("change", "percent"),
        ("change", "absolute"),
        ("window", "2s"),
        ("filter", {"model": "o3"}),
        ("metric", "hops"),
        ("op", "lt"),
        ("no_data", "fire"),
    ],
)
def test_a_rule_on_other_data_gets_a_new_window(key: str, value: Any) -> None:
    assert make_rule(**{key: value}).fingerprint != make_rule().fingerprint


def test_rules_on_different_data_have_different_fingerprints() -> None:
    rules = [
        make_rule(group_by=group_by, change=change, metric=metric)
        for group_by in (None, "user", "absolute")
        for change in (None, "absolute", "percent")
        for metric in ("latency_avg", "hops")
    ]
    assert Counter(rule.fingerprint for rule in rules).most_common(1)[0][1] == 1


# --- rules with the same id


def test_events_of_different_rules_never_share_an_id() -> None:
    """Eight hex digits are 32 bits: among 10,000 rules two share them with a probability of 1 %."""
    seen: dict[str, str] = {}
    pair: tuple[str, str] | None = None
    for number in range(400_000):
        name = f"rule-{number}"
        other = seen.setdefault(hashlib.sha256(name.encode()).hexdigest()[:8], name)
        if other != name:
            pair = (other, name)
            break
    assert pair is not None
    rules = [make_rule(name=name) for name in pair]
    assert rules[0].rule_id == rules[1].rule_id
    story = Story(*rules)
    story.send(0.5, slow(0.5, 600))
    events = story.tick(1 + SETTLED)
    assert {event.alert for event in events} == set(pair)
    assert len({event_id(event) for event in events}) == 2
