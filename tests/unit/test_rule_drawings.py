"""Rules over time, as drawings: the values of each second, the events, and the states shown."""

from __future__ import annotations

import random
from typing import Any

import pytest

from kit.alert_story import (
    SETTLED,
    Drawing,
    Story,
    at,
    brief,
    call,
    make_rule,
    ns,
    play,
    seconds,
    slow,
)
from kit.examples import SEED, thinned
from tokentrace.units import MINUTE, SECOND, render_instant

IGNORE: dict[str, Any] = {}
FIRE, KEEP = {"no_data": "fire"}, {"no_data": "keep"}
NO_COOLDOWN = {"cooldown": "0s"}
RECOVERY_BELOW = {"recovery_threshold": 400}
RECOVERY_ABOVE = {"recovery_threshold": 600}

DRAWINGS = [
    Drawing("begins and ends", {}, "..###..", "..F..R.", "iifffrr"),
    Drawing("no breach", {}, "--..-.", "......", "nniini"),
    Drawing("a breach of one instant", {}, ".#.", ".FR", "ifr"),
    # the operators at their threshold
    Drawing("gt, not at the threshold", {"op": "gt", **NO_COOLDOWN}, "=#=.#", ".FR.F", "ifrrf"),
    Drawing("gte, at the threshold", {"op": "gte", **NO_COOLDOWN}, "=#=.=", "FFFRF", "fffrf"),
    Drawing("lt, not at the threshold", {"op": "lt", **NO_COOLDOWN}, "=#=.#", ".FR.F", "ifrrf"),
    Drawing("lte, at the threshold", {"op": "lte", **NO_COOLDOWN}, "=#=.=", "FFFRF", "fffrf"),
    # recovery; the limit is the recovery threshold
    Drawing(
        "gt, recovers at the limit",
        {"op": "gt", "cooldown": "3s", **RECOVERY_BELOW},
        "~#~=~_~#",
        ".F..FR.F",
        "iffffrrf",
    ),
    Drawing("gte, recovers below the limit", {"op": "gte", **RECOVERY_BELOW}, "_=_=._=", ".F..R..", "ifffrrr"),
    Drawing(
        "lt, recovers at the limit",
        {"op": "lt", "cooldown": "3s", **RECOVERY_ABOVE},
        "~#~=~_~#",
        ".F..FR.F",
        "iffffrrf",
    ),
    Drawing("lte, recovers above the limit", {"op": "lte", **RECOVERY_ABOVE}, "_=_=._=", ".F..R..", "ifffrrr"),
    Drawing(
        "gt, limit equal to the threshold",
        {"op": "gt", "recovery_threshold": 500, **NO_COOLDOWN},
        "=#=#~",
        ".FRFR",
        "ifrfr",
    ),
    Drawing("gte, limit equal to the threshold", {"op": "gte", "recovery_threshold": 500}, "~#=~", ".F.R", "iffr"),
    Drawing(
        "lt, limit equal to the threshold",
        {"op": "lt", "recovery_threshold": 500, **NO_COOLDOWN},
        "=#=#~",
        ".FRFR",
        "ifrfr",
    ),
    Drawing("lte, limit equal to the threshold", {"op": "lte", "recovery_threshold": 500}, "~#=~", ".F.R", "iffr"),
    # for
    Drawing("for, exactly reached", {"for": "3s"}, ".######.", "....F..R", "ipppfffr"),
    Drawing("for, reached between instants", {"for": "2999ms"}, ".######.", "....F..R", "ipppfffr"),
    Drawing("for, just missed", {"for": "3001ms"}, ".######.", ".....F.R", "ippppffr"),
    Drawing("for, one instant short", {"for": "3s"}, ".###....", "........", "ipppiiii"),
    Drawing("for, of a nanosecond", {"for": "1ns"}, ".##.", "..FR", "ipfr"),
    Drawing("for, interrupted once", {"for": "3s"}, ".###.####", "........F", "ipppipppf"),
    Drawing("for, interrupted at the threshold", {"for": "3s"}, ".##=####", ".......F", "ippipppf"),
    Drawing(
        "for, measured by the threshold", {"for": "3s", **RECOVERY_BELOW}, ".##~####~_", ".......F.R", "ippipppffr"
    ),
    Drawing("for, interrupted by no data", {"for": "3s"}, ".##-####", ".......F", "ippnpppf"),
    Drawing("for, no data is a breach", {"for": "3s", **FIRE}, ".##-####", "....F...", "ipppffff"),
    Drawing("for, no data alone", {"for": "2s", **FIRE}, "..----.", "....F.R", "iippffr"),
    Drawing("for, no data keeps it pending", {"for": "3s", **KEEP}, ".##-####", "....F...", "ipppffff"),
    Drawing("for, no data when it is due", {"for": "3s", **KEEP}, ".###-##", ".....F.", "ippppff"),
    Drawing("for, kept pending, then fine", {"for": "3s", **KEEP}, ".##--.##", "........", "ippppipp"),
    Drawing("for, too few in between", {"for": "3s", "min_spans": 2}, ".##1####", "....F...", "ipppffff"),
    Drawing("for, too few when it is due", {"for": "3s", "min_spans": 2}, ".##111#", "......F", "ipppppf"),
    Drawing("for, every second instant too few", {"for": "3s", "min_spans": 2}, "#1#1#", "....F", "ppppf"),
    Drawing("for, too few and then fine", {"for": "3s", "min_spans": 2}, ".#1.1##", ".......", "ippiipp"),
    Drawing("for, anew for each episode", {"for": "2s", **NO_COOLDOWN}, ".###.###.", "...FR..FR", "ippfrppfr"),
    Drawing("for, reached in the cooldown", {"for": "2s", "cooldown": "6s"}, "###.######", "..FR....F.", "ppfrppppff"),
    # no data
    Drawing("no data is no breach", IGNORE, "..--.#-", ".....FR", "iinnifr"),
    Drawing("no data ends what fired", IGNORE, "##--.", "F.R..", "ffrrr"),
    Drawing("no data is a breach", FIRE, "..--..", "..F.R.", "iiffrr"),
    Drawing("no data from the start", FIRE, "----.", "F...R", "ffffr"),
    Drawing("no data fires again", {**FIRE, "cooldown": "2s"}, "#----.", "F.F.FR", "fffffr"),
    Drawing("no data changes nothing", KEEP, "--.-", "....", "nnin"),
    Drawing("no data keeps it firing", {**KEEP, "cooldown": "2s"}, "##---#.", "F....FR", "ffffffr"),
    Drawing("no data keeps it resolved", KEEP, "#.--", "FR..", "frrr"),
    Drawing("lt, no data is no breach", {"op": "lt"}, "--#-.-", "..FR..", "nnfrrr"),
    Drawing("lt, no data is a breach", {"op": "lt", **FIRE}, ".#-.-", ".F.R.", "iffrr"),
    Drawing("lt, no data keeps the state", {"op": "lt", **KEEP}, "-#-#.", ".F..R", "nfffr"),
    # too few
    Drawing("too few fire nothing", {"min_spans": 2}, "11##.", "..F.R", "iiffr"),
    Drawing("too few resolve nothing", {"min_spans": 2}, "##11.", "F...R", "ffffr"),
    Drawing("too few, then none", {"min_spans": 2}, "#1-", "F.R", "ffr"),
    Drawing("too few are not no data", {"min_spans": 2, **FIRE}, "1-1.", ".F.R", "iffr"),
    # cooldown
    Drawing("again after each cooldown", {"cooldown": "3s"}, "..#########.", "..F..F..F..R", "iifffffffffr"),
    Drawing("without a cooldown", NO_COOLDOWN, "###.#", "FFFRF", "fffrf"),
    Drawing(
        "a new breach within the cooldown", {"cooldown": "6s"}, "#.#.##########", "FR....F.....F.", "frrrrrffffffff"
    ),
    Drawing("a cooldown just missed", {"cooldown": "2001ms"}, "#######", "F..F..F", "fffffff"),
    # silence
    Drawing("silenced in the configuration", {"silenced": True}, "..##.-", "......", "iiiiin"),
    Drawing("silenced while it fires", {"cooldown": "2s"}, "##########", "F.F...F.F.", "ffffffffff", (3, 7)),
    Drawing("episode ends within the silence", {}, "##....", "F..R..", "fffrrr", (1, 4)),
    Drawing("whole breach within the silence", {}, ".###....", "........", "iiiiiiii", (1, 6)),
    Drawing("breach longer than the silence", {}, ".######.", "....F..R", "iiiifffr", (1, 5)),
    Drawing("pending within the silence", {"for": "3s"}, ".########", "......F..", "ipppppfff", (1, 7)),
    Drawing("silence ends when it is due", {"for": "3s"}, ".######.", "....F..R", "ipppfffr", (1, 5)),
    Drawing("no data within the silence", FIRE, ".-----.", "...F..R", "iiifffr", (1, 4)),
]
drawn = pytest.mark.parametrize("drawing", DRAWINGS, ids=[drawing.what for drawing in DRAWINGS])


@drawn
def test_each_drawing_gives_its_events_and_states(drawing: Drawing) -> None:
    assert play(drawing) == (drawing.said, drawing.state)


@drawn
def test_a_restart_after_every_instant_gives_the_same_events_and_states(drawing: Drawing) -> None:
    assert play(drawing, lambda story, instant: story.restart(story.snapshot())) == (drawing.said, drawing.state)


@drawn
def test_a_kill_with_an_older_snapshot_gives_the_same_events_and_states(drawing: Drawing) -> None:
    """Events since the snapshot are known from the alert stream: none is repeated, early or missing."""
    dice = random.Random(f"{SEED}{drawing.what}")
    for killed in thinned(range(2, len(drawing.seen)), dice):
        for saved in {1, killed // 2, killed - 1}:
            kept: list[Any] = []

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
    #         1   5    10
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
    """One alerter has evaluated up to 7 and is pending when it reads that the other fired at 8 and resolved at 9."""
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


def test_with_a_for_all_events_of_an_episode_have_the_same_start() -> None:
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
    expired = 120 + 15 * MINUTE / SECOND
    story.tick(expired - 1)
    assert story.shown(expired - 1)["state"] == "resolved"
    story.tick(expired + 1)
    assert story.shown(expired + 1)["state"] == "no_data"
    story.send(expired + 59.5, slow(expired + 59.5, 300))
    story.tick(expired + 60 + SETTLED)
    assert story.shown(expired + 61)["state"] == "inactive"


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
    story = Story(make_rule(no_data="keep"))
    story.send(0.5, slow(0.5, 600))
    for second in (1, 2, 3):
        story.tick(second + SETTLED)
        shown = story.shown(second + SETTLED)
        assert (shown["state"], shown["firing"]) == ("firing", True), second


# --- what is shown agrees with itself


@drawn
def test_firing_is_shown_only_beside_a_state_that_allows_it(drawing: Drawing) -> None:
    shown: list[Any] = []
    play(drawing, lambda story, instant: shown.append(story.shown(instant + SETTLED)))
    for rule in shown:
        expected = rule["state"] == "firing" or (rule["silenced"] and rule["breached"] and rule["state"] == "inactive")
        assert rule["firing"] == expected
        assert (rule["state"] == "warming") <= (rule["why_not_fired"] == "warming")


def test_a_rule_that_warms_up_says_so_and_is_not_firing() -> None:
    rule = make_rule(metric="span_count", op="lt", threshold=5, window="10s")
    story = Story(rule, began=0)
    for second in range(1, 9):
        story.send(second - 0.5, call(second - 0.5), *(call(second - 0.5) for _ in range(9 if second < 4 else 0)))
        story.tick(second + SETTLED)
        shown = story.shown(second + SETTLED)
        assert (shown["state"], shown["why_not_fired"], shown["firing"]) == ("warming", "warming", False)
