"""A session of 5,000 spans in 12 levels, sent by many threads to two ingest processes."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kit.examples import WHOLE
from kit.fleet import Fleet
from kit.json_spans import fresh
from kit.sessions import DETAILS, GRAPH, check, instant
from kit.store_log import ROLLUPS


class Caller:
    """An HTTP client that keeps one connection for each thread and service."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self._connections = fleet, threading.local()
        self.opened: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        for connection in self.opened:
            connection.close()

    def post(self, name: str, path: str, body: Any) -> Any:
        connections: dict[str, http.client.HTTPConnection] = self._connections.__dict__
        if name not in connections:
            connections[name] = http.client.HTTPConnection("127.0.0.1", self.fleet.ports[name], timeout=60)
            self.opened.append(connections[name])
        connections[name].request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        answer = connections[name].getresponse()
        data = answer.read()
        assert answer.status == 200, data
        return json.loads(data)


LEVELS, SPANS = 12, 5000 if WHOLE else 1200


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("fleet"), ["ingest-a", "ingest-b", "aggregator", "api"])
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def test_a_session_of_many_spans_in_12_levels_is_exact_if_each_span_ends_at_another_ingest(fleet: Fleet) -> None:
    rng, caller = random.Random(12), Caller(fleet)
    session, root = fresh("big"), fresh("root")
    names = ["ingest-a", "ingest-b"]
    begin = datetime.now(UTC) - timedelta(hours=2)
    sizes = [1] + [(SPANS - 1) // (LEVELS - 1)] * (LEVELS - 1)
    sizes[-1] += SPANS - sum(sizes)
    levels: list[list[dict[str, Any]]] = []
    number = 0
    for depth, size in enumerate(sizes):
        level = []
        for _ in range(size):
            parent = rng.choice(levels[-1])["id"] if levels else None
            level.append(
                {
                    "id": root if parent is None else f"{root}.{number}",
                    "parent": parent,
                    "depth": depth,
                    "type": rng.choice(["llm", "tool", "agent", "retrieval", "chain"]),
                    "at": begin + timedelta(milliseconds=number),
                    "ms": rng.randint(1, 60_000),
                    "home": number % 2,
                    # Of a hundred spans seven stay open and eight are ended twice.
                    "fate": "open" if depth and number % 100 < 7 else "twice" if number % 100 < 15 else "once",
                    "cost": rng.randint(0, 10**6) / 10**9,
                    "tokens": {"input": rng.randint(0, 5000), "output": rng.randint(0, 900)},
                }
            )
            number += 1
        levels.append(level)
    plan = [planned for level in levels for planned in level]

    def start(planned: dict[str, Any]) -> None:
        body = {
            "name": f"n{planned['depth']}",
            "type": planned["type"],
            "traceId": planned["id"],
            "sessionId": session,
            "startedAt": instant(planned["at"]),
            "metadata": {"n": 1, "label": "big"},
            **({"parentId": planned["parent"]} if planned["parent"] else {}),
        }
        shown = caller.post(names[planned["home"]], "/api/traces/start", body)
        assert shown == {"traceId": planned["id"], "sessionId": session}

    def end(planned: dict[str, Any]) -> None:
        other = names[1 - planned["home"]]
        body = {
            "status": "ok",
            "tokens": planned["tokens"],
            "costUSD": planned["cost"],
            "endedAt": instant(planned["at"] + timedelta(milliseconds=planned["ms"])),
            "metadata": {"m": 2},
        }
        caller.post(other, f"/api/traces/{planned['id']}/end", body)
        if planned["fate"] == "twice":
            again = {"status": "error", "tokens": {"input": 9, "output": 9}, "costUSD": 9, "metadata": {"m": 3, "l": 4}}
            caller.post(names[planned["home"]], f"/api/traces/{planned['id']}/end", again)

    with ThreadPoolExecutor(24) as pool:
        for level in levels:
            list(pool.map(start, level))
        ended = [planned for planned in plan if planned["fate"] != "open"]
        list(pool.map(end, rng.sample(ended, len(ended))))
    caller.close()

    money = [planned for planned in ended if planned["type"] not in ROLLUPS]
    twice = {planned["id"] for planned in ended if planned["fate"] == "twice"}

    def shown() -> Any:
        return fleet.get("api", f"/api/sessions/{session}/details").json()

    fleet.until(lambda: (shown()["totalSpans"], shown()["openSpans"]) == (SPANS, SPANS - len(ended)), "stored")
    fleet.until(lambda: fleet.get("api", f"/traces?session={session}&attr.m=3").json()["total"] == 1, "merged")

    def merged() -> bool:
        spans = fleet.get("api", f"/traces/{root}?limit={SPANS}").json()["spans"]
        return {span["span_id"] for span in spans if span["attributes"].get("m") == 3} == twice

    fleet.until(merged, "everything merged")
    cost = round(sum(round(planned["cost"] * 1e9) for planned in money)) / 1e9
    check(DETAILS, shown())
    assert {name: shown()[name] for name in ("status", "label", "totalCostUSD", "startedAt", "errorCount")} == {
        "status": "active",
        "label": "big",
        "totalCostUSD": cost,
        "startedAt": instant(begin),
        "errorCount": 0,
    }
    assert shown()["totalInputTokens"] == sum(planned["tokens"]["input"] for planned in money)
    assert shown()["totalOutputTokens"] == sum(planned["tokens"]["output"] for planned in money)

    drawn = fleet.get("api", f"/api/sessions/{session}/graph").json()
    check(GRAPH, drawn)
    by_id = {node["id"]: node for node in drawn["nodes"]}
    assert len(drawn["nodes"]) == len(by_id) == SPANS
    assert [node["id"] for node in drawn["nodes"]] == [planned["id"] for planned in plan]
    edges = [{"from": planned["parent"], "to": planned["id"]} for planned in plan if planned["parent"]]
    assert sorted(drawn["edges"], key=lambda edge: edge["to"]) == sorted(edges, key=lambda edge: edge["to"])
    for planned in plan:
        node, closed = by_id[planned["id"]], planned["fate"] != "open"
        assert (node["depth"], node["type"]) == (planned["depth"], planned["type"])
        assert node["status"] == ("ok" if closed else "pending")
        assert node["duration"] == (planned["ms"] if closed else None)
        assert node["costUSD"] == (planned["cost"] if closed else None)
        assert node["tokens"] == (planned["tokens"] if closed else {"input": 0, "output": 0})
        added = {} if not closed else {"m": 3, "l": 4} if planned["id"] in twice else {"m": 2}
        assert node["metadata"] == {"n": 1, "label": "big", **added}

    timeline = fleet.get("api", f"/traces/{root}/timeline?limit={SPANS}").json()
    assert timeline["duration_ms"] == max(
        (planned["at"] - begin) / timedelta(milliseconds=1) + planned["ms"] for planned in ended
    )
    assert [
        (row["span_id"], row["parent_span_id"], row["depth"], row["start_ms"], row["duration_ms"])
        for row in timeline["rows"]
    ] == [
        (
            planned["id"],
            planned["parent"],
            planned["depth"],
            (planned["at"] - begin) / timedelta(milliseconds=1),
            planned["ms"] if planned["fate"] != "open" else None,
        )
        for planned in plan
    ]
    trace = fleet.get("api", f"/traces/{root}").json()
    assert (trace["span_count"], trace["total_cost_usd"]) == (len(ended), cost)
    assert trace["total_tokens"] == sum(sum(planned["tokens"].values()) for planned in money)
    metrics = fleet.get("api", "/metrics?window=24h").json()
    calls = sum(planned["type"] == "llm" for planned in ended)
    assert (metrics["span_count"], metrics["cost"]["total_usd"]) == (calls, cost)
