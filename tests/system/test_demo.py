"""``tokentrace demo``: the same seed sends the same calls, a history fills every page, and everything can be ended."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.environment import PATIENCE
from kit.pipeline import ROOT, Pipeline, free_port, http
from kit.sessions import details, listed, summary
from tokentrace.rollup import HORIZON_NS
from tokentrace.units import DAY
from tokentrace_standalone.demo_history import busyness, condition_at, request_ages, requests_in
from tokentrace_standalone.demo_rules import PREFIX, RULES, SILENCED
from tokentrace_standalone.demo_traffic import VERSIONS, Request, Traffic

IDS_AND_TIMES = (
    "trace_id",
    "span_id",
    "parent_span_id",
    "session_id",
    "timestamp",
    "started_at",
    "ended_at",
    "start_ns",
    "end_ns",
)
NOON_NS = 1_800_000_000 * 10**9
#: The pages of the page, and the answers that fill them; each must have the key, and something under it.
ANSWERS = (
    ("/metrics?window=1h", "span_count"),
    ("/metrics?window=7d", "span_count"),
    ("/metrics/cost/series?window=7d&step=6h", "points"),
    ("/metrics/cost_by_caller?window=7d", "value"),
    ("/traces?status=error", "traces"),
    ("/traces?kind=embedding", "traces"),
    ("/traces?q=connection%20reset", "traces"),
    ("/traces?attr.version=2.4.0", "traces"),
    ("/values?key=attr.version&window=7d", "values"),
    ("/values?key=user_id&window=7d", "values"),
    ("/values?key=attr.eval.helpfulness&window=7d", "values"),
    ("/alerts/events", "events"),
    ("/rejected", "rejected"),
    ("/reporters", "reporters"),
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("demo"))
    serving.start()
    yield serving
    serving.stop()


def demo(*flags: str) -> str:
    """Run the demo, check that it ends with exit code 0, and return its output."""
    command = [sys.executable, "-m", "tokentrace_standalone", "demo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def spans(pipeline: Pipeline) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pipeline.get("/export?format=jsonl").body.splitlines()]


def shown(span: dict[str, Any]) -> str:
    """Return all that a seed decides of a span."""
    return json.dumps({key: value for key, value in span.items() if key not in IDS_AND_TIMES}, sort_keys=True)


def run(pipeline: Pipeline, seed: int, *flags: str) -> list[dict[str, Any]]:
    """Run the demo for a second of its schedule, and return the spans that came."""
    before = {span["span_id"] for span in spans(pipeline)}
    output = demo("--url", pipeline.nats_url, "--seed", str(seed), "--for", "1s", *flags)
    [line] = [line for line in output.splitlines() if "accepted" in line][-1:]
    sent = int(line.split(" of ")[1].split()[0])
    pipeline.until(lambda: len(spans(pipeline)) == len(before) + sent, "all stored")
    pipeline.until(lambda: pipeline.get("/stats").json()["total_spans"] == len(before) + sent, "all counted")
    return [span for span in spans(pipeline) if span["span_id"] not in before]


def test_the_same_seed_sends_the_same_calls_again_and_they_count_again(pipeline: Pipeline) -> None:
    first, second, other = (run(pipeline, seed, "--rate", "60") for seed in (7, 7, 8))
    assert len(first) > 60
    assert Counter(map(shown, first)) == Counter(map(shown, second))
    assert Counter(map(shown, first)) != Counter(map(shown, other))
    assert sum(span["cost_usd"] for span in first) > 0
    assert len({span["trace_id"] for span in first} & {span["trace_id"] for span in second}) == 0


def test_the_same_seed_makes_the_same_past(pipeline: Pipeline) -> None:
    first, second, other = (run(pipeline, seed, "--rate", "0.01", "--history", "2d") for seed in (7, 7, 8))
    assert len(first) > 500
    assert Counter(map(shown, first)) == Counter(map(shown, second))
    assert Counter(map(shown, first)) != Counter(map(shown, other))
    assert {span["attributes"]["version"] for span in first} >= {version for _, version in VERSIONS[1:]}


def test_a_history_fills_every_page_and_its_rules_can_be_removed(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        output = demo("--url", serving.url, "--history", "7d", "--rate", "0.01", "--for", "25s")
        assert "demo-hourly-cost" in output
        serving.until(lambda: serving.get("/alerts/events").json()["events"], "a rule has fired")
        for path, key in ANSWERS:
            answer = serving.get(path)
            assert answer.status == 200, (path, answer.body)
            assert answer.json()[key], path
        hours = serving.get("/metrics/span_count/series?window=7d&step=1h").json()["points"]
        counts = [point["value"] for point in hours]
        assert len(counts) > 160
        assert max(counts) > 5 * (sorted(counts)[len(counts) // 5] + 1), "nights are quiet"
        assert_sessions(serving)
        assert_rules(serving)
        assert "removed: demo-" in demo("--remove-rules", "--api", serving.url)
        serving.until(lambda: serving.get("/alerts").json() == [], "the rules are gone")
    finally:
        serving.stop()


def assert_sessions(serving: Pipeline) -> None:
    """Check that there are sessions of each status, an open span, messages, and a tree of at least three levels."""
    totals = summary(serving)
    assert min(totals["activeSessions"], totals["completedSessions"], totals["errorSessions"]) > 0
    assert listed(serving, label="refund")["total"] > 0
    assert max(session["openSpans"] for session in listed(serving, label="Report", limit=100)["sessions"]) == 1
    deepest = listed(serving, label="battery", order="spans")["sessions"][0]["sessionId"]
    nodes = serving.get(f"/api/sessions/{deepest}/graph").json()["nodes"]
    assert max(node["depth"] for node in nodes) >= 3
    assert {message["role"] for message in details(serving, deepest)["messages"]} == {"user", "assistant"}


def assert_rules(serving: Pipeline) -> None:
    """Check that the rules are those of the demo, and that they are in several states."""
    rules = {rule["name"]: rule for rule in serving.get("/alerts").json()}
    assert rules.keys() == {rule["name"] for rule in RULES}
    assert all(name.startswith(PREFIX) for name in rules)
    assert len({rule["state"] for rule in rules.values()}) > 1
    assert rules[SILENCED]["silenced"]
    assert {rule["destination"] for rule in rules.values()} == {None, "http://127.0.0.1:9/..."}


@pytest.mark.parametrize("state", ["normal", "slow", "spike", "outage"])
def test_a_request_depends_on_the_dice_the_schedule_and_the_condition_only(state: str) -> None:
    def told(seed: int, now_ns: int) -> list[tuple[Any, ...]]:
        traffic = Traffic(random.Random(seed))
        requests = [traffic.request(now_ns, state, float(number)) for number in range(50)]
        return [value for request in requests for value in values_of(request)]

    assert told(1, NOON_NS) == told(1, NOON_NS + 12345 * 10**9)
    assert told(1, NOON_NS) != told(2, NOON_NS)


def values_of(request: Request) -> Iterator[tuple[Any, ...]]:
    """Yield what does not depend on ids and times."""
    for one in request.spans:
        yield one.name, one.model, one.status, one.prompt_tokens, one.latency_ns, one.user_id, str(one.attributes)
    yield request.service, [(message.role, message.content) for message in request.messages], len(request.session_ends)


def test_the_past_has_days_and_nights_and_ends_now() -> None:
    week_s, count = 7 * 86_400, requests_in(7 * 86_400, 0.1)
    ages = request_ages(random.Random(1), week_s, count)
    assert len(ages) == count > 10_000
    assert ages == sorted(ages, reverse=True)
    assert max(ages) <= week_s
    assert min(ages) < 600
    by_hour = Counter(int(age_s // 3600 % 24) for age_s in ages)
    assert by_hour[0] > 5 * by_hour[12]
    assert busyness(0) == 1
    assert {condition_at(age_s) for age_s in ages} == {"normal", "slow", "spike", "outage"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--history", "40d"], f"--history: 40d is more than {HORIZON_NS // DAY}d"),
        (["--history", "soon"], "soon"),
        (["--addr", ":8701"], "--addr: needs --serve"),
        (["--serve", "--url", "nats://127.0.0.1:1"], "--serve: starts a pipeline of its own"),
        (["--api", "ftp://127.0.0.1"], "--api: must be none or start with http://"),
        (["--remove-rules", "--api", "none"], "--remove-rules: needs --api"),
    ],
)
def test_flags_that_have_no_meaning_are_refused_by_name(flags: list[str], text: str) -> None:
    command = [sys.executable, "-m", "tokentrace_standalone", "demo", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr


def processes_with(text: str) -> list[str]:
    """Return the command lines of all processes that contain *text*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_make_demo_serves_a_page_with_a_history_and_ends_without_a_process(
    tmp_path: Path, ending: signal.Signals
) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = ["make", "-o", ".venv/.server", "demo", f"ARGS=--addr {address} --history 6h"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        making = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(tmp_path)},
        )
    try:
        until(lambda: f"The page is at http://{address}/" in log.read_text(), log.read_text())
        until(lambda: http("GET", f"http://{address}/metrics?window=7d").status == 200, "the api answers")
        until(lambda: http("GET", f"http://{address}/metrics?window=7d").json()["span_count"] > 100, "it has a history")
        assert b"<html" in http("GET", f"http://{address}/").body
        assert len(processes_with(address)) >= 2
        os.killpg(making.pid, ending)
        making.wait(60 * PATIENCE)
        until(lambda: not processes_with(address) and not processes_with(str(tmp_path)), "no process is left")
    finally:
        if making.poll() is None:
            os.killpg(making.pid, signal.SIGKILL)
            making.wait()
    if ending == signal.SIGINT:
        assert list(tmp_path.glob("tokentrace-demo-*")) == []
