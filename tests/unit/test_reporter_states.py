"""The counters of reporters equal the sums of what the last batch of each process says."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.builders import make_batch
from kit.examples import examples
from tokentrace.records import ReporterStats
from tokentrace.units import HOUR, SECOND
from tokentrace_api import reporter_states
from tokentrace_api.reporter_states import ReporterStates

START_NS = 497_222 * HOUR
COUNTERS = ("sent", "acked", "failed", "dropped")
told = st.lists(
    st.tuples(
        st.sampled_from(["shop", "chat"]),
        st.integers(0, 2),
        st.integers(1, 20),
        st.fixed_dictionaries({name: st.integers(0, 100) for name in (*COUNTERS, "queue_depth")}),
    ),
    max_size=30,
)


def note(states: ReporterStates, name: str, process: int, sequence: int, at_ns: int, **stats: int) -> None:
    batch = make_batch(id=f"default.{name}.{process:032x}", sequence=sequence, source=name)
    states.note(msgspec.structs.replace(batch, reporter=ReporterStats(**stats)), "default", at_ns)


@settings(max_examples=examples(200), deadline=None)
@given(batches=told)
def test_each_name_has_the_sums_of_the_newest_batch_of_its_processes(batches: list[tuple[Any, ...]]) -> None:
    states = ReporterStates()
    for second, (name, process, sequence, stats) in enumerate(batches):
        note(states, name, process, sequence, START_NS + second * SECOND, **stats)
    expected = {}
    for name in {batch[0] for batch in batches}:
        newest: dict[int, tuple[int, int, dict[str, int]]] = {}
        for second, (other, process, sequence, stats) in enumerate(batches):
            if other == name and sequence >= newest.get(process, (0, 0, {}))[0]:
                newest[process] = sequence, second, stats
        last = max(second for _, second, _ in newest.values())
        sums = [sum(stats[key] for _, _, stats in newest.values()) for key in (*COUNTERS, "queue_depth")]
        expected[name] = (START_NS + last * SECOND, len(newest), *sums)
    shown = states.sums(START_NS + 29 * SECOND)
    found = {}
    for row in shown:
        found[row.name] = row.last_ns, row.processes, *(getattr(row, key) for key in (*COUNTERS, "queue_depth"))
    assert found == expected
    assert [row.last_ns for row in shown] == sorted((row.last_ns for row in shown), reverse=True)


def test_the_queue_of_a_silent_process_counts_as_empty() -> None:
    states = ReporterStates()
    note(states, "shop", 0, 1, START_NS, queue_depth=5, sent=7)
    note(states, "shop", 1, 1, START_NS + 20 * SECOND, queue_depth=2)
    depths = [states.sums(START_NS + second * SECOND)[0].queue_depth for second in (20, 30, 31, 50, 51)]
    assert depths == [7, 7, 2, 2, 0]
    assert states.sums(START_NS + HOUR)[0].sent == 7


def test_processes_that_make_room_stay_in_the_sums_and_names_do_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(reporter_states, "MAX_PROCESSES", 2)
    monkeypatch.setattr(reporter_states, "MAX_NAMES", 2)
    states = ReporterStates()
    for process in range(5):
        note(states, "shop", process, 1, START_NS + process, sent=10, acked=8, failed=1, dropped=1, queue_depth=3)
    [row] = states.sums(START_NS)
    assert (row.processes, row.sent, row.acked, row.failed, row.dropped, row.queue_depth) == (5, 50, 40, 5, 5, 6)
    for name in ("chat", "shop", "search"):
        note(states, name, 0, 2, START_NS + HOUR)
    assert {row.name for row in states.sums(START_NS + HOUR)} == {"shop", "search"}


def test_a_batch_that_no_reporter_sent_is_not_counted() -> None:
    states = ReporterStates()
    states.note(make_batch(), "default", START_NS)
    assert states.sums(START_NS) == []
