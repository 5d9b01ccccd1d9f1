"""The ``tokentrace`` command: the one place that knows all services."""

from __future__ import annotations

import argparse
import sys

from tokentrace.errors import TokentraceError
from tokentrace.service import runtime
from tokentrace.version import __version__

USAGE = """\
tokentrace: what did my LLM calls cost, how slow were they, how good were the answers?

usage: tokentrace COMMAND [flags]

commands:
  serve     run the whole pipeline on this machine, a NATS server included
  demo      send lifelike traffic until interrupted
  tail      show spans and alerts as they happen
  replay    send a trace file through reporters
  rules     check alert rules, and see what they would have said
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
    run = COMMANDS.get(command)
    if run is None:
        print(f"unknown command: {command}\n\n{USAGE}", end="", file=sys.stderr)
        return 1
    try:
        return run(words[1:])
    except TokentraceError as exc:
        print(f"tokentrace: {exc}", file=sys.stderr)
        return runtime.EXIT_CONFIG


def _parser(command: str, what: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"tokentrace {command}", description=what)


def _serve(words: list[str]) -> int:
    from tokentrace_standalone import serve

    parser = _parser("serve", "Run the whole pipeline on this machine.")
    serve.add_arguments(parser)
    given = parser.parse_args(words)
    return runtime.run("tokentrace", lambda stopping: serve.serve(given, stopping))


def _replay(words: list[str]) -> int:
    from tokentrace_standalone import replay

    parser = _parser("replay", "Send a trace file through reporters.")
    replay.add_arguments(parser)
    return replay.replay(parser.parse_args(words))


def _demo(words: list[str]) -> int:
    from tokentrace_standalone import demo

    parser = _parser("demo", "Send lifelike traffic until interrupted.")
    demo.add_arguments(parser)
    return demo.demo(parser.parse_args(words))


def _tail(words: list[str]) -> int:
    from tokentrace_standalone import tail

    parser = _parser("tail", "Show spans and alerts as they happen.")
    tail.add_arguments(parser)
    given = parser.parse_args(words)
    return runtime.run("tokentrace", lambda stopping: tail.tail(given, stopping))


def _rules(words: list[str]) -> int:
    from tokentrace_standalone import rules

    parser = _parser("rules", "Check alert rules, and see what they would have said.")
    rules.add_arguments(parser)
    given = parser.parse_args(words)
    if given.what == "check":
        return rules.check(given)
    return runtime.run("tokentrace", lambda stopping: rules.run_backtest(given, stopping))


COMMANDS = {"serve": _serve, "replay": _replay, "demo": _demo, "tail": _tail, "rules": _rules}

if __name__ == "__main__":
    sys.exit(main())
