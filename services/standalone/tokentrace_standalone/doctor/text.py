"""Findings as text for people."""

from __future__ import annotations

from collections.abc import Iterator

from tokentrace.service.runtime import one_line
from tokentrace_standalone.doctor.findings import CostFinding, RequestFinding, SpanFinding, TokenFinding

#: Why a span tells a call again, in the word of the mapping -> in a sentence.
_WHY_DUPLICATE = {
    "response id": "both have the same response id",
    "wrapper": "it is around that span, and one of the two has no response id",
    "failed wrapper": "it is around that span, and both failed",
}
#: Width of the names of lines, characters.
_NAME = 9


def lines_of(found: RequestFinding) -> list[str]:
    """Return *found* as lines without control characters."""
    return [one_line(line) for line in _lines(found)]


def _lines(found: RequestFinding) -> Iterator[str]:
    form = f"{found.encoding}{', gzip' if found.gzip else ''}"
    if found.signal == "metrics":
        yield f"metrics ({form}): {found.metrics}; they are not stored, because they repeat what spans tell"
        return
    if found.signal == "logs":
        yield (
            f"logs ({form}): content or evaluations of {found.annotated} spans; {found.unused_logs} other records, "
            "which are not stored"
        )
        return
    calls = sum(span.counted for span in found.spans)
    told = f", {found.told_twice} told twice and counted once (saved {found.saved_usd} USD)" if found.told_twice else ""
    yield f"traces ({form}): {len(found.spans)} spans, {calls} calls{told}"
    for span in found.spans:
        yield ""
        yield from _span(span, len(found.spans))


def _span(span: SpanFinding, of: int) -> Iterator[str]:
    yield f"{span.place + 1} of {of}  {span.name or '(no name)'}"
    for name, text in _facts(span):
        if text:
            yield f"  {name:<{_NAME}} {text}"


def _facts(span: SpanFinding) -> Iterator[tuple[str, str]]:
    yield "not kept", span.not_stored
    parent = f", parent {span.parent_span_id}" if span.parent_span_id else ", no parent"
    yield "ids", f"trace {span.trace_id or '(none)'}, span {span.span_id or '(none)'}{parent}"
    version = f" {span.scope_version}" if span.scope_version else ""
    yield "sender", f"{span.scope or '(no scope)'}{version}, service {span.service or '(unknown)'}"
    yield "dialect", span.dialect
    yield "kind", f"{span.kind}, told by {span.kind_rule}" if span.kind_rule else f"{span.kind}: nothing says more"
    yield "counts", _counts(span)
    if span.model or span.counted:
        asked = f", requested as {span.requested_model}" if span.requested_model else ""
        yield "model", f"{span.model or '(unknown)'} at {span.provider or '(unknown)'}{asked}"
    finish = f", finished by {span.finish_reason}" if span.finish_reason else ""
    yield "status", f"{span.status}{finish}{': ' + span.error if span.error else ''}"
    if span.tokens is not None:
        yield "tokens", _tokens(span.tokens)
    if span.ttft_ms is not None:
        yield "ttft", f"{span.ttft_ms:g} ms, told by {span.ttft_source}"
    if span.counted:
        yield "identity", _identity(span)
    if span.session_id or span.user_id:
        yield "session", f"{span.session_id or '(none)'}, user {span.user_id or '(none)'}"
    if span.cost is not None:
        for number, text in enumerate(_cost(span.cost)):
            yield "cost" if not number else "", text
    yield "content", ", ".join(span.content)
    yield "ignored", ", ".join(span.ignored)
    yield "adjusted", ", ".join(span.adjusted)


def _counts(span: SpanFinding) -> str:
    if span.duplicate_of:
        why = _WHY_DUPLICATE.get(span.why_duplicate, span.why_duplicate)
        return f"no: it tells the call of span {span.duplicate_of} again: {why}"
    return "yes" if span.counted else "no: only llm and embedding are calls"


def _identity(span: SpanFinding) -> str:
    if span.response_id:
        return f"response {span.response_id}"
    return "no response id, so a second telling in another request is not recognised"


def _tokens(tokens: TokenFinding) -> str:
    parts = [
        f"{count} {name}"
        for name, count in (
            ("read from a cache", tokens.cache_read),
            ("written to one", tokens.cache_write),
            ("of these for an hour", tokens.cache_write_1h),
        )
        if count
    ]
    cached = f" ({', '.join(parts)})" if parts else ""
    whole = f"{tokens.prompt} in{cached}, {tokens.completion} out"
    if tokens.reasoning:
        whole += f" ({tokens.reasoning} for reasoning)"
    if tokens.total != tokens.prompt + tokens.completion and tokens.total:
        whole += f", {tokens.total} in all"
    whole += "".join(f", {amount} {unit}" for unit, amount in tokens.other.items())
    rule = f"{tokens.rule}: " if tokens.rule in ("inclusive", "exclusive") else ""
    state = f"; usage_state {tokens.state}" if tokens.state else ""
    return "; ".join([f"{whole}; {rule}{tokens.why}{state}", *tokens.notes])


def _cost(cost: CostFinding) -> Iterator[str]:
    reason = f" ({cost.reason})" if cost.reason else ""
    amount = "unknown" if cost.cost_usd is None else f"{cost.cost_usd} USD"
    yield f"{amount}, {cost.source or 'no price needed'}{reason}"
    if cost.our_price_usd is not None:
        yield f"our price would be {cost.our_price_usd} USD"
    if cost.reported_usd is not None:
        yield f"the span reports {cost.reported_usd:g} USD, which does not count"
    price = cost.price
    if price["matched"]:
        yield f"matched: {price['matched']}"
    if price["source"]:
        details = [price[name] for name in ("variant", "period") if price[name]]
        yield f"price: {', '.join([price['source'], *details])}"
    for line in cost.lines:
        if line["unit"] not in ("reported", "as_priced_then"):
            rate = f"{line['rate_usd']} / {line['per']}"
            yield f"{line['amount']} {line['unit']} x {rate} = {line['cost_usd']} USD"
    if cost.assumed:
        yield f"assumed: {cost.assumed}"
