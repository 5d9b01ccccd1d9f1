"""Real services, senders that keep what they sent, and kills while they send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nats

from kit.call_log import TELLING, Kept, read_log, waiting
from kit.call_machines import RULES, batch_of
from kit.call_recount import Recount, Sent, milliseconds
from kit.call_views import Views
from kit.fleet import Fleet
from kit.pipeline import http
from kit.raw_stream import create_streams
from tokentrace.records import encode_batches

_RULES = [{**rule, "eval_interval": "1s"} for rule in RULES]
_JSON = {"Content-Type": "application/json"}
RAW = "tokentrace.raw.default.0"


class CallFleet(Fleet):
    """
    Services that remember a given number of calls, and the senders of histories.

    Args:
        shards: Shard count.
        aggregators: One, or two that hold half of the shards each; a single shard is held by both.
        calls: Number of calls that a shard remembers, a power of two.
        seed: Decides when which service is killed.

    Attributes:
        kept: Number of a telling -> what its sender kept.
    """

    def __init__(self, directory: Path, shards: int, aggregators: int, calls: int, seed: int) -> None:
        half = shards // 2
        two = {"aggregator-0": f"0-{half - 1}", "aggregator-1": f"{half}-{shards - 1}"} if half else {}
        self._own = two if aggregators == 2 else {}
        self._shards, self._calls = shards, calls
        self._dice = random.Random(seed)
        self.kept: dict[int, Kept] = {}
        self._numbers: dict[int, int] = {}
        names = ["ingest", *(f"aggregator-{number}" for number in range(aggregators)), "alerter", "api"]
        super().__init__(directory, names, {"TOKENTRACE_SHARD_COUNT": str(shards)})
        (directory / "tokentrace.yml").write_text(json.dumps({"alerts": _RULES}))

    def start(self) -> None:
        """Start the broker, agree on the size of the memory, and start the services."""
        self.broker.start()
        create_streams(self.broker.url)

        async def agree() -> None:
            client = await nats.connect(self.broker.url)
            bucket = await client.jetstream().key_value("tt_meta")
            await bucket.put("calls", str(self._calls).encode())
            await client.close()

        asyncio.run(agree())
        for name in self.ports:
            self.start_one(name)
        for name in self.ports:
            self.until(partial(self.is_ready, name), f"{name} ready", 90)

    def start_one(self, name: str) -> None:
        """Start one service and return at once; an aggregator gets its shards."""
        every = self.env
        self.env = {**every, "TOKENTRACE_OWN_SHARDS": self._own[name]} if name in self._own else every
        try:
            super().start_one(name)
        finally:
            self.env = every

    # -- senders

    def deliver(self, history: Sequence[Sent], kills: int) -> None:
        """Send *history* in order; before some batches, kill a service and start it again at once."""
        killed_at = sorted(self._dice.sample(range(len(history)), kills))
        for number, sent in enumerate(history):
            if number in killed_at:
                name = self._dice.choice(sorted(self.ports))
                self.kill(name)
                self.start_one(name)
            self._send(sent)

    def _send(self, sent: Sent) -> None:
        spans = [self._keep(span, sent.way) for span in sent.spans]
        if sent.way == "costkatana":
            self._post(
                "/api/traces/ingest", json.dumps({"spans": list(map(_costkatana, spans))}).encode(), sent.request
            )
        elif sent.way == "mist":
            for index, span in enumerate(spans):
                self._post("/mist", _mist(span), f"{sent.request} {index}")
        elif sent.way == "spans":
            self._post("/spans", json.dumps(spans).encode(), sent.request)
        else:
            encoded = json.dumps(spans).encode() if sent.way == "nats" else _reported(sent, spans)
            asyncio.run(self._publish(encoded))

    def _keep(self, span: dict[str, Any], way: str) -> dict[str, Any]:
        # A batch that is sent again holds the same tellings, with the same numbers.
        number = self._numbers.setdefault(id(span), len(self._numbers))
        # Cost Katana's clients name no trace, so ingest makes the ids of their spans.
        left_out = ("trace_id", "span_id") if way == "costkatana" else ()
        self.kept[number] = Kept({name: value for name, value in span.items() if name not in left_out}, way)
        return {**span, "attributes": {TELLING: number}}

    async def _publish(self, payload: bytes) -> None:
        client = await nats.connect(self.broker.url)
        await client.jetstream().publish(RAW, payload)
        await client.close()

    def _post(self, path: str, body: bytes, key: str) -> None:
        """Post until it is accepted; the Idempotency-Key makes the repetitions one request."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                answer = http("POST", self.url("ingest") + path, body, {**_JSON, "Idempotency-Key": key})
                if answer.status in (200, 202):
                    return
                assert answer.status == 503, answer.body
            time.sleep(0.05)
        raise AssertionError(f"{path} is not accepted")

    # -- comparison

    def recount(self) -> Recount:
        """Return the recount of the log, once ingest has read everything that was sent."""
        self.until(lambda: waiting(self.broker.url) == 0, "all raw messages read", 60)
        log = read_log(self.broker.url, self.kept)
        assert {span[TELLING] for sent in log for span in sent.spans} == self.kept.keys()
        recount = Recount(self._calls * self._shards)
        for sent in log:
            recount.read(sent)
        return recount

    def await_agreement(self, recount: Recount, seconds: float = 60.0) -> None:
        """Wait until every answer agrees with *recount*; fail with the differences that remain after *seconds*."""
        sent_ms, deadline = time.time() * 1000, time.monotonic() + seconds
        differences = ["nothing was asked"]
        while differences and time.monotonic() < deadline:
            time.sleep(0.2)
            try:
                differences = self._disagreements(recount, sent_ms)
            except (OSError, KeyError, AssertionError) as exc:
                differences = [f"{type(exc).__name__}: {exc}"]
        assert not differences, differences

    def _disagreements(self, recount: Recount, sent_ms: float) -> list[str]:
        views = Views(self._text, recount, page=100)
        return [
            *views.metrics(),
            *views.prometheus(),
            *views.stored(),
            *views.rules(_RULES, lambda name: self._status(name, sent_ms)),
        ]

    def await_equal_memories(self) -> None:
        """Wait until all readers have published what they remembered at the same message of each shard; it is equal."""
        readers = {"alerter.0", *(f"{name}.{shard}" for name in ("aggregator", "api") for shard in range(self._shards))}
        per_shard = 3

        def is_compared() -> bool:
            told = asyncio.run(self._digests())
            told_by = {reader for by_reader in told.values() for reader in by_reader}
            return told_by == readers and all(
                any(len(by_reader) == per_shard for at, by_reader in told.items() if at[0] == shard)
                for shard in map(str, range(self._shards))
            )

        self.until(is_compared, "memories published", 30)
        told = asyncio.run(self._digests())
        assert [at for at, by_reader in told.items() if len(set(by_reader.values())) > 1] == []

    async def _digests(self) -> dict[tuple[str, int], dict[str, tuple[int, int]]]:
        """Return (shard, sequence) -> reader -> (number of calls, digest)."""
        client = await nats.connect(self.broker.url)
        bucket = await client.jetstream().key_value("tt_meta")
        told: dict[tuple[str, int], dict[str, tuple[int, int]]] = {}
        for key in await bucket.keys():
            if key.startswith("calls."):
                for shard, digests in json.loads((await bucket.get(key)).value or b"")["digests"].items():
                    for sequence, calls, digest in digests:
                        told.setdefault((shard, sequence), {})[key.removeprefix("calls.")] = (calls, digest)
        await client.close()
        return told

    def _text(self, path: str) -> str:
        answer = self.get("api", path)
        assert answer.status == 200, (path, answer.status, answer.body[:300])
        return answer.body.decode()

    def _status(self, name: str, sent_ms: float) -> Any:
        status = json.loads(self._text(f"/alerts/{quote(name)}/status"))
        # An instant that was evaluated before everything was sent may lack something.
        assert milliseconds(status["next_evaluation"]) > sent_ms + 3000, status
        return status


def _reported(sent: Sent, spans: Sequence[dict[str, Any]]) -> bytes:
    return encode_batches([batch_of(sent._replace(spans=list(spans)))])


def _costkatana(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span as clients of Cost Katana send it after its end."""
    metadata = {**span["attributes"], "response_id": span.get("response_id", ""), "scope_name": span.get("scope", "")}
    metadata |= {name: span[name] for name in ("caller", "provider") if name in span}
    names = {"cost_usd": "costUSD", "model": "model", "session_id": "sessionId", "user_id": "userId"}
    names |= {"kind": "type", "started_at": "startedAt", "ended_at": "endedAt", "name": "name", "status": "status"}
    counts = {"input": span["prompt_tokens"], "output": span["comp_tokens"]}
    return {
        **{names[name]: span[name] for name in names if name in span},
        **({"tokens": counts} if any(counts.values()) else {}),
        "metadata": {name: value for name, value in metadata.items() if value != ""},
    }


def _mist(span: dict[str, Any]) -> bytes:
    """Return a span as MIST's tools send it."""
    names = {"prompt_tokens": "tokens_in", "comp_tokens": "tokens_out", "scope": "scope_name", "kind": "type"}
    named = ("model", "provider", "cost_usd", "caller", "session_id", "user_id", "response_id")
    attrs = {**span["attributes"], **{name: span[name] for name in named if name in span}}
    attrs |= {names[name]: span[name] for name in names if span.get(name)}
    payload: dict[str, Any] = {
        **{name: span[name] for name in ("trace_id", "span_id") if name in span},
        "operation": span["name"],
        "start_ns": milliseconds(span["started_at"]) * 10**6,
        "end_ns": milliseconds(span["ended_at"]) * 10**6,
        "status": span["status"],
        "attrs": attrs,
    }
    raw = json.dumps(payload).encode()
    head = {"version": "1", "id": "m", "source": "", "type": "trace.span", "checksum": zlib.crc32(raw)}
    return json.dumps(head).encode()[:-1] + b', "payload": ' + raw + b"}"
