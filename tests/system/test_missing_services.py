"""``/health`` names the service that is missing and shows wrong clocks; the api forwards to ingest directly."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kit.fleet import Fleet
from kit.json_spans import fresh, json_span
from kit.pipeline import Pipeline
from kit.skew import skewed

NAMES = ("ingest", "ingest-b", "aggregator", "alerter", "api")
#: A port on which nothing listens; a proxy there would fail every request.
NO_PROXY_THERE = "http://127.0.0.1:9"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), NO_PROXY_THERE)
    services = Fleet(tmp_path, NAMES, env={**proxies, "NO_PROXY": "", "no_proxy": ""})
    yield services
    services.stop()


def health(fleet: Fleet) -> tuple[int, dict[str, Any]]:
    answer = fleet.get("api", "/health")
    shown = answer.json()
    assert (shown["status"] == "ok") == (answer.status == 200)
    return answer.status, shown


def wrong_parts(shown: dict[str, Any]) -> set[str]:
    """Return the parts that are not well; ``error`` says the same of each."""
    wrong = [part for part in shown["parts"] if not part["ok"]]
    assert all(part["detail"] and part["detail"] in shown["error"] for part in wrong)
    return {part["name"] for part in wrong}


def await_health(fleet: Fleet, status: int, error: str = "") -> dict[str, Any]:
    fleet.until(lambda: health(fleet)[0] == status and error in health(fleet)[1].get("error", ""), f"{status} {error}")
    return health(fleet)[1]


def test_health_names_a_service_that_never_started_was_killed_or_was_stopped(fleet: Fleet) -> None:
    fleet.broker.start()
    for name in ("aggregator", "api"):
        fleet.start_one(name)
    fleet.until(lambda: fleet.is_ready("api"), "api ready", 60)
    shown = await_health(fleet, 503, "no ingest answers")
    assert "no alerter answers" in shown["error"]
    assert shown["services"]["alerter"] == {"processes": 0}
    assert [part["name"] for part in shown["parts"]] == ["nats", "ingest", "aggregator", "store", "alerter", "log"]
    assert wrong_parts(shown) == {"ingest", "alerter"}

    for name in ("ingest", "ingest-b", "alerter"):
        fleet.start_one(name)
    shown = await_health(fleet, 200)
    assert "error" not in shown
    assert wrong_parts(shown) == set()
    assert {part["name"] for part in shown["parts"] if part["lag_s"] is not None} == {"aggregator", "store"}
    fleet.until(lambda: health(fleet)[1]["services"]["ingest"]["processes"] == 2, "both ingests counted", 30)

    # One of two replicas is enough.
    fleet.kill("ingest")
    fleet.until(lambda: health(fleet)[1]["services"]["ingest"]["processes"] == 1, "one ingest counted", 30)
    assert health(fleet)[0] == 200
    assert fleet.terminate("ingest-b") == 0
    await_health(fleet, 503, "no ingest answers; the last one answered ")
    fleet.start_one("ingest")
    await_health(fleet, 200)

    assert fleet.terminate("alerter") == 0
    shown = await_health(fleet, 503, "no alerter answers; the last one answered ")
    assert "ingest" not in shown["error"]
    fleet.start_one("alerter")
    await_health(fleet, 200)
    fleet.kill("alerter")
    await_health(fleet, 503, "no alerter answers")

    # The store and the numbers are still there.
    assert shown["services"]["aggregator"] == {"processes": 1}
    assert fleet.get("api", "/metrics").status == 200


def test_health_names_a_service_that_hangs(fleet: Fleet) -> None:
    fleet.start()
    await_health(fleet, 200)
    fleet.running["alerter"].send_signal(signal.SIGSTOP)
    try:
        await_health(fleet, 503, "no alerter answers; the last one answered ")
    finally:
        fleet.running["alerter"].send_signal(signal.SIGCONT)
    await_health(fleet, 200)


def test_the_api_forwards_to_ingest_past_the_proxy_of_the_environment(fleet: Fleet) -> None:
    fleet.start()
    caller = fresh("caller")
    answer = fleet.send("api", "POST", "/spans", json_span(caller=caller))
    assert (answer.status, answer.json()) == (202, {"accepted": 1})
    fleet.until(lambda: fleet.get("api", f"/traces?caller={caller}").json()["count"] == 1, "stored")


def test_serve_answers_for_all_of_its_services(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        answer = serving.get("/health")
        assert answer.status == 200, answer.body
        one = {"processes": 1}
        assert answer.json()["services"] == {"ingest": one, "aggregator": one, "alerter": one, "api": one}
        assert set(answer.json()["clock"]) == {"ingest", "aggregator", "alerter", "api"}
        assert "warnings" not in answer.json()
    finally:
        assert serving.stop() == 0


@pytest.mark.parametrize("seconds", [600, -600])
def test_a_wrong_clock_of_an_ingest_is_shown_and_changes_no_number(tmp_path: Path, seconds: int) -> None:
    fleet = Fleet(tmp_path, ("ingest", "aggregator", "alerter", "api"))
    right = dict(fleet.env)
    try:
        fleet.broker.start()
        for name in fleet.ports:
            fleet.env = {**right, **skewed(tmp_path / "skew", seconds)} if name == "ingest" else right
            fleet.start_one(name)
        fleet.env = right
        for name in fleet.ports:
            fleet.until(partial(fleet.is_ready, name), f"{name} ready", 60)
        # Without times of its own, a span happens when it arrives.
        before = datetime.now(UTC)
        span = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, "caller": "c"}
        assert fleet.send("ingest", "POST", "/spans", span).status == 202
        fleet.until(lambda: fleet.get("api", "/stats").json()["total_spans"] == 1, "counted")
        for window in ("1m", "1h"):
            assert fleet.get("api", f"/metrics?window={window}").json()["span_count"] == 1
        fleet.until(lambda: fleet.get("api", "/traces?caller=c").json()["count"] == 1, "stored")
        [shown] = [json.loads(line) for line in fleet.get("api", "/export").body.splitlines()]
        arrived_after = datetime.fromisoformat(shown["ended_at"]) - before
        assert timedelta(seconds=-5) < arrived_after < timedelta(minutes=2)

        status, told = health(fleet)
        assert status == 200
        assert abs(told["clock"]["ingest"] - seconds * 1000) < 2000
        assert all(abs(told["clock"][name]) < 2000 for name in ("aggregator", "alerter", "api"))
        side = "ahead of" if seconds > 0 else "behind"
        [warning] = told["warnings"]
        assert warning.startswith("ingest: the clock of its host is ")
        assert f" s {side} the broker's" in warning
    finally:
        fleet.stop()
