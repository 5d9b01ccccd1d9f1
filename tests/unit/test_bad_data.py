"""What is decoded and cannot be read: one error whatever the decoder raised, and a bounded account of it."""

from __future__ import annotations

import base64
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from tokentrace.bad_data import MAX_KEPT, SetAside, reading
from tokentrace.errors import Rejected

FAILING: dict[str, Callable[[], object]] = {
    "not UTF-8": lambda: msgspec.json.decode(b'"\xff"', type=str),
    "of another type": lambda: msgspec.json.decode(b"[]", type=dict[str, int]),
    "nested too deep": lambda: msgspec.json.decode(b"[" * 100_000),
    "not base64": lambda: base64.urlsafe_b64decode("zzz"),
    "a key that is missing": lambda: dict[str, int]()["chunks"],
    "a list for an object": lambda: [].get("deleted"),  # type: ignore[attr-defined]
    "a length that lies": lambda: np.empty(2**57, np.int64),
}


@pytest.mark.parametrize("decode", FAILING.values(), ids=FAILING)
def test_whatever_a_decoder_raises_is_one_rejection(decode: Callable[[], object]) -> None:
    with pytest.raises(Rejected, match=r"^snapshot: ."), reading("snapshot"):
        decode()


def test_a_thing_met_again_is_counted_in_its_record_and_once_in_its_place() -> None:
    found = SetAside()
    for _ in range(3):
        with found.guard("TT_ALERTS", "message 7"), reading("alert event"):
            msgspec.json.decode(b"x")
    [record] = found.records
    assert (record.place, record.which, record.count) == ("TT_ALERTS", "message 7", 3)
    assert found.totals == {"TT_ALERTS": 1}


def test_a_flood_is_counted_whole_and_keeps_the_newest_records() -> None:
    found = SetAside()
    for number in range(MAX_KEPT + 50):
        found.note("TT_SPANS", f"message {number}", "x" * 10_000)
    assert found.totals == {"TT_SPANS": MAX_KEPT + 50}
    assert [record.which for record in found.records][-1] == f"message {MAX_KEPT + 49}"
    assert len(found.records) == MAX_KEPT
    assert max(len(record.reason) for record in found.records) <= 300
