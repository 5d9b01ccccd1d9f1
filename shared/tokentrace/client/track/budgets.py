"""What a call may cost at most, reserved before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from tokentrace.client.money import Budget, Lease, cost_or_none
from tokentrace.errors import Unavailable
from tokentrace.records import Span

#: Bytes of a request for one token; few, because the estimate must not be too low.
_BYTES_PER_TOKEN = 3
#: Output tokens of a call that names no limit.
_MAX_TOKENS = 4096
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
#: What a request states beside its prompt, and large values that are no text.
_INPUTS = ("messages", "input", "prompt", "system", "instructions", "tools", "functions", "text", "response_format")


class AnyBudget(Protocol):
    """``Budget`` or ``SharedBudget``."""

    def reserve(self, usd: Decimal, /) -> Lease:
        """Hold back an amount, US dollars."""
        ...

    async def areserve(self, usd: Decimal, /) -> Lease:
        """Do what ``reserve`` does without blocking the event loop."""
        ...


class Reserved:
    """
    The lease of one call.

    Args:
        lease: The lease.
        budget: What it is of.
    """

    def __init__(self, lease: Lease, budget: AnyBudget) -> None:
        self._lease, self._budget = lease, budget

    def settle(self, span: Span) -> None:
        """
        Count what the call has cost.

        A call that failed without usage costs nothing. Where the usage is not known as a whole, the reserved amount
        counts, because the provider bills the call.
        """
        used = bool(span.prompt_tokens or span.completion_tokens or span.usage)
        if not used and span.status != "ok":
            self._lease.release(wait=False)
            return
        usd = _cost(self._budget, span) if used else None
        if usd is None or span.usage_state:
            usd = max(usd or Decimal(0), Decimal(str(self._lease.usd)))
        self._lease.commit(usd, wait=False)

    def release(self) -> None:
        """Give the amount back: the call was not made."""
        self._lease.release(wait=False)


def _cost(budget: AnyBudget, span: Span) -> Decimal | None:
    """Return what *span* costs, by the own prices of *budget* if it has some; None if that is not known."""
    prices = budget.prices if isinstance(budget, Budget) else None
    find = cost_or_none if prices is None else prices.cost_or_none
    return find(span.model, span, provider=span.provider)


def most_usd(budget: AnyBudget, body: Mapping[str, Any], model: str, provider: str, kind: str) -> Decimal | None:
    """
    Return the most that a call costs, US dollars; None if the price of the model is not known.

    The prompt counts a token for every three bytes. The output counts what the request allows, or 4,096 tokens, for
    each of the answers that it asks for.

    Args:
        budget: What the call is paid from; its own prices win over the list.
        body: The request.
        model, provider: Names as in a span.
        kind: The kind of the span; embeddings have no output.
    """
    given = {name: body[name] for name in _INPUTS if body.get(name)}
    prompt = -(-len(msgspec.json.encode(given, enc_hook=str)) // _BYTES_PER_TOKEN)
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), _MAX_TOKENS)
    answers = body.get("n")
    completion = 0 if kind == "embedding" else limit * (answers if isinstance(answers, int) and answers > 0 else 1)
    most = Span(model=model, provider=provider, prompt_tokens=prompt, completion_tokens=completion)
    return _cost(budget, most)


def refusal(budget: AnyBudget, model: str) -> Unavailable | None:
    """Return why a call with an unknown price is not made; None if *budget* lets it pass."""
    if getattr(budget, "if_unavailable", "allow") != "refuse":
        return None
    from tokentrace.client.money import BudgetUnavailable

    return BudgetUnavailable(f"budget: the price of model {model or '(none)'} is not known, so nothing can be reserved")
