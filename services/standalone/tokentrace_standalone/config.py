"""``tokentrace config check`` and ``tokentrace config schema``."""

from __future__ import annotations

from typing import Annotated

import typer

from tokentrace.config import encode_schema, load

app = typer.Typer(help="Check tokentrace.yml, or print its schema.")


@app.command()
def check(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Default: ./tokentrace.yml, if that file exists.")
    ] = None,
) -> None:
    """Check a configuration file with its alert rules and custom metrics, and the environment variables."""
    from tokentrace_standalone.pipeline import Configs

    Configs.of(load(file))
    print(f"{file or 'the configuration'} is valid")


@app.command()
def schema() -> None:
    """Print the JSON schema of tokentrace.yml."""
    print(encode_schema(), end="")
