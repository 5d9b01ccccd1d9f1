"""
Random histories: what several senders kept, in the order of their sending.

A history is made from a list of integers, of which each decides one telling. So Hypothesis shrinks a history by
shrinking integers, and a seed gives thousands of histories quickly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from hypothesis import strategies as st

from kit.call_recount import Sent, milliseconds

T = TypeVar("T")

#: A model that no table of prices knows.
UNKNOWN_MODEL = "nobody-knows-9b"
#: What is told of a call: the kind, who was called, what was used and what it cost in nano-dollars (None = not told).
SHAPES: Sequence[dict[str, Any]] = (
    {"kind": "llm", "model": "gpt-4o", "provider": "openai", "tokens": (512, 128), "nusd": 1_375_000},
    {"kind": "llm", "model": UNKNOWN_MODEL, "provider": "nobody", "tokens": (374, 44), "nusd": None},
    {"kind": "llm", "model": "o3", "provider": "openai", "tokens": (9, 0), "nusd": 1},
    {
        "kind": "embedding",
        "model": "text-embedding-3-small",
        "provider": "openai",
        "tokens": (8_000, 0),
        "nusd": 160_000,
    },
    {"kind": "agent", "model": "gpt-4o", "provider": "openai", "tokens": (5_000, 700), "nusd": 99_000_001},
    {"kind": "http", "model": "", "provider": "", "tokens": (11, 3), "nusd": 77_000_003},
    {"kind": "tool", "model": "", "provider": "", "tokens": (0, 0), "nusd": 250_000_000_007},
    {"kind": "tool", "model": "", "provider": "", "tokens": (0, 0), "nusd": None},
    {"kind": "llm", "model": UNKNOWN_MODEL, "provider": "nobody", "tokens": (0, 0), "nusd": None, "status": "error"},
)
#: Forms of response ids. ``{}`` stands for the number of the call; without it, many calls have the same id.
RESPONSES = (
    "",
    "chatcmpl-{:016x}",
    "chatcmpl-{}",
    "",
    "chatcmpl-0123456789abcdef",
    "chatcmpl-7",
    "resp (unusable) {}",
    "0123456789a{:x}",
)
#: How a call is told again.
CHANGES = (
    "same",
    "other span",
    "cost",
    "tokens",
    "no usage",
    "other span and provider",
    "no response id",
    "other span and tokens",
    "unknown cost",
    "user and session",
)
#: Pauses between two tellings of one call by different spans, milliseconds.
GAPS_MS = (0, 4_999, 5_000, 5_001, 59_999, 60_000, 60_001, 600_000)
AGES_S = (900, 1_200, 2_400, 3 * 3600, 20 * 3600)
SCOPES = ("", "openinference.instrumentation.openai", "opentelemetry.instrumentation.openai_v2")
WAYS = ("reporter", "spans", "nats", "reporter", "mist", "costkatana")
SENDERS = ("default.web.00000000000000000000000000000001", "default.job.00000000000000000000000000000002")
#: No telling ends later than this before the present, milliseconds.
_RECENT_MS = 120_000
#: None ends between these times before the present: a test takes minutes, in which it would leave the last hour.
_OLDEST_IN_HOUR_MS, _NEWEST_BEFORE_HOUR_MS = 2_700_000, 3_720_000

HISTORIES = st.lists(st.integers(0, 2**48), min_size=1, max_size=60)


def random_history(seed: int, size: int = 60) -> list[int]:
    """Return the integers of a history."""
    dice = random.Random(seed)
    return [dice.getrandbits(48) for _ in range(size)]


class _Choices:
    """Choices that one integer makes."""

    def __init__(self, number: int) -> None:
        self._rest = number

    def of(self, values: Sequence[T]) -> T:
        self._rest, at = divmod(self._rest, len(values))
        return values[at]


def instant(ms: int) -> str:
    """Return Unix milliseconds as an RFC 3339 instant."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"


class History:
    """
    What the senders kept.

    Args:
        numbers: The integers that decide.
        now_ms: The present, Unix milliseconds; every telling ended before it.
        ways: The ways of sending that are used.
        batch: Mean number of tellings in a batch.

    Attributes:
        sent: The batches in the order of their sending, repetitions included.
    """

    def __init__(self, numbers: Sequence[int], now_ms: int, ways: Sequence[str] = WAYS, *, batch: int = 6) -> None:
        self._now_ms, self._ways, self._batch = now_ms, ways, batch
        self._told: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self._counts: dict[str, int] = {}
        self._made = 0
        self.sent: list[Sent] = []
        for number in numbers:
            self._act(_Choices(number))
        self._close(_Choices(0))

    def _act(self, choices: _Choices) -> None:
        what = choices.of(("new", "again", "again", "new", "batch again"))
        if what == "batch again" and self.sent:
            self._close(choices)
            self.sent.append(choices.of(self.sent))
            return
        span = self._again(choices) if what == "again" and self._told else self._new(choices)
        self._told.append(span)
        self._open.append(span)
        if choices.of(range(self._batch)) == self._batch - 1:
            self._close(choices)

    def _close(self, choices: _Choices) -> None:
        if self._open:
            way, sender = choices.of(self._ways), choices.of(SENDERS)
            sent = Sent(way, self._open, request=f"request-{len(self.sent)}")
            if way == "reporter":
                self._counts[sender] = self._counts.get(sender, 0) + 1
                sent = Sent(way, self._open, sender, self._counts[sender])
            # Some batches overtake the one before.
            self.sent.insert(len(self.sent) - choices.of((0, 0, 0, 1)), sent)
            self._open = []

    def _ids(self) -> dict[str, str]:
        self._made += 1
        return {"trace_id": f"{self._made // 3:032x}", "span_id": f"{self._made:016x}"}

    def _new(self, choices: _Choices) -> dict[str, Any]:
        ids = self._ids()
        shape = choices.of(SHAPES)
        response_id = choices.of(RESPONSES).format(self._made)
        end_ms = self._now_ms - 1000 * choices.of(AGES_S)
        span: dict[str, Any] = {
            **ids,
            "name": choices.of(("answer", "plan")),
            "kind": shape["kind"],
            "model": shape["model"],
            "provider": shape["provider"],
            "caller": choices.of(("shop", "desk")),
            "status": shape.get("status", "ok"),
            "prompt_tokens": shape["tokens"][0] and shape["tokens"][0] + self._made,
            "comp_tokens": shape["tokens"][1],
            "latency_ms": 1000,
            "started_at": instant(end_ms - choices.of((1000, 0, 30_000))),
            "ended_at": instant(end_ms),
            "session_id": choices.of(("basket", "chat")),
            "user_id": choices.of(("ann", "bob")),
            "response_id": response_id,
            "scope": choices.of(SCOPES),
        }
        if shape["nusd"] is not None:
            # The squares keep a sum from being right by chance.
            span["cost_usd"] = (shape["nusd"] + 7 * self._made**2) / 10**9
        if choices.of((False, False, False, True)):
            del span["trace_id"], span["span_id"]
        return {name: value for name, value in span.items() if value != ""}

    def _again(self, choices: _Choices) -> dict[str, Any]:
        # The newest tellings are told again most often, so that old ones are told again after they are forgotten.
        span = dict(choices.of(self._told[-4:]) if choices.of((True, False)) else choices.of(self._told))
        change = choices.of(CHANGES)
        if "other span" in change:
            span |= self._ids()
            span |= self._moved(span, choices)
            scope = choices.of(SCOPES)
            span = {name: value for name, value in {**span, "scope": scope}.items() if value != ""}
        if "provider" in change and span.get("provider"):
            span["provider"] = "azure"
        if change == "cost":
            span["cost_usd"] = (4_000_000 + 11 * len(self._told)) / 10**9
        elif change == "user and session":
            span |= {"user_id": "eve", "session_id": "attic"}
        elif change == "no response id":
            span.pop("response_id", None)
        elif change == "unknown cost" and span["kind"] in ("llm", "embedding"):
            span.pop("cost_usd", None)
            span["model"] = UNKNOWN_MODEL
        elif change == "no usage":
            span.pop("cost_usd", None)
            span |= {"prompt_tokens": 0, "comp_tokens": 0, "status": "error", "model": UNKNOWN_MODEL}
        elif "tokens" in change and span["prompt_tokens"]:
            span["prompt_tokens"] += 3
        return span

    def _moved(self, span: dict[str, Any], choices: _Choices) -> dict[str, str]:
        """Return instants of *span* with a pause before or after its interval, unless that is too near an edge."""
        start_ms, end_ms = milliseconds(span["started_at"]), milliseconds(span["ended_at"])
        shift = end_ms - start_ms + choices.of(GAPS_MS)
        if choices.of((True, False)):
            shift = -shift
        age_ms = self._now_ms - end_ms - shift
        if age_ms < _RECENT_MS or _OLDEST_IN_HOUR_MS < age_ms < _NEWEST_BEFORE_HOUR_MS:
            return {}
        return {"started_at": instant(start_ms + shift), "ended_at": instant(end_ms + shift)}
