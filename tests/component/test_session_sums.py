"""Test that compares lists, details and sums of sessions with a fold of the same log in plain Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import DAY, NOW_NS, ROLLUPS, SECOND, Log, first_tellings, untimed
from tokentrace.dialect.costkatana import Session
from tokentrace.records import SessionEnd, Span, Started
from tokentrace_api.reads import (
    SESSION_ORDERS,
    SessionFilter,
    find_session,
    list_sessions,
    newest_ordinal,
    sessions_after,
    sum_sessions,
)
from tokentrace_api.store import Store

seconds = st.integers(0, 40)
ids = st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(["1", "2", "3", "4"]))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    # A repeated id may have different fields, even another session.
    (trace, span), began = draw(ids), draw(seconds)
    started_ns = NOW_NS - (1000 - began) * SECOND
    label = draw(st.sampled_from([{}, {"label": "Chat"}, {"label": 7}, {"other": '"label"'}, {"n": {"label": "no"}}]))
    return make_span(
        trace_id=trace,
        span_id=span,
        session_id=draw(st.sampled_from([None, "", "s1", "s2", "s3"])),
        user_id=draw(st.sampled_from([None, "u1", "u2"])),
        kind=draw(st.sampled_from(["llm", "tool", "agent"])),
        status=draw(st.sampled_from(["ok", "ok", "error", "timeout"])),
        error=draw(st.sampled_from(["", "", "quota", "boom"])),
        # Different starts for different ids, so that a session has one first span.
        started_ns=started_ns + int(span),
        ended_ns=started_ns + draw(seconds) * SECOND + 5,
        cost_nusd=draw(st.sampled_from([None, None, 0, 5, 10**15])),
        cost_source=draw(st.sampled_from(["priced", "partly_priced"])),
        arrived_ns=NOW_NS,
        attributes=label,
    )


@st.composite
def opened_spans(draw: st.DrawFn) -> Started:
    (trace, span), began = draw(ids), draw(seconds)
    return Started(
        trace_id=trace,
        span_id=span,
        session_id=draw(st.sampled_from(["s1", "s2", "s4"])),
        user_id=draw(st.sampled_from([None, "u3"])),
        name="open",
        kind="llm",
        started_ns=NOW_NS - (1000 - began) * SECOND + 7,
        arrived_ns=NOW_NS,
        metadata=draw(st.sampled_from([{}, {"label": "Open"}])),
    )


ends = st.builds(
    SessionEnd,
    session_id=st.sampled_from(["s1", "s3", "s5"]),
    ended_ns=st.integers(NOW_NS - 900 * SECOND, NOW_NS),
    error=st.sampled_from(["", "gave up", "zzz"]),
)
logs = st.lists(
    st.tuples(st.lists(spans(), max_size=6), st.lists(opened_spans(), max_size=2), st.lists(ends, max_size=1)),
    min_size=1,
    max_size=4,
)


def first(pairs: Sequence[tuple[int, Any]]) -> Any:
    """Return the value with the earliest time; None if there is none."""
    values = [(at, value) for at, value in pairs if value is not None]
    return min(values, key=lambda pair: pair[0])[1] if values else None


def every(ended: Sequence[Span], started: Sequence[Started]) -> list[Span | Started]:
    return [*ended, *started]


def folded(sent: Sequence[Span], started: Sequence[Started], closed: Sequence[SessionEnd]) -> dict[str, dict[str, Any]]:
    """Return session -> its expected fields."""
    sessions: dict[str, dict[str, Any]] = {}
    for name in {span.session_id or "" for span in every(sent, started)} - {""}:
        told = [span for span in sent if span.session_id == name]
        ended = [span for span in first_tellings(sent) if span.session_id == name]
        keys = {(span.trace_id, span.span_id) for span in told}
        pending = [span for span in started if span.session_id == name and (span.trace_id, span.span_id) not in keys]
        if not told and not pending:
            continue
        calls = [span for span in ended if span.kind not in ROLLUPS]
        unpriced = [span for span in calls if span.cost_nusd is None]
        # A session of which no span counts is listed with those that do not.
        known: list[Span | Started] = every(ended, pending) or list(told)
        session_ends = [end for end in closed if end.session_id == name]
        error = max((end.error for end in session_ends), default="")
        failed = sum(span.status in ("error", "timeout") for span in ended)
        labels = [(span.started_ns, span.attributes.get("label")) for span in ended or ([] if pending else told)]
        labels += [(span.started_ns, span.metadata.get("label")) for span in pending]
        sessions[name] = {
            "spans": len(ended) + len(pending),
            "open": len(pending),
            "errors": failed,
            "error": error or first([(span.started_ns, span.error or None) for span in ended]) or "",
            "started_ns": min(span.started_ns for span in known),
            "last_ns": max((span.ended_ns for span in ended or ([] if pending else told)), default=None),
            "ended_ns": min((end.ended_ns for end in session_ends), default=None),
            "cost_nusd": None if calls and len(unpriced) == len(calls) else sum(span.cost_nusd or 0 for span in calls),
            "prompt_tokens": sum(span.prompt_tokens for span in calls),
            "priced": len(calls) - len(unpriced),
            "unpriced": len(unpriced),
            "partly_priced": sum(span.cost_source == "partly_priced" for span in calls),
            "user_id": first([(span.started_ns, span.user_id) for span in known]),
            "label": first([(at, None if label is None else str(label)) for at, label in labels]),
            "status": "error" if failed or error else "completed" if session_ends else "active",
        }
    return sessions


def fields_of(session: Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in FIELDS}


FIELDS = (
    "spans", "open", "errors", "error", "started_ns", "last_ns", "ended_ns",
    "cost_nusd", "prompt_tokens", "priced", "unpriced", "partly_priced", "user_id", "label", "status",
)  # fmt: skip


@untimed(60)
@given(log=logs)
def test_lists_details_and_sums_of_sessions_equal_a_fold_in_plain_python(
    directories: Iterator[Path], log: list[tuple[list[Span], list[Started], list[SessionEnd]]]
) -> None:
    sent = [span for part in log for span in part[0]]
    started = [span for part in log for span in part[1]]
    closed = [end for part in log for end in part[2]]
    # If two spans of a session start at the same time, either may count as the first one.
    starts = [(span.session_id, span.started_ns) for span in every(sent, started)]
    is_ambiguous = len(set(starts)) < len(starts)
    stream = Log()
    for part in log:
        stream.spans(*part[0], started=part[1], session_ends=part[2])
    store = Store(next(directories), shards=1, keep_ns=DAY)
    store.append(stream.after(store))
    expected = folded(sent, started, closed)
    sessions, total = list_sessions(store, SessionFilter(), 100, 0, NOW_NS)
    try:
        assert total == len(expected)
        compared = [name for name in FIELDS if not (is_ambiguous and name in ("user_id", "label", "error"))]
        for session in sessions:
            fields = fields_of(session)
            assert {name: fields[name] for name in compared} == {
                name: expected[session.session_id][name] for name in compared
            }
            [details] = find_session(store, session.session_id, NOW_NS)
            assert is_ambiguous or details == session
        order = [(-session.started_ns, session.session_id) for session in sessions]
        assert order == sorted(order)
        sums = sum_sessions(store, SessionFilter(), NOW_NS)
        unpriced = sum(fields["unpriced"] for fields in expected.values())
        is_unknown = unpriced > 0 and not any(fields["priced"] for fields in expected.values())
        cost = None if is_unknown else sum(fields["cost_nusd"] or 0 for fields in expected.values())
        assert (sums.sessions, sums.cost_nusd, sums.unpriced) == (len(expected), cost, unpriced)
        over = [fields for fields in expected.values() if fields["ended_ns"] is not None]
        lasted = [max(fields["ended_ns"] - fields["started_ns"], 0) for fields in over]
        assert sums.ended == len(over)
        assert abs(sums.duration_ns - (sum(lasted) / len(over) if over else 0)) < 1
        page, _ = list_sessions(store, SessionFilter(status="error"), 100, 0, NOW_NS)
        failed = {name for name, fields in expected.items() if fields["status"] == "error"}
        assert {session.session_id for session in page} == failed
        assert sum_sessions(store, SessionFilter(status="error"), NOW_NS).sessions == len(failed)
    finally:
        store.close()


def ranks(session: Session) -> dict[str, int]:
    """Return order -> what it sorts by, the largest first."""
    until_ns = next(at for at in (session.ended_ns, session.last_ns, session.started_ns) if at is not None)
    return {
        "started": session.started_ns,
        "cost": -1 if session.cost_nusd is None else session.cost_nusd,
        "duration": max(until_ns - session.started_ns, 0),
        "tokens": session.prompt_tokens + session.completion_tokens,
        "spans": session.spans,
    }


@untimed(40)
@given(log=logs, step=st.integers(1, 4), order=st.sampled_from(sorted(SESSION_ORDERS)))
def test_the_pages_of_an_export_are_all_sessions_in_order_without_what_arrives_meanwhile(
    directories: Iterator[Path], log: list[tuple[list[Span], list[Started], list[SessionEnd]]], step: int, order: str
) -> None:
    stream = Log()
    for sent, started, closed in log:
        stream.spans(*sent, started=started, session_ends=closed)
    store = Store(next(directories), shards=1, keep_ns=DAY)
    try:
        store.append(stream.after(store))
        listed, _ = list_sessions(store, SessionFilter(), 100, 0, NOW_NS)
        expected = sorted(listed, key=lambda session: (-ranks(session)[order], session.session_id))
        assert list_sessions(store, SessionFilter(), 100, 0, NOW_NS, order)[0] == expected
        upto, exported, mark = newest_ordinal(store, NOW_NS), [], None
        while True:
            page, mark = sessions_after(store, SessionFilter(), mark, step, upto, NOW_NS, order)
            exported += page
            if mark is None:
                break
            # A span of a session that was shown would move it to a later page.
            newer = {"started_ns": NOW_NS - 2000 * SECOND, "ended_ns": NOW_NS, "arrived_ns": NOW_NS, "cost_nusd": 1}
            stream.spans(make_span(trace_id=f"new{len(exported)}", session_id=page[0].session_id, **newer))
            store.append(stream.after(store))
        assert exported == expected
    finally:
        store.close()
