"""The check that servers and commands make before they import what only the extra ``server`` installs."""

import sys
from importlib.util import find_spec

#: The modules of the extra ``server`` that the programs import.
SERVER = (
    "duckdb",
    "fastapi",
    "httpcore",
    "httpx",
    "numpy",
    "opentelemetry.proto",
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
INSTALL_SERVER = "pip install 'tokentrace[server]'"
#: The exit code of a program that lacks the extra.
EXIT_MISSING = 1


def missing_server() -> list[str]:
    """Return the modules of the extra ``server`` that are not installed."""
    return [name for name in SERVER if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # the package around it
        return False


def lacks_server(program: str) -> bool:
    """
    Return True, and say so on the standard error output in one line, if the extra ``server`` is not installed.

    Args:
        program: What needs it.
    """
    missing = missing_server()
    if missing:
        names = ", ".join(missing)
        print(f"{program} needs the extra 'server' (not installed: {names}): {INSTALL_SERVER}", file=sys.stderr)
    return bool(missing)
