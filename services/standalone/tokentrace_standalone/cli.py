"""The command ``tokentrace``: its subcommands, and how an error becomes a sentence and an exit code."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import typer
from typer.exceptions import TyperException

from tokentrace.errors import TokentraceError, Unavailable
from tokentrace.service import runtime
from tokentrace.version import __version__
from tokentrace_standalone import config, coverage, demo, keys, prices, replay, rules, serve, tail
from tokentrace_standalone.doctor import doctor

EXIT_UNKNOWN_COMMAND = 1

app = typer.Typer(
    help="What did my LLM calls cost, how slow were they, how good were the answers?",
    epilog="`tokentrace COMMAND --help` prints the usage of a command.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve.serve)
app.command()(demo.demo)
app.command()(tail.tail)
app.command()(replay.replay)
app.command()(coverage.coverage)
app.command()(doctor)
app.add_typer(rules.app, name="rules")
app.add_typer(config.app, name="config")
app.add_typer(prices.app, name="prices")
app.add_typer(keys.app, name="keys")


@app.command()
def version() -> None:
    """Print the version."""
    print(f"tokentrace {__version__}")


@app.command("help")
def print_help(context: typer.Context) -> None:
    """Print this help."""
    assert context.parent is not None
    _print_help(context.parent.get_help)


def _print_help(get_help: Callable[[], str]) -> None:
    # With rich installed, get_help prints the help itself and returns "".
    print(get_help(), end="")


def main(words: list[str]) -> int:
    """
    Run the command line *words*, without the name of the program; print an error as one sentence on stderr.

    Returns:
        Exit code: 0 done; 1 the command is unknown, something is unavailable, or not every span was accepted; 2 a flag
        or the configuration is invalid.
    """
    command = typer.main.get_command(app)
    first = words[0] if words else "--help"
    if first == "--version":
        first, words = "version", ["version"]
    if first not in ("-h", "--help") and first not in command.commands:  # type: ignore[attr-defined]
        print(f"unknown command: {first}", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            _print_help(typer.Context(command, info_name="tokentrace").get_help)
        return EXIT_UNKNOWN_COMMAND
    try:
        code = command.main(words or ["--help"], prog_name="tokentrace", standalone_mode=False)
    except TyperException as exc:
        context = getattr(exc, "ctx", None)
        name = context.command_path if context is not None else "tokentrace"
        print(f"{name}: {runtime.one_line(exc.format_message())}", file=sys.stderr)
        return exc.exit_code
    except TokentraceError as exc:
        print(f"tokentrace: {runtime.one_line(str(exc))}", file=sys.stderr)
        return runtime.EXIT_UNAVAILABLE if isinstance(exc, Unavailable) else runtime.EXIT_CONFIG
    return code or runtime.EXIT_OK
