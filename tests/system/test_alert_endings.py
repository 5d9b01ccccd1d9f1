"""Two alerters that are killed at random moments tell the end of every episode of a rule that is gone, once."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nats
import pytest

from kit.pipeline import SeparateServices, free_port, http
from kit.receiver import CALL, Receiver, complain, path_of
from kit.services import start_service

pytestmark = pytest.mark.story

CASES = ("a", "b", "c")
JSON = {"Content-Type": "application/json"}


def rule(name: str, url: str) -> dict[str, Any]:
    """Return a rule with an instance for each case of the caller *name*; an instance fires once an hour."""
    return {
        "name": name,
        "metric": "span_count",
        "op": "gte",
        "threshold": 1,
        "window": "1h",
        "eval_interval": "1s",
        "group_by": "case",
        "filter": {"caller": name},
        "delivery": {"type": "http", "url": url, "send_resolved": True},
    }


class Alerters(SeparateServices):
    """Services as separate processes, with two alerters."""

    TWINS = ("one", "two")

    def start(self, *, wait: bool = True) -> None:
        self.ports |= {name: free_port() for name in self.TWINS}
        super().start(wait=wait)
        for name in self.TWINS:
            self.start_twin(name)

    def write_rules(self, *rules: dict[str, Any]) -> None:
        (self.directory / "tokentrace.yml").write_text(json.dumps({"alerts": list(rules)}))

    def start_twin(self, name: str) -> None:
        flags = ["--nats", self.nats_url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            "tokentrace_alerter", flags, directory=self.directory, env=self.env, log=self.log
        )
        ready = f"http://127.0.0.1:{self.ports[name]}/readyz"
        self.until(lambda: http("GET", ready).status == 200, f"{name} ready")

    def restart_twin(self, name: str) -> None:
        self.kill_one(name)
        self.start_twin(name)

    def change(self, method: str, path: str, body: Any = None) -> None:
        """Repeat a request until an alerter has carried it out: it may be killed before it answers."""
        data = None if body is None else json.dumps(body).encode()
        self.until(lambda: http(method, self.url + path, data, JSON).status in (200, 201, 204, 404, 409), path)

    def events(self) -> list[dict[str, Any]]:
        """Return all events on TT_ALERTS."""

        async def read() -> list[dict[str, Any]]:
            client = await nats.connect(self.nats_url, error_cb=complain)
            try:
                stream = client.jetstream()
                state = (await stream.stream_info("TT_ALERTS")).state
                numbers = range(max(state.first_seq, 1), state.last_seq + 1)
                stored = [await stream.get_msg("TT_ALERTS", number) for number in numbers]
                return [json.loads(message.data or b"") for message in stored]
            finally:
                await client.close()

        return asyncio.run(read())


def test_each_end_is_published_once_and_delivered_through_kills(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    in_file, created = [f"file {number}" for number in range(4)], [f"created {number}" for number in range(4)]
    with Receiver() as receiver:
        services = Alerters(tmp_path)
        services.write_rules(*(rule(name, receiver.url) for name in in_file))
        try:
            services.start()
            for name in created:
                services.change("POST", "/alerts", rule(name, receiver.url))
            calls = [
                {**CALL, "caller": name, "attributes": {"case": case}}
                for name in (*in_file, *created)
                for case in CASES
            ]
            ingest = f"http://127.0.0.1:{services.ports['ingest']}/spans"
            assert http("POST", ingest, json.dumps(calls).encode(), JSON).status == 202
            services.until(lambda: told(receiver, "firing") == dict.fromkeys(instances(in_file, created), 1), "fired")

            def remove() -> None:
                for name in created:
                    time.sleep(dice.uniform(0, 1))
                    services.change("DELETE", path_of(name))

            services.write_rules()
            removing = threading.Thread(target=remove)
            removing.start()
            while removing.is_alive():
                services.restart_twin(dice.choice(services.TWINS))
                time.sleep(dice.uniform(0, 1))
            removing.join()
            for name in services.TWINS:
                services.restart_twin(name)
            expected = set(instances(in_file, created))
            services.until(lambda: set(told(receiver, "resolved")) == expected, "ended at the receiver")
            # What comes twice would come now.
            time.sleep(3)
            published = Counter(
                (event["alert"], event["group"]["case"], event["status"]) for event in services.events()
            )
        finally:
            services.stop()
        both = [(*instance, status) for instance in expected for status in ("firing", "resolved")]
        assert published == dict.fromkeys(both, 1)
        assert told(receiver, "firing") == told(receiver, "resolved") == dict.fromkeys(expected, 1)
        ended_by = {event["alert"].split()[0]: event["ended_by"] for event in ended(receiver)}
        assert ended_by == {"file": "removed", "created": "deleted"}
        assert "Traceback" not in services.log.read_text()


def ended(receiver: Receiver) -> list[dict[str, Any]]:
    return [event for sent in receiver.sent for event in [sent.json()] if event["status"] == "resolved"]


def instances(*names: list[str]) -> list[tuple[str, str]]:
    return [(name, case) for group in names for name in group for case in CASES]


def told(receiver: Receiver, status: str) -> dict[tuple[str, str], int]:
    """Return how many different keys with *status* the receiver has got for each (rule, case)."""
    keys = {
        (event["alert"], event["group"]["case"], sent.key)
        for sent in list(receiver.sent)
        for event in [sent.json()]
        if event["status"] == status
    }
    return dict(Counter((name, case) for name, case, _ in keys))
