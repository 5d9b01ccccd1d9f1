"""Realistic traffic: makes the spans of user requests to several services, without I/O and without a clock."""

from __future__ import annotations

import random
from typing import NamedTuple

from msgspec.structs import replace

from tokentrace.records import Span
from tokentrace.units import MS, SECOND


class Model(NamedTuple):
    """A model and its speed: milliseconds to the first token, and for each token after that."""

    name: str
    provider: str
    first_ms: float
    token_ms: float


class Service(NamedTuple):
    """
    An application that makes LLM calls.

    Attributes:
        share: Its share of all requests, relative to the shares of the other services.
        agent_steps: Largest number of steps of its agent; 0 = it has no agent and makes a single call.
        prompt, completion: Median number of tokens of a call.
        quality: Mean of ``eval.score``, before it is limited to 0-1.
        streams: True = answers are streamed, so spans have a time to first token.
    """

    name: str
    share: int
    model: Model
    agent_steps: int
    prompt: int
    completion: int
    quality: float
    streams: bool


_GPT = Model("gpt-4o", "openai", 350, 14)
_MINI = Model("gpt-4o-mini", "openai", 180, 6)
_SONNET = Model("claude-sonnet-4-5", "anthropic", 420, 16)
_FLASH = Model("gemini-2.5-flash", "google", 220, 5)
_OPUS = Model("claude-opus-4-1", "anthropic", 900, 28)

SERVICES = (
    Service("support-chat", 10, _MINI, 0, 900, 180, 0.86, True),
    Service("search-answers", 6, _FLASH, 0, 2600, 220, 0.81, True),
    Service("research-agent", 2, _SONNET, 5, 4200, 450, 0.78, False),
    Service("code-review", 1, _GPT, 2, 6000, 600, 0.83, False),
)
#: The conditions repeat with this period, seconds, so that each of them occurs every quarter of an hour.
CYCLE_S = 900
_SLOW_S, _SPIKE_S = (300, 420), (600, 660)


def condition(now_ns: int) -> str:
    """Return the condition: ``normal``, ``slow`` (OpenAI is slow) or ``spike`` (agents use an expensive model)."""
    second = now_ns // SECOND % CYCLE_S
    if _SLOW_S[0] <= second < _SLOW_S[1]:
        return "slow"
    return "spike" if _SPIKE_S[0] <= second < _SPIKE_S[1] else "normal"


class Request(NamedTuple):
    """One user request: its service and its spans, the root first."""

    service: str
    spans: list[Span]


def make_request(dice: random.Random, now_ns: int) -> Request:
    """Return a request that ended at *now_ns*, Unix nanoseconds."""
    service = dice.choices(SERVICES, [service.share for service in SERVICES])[0]
    maker = _Maker(dice, service, condition(now_ns))
    return Request(service.name, maker.make(now_ns))


class _Maker:
    def __init__(self, dice: random.Random, service: Service, state: str) -> None:
        self._dice, self._service = dice, service
        self._slow = 3.0 if state == "slow" and service.model.provider == "openai" else 1.0
        self._spike = state == "spike" and service.agent_steps > 0
        self._trace = f"{dice.getrandbits(128):032x}"
        self._user = f"user-{dice.randrange(200)}"
        self._session = f"{service.name}-{self._user}-{dice.randrange(3)}"

    def make(self, now_ns: int) -> list[Span]:
        """Return the spans of all steps, one after the other, moved so that the root ends at *now_ns*."""
        root = self._id()
        parent = root
        spans: list[Span] = []
        at = 0
        if self._service.agent_steps:
            parent = self._id()
            for step in range(1, self._dice.randint(1, self._service.agent_steps) + 1):
                spans.append(self._llm(parent, "plan", at, step))
                at = spans[-1].ended_ns
                spans.append(self._tool_call(parent, at, step))
                at = spans[-1].ended_ns
        spans.append(self._llm(parent, "answer", at, 0))
        at = spans[-1].ended_ns
        status = spans[-1].status
        if parent != root:
            spans.insert(0, self._span(parent, root, "run", "agent", 0, at, status))
        spans.insert(0, self._span(root, None, f"POST /{self._service.name}", "http", 0, at + 3 * MS, status))
        shift = now_ns - spans[0].ended_ns
        return [_shifted(span, shift) for span in spans]

    def _id(self) -> str:
        return f"{self._dice.getrandbits(64):016x}"

    def _span(
        self, span_id: str, parent: str | None, name: str, kind: str, start: int, end: int, status: str = "ok"
    ) -> Span:
        return Span(
            trace_id=self._trace,
            span_id=span_id,
            parent_span_id=parent,
            name=name,
            kind=kind,  # type: ignore[arg-type]
            caller=self._service.name,
            status=status,  # type: ignore[arg-type]
            started_ns=start,
            ended_ns=end,
            latency_ns=end - start,
            session_id=self._session,
            user_id=self._user,
        )

    def _tool_call(self, parent: str, at: int, step: int) -> Span:
        kind, name = self._dice.choice((("tool", "web_search"), ("retrieval", "vector_lookup"), ("database", "orders")))
        took = int(self._dice.lognormvariate(4.5, 0.6) * MS)
        status = "error" if self._dice.random() < 0.02 else "ok"
        return self._span(self._id(), parent, f"{name} {step}", kind, at, at + took, status)

    def _llm(self, parent: str, name: str, at: int, step: int) -> Span:
        dice, service = self._dice, self._service
        model = _OPUS if self._spike else service.model
        prompt = max(1, int(service.prompt * dice.lognormvariate(0, 0.5) * (3 if self._spike else 1)))
        completion = max(1, int(service.completion * dice.lognormvariate(0, 0.6)))
        cached = int(prompt * dice.choice((0, 0, 0.5, 0.8)))
        first = model.first_ms * dice.lognormvariate(0, 0.35) * self._slow
        took = int((first + completion * model.token_ms * dice.uniform(0.8, 1.3) * self._slow) * MS)
        status, error = "ok", ""
        luck = dice.random()
        if luck < 0.006 * self._slow:
            status, error, took, completion = "timeout", "deadline exceeded after 60 s", 60 * SECOND, 0
        elif luck < 0.02 * self._slow:
            status, error, completion = "error", "rate limit reached, try again later", 0
        attributes: dict[str, object] = {"step_name": name, "region": dice.choice(("eu", "us"))}
        if step:
            attributes["step"] = step
        if status == "ok" and dice.random() < 0.4:
            attributes["eval.score"] = round(min(1.0, max(0.0, dice.gauss(service.quality, 0.12))), 3)
        call = Span(
            trace_id=self._trace,
            span_id=self._id(),
            parent_span_id=parent,
            name=name,
            caller=service.name,
            model=model.name,
            provider=model.provider,
            status=status,  # type: ignore[arg-type]
            started_ns=at,
            ended_ns=at + took,
            latency_ns=took,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            attributes=attributes,
        )
        return replace(
            call,
            ttft_ns=int(first * MS) if service.streams and status == "ok" else 0,
            error=error,
            cache_read_tokens=cached,
            session_id=self._session,
            user_id=self._user,
        )


def _shifted(span: Span, shift: int) -> Span:
    return replace(span, started_ns=span.started_ns + shift, ended_ns=span.ended_ns + shift)
