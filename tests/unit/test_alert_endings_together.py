"""Several alerters that read at different speeds, are killed and get other files tell each end of an episode once."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.alert_story import CREATED, LONG_AGO, make_rule, ns, slow
from kit.examples import examples
from kit.whole_snapshots import CAPACITY, load, save
from tokentrace.bus import Message
from tokentrace.records import AlertEvent, Batch, encode_batches
from tokentrace.units import MS
from tokentrace_alerter.event_memory import continuing, is_needless
from tokentrace_alerter.machine import AlerterMachine
from tokentrace_alerter.rules import FilterIndex, Rule
from tokentrace_alerter.stored_rules import RuleChange

#: The versions of the file, one after another: the rule is there, has another level, is gone, and is back.
FILES: list[list[Rule]] = [
    [make_rule(name="file", cooldown="2s")],
    [make_rule(name="file", cooldown="2s", level="critical")],
    [],
    [make_rule(name="file", cooldown="2s", group_by="caller")],
]


ACTIONS = ("send", "send", "tick", "tick", "tick", "hear", "changes", "make", "delete", "file", "kill")


class World:
    """What all alerters share. The broker recognises no repeated message id, as if its window had passed."""

    def __init__(self) -> None:
        self.now = 1.0
        self.log: list[Message] = []
        self.events: list[AlertEvent] = []
        self.changes: list[RuleChange] = []
        self.file = FILES[0]
        self.send(LONG_AGO, 0)

    def send(self, at: float, latency_ms: float) -> None:
        spans = [slow(at, latency_ms, caller="x")] if latency_ms else []
        payload = encode_batches([Batch(id=f"request-{len(self.log)}", spans=spans)])
        self.log.append(Message("tokentrace.spans.default.0", payload, len(self.log) + 1, ns(at), {}))


class Alerter:
    """An alerter, and how far it has read each stream."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.snapshots: list[bytes] = []
        self.start()

    def start(self, snapshot: bytes | None = None) -> None:
        """Start as the service does: the changes of rules, all events, the snapshot."""
        world = self.world
        rules = {rule.name: rule for rule in world.file}
        self.alerter = AlerterMachine([], "default", capacity=CAPACITY)
        for change in world.changes:
            rules.pop(change.name, None)
            if change.rule is not None:
                rules[change.name] = change.rule
            self.alerter.ignore_events(change.name, change.since_ns)
        self.alerter.set_rules(list(rules.values()))
        self.changed, self.heard = len(world.changes), 0
        self.hear()
        self.alerter.events.settle()
        if snapshot is not None:
            load(self.alerter, snapshot)
        self.read_log()
        self.backfill()
        self.alerter.caught_up = True

    def hear(self) -> None:
        for event in self.world.events[self.heard :]:
            self.alerter.apply_event(event)
        self.heard = len(self.world.events)

    def read_changes(self) -> None:
        for change in self.world.changes[self.changed :]:
            change.apply_to(self.alerter)
        self.changed = len(self.world.changes)
        self.backfill()

    def backfill(self) -> None:
        done = self.alerter.position.sequence if self.alerter.position else 0
        for name, evaluator in list(self.alerter.evaluators.items()):
            if evaluator.backfilling:
                memory, index = self.alerter.new_memory(), FilterIndex({name: evaluator.rule.filter})
                for message in self.world.log[:done]:
                    self.alerter.backfill({name: evaluator}, index, message, memory)
                self.alerter.finish_backfill(name, ns(LONG_AGO), ns(self.world.now))

    def read_log(self) -> None:
        done = self.alerter.position.sequence if self.alerter.position else 0
        for message in self.world.log[done:]:
            self.alerter.fold(message, CREATED)

    def tick(self, dice: random.Random | None = None) -> bool:
        """Read the log and publish what is due; return False if the alerter is killed meanwhile, as *dice* says."""
        self.read_log()
        for effect in list(self.alerter.tick(ns(self.world.now))):
            event = msgspec.json.decode(effect.payload, type=AlertEvent)
            if dice is not None and dice.random() < 0.1:
                return False
            before = self.alerter.last_event(event)
            if not is_needless(event, before, earlier=self.alerter.events.is_earlier(event)):
                while self.heard < len(self.world.events):
                    self.hear()
                    if self.alerter.last_event(event) is not before:
                        break
                else:
                    self.world.events.append(continuing(event, before))
                    if dice is not None and dice.random() < 0.1:
                        return False
                    self.hear()
            self.alerter.performed(effect)
        return True

    def change_rule(self, rule: Rule | None) -> None:
        """Create, replace or delete the rule made at run time."""
        self.read_changes()
        newest = self.alerter.events.newest_ns("made")
        since_ns = (max(ns(self.world.now), newest) // MS + 1) * MS
        self.world.changes.append(RuleChange("made", rule, rule is None, 0, since_ns))
        self.read_changes()


def run(seed: int) -> Iterator[AlertEvent]:
    """Let three alerters run through random actions and then to the end; yield the events."""
    dice, world = random.Random(seed), World()
    alerters = [Alerter(world) for _ in range(3)]
    for _ in range(60):
        world.now += dice.choice([0.1, 0.3, 0.6])
        one = dice.choice(alerters)
        action = dice.choice(ACTIONS)
        if action == "send":
            world.send(world.now, dice.choice([300, 600, 600]))
        elif action == "hear":
            one.hear()
        elif action == "changes":
            one.read_changes()
        elif action == "make":
            one.change_rule(make_rule(name="made", cooldown="2s", threshold=dice.choice([400, 500])))
        elif action == "delete":
            one.change_rule(None)
        elif action == "file":
            world.file = dice.choice(FILES)
        elif action == "kill" or not one.tick(dice):
            one.start(dice.choice([None, *one.snapshots]))
        if dice.random() < 0.2:
            one.snapshots.append(save(one.alerter))
    world.file = dice.choice(FILES)
    for one in alerters:
        one.start(dice.choice([None, *one.snapshots]))
    for _ in range(4):
        world.now += 40
        for one in dice.sample(alerters, len(alerters)):
            one.tick()
            one.hear()
    yield from world.events


@settings(max_examples=examples(150), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_episode_that_any_alerter_began_ends_once(seed: int) -> None:
    episodes: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for event in run(seed):
        episodes[event.alert, str(event.group), event.starts_at].append(event.status)
    for episode, statuses in episodes.items():
        assert statuses == ["firing"] * (len(statuses) - 1) + ["resolved"], episode
        assert len(statuses) > 1, episode


@pytest.mark.long
def test_the_random_actions_do_end_episodes_in_every_way() -> None:
    ways = {event.ended_by for seed in range(30) for event in run(seed) if event.status == "resolved"}
    assert ways >= {"deleted", "replaced", "removed", "changed", "no_data", "recovered"}
