"""Two alerters beside the other services, each a process of its own, and spans that make their rules fire."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import nats

from kit.pipeline import Pipeline, SeparateServices, free_port, http
from kit.receiver import complain
from kit.services import start_service
from tokentrace.bus import subjects

_JSON = {"Content-Type": "application/json"}


def rendered(seconds: float) -> str:
    """Return an instant as in an event."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Twins(SeparateServices):
    """Services as separate processes, with two alerters."""

    SERVICES = ("ingest", "aggregator", "api")
    TWINS = ("one", "two")

    def start(self, *, wait: bool = True) -> None:
        self.ports |= {name: free_port() for name in self.TWINS}
        super().start(wait=wait)
        for name in self.TWINS:
            self.start_twin(name)
        for name in self.TWINS:
            self.wait_twin(name)

    def start_twin(self, name: str) -> None:
        flags = ["--nats", self.nats_url, "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            "tokentrace_alerter", flags, directory=self.directory, env=self.env, log=self.log
        )

    def wait_twin(self, name: str) -> None:
        self.until(lambda: http("GET", f"http://127.0.0.1:{self.ports[name]}/readyz").status == 200, f"{name} ready")

    def send(self, caller: str, cases: Sequence[str], ended: float) -> None:
        """Post calls that ended at *ended* (seconds since 1970), one for each case."""
        spans = [
            {
                "model": "gpt-4o",
                "provider": "openai",
                "prompt_tokens": 512,
                "comp_tokens": 128,
                "caller": caller,
                "ended_at": rendered(ended),
                "attributes": {"case": case},
            }
            for case in cases
        ]
        body = json.dumps(spans).encode()
        assert http("POST", f"http://127.0.0.1:{self.ports['ingest']}/spans", body, _JSON).status == 202

    def send_each_second(self, caller: str, seconds: int, each: int) -> set[tuple[str, str]]:
        """
        In each of the next *seconds* seconds, post *each* calls with distinct cases that end 3 s later.

        A call counts in the second in which it ends, so a slow machine has 3 s to store it.

        Returns:
            For each call (case, end of the window of 1 s that holds the call), both as in an event.
        """
        expected = set()
        for number in range(seconds):
            now = int(time.time()) + 1
            time.sleep(now + 0.1 - time.time())
            second = now + 3
            cases = [f"{caller} {number * each + one} ü*>" for one in range(each)]
            self.send(caller, cases, second + 0.05)
            assert time.time() < second + 0.9, "the calls were stored after their second"
            expected |= {(case, rendered(second + 1)) for case in cases}
        return expected


def undone(pipeline: Pipeline) -> int:
    """Return the count of events that are not acknowledged yet."""

    async def ask() -> int:
        client = await nats.connect(pipeline.nats_url, error_cb=complain)
        try:
            info = await client.jetstream().consumer_info(subjects.ALERTS, subjects.DELIVERY)
            return int(info.num_pending or 0) + int(info.num_ack_pending or 0)
        finally:
            await client.close()

    return asyncio.run(ask())
