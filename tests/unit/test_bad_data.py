"""Data that cannot be decoded: one type of error for all decoders, and a limited number of records of such data."""

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
    "a list instead of an object": lambda: [].get("deleted"),  # type: ignore[attr-defined]
    "a length that is too large": lambda: np.empty(2**57, np.int64),
}


@pytest.mark.parametrize("decode", FAILING.values(), ids=FAILING)
def test_each_error_of_a_decoder_becomes_rejected(decode: Callable[[], object]) -> None:
    with pytest.raises(Rejected, match=r"^snapshot: ."), reading("snapshot"):
        decode()


def test_data_read_again_counts_in_its_record_and_not_in_the_total_of_its_place() -> None:
    set_aside = SetAside()
    for _ in range(3):
        with set_aside.guard("TT_ALERTS", "message 7"), reading("alert event"):
            msgspec.json.decode(b"x")
    [record] = set_aside.records
    assert (record.place, record.which, record.count) == ("TT_ALERTS", "message 7", 3)
    assert set_aside.totals == {"TT_ALERTS": 1}


def test_all_data_is_counted_and_only_the_newest_records_are_kept() -> None:
    set_aside = SetAside()
    for number in range(MAX_KEPT + 50):
        set_aside.note("TT_SPANS", f"message {number}", "x" * 10_000)
    assert set_aside.totals == {"TT_SPANS": MAX_KEPT + 50}
    assert [record.which for record in set_aside.records][-1] == f"message {MAX_KEPT + 49}"
    assert len(set_aside.records) == MAX_KEPT
    assert max(len(record.reason) for record in set_aside.records) <= 300
