"""Receipts of a running pipeline, and the arithmetic that every receipt must satisfy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, localcontext
from typing import Any
from urllib.parse import quote

from kit.json_spans import fresh, json_call
from kit.pipeline import Answer, Pipeline

#: A configured model whose prices make roundings, and a provider whose reported zeros are believed.
SETTINGS = """
pricing:
  models:
    in-house-7b: {prompt_per_1m: 0.333333, completion_per_1m: 1.000001, cache_read_per_1m: 0.05}
  trust_zero: [ollama]
"""
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d*[1-9])?")
_HALF_A_NANO = Decimal(5).scaleb(-10)

Receipt = dict[str, Any]


def call_with_ids(**fields: Any) -> dict[str, Any]:
    """Return a call to gpt-4o with 512 + 128 tokens and new ids, without a cost."""
    return {"trace_id": fresh("trace"), "span_id": fresh("span"), "kind": "llm", **json_call(**fields)}


def call_without_tokens(**fields: Any) -> dict[str, Any]:
    """Return a span with new ids, without tokens and without a cost."""
    return call_with_ids(prompt_tokens=0, comp_tokens=0, **fields)


def send(pipeline: Pipeline, spans: Sequence[dict[str, Any]]) -> None:
    """Send *spans* in one request and wait until the last span is stored, which means all are."""
    answer = pipeline.post("/spans", list(spans))
    assert answer.status == 202, answer.body
    last = spans[-1]
    path = f"/traces/{quote(last['trace_id'], safe='')}"

    def is_stored() -> bool:
        return last["span_id"] in {span["span_id"] for span in pipeline.get(path).json()["spans"]}

    pipeline.until(is_stored, "stored")


def ask_receipt(pipeline: Pipeline, trace_id: str, span_id: str) -> Answer:
    """Ask for the receipt of a span and return the answer, whatever its status."""
    return pipeline.get(f"/traces/{quote(trace_id, safe='')}/spans/{quote(span_id, safe='')}/receipt")


def receipt_of(pipeline: Pipeline, span: dict[str, Any]) -> Receipt:
    """Return the receipt of *span*, after checking that it adds up."""
    answer = ask_receipt(pipeline, span["trace_id"], span["span_id"])
    assert answer.status == 200, answer.body
    receipt: Receipt = answer.json()
    assert (receipt["trace_id"], receipt["span_id"]) == (span["trace_id"], span["span_id"])
    assert_adds_up(receipt)
    return receipt


def send_for_receipt(pipeline: Pipeline, **fields: Any) -> Receipt:
    """Send a call with *fields* and return its receipt."""
    span = call_with_ids(**fields)
    send(pipeline, [span])
    return receipt_of(pipeline, span)


def assert_adds_up(receipt: Receipt) -> None:
    """Check the exact sums: lines + rounding = cost, and rate * amount / per = cost of a line, all in plain digits."""
    if receipt["cost_usd"] is None:
        assert (receipt["confidence"], receipt["lines"], receipt["rounding"]) == ("unpriced", [], "0"), receipt
        assert receipt["total_cost_usd"] is None
        return
    lines = receipt["lines"]
    for text in (
        receipt["cost_usd"],
        receipt["rounding"],
        *(line[key] for line in lines for key in ("rate_usd", "cost_usd")),
    ):
        assert _PLAIN_NUMBER.fullmatch(text), receipt
    with localcontext() as context:
        context.prec = 200
        total = sum((Decimal(line["cost_usd"]) for line in lines), Decimal(receipt["rounding"]))
        assert total == Decimal(receipt["cost_usd"]), receipt
        assert abs(Decimal(receipt["rounding"])) <= _HALF_A_NANO, receipt
        assert Decimal(receipt["cost_usd"]) * 10**9 % 1 == 0, receipt
        for line in lines:
            assert type(line["amount"]) is int
            assert type(line["per"]) is int
            assert Decimal(line["cost_usd"]) * line["per"] == Decimal(line["rate_usd"]) * line["amount"], receipt
    assert cost_nusd(receipt) == round(receipt["total_cost_usd"] * 1e9), receipt


def cost_nusd(receipt: Receipt) -> int:
    """Return the cost in nano-dollars; it is 0 if the span is unpriced."""
    return int(Decimal(receipt["cost_usd"] or 0).scaleb(9))


def lines_of(receipt: Receipt) -> dict[str, tuple[int, Decimal, int]]:
    """Return unit -> (amount, rate, per)."""
    return {line["unit"]: (line["amount"], Decimal(line["rate_usd"]), line["per"]) for line in receipt["lines"]}


def amounts_of(receipt: Receipt) -> dict[str, int]:
    """Return unit -> amount."""
    return {line["unit"]: line["amount"] for line in receipt["lines"]}
