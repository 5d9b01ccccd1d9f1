"""What readers publish about their memory of calls: who differs, and whom a new layout waits for."""

from __future__ import annotations

from kit.builders import ENDED_NS
from tokentrace.bad_data import SetAside
from tokentrace.bus import Entry
from tokentrace.dedup import Digest
from tokentrace.service import call_readers
from tokentrace.service.call_readers import ReaderCalls, read_calls, read_layout, that_differ, waits_for
from tokentrace.units import DAY


def memory(*digests: tuple[int, int, int], shard: str = "0") -> ReaderCalls:
    return ReaderCalls(1, {shard: [Digest(*digest) for digest in digests]})


def test_a_reader_that_differs_from_most_is_named() -> None:
    calls = {
        "aggregator.0": memory((256, 10, 7), (512, 20, 8)),
        "alerter.0": memory((256, 10, 7), (512, 20, 8)),
        "api.0": memory((256, 10, 7), (512, 20, 9)),
    }
    assert that_differ(calls) == ["api.0 in shard 0"]


def test_of_two_readers_that_differ_both_are_named() -> None:
    calls = {"alerter.0": memory((256, 10, 7)), "api.0": memory((256, 10, 8))}
    assert that_differ(calls) == ["alerter.0 in shard 0", "api.0 in shard 0"]


def test_readers_are_compared_only_at_the_same_sequence_of_the_same_shard_with_as_many_calls() -> None:
    calls = {
        "aggregator.0": memory((256, 10, 7)),
        "aggregator.1": memory((256, 10, 1), shard="1"),
        "alerter.0": memory((512, 10, 8)),
        "api.0": memory((256, 9, 6)),
    }
    assert that_differ(calls) == []


def test_what_a_reader_publishes_is_read_back_and_the_rest_is_set_aside() -> None:
    set_aside = SetAside()
    published = call_readers.encode_calls({0: [Digest(256, 10, 2**64 - 1)], 3: []})
    entries = {
        call_readers.calls_key("api", 0): Entry(published, 1),
        call_readers.calls_key("api", 1): Entry(b"{}", 2),
        "reader.api.0": Entry(b"[]", 3),
    }
    assert read_calls(entries, set_aside) == {"api.0": ReaderCalls(1, {"0": [Digest(256, 10, 2**64 - 1)], "3": []})}
    assert sum(set_aside.totals.values()) == 1


def test_a_layout_waits_for_every_reader_of_the_last_week_that_does_not_understand_it() -> None:
    positions = {
        "reader.api.0": (1, 5, ENDED_NS),
        "reader.alerter.0": (1, 5, ENDED_NS),
        "reader.aggregator.0": (1, 5, ENDED_NS - 8 * DAY),
        "reader.aggregator.1": (1, 5, ENDED_NS),
    }
    calls = {"api.0": memory(), "aggregator.1": ReaderCalls(0, {})}
    assert waits_for(positions, calls, ENDED_NS) == ["aggregator.1", "alerter.0"]


def test_the_agreed_instant_is_read_back_and_an_unreadable_one_is_none() -> None:
    set_aside = SetAside()
    assert read_layout(Entry(call_readers.encode_layout(12), 1), set_aside) == 12
    assert read_layout(None, set_aside) is None
    assert read_layout(Entry(b"soon", 2), set_aside) is None
    assert sum(set_aside.totals.values()) == 1
