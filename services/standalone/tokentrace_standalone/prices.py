"""``tokentrace prices explain``: how a model is priced, and what a call would cost."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from tokentrace.config import load
from tokentrace.errors import Rejected, quoted, shorten
from tokentrace.pricing import explain
from tokentrace.units import parse_instant

app = typer.Typer(help="Explain prices.")


@app.callback()
def prices() -> None:
    """Explain prices."""


@app.command("explain")
def explain_price(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model, as spans name it.")],
    provider: Annotated[str, typer.Option(metavar="NAME", help="Provider, as spans name it.")] = "",
    usage: Annotated[
        list[str] | None, typer.Option(metavar="UNIT=N", help="What a call used, such as input_tokens=1000.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What else decides the price, such as service_tier=flex."),
    ] = None,
    at: Annotated[str, typer.Option(metavar="INSTANT", help="Time whose prices apply; default: now.")] = "",
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Default: ./tokentrace.yml, if that file exists.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what GET /prices/explain answers.")] = False,
) -> None:
    """Print how a model is priced: the rules that led to the price, the rates, and the cost of a call."""
    pricer = load(config).pricing.pricer()
    at_ns = parse_instant(at) if at else time.time_ns()
    answer = explain(pricer, model, provider, _pairs("--usage", usage), _pairs("--context", context), at_ns)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print("\n".join(_text(answer)))


def _pairs(flag: str, given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise Rejected(f"{flag}: {quoted(pair)} is not NAME=VALUE")
        if name in pairs:
            raise Rejected(f"{flag}: {shorten(name)} is given twice")
        pairs[name] = value
    return pairs


def _text(answer: dict[str, Any]) -> list[str]:
    price = answer["price"]
    named = f"{answer['model']} at {answer['provider']}" if answer["provider"] else answer["model"]
    lines = [f"model    {named}"]
    for title, value in (
        ("matched", price["matched"]),
        ("price", price["source"]),
        ("period", price["period"]),
        ("variant", price["variant"]),
        ("tier", f"above {price['tier']} input tokens" if price["tier"] else None),
        ("assumed", answer["assumed"]),
    ):
        if value:
            lines.append(f"{title:<8} {value}")
    for rate in answer["rates"]:
        above = f" above {rate['above']} input tokens" if rate["above"] else ""
        lines.append(f"rate     {rate['unit']}: {rate['rate_usd']} USD for {rate['per']}{above}")
    lines += [
        f"charge   {line['amount']} {line['unit']} x {line['rate_usd']} / {line['per']} = {line['cost_usd']} USD"
        for line in answer["lines"]
    ]
    source = answer["cost_source"]
    if source is not None or answer["cost_reason"]:
        reason = f" ({answer['cost_reason']})" if answer["cost_reason"] else ""
        cost = "unknown" if answer["cost_usd"] is None else f"{answer['cost_usd']} USD"
        lines.append(f"cost     {cost}{f', {source}' if source else ''}{reason}")
    return lines
