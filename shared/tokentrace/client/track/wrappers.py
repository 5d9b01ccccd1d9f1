"""
Clients of OpenAI and Anthropic that need no SDK and make a span of each call, with the names of Cost Katana.

    client = TrackedOpenAI(
        trace_context=TraceContext(session_id, root_id),
        start_span=service.start_span, end_span=service.end_span, record_message=service.record_message,
    )
    client.chat_completion(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], max_tokens=100)

They wait for the answer; in a program with an event loop, call them with ``asyncio.to_thread``. For streams, retries
and the rest of the API, use the SDK of the provider with ``instrument``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tokentrace.client import usage
from tokentrace.client.tracing import Tracer
from tokentrace.client.track.faults import safely
from tokentrace.client.track.observed import Json, Observer, Started, observe
from tokentrace.client.track.provider_http import HttpProvider, anthropic_provider, openai_provider
from tokentrace.errors import Rejected

Message = Mapping[str, Any]
#: Takes the model, input tokens and output tokens, and returns US dollars.
CalculateCost = Callable[[str, int, int], float]


#: Role of a message in the API -> that of a recorded message, where they differ.
_ROLES = {"developer": "system", "function": "tool"}


class _TrackedProvider:
    #: What stands before the model in the name of a span, and what makes the client below.
    _label: str
    _make_provider: Callable[[str | None, str | None, float], HttpProvider]

    def __init__(
        self,
        api_key: str | None = None,
        endpoint: str | None = None,
        trace_context: object = None,
        start_span: Callable[..., Started] | None = None,
        end_span: Callable[..., object] | None = None,
        record_message: Callable[..., object] | None = None,
        *,
        calculate_cost: CalculateCost | None = None,
        tracer: Tracer | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._provider = self._make_provider(api_key, endpoint, timeout_s)
        self._context, self._tracer = trace_context, tracer
        self._start_span, self._end_span, self._record_message = start_span, end_span, record_message
        self._calculate_cost = calculate_cost

    def get_provider(self) -> HttpProvider:
        """
        Return the client below, whose ``make_request`` makes no span.

        Returns:
            The client.
        """
        return self._provider

    def make_request(self, request: Mapping[str, Any]) -> Json:
        """
        Send a request and make a span of it. Without a trace context or a tracer there is no span.

        Args:
            request: ``model`` and ``messages`` or ``prompt``, and further parameters of the API; ``maxTokens`` and
                ``topP`` are known as well.

        Returns:
            The JSON object that the API answers.

        Raises:
            Rejected: The API refuses the request; ``status`` is the HTTP status.
            Unavailable: The API cannot be reached, does not answer in time, or answers with status 408, 409, 425, 429
                or 5xx. Nothing is sent again.
        """
        if not isinstance(request, Mapping):
            raise Rejected(f"request: {type(request).__name__} is not a mapping of names to values")
        model = str(request.get("model") or "")
        observer = observe(
            f"{self._label} {model}",
            {
                "model": model,
                "temperature": request.get("temperature"),
                "maxTokens": request.get("maxTokens", request.get("max_tokens")),
            },
            self._context,
            tracer=self._tracer,
            start_span=self._start_span,
            end_span=self._end_span,
            record_message=self._record_message,
            model=model,
            provider=self._provider.name,
        )
        if observer is None:
            return self._provider.make_request(request)
        safely(_say_last, observer, request)
        try:
            response = self._provider.make_request(request)
        except BaseException as exc:
            observer.fail(exc)
            raise
        safely(_say_answer, observer, response)
        observer.end(response, safely(self._told, model, response) or {"model": model})
        return response

    def _told(self, model: str, response: Json) -> Json:
        """Return the arguments of ``end_span``: the usage, the cost and why the answer ended."""
        fields = usage.read(response)
        attributes = fields.get("attributes") or {}
        told: Json = {"model": fields.get("model") or model, "metadata": {}}
        if "finish_reason" in attributes:
            told["metadata"] = {"finishReason": attributes["finish_reason"]}
        if fields.get("prompt_tokens") or fields.get("completion_tokens"):
            told["input_tokens"] = fields.get("prompt_tokens") or 0
            told["output_tokens"] = fields.get("completion_tokens") or 0
            told["cost_usd"] = safely(self._cost, told["model"], response, told)
        return told

    def _cost(self, model: str, response: Json, told: Json) -> float | None:
        if self._calculate_cost is not None:
            cost = safely(self._calculate_cost, model, told["input_tokens"], told["output_tokens"])
            if cost is not None:
                return cost
        from tokentrace.client.money import cost_or_none

        price = cost_or_none(model, response, provider=self._provider.name)
        return None if price is None else float(price)


class TrackedOpenAI(_TrackedProvider):
    """
    A client of OpenAI's chat API that makes a span of each call. It may be shared between threads.

    The span is called ``OpenAI <model>`` and is of kind ``llm``, below the span of *trace_context*. The last message of
    the request and the answer are recorded. Where it goes: to the service whose methods are given, or, if
    *trace_context* is a ``Trace`` or an ``OpenSpan``, into that trace. With a *tracer* and no context, it is below what
    is current. Otherwise the calls are made without a span.

    Args:
        api_key: The key; None reads the environment variable ``OPENAI_API_KEY``.
        endpoint: The base URL of a compatible API; None = that of OpenAI.
        trace_context: The span of the request: a ``TraceContext``, a ``Trace`` or an ``OpenSpan``; None = none.
        start_span, end_span, record_message: Methods of ``TraceClient`` or ``LocalTraceService``, or functions with
            their arguments. A failure of one is logged, and the call goes on.
        calculate_cost: Takes the model, input tokens and output tokens, and returns US dollars; None = the price list.
            A price that is not known is left to the service.
        tracer: Makes spans without a trace context.
        timeout_s: The limit for each network operation, seconds.

    Raises:
        ConfigError: There is no key, or *endpoint* is not an HTTP URL.
    """

    _label, _make_provider = "OpenAI", staticmethod(openai_provider)

    def chat_completion(
        self,
        *,
        model: str,
        messages: Sequence[Message],
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        **more: Any,
    ) -> Json:
        """
        Ask for an answer to a conversation.

        Args:
            model: The model, such as ``gpt-4o``.
            messages: Objects with ``role`` and ``content``.
            max_tokens: Most tokens of the answer; None = as many as the model allows.
            temperature: How random the answer is, 0 to 2; None = the default of the model.
            top_p: The part of the probability that tokens are taken from, 0 to 1; None = the default of the model.
            more: Further parameters of the API.

        Returns:
            The completion, as the API answers it.

        Raises:
            Rejected: The API refuses the request; ``status`` is the HTTP status.
            Unavailable: The API cannot be reached, does not answer in time, or answers with status 408, 409, 425, 429
                or 5xx. Nothing is sent again.
        """
        request = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": temperature}
        return self.make_request({**request, "top_p": top_p, **more})


class TrackedAnthropic(_TrackedProvider):
    """
    A client of Anthropic's messages API that makes a span of each call. It may be shared between threads.

    The span is called ``Claude <model>``; the rest is as for ``TrackedOpenAI``. The input tokens of the span include
    the cached ones.

    Args:
        api_key: The key; None reads the environment variable ``ANTHROPIC_API_KEY``.
        endpoint: The base URL of a compatible API; None = that of Anthropic.
        trace_context: The span of the request: a ``TraceContext``, a ``Trace`` or an ``OpenSpan``; None = none.
        start_span, end_span, record_message: Methods of ``TraceClient`` or ``LocalTraceService``, or functions with
            their arguments. A failure of one is logged, and the call goes on.
        calculate_cost: Takes the model, input tokens and output tokens, and returns US dollars; None = the price list.
            A price that is not known is left to the service.
        tracer: Makes spans without a trace context.
        timeout_s: The limit for each network operation, seconds.

    Raises:
        ConfigError: There is no key, or *endpoint* is not an HTTP URL.
    """

    _label, _make_provider = "Claude", staticmethod(anthropic_provider)

    def messages(
        self,
        *,
        model: str,
        messages: Sequence[Message],
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **more: Any,
    ) -> Json:
        """
        Ask for an answer to a conversation.

        Args:
            model: The model, such as ``claude-sonnet-4-5``.
            messages: Objects with ``role`` and ``content``.
            system: The system prompt, which stands before the messages; None = none.
            max_tokens: Most tokens of the answer; None = 4,096, because the API asks for a number.
            temperature: How random the answer is, 0 to 1; None = the default of the model.
            more: Further parameters of the API.

        Returns:
            The message, as the API answers it.

        Raises:
            Rejected: The API refuses the request; ``status`` is the HTTP status.
            Unavailable: The API cannot be reached, does not answer in time, or answers with status 408, 409, 425, 429
                or 5xx. Nothing is sent again.
        """
        before = [{"role": "system", "content": system}] if system else []
        request = {"model": model, "messages": [*before, *messages], "max_tokens": max_tokens}
        return self.make_request({**request, "temperature": temperature, **more})


def _say_last(observer: Observer, request: Mapping[str, Any]) -> None:
    """Record the last message of *request*, or its prompt."""
    messages = request.get("messages")
    if messages:
        role = str(messages[-1].get("role") or "user")
        observer.say(_ROLES.get(role, role), _text(messages[-1].get("content")))
    elif request.get("prompt") is not None:
        observer.say("user", _text(request["prompt"]))


def _say_answer(observer: Observer, response: Json) -> None:
    choices = response.get("choices")
    content = (choices[0].get("message") or {}).get("content") if choices else response.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(part.get("text") or "" for part in content)
    if content:
        observer.say("assistant", _text(content))


def _text(content: object) -> str:
    return content if isinstance(content, str) else msgspec.json.encode(content, enc_hook=str).decode()
