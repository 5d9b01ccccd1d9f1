"""
Many processes on one shared budget of one dollar while the broker is killed and acknowledgements are lost.

Each worker makes calls at a random reservation and a random cost below it, and reports a span for each call. In the end
the spans, which are stored beside the budget, and the key of the budget must agree to the nano-dollar.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.budgets import is_acknowledgement, read_key
from kit.examples import SEED, WHOLE
from kit.peers import CuttingProxy
from kit.raw_stream import create_streams, read_raw
from kit.reporting import WAIT_S, until
from tokentrace import BudgetUnavailable, SharedBudget
from tokentrace.units import NUSD_PER_USD

WORKERS, KILLS = (20, 20) if WHOLE else (6, 4)
#: One acknowledgement of so many is lost, with its connection.
LOST_ONE_OF = 12

WORKER = """
import os, random, sys, time
from tokentrace import BudgetExceeded, BudgetUnavailable, Reporter, SharedBudget, Span
number, budget_url, reporter_url, hurry = sys.argv[1:]
dice = random.Random(int(number))
team = SharedBudget("team", 1, url=budget_url, if_unavailable="refuse")
reporter = Reporter(f"worker-{number}", reporter_url)
calls = refused = unavailable = 0
while refused < 3:
    hurrying = os.path.exists(hurry)
    reserved = dice.randrange(1, 40_000_000 if hurrying else 400_000)
    try:
        lease = team.reserve(reserved / 1e9)
    except BudgetUnavailable:
        unavailable += 1
        time.sleep(0.02)
        continue
    except BudgetExceeded:
        refused += 1
        time.sleep(0.1)
        continue
    if not hurrying:
        time.sleep(dice.random() * 0.05)
    if dice.random() < 0.1:
        lease.release()
        continue
    cost = dice.randrange(reserved + 1)
    lease.commit(cost / 1e9, wait=dice.random() < 0.5)
    reporter.report(Span(name=number, kind="tool", cost_nusd=cost, cost_source="reported"))
    calls += 1
assert team.flush(120), team.stats()
assert team.stats().lost == 0
assert reporter.flush(120)
reporter.close()
team.close()
print(calls, unavailable)
"""


def watch(url: str, seen: list[float], over: threading.Event) -> None:
    """Read the budget until *over* is set; append what is spent and reserved together, in US dollars."""
    team = SharedBudget("team", 1, url=url, if_unavailable="refuse")
    while not over.wait(0.05):
        try:
            state = team.state()
            seen.append(state.spent_usd + state.reserved_usd)
        except BudgetUnavailable:
            continue
    team.close(0)


def has_more(seen: list[float], before: float) -> bool:
    """Return True once something else was seen than *before*, the sum of what was seen until then."""
    return sum(seen) > before


@pytest.mark.story
def test_many_processes_share_one_dollar_to_the_nano_dollar(broker: Broker, tmp_path: Path) -> None:
    create_streams(broker.url)
    dice, hurry, seen, over = random.Random(SEED), tmp_path / "hurry", list[float](), threading.Event()
    watching = threading.Thread(target=watch, args=(broker.url, seen, over))
    with ExitStack() as stack:
        # Every second worker reaches the broker through a proxy that loses acknowledgements.
        proxies = [stack.enter_context(CuttingProxy(broker.port)) for _ in range(WORKERS // 2)]
        for proxy in proxies:
            proxy.cut = lambda data: is_acknowledgement(data) and random.randrange(LOST_ONE_OF) == 0
        urls = [broker.url] * (WORKERS - len(proxies)) + [f"nats://127.0.0.1:{proxy.port}" for proxy in proxies]
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(dice.randrange(10**6)), url, broker.url, str(hurry)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for url in urls
        ]
        for worker in workers:
            stack.callback(worker.kill)
        watching.start()
        stack.callback(watching.join)
        stack.callback(over.set)
        for _ in range(KILLS):
            until(partial(has_more, seen, sum(seen)), "another commit")
            time.sleep(dice.random() * 0.5)
            broker.kill()
            time.sleep(dice.random() * 0.8)
            broker.start()
        hurry.touch()
        outputs = [worker.communicate(timeout=10 * WAIT_S) for worker in workers]
        # Their warnings that the broker is away go to stderr.
        failed = [errors for worker, (_, errors) in zip(workers, outputs, strict=True) if worker.returncode]
        assert failed == []
        assert not [errors for _, errors in outputs if "Traceback" in errors]
        cuts = sum(proxy.cuts for proxy in proxies)
        over.set()
        watching.join()
        ledger = read_key(broker.url, "default.team")
        stored = {message.id: message.batch for message in read_raw(broker.url)}
        told = sum(span.cost_nusd or 0 for batch in stored.values() for span in batch.spans)
        calls = sum(int(output.split()[0]) for output, _ in outputs)
        spans = sum(len(batch.spans) for batch in stored.values())
    print(f"{calls} calls, {cuts} lost acknowledgements, {KILLS} kills, {len(seen)} looks, {ledger.spent} nano-dollars")
    assert spans == calls > KILLS
    assert ledger.leases == {}
    assert ledger.spent == told <= NUSD_PER_USD
    assert cuts > 0
    assert max(seen) <= 1.0
    # The budget was used up: less is left than the largest reservation of a worker in a hurry.
    assert ledger.spent > NUSD_PER_USD - 40_000_000
