"""Realistic traffic: makes the spans and messages of user requests to several services, without I/O and a clock."""

from __future__ import annotations

import random
import secrets
from typing import Any, NamedTuple

from msgspec.structs import replace

from tokentrace.records import ChatMessage, SessionEnd, Span
from tokentrace.units import MS, SECOND
from tokentrace_standalone.demo_services import GPT, OPUS, SERVICES, Model, Service, question_and_answer

#: The conditions repeat with this period, seconds, so that each of them occurs every quarter of an hour.
CYCLE_S = 900
_SLOW_S, _SPIKE_S, _OUTAGE_S = (300, 420), (600, 660), (780, 820)
#: The version of the services that runs, by how long ago a call was made, seconds; the newest last.
VERSIONS = ((100 * 3600, "2.3.0"), (26 * 3600, "2.4.0"), (40 * 60, "2.4.1"), (-float("inf"), "2.5.0"))
#: Most conversations of a service that go on at the same time, and the longest pause in one, seconds.
_MOST_OPEN, _PAUSE_S = 8, 1200
_USERS = 200


def condition(now_ns: int) -> str:
    """
    Return the condition.

    Returns:
        ``normal``, ``slow`` (OpenAI is slow), ``spike`` (agents use an expensive model), or ``outage`` (many calls to
        Google fail).
    """
    second = now_ns // SECOND % CYCLE_S
    for state, (begin, end) in (("slow", _SLOW_S), ("spike", _SPIKE_S), ("outage", _OUTAGE_S)):
        if begin <= second < end:
            return state
    return "normal"


def version_at(age_s: float) -> str:
    """Return the version that the services had *age_s* seconds ago."""
    return next(version for since_s, version in VERSIONS if age_s >= since_s)


class Request(NamedTuple):
    """
    One user request.

    Attributes:
        service: Name of the service.
        spans: The spans, the root first.
        messages: What the user and the service wrote; [] without a conversation.
        session_ends: The end of the conversation, if this was its last request.
    """

    service: str
    spans: list[Span]
    messages: list[ChatMessage]
    session_ends: list[SessionEnd]


class _Conversation:
    """A session with a user: several requests about one topic."""

    def __init__(self, dice: random.Random, service: Service) -> None:
        self.session_id = f"{service.name}-{secrets.token_hex(4)}"
        self.user_id = f"user-{int(_USERS * dice.random() ** 2)}"
        self.topic = dice.choice(service.topics)
        self.turns = dice.randint(1, service.turns)
        self.done = 0
        self.last_s = 0.0


class Traffic:
    """
    Makes requests. Equal *dice* give equal requests, but for their times and for the ids of traces, spans and sessions.

    Spans with the ids of an earlier run would be the calls of that run told again.
    """

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._open: dict[str, list[_Conversation]] = {service.name: [] for service in SERVICES}

    def request(self, now_ns: int, state: str, at_s: float = 0.0) -> Request:
        """
        Return a request that ended at *now_ns*, Unix nanoseconds.

        Args:
            state: As ``condition`` returns it.
            at_s: When that is, in seconds of the schedule, whose 0 is the start of the demo. It decides the version,
                and which conversations are over.
        """
        service = self._dice.choices(SERVICES, [service.share for service in SERVICES])[0]
        talk = self._conversation(service, at_s)
        maker = _Maker(self._dice, service, state, version_at(-at_s), talk)
        spans = maker.make(now_ns)
        if talk is None:
            return Request(service.name, spans, [], [])
        talk.done += 1
        messages = maker.messages(spans)
        if talk.done < talk.turns:
            return Request(service.name, spans, messages, [])
        self._open[service.name].remove(talk)
        # Some users leave without a word, and their sessions stay active.
        if self._dice.random() < 0.2:
            return Request(service.name, spans, messages, [])
        error = "the user was disconnected" if self._dice.random() < 0.05 else ""
        end = SessionEnd(session_id=talk.session_id, ended_ns=now_ns + SECOND, error=error)
        return Request(service.name, spans, messages, [end])

    def _conversation(self, service: Service, at_s: float) -> _Conversation | None:
        if not service.topics:
            return None
        going_on = self._open[service.name]
        going_on[:] = [talk for talk in going_on if at_s - talk.last_s < _PAUSE_S]
        if len(going_on) == _MOST_OPEN or (going_on and self._dice.random() < 0.65):
            talk = self._dice.choice(going_on)
        else:
            talk = _Conversation(self._dice, service)
            going_on.append(talk)
        talk.last_s = at_s
        return talk


class _Maker:
    """Makes the spans of one request."""

    def __init__(
        self, dice: random.Random, service: Service, state: str, version: str, talk: _Conversation | None
    ) -> None:
        self._dice, self._service, self._state, self._version, self._talk = dice, service, state, version, talk
        self._spike = state == "spike" and service.agent_steps > 0
        self._trace = secrets.token_hex(16)
        self._user = talk.user_id if talk else f"user-{int(_USERS * dice.random() ** 2)}"

    def make(self, now_ns: int) -> list[Span]:
        """Return the spans of all steps, one after the other, moved so that the root ends at *now_ns*."""
        root = self._id()
        parent = root
        spans: list[Span] = []
        at = 0
        if self._service.agent_steps:
            parent = self._id()
            for step in range(1, self._dice.randint(1, self._service.agent_steps) + 1):
                spans += self._step(parent, at, step)
                at = max(span.ended_ns for span in spans)
        spans.append(self._llm(parent, "answer", at, 0))
        at = spans[-1].ended_ns
        status = spans[-1].status
        if parent != root:
            spans.insert(0, self._span(parent, root, "run", "agent", 0, at, status))
        head = self._span(root, None, f"POST /{self._service.name}", "http", 0, at + 3 * MS, status)
        if self._talk is not None:
            head.attributes["label"] = self._talk.topic.label
        spans.insert(0, head)
        shift = now_ns - spans[0].ended_ns
        return [replace(span, started_ns=span.started_ns + shift, ended_ns=span.ended_ns + shift) for span in spans]

    def messages(self, spans: list[Span]) -> list[ChatMessage]:
        """Return what the user asked and, unless the last call failed, what the service answered."""
        talk, answer = self._talk, spans[-1]
        assert talk is not None
        asked, answered = question_and_answer(self._dice, talk.topic, talk.done - 1)
        said: list[tuple[str, str, int]] = [("user", asked, spans[0].started_ns)]
        if answer.status == "ok":
            said.append(("assistant", answered, answer.ended_ns))
        return [
            ChatMessage(
                message_id=self._id(),
                session_id=talk.session_id,
                trace_id=self._trace,
                span_id=answer.span_id,
                role=role,  # type: ignore[arg-type]
                content=text,
                created_ns=when,
                length=len(text),
            )
            for role, text, when in said
        ]

    def _id(self) -> str:
        return secrets.token_hex(8)

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
            session_id=self._talk.session_id if self._talk else None,
            user_id=self._user,
            attributes={"version": self._version},
        )

    def _step(self, parent: str, at: int, step: int) -> list[Span]:
        """Return a step of an agent, which starts at *at*: the step, its plan, its tool, and what that calls."""
        own = self._id()
        plan = self._llm(own, "plan", at, step)
        tool = self._tool_call(own, plan.ended_ns, step)
        below: list[Span] = []
        if tool.kind == "retrieval":
            half = (tool.started_ns + tool.ended_ns) // 2
            below = [self._embedding(tool.span_id, tool.started_ns, half)]
        whole = self._span(own, parent, f"step {step}", "chain", at, tool.ended_ns, tool.status)
        return [whole, plan, tool, *below]

    def _tool_call(self, parent: str, at: int, step: int) -> Span:
        kind, name = self._dice.choice((("tool", "web_search"), ("retrieval", "vector_lookup"), ("database", "orders")))
        took = int(self._dice.lognormvariate(4.5, 0.6) * MS)
        status = "error" if self._dice.random() < 0.02 else "ok"
        span = self._span(self._id(), parent, name, kind, at, at + took, status)
        span.attributes["step"] = step
        if kind == "retrieval":
            span.attributes["documents"] = self._dice.randint(0, 12)
        if status == "ok":
            return span
        where = f'Traceback (most recent call last):\n  File "tools/{name}.py", line 88, in call\n'
        return replace(span, error=f"{name}: connection reset", error_stack=f"{where}ConnectionResetError: [Errno 104]")

    def _embedding(self, parent: str, start: int, end: int) -> Span:
        tokens = self._dice.randint(20, 400)
        span = self._span(self._id(), parent, "embed", "embedding", start, end)
        return replace(
            span, model="text-embedding-3-small", provider="openai", prompt_tokens=tokens, total_tokens=tokens
        )

    def _model(self) -> Model:
        if self._spike:
            return OPUS
        # The newest version sends reviews to another model, so that there is a change to find.
        return GPT if self._service.name == "code-review" and self._version != VERSIONS[-1][1] else self._service.model

    def _failure(self, model: Model) -> tuple[str, str]:
        """Return (status, error) of a call to *model*."""
        slow = 3.0 if self._is_slow(model) else 1.0
        luck = self._dice.random()
        if self._state == "outage" and model.provider == "google" and luck < 0.4:
            return "error", "503 the model is overloaded, try again later"
        if luck < 0.006 * slow:
            return "timeout", "deadline exceeded after 60 s"
        if luck < 0.02 * slow:
            return "error", "rate limit reached, try again later"
        return "ok", ""

    def _is_slow(self, model: Model) -> bool:
        return self._state == "slow" and model.provider == "openai"

    def _llm(self, parent: str, name: str, at: int, step: int) -> Span:
        dice, service, model = self._dice, self._service, self._model()
        slow = 3.0 if self._is_slow(model) else 1.0
        prompt = max(1, int(service.prompt * dice.lognormvariate(0, 0.5) * (3 if self._spike else 1)))
        completion = max(1, int(service.completion * dice.lognormvariate(0, 0.6)))
        cached = int(prompt * dice.choice((0, 0, 0.5, 0.8)))
        first = model.first_ms * dice.lognormvariate(0, 0.35) * slow
        took = int((first + completion * model.token_ms * dice.uniform(0.8, 1.3) * slow) * MS)
        status, error = self._failure(model)
        if status != "ok":
            completion = 0
        if status == "timeout":
            took = 60 * SECOND
        call = self._span(self._id(), parent, name, "llm", at, at + took, status)
        call.attributes.update(self._attributes(name, step, scored=status == "ok"))
        return replace(
            call,
            model=model.name,
            provider=model.provider,
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            ttft_ns=int(first * MS) if service.streams and status == "ok" else 0,
            error=error,
            cache_read_tokens=cached,
        )

    def _attributes(self, name: str, step: int, *, scored: bool) -> dict[str, Any]:
        dice, service = self._dice, self._service
        found: dict[str, Any] = {"step_name": name, "region": dice.choice(("eu", "us"))}
        if step:
            found["step"] = step
        if scored and dice.random() < 0.4:
            found["eval.score"] = _score(dice, service.quality)
            found[f"eval.{service.rated}"] = _score(dice, service.quality - 0.05)
        return found


def _score(dice: random.Random, mean: float) -> float:
    return round(min(1.0, max(0.0, dice.gauss(mean, 0.12))), 3)
