"""The counts of one call: parts that contradict their whole are clamped, never a reason to lose the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokentrace.client.usage.access import get, text
from tokentrace.errors import Rejected
from tokentrace.records import MAX_NAME, MAX_TOKENS, Span, UsageState, is_response_id, settle_usage
from tokentrace.units import is_number

if TYPE_CHECKING:
    from tokentrace.client.fields import SpanFields

#: What decides the price beside the counts, under the names that every vendor uses.
_CONTEXT = ("service_tier", "speed", "inference_geo")
#: Beginnings of models whose vendors count reasoning among the completion tokens without exception.
_REASONING_INSIDE = ("gpt-", "chatgpt-", "o1", "o3", "o4", "claude")


class Counts:
    """
    The counts that a response states.

    Attributes:
        prompt, completion: Tokens of the whole input and output.
        total: The vendor's own total; 0 = not stated.
        cache_read, cache_write, cache_write_1h: Parts of the prompt.
        reasoning: Part of the completion.
        units: Amounts of other priced units, under the names of the price list.
        state: partial = the response says that it lacks a part.
        notes: What was corrected.
    """

    def __init__(self) -> None:
        self.prompt = self.completion = self.total = 0
        self.cache_read = self.cache_write = self.cache_write_1h = self.reasoning = 0
        self.units: dict[str, int] = {}
        self.state: UsageState = ""
        self.notes: list[str] = []

    def number(self, usage: object, *path: str) -> int:
        """Return the count at *path* in *usage*; 0 if there is none, or one that cannot be a count, which is noted."""
        value: Any = usage
        for name in path:
            value = get(value, name)
        if value is None or not is_number(value):
            return 0
        if not 0 <= value <= MAX_TOKENS:
            self.notes.append(f"{'.'.join(path)}: {value} is no count, left out"[:MAX_NAME])
            return 0
        return int(value)

    def add(self, unit: str, amount: int) -> None:
        """Add *amount* of *unit*; 0 changes nothing."""
        if amount:
            self.units[unit] = self.units.get(unit, 0) + amount

    def fields(self, model: str) -> SpanFields:
        """Return the counts as fields of a span, with every part at most its whole."""
        self.prompt, self.completion = (self._clamped("tokens", n, MAX_TOKENS) for n in (self.prompt, self.completion))
        self._add_reasoning(model)
        self.cache_read = self._clamped("cache_read_tokens", self.cache_read, self.prompt)
        self.cache_write = self._clamped("cache_write_tokens", self.cache_write, self.prompt - self.cache_read)
        self.cache_write_1h = self._clamped("cache_write_1h_tokens", self.cache_write_1h, self.cache_write)
        self.reasoning = self._clamped("reasoning_tokens", self.reasoning, self.completion)
        fields: SpanFields = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": max(self.total, self.prompt + self.completion),
        }
        if self.cache_read:
            fields["cache_read_tokens"] = self.cache_read
        if self.cache_write:
            fields["cache_write_tokens"] = self.cache_write
        if self.cache_write_1h:
            fields["cache_write_1h_tokens"] = self.cache_write_1h
        if self.reasoning:
            fields["reasoning_tokens"] = self.reasoning
        units = self._fitting_units(fields)
        if units:
            fields["usage"] = units
        if self.state:
            fields["usage_state"] = self.state
        if self.notes:
            fields["adjusted"] = self.notes
        return fields

    def _add_reasoning(self, model: str) -> None:
        """Add the reasoning to the completion where the vendor counted it beside, as ``settle_usage`` does."""
        beside = self.total and self.total == self.prompt + self.completion + self.reasoning
        over = self.reasoning > self.completion and not model.rpartition("/")[2].startswith(_REASONING_INSIDE)
        if self.reasoning and (beside or over):
            self.completion += self.reasoning

    def _clamped(self, name: str, part: int, whole: int) -> int:
        if part <= whole:
            return part
        self.notes.append(f"{name}: {part} is more than its whole, {whole} kept")
        return whole

    def _fitting_units(self, fields: SpanFields) -> dict[str, int]:
        """Return the other units, without those of tokens if they contradict the counts."""
        if not self.units:
            return {}
        counts: dict[str, Any] = {name: value for name, value in fields.items() if name != "usage"}
        try:
            settled = settle_usage(Span(**counts, usage=self.units))
        except Rejected as exc:
            self.notes.append(f"usage: left out, {exc}"[:MAX_NAME])
            return {unit: amount for unit, amount in self.units.items() if not unit.endswith("_tokens")}
        # A part whose whole is not counted becomes its whole, which the vendor's total may not know.
        fields["total_tokens"] = max(fields["total_tokens"] or 0, settled.prompt_tokens + settled.completion_tokens)
        return self.units


def described(
    fields: SpanFields,
    response: object,
    *,
    model: str,
    response_id: str = "",
    finish_reason: str = "",
    tool_calls: int = 0,
    context_of: tuple[object, ...] = (),
) -> SpanFields:
    """
    Add to *fields* what a response says beside its counts.

    Args:
        response: The response, whose request id is an attribute that the SDK adds.
        model: The model that answered; "" = not stated.
        response_id: The id of the response; one that cannot identify it is left out.
        finish_reason: Why the answer ended, in the vendor's word.
        tool_calls: How many tools the answer calls.
        context_of: The objects that state what else decides the price.
    """
    if model:
        fields["model"] = model[:MAX_NAME]
    if response_id and is_response_id(response_id):
        fields["response_id"] = response_id
    context = {name: found[:MAX_NAME] for name in _CONTEXT for one in context_of if (found := text(one, name))}
    if context:
        fields["pricing_context"] = context
    request_id = "" if isinstance(response, Mapping) else text(response, "_request_id")
    stated: dict[str, object] = {"finish_reason": finish_reason, "tool_calls": tool_calls, "request_id": request_id}
    attributes = {name: value for name, value in stated.items() if value}
    if attributes:
        fields["attributes"] = attributes
    return fields
