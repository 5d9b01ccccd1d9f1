"""When the requests of the past were made, in which condition, and the nightly job; without I/O and a clock."""

from __future__ import annotations

import math
import random
import secrets
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from msgspec.structs import replace

from tokentrace.records import Span, Started
from tokentrace.units import SECOND
from tokentrace_standalone.demo_traffic import version_at

_HOUR_S, _DAY_S = 3600, 86_400
#: The past is divided into pieces of this many seconds, each with its own share of the requests.
_PIECE_S = 600
#: (Begin, end, condition) of what went wrong, in seconds before the present, within each week.
_INCIDENTS = (
    (5.30 * _DAY_S, 5.18 * _DAY_S, "slow"),
    (3.15 * _DAY_S, 3.08 * _DAY_S, "spike"),
    (1.20 * _DAY_S, 1.16 * _DAY_S, "outage"),
    (5 * _HOUR_S, 4.4 * _HOUR_S, "slow"),
    (38 * 60, 33 * 60, "outage"),
    (22 * 60, 16 * 60, "spike"),
)
#: The two quiet days of each week, in days before the present.
_WEEKEND = (2.4, 4.4)
JOB = "nightly-report"
_JOB_MODEL, _JOB_PROVIDER = "acme-writer-7b", "acme"


def busyness(age_s: float) -> float:
    """
    Return how busy the services were *age_s* seconds ago, over 0 and up to 1.

    The present is the busiest time of a day, whatever the clock says, so that a demo shows the same at any time of day.
    """
    wave = (1 + math.cos(2 * math.pi * age_s / _DAY_S)) / 2
    quiet = 0.45 if _WEEKEND[0] <= age_s / _DAY_S % 7 < _WEEKEND[1] else 1.0
    return (0.08 + 0.92 * math.pow(wave, 1.5)) * quiet


def condition_at(age_s: float) -> str:
    """Return the condition *age_s* seconds ago, as ``demo_traffic.condition`` names it."""
    of_week = age_s % (7 * _DAY_S)
    return next((state for begin, end, state in _INCIDENTS if end <= of_week < begin), "normal")


def requests_in(length_s: float, rate: float) -> int:
    """Return how many requests *length_s* seconds of the past have, with *rate* a second at the busiest time."""
    return round(sum(_shares(length_s)) * rate)


def request_ages(dice: random.Random, length_s: float, count: int) -> list[float]:
    """Return how long ago each of *count* requests was made, in seconds up to *length_s*, the oldest first."""
    sums = list(accumulate(_shares(length_s)))
    ages = []
    for _ in range(count):
        piece = bisect_left(sums, dice.random() * sums[-1])
        ages.append(min(length_s, (piece + dice.random()) * _PIECE_S))
    return sorted(ages, reverse=True)


def _shares(length_s: float) -> list[float]:
    """Return the expected number of requests of each piece of the past, the newest first, at one request a second."""
    starts = range(0, math.ceil(length_s), _PIECE_S)
    return [busyness(start + _PIECE_S / 2) * min(_PIECE_S, length_s - start) for start in starts]


class Job:
    """
    A run of the nightly report: its start is told at once, then each of its parts, and its end last.

    No price of its model is known, so its calls are unpriced.

    Args:
        started_ns: When it starts, Unix nanoseconds.
    """

    PARTS = 6

    def __init__(self, dice: random.Random, started_ns: int, age_s: float = 0.0) -> None:
        self._dice, self._version = dice, version_at(age_s)
        self._trace, self._root = secrets.token_hex(16), secrets.token_hex(8)
        self._started_ns = self._at_ns = started_ns
        self._done = 0

    def start(self) -> Started:
        """Return the start of the job."""
        return Started(
            trace_id=self._trace,
            span_id=self._root,
            name=JOB,
            kind="workflow",
            caller=JOB,
            started_ns=self._started_ns,
            session_id=f"{JOB}-{self._root}",
            metadata={"version": self._version, "label": "Report of the day"},
        )

    def part(self, now_ns: int) -> Span:
        """Return the next part, which ended at *now_ns*, Unix nanoseconds; after ``PARTS`` of them, the whole job."""
        self._done += 1
        whole = self._done > self.PARTS
        span = Span(
            trace_id=self._trace,
            span_id=self._root if whole else secrets.token_hex(8),
            parent_span_id=None if whole else self._root,
            name=JOB if whole else f"chapter {self._done}",
            kind="workflow" if whole else "llm",
            caller=JOB,
            started_ns=self._started_ns if whole else self._at_ns,
            ended_ns=now_ns,
            latency_ns=now_ns - (self._started_ns if whole else self._at_ns),
            session_id=f"{JOB}-{self._root}",
            attributes={"version": self._version, "label": "Report of the day"},
        )
        self._at_ns = now_ns
        if whole:
            return span
        prompt, completion = self._dice.randint(8_000, 30_000), self._dice.randint(800, 3_000)
        return replace(
            span,
            model=_JOB_MODEL,
            provider=_JOB_PROVIDER,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
        )


def nightly_jobs(dice: random.Random, now_ns: int, length_s: float) -> Iterator[tuple[Started, list[Span]]]:
    """
    Yield (start, spans) of one job for each night of the last *length_s* seconds, the oldest first.

    The job of the night before the last one was killed: it has no end.
    """
    nights = int((length_s / _DAY_S) + 0.5)
    for night in range(nights, 0, -1):
        age_s = (night - 0.5) * _DAY_S
        job = Job(dice, now_ns - int(age_s * SECOND), age_s)
        killed = night == 2
        ends = accumulate(dice.randint(20, 90) * SECOND for _ in range(3 if killed else Job.PARTS + 1))
        yield job.start(), [job.part(now_ns - int(age_s * SECOND) + end) for end in ends]
