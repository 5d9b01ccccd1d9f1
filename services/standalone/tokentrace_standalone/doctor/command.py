"""The arguments of ``tokentrace doctor``, which decide what is examined."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tokentrace.config import load
from tokentrace.errors import ConfigError, Rejected, Unavailable
from tokentrace.pricing import Pricer
from tokentrace.service import runtime


def doctor(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE|-]", help="An OTLP request, JSON or protobuf; - = standard input.")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Take OTLP over HTTP here, such as :4318, and show each request."),
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option(metavar="URL", help="With --listen: pass each request on to this address, unchanged."),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Has the prices. Default: ./tokentrace.yml, if that file exists.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each request.")] = False,
) -> int:
    """Show what OTLP requests hold, what is made of each span, and why."""
    if file is not None and listen is not None:
        raise ConfigError("--listen: excludes FILE")
    if forward is not None and listen is None:
        raise ConfigError("--forward: needs --listen")
    if file is None and listen is None:
        raise ConfigError("doctor: name a FILE, - for standard input, or --listen HOST:PORT")
    pricer = load(config).pricing.pricer()
    if listen is not None:
        return _listen(listen, forward, pricer, as_json=as_json)
    return _examine(file or "-", pricer, as_json=as_json)


def _examine(file: str, pricer: Pricer, *, as_json: bool) -> int:
    from tokentrace_standalone.doctor.findings import examine
    from tokentrace_standalone.doctor.payload import decode_payload
    from tokentrace_standalone.doctor.text import lines_of

    found = examine(decode_payload(_read(file)), pricer)
    print(msgspec.json.encode(found).decode() if as_json else "\n".join(lines_of(found)))
    return runtime.EXIT_OK


def _read(file: str) -> bytes:
    from tokentrace_standalone.doctor.payload import MAX_BYTES

    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
    except OSError as exc:
        raise Unavailable(f"{file}: {exc.strerror or exc}") from exc
    if len(data) > MAX_BYTES:
        raise Rejected(f"body: is over {MAX_BYTES} bytes")
    return data


def _listen(addr: str, forward: str | None, pricer: Pricer, *, as_json: bool) -> int:
    from tokentrace.shown import shown_url
    from tokentrace_standalone.doctor.findings import examine
    from tokentrace_standalone.doctor.listener import listen
    from tokentrace_standalone.doctor.payload import Payload
    from tokentrace_standalone.doctor.text import lines_of

    def show(asked: str, found: Payload | Rejected, status: int | None) -> None:
        if as_json:
            told = {"error": str(found)} if isinstance(found, Rejected) else msgspec.to_builtins(examine(found, pricer))
            print(msgspec.json.encode({"request": asked, "forwarded": status, **told}).decode(), flush=True)
            return
        passed = "" if status is None else f", the receiver answered {status}"
        lines = [f"not OTLP: {found}"] if isinstance(found, Rejected) else lines_of(examine(found, pricer))
        text = [f"== {asked}{passed}", *lines, ""]
        print("\n".join([runtime.one_line(line) for line in text]), flush=True)

    def started(url: str) -> None:
        passing = f", passing on to {shown_url(forward)}" if forward else ""
        print(f"listening at {url}{passing}", file=sys.stderr, flush=True)

    async def run(stopping: asyncio.Event) -> None:
        await listen(addr, forward, show, started, stopping)

    return runtime.run("tokentrace", run)
