"""What is missing in the calls that a sender sends, as sentences that tell its owner what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from tokentrace.units import MINUTE, render_duration, render_instant
from tokentrace_api.coverage_emitters import ANY, Emitter, Fact
from tokentrace_api.reads import Quiet, Told

#: What a gap is about.
What = Literal[Fact, "duplicates"]
#: The shares up to which a fact may be missing without a gap: some streams are aborted, some calls have no user.
_MISSING = {"usage": 0.01, "response_id": 0.1, "session": 0.5, "user": 0.5, "ttft": 0.5}
#: So many calls must have tokens until it is noted that none has cached ones, from a sender that never tells these.
_ENOUGH = 20


class Gap(NamedTuple):
    """
    Something that a sender does not tell, or tells twice.

    Attributes:
        calls: Number of calls concerned; of ``ttft``, ``cost`` and ``duplicates`` among those that were looked at.
        advice: A sentence that says what is missing and what to change.
    """

    what: What
    calls: int
    advice: str


class Looked(NamedTuple):
    """
    What was seen in the newest calls of a row.

    Attributes:
        streamed: Number of calls that say that they streamed.
        streamed_ttft: Number of those with a time to the first token.
        compared, differing: Number of calls whose reported cost was compared with our price, and of those where both
            differ by more than 1 %.
        pairs: (The other instrumentation, number of pairs) of calls that it may have told too.
    """

    streamed: int = 0
    streamed_ttft: int = 0
    compared: int = 0
    differing: int = 0
    pairs: tuple[tuple[str, int], ...] = ()


def gaps_of(row: Told, looked: Looked, emitter: Emitter) -> list[Gap]:
    """Return what is missing in the calls of *row*, the gaps that distort costs first."""
    return list(_gaps(row, looked, emitter))


def _gaps(row: Told, looked: Looked, emitter: Emitter) -> Iterator[Gap]:
    name = emitter.name[0].upper() + emitter.name[1:]
    yield from _lacking("usage", row.used, row.ok, "calls do not tell what they used, so they have no price", emitter)
    if "cached" in emitter.never and not row.cached and row.counted >= _ENOUGH:
        text = f"{name} does not tell cached tokens, so calls with cached input look too expensive"
        yield _gap("cached", row.counted, text, emitter)
    if "cache_1h" in emitter.never and row.writes and not row.writes_1h:
        text = (
            f"{row.writes} calls write to a cache, and {name} does not tell what is kept for an hour, which costs more"
        )
        yield _gap("cache_1h", row.writes, text, emitter)
    for other, pairs in looked.pairs:
        text = f"{pairs} of the newest calls may have been told by {other} too, and count twice"
        yield Gap("duplicates", pairs, f"{text}: switch off one of the two, or use one that tells response ids.")
    if looked.differing:
        text = f"The reported cost of {looked.differing} of {looked.compared} calls is not our price, by more than 1 %"
        yield _gap("cost", looked.differing, text, emitter)
    yield from _lacking("response_id", row.responses, row.ok, "calls have no response id", emitter)
    if looked.streamed:
        text = "streamed calls do not tell the time to the first token"
        yield from _lacking("ttft", looked.streamed_ttft, looked.streamed, text, emitter)
    elif "ttft" in emitter.never and not row.ttft:
        yield _gap("ttft", row.calls, f"{name} does not tell the time to the first token", emitter)
    yield from _lacking("session", row.sessions, row.calls, "calls have no session", emitter)
    yield from _lacking("user", row.users, row.calls, "calls have no user", emitter)


def silence_of(quiet: Quiet, to_ns: int) -> str:
    """Return a sentence about a caller, or one of its instrumentations, that does not call any more at *to_ns*."""
    text = f"No call for {_minutes(to_ns - quiet.last_ns)}, after pauses of at most {_minutes(quiet.longest_ns)}"
    if quiet.scope:
        return f"{text}: check whether {quiet.scope} supports the installed SDK of the provider, unless you removed it."
    if quiet.last_span_ns > quiet.last_ns + quiet.longest_ns:
        until = render_instant(quiet.last_span_ns)
        check = "check whether its instrumentation supports the installed SDK of the provider"
        return f"{text}, but other spans until {until}: {check}."
    return f"{text}: check whether the service runs and still sends its spans here, unless you removed it."


def _minutes(ns: int) -> str:
    return render_duration(max(ns // MINUTE, 1) * MINUTE)


def _lacking(what: Fact, having: int, of: int, text: str, emitter: Emitter) -> Iterator[Gap]:
    missing = of - having
    if missing > _MISSING[what] * of:
        yield _gap(what, missing, f"{missing} of {of} {text}", emitter)


def _gap(what: Fact, calls: int, text: str, emitter: Emitter) -> Gap:
    return Gap(what, calls, f"{text}: {emitter.advice.get(what) or ANY[what]}.")
