"""The ``tokentrace`` command: the one place that knows all services."""

from __future__ import annotations

import argparse
import sys

from tokentrace import process
from tokentrace.errors import TokentraceError
from tokentrace.version import __version__

USAGE = """\
tokentrace: what did my LLM calls cost, how slow were they, how good were the answers?

usage: tokentrace COMMAND [flags]

commands:
  serve     run the whole pipeline on this machine, a NATS server included
  replay    send a trace file through reporters
  version   print the version
  help      print this

tokentrace COMMAND --help lists the flags of a command.
"""


def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    words = sys.argv[1:] if argv is None else argv
    command = words[0] if words else "help"
    if command in ("help", "-h", "--help"):
        print(USAGE, end="")
        return 0
    if command in ("version", "--version"):
        print(f"tokentrace {__version__}")
        return 0
    if command == "serve":
        return _serve(words[1:])
    if command == "replay":
        return _replay(words[1:])
    print(f"unknown command: {command}\n\n{USAGE}", end="", file=sys.stderr)
    return 1


def _serve(words: list[str]) -> int:
    from tokentrace_standalone import serve

    parser = argparse.ArgumentParser(prog="tokentrace serve", description="Run the whole pipeline on this machine.")
    serve.add_arguments(parser)
    given = parser.parse_args(words)
    return process.run("tokentrace", lambda stopping: serve.serve(given, stopping))


def _replay(words: list[str]) -> int:
    from tokentrace_standalone import replay

    parser = argparse.ArgumentParser(prog="tokentrace replay", description="Send a trace file through reporters.")
    replay.add_arguments(parser)
    given = parser.parse_args(words)
    try:
        return replay.replay(given)
    except TokentraceError as exc:
        print(f"tokentrace: {exc}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
