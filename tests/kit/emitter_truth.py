"""What the spans of an emitter must say: what the server of models told its client, less the emitter's gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from genai_prices import Usage, calc_price

from kit.emitter_cases import CASES, Case, case_of
from kit.emitters import ANYTHING, Emitter
from kit.llm_server import Told
from kit.prices import to_nusd

_TOKENS = (
    "prompt_tokens",
    "comp_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
)
_COUNTS = (*_TOKENS, "cost_nusd")


class Call(NamedTuple):
    """A call, with the names of ``GET /export``; the cost in nano-dollars, None = unknown."""

    kind: str
    model: str
    provider: str
    status: str
    prompt_tokens: int = 0
    comp_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nusd: int | None = None
    session_id: str = ""
    user_id: str = ""


def seen(span: Mapping[str, Any]) -> Call:
    """Return the call that a span of ``GET /export`` shows."""
    cost = span["cost_usd"]
    shown = {name: span.get(name) or default for name, default in Call._field_defaults.items()}
    shown |= {name: span[name] for name in Call._fields if name not in shown}
    return Call(**{**shown, "cost_nusd": None if cost is None else round(cost * 1e9)})


def price(case: Case, counts: Mapping[str, int]) -> int:
    """Return what genai-prices computes for a call of *case* that ends now, in nano-dollars."""
    usage = Usage(
        input_tokens=counts["prompt_tokens"],
        output_tokens=counts["comp_tokens"],
        cache_read_tokens=counts["cache_read_tokens"],
        cache_write_tokens=counts["cache_write_tokens"],
        cache_write_1h_tokens=counts["cache_write_1h_tokens"],
    )
    found = calc_price(usage, case.answered, provider_id=case.provider, genai_request_timestamp=datetime.now(UTC))
    return to_nusd(found.total_price)


def expected(emitter: Emitter, case: Case, told: Told) -> Call:
    """Return what the span of a call must say."""
    gaps = emitter.gaps_of(case)
    call = Call(case.kind, case.answered if told.status == 200 else case.model, case.provider, case.status)
    if case.name == "page" or emitter.is_sticky:
        call = call._replace(session_id=emitter.session, user_id=emitter.user)
    if case.counts is not None and "usage" not in gaps:
        counts: dict[str, Any] = dict(zip(_TOKENS, case.counts, strict=True))
        counts |= {name: value for name, value in gaps.items() if name in counts}
        call = call._replace(**counts, cost_nusd=price(case, counts))
    return call._replace(**{name: value for name, value in gaps.items() if name in Call._fields})


def problems(emitter: Emitter, told: Sequence[Told], spans: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what is wrong about *spans*, all of an emitter, given what its client was told."""
    calls = [span for span in spans if span["kind"] in ("llm", "embedding")]
    asked = {case_of(item): item for item in told}
    missing = [f"{case.provider}:{case.name}" for case in CASES if emitter.does(case) and case not in asked]
    if missing:
        yield f"the client did not call: {missing}"
    left = Counter(span["span_id"] for span in calls)
    for case, one in asked.items():
        found = [span for span in calls if span["model"] in (case.model, case.answered)]
        left -= Counter(span["span_id"] for span in found)
        # A client may try again what has failed; that is one call.
        often = 1 if case.counts is None else sum(case_of(item) is case for item in told)
        often = emitter.gaps_of(case).get("calls", often)
        if len(found) != often:
            yield f"{case.provider}:{case.name}: {len(found)} calls, not {often}"
        for span in found:
            yield from _differences(emitter, case, seen(span), expected(emitter, case, one))
    if left:
        yield f"calls of no case: {[span for span in calls if span['span_id'] in left]}"


def _differences(emitter: Emitter, case: Case, found: Call, wanted: Call) -> Iterator[str]:
    invented = _COUNTS if emitter.gaps_of(case).get("usage") == ANYTHING else ()
    for name, one, other in zip(Call._fields, found, wanted, strict=True):
        if one != other and other != ANYTHING and name not in invented:
            yield f"{case.provider}:{case.name}: {name} is {one!r}, not {other!r}"
