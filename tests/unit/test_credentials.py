"""The token and the keys that a server takes: which are good, for how long, and what happens without the broker."""

from __future__ import annotations

import asyncio
import secrets

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.access import ID_BYTES, SECRET_BYTES, ApiKey, make_key
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import load
from tokentrace.errors import Conflict, Rejected
from tokentrace.service import credentials as module
from tokentrace.service.bootstrap import bootstrap
from tokentrace.service.credentials import (
    Credentials,
    OverRate,
    change_key,
    encode_key,
    read_keys,
    read_uses,
    record_of,
)


async def make_bus() -> tuple[MemoryBroker, MemoryBus]:
    broker = MemoryBroker()
    bus = MemoryBus(broker)
    await bootstrap(bus, load(None))
    return broker, bus


async def add(bus: MemoryBus, *scopes: str, project: str = "default", lasts_ns: int = 0) -> tuple[bytes, ApiKey]:
    now_ns = bus.clock.now_ns()
    random = secrets.token_bytes(ID_BYTES + SECRET_BYTES)
    expires_ns = now_ns + lasts_ns if lasts_ns else 0
    text, key = make_key("shop", project, scopes or ("read",), random=random, now_ns=now_ns, expires_ns=expires_ns)
    await bus.kv(subjects.KEYS).create(record_of(key.id), encode_key(key))
    return text.encode(), key


async def test_without_a_token_and_keys_nothing_is_needed_and_the_first_key_changes_that() -> None:
    _, bus = await make_bus()
    credentials = Credentials(bus=bus)
    await credentials.read()
    assert not credentials.needed
    text, key = await add(bus, "ingest")
    await credentials.read()
    assert credentials.needed
    assert credentials.find(text).scopes == ("ingest",)
    await change_key(bus, key.id, revoked_ns=bus.clock.now_ns())
    await credentials.read()
    # The last key is revoked, and the server stays closed.
    assert credentials.needed
    with pytest.raises(Rejected, match=f"key {key.id}: is revoked") as refused:
        credentials.find(text)
    assert refused.value.status == 401


async def test_a_wrong_secret_under_a_good_id_is_as_wrong_as_any_text() -> None:
    _, bus = await make_bus()
    credentials = Credentials("the-token", bus=bus)
    text, key = await add(bus)
    await credentials.read()
    other = text[:-1] + (b"A" if text[-1:] != b"A" else b"B")
    for wrong in (other, b"", b"the-toke", b"the-token ", text + b"A", f"tt_{key.id}_".encode(), b"\xff" * 40):
        with pytest.raises(Rejected, match="missing or wrong bearer token"):
            credentials.find(wrong)
    assert credentials.find(b"the-token").id == module.TOKEN_ID


async def test_a_key_ends_at_its_instant_without_being_read_again() -> None:
    _, bus = await make_bus()
    credentials = Credentials(bus=bus)
    text, _ = await add(bus, lasts_ns=50_000_000)
    await credentials.read()
    credentials.find(text)
    await asyncio.sleep(0.06)
    with pytest.raises(Rejected, match="has expired"):
        credentials.find(text)


async def test_a_key_of_another_project_is_refused_by_name() -> None:
    _, bus = await make_bus()
    credentials = Credentials(bus=bus)
    text, _ = await add(bus, project="other")
    await credentials.read()
    with pytest.raises(Rejected, match="is of the project other, and this is default") as refused:
        credentials.find(text)
    assert refused.value.status == 403


async def test_what_a_key_does_not_allow_is_said_with_the_scope_that_is_missing() -> None:
    _, bus = await make_bus()
    credentials = Credentials(bus=bus)
    text, key = await add(bus, "ingest")
    await credentials.read()
    with pytest.raises(Rejected, match=f"key {key.id}: has no scope admin, which PUT /alerts/a needs") as refused:
        credentials.find(text).check("admin", "PUT /alerts/a")
    assert refused.value.status == 403


async def test_while_the_broker_is_away_the_keys_that_were_read_last_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    broker, bus = await make_bus()
    credentials, stopping = Credentials(bus=bus), asyncio.Event()
    text, key = await add(bus)
    await credentials.read()
    following = asyncio.create_task(credentials.follow(stopping))
    broker.up = False
    await asyncio.sleep(0.05)
    credentials.find(text)
    broker.up = True
    await change_key(bus, key.id, revoked_ns=bus.clock.now_ns())
    for _ in range(200):
        await asyncio.sleep(0.01)
        try:
            credentials.find(text)
        except Rejected:
            break
    else:
        raise AssertionError("the key is still good")
    stopping.set()
    await following


async def test_the_last_use_is_written_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    _, bus = await make_bus()
    credentials, stopping = Credentials(bus=bus), asyncio.Event()
    text, key = await add(bus)
    await credentials.read()
    before = bus.clock.now_ns()
    credentials.find(text)
    following = asyncio.create_task(credentials.follow(stopping))
    for _ in range(100):
        await asyncio.sleep(0.01)
        credentials.find(text)
    stopping.set()
    await following
    entries = await bus.kv(subjects.KEYS).items()
    assert before <= read_uses(entries)[key.id] <= bus.clock.now_ns()
    assert (await bus.state(f"KV_{subjects.KEYS}")).last_sequence == 2


async def test_records_that_are_no_keys_are_set_aside_and_the_others_count() -> None:
    _, bus = await make_bus()
    credentials = Credentials(bus=bus)
    text, key = await add(bus)
    bucket = bus.kv(subjects.KEYS)
    for name, value in {
        "key.0000000000": b"rubbish",
        "key.1111111111": b"{}",
        "key.2222222222": encode_key(key),
        "used.x": b"-1",
        "other": b"x",
    }.items():
        await bucket.put(name, value)
    await credentials.read()
    assert credentials.find(text).id == key.id
    assert bus.set_aside.totals == {subjects.KEYS: 3}
    await bucket.delete(record_of(key.id))
    await credentials.read()
    # What is left cannot be read, but does not open the server either.
    assert credentials.needed


async def test_two_commands_that_change_a_key_at_once_do_not_overwrite_each_other() -> None:
    _, bus = await make_bus()
    _, key = await add(bus)
    done = await asyncio.gather(
        change_key(bus, key.id, revoked_ns=5), change_key(bus, key.id, expires_ns=7), return_exceptions=True
    )
    entries = await bus.kv(subjects.KEYS).items()
    kept = read_keys(bus, entries)[key.id]
    conflicts = [each for each in done if isinstance(each, Conflict)]
    assert len(conflicts) == 1
    assert (kept.revoked_ns, kept.expires_ns) in ((5, 0), (0, 7))
    with pytest.raises(Rejected, match="there is no such key"):
        await change_key(bus, "0" * 10, revoked_ns=1)


@given(
    rate=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 3, allow_nan=False).map(lambda pause: round(pause, 3)), min_size=1, max_size=200),
)
def test_in_no_stretch_of_time_is_a_key_used_more_often_than_its_rate_allows(rate: int, pauses: list[float]) -> None:
    async def story() -> list[float]:
        _, bus = await make_bus()
        now = 0.0
        credentials = Credentials(bus=bus, elapsed=lambda: now)
        text, key = await add(bus)
        await bus.kv(subjects.KEYS).put(record_of(key.id), encode_key(msgspec.structs.replace(key, rate=rate)))
        await credentials.read()
        taken = []
        for pause in pauses:
            now += pause / rate
            try:
                credentials.find(text)
            except OverRate as exc:
                refusals.add((exc.status, exc.retry_after_s))
            else:
                taken.append(now)
        return taken

    refusals: set[tuple[int, int]] = set()
    taken = asyncio.run(story())
    assert taken
    assert refusals <= {(429, 1)}
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            # A second's worth may be saved up, and the rest comes at the rate.
            assert last - first + 1 <= rate + (taken[last] - taken[first]) * rate + 1e-6


async def test_keys_that_are_made_and_revoked_are_in_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tokentrace.audit")
    _, bus = await make_bus()
    await add(bus)
    credentials = Credentials(bus=bus)
    await credentials.read()
    assert not caplog.records  # what was there at the start is no news
    _, key = await add(bus)
    await credentials.read()
    await change_key(bus, key.id, revoked_ns=1)
    await credentials.read()
    told = [record.getMessage() for record in caplog.records if record.name == "tokentrace.audit"]
    assert len(told) == 2
    assert f"the key {key.id} was made" in told[0]
    assert f"the key {key.id} was revoked" in told[1]
