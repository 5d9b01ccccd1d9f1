"""The entry point of ``tokentrace``; without the extra ``server``, it can print the version and the help."""

from __future__ import annotations

import sys

from tokentrace.extras import EXIT_MISSING, INSTALL_SERVER, lacks_server, missing_server
from tokentrace.version import __version__

#: Command -> what it does, for the help without the extra ``server``.
COMMANDS = {
    "serve": "Run the whole pipeline on this machine, a NATS server included.",
    "demo": "Send realistic traffic until interrupted.",
    "tail": "Show spans and alerts as they happen.",
    "replay": "Send a trace file through reporters.",
    "coverage": "Show what each service tells about its calls, and what is missing.",
    "keys": "Make, list, replace and revoke API keys.",
    "doctor": "Show what OTLP requests hold, what is made of each span, and why.",
    "version": "Print the version.",
    "help": "Print this help.",
    "rules": "Check alert rules, and see which events they would have published.",
    "config": "Check tokentrace.yml, or print its schema.",
    "prices": "Explain prices.",
}


def _help() -> str:
    rows = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
    return (
        "Usage: tokentrace COMMAND\n\n"
        "What did my LLM calls cost, how slow were they, how good were the answers?\n\n"
        f"{rows}\n\n"
        f"Other commands than version and help need the extra 'server', which is not installed: {INSTALL_SERVER}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if missing_server():
        return _without_server(words)
    from tokentrace_standalone import cli

    return cli.main(words)


def _without_server(words: list[str]) -> int:
    if not words or words in (["help"], ["-h"], ["--help"]):
        print(_help())
        return 0
    if words in (["version"], ["--version"]):
        print(f"tokentrace {__version__}")
        return 0
    lacks_server(f"tokentrace {words[0]}" if words[0] in COMMANDS else "tokentrace")
    return EXIT_MISSING


if __name__ == "__main__":
    sys.exit(main())
