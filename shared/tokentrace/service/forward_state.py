"""The state of each target of ``otlp.forward``: every ingest process tells it, and the api adds it up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tokentrace.records import Natural


class ForwardState(msgspec.Struct, frozen=True, kw_only=True):
    """
    What was sent to a backend of `otlp.forward`, and what waits.

    Attributes:
        to: Scheme, host and port of its URL.
        waiting: Number of requests that wait to be sent or acknowledged.
        lag_s: How long the oldest of them has waited, seconds.
        sent: Number of requests that it took since the processes started.
        refused: Number of requests that it refused for good since then; they are not sent again.
        rejected_records: Number of records that it refused of requests that it took.
        lost: Number of requests that were discarded before they were sent, because they were too many or too old, since
            the target was configured.
        failing: Why the last request was not sent and is tried again; empty = it was.
        last_error: What went wrong last; empty = nothing.
        last_error_at: When that was; empty = never.
    """

    to: str
    waiting: Natural = 0
    lag_s: float = 0.0
    sent: Natural = 0
    refused: Natural = 0
    rejected_records: Natural = 0
    lost: Natural = 0
    failing: str = ""
    last_error: str = ""
    last_error_at: str = ""


def add_up(told: Iterable[Mapping[str, ForwardState]]) -> dict[str, ForwardState]:
    """
    Return target -> its state, from what each process tells.

    Each process counts what it sends. What waits and what was lost is the same for all, and they measure it at
    different times, so the highest value counts.
    """
    found: dict[str, ForwardState] = {}
    for states in told:
        for name, state in states.items():
            known = found.get(name)
            found[name] = state if known is None else _sum(known, state)
    return dict(sorted(found.items()))


def _sum(one: ForwardState, other: ForwardState) -> ForwardState:
    # Times of one form and length compare as texts.
    last = max(one, other, key=lambda state: state.last_error_at)
    return ForwardState(
        to=one.to,
        waiting=max(one.waiting, other.waiting),
        lag_s=max(one.lag_s, other.lag_s),
        sent=one.sent + other.sent,
        refused=one.refused + other.refused,
        rejected_records=one.rejected_records + other.rejected_records,
        lost=max(one.lost, other.lost),
        failing=one.failing or other.failing,
        last_error=last.last_error,
        last_error_at=last.last_error_at,
    )


def warnings_of(states: Mapping[str, ForwardState]) -> list[str]:
    """Return a line for each target that takes nothing now, refuses requests, or for which some were lost."""
    lines = []
    for name, state in states.items():
        where = f"ingest: the target {name} of otlp.forward"
        if state.failing:
            lines.append(f"{where} takes nothing: {state.failing}; {state.waiting} requests wait")
        if state.refused:
            lines.append(f"{where} has refused {state.refused} requests: {state.last_error}")
        if state.lost:
            lines.append(f"{where} has not got {state.lost} requests, which were discarded before they were sent")
    return lines
