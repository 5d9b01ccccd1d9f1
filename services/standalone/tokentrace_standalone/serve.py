"""``tokentrace serve``: runs the whole pipeline; this file has its flags."""

from __future__ import annotations

from typing import Annotated

import typer

from tokentrace.service import runtime


def serve(
    addr: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen.")] = ":8700",
    also: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|none",
            help="A second address. Default: http_server.addr. Its default :9090 is left out if it is in use.",
        ),
    ] = None,
    max_spans: Annotated[
        int | None, typer.Option(metavar="N", help="Number of newest spans that /traces shows. Default: 0 = no limit.")
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where all files are kept. Default: ./tokentrace-data.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The configuration file. Default: ./tokentrace.yml, if that file exists."),
    ] = None,
    nats: Annotated[
        str | None, typer.Option(metavar="URL", help="Use this NATS server instead of starting one.")
    ] = None,
    nats_port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=1, max=65535, help="Port of the NATS server that is started. Default: 4222."),
    ] = None,
) -> int:
    """Run the whole pipeline on this machine, a NATS server included."""
    from tokentrace_standalone import pipeline

    flags = pipeline.Flags(addr, also, max_spans, data_dir, config, nats, nats_port)
    return runtime.run("tokentrace", lambda stopping: pipeline.serve(flags, stopping))
