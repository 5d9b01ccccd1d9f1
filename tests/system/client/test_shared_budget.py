"""``SharedBudget`` on a real broker: one limit for many processes, whatever is lost on the way."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from kit.broker import Broker
from kit.budgets import delete_key, is_acknowledgement, keys_of, read_key, write_key
from kit.peers import CuttingProxy
from kit.pipeline import free_port
from kit.programs import assert_ended, run_program
from kit.raw_stream import create_streams
from kit.reporting import WAIT_S, until
from tokentrace import BudgetExceeded, BudgetUnavailable, ConfigError, Rejected, SharedBudget
from tokentrace.client.money.shared_budget import account
from tokentrace.client.money.shared_budget.ledger import Ledger
from tokentrace.units import NUSD_PER_USD

KEY = "default.team"
Open = Callable[..., SharedBudget]


@pytest.fixture
def url(broker: Broker) -> str:
    """Return the URL of a broker with all buckets."""
    create_streams(broker.url)
    return broker.url


@pytest.fixture
def budget() -> Iterator[Open]:
    """Yield a function that makes the budget ``team`` of one dollar, which is closed after the test."""
    budgets = []

    def make(url: str, **arguments: Any) -> SharedBudget:
        arguments = {"name": "team", "max_usd": 1.0, "if_unavailable": "refuse", **arguments}
        budgets.append(SharedBudget(url=url, **arguments))
        return budgets[-1]

    yield make
    for one in budgets:
        one.close(0)


def patiently(use: Callable[[], Any]) -> Any:
    """Return what *use* returns; on a busy machine the broker may not answer in time, so try again."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return use()
        except BudgetUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_two_budgets_of_one_name_have_one_limit(url: str, budget: Open) -> None:
    here, there = budget(url), budget(url)
    lease = patiently(lambda: here.reserve(0.7))
    with pytest.raises(BudgetExceeded, match=r"budget team: 0\.00 USD spent and 0\.70 USD reserved") as error:
        patiently(lambda: there.reserve(0.4))
    assert (error.value.asked_usd, error.value.max_usd, error.value.name) == (0.4, 1.0, "team")
    lease.commit(0.25)
    assert patiently(there.state) == (0.25, 0.0, 1.0)
    patiently(lambda: there.reserve(0.75)).release()
    assert read_key(url, KEY).spent == 250_000_000
    assert here.stats() == (0, 0, 0, 0.0)


def test_a_block_ends_its_lease(url: str, budget: Open) -> None:
    team = budget(url)
    with patiently(lambda: team.call(0.3)) as lease:
        lease.commit(0.1)
    with team.call(0.2):
        pass
    with pytest.raises(KeyError), team.call(0.2):
        raise KeyError
    assert team.flush(WAIT_S)
    assert patiently(team.state) == (0.3, 0.0, 1.0)


@pytest.mark.parametrize("lost", ["reserve", "commit", "both"])
def test_a_lost_acknowledgement_is_resolved_by_reading(lost: str, url: str, broker: Broker, budget: Open) -> None:
    with CuttingProxy(broker.port) as proxy:
        team = budget(f"nats://127.0.0.1:{proxy.port}")
        patiently(team.state)
        losing = {"reserve": 1, "commit": 0, "both": 1}[lost]
        proxy.cut = lambda data: is_acknowledgement(data) and proxy.cuts < losing
        try:
            lease = team.reserve(0.5)
        except BudgetUnavailable:
            until(lambda: team.stats().waiting == 0, "the reservation released")
            assert read_key(url, KEY).leases == {}
            lease = patiently(lambda: team.reserve(0.5))
        losing = 1 if lost != "both" else 2
        lease.commit(0.125)
        assert team.flush(WAIT_S)
        assert proxy.cuts == losing
        ledger = read_key(url, KEY)
        assert (ledger.spent, ledger.leases, ledger.done) == (125_000_000, {}, [lease.id])
        team.close(0)


def test_a_broker_that_is_away_refuses_calls_and_keeps_what_was_committed(
    url: str, broker: Broker, budget: Open, caplog: pytest.LogCaptureFixture
) -> None:
    team = budget(url)
    lease = patiently(lambda: team.reserve(0.5))
    broker.kill()
    with pytest.raises(BudgetUnavailable, match="budget team: "):
        team.reserve(0.1)
    with pytest.raises(BudgetUnavailable):
        team.state()
    lease.commit(0.4)
    assert (lease.ended, team.stats().waiting) == (True, 1)
    broker.start()
    assert team.flush(WAIT_S)
    until(lambda: read_key(url, KEY).leases == {}, "the withdrawn reservation gone")
    assert patiently(team.state) == (0.4, 0.0, 1.0)
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [text for text in warnings if "calls are refused" in text] == warnings
    assert len(warnings) == 1


def test_calls_that_were_allowed_are_counted_and_committed_when_the_broker_is_back(
    url: str, broker: Broker, budget: Open
) -> None:
    team = budget(url, if_unavailable="allow")
    patiently(lambda: team.reserve(0.25)).commit(0.25)
    broker.kill()
    first, second = team.reserve(0.4), team.reserve(0.3)
    with pytest.raises(BudgetExceeded, match=r"0\.25 USD spent and 0\.70 USD reserved"):
        team.reserve(0.1)
    first.commit(0.35)
    second.release()
    team.reserve(0.3).commit(0.3)
    assert (team.stats().allowed, read_spent(team)) == (3, None)
    broker.start()
    assert team.flush(WAIT_S)
    assert patiently(team.state) == (0.9, 0.0, 1.0)


def read_spent(team: SharedBudget) -> float | None:
    """Return what is spent, or None if the broker does not answer."""
    try:
        return team.state().spent_usd
    except BudgetUnavailable:
        return None


def test_more_costs_than_can_wait_are_counted_as_lost(
    url: str, broker: Broker, budget: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(account, "MAX_WAITING", 20)
    team = budget(url, if_unavailable="allow")
    patiently(team.state)
    broker.kill()
    for _ in range(25):
        team.reserve(0.01).commit(0.01)
    assert team.stats() == (20, 25, 5, 0.05)
    broker.start()
    assert team.flush(WAIT_S)
    assert patiently(team.state).spent_usd == 0.2
    team.close()
    assert "budget team: more than 20 costs wait, and further ones are lost" in caplog.messages
    assert "budget team: 5 costs were never stored, in all 0.05 USD" in caplog.messages


@pytest.mark.parametrize(("on_lost", "spent"), [("spent", 0.7), ("released", 0.0)])
def test_the_lease_of_a_killed_process_counts_as_asked_once_it_has_expired(
    on_lost: Any, spent: float, url: str, budget: Open
) -> None:
    killed = run_program(
        "from tokentrace import SharedBudget\n"
        "SharedBudget('team', 1, url=url, if_unavailable='refuse').reserve(0.7)\n"
        "os.kill(os.getpid(), 9)\n",
        url,
        forks=True,
    )
    assert killed.returncode == -9, killed.stderr
    held = read_key(url, KEY)
    ((lease_id, (amount, _)),) = held.leases.items()
    assert amount == 700_000_000
    team = budget(url, on_lost=on_lost)
    with pytest.raises(BudgetExceeded):
        patiently(lambda: team.reserve(0.4))
    write_key(url, KEY, Ledger(1, held.limit, leases={lease_id: (amount, time.time_ns() - 61 * 10**9)}))
    patiently(lambda: team.reserve(0.1)).release()
    assert patiently(team.state) == (spent, 0.0, 1.0)
    assert read_key(url, KEY).lost == {lease_id: int(spent * NUSD_PER_USD)}


def test_a_lease_is_renewed_until_its_owner_forgets_it(url: str, budget: Open) -> None:
    team = budget(url, lease_s=10)
    lease, forgotten = (patiently(lambda: team.reserve(0.1)) for _ in range(2))
    before = read_key(url, KEY).leases
    forgotten_id = forgotten.id
    del forgotten
    gc.collect()
    until(lambda: read_key(url, KEY).leases[lease.id][1] > before[lease.id][1], "renewed")
    assert read_key(url, KEY).leases[forgotten_id] == before[forgotten_id]
    lease.release()


def test_a_deleted_key_starts_at_zero_with_a_warning(url: str, budget: Open, caplog: pytest.LogCaptureFixture) -> None:
    team = budget(url)
    patiently(lambda: team.reserve(0.5)).commit(0.5)
    lease = patiently(lambda: team.reserve(0.5))
    delete_key(url, KEY)
    patiently(lambda: team.reserve(1)).release()
    lease.commit(0.125)
    assert team.flush(WAIT_S)
    assert patiently(team.state) == (0.125, 0.0, 1.0)
    assert [text for text in caplog.messages if "was deleted" in text] == [
        "budget team: its key default.team was deleted, and it starts at 0"
    ]


def test_the_smaller_limit_counts_with_one_warning(url: str, budget: Open, caplog: pytest.LogCaptureFixture) -> None:
    patiently(lambda: budget(url, max_usd=0.5).reserve(0.1)).release()
    team = budget(url)
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match=r"the limit is 0\.50 USD"):
            patiently(lambda: team.reserve(0.6))
    assert caplog.messages.count("budget team: the limit is 1.0 USD here and was 0.5 USD: the smaller one counts") == 1


def test_a_raised_limit_counts_once_it_is_reset(url: str, budget: Open) -> None:
    patiently(lambda: budget(url, max_usd=0.5).reserve(0.1)).commit(0.1)
    team = budget(url)
    patiently(team.reset_limit)
    assert patiently(team.state) == (0.1, 0.0, 1.0)


def test_a_new_period_removes_the_key_of_one_long_ago(url: str, budget: Open) -> None:
    long_ago, kept = (datetime.now(UTC) - timedelta(days=days) for days in (3, 2))
    for start in (long_ago, kept):
        write_key(url, f"{KEY}.{start:%Y-%m-%dT%H}", Ledger(1, 5))
    patiently(lambda: budget(url, period="hour").reserve(0.5)).commit(0.5)
    until(lambda: len(keys_of(url)) == 2, "the old key removed")
    assert keys_of(url)[0] == f"{KEY}.{kept:%Y-%m-%dT%H}"


@pytest.mark.parametrize("if_unavailable", ["allow", "refuse"])
@pytest.mark.parametrize(("value", "reason"), [(b'{"v":2}', "version 2"), (b"rubbish", "not the state of a budget")])
def test_a_value_of_a_later_version_or_rubbish_refuses_calls(
    if_unavailable: Any, value: bytes, reason: str, url: str, budget: Open, caplog: pytest.LogCaptureFixture
) -> None:
    write_key(url, KEY, value)
    team = budget(url, if_unavailable=if_unavailable)
    with pytest.raises(BudgetUnavailable, match=reason):
        until(lambda: not team.reserve(0.1), "refused")
    assert any(reason in text for text in caplog.messages)
    write_key(url, KEY, Ledger(1, NUSD_PER_USD))
    patiently(lambda: team.reserve(0.1)).release()


def test_a_broker_without_the_bucket_is_named(broker: Broker, budget: Open) -> None:
    with pytest.raises(BudgetUnavailable, match="tt_budgets"):
        budget(broker.url).reserve(0.1)


def test_a_closed_port_is_named_and_the_password_is_not(budget: Open) -> None:
    port = free_port()
    with pytest.raises(BudgetUnavailable) as error:
        budget(f"nats://user:hunter2@127.0.0.1:{port}").reserve(0.1)
    assert f"nats://127.0.0.1:{port}" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_the_documented_permissions_are_enough_and_all_are_needed(broker: Broker, budget: Open) -> None:
    publish = ["$KV.tt_budgets.>", "$JS.API.STREAM.MSG.GET.KV_tt_budgets"]
    create_streams(broker.url)
    broker.kill()
    users = ['{user: all, password: "p"}']
    for number, allowed in enumerate([publish, publish[:1], publish[1:]]):
        quoted = ", ".join(f'"{subject}"' for subject in allowed)
        permissions = f'{{publish: [{quoted}], subscribe: ["_INBOX.>"]}}'
        users.append(f'{{user: u{number}, password: "p", permissions: {permissions}}}')
    broker.extra = f"authorization {{users: [{', '.join(users)}]}}\n"
    broker.start()
    address = broker.url.removeprefix("nats://")
    team = budget(broker.url, user="u0", password="p")
    patiently(lambda: team.reserve(0.5)).commit(0.25)
    assert patiently(team.state).spent_usd == 0.25
    for number in (1, 2):
        with pytest.raises(BudgetUnavailable, match="may this user read and write it"):
            budget(f"nats://u{number}:p@{address}").reserve(0.1)


def test_each_period_has_a_key_of_its_own_and_names_are_escaped(url: str, budget: Open) -> None:
    for period in ("hour", "day", "month"):
        team = budget(url, name="a.b c", period=period, project="p.q")
        patiently(lambda: team.reserve(1)).release()  # noqa: B023 - called at once
    hour, day, month = sorted(keys_of(url), key=len, reverse=True)
    assert hour.startswith(f"{day}T")
    assert day.startswith(f"{month}-")
    assert month.rpartition(".")[0] == "p=2Eq.a=2Eb=20c"


async def test_event_loops_may_come_and_go_and_a_cancelled_reservation_is_given_back(url: str, budget: Open) -> None:
    team = budget(url)

    async def use() -> None:
        for _ in range(100):
            try:
                async with team.acall(0.1) as lease:
                    await lease.acommit(0.01)
                return
            except BudgetUnavailable:
                await asyncio.sleep(0.05)

    for _ in range(3):
        await asyncio.to_thread(asyncio.run, use())
    assert (await asyncio.to_thread(patiently, team.state)).spent_usd == 0.03

    async def abandon(pause_s: float) -> None:
        task = asyncio.create_task(team.areserve(0.5))
        await asyncio.sleep(pause_s)
        if not task.cancel() and task.exception() is None:
            task.result().release(wait=False)  # it was granted before

    for pause_s in (0, 0.001, 0.003):
        await abandon(pause_s)
        await asyncio.to_thread(asyncio.run, abandon(pause_s))
    await asyncio.to_thread(until, lambda: team.stats().waiting == 0, "all stored")
    await asyncio.to_thread(until, lambda: patiently(team.state) == (0.03, 0.0, 1.0), "nothing reserved")


def test_threads_share_a_budget_and_nothing_is_lost(url: str, budget: Open) -> None:
    team, each, threads = budget(url, max_usd=10), 20, 16
    done = [0] * threads

    def work(number: int) -> None:
        for _ in range(each):
            patiently(lambda: team.reserve(0.01)).commit(0.001)
            done[number] += 1

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    assert team.flush(WAIT_S)
    assert patiently(team.state) == (0.32, 0.0, 10.0)
    assert sum(done) == each * threads


def test_a_forked_child_and_a_pickled_copy_use_the_same_budget(url: str) -> None:
    done = run_program(
        """
import pickle
from tokentrace import BudgetUnavailable, SharedBudget
team = SharedBudget("team", 1, url=url, if_unavailable="refuse")
def spend(budget):
    while True:
        try:
            budget.reserve(0.25).commit(0.125)
            return
        except BudgetUnavailable:
            time.sleep(0.05)
spend(team)
inherited = team.reserve(0.25)
child = os.fork()
if child == 0:
    spend(team)
    inherited.commit(0.25)
    assert team.flush(20)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
spend(pickle.loads(pickle.dumps(team)))
spend(team)
assert team.flush(20)
print(team.state())
""",
        url,
        forks=True,
    )
    assert_ended(done)
    assert read_key(url, KEY).spent == 750_000_000


def test_what_a_program_commits_at_its_end_is_stored(url: str) -> None:
    done = run_program(
        """
from tokentrace import SharedBudget
team = SharedBudget("team", 1, url=url, if_unavailable="allow")
for _ in range(50):
    team.reserve(0.01).commit(0.005, wait=False)
""",
        url,
    )
    assert_ended(done)
    ledger = read_key(url, KEY)
    assert (ledger.spent, ledger.leases) == (250_000_000, {})


def test_a_budget_that_is_closed_or_forgotten_closes_its_connection(url: str, broker: Broker, budget: Open) -> None:
    team = budget(url)
    patiently(team.state)
    forgotten = SharedBudget("other", 1, url=url, if_unavailable="refuse")
    patiently(forgotten.state)
    connections = account_connections()
    team.close()
    assert account_connections() == connections == 1
    del forgotten
    gc.collect()
    until(lambda: account_connections() == 0, "closed")
    patiently(team.state)  # it connects again
    assert account_connections() == 1


def account_connections() -> int:
    """Return how many connections of budgets this process has."""
    from tokentrace.client.money.shared_budget.link import link

    return len(link()._connections)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"name": ""}, "1 to 128 characters"),
        ({"name": "x" * 129}, "1 to 128 characters"),
        ({"max_usd": -1}, "max_usd"),
        ({"url": "http://127.0.0.1:1"}, "url: it must start with nats://"),
        ({"url": ""}, "neither url nor TOKENTRACE_URL is set"),
        ({"url": "nats://"}, "the URL must start with nats://"),
        ({"url": "nats://:1"}, "NATS URL"),
        ({"if_unavailable": "perhaps"}, "if_unavailable: 'perhaps' is none of 'allow', 'refuse'"),
        ({"period": "week"}, "period: 'week'"),
        ({"on_lost": "kept"}, "on_lost: 'kept'"),
        ({"lease_s": 5}, "lease_s: 5"),
        ({"project": "ü" * 400}, "project"),
        ({"user": "u", "token": "t"}, "user and token are given"),
        ({"ca": "/no/such/file"}, "ca: /no/such/file is not a file"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(wrong: dict[str, Any], text: str) -> None:
    arguments = {"name": "team", "max_usd": 1, "url": "nats://127.0.0.1:4222", "if_unavailable": "refuse", **wrong}
    with pytest.raises(ConfigError) as error:
        SharedBudget(**arguments)
    assert text in str(error.value)


def test_the_url_may_come_from_the_environment(url: str, budget: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENTRACE_URL", url)
    monkeypatch.setenv("TOKENTRACE_PROJECT", "p")
    team = pickle.loads(pickle.dumps(SharedBudget("team", 1, if_unavailable="refuse")))
    assert patiently(team.state) == (0.0, 0.0, 1.0)
    with pytest.raises(Rejected, match="usd"):
        team.reserve(-1)
    patiently(lambda: team.reserve(0.5)).commit(0.5)
    assert keys_of(url) == ["p.team"]
    team.close()


def test_green_threads_in_place_of_threads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gevent is not among the packages of the tests, so its answer is written here."""
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True))
    with pytest.raises(ConfigError, match="gevent"):
        SharedBudget("team", 1, url="nats://127.0.0.1:4222", if_unavailable="refuse")
