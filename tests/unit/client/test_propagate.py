"""Trace context in headers: what one program writes, another reads; what other tools write is read."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.client.tracing.propagate import RemoteParent, extract, inject, new_span_id, new_trace_id

IDS = st.text(alphabet=string.ascii_letters + string.digits + "-_.:", min_size=1, max_size=60)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@given(trace_id=IDS | st.builds(new_trace_id), span_id=IDS | st.builds(new_span_id), session=st.none() | IDS)
def test_any_ids_survive_the_headers(trace_id: str, span_id: str, session: str | None) -> None:
    found = extract(inject(trace_id, span_id, session))
    assert found == RemoteParent(trace_id, span_id, session)


@given(trace_id=IDS | st.builds(new_trace_id))
def test_a_trace_without_an_open_span_gives_no_parent(trace_id: str) -> None:
    assert extract(inject(trace_id, "", None)) == RemoteParent(trace_id)


def test_the_headers_are_those_of_w3c_and_mist() -> None:
    assert inject(TRACE, "0123456789abcdef" + SPAN, "s-1") == {
        "traceparent": f"00-{TRACE}-{SPAN}-01",
        "tracestate": f"mist=0123456789abcdef{SPAN}",
        "x-session-id": "s-1",
    }
    assert inject("abc", "def", None)["traceparent"] == f"00-{'abc':0>32}-{'def':0>16}-01"


def test_the_state_of_other_vendors_is_passed_on() -> None:
    found = extract({"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE"})
    assert found == RemoteParent(TRACE, SPAN, None, "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
    assert inject(TRACE, "a" * 16, None, found.state)["tracestate"] == (
        f"mist={'a' * 16},rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    )


def test_whole_ids_that_do_not_fit_the_parent_are_ignored() -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "mist=ffffffffffffffff,tt=other"}
    assert extract(headers) == RemoteParent(TRACE, SPAN)


@pytest.mark.parametrize(
    "value",
    [
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        "",
    ],
)
def test_an_invalid_traceparent_is_no_parent(value: str) -> None:
    assert extract({"Traceparent": value}) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"B3": f"{TRACE}-{SPAN}-1"}, RemoteParent(TRACE, SPAN)),
        ({"X-B3-TraceId": SPAN, "X-B3-SpanId": SPAN}, RemoteParent("0" * 16 + SPAN, SPAN)),
        ({"b3": "0"}, None),
        ({"X-B3-TraceId": "zz", "X-B3-SpanId": SPAN}, None),
        ({"X-Session-Id": " s-1 "}, RemoteParent(session_id="s-1")),
        ({"x-trace-session-id": "s-2", "x-parent-trace-id": "p-1"}, RemoteParent("", "p-1", "s-2")),
        ({"x-session-id": "forged\nline"}, None),
    ],
)
def test_b3_and_the_headers_of_cost_katana_are_read(headers: dict[str, str], expected: RemoteParent | None) -> None:
    assert extract(headers) == expected
