"""Finds calls that two instrumentations may have told without an id by which they could be recognised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tokentrace.units import MS

#: An interval that is inside another one may begin so much earlier, and end so much later, nanoseconds.
SLACK_NS = 5 * MS
#: With how many of the calls under way a call is compared, those that began last.
_MOST_COMPARED = 64


class Call(NamedTuple):
    """
    A call as one instrumentation tells it.

    Attributes:
        model: The same for all names of a model, if it has a price.
        started_ns, ended_ns: Unix nanoseconds.
        prompt_tokens, completion_tokens: Both 0 = unknown.
        has_id: Whether it has a response id.
    """

    caller: str
    scope: str
    provider: str
    model: str
    status: str
    started_ns: int
    ended_ns: int
    prompt_tokens: int
    completion_tokens: int
    has_id: bool


def count_pairs(calls: Sequence[Call]) -> Counter[tuple[str, str, str]]:
    """
    Return (caller, scope, other scope), the scopes in order of the alphabet -> number of pairs of *calls*.

    The calls of a pair have the same caller, provider, model and status and different scopes. One is within the
    interval of the other. Their tokens are equal if both have some. They do not both have a response id, because calls
    that have one are recognised by it. A call is in one pair at most. It is a guess: they may be two calls at one time.
    """
    groups: dict[tuple[str, str, str, str], list[Call]] = {}
    for call in calls:
        groups.setdefault((call.caller, call.provider, call.model, call.status), []).append(call)
    pairs: Counter[tuple[str, str, str]] = Counter()
    for group in groups.values():
        if len({call.scope for call in group}) > 1:
            _pair(sorted(group, key=lambda call: (call.started_ns, -call.ended_ns)), pairs)
    return pairs


def _pair(group: Sequence[Call], pairs: Counter[tuple[str, str, str]]) -> None:
    open_calls: list[Call] = []
    for call in group:
        open_calls = [other for other in open_calls if other.ended_ns >= call.started_ns - SLACK_NS]
        recent = open_calls[-_MOST_COMPARED:]
        partner = next((other for other in reversed(recent) if _may_be_same(call, other)), None)
        if partner is None:
            open_calls.append(call)
            continue
        # By identity: two calls may be equal in all that is compared.
        open_calls = [other for other in open_calls if other is not partner]
        first, second = sorted((call.scope, partner.scope))
        pairs[call.caller, first, second] += 1


def _may_be_same(call: Call, other: Call) -> bool:
    if call.scope == other.scope or (call.has_id and other.has_id):
        return False
    if not (_is_inside(call, other) or _is_inside(other, call)):
        return False
    tokens, others = (call.prompt_tokens, call.completion_tokens), (other.prompt_tokens, other.completion_tokens)
    return tokens == others or not any(tokens) or not any(others)


def _is_inside(inner: Call, outer: Call) -> bool:
    return inner.started_ns >= outer.started_ns - SLACK_NS and inner.ended_ns <= outer.ended_ns + SLACK_NS
