"""The list of sessions and their sums, over a store without a broker: what a plain Python fold of the same log says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.builders import make_span
from kit.store_log import DAY, NOW_NS, ROLLUPS, SECOND, Log, examples, last_versions
from tokentrace.records import SessionEnd, Span, Started
from tokentrace_api.reads import Session, SessionFilter, find_session, list_sessions, sum_sessions
from tokentrace_api.store import Store


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for each."""
    return (tmp_path_factory.mktemp("sessions") for _ in itertools.count())


seconds = st.integers(0, 40)
ids = st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(["1", "2", "3", "4"]))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    # Whoever says an id again may say anything else of it, another session even.
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
        # Each starts at an instant of its own, so that the first of a session is one.
        started_ns=started_ns + int(span),
        ended_ns=started_ns + draw(seconds) * SECOND + 5,
        cost_nusd=draw(st.sampled_from([None, 0, 5, 10**15])),
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
    """The value that was said at the earliest instant; None when none was."""
    said = [(at, value) for at, value in pairs if value is not None]
    return min(said, key=lambda pair: pair[0])[1] if said else None


def folded(said: Sequence[Span], began: Sequence[Started], over: Sequence[SessionEnd]) -> dict[str, dict[str, Any]]:
    """What each session comes to."""
    sessions = {}
    for name in {one.session_id for one in (*said, *began)} - {None, ""}:
        own = last_versions(span for span in said if span.session_id == name)
        closed = {(span.trace_id, span.span_id) for span in own}
        waiting = [one for one in began if one.session_id == name and (one.trace_id, one.span_id) not in closed]
        if not own and not waiting:
            continue
        ends_ = [one for one in over if one.session_id == name]
        error = max((one.error for one in ends_), default="")
        failed = sum(span.status in ("error", "timeout") for span in own)
        labels = [(one.started_ns, one.attributes.get("label")) for one in own]
        labels += [(one.started_ns, one.metadata.get("label")) for one in waiting]
        sessions[name] = {
            "spans": len(own) + len(waiting),
            "open": len(waiting),
            "errors": failed,
            "error": error or first([(span.started_ns, span.error or None) for span in own]) or "",
            "started_ns": min(one.started_ns for one in (*own, *waiting)),
            "last_ns": max((span.ended_ns for span in own), default=None),
            "ended_ns": min((one.ended_ns for one in ends_), default=None),
            "cost_nusd": sum(span.cost_nusd or 0 for span in own if span.kind not in ROLLUPS),
            "prompt_tokens": sum(span.prompt_tokens for span in own),
            "user_id": first([(one.started_ns, one.user_id) for one in (*own, *waiting)]),
            "label": first([(at, None if label is None else str(label)) for at, label in labels]),
            "status": "error" if failed or error else "completed" if ends_ else "active",
        }
    return sessions


def fields_of(session: Session) -> dict[str, Any]:
    return {name: getattr(session, name) for name in FIELDS}


FIELDS = (
    "spans", "open", "errors", "error", "started_ns", "last_ns", "ended_ns",
    "cost_nusd", "prompt_tokens", "user_id", "label", "status",
)  # fmt: skip


@examples(60)
@given(log=logs)
def test_list_details_and_summary_of_sessions_equal_a_plain_fold_however_often_spans_were_sent(
    directories: Iterator[Path], log: list[tuple[list[Span], list[Started], list[SessionEnd]]]
) -> None:
    said, began, over = ([one for part in log for one in part[number]] for number in range(3))
    # Two of one session that start at the same instant have no first: they are told apart only by their ids here.
    instants = [(one.session_id, one.started_ns) for one in (*last_versions(said), *began)]
    ambiguous = len(set(instants)) < len(instants)
    told = Log()
    for ended, opened, closed in log:
        told.spans(*ended, started=opened, session_ends=closed)
    store = Store(next(directories), shards=1, keep_ns=DAY)
    store.append(told.after(store))
    wanted = folded(said, began, over)
    sessions, total = list_sessions(store, SessionFilter(), 100, 0, NOW_NS)
    try:
        assert total == len(wanted)
        compared = [name for name in FIELDS if not (ambiguous and name in ("user_id", "label", "error"))]
        for session in sessions:
            found = fields_of(session)
            assert {name: found[name] for name in compared} == {
                name: wanted[session.session_id][name] for name in compared
            }
            [details] = find_session(store, session.session_id, NOW_NS)
            assert ambiguous or details == session
        starts = [(-session.started_ns, session.session_id) for session in sessions]
        assert starts == sorted(starts)
        sums = sum_sessions(store, None, None, NOW_NS)
        assert (sums.sessions, sums.cost_nusd) == (len(wanted), sum(one["cost_nusd"] for one in wanted.values()))
        page, _ = list_sessions(store, SessionFilter(status="error"), 100, 0, NOW_NS)
        assert {one.session_id for one in page} == {name for name, one in wanted.items() if one["status"] == "error"}
    finally:
        store.close()
