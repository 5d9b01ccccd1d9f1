"""Request bodies: gzip with very many members, and the checks that every request passes."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from typing import Any

from bench.reference import DECODE, at_most
from bench.row import Budget, Measured, Plan, Runner
from bench.table import seconds_per_call
from tokentrace.service.admit import Admission
from tokentrace.service.body import MAX_BODY_BYTES, inflate

_MEMBER = gzip.compress(b"")
_MANY = 1024 * 1024 // len(_MEMBER)
_TURNS = 5

MEMBERS = Plan("1 MiB of empty gzip members", "s", "8 times an eighth of it", Budget("<=", 1.6))
LARGEST = Plan("8 MiB of empty gzip members", "s", "8 times an eighth of it", Budget("<=", 1.6))
ADMIT = Plan("Host, Origin and content type of a POST", "s", DECODE, at_most(2e-6, DECODE))
PLANS = (MEMBERS, LARGEST, ADMIT)


def run(runner: Runner) -> None:
    """Measure bodies of many members, and the checks of a request."""
    runner.row(MEMBERS, lambda: _members(_MANY))
    runner.row(LARGEST, lambda: _members(8 * _MANY))
    runner.row(ADMIT, _admit)


def _members(count: int) -> Measured:
    """Compare a body of *count* members with one of an eighth of them: the time is linear if the ratio is 1."""
    part, whole = _MEMBER * (count // 8), _MEMBER * count
    parts, wholes = [], []
    for _ in range(_TURNS):
        parts.append(_seconds(lambda: inflate(part, MAX_BODY_BYTES)))
        wholes.append(_seconds(lambda: inflate(whole, MAX_BODY_BYTES)))
    return Measured(min(wholes), 8 * min(parts), f"{count:,} members, {len(whole):,} bytes")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _admit() -> Measured:
    sent = {"host": "127.0.0.1:8700", "user-agent": "curl/8.5.0", "accept": "*/*", "content-length": "140"}
    headers = {**sent, "content-type": "application/json", "idempotency-key": "job-42"}
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/spans",
        "scheme": "http",
        "server": ("127.0.0.1", 8700),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    admission = Admission()
    return Measured(seconds_per_call(lambda: admission.admit(scope)), note=f"{len(headers)} headers")
