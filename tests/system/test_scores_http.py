"""``POST /scores`` with two apis and three shards: both apis show a score, and it counts once."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest

from kit.fleet import Fleet
from kit.json_spans import fresh, json_span
from kit.pipeline import Answer, http
from tokentrace.bus import Bus, jetstream, subjects

T = TypeVar("T")
NAMES = ["ingest", "aggregator", "alerter", "api-a", "api-b"]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("scores"), NAMES, {"TOKENTRACE_SHARD_COUNT": "3"})
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def send(fleet: Fleet, *spans: dict[str, Any]) -> None:
    """Send *spans* and wait until both apis have stored them."""
    assert fleet.send("ingest", "POST", "/spans", list(spans)).status == 202
    for name in ("api-a", "api-b"):
        for trace in {span["trace_id"] for span in spans}:
            fleet.until(
                partial(lambda name, trace: fleet.get(name, f"/traces/{trace}").status == 200, name, trace), "stored"
            )


def score(fleet: Fleet, *, to: str = "api-a", **fields: Any) -> Any:
    answer = fleet.send(to, "POST", "/scores", fields)
    assert answer.status == 202, answer.body
    return answer.json()


def attributes(fleet: Fleet, span: dict[str, Any], name: str = "api-a") -> dict[str, Any]:
    trace = fleet.get(name, f"/traces/{span['trace_id']}").json()
    (shown,) = [stored for stored in trace["spans"] if stored["span_id"] == span["span_id"]]
    return dict(shown.get("attributes", {}))


def quality(fleet: Fleet, caller: str, name: str = "api-a") -> dict[str, Any]:
    return dict(fleet.get(name, f"/metrics/quality?window=24h&caller={caller}").json())


def refused(answer: Answer, status: int) -> str:
    assert answer.status == status, (answer.status, answer.body)
    return str(answer.json()["error"])


def with_bus(fleet: Fleet, work: Callable[[Bus], Awaitable[T]]) -> T:
    async def run() -> T:
        async with jetstream.connect(fleet.broker.url, name="test") as bus:
            return await work(bus)

    return asyncio.run(run())


def rebuild(fleet: Fleet, name: str) -> None:
    """Stop an api, delete its store, and start the api, which rebuilds the store."""
    assert fleet.terminate(name) == 0
    shutil.rmtree(fleet.data_of(name))
    fleet.start_one(name)
    fleet.until(lambda: fleet.get(name, "/readyz").status == 200, "rebuilt", 60)


def change_without_publishing(fleet: Fleet, key: str, value: float) -> None:
    """Change the entry *key* of the bucket of scores, like an api that is killed before it publishes the change."""

    async def write(bus: Bus) -> None:
        bucket = bus.kv(subjects.SCORES)
        entry = await bucket.get(key)
        assert entry is not None
        stored = json.loads(entry.value)
        assert stored["published"] is True
        unpublished = {
            "value": round(value * 1e9),
            "previous": stored["value"],
            "number": stored["number"] + 1,
            "published": False,
        }
        await bucket.update(key, json.dumps(unpublished).encode(), entry.revision)

    with_bus(fleet, write)


class TestNaming:
    def test_a_span_is_found_by_its_id_and_a_trace_id_means_its_root(self, fleet: Fleet) -> None:
        root = json_span()
        child = json_span(trace_id=root["trace_id"], parent_span_id=root["span_id"])
        send(fleet, child, root)
        ids = {"trace_id": root["trace_id"], "span_id": child["span_id"]}
        assert score(fleet, span_id=child["span_id"], value=0.25) == {"accepted": 1, "spans": [ids]}
        assert score(fleet, trace_id=root["trace_id"], value=0.5)["spans"][0]["span_id"] == root["span_id"]
        assert (attributes(fleet, child), attributes(fleet, root)) == ({"eval.score": 0.25}, {"eval.score": 0.5})
        score(fleet, **ids, value=1)
        assert attributes(fleet, child) == {"eval.score": 1}

    def test_a_name_is_prefixed_with_eval_and_null_removes_the_score(self, fleet: Fleet) -> None:
        span = json_span(attributes={"eval.kept": 0.125, "team": "a"})
        send(fleet, span)
        for name, value in (("helpful", 0.1), ("eval.kind", 0.2), ("score", 0.3)):
            score(fleet, span_id=span["span_id"], name=name, value=value)
        held = {"eval.kept": 0.125, "team": "a"}
        assert attributes(fleet, span) == {**held, "eval.helpful": 0.1, "eval.kind": 0.2, "eval.score": 0.3}
        for name in ("helpful", "kind", "score", "never"):
            score(fleet, span_id=span["span_id"], name=name, value=None)
        assert attributes(fleet, span) == held
        score(fleet, span_id=span["span_id"], name="kept", value=None)
        assert attributes(fleet, span) == {"team": "a"}

    def test_an_array_is_recorded_in_order_or_not_at_all(self, fleet: Fleet) -> None:
        first, second = json_span(), json_span()
        send(fleet, first, second)
        given = [
            {"span_id": first["span_id"], "value": 0.1},
            {"span_id": second["span_id"], "value": 0.2},
            {"span_id": first["span_id"], "value": 0.3},
        ]
        answer = fleet.send("api-a", "POST", "/scores", given)
        assert (answer.status, answer.json()["accepted"]) == (202, 3)
        assert attributes(fleet, first) == {"eval.score": 0.3}
        wrong = [{"span_id": first["span_id"], "value": 0.9}, {"span_id": fresh("unknown"), "value": 1}]
        assert refused(fleet.send("api-a", "POST", "/scores", wrong), 404) == "score 1: span not found"
        assert attributes(fleet, first) == {"eval.score": 0.3}
        assert fleet.send("api-a", "POST", "/scores", []).json() == {"accepted": 0, "spans": []}

    def test_a_span_id_in_two_traces_needs_the_trace_id(self, fleet: Fleet) -> None:
        one = json_span()
        other = json_span(span_id=one["span_id"])
        send(fleet, one, other)
        given = {"span_id": one["span_id"], "value": 0.5}
        text = refused(fleet.send("api-a", "POST", "/scores", given), 400)
        assert text == f"span_id: '{one['span_id']}' is in 2 traces; give trace_id too"
        score(fleet, trace_id=other["trace_id"], **given)
        assert (attributes(fleet, one), attributes(fleet, other)) == ({}, {"eval.score": 0.5})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", ""),
        (b"{", ""),
        (b"5", ""),
        (b'{"span_id": "a"}', "value"),
        (b'{"value": 0.5}', "span_id or trace_id"),
        (b'{"span_id": "a", "value": 1.5}', "value"),
        (b'{"span_id": "a", "value": -0.1}', "value"),
        (b'{"span_id": "a", "value": true}', "value"),
        (b'{"span_id": "a", "value": "0.5"}', "value"),
        (b'{"span_id": "a", "value": NaN}', ""),
        (b'{"span_id": "a", "value": 1e400}', ""),
        (b'{"span_id": "a", "value": 1, "nmae": "x"}', "nmae"),
        (b'{"span_id": "a", "value": 1, "name": ""}', "name"),
        (b'{"span_id": "a", "value": 1, "name": "eval."}', "name"),
        (b'{"span_id": "a", "value": 1, "name": "' + b"x" * 300 + b'"}', "name"),
        (b'{"span_id": "a", "value": 1, "name": "\\ud800"}', ""),
        (b'{"span_id": "a\\n", "value": 1}', "span_id"),
        (b'{"trace_id": "\xc3\xbc", "value": 1}', "trace_id"),
        (b'[{"span_id": "a", "value": 1}, {"span_id": "a", "value": 2}]', "value"),
    ],
)
def test_an_invalid_score_is_refused(fleet: Fleet, body: bytes, named: str) -> None:
    assert named in refused(http("POST", fleet.url("api-a") + "/scores", body), 400)


def test_too_many_scores_or_a_too_large_body_are_refused(fleet: Fleet) -> None:
    many = json.dumps([{"span_id": "a", "value": 1}] * 1001).encode()
    assert refused(http("POST", fleet.url("api-a") + "/scores", many), 413).startswith("scores: 1001")
    large = b" " * (1024 * 1024 + 1)
    assert refused(http("POST", fleet.url("api-a") + "/scores", large), 413).startswith("body: ")
    assert refused(fleet.send("api-a", "POST", "/scores?x=1", []), 400).startswith("x: unknown parameter")
    assert refused(fleet.get("api-a", "/scores"), 405) == "method not allowed"


class TestMetrics:
    def test_metrics_groups_and_filters_show_scores(self, fleet: Fleet) -> None:
        caller = fresh("caller")
        spans = [json_span(caller=caller, attributes={"team": "ab"[number % 2]}) for number in range(10)]
        send(fleet, *spans)
        for number, span in enumerate(spans):
            to = ("api-a", "api-b")[number % 2]
            score(fleet, to=to, span_id=span["span_id"], value=number / 10)
            score(fleet, to=to, span_id=span["span_id"], name="style", value=0.5 if number < 3 else 0.75)
        fleet.until(lambda: quality(fleet, caller)["scored_span_count"] == 10, "counted")
        shown = quality(fleet, caller)
        assert (shown["score_avg"], shown["score_p50"], shown["score_p10"]) == pytest.approx((0.45, 0.45, 0.09))
        split = fleet.get("api-b", f"/metrics/quality_by_attribute?key=team&window=24h&caller={caller}").json()["value"]
        assert split == pytest.approx({"a": 0.4, "b": 0.5})

        def found(name: str, attribute: str) -> int:
            return int(fleet.get(name, f"/traces?caller={caller}&attr.eval.{attribute}").json()["total"])

        for name in ("api-a", "api-b"):
            fleet.until(
                partial(lambda name: (found(name, "style=0.5"), found(name, "score=0.9")) == (3, 1), name),
                f"found in {name}",
            )

    def test_a_repeated_score_counts_once_and_a_removed_score_does_not_count(self, fleet: Fleet) -> None:
        caller = fresh("caller")
        span = json_span(caller=caller, attributes={"eval.score": 0.25})
        send(fleet, span)
        for to in ("api-a", "api-b", "api-a"):
            score(fleet, to=to, span_id=span["span_id"], value=0.75)
        fleet.until(lambda: quality(fleet, caller)["score_avg"] == 0.75, "counted")
        assert quality(fleet, caller)["scored_span_count"] == 1
        score(fleet, to="api-b", span_id=span["span_id"], value=None)
        fleet.until(lambda: quality(fleet, caller)["scored_span_count"] == 0, "taken away")
        assert quality(fleet, caller)["score_avg"] is None
        score(fleet, to="api-a", span_id=span["span_id"], value=0.25)
        fleet.until(lambda: quality(fleet, caller)["score_avg"] == 0.25, "back again")

    def test_a_rule_about_quality_fires_on_a_late_score(self, fleet: Fleet) -> None:
        caller, name = fresh("caller"), fresh("drop")
        rule = {
            "name": name,
            "metric": "quality_score",
            "op": "lt",
            "threshold": 0.5,
            "window": "1h",
            "eval_interval": "1s",
            "filter": {"caller": caller},
        }
        answer = fleet.send("api-a", "POST", "/alerts", rule)
        assert answer.status == 201, answer.body
        span = json_span(caller=caller)
        send(fleet, span)
        score(fleet, span_id=span["span_id"], value=0.9)

        def state() -> Any:
            return fleet.get("api-a", f"/alerts/{name}/status").json()

        fleet.until(lambda: state()["current_value"] == 0.9, "seen by the rule")
        assert state()["state"] != "firing"
        score(fleet, span_id=span["span_id"], value=0.1)
        fleet.until(lambda: state()["state"] == "firing", "firing")


def test_the_last_of_repeated_ends_wins_in_both_apis_and_after_a_rebuild(fleet: Fleet) -> None:
    ids = [fresh("merged") for _ in range(4)]
    for span_id in ids:
        started = {"name": "x", "traceId": span_id}
        assert fleet.send("ingest", "POST", "/api/traces/start", started).status == 200
    for number in range(8):
        for span_id in ids:
            end = {"status": "ok", "metadata": {"n": number}}
            assert fleet.send("ingest", "POST", f"/api/traces/{span_id}/end", end).status == 200

    def last(name: str) -> bool:
        return all(attributes(fleet, {"trace_id": id, "span_id": id}, name) == {"n": 7} for id in ids)

    for name in ("api-a", "api-b"):
        fleet.until(partial(last, name), f"merged in {name}")
    rebuild(fleet, "api-b")
    assert last("api-b")


class TestRaces:
    def test_after_concurrent_scores_both_apis_and_the_metrics_agree(self, fleet: Fleet) -> None:
        caller, rng = fresh("caller"), random.Random(5)
        given = [{"attributes": {"eval.score": 0.5}} if rng.random() < 0.5 else {} for _ in range(6)]
        spans = [json_span(caller=caller, **fields) for fields in given]
        send(fleet, *spans)
        counting = threading.Lock()
        accepted = 0

        def score_randomly(seed: int) -> None:
            nonlocal accepted
            dice = random.Random(seed)
            for _ in range(12):
                value = dice.choice([0, 0.125, 0.25, 0.5, 1, None])
                body = {"span_id": dice.choice(spans)["span_id"], "value": value}
                answer = fleet.send(dice.choice(["api-a", "api-b"]), "POST", "/scores", body)
                # A request that loses to many others is refused with 503 and may be repeated.
                assert answer.status in (202, 503), answer.body
                with counting:
                    accepted += answer.status == 202

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(score_randomly, range(8)))
        assert accepted > 80

        def values(name: str) -> list[float | None]:
            return [attributes(fleet, span, name).get("eval.score") for span in spans]

        fleet.until(lambda: values("api-a") == values("api-b"), "agreed")

        def exact() -> bool:
            held = [value for value in values("api-a") if value is not None]
            shown = quality(fleet, caller)
            mean = sum(held) / len(held) if held else None
            return (shown["scored_span_count"], shown["score_avg"]) == (len(held), mean)

        fleet.until(exact, "metrics equal the last values", 20)

    def test_a_change_that_a_kill_left_unpublished_is_published_by_the_next_request(self, fleet: Fleet) -> None:
        caller = fresh("caller")
        span = json_span(caller=caller)
        send(fleet, span)
        before = set(with_bus(fleet, lambda bus: bus.kv(subjects.SCORES).items()))
        score(fleet, span_id=span["span_id"], value=0.25)
        (key,) = set(with_bus(fleet, lambda bus: bus.kv(subjects.SCORES).items())) - before

        change_without_publishing(fleet, key, 0.5)
        assert quality(fleet, caller)["score_avg"] == 0.25
        # Whether the next request repeats the value or changes it, the unpublished change is published first.
        score(fleet, to="api-b", span_id=span["span_id"], value=0.5)
        fleet.until(lambda: quality(fleet, caller)["score_avg"] == 0.5, "repaired")
        change_without_publishing(fleet, key, 0.75)
        score(fleet, to="api-a", span_id=span["span_id"], value=1)
        fleet.until(lambda: quality(fleet, caller)["score_avg"] == 1, "repaired again")
        assert quality(fleet, caller)["scored_span_count"] == 1

    def test_the_last_of_many_scores_is_shown_after_a_rebuild(self, fleet: Fleet) -> None:
        spans = [json_span() for _ in range(3)]
        send(fleet, *spans)
        for number in range(7):
            for span in spans:
                score(fleet, to=("api-a", "api-b")[number % 2], span_id=span["span_id"], value=number / 10)
        rebuild(fleet, "api-b")
        for name in ("api-a", "api-b"):
            assert [attributes(fleet, span, name) for span in spans] == [{"eval.score": 0.6}] * 3
