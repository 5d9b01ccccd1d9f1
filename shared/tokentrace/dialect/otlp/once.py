"""
Counting once within a request: of two spans that tell the same call, the richer one counts.

How it works. Some libraries have spans of their own, so each further instrumentation tells their calls again. The one
that does not count becomes a ``chain``, which is shown and neither counted nor priced. Its tokens move to attributes.
Two spans are the same call

* if they have one response id, under the conditions by which readers recognise a call that is told in two requests
  (``same_call``), or one request id of Anthropic's, or
* if one is around the other, with nothing between them but http, chain and custom spans, and one of them has no
  response id or both failed.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.dialect.otlp.ttft import is_of_text
from tokentrace.records import MODEL_KINDS, Span, is_long, same_call

#: Completions of one call may differ by so many tokens: OpenLLMetry adds the first chunk's to a stream's.
_NEAR = 8
#: Most steps from a call to the call around it, and the kinds of the spans between them.
_MAX_STEPS = 4
_BETWEEN = frozenset({"http", "chain", "custom"})
#: How many spans with one id are compared with a span, those before and those after it in time.
_NEIGHBOURS = 8
#: A trace that is deeper has a loop.
_MAX_DEPTH = 64


class Loss(NamedTuple):
    """
    A span that does not count.

    Attributes:
        why: response id, request id, wrapper or failed wrapper.
        winner: The place of the span that counts.
    """

    winner: int
    why: str


def count_once(spans: Sequence[Span]) -> dict[int, Loss]:
    """Return the places of the spans that tell a call again -> the span that counts."""
    calls = [place for place, span in enumerate(spans) if span.kind in MODEL_KINDS]
    if len(calls) < 2:
        return {}
    losses: dict[int, Loss] = {}
    above = _above(spans)
    _same_response(spans, calls, above, losses)
    if above:
        _wrappers(spans, calls, above, losses)
    return {place: loss._replace(winner=_followed(loss.winner, losses)) for place, loss in losses.items()}


def _above(spans: Sequence[Span]) -> dict[int, int]:
    """Return the place of each span -> that of its parent, as far as both are in the request."""
    places = {(span.trace_id, span.span_id): place for place, span in enumerate(spans) if span.span_id}
    above: dict[int, int] = {}
    for place, span in enumerate(spans):
        if span.parent_span_id and (parent := places.get((span.trace_id, span.parent_span_id))) is not None:
            above[place] = parent
    return above


def _same_response(spans: Sequence[Span], calls: Sequence[int], above: dict[int, int], losses: dict[int, Loss]) -> None:
    groups: dict[tuple[str, str], list[int]] = {}
    for place in calls:
        span = spans[place]
        if span.status == "ok" and span.total_tokens:
            if span.response_id:
                groups.setdefault(("response id", span.response_id), []).append(place)
            if request_id := span.attributes.get("anthropic.request_id"):
                groups.setdefault(("request id", str(request_id)), []).append(place)
    for (why, _), group in groups.items():
        if len(group) < 2:
            continue
        ordered = sorted(group, key=lambda place: (_richness(spans[place]), _depth(place, above)), reverse=True)
        kept = _Kept(spans, above)
        for place in ordered:
            winner = kept.same_as(place)
            if winner is None:
                kept.add(place)
            else:
                losses.setdefault(place, Loss(winner, why))


class _Kept:
    """The spans with one id that count so far, by time: one id may be that of every call to a simple server."""

    def __init__(self, spans: Sequence[Span], above: dict[int, int]) -> None:
        self._spans, self._above = spans, above
        self._by_start: list[tuple[int, int]] = []
        self._places: set[int] = set()
        #: A span around a kept one -> that one.
        self._inside: dict[int, int] = {}

    def add(self, place: int) -> None:
        """Note that the span at *place* counts."""
        insort(self._by_start, (self._spans[place].started_ns, place))
        self._places.add(place)
        for outer in _ancestors(place, self._above):
            self._inside.setdefault(outer, place)

    def same_as(self, place: int) -> int | None:
        """
        Return a span that is the same call as that at *place*; None if there is none.

        A short id may be one of few that a server gives out, so the usage must be near, and not one instrumentation may
        have told both, unless one is around the other. The same holds for the id of a request.
        """
        span = self._spans[place]
        related = [outer for outer in _ancestors(place, self._above) if outer in self._places]
        if place in self._inside:
            related.append(self._inside[place])
        for other in related:
            if self._is_same(span, self._spans[other], is_related=True):
                return other
        at = bisect(self._by_start, (span.started_ns, place))
        for _, other in self._by_start[max(at - _NEIGHBOURS, 0) : at + _NEIGHBOURS]:
            if self._is_same(span, self._spans[other], is_related=False):
                return other
        return None

    @staticmethod
    def _is_same(span: Span, other: Span, *, is_related: bool) -> bool:
        if not same_call(span, other):
            return False
        if span.response_id == other.response_id and is_long(span.response_id):
            return True
        return (is_related or span.scope != other.scope) and is_near(span, other)


def _richness(span: Span) -> tuple[bool, bool, bool, bool]:
    return (
        span.cache_write_1h_tokens > 0,
        str(span.attributes.get("tokens.rule", "")).startswith("native"),
        span.cache_read_tokens > 0 or span.cache_write_tokens > 0,
        span.ttft_ns > 0,
    )


def is_near(span: Span, other: Span) -> bool:
    """Return True if the inputs of two spans are equal and their outputs nearly so."""
    return span.prompt_tokens == other.prompt_tokens and abs(span.completion_tokens - other.completion_tokens) <= _NEAR


def _wrappers(spans: Sequence[Span], calls: Sequence[int], above: dict[int, int], losses: dict[int, Loss]) -> None:
    for place in calls:
        if place in losses:
            continue
        # A call may have several wrappers.
        for _ in range(_MAX_STEPS):
            outer = _call_around(place, spans, above, losses)
            why = _why_wrapper(spans[place], spans[outer]) if outer is not None and outer != place else ""
            if outer is None or not why:
                break
            losses[outer] = Loss(place, why)


def _why_wrapper(span: Span, around: Span) -> str:
    """Return why *around*, a call around the call *span*, is the same call; "" if it may be another one."""
    if span.status != "ok" and around.status != "ok":
        return "failed wrapper"
    has_two_ids = span.response_id and around.response_id
    return "wrapper" if not has_two_ids and (not _is_used(around) or _is_used_alike(around, span)) else ""


def _is_used(span: Span) -> bool:
    return bool(span.total_tokens or span.prompt_tokens or span.completion_tokens or span.usage)


def _is_used_alike(span: Span, other: Span) -> bool:
    return _is_used(other) and is_near(span, other)


def _call_around(place: int, spans: Sequence[Span], above: dict[int, int], losses: dict[int, Loss]) -> int | None:
    at: int | None = place
    for _ in range(_MAX_STEPS + 1):
        at = above.get(at) if at is not None else None
        if at is None:
            return None
        if at in losses:
            continue
        if spans[at].kind in MODEL_KINDS:
            return at
        if spans[at].kind not in _BETWEEN:
            return None
    return None


def _depth(place: int, above: dict[int, int]) -> int:
    return len(_ancestors(place, above))


def _ancestors(place: int, above: dict[int, int]) -> list[int]:
    found: list[int] = []
    at = above.get(place)
    while at is not None and len(found) < _MAX_DEPTH:
        found.append(at)
        at = above.get(at)
    return found


def _followed(place: int, losses: dict[int, Loss]) -> int:
    """Return the span that counts in place of *place*, whose own winner may have lost to another."""
    seen = {place}
    while place in losses and losses[place].winner not in seen:
        place = losses[place].winner
        seen.add(place)
    return place


def loser(span: Span, winner: Span, cost_nusd: int) -> Span:
    """Return *span*, which would have cost *cost_nusd*, as it is kept: shown, without tokens and cost of its own."""
    attributes = {"duplicate_of": winner.span_id, **span.attributes}
    attributes.pop("tokens.rule", None)
    attributes.pop("tokens.note", None)
    if span.prompt_tokens or span.completion_tokens:
        attributes["rollup.prompt_tokens"] = span.prompt_tokens
        attributes["rollup.completion_tokens"] = span.completion_tokens
    if cost_nusd:
        attributes["rollup.cost_nusd"] = cost_nusd
    if span.cost_nusd:
        attributes["cost.reported_usd"] = span.cost_nusd / 1_000_000_000
    return replace(
        span,
        kind="chain",
        prompt_tokens=0,
        completion_tokens=0,
        total_tokens=0,
        cache_read_tokens=0,
        cache_write_tokens=0,
        cache_write_1h_tokens=0,
        reasoning_tokens=0,
        usage=None,
        usage_state="",
        cost_nusd=None,
        cost_source="",
        unpriced_reason="",
        attributes=attributes,
    )


def heir(winner: Span, span: Span) -> Span:
    """Return *winner* with the session, user and time to the first token that only *span* tells."""
    changed: dict[str, object] = {}
    if not winner.session_id and span.session_id:
        changed["session_id"] = span.session_id
    if not winner.user_id and span.user_id:
        changed["user_id"] = span.user_id
    source = str(span.attributes.get("ttft.source", ""))
    known = str(winner.attributes.get("ttft.source", ""))
    is_better = is_of_text(source, span.scope) and not is_of_text(known, winner.scope)
    if 0 < span.ttft_ns <= winner.latency_ns and (not winner.ttft_ns or is_better):
        changed["ttft_ns"] = span.ttft_ns
        changed["attributes"] = {**winner.attributes, "ttft.source": source}
    return replace(winner, **changed) if changed else winner
