"""``tokentrace coverage``: what each service tells about its calls, and what to change where something is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokentrace.service.runtime import one_line
from tokentrace_standalone.api_client import DEFAULT_API, get_json

#: Width of the table where the output is no terminal, characters.
_WIDTH = 180
#: Field of a row of ``GET /coverage`` that is a share -> its column.
_SHARES = {
    "usage": "usage",
    "cached": "cached",
    "cache_1h": "1 h",
    "ttft": "ttft",
    "session": "session",
    "user": "user",
    "response_id": "id",
}


def coverage(
    api: Annotated[str, typer.Option(metavar="URL", help="The API of a running pipeline.")] = DEFAULT_API,
    window: Annotated[str | None, typer.Option(metavar="DURATION", help="How far back. Default: 24h.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="INSTANT", help="RFC 3339, instead of --window.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="INSTANT", help="RFC 3339. Default: now.")] = None,
    caller: Annotated[str | None, typer.Option(metavar="NAME", help="Show only this service.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=0, help="Number of rows. Default: 100.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what GET /coverage answers.")] = False,
) -> None:
    """Show what each service tells about its calls, and what is missing."""
    given = {"window": window, "from": start, "to": end, "caller": caller, "limit": limit}
    answer = get_json(api, "/coverage", {name: str(value) for name, value in given.items() if value is not None})
    if as_json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    if answer["rows"]:
        console.print(_table(answer))
    else:
        print(f"No calls from {answer['from']} to {answer['to']}.")
    for line in _sentences(answer):
        print(one_line(line))


def _table(answer: Mapping[str, Any]) -> Table:
    since = answer.get("searched_from", answer["from"])
    more = "; there are more rows" if answer["more"] else ""
    table = Table(
        "service",
        "instrumentation",
        "way in",
        caption=f"calls from {since} to {answer['to']}{more}",
        caption_justify="left",
    )
    for column in ("calls", *_SHARES.values(), "cost differs", "told twice?", "last seen"):
        table.add_column(column, justify="right")
    for row in answer["rows"]:
        cost = row["cost"]
        table.add_row(
            *(Text(one_line(row[name])) for name in ("caller", "scope", "source")),
            f"{row['calls']:,}",
            *(_percent(row[name]) for name in _SHARES),
            f"{cost['differing']} of {cost['compared']}" if cost["compared"] else "–",
            f"{row['possible_duplicates']:,}" if row["possible_duplicates"] else "–",
            row["last_seen"],
        )
    return table


def _percent(share: Mapping[str, Any]) -> str:
    """Return a share in percent, of which only all is 100 and only none is 0."""
    calls, of = share["calls"], share["of"]
    if not of:
        return "–"
    return f"{calls * 100 // of or int(calls > 0)} %"


def _sentences(answer: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{row['caller']}{' · ' + row['scope'] if row['scope'] else ''}: {gap['advice']}"
        for row in answer["rows"]
        for gap in row["gaps"]
    ]
    for silent in answer["silent"]:
        scope = silent.get("scope")
        lines.append(f"{silent['caller']}{' · ' + scope if scope else ''}: {silent['advice']}")
    return lines
