"""The entry point of ``tokentrace``; before its check for the extra ``server`` it imports only the standard library."""

from __future__ import annotations

import sys
from importlib.util import find_spec

#: The modules of the extra ``server`` that the command imports.
NEEDED = (
    "duckdb",
    "fastapi",
    "httpcore",
    "httpx",
    "numpy",
    "prometheus_client",
    "pydantic",
    "rich",
    "sortedcontainers",
    "stamina",
    "starlette",
    "structlog",
    "typer",
    "uvicorn",
    "yaml",
)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"tokentrace: the command needs the extra 'server' (not installed: {', '.join(missing)}): "
            "pip install 'tokentrace[server]'",
            file=sys.stderr,
        )
        return 1
    from tokentrace_standalone import cli

    return cli.main(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
