"""``tokentrace keys``: make, list, replace and revoke the API keys of a pipeline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokentrace.access import ID_BYTES, MAX_RATE, SCOPES, SECRET_BYTES, ApiKey, make_key, parse_scopes
from tokentrace.bus import Bus, jetstream, subjects
from tokentrace.config import load
from tokentrace.errors import ConfigError, Rejected
from tokentrace.service import runtime
from tokentrace.service.credentials import change_key, encode_key, read_keys, read_uses, record_of
from tokentrace.service.retry import until_available
from tokentrace.service.stopping import unless_stopped
from tokentrace.units import parse_duration, render_instant

app = typer.Typer(help="Make, list, replace and revoke API keys.")

#: How long the connection may take, seconds.
_CONNECT_S = 5.0
#: Width of the table where the output is no terminal, characters.
_WIDTH = 140

_Nats = Annotated[str | None, typer.Option("--nats", metavar="URL", help="NATS server. Default: nats.url.")]
_Config = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Default: ./tokentrace.yml, if that file exists.")
]
_Id = Annotated[str, typer.Argument(metavar="ID", help="The ten digits after tt_.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What you call the key, such as the service that has it.")
    ],
    scopes: Annotated[
        str, typer.Option(metavar="SCOPES", help=f"What it may do: {', '.join(SCOPES)}, separated by commas.")
    ] = "ingest",
    expires: Annotated[
        str | None, typer.Option(metavar="DURATION", help="It ends after this time, such as 90d. Default: never.")
    ] = None,
    rate: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MAX_RATE, help="Most requests a second. Default: no limit.")
    ] = None,
    nats: _Nats = None,
    config: _Config = None,
    as_json: _Json = False,
) -> int:
    """Make a key and print it; it is shown this once only."""
    wanted = parse_scopes(scope.strip() for scope in scopes.split(","))
    lasts_ns = 0 if expires is None else _duration("--expires", expires)

    async def work(bus: Bus, project: str) -> None:
        now_ns = bus.clock.now_ns()
        made = await _add(bus, name, project, wanted, now_ns, lasts_ns, rate or 0)
        _print_made(*made, as_json=as_json)

    return _run(work, nats, config)


@app.command("list")
def list_keys(nats: _Nats = None, config: _Config = None, as_json: _Json = False) -> int:
    """List the keys, without the keys themselves."""

    async def work(bus: Bus, project: str) -> None:
        entries = await until_available(bus.kv(subjects.KEYS).items)
        keys, uses = read_keys(bus, entries), read_uses(entries)
        rows = [
            _shown(key, uses.get(key.id, 0), bus.clock.now_ns())
            for key in sorted(keys.values(), key=lambda key: (key.created_ns, key.id))
        ]
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
        elif rows:
            _print_table(rows)
        else:
            print("There are no keys.")

    return _run(work, nats, config)


@app.command()
def rotate(
    id: _Id,
    overlap: Annotated[
        str, typer.Option(metavar="DURATION", help="How long the old key stays good; 0s = it ends at once.")
    ] = "24h",
    nats: _Nats = None,
    config: _Config = None,
    as_json: _Json = False,
) -> int:
    """Make a key that may do the same, print it, and let the old one end after a while."""
    overlap_ns = 0 if overlap in ("0", "0s") else _duration("--overlap", overlap)

    async def work(bus: Bus, project: str) -> None:
        now_ns = bus.clock.now_ns()
        entry = await until_available(partial(bus.kv(subjects.KEYS).get, record_of(id)))
        old = None if entry is None else read_keys(bus, {record_of(id): entry}).get(id)
        if old is None or old.ended(now_ns):
            raise Rejected(f"{id}: is no key that is good; `tokentrace keys list` shows those there are")
        lasts_ns = old.expires_ns - old.created_ns if old.expires_ns else 0
        made = await _add(bus, old.name, old.project, old.scopes, now_ns, lasts_ns, old.rate)
        ends_ns = min(now_ns + overlap_ns, old.expires_ns or now_ns + overlap_ns)
        await change_key(bus, id, **({"expires_ns": ends_ns} if overlap_ns else {"revoked_ns": now_ns}))
        _print_made(*made, as_json=as_json)
        print(f"The key {id} ends at {render_instant(ends_ns)}.", file=sys.stderr)

    return _run(work, nats, config)


@app.command()
def revoke(id: _Id, nats: _Nats = None, config: _Config = None) -> int:
    """End a key; every service refuses it within five seconds, and the logins that were made with it."""

    async def work(bus: Bus, project: str) -> None:
        await change_key(bus, id, revoked_ns=bus.clock.now_ns())
        print(f"The key {id} is revoked.")

    return _run(work, nats, config)


def _run(work: Callable[[Bus, str], Awaitable[None]], nats: str | None, config: str | None) -> int:
    async def run(stopping: asyncio.Event) -> None:
        settings = load(config, overrides={"nats.url": nats})

        async def connected() -> None:
            async with jetstream.connect(settings.nats.url, name="tokentrace keys", wait_s=_CONNECT_S) as bus:
                # Keys may be made before the services have started for the first time.
                await bus.ensure(next(s for s in subjects.streams() if s.name == f"KV_{subjects.KEYS}"))
                await work(bus, settings.nats.project)

        try:
            await unless_stopped(stopping, connected())
        except Rejected as exc:
            raise ConfigError(str(exc)) from exc

    return runtime.run("tokentrace", run)


async def _add(
    bus: Bus, name: str, project: str, scopes: tuple[str, ...], now_ns: int, lasts_ns: int, rate: int
) -> tuple[str, ApiKey]:
    random = secrets.token_bytes(ID_BYTES + SECRET_BYTES)
    ends_ns = now_ns + lasts_ns if lasts_ns else 0
    text, key = make_key(name, project, scopes, random=random, now_ns=now_ns, expires_ns=ends_ns, rate=rate)
    await bus.kv(subjects.KEYS).create(record_of(key.id), encode_key(key))
    return text, key


def _print_made(text: str, key: ApiKey, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"key": text, "id": key.id, "name": key.name, "scopes": key.scopes}, ensure_ascii=False))
        return
    print(text)
    allowed = " and ".join(_MEANING[scope] for scope in key.scopes)
    print(f"Keep it: it is not shown again. It may {allowed}.", file=sys.stderr)


_MEANING: Mapping[str, str] = {"ingest": "send", "read": "ask", "admin": "do everything"}


def _shown(key: ApiKey, used_ns: int, now_ns: int) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project,
        "scopes": list(key.scopes),
        "rate": key.rate or None,
        "created_at": render_instant(key.created_ns),
        "last_used_at": render_instant(used_ns) if used_ns else None,
        "expires_at": render_instant(key.expires_ns) if key.expires_ns else None,
        "revoked_at": render_instant(key.revoked_ns) if key.revoked_ns else None,
        "is_good": not key.ended(now_ns),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("id", "name", "scopes", "created", "last used", "ends")
    for row in rows:
        ends = f"revoked {row['revoked_at']}" if row["revoked_at"] else row["expires_at"] or "–"
        table.add_row(
            row["id"],
            Text(runtime.one_line(row["name"])),
            ", ".join(row["scopes"]),
            row["created_at"],
            row["last_used_at"] or "–",
            ends,
        )
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    console.print(table)


def _duration(option: str, text: str) -> int:
    with contextlib.suppress(Rejected, ValueError):
        found = parse_duration(text)
        if found > 0:
            return found
    raise ConfigError(f"{option}: {text!r:.60} is not a duration above 0, such as 24h or 90d")
