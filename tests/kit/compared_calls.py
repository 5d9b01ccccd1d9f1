"""Calls in the last hour, the hour before, yesterday and ten days ago, and recounts of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from kit.metrics_http import make, send
from kit.pipeline import Pipeline

HOUR = 3600


class Call(NamedTuple):
    """One call: when it ended, and its numbers; *helpful* is an eval, None = it has none."""

    at_s: int
    model: str
    user: str
    nusd: int | None
    latency_ms: int
    tokens: int
    status: str
    helpful: float | None


class Traffic(NamedTuple):
    """Calls of one caller around *now_s*, whole hours before it."""

    caller: str
    now_s: int
    calls: list[Call]

    def within(self, from_s: int, to_s: int, **wanted: str) -> list[Call]:
        return [
            call
            for call in self.calls
            if from_s <= call.at_s < to_s and all(getattr(call, key) == value for key, value in wanted.items())
        ]


def instant(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")


def span_of(call: Call, caller: str) -> dict[str, Any]:
    priced = {} if call.nusd is None else {"cost_usd": call.nusd / 1e9}
    return make(
        caller=caller,
        model=call.model,
        user_id=call.user,
        prompt_tokens=call.tokens,
        comp_tokens=0,
        latency_ms=call.latency_ms,
        status=call.status,
        started_at=instant(call.at_s - call.latency_ms / 1000),
        ended_at=instant(call.at_s),
        attributes={
            "team": "red" if call.user < "u-4" else "blue",
            **({} if call.helpful is None else {"eval.helpful": call.helpful}),
        },
        **priced,
    )


def send_calls(pipeline: Pipeline) -> Traffic:
    """Send calls of four hours, whose costs need all digits of a nano-dollar, and return them."""
    random = np.random.default_rng(7)
    now_s = int(time.time()) - 120
    calls = []
    for ago_h, number, models in (
        (0, 60, ("a", "b", "new", "other")),
        (1, 50, ("a", "b", "gone")),
        (24, 40, ("a",)),
        (240, 130, ("a", "b")),
    ):
        for place in range(number):
            model = models[place % len(models)]
            calls.append(
                Call(
                    now_s - ago_h * HOUR - int(random.integers(10, HOUR - 10)),
                    model,
                    f"u-{place % 7}",
                    None if place == 3 else int(random.integers(1, 3_000_000_000)),
                    int(random.integers(1, 60_000)),
                    int(random.integers(1, 5000)),
                    "error" if place % 9 == 0 else "ok",
                    place % 11 / 10 if place % 2 else None,
                )
            )
    caller = f"compared-{now_s}"
    send(pipeline, [span_of(call, caller) for call in calls])
    return Traffic(caller, now_s, calls)


def cost(calls: list[Call]) -> Fraction | None:
    known = [call.nusd for call in calls if call.nusd is not None]
    return Fraction(sum(known), 10**9) if known else None


def groups(calls: list[Call], key: str) -> dict[str, list[Call]]:
    found = defaultdict(list)
    for call in calls:
        found[str(getattr(call, key))].append(call)
    return dict(found)


def assert_change(shown: Mapping[str, Any], now: Fraction | None, before: Fraction | None) -> None:
    if now is None or before is None:
        assert shown == {"absolute": None, "ratio": None}
        return
    assert shown["absolute"] == float(now - before)
    assert shown["ratio"] == (float((now - before) / before) if before else None)
