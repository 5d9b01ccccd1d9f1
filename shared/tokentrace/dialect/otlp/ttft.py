"""The time to the first token of a streamed answer, and the name of what told it."""

from __future__ import annotations

from typing import NamedTuple

from tokentrace.dialect.otlp.view import View
from tokentrace.errors import Rejected
from tokentrace.units import MS, SECOND, parse_instant, scaled

#: (Fact, unit in nanoseconds), the most trusted first. Some emitters measure the first chunk, some the first text.
_DURATIONS: tuple[tuple[str, int], ...] = (
    ("ttft_chunk", SECOND),
    ("ttft_client", SECOND),
    ("ttft_ms_chunk", MS),
    ("ttft_ms", MS),
)
#: Names of the events that are the first piece of an answer.
_EVENTS = frozenset(
    {
        "First Token Stream Event",
        "gen_ai.content.completion.chunk",
        "llm.content.completion.chunk",
        "ai.stream.firstChunk",
    }
)
#: Scopes whose ``gen_ai.response.time_to_first_chunk`` is that of the first text.
_TEXT_SCOPES = ("com.anthropic.sdk", "opentelemetry.instrumentation.google_genai")


class Ttft(NamedTuple):
    """
    The time to the first token.

    Attributes:
        ns: Nanoseconds, over 0 and at most the latency; 0 = unknown.
        source: The name of the attribute, or ``event:`` and the name of the event; "" = unknown.
    """

    ns: int = 0
    source: str = ""


def ttft_of(view: View, latency_ns: int) -> Ttft:
    """Return the first told time to the first token that is over 0 and within the latency."""
    if latency_ns <= 0:
        return Ttft()
    span, facts = view.span, view.facts
    if not span.events and _FACTS.isdisjoint(facts):
        return Ttft()
    told = [Ttft(_ns(view.get(slot), unit), view.name(slot)) for slot, unit in _DURATIONS if slot in facts]
    if "ttft_start" in facts:
        told.insert(2, Ttft(_since(view.get("ttft_start"), span.started_ns), view.name("ttft_start")))
    if "ttft_server" in facts and view.get("stream"):
        told.append(Ttft(_ns(view.get("ttft_server"), SECOND), view.name("ttft_server")))
    for event in span.events:
        if event.name in _EVENTS:
            told.append(Ttft(event.time_ns - span.started_ns, f"event:{event.name}"))
            break
    return next((ttft for ttft in told if 0 < ttft.ns <= latency_ns), Ttft())


_FACTS = frozenset({*(slot for slot, _ in _DURATIONS), "ttft_start", "ttft_server"})


def is_of_text(source: str, scope: str) -> bool:
    """Return True if *source* measures the first text, which a user sees, and not the first chunk of the protocol."""
    if source == "gen_ai.response.time_to_first_chunk":
        return scope.startswith(_TEXT_SCOPES)
    return source == "gen_ai.client.operation.time_to_first_chunk"


def _ns(value: float, unit: int) -> int:
    return scaled(value, unit) if 0 < value < 1e9 else 0


def _since(instant: str, started_ns: int) -> int:
    try:
        return parse_instant(instant) - started_ns
    except Rejected:
        return 0
