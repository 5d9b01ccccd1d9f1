"""The captured OTLP requests as they are sent to a pipeline, and what it shows of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kit import otlp
from kit.otlp_fixtures import BETTER, Fixture
from kit.pipeline import Pipeline
from tokentrace.records import MODEL_KINDS
from tokentrace.units import usd_to_nusd

#: How the spans of a fixture are sent: in one request, or each in one of its own.
WAYS = ("merged", "inner first", "outer first")
#: Tokens of a call by what they are: the name in a fixture -> in ``tokens`` of ``/metrics``, and in a span.
TOKENS = {
    "prompt_tokens": ("prompt_total", "prompt_tokens"),
    "completion_tokens": ("completion_total", "comp_tokens"),
    "cache_read_tokens": ("cache_read_total", "cache_read_tokens"),
    "cache_write_tokens": ("cache_write_total", "cache_write_tokens"),
    "cache_write_1h_tokens": ("cache_write_1h_total", "cache_write_1h_tokens"),
    "reasoning_tokens": ("reasoning_total", "reasoning_tokens"),
}
#: Fields that a span and a fixture name alike.
_SAME = ("kind", "scope", "status", "session_id", "user_id")
#: The same, but a fixture need not state them.
_IF_STATED = ("model", "provider")


class Case(NamedTuple):
    """
    A fixture as it was sent.

    Attributes:
        number: What makes its ids differ from those of other cases.
        service: The name of its program.
        requests: The requests, in their order.
    """

    fixture: Fixture
    way: str
    encoding: str
    number: int
    service: str
    requests: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> tuple[str, str]:
        """The fixture and the way it was sent."""
        return self.fixture.name, self.way

    @property
    def traces(self) -> list[str]:
        """The ids of its traces, as they are kept."""
        return sorted({span["traceId"].lower() for request in self.requests for span in otlp.spans_of(request)})

    @property
    def span_ids(self) -> list[str]:
        """The ids of its spans, as they are kept."""
        return [span["spanId"].lower() for request in self.requests for span in otlp.spans_of(request)]

    def expected_tokens(self) -> Counter[str]:
        """Return name in ``tokens`` of ``/metrics`` -> tokens of its calls."""
        found: Counter[str] = Counter()
        for span_id, span in self.fixture.expected["spans"].items():
            if span["kind"] in MODEL_KINDS:
                for name, (total, _) in TOKENS.items():
                    found[total] += BETTER.get((self.fixture.name, span_id, name), span.get(name)) or 0
        return found

    @property
    def expected_nusd(self) -> int:
        """What its calls cost, nano-dollars."""
        better = (
            value for (name, _, field), value in BETTER.items() if (name, field) == (self.fixture.name, "cost_usd")
        )
        return sum(map(usd_to_nusd, (self.fixture.expected["totals"]["cost_usd"], *better)))

    def told_twice(self) -> set[str]:
        """Return the ids, in the fixture, of the spans that tell one call together."""
        found = set()
        for span_id, span in self.fixture.expected["spans"].items():
            if "duplicate_of" in span:
                found |= {span_id, span["duplicate_of"]}
        return found


def make_case(fixture: Fixture, way: str, encoding: str, number: int) -> Case:
    """Return *fixture* as if its calls had ended now, with ids that no other *number* has."""
    request, service = otlp.unique(fixture, number, time.time_ns())
    if way == "merged":
        return Case(fixture, way, encoding, number, service, [request])
    above = {span["spanId"]: span.get("parentSpanId", "") for span in otlp.spans_of(request)}
    single = sorted(_one_span_a_request(request), key=lambda one: _depth(one, above), reverse=way == "inner first")
    return Case(fixture, way, encoding, number, service, single)


def _one_span_a_request(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for part in request.get("resourceSpans", ()):
        for group in part.get("scopeSpans", ()):
            for span in group.get("spans", ()):
                yield {"resourceSpans": [{**part, "scopeSpans": [{**group, "spans": [span]}]}]}


def _depth(request: Mapping[str, Any], above: Mapping[str, str]) -> int:
    [span] = otlp.spans_of(request)
    at, steps = span["spanId"], 0
    while above.get(at) in above:
        at, steps = above[at], steps + 1
    return steps


def send(pipeline: Pipeline, case: Case, times: int) -> None:
    """Send all requests of *case*, *times* after each other; each must be answered with success."""
    for _ in range(times):
        for request in case.requests:
            otlp.assert_stored(otlp.post(pipeline, request, case.encoding), case.encoding)


def shown_spans(pipeline: Pipeline, case: Case) -> list[dict[str, Any]]:
    """Return the stored spans of *case*; each has its ``trace_id``."""
    return [
        {**span, "trace_id": trace}
        for trace in case.traces
        for span in pipeline.get(f"/traces/{trace}").json()["spans"]
    ]


def differences(case: Case, spans: Sequence[Mapping[str, Any]], leave_out: set[str]) -> dict[str, Any]:
    """
    Return span id -> field -> (expected, shown) where the stored *spans* differ from what the fixture says.

    Args:
        leave_out: Ids, in the fixture, of spans that are not compared.
    """
    shown = {span["span_id"]: span for span in spans}
    found: dict[str, Any] = {}
    for span_id, expected in case.fixture.expected["spans"].items():
        if span_id in leave_out:
            continue
        span = shown[_kept_id(case, span_id)]
        wanted = _wanted(case, span_id, expected)
        got = _got(case, span)
        if wrong := {name: (wanted[name], got[name]) for name in wanted if wanted[name] != got[name]}:
            found[span_id] = wrong
    return found


def _kept_id(case: Case, fixture_id: str) -> str:
    return f"{case.number:06x}{fixture_id[6:]}"


def _wanted(case: Case, span_id: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    known = {**expected}
    for (name, better_id, field), value in BETTER.items():
        if (name, better_id) == (case.fixture.name, span_id):
            known[field] = value
    is_call = known["kind"] in MODEL_KINDS
    wanted = {name: known.get(name) for name in _SAME}
    wanted |= {name: known[name] or None for name in _IF_STATED if name in known}
    wanted |= {shown: known.get(name) or 0 if is_call else 0 for name, (_, shown) in TOKENS.items()}
    cost, parent, winner = known.get("cost_usd"), known.get("parent_span_id"), known.get("duplicate_of")
    if is_call:
        wanted["cost_nusd"] = None if cost is None else usd_to_nusd(cost)
    return wanted | {
        "caller": case.service if known["caller"] == "demo-app" else known["caller"],
        "trace_id": _kept_id(case, known["trace_id"]),
        "parent_span_id": parent and _kept_id(case, parent),
        "latency_ms": round(known["latency_ms"]),
        "ttft_ms": known.get("ttft_ms"),
        "ttft.source": known.get("ttft_source"),
        "duplicate_of": winner and _kept_id(case, winner),
        "error": known.get("error"),
    }


def _got(case: Case, span: Mapping[str, Any]) -> dict[str, Any]:
    attributes, cost = span.get("attributes", {}), span.get("cost_usd")
    texts = {name: span.get(name) or None for name in (*_SAME, *_IF_STATED, "trace_id", "parent_span_id", "latency_ms")}
    return {
        **texts,
        **{shown: span.get(shown) or 0 for _, shown in TOKENS.values()},
        "caller": span.get("caller", ""),
        "latency_ms": span.get("latency_ms", 0),
        "cost_nusd": None if cost is None else usd_to_nusd(cost),
        "ttft_ms": span.get("ttft_ms"),
        "ttft.source": attributes.get("ttft.source"),
        "duplicate_of": attributes.get("duplicate_of"),
        # The expected texts have the ids of the fixture, and are cut.
        "error": (span.get("error") or "").replace(f"{case.number:012x}", "fix")[:200] or None,
    }
