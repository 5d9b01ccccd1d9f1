"""``GET /traces/tail``: spans as they arrive, for many clients, some of them slow and some disconnected."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from kit.fleet import Fleet
from kit.json_spans import fresh, json_span
from kit.pipeline import http


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    running = Fleet(tmp_path_factory.mktemp("tail"), ["ingest", "aggregator", "api"])
    running.start()
    yield running
    assert set(running.stop().values()) == {0}


def send(fleet: Fleet, *spans: dict[str, Any]) -> None:
    for start in range(0, len(spans), 200):
        answer = fleet.send("ingest", "POST", "/spans", list(spans[start : start + 200]))
        assert answer.status == 202, answer.body


class Follower:
    """A client of the tail that reads events in a thread, with *read* False only after ``start_reading``."""

    def __init__(self, fleet: Fleet, query: str = "", *, read: bool = True, name: str = "api") -> None:
        self.events: list[tuple[str, Any]] = []
        self.comments: list[str] = []
        self.status = 0
        self.head = b""
        self.ended = threading.Event()
        self.socket = socket.create_connection(("127.0.0.1", fleet.ports[name]), timeout=60)
        self.socket.sendall(
            f"GET /traces/tail?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        )
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        while (line := self._file.readline()) not in (b"\r\n", b""):
            self.head += line.lower()
        self._rest = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        if read:
            self.start_reading()

    def start_reading(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        try:
            # Transfer-Encoding: chunked; a chunk may end within an event.
            while size := int(self._file.readline() or b"0", 16):
                self._rest += self._file.read(size)
                self._file.readline()
                *blocks, self._rest = self._rest.split(b"\n\n")
                for block in blocks:
                    self._take(block.decode())
        except (OSError, ValueError):
            return
        finally:
            self.ended.set()

    def _take(self, block: str) -> None:
        if block.startswith(":"):
            self.comments.append(block)
            return
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert fields.keys() == {"event", "data"}
        self.events.append((fields["event"], json.loads(fields["data"])))

    def spans(self) -> list[str]:
        """Return the ids of the received spans."""
        return [data["span_id"] for event, data in list(self.events) if event == "span"]

    def dropped(self) -> int:
        return max((data["dropped"] for event, data in list(self.events) if event == "dropped"), default=0)

    def __enter__(self) -> Follower:
        assert self.status == 200
        if self._thread.is_alive():
            until(lambda: bool(self.comments), "following")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        shut_down(self.socket)
        if self._thread.is_alive():
            self._thread.join(10)
        self._file.close()
        self.socket.close()


def shut_down(connection: socket.socket) -> None:
    """Shut *connection* down, so that the thread that reads from it wakes up."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the server has closed it already
        return


def until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds} s"
        time.sleep(0.02)


def sample(fleet: Fleet, name: str) -> float:
    text = fleet.get("api", "/internal/metrics").body.decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def open_tails(fleet: Fleet) -> int:
    return int(sample(fleet, "tokentrace_api_tails"))


def test_a_tail_sends_only_spans_that_arrive_after_it_opened_in_order(fleet: Fleet) -> None:
    before = json_span()
    send(fleet, before)
    fleet.until(lambda: fleet.get("api", f"/traces/{before['trace_id']}").status == 200, "stored")
    with Follower(fleet) as tail:
        assert b"content-type: text/event-stream" in tail.head
        assert b"cache-control: no-store" in tail.head
        after = [json_span(attributes={"text": "line\nbreak\r\n\ndata: x", "n": number}) for number in range(20)]
        send(fleet, *after)
        until(lambda: len(tail.spans()) == 20, "sent")
        assert tail.spans() == [span["span_id"] for span in after]
        shown = [data for _, data in tail.events]
        assert [data["attributes"] for data in shown] == [span["attributes"] for span in after]
        for span, data in zip(after, shown, strict=True):
            (trace,) = fleet.get("api", f"/traces/{span['trace_id']}").json()["spans"]
            assert data.items() >= {name: trace[name] for name in trace if name != "depth"}.items()
        assert tail.dropped() == 0
    fleet.until(lambda: open_tails(fleet) == 0, "closed")


def test_a_score_does_not_send_its_span_again(fleet: Fleet) -> None:
    span = json_span()
    with Follower(fleet) as tail:
        send(fleet, span)
        until(lambda: tail.spans() == [span["span_id"]], "sent")
        score = {"span_id": span["span_id"], "value": 0.5}
        assert fleet.send("api", "POST", "/scores", score).status == 202
        last = json_span()
        send(fleet, last)
        until(lambda: last["span_id"] in tail.spans(), "sent the last")
        assert tail.spans() == [span["span_id"], last["span_id"]]


def test_every_filter_of_a_list_works_for_a_tail(fleet: Fleet) -> None:
    caller = fresh("own")
    spans = [
        json_span(
            caller=caller,
            name=f"Name{number}",
            model=("gpt-4o", "claude-sonnet-4-5")[number % 2],
            provider=("openai", "anthropic")[number % 2],
            kind="llm" if number < 8 else "tool",
            status=("ok", "error", "timeout")[number % 3],
            error="It Broke" if number == 4 else "",
            latency_ms=100 * number,
            cost_usd=number / 10,
            session_id=f"s{number % 2}",
            user_id=f"u{number % 2}",
            started_at=f"2026-03-15T14:00:{number:02}.000Z",
            attributes={"step": number % 3, "flag": number == 5},
        )
        for number in range(12)
    ]
    queries = [
        "",
        "&model=gpt-4o",
        "&provider=anthropic",
        "&kind=tool",
        "&status=timeout",
        "&name=Name3",
        "&session=s1",
        "&user=u0&status=ok",
        "&min_cost=0.5",
        "&min_latency=700",
        "&q=it+broke",
        "&q=NAME1",
        "&attr.step=2",
        "&attr.flag=true",
        "&since=2026-03-15T14:00:10Z",
        "&until=2026-03-15T14:00:01.000Z",
        "&name=nothing",
    ]
    tails = [Follower(fleet, f"caller={caller}{query}&rate=1000") for query in queries]
    for tail in tails:
        tail.__enter__()
    assert open_tails(fleet) == len(queries)
    send(fleet, json_span(), *spans)
    until(lambda: len(tails[0].spans()) == len(spans), "sent")
    # Each tail has sent the spans that the same filter finds in the store.
    fleet.until(lambda: fleet.get("api", f"/traces?caller={caller}").json()["total"] == len(spans), "stored")
    by_trace = {span["trace_id"]: span["span_id"] for span in spans}
    for query, tail in zip(queries, tails, strict=True):
        found = fleet.get("api", f"/traces?limit=200&caller={caller}{query}").json()["trace_ids"]
        until(partial(lambda tail, found: len(tail.spans()) >= len(found), tail, found), query)
        assert sorted(tail.spans()) == sorted(by_trace[trace] for trace in found), query
    for tail in tails:
        tail.close()
    fleet.until(lambda: open_tails(fleet) == 0, "closed")


def test_spans_above_the_rate_are_dropped_and_counted(fleet: Fleet) -> None:
    caller = fresh("fast")
    with Follower(fleet, f"caller={caller}&rate=5") as limited, Follower(fleet, f"caller={caller}&rate=1000") as other:
        spans = [json_span(caller=caller) for _ in range(200)]
        send(fleet, *spans)
        until(lambda: len(other.spans()) == 200, "sent")
        until(lambda: len(limited.spans()) + limited.dropped() == 200, "accounted for")
        assert 5 <= len(limited.spans()) < 200
        assert other.dropped() == 0
        # A later second allows more spans, and the counts keep adding up.
        time.sleep(1.1)
        send(fleet, json_span(caller=caller))
        until(lambda: len(limited.spans()) + limited.dropped() == 201, "one more")
        assert len(limited.spans()) >= 6


def test_a_client_that_reads_nothing_blocks_no_other_and_learns_how_much_it_missed(fleet: Fleet) -> None:
    caller = fresh("slow")
    text = "0123456789abcdef" * 1024
    with Follower(fleet, f"caller={caller}&rate=1000", read=False) as slow:
        spans = [json_span(caller=caller, attributes={"text": text}) for _ in range(2000)]
        for start in range(0, len(spans), 200):
            send(fleet, *spans[start : start + 200])
        fleet.until(lambda: fleet.get("api", f"/traces?caller={caller}&limit=1").json()["total"] == 2000, "stored", 60)
        fleet.until(lambda: sample(fleet, "tokentrace_api_tail_dropped_total") > 0, "dropped")
        slow.start_reading()
        until(lambda: len(slow.spans()) + slow.dropped() == 2000, "accounted for", 60)
        assert slow.spans() == [span["span_id"] for span in spans if span["span_id"] in set(slow.spans())]
    fleet.until(lambda: open_tails(fleet) == 0, "closed")


def test_tails_of_disconnected_clients_are_closed(fleet: Fleet) -> None:
    tails = [Follower(fleet, "caller=none") for _ in range(10)]
    until(lambda: all(tail.comments for tail in tails), "following")
    assert open_tails(fleet) == 10
    for tail in tails:
        tail.close()
    fleet.until(lambda: open_tails(fleet) == 0, "closed")


def test_at_most_a_hundred_tails_are_open_even_if_more_connect_at_once(fleet: Fleet) -> None:
    with ThreadPoolExecutor(40) as pool:
        tails = list(pool.map(lambda _: Follower(fleet, "caller=none"), range(130)))
    statuses = [tail.status for tail in tails]
    try:
        assert (statuses.count(200), statuses.count(503)) == (100, 30)
        assert open_tails(fleet) == 100
        refused = http("GET", fleet.url("api") + "/traces/tail")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"] == "tail: 100 are followed already"
    finally:
        for tail in tails:
            tail.close()
    fleet.until(lambda: open_tails(fleet) == 0, "closed")
    with Follower(fleet) as tail:
        assert tail.status == 200


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("rate=0", "rate: must be over 0"),
        ("rate=x", "rate: 'x' is not a whole number"),
        ("limit=1", "limit: unknown parameter; allowed are caller, kind, "),
        ("status=bad", "status: 'bad' is none of"),
        ("attr.=1", "attr.: unknown parameter"),
        ("since=now", "since: "),
    ],
)
def test_an_invalid_parameter_is_refused_by_name(fleet: Fleet, query: str, named: str) -> None:
    answer = fleet.get("api", f"/traces/tail?{query}")
    assert answer.status == 400
    assert answer.json()["error"].startswith(named)


def test_a_stopping_api_ends_its_tails_and_exits(fleet: Fleet) -> None:
    caller = fresh("stop")
    tails = [Follower(fleet, f"caller={caller}&rate=1000") for _ in range(5)]
    stuck = Follower(fleet, f"caller={caller}&rate=1000", read=False)
    until(lambda: all(tail.comments for tail in tails), "following")
    send(fleet, *[json_span(caller=caller, attributes={"text": "0123456789abcdef" * 1024}) for _ in range(1000)])
    fleet.until(lambda: fleet.get("api", f"/traces?caller={caller}&limit=1").json()["total"] == 1000, "stored", 60)
    assert fleet.terminate("api") == 0
    for tail in tails:
        assert tail.ended.wait(10)
        tail.close()
    stuck.close()
    log = fleet.log.read_text()
    assert "Traceback" not in log
    fleet.start_one("api")
    fleet.until(lambda: fleet.get("api", "/readyz").status == 200, "ready", 60)
