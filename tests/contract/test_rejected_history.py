"""The counts of refused spans and the pages of dead letters, on the bus in memory and on JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kit.rule_store import open_bus
from tokentrace.bus import Bus, subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.errors import Rejected
from tokentrace_api.newest_first import Page
from tokentrace_api.rejected_history import RejectedHistory, StoredLetter

STREAMS = [stream for stream in subjects.streams() if stream.name in (subjects.REJECTED, f"KV_{subjects.META}")]
BATCH = "default.shop.0123456789abcdef0123456789abcdef:1"


@pytest.fixture(params=["memory", "jetstream"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    async with open_bus(request, STREAMS) as opened:
        yield opened


async def refuse(bus: Bus, index: int, reason: str = "model: required", **fields: Any) -> None:
    letter = {"batch": BATCH, "index": index, "kind": "span", "reason": reason, **fields}
    await bus.publish(subjects.rejected("default"), json.dumps(letter).encode())


@contextlib.asynccontextmanager
async def following(bus: Bus) -> AsyncIterator[RejectedHistory]:
    """Yield a history that has read all letters, and save its counts at the end."""
    history = RejectedHistory(bus)
    task = asyncio.create_task(history.open_and_follow())
    try:
        async with asyncio.timeout(60):
            while not history.caught_up:
                await asyncio.sleep(0.01)
        yield history
        await history.save()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def counted(history: RejectedHistory, total: int) -> None:
    async with asyncio.timeout(60):
        while history.total < total:
            await asyncio.sleep(0.01)


def indices(page: Page[StoredLetter]) -> list[int]:
    return [stored.letter.index for stored in page.items]


async def test_letters_are_counted_by_reason_also_after_a_restart(bus: Bus) -> None:
    async with following(bus) as history:
        assert (history.total, history.spans, history.last_ns) == (0, {}, 0)
        for index in range(3):
            await refuse(bus, index)
        await refuse(bus, 3, "attributes: 'tt.x': keys that start with tt. are reserved")
        await counted(history, 4)
        assert history.spans == {"model": 3, "attributes": 1}
        last_ns = history.last_ns
    await refuse(bus, 4)
    async with following(bus) as history:
        await counted(history, 5)
        assert history.spans == {"model": 4, "attributes": 1}
        assert history.last_ns > last_ns > 0


async def test_counts_outlive_the_letters(bus: Bus) -> None:
    for index in range(5):
        await refuse(bus, index)
    async with following(bus) as history:
        assert history.total == 5
    for sequence in range(1, 6):
        await bus.erase(subjects.REJECTED, sequence)
    async with following(bus) as history:
        assert (history.total, history.lost) == (5, 0)
        assert indices(await history.page(limit=10)) == []


async def test_a_letter_that_is_written_twice_counts_once_also_over_a_restart(bus: Bus) -> None:
    await refuse(bus, 1)
    await refuse(bus, 1)
    async with following(bus) as history:
        assert history.total == 1
    await refuse(bus, 1)
    await refuse(bus, 2)
    async with following(bus) as history:
        await counted(history, 2)
        assert history.total == 2


async def test_letters_under_numbers_of_a_lost_end_are_counted() -> None:
    """The stream is not synced, so a power cut may take its last messages, whose numbers are used again."""
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    for stream in STREAMS:
        await bus.ensure(stream)
    for index in range(5):
        await refuse(bus, index)
    async with following(bus) as history:
        assert history.total == 5
    log = broker.logs[subjects.REJECTED]
    for sequence in (3, 4, 5):
        log.remove(sequence)
    log.last_sequence = 2
    for index in range(5, 7):
        await refuse(bus, index)
    async with following(bus) as history:
        await counted(history, 7)
        assert history.total == 7
    await refuse(bus, 7)
    async with following(bus) as history:
        await counted(history, 8)
        assert history.total == 8


async def test_letters_that_are_discarded_unread_are_named(bus: Bus) -> None:
    await refuse(bus, 0)
    async with following(bus) as history:
        assert history.total == 1
    for index in range(1, 5):
        await refuse(bus, index)
    for sequence in range(1, 4):
        await bus.erase(subjects.REJECTED, sequence)
    async with following(bus) as history:
        await counted(history, 3)
        assert (history.total, history.lost) == (3, 2)


async def test_letters_about_other_records_are_no_spans(bus: Bus) -> None:
    await refuse(bus, 0, "content: 300000 bytes, at most 262144 are accepted", kind="message")
    await refuse(bus, 0, "scores: only the api may write these records", kind="scores")
    await refuse(bus, 0, "messages[3]: session_id: Expected `str`, got `int`")
    await refuse(bus, 0, "x", kind="who knows what " * 1000)
    await refuse(bus, 0)
    async with following(bus) as history:
        assert history.total == 1
        assert history.others == {"message": 2, "other": 1, "scores": 1}


async def test_a_letter_that_cannot_be_read_is_set_aside(bus: Bus) -> None:
    for payload in (b"\xff\xfe", b"[]", b'{"reason": 5}', b""):
        await bus.publish(subjects.rejected("default"), payload)
    await refuse(bus, 0)
    async with following(bus) as history:
        assert history.total == 1
        assert bus.set_aside.totals[subjects.REJECTED] == 4
        assert indices(await history.page(limit=10)) == [0]


@pytest.mark.parametrize(
    "entry", [b'{"position": "x"}', b'{"last_ns": 4000000000000000000}', b'{"spans": {"model": -1}}']
)
async def test_an_unreadable_entry_of_counts_begins_anew(bus: Bus, entry: bytes) -> None:
    await refuse(bus, 0)
    await bus.kv(subjects.META).put("rejected_counts", entry)
    async with following(bus) as history:
        assert history.total == 1
        assert bus.set_aside.totals[subjects.META] == 1


async def test_reasons_that_are_not_known_count_as_other(bus: Bus) -> None:
    entry = {"spans": {"model": 2, "moon": 3, "sun": 4}, "others": {"message": 1, "moon": 5}}
    await bus.kv(subjects.META).put("rejected_counts", json.dumps(entry).encode())
    async with following(bus) as history:
        assert history.spans == {"other": 7, "model": 2}
        assert history.others == {"message": 1}


async def test_pages_hold_every_letter_once_newest_first(bus: Bus) -> None:
    for index in range(1203):
        await refuse(bus, index, "model: required" if index % 3 else "trace_id: odd")
    history = RejectedHistory(bus)
    for reason, expected in (("", list(range(1203))), ("trace_id", list(range(0, 1203, 3))), ("speed", [])):
        seen: list[int] = []
        cursor = ""
        while True:
            page = await history.page(limit=200, cursor=cursor, reason=reason)
            assert len(page.items) <= 200
            seen += indices(page)
            if not page.next:
                break
            cursor = page.next
        assert seen == expected[::-1]


async def test_a_page_skips_letters_that_were_erased(bus: Bus) -> None:
    for index in range(6):
        await refuse(bus, index)
    for sequence in (1, 3, 4, 6):
        await bus.erase(subjects.REJECTED, sequence)
    page = await RejectedHistory(bus).page(limit=10)
    assert (indices(page), page.next) == ([4, 1], "")


async def test_since_ends_the_pages_at_that_instant(bus: Bus) -> None:
    for index in range(4):
        await refuse(bus, index)
        await asyncio.sleep(0.01)
    history = RejectedHistory(bus)
    third = (await history.page(limit=10)).items[1]
    page = await history.page(limit=10, since_ns=third.at_ns)
    assert (indices(page), page.next) == ([3, 2], "")
    assert indices(await history.page(limit=10, since_ns=third.at_ns + 3600 * 10**9)) == []


@pytest.mark.parametrize("cursor", ["x", "-", "5-", "5-5", "1-١", "9" * 300, "-1"])
async def test_a_cursor_of_another_stream_is_refused(bus: Bus, cursor: str) -> None:
    await refuse(bus, 0)
    with pytest.raises(Rejected, match="cursor"):
        await RejectedHistory(bus).page(limit=1, cursor=cursor)


async def test_a_letter_shows_its_reporter_and_its_record(bus: Bus) -> None:
    await refuse(bus, 7, span={"name": "answer", "prompt_tokens": 5})
    await refuse(bus, 8, batch="request.00", size_bytes=5, sha256="ab")
    second, first = (stored.letter for stored in (await RejectedHistory(bus).page(limit=5)).items)
    assert (first.reporter, first.record) == ("shop", {"name": "answer", "prompt_tokens": 5})
    assert (second.reporter, second.record, second.size_bytes, second.sha256) == ("", None, 5, "ab")
