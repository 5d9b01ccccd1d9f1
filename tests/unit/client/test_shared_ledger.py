"""
The state of a shared budget under random interleavings of many processes.

The world below stores a value with compare-and-set and does what a network does: acknowledgements are lost, writes
arrive late or never, processes are killed, time passes, clocks differ. The oracle knows what each call was worth and
how its process ended it, and nothing of how the ledger is kept.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kit.examples import examples
from tokentrace.client.money.shared_budget import ledger as ledger_module
from tokentrace.client.money.shared_budget.desk import Desk
from tokentrace.client.money.shared_budget.ledger import (
    GRACE_NS,
    MAX_DONE,
    Ledger,
    OnLost,
    Operation,
    Outcome,
    Rules,
    apply,
    decode_ledger,
    encode_ledger,
)
from tokentrace.errors import Rejected
from tokentrace.units import SECOND

LEASE_NS = 600 * SECOND


@dataclass
class Call:
    """
    A call of an application: what it reserved, and what it told the budget in the end.

    Attributes:
        worth: What the call adds to the sum: known, or one of several values if its process was killed.
    """

    amount: int
    cost: int
    worth: set[int] = field(default_factory=lambda: {0})


class Register:
    """The key of the budget: a value with a sequence, and writes that are still under way."""

    def __init__(self) -> None:
        self.sequence = 0
        self.data: bytes | None = None
        self.late: list[tuple[int, bytes]] = []
        self.accepted: list[Ledger] = []

    def write(self, expected: int, data: bytes) -> bool:
        if expected != self.sequence:
            return False
        self.sequence += 1
        self.data = data
        self.accepted.append(decode_ledger(data))
        return True


class Process:
    """A process with a desk; its clock differs from the true time by *skew_ns*."""

    def __init__(self, rules: Rules, skew_ns: int) -> None:
        self.desk, self.skew_ns = Desk(rules), skew_ns
        self.view: tuple[int, Ledger | None] | None = None
        self.write: tuple[int, bytes] | None = None
        self.reserving: dict[str, tuple[Operation, Call]] = {}
        self.open: dict[str, Call] = {}
        self.ending: dict[str, Call] = {}


class World:
    """Several processes on one budget, which take random steps."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.limit = self.dice.randrange(1, 2000)
        self.on_lost: OnLost = self.dice.choice(["spent", "released"])
        self.allows = self.dice.random() < 0.2
        self.now_ns = 10**18
        self.register = Register()
        self.rules = Rules(self.limit, LEASE_NS, self.on_lost)
        self.processes = [self.process() for _ in range(self.dice.randrange(1, 6))]
        self.calls: list[Call] = []
        self.numbers = 0
        self.refusals = 0

    def process(self) -> Process:
        return Process(self.rules, self.dice.randrange(-GRACE_NS // 2, GRACE_NS // 2))

    def step(self) -> None:
        process = self.dice.choice(self.processes)
        todo = self.dice.random()
        if process.write is not None and todo < 0.6:
            self.end_write(process)
        elif todo < 0.25:
            self.reserve(process)
        elif todo < 0.45:
            self.end_call(process)
        elif todo < 0.85:
            self.read_or_decide(process)
        elif todo < 0.9:
            self.withdraw(process)
        elif todo < 0.93 and self.register.late:
            self.register.write(*self.register.late.pop(self.dice.randrange(len(self.register.late))))
        elif todo < 0.94:
            self.kill(process)
        elif todo < 0.96:
            self.now_ns += self.dice.choice([SECOND, LEASE_NS // 3])
        elif todo < 0.98:
            for id in process.open:
                process.desk.add(Operation("renew", id))
        elif todo < 0.985:
            # A machine that sleeps: live leases expire.
            self.now_ns += LEASE_NS + 3 * GRACE_NS

    def reserve(self, process: Process) -> None:
        self.numbers += 1
        id, amount = str(self.numbers), self.dice.randrange(1, 200)
        call = Call(amount, self.dice.randrange(amount + 1))
        self.calls.append(call)
        if self.allows and self.dice.random() < 0.3:
            process.open[id] = call  # allowed while the broker was away: there is no lease
            return
        operation = Operation("reserve", id, amount)
        process.reserving[id] = operation, call
        process.desk.add(operation)

    def end_call(self, process: Process) -> None:
        if not process.open:
            return
        id = self.dice.choice(sorted(process.open))
        call = process.open.pop(id)
        process.ending[id] = call
        if self.dice.random() < 0.8:
            call.worth = {call.cost}
            process.desk.add(Operation("commit", id, call.cost))
        else:
            call.worth = {0}
            process.desk.add(Operation("release", id, sent=True))

    def withdraw(self, process: Process) -> None:
        if process.reserving:
            id = self.dice.choice(sorted(process.reserving))
            operation, process.ending[id] = process.reserving.pop(id)
            process.desk.withdraw(operation)

    def read_or_decide(self, process: Process) -> None:
        if process.write is not None or not len(process.desk):
            return
        if process.view is None:
            data = self.register.data
            process.view = self.register.sequence, None if data is None else decode_ledger(data)
            return
        sequence, stored = process.view
        process.view = None
        decision = process.desk.decide(stored, self.now_ns + process.skew_ns)
        if decision.write is None:
            self.finish(process, decision.finished)
        else:
            process.write = sequence, encode_ledger(decision.write)

    def end_write(self, process: Process) -> None:
        assert process.write is not None
        write, process.write = process.write, None
        fate = self.dice.random()
        if fate < 0.7:
            if self.register.write(*write):
                self.finish(process, process.desk.confirm())
            else:
                process.desk.conflict()
        elif fate < 0.8:
            self.register.write(*write)
            process.desk.unsure()
        elif fate < 0.9:
            self.register.late.append(write)
            process.desk.unsure()
        else:
            process.desk.unsure()

    def finish(self, process: Process, finished: list[tuple[Operation, Outcome]]) -> None:
        for operation, outcome in finished:
            if operation.kind == "reserve":
                _, call = process.reserving.pop(operation.id)
                if outcome.answer == "granted":
                    process.open[operation.id] = call
                else:
                    self.refusals += 1
                    assert outcome.answer == "refused"
                    assert outcome.sums.spent + outcome.sums.reserved + call.amount > self.limit
                    if operation.sent:  # as a reservation whose caller no longer waits
                        process.ending[operation.id] = call
                        process.desk.add(Operation("release", operation.id, sent=True))
            elif operation.kind in ("commit", "release"):
                process.ending.pop(operation.id, None)

    def kill(self, process: Process) -> None:
        if process.write is not None:
            if self.dice.random() < 0.5:
                self.register.write(*process.write)
            process.write = None

        def lost(call: Call) -> int:
            return call.amount if self.on_lost == "spent" else 0

        for call in [*process.open.values(), *(call for _, call in process.reserving.values())]:
            call.worth = {0, lost(call)}
        for call in process.ending.values():
            # A commit that was under way may be stored; its lease may also be one of the cost alone.
            call.worth |= {0, lost(call), call.worth.copy().pop()}
        self.processes[self.processes.index(process)] = self.process()

    def end(self) -> Ledger | None:
        """Let every process end its calls, without further losses, and settle what killed processes left."""
        for process in self.processes:
            while process.open:
                self.end_call(process)
            for _ in range(1000):
                if not len(process.desk) and process.write is None:
                    break
                self.read_or_decide(process)
                if process.write is not None:
                    write, process.write = process.write, None
                    if self.register.write(*write):
                        self.finish(process, process.desk.confirm())
                    else:
                        process.desk.conflict()
                while process.open:
                    self.end_call(process)
            assert not len(process.desk)
        for write in self.register.late:
            self.register.write(*write)
        self.now_ns += LEASE_NS + 3 * GRACE_NS
        if self.register.data is None:
            return None
        last = apply(decode_ledger(self.register.data), [Operation("reserve", "last", 0)], self.rules, self.now_ns)
        assert set(last.ledger.leases) <= {"last"}
        return last.ledger


def possible_sums(calls: list[Call]) -> set[int]:
    """Return every sum of the calls' worths."""
    sums = {0}
    for call in calls:
        sums = {one + worth for one, worth in product(sums, call.worth)}
    return sums


@pytest.fixture(params=[MAX_DONE, 2], ids=["long list", "short list"])
def longest_list(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let ids leave the list of commits as late as they do, or after two commits."""
    limit: int = request.param
    monkeypatch.setattr(ledger_module, "MAX_DONE", limit)
    return limit


@settings(max_examples=examples(750), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64))
def test_the_ledger_adds_up_whatever_the_network_and_the_processes_do(seed: int, longest_list: int) -> None:
    world = World(seed)
    for _ in range(world.dice.choice([8, 16, 40, 400])):
        world.step()
    ledger = world.end()
    assert (0 if ledger is None else ledger.spent) in possible_sums(world.calls)
    # A lease that counts as nothing once it is lost bounds nothing if its call goes on.
    bound = not world.allows and (
        world.on_lost == "spent" or not any(stored.lost for stored in world.register.accepted)
    )
    for stored in world.register.accepted:
        assert len(stored.done) <= longest_list
        assert stored.spent >= 0
        if bound:
            assert stored.spent + stored.reserved <= world.limit


def test_the_random_worlds_contain_what_they_are_about() -> None:
    seen = {"refused": 0, "late": 0, "lost": 0, "unsure": 0}
    for seed in range(60):
        world = World(seed)
        for _ in range(300):
            world.step()
            seen["late"] += bool(world.register.late)
            seen["unsure"] += any(one.sent for process in world.processes for one in process.desk.waiting())
        seen["refused"] += world.refusals
        seen["lost"] += any(ledger.lost for ledger in world.register.accepted)
    assert min(seen.values()) > 5, seen


RULES = Rules(1000, LEASE_NS, "spent")
EMPTY = Ledger(1, 1000)


def run(
    ledger: Ledger | None, *operations: Operation, rules: Rules = RULES, now_ns: int = 0
) -> tuple[Ledger, list[str]]:
    """Return the ledger after *operations*, and their answers."""
    applied = apply(ledger, operations, rules, now_ns)
    return applied.ledger, [outcome.answer for outcome in applied.outcomes]


def test_a_reservation_up_to_the_limit_is_granted_and_a_nano_dollar_more_is_refused() -> None:
    ledger, answers = run(None, Operation("reserve", "a", 1000), Operation("reserve", "b", 1))
    assert answers == ["granted", "refused"]
    assert ledger.leases == {"a": (1000, LEASE_NS)}


def test_a_reservation_whose_acknowledgement_was_lost_is_granted_again_at_the_limit() -> None:
    held, _ = run(None, Operation("reserve", "a", 1000))
    again, answers = run(held, Operation("reserve", "a", 1000))
    assert (again, answers) == (held, ["granted"])


def test_the_first_commit_of_a_lease_counts_also_if_another_process_repeats_it() -> None:
    held, _ = run(None, Operation("reserve", "a", 1000))
    committed, _ = run(held, Operation("commit", "a", 600))
    again, answers = run(committed, Operation("commit", "a", 700))
    assert (again, answers) == (committed, ["stands"])


def test_a_release_without_a_lease_prevents_a_late_reservation_by_a_write() -> None:
    assert apply(EMPTY, [Operation("release", "a", sent=True)], RULES, 0).changed
    assert apply(None, [Operation("release", "a", sent=True)], RULES, 0).changed
    assert not apply(EMPTY, [Operation("release", "a")], RULES, 0).changed


def test_what_a_commit_frees_is_there_for_a_reservation_in_the_same_write() -> None:
    ledger, _ = run(None, Operation("reserve", "a", 1000))
    ledger, answers = run(ledger, Operation("reserve", "b", 400), Operation("commit", "a", 600))
    assert answers == ["granted", "stands"]
    assert (ledger.spent, ledger.reserved, ledger.done) == (600, 400, ["a"])


@pytest.mark.parametrize(("on_lost", "counted"), [("spent", 700), ("released", 0)])
def test_a_lost_lease_counts_as_the_rules_say_and_a_late_end_corrects_it(on_lost: OnLost, counted: int) -> None:
    rules = Rules(1000, LEASE_NS, on_lost)
    held, _ = run(None, Operation("reserve", "a", 700))
    late_ns = LEASE_NS + GRACE_NS + 1
    unsettled, _ = run(held, Operation("reserve", "b", 0), rules=rules, now_ns=late_ns - 1)
    assert "a" in unsettled.leases
    settled, _ = run(held, Operation("reserve", "b", 0), rules=rules, now_ns=late_ns)
    assert (settled.spent, settled.lost) == (counted, {"a": counted})
    assert run(settled, Operation("commit", "a", 650))[0].spent == 650
    assert run(settled, Operation("release", "a"))[0].spent == 0


def test_a_renewed_lease_lives_on() -> None:
    held, _ = run(None, Operation("reserve", "a", 700))
    held, _ = run(held, Operation("renew", "a"), now_ns=LEASE_NS // 3)
    assert held.leases == {"a": (700, LEASE_NS + LEASE_NS // 3)}
    held, _ = run(held, Operation("reserve", "b", 0), now_ns=LEASE_NS + GRACE_NS + 1)
    assert "a" in held.leases


def test_a_commit_that_has_left_the_list_is_not_counted_twice() -> None:
    ledger, _ = run(None, Operation("reserve", "a", 5))
    ledger, _ = run(ledger, Operation("commit", "a", 5))
    for number in range(MAX_DONE):
        ledger, _ = run(ledger, Operation("reserve", str(number), 0))
        ledger, _ = run(ledger, Operation("commit", str(number), 0))
    assert "a" not in ledger.done
    again, answers = run(ledger, Operation("commit", "a", 5, sent=True))
    assert (again.spent, answers) == (5, ["stands"])


def test_a_commit_without_a_lease_takes_two_writes_so_that_a_lost_acknowledgement_can_be_resolved() -> None:
    operation = Operation("commit", "a", 5)
    ledger, answers = run(EMPTY, operation)
    assert (ledger.spent, ledger.reserved, answers) == (0, 5, ["again"])
    ledger, answers = run(ledger, operation)
    assert (ledger.spent, ledger.reserved, answers) == (5, 0, ["stands"])


@pytest.mark.parametrize(("stored", "own"), [(500, 1000), (1000, 500)])
def test_the_smaller_of_two_limits_counts_and_is_stored(stored: int, own: int) -> None:
    applied = apply(Ledger(1, stored), [Operation("reserve", "a", 501)], Rules(own, LEASE_NS, "spent"), 0)
    assert (applied.ledger.limit, applied.other_limit) == (500, stored)
    assert applied.outcomes[0].answer == "refused"


def test_a_read_and_a_refusal_write_nothing() -> None:
    full = Ledger(1, 1000, spent=1000)
    applied = apply(full, [Operation("reserve", "a", 1), Operation("read", "b")], RULES, 0)
    assert not applied.changed
    assert applied.outcomes[1].sums == (1000, 0, 1000)


def test_the_json_has_the_documented_form_and_comes_back() -> None:
    ledger = Ledger(1, 9, 5, {"a": (4, 77)}, ["b"], {"c": 1})
    assert encode_ledger(ledger) == (b'{"v":1,"limit":9,"spent":5,"leases":{"a":[4,77]},"done":["b"],"lost":{"c":1}}')
    assert decode_ledger(encode_ledger(ledger)) == ledger
    assert decode_ledger(b'{"v":1,"limit":9,"spent":5,"leases":{},"done":[],"more":1}') == Ledger(1, 9, 5)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"v":2,"something":"else"}', "version 2 and this program knows version 1"),
        (b"\xff\xfe", "not the state of a budget"),
        (b"{}", "not the state of a budget"),
        (b'{"v":1,"limit":"9"}', "not the state of a budget"),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(Rejected, match=text):
        decode_ledger(data)


def test_the_limit_is_raised_only_on_demand() -> None:
    ledger, answers = run(Ledger(1, 500), Operation("reserve", "a", 600), Operation("limit", ""))
    assert (answers, ledger.limit) == (["granted", "stands"], 1000)
