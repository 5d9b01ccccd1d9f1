"""Both ends of a delivery: an HTTP receiver with chosen answers, and a delivery worker on the memory bus."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import nats

from kit.environment import PATIENCE
from kit.pipeline import Answer, Pipeline, http
from tokentrace.bus import subjects
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.records import AlertEvent
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.units import SECOND, render_instant
from tokentrace_alerter.delivery import Channel, DeliveryWorker
from tokentrace_alerter.rules import parse_rule


class Sent(NamedTuple):
    """A request that the receiver got; *at* is its time by ``time.monotonic``, seconds."""

    at: float
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    def every(self, name: str) -> list[str]:
        """Return the values of all headers called *name*."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """Return the value of the only header called *name*; None = there is none."""
        values: Sequence[str | None] = self.every(name) or [None]
        (value,) = values
        return value

    @property
    def key(self) -> str:
        """The value of the header Idempotency-Key."""
        (value,) = self.every("Idempotency-Key")
        return value

    def json(self) -> Any:
        return json.loads(self.body)


class Reply(NamedTuple):
    """
    An answer of the receiver.

    Attributes:
        status: 0 = the connection is closed without an answer.
        after_s: Delay of the answer after the request, seconds.
        dribble_s: Delay of the body after the head, seconds.
    """

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    after_s: float = 0.0
    dribble_s: float = 0.0


class Receiver:
    """
    An HTTP server that keeps the requests it receives.

    Args:
        port: The port; 0 = a free one.

    Attributes:
        answer: Returns the reply to a request.
        sent: The requests, in order of arrival.
        at_once, most_at_once: How many requests wait for their answer now, and the largest number so far.
    """

    def __init__(self, answer: Callable[[Sent], Reply] = lambda sent: Reply(), port: int = 0) -> None:
        self.answer = answer
        self.sent: list[Sent] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 256

            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore the error: the client has closed the connection."""

        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        sent = Sent(time.monotonic(), handler.path, list(handler.headers.items()), body)
        with self._lock:
            self.sent.append(sent)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            reply = self.answer(sent)
        self._closing.wait(reply.after_s)
        # Before the answer: once the client has it, it may send the next request.
        with self._lock:
            self.at_once -= 1
        if reply.status == 0:
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.flush()
        self._closing.wait(reply.dribble_s)
        handler.wfile.write(reply.body)

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def make_rule(name: str = "rule", delivery: Mapping[str, Any] | None = None, **overrides: Any) -> dict[str, Any]:
    """Return a valid rule in the form of ``POST /alerts``."""
    rule = {"name": name, "metric": "span_count", "op": "gte", "threshold": 1, "window": "1h", **overrides}
    return rule if delivery is None else {**rule, "delivery": dict(delivery)}


def make_event(alert: str = "rule", at_ns: int | None = None, number: int = 0, **overrides: Any) -> AlertEvent:
    """Return a firing of *alert* at *at_ns* (default: now) in whole seconds, plus *number* milliseconds."""
    at_ns = (time.time_ns() if at_ns is None else at_ns) // SECOND * SECOND + number * 1_000_000
    fields: dict[str, Any] = {
        "alert": alert,
        "fired_at": render_instant(at_ns),
        "metric": "span_count",
        "op": "gte",
        "value": 12.5,
        "threshold": 1.0,
        "window": "1h",
        "span_count": 12,
        "filter": {},
        "rule_id": f"alert_{hashlib.sha256(alert.encode()).hexdigest()[:8]}",
        "message": "span_count >= 12.5 (threshold: 1)",
        "starts_at": render_instant(at_ns),
        **overrides,
    }
    return AlertEvent(**fields)


def make_end(event: AlertEvent, at_ns: int | None = None) -> AlertEvent:
    """Return the event that resolves *event*, at *at_ns* (default: now)."""
    at = render_instant(time.time_ns() if at_ns is None else at_ns)
    return msgspec.structs.replace(event, status="resolved", fired_at=at, ends_at=at, value=None, span_count=0)


class DeliveryRun:
    """
    A delivery worker that runs on the memory bus, and the records that it published.

    Args:
        broker: The broker; None = an empty one of its own. Runs on one broker are alerters that share the queue.
        bus: The bus of the worker; None = a plain one on *broker*.
        proxy: URL of the proxy; "" = none.

    Attributes:
        now_ns: The time of a broker of its own, Unix nanoseconds; None = the time of the host.
        stopping: Set it to stop the worker as SIGTERM does, and wait for ``ended``.
    """

    def __init__(
        self,
        *rules: Mapping[str, Any],
        allow_hosts: Sequence[str] | None = ("127.0.0.0/8", "localhost"),
        broker: MemoryBroker | None = None,
        bus: MemoryBus | None = None,
        proxy: str = "",
    ) -> None:
        self.now_ns: int | None = None
        self.broker = broker or MemoryBroker(lambda: time.time_ns() if self.now_ns is None else self.now_ns)
        self.bus = bus or MemoryBus(self.broker)
        self.rules = {rule["name"]: parse_rule(rule, "rule") for rule in rules}
        self.open_episodes: list[AlertEvent] = []
        allowed = AllowedHosts.parse(allow_hosts, "alert_delivery.allow_hosts")
        self.delivery_worker = DeliveryWorker(
            self.bus, "default", self._channel_of, self._rules_read, lambda: list(self.open_episodes), allowed, proxy
        )
        self.stopping = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def _channel_of(self, event: AlertEvent) -> Channel | None:
        rule = self.rules.get(event.alert)
        return rule.delivery if rule is not None else None

    async def _rules_read(self) -> None:
        pass  # The rules of this run never change.

    async def __aenter__(self) -> DeliveryRun:
        for stream in subjects.streams():
            await self.bus.ensure(stream)
        self._work = asyncio.create_task(self.delivery_worker.run(self.stopping))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._work is not None
        self._work.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._work

    async def ended(self) -> None:
        """Stop the worker as SIGTERM does, and return once it has ended."""
        assert self._work is not None
        self.stopping.set()
        async with asyncio.timeout(30 * PATIENCE):
            await self._work

    async def publish(self, *events: AlertEvent) -> None:
        """Publish *events* on the subjects of their rules, without the message ids that the alerter sets."""
        for event in events:
            await self.bus.publish(subjects.alerts("default", event.alert), msgspec.json.encode(event))

    def records(self, rule: str | None = None) -> list[dict[str, Any]]:
        """Return the delivery records, in order; with *rule* only those about it."""
        every = [json.loads(message.payload) for message in self.broker.logs[subjects.DELIVERIES].messages.values()]
        return [record for record in every if rule in (None, record["rule"])]

    def outcomes(self, rule: str | None = None) -> list[str]:
        return [record["outcome"] for record in self.records(rule)]

    @property
    def waiting(self) -> int:
        """The number of events that are not acknowledged."""
        log = self.broker.logs[subjects.ALERTS]
        return len(log.messages.keys() - log.done)

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        """Wait until *condition* holds; fail after *seconds* times ``PATIENCE``, or if the worker ends."""
        deadline = time.monotonic() + seconds * PATIENCE
        while not condition():
            if self._work is not None and self._work.done():
                raise AssertionError(f"the delivery worker has ended instead of: {what}") from self._work.exception()
            assert time.monotonic() < deadline, f"not {what} within {seconds} s; last records: {self.records()[-5:]}"
            await asyncio.sleep(0.01)

    async def done(self, seconds: float = 10.0) -> None:
        """Wait until every event is acknowledged."""
        await self.until(lambda: self.waiting == 0, "done with every event", seconds)


# --- contents of the streams


async def complain(error: Exception) -> None:
    print(f"nats: {error!r}")


async def _read(url: str, name: str) -> list[Any]:
    client = await nats.connect(url, error_cb=complain)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info(name)).state
        numbers = range(max(state.first_seq, 1), state.last_seq + 1)
        stored = await asyncio.gather(*(stream.get_msg(name, number) for number in numbers))
        return [json.loads(message.data or b"") for message in stored]
    finally:
        await client.close()


def read(pipeline: Pipeline, name: str, rule: str) -> list[Any]:
    """Return the decoded messages of the stream *name* about *rule*, in order."""
    every = asyncio.run(_read(pipeline.nats_url, name))
    return [message for message in every if rule in (message.get("alert"), message.get("rule"))]


def events(pipeline: Pipeline, rule: str, status: str = "firing") -> list[Any]:
    return [event for event in read(pipeline, subjects.ALERTS, rule) if event["status"] == status]


def kept(directory: Path, name: str) -> list[Any]:
    path = directory / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- rules over HTTP

CALL = {"model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, "caller": "chat"}


def path_of(name: str, what: str = "") -> str:
    return f"/alerts/{quote(name, safe='')}{what}"


def delete(pipeline: Pipeline, name: str) -> Answer:
    return http("DELETE", pipeline.url + path_of(name))


def assert_holds_at_once(services: Pipeline) -> None:
    """Check for twenty rules that each change is in effect when it is answered: create, silence, delete."""
    wrong = Counter[str]()
    for number in range(20):
        name = f"at once {number}"
        assert services.post("/alerts", make_rule(name)).status == 201
        wrong["status after POST"] += services.get(path_of(name, "/status")).status != 200
        wrong["silence"] += services.post(path_of(name, "/silence"), {"duration": "1h"}).status != 200
        wrong["second POST"] += services.post("/alerts", make_rule(name)).status != 409
        wrong["DELETE"] += delete(services, name).status != 204
        wrong["status after DELETE"] += services.get(path_of(name, "/status")).status != 404
        wrong["POST after DELETE"] += services.post("/alerts", make_rule(name)).status != 201
        time.sleep(0.05)
        delete(services, name)
    assert +wrong == Counter()


HOOKS = '''
import asyncio
import json
import time


def _keep(where, payload):
    with open(where, "a") as file:
        file.write(json.dumps(payload) + "\\n")


def plain(payload):
    _keep("plain.jsonl", payload)


async def waits(payload):
    await asyncio.sleep(0.01)
    _keep("waits.jsonl", payload)


def wrapped(payload):
    """A plain function that returns a coroutine, as a decorator may make of a coroutine function."""
    return waits(payload)


class _Object:
    def deliver(self, payload):
        _keep("object.jsonl", payload)


class _Called:
    async def __call__(self, payload):
        _keep("called.jsonl", payload)


one, called = _Object(), _Called()
tries = []


def raises(payload):
    tries.append(payload)
    if len(tries) <= 2:
        raise RuntimeError(f"not today {len(tries)}")
    _keep("raises.jsonl", payload)


def hangs(payload):
    time.sleep(60)


not_callable = 5
'''
SECRETS = ("geheim-user", "geheim-word", "geheim-query", "geheim-header", "geheim-key")

#: A configuration with rules for each outcome of a delivery; ``{host}`` is the receiver.
SERVED = """
alerts:
  - name: configured
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    cooldown: 2s
    filter: {{caller: configured}}
  - name: refused
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    filter: {{caller: webhooks}}
    delivery:
      type: http
      url: "http://geheim-user:geheim-word@{host}/refused?token=geheim-query"
      headers: {{X-Token: geheim-header}}
      secret: geheim-key
  - name: own function
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    filter: {{caller: webhooks}}
    delivery: {{type: custom, target: "hooks:waits"}}
"""
