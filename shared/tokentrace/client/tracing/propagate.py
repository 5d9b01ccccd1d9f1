"""
Trace context in HTTP headers: W3C ``traceparent`` and ``tracestate``, B3, and the headers of Cost Katana.

W3C has room for a trace id of 32 hex digits and a span id of 16. Ids of tokentrace have these lengths. Other ids are
shortened to their last digits, or filled with zeros on the left, as MIST does; so that the receiver finds the whole
ids, ``tracestate`` holds them too: ``mist=<span id>,tt=<trace id>``.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from tokentrace.records import SPAN_DIGITS, TRACE_DIGITS, is_id, w3c_digits

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_B3_TRACE = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{16})?")
_B3_SPAN = re.compile(r"[0-9a-f]{16}")
#: What the value of a key of ``tracestate`` may hold.
_STATE_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_MAX_STATE = 512
_OURS = ("mist", "tt")
SESSION_HEADERS = ("x-session-id", "x-trace-session-id")


class RemoteParent(NamedTuple):
    """
    A span of another program, as its headers tell.

    Attributes:
        trace_id: The trace that the span belongs to; "" = unknown.
        span_id: The span; "" = unknown.
        session_id: The session; None = unknown.
        state: The ``tracestate`` of other vendors, passed on unchanged.
    """

    trace_id: str = ""
    span_id: str = ""
    session_id: str | None = None
    state: str = ""


def new_trace_id() -> str:
    """Return a new trace id: a UUID of version 4 as 32 hex digits."""
    return uuid.uuid4().hex


def new_span_id() -> str:
    """Return a new span id: 16 hex digits, not all zero."""
    return f"{secrets.randbits(64) or 1:016x}"


def inject(trace_id: str, span_id: str, session_id: str | None, state: str = "") -> dict[str, str]:
    """
    Return the headers that carry a context to another program.

    Args:
        span_id: The span that calls the other program; "" = the trace has no open span.
        state: ``tracestate`` of other vendors.

    Returns:
        ``traceparent``, ``tracestate`` and, with a session, ``x-session-id``.
    """
    short_trace = w3c_digits(trace_id, TRACE_DIGITS)
    # Without an open span, the parent id says so by being the end of the trace id.
    short_span = w3c_digits(span_id, SPAN_DIGITS) if span_id else short_trace[16:]
    entries = []
    if span_id and _STATE_VALUE.fullmatch(span_id):
        entries.append(f"mist={span_id}")
    if short_trace != trace_id and _STATE_VALUE.fullmatch(trace_id):
        entries.append(f"tt={trace_id}")
    others = [entry for entry in state.split(",") if entry.strip() and _key(entry) not in _OURS]
    for entry in others:
        if len(",".join([*entries, entry])) <= _MAX_STATE:
            entries.append(entry.strip())
    headers = {"traceparent": f"00-{short_trace}-{short_span}-01"}
    if entries:
        headers["tracestate"] = ",".join(entries)
    if session_id and is_id(session_id):
        headers["x-session-id"] = session_id
    return headers


def extract(headers: Mapping[str, str]) -> RemoteParent | None:
    """
    Return the context in *headers*, whose names may have any case.

    Returns:
        None if there is none, or none that is valid.
    """
    low = {str(name).lower(): str(value) for name, value in headers.items()}
    session = next((low[name].strip() for name in SESSION_HEADERS if is_id(low.get(name, "").strip())), None)
    found = _w3c(low) or _b3(low)
    if found is None:
        parent = low.get("x-parent-trace-id", "").strip()
        found = RemoteParent(span_id=parent) if is_id(parent) else None
    if found is None:
        return RemoteParent(session_id=session) if session else None
    return found._replace(session_id=session)


def _w3c(headers: Mapping[str, str]) -> RemoteParent | None:
    match = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip())
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    state = headers.get("tracestate", "")
    ours = {_key(entry): entry.partition("=")[2].strip() for entry in state.split(",")}
    others = ",".join(
        entry.strip() for entry in state.split(",") if entry.strip() and _key(entry) not in ("mist", "tt")
    )
    whole_span, whole_trace = ours.get("mist", ""), ours.get("tt", "")
    # Another program between the two may have replaced traceparent and kept tracestate: then the ids do not fit.
    if is_id(whole_trace) and w3c_digits(whole_trace, TRACE_DIGITS) == trace_id:
        trace_id = whole_trace
    if is_id(whole_span) and w3c_digits(whole_span, SPAN_DIGITS) == span_id:
        return RemoteParent(trace_id, whole_span, None, others)
    return RemoteParent(trace_id, "" if span_id == w3c_digits(trace_id, TRACE_DIGITS)[16:] else span_id, None, others)


def _b3(headers: Mapping[str, str]) -> RemoteParent | None:
    single = headers.get("b3", "").strip().split("-")
    if len(single) >= 2:
        trace_id, span_id = single[0], single[1]
    else:
        trace_id, span_id = headers.get("x-b3-traceid", "").strip(), headers.get("x-b3-spanid", "").strip()
    trace_id, span_id = trace_id.lower(), span_id.lower()
    if not _B3_TRACE.fullmatch(trace_id) or not _B3_SPAN.fullmatch(span_id):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return RemoteParent(trace_id.rjust(32, "0"), span_id)


def _key(entry: str) -> str:
    return entry.partition("=")[0].strip()
