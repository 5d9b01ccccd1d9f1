"""``python -m tokentrace_ingest``: this service alone."""

import sys

from tokentrace.service.main import run_service
from tokentrace_ingest.app import compose
from tokentrace_ingest.service import Config


def main() -> int:
    """The program; returns its exit code."""
    return run_service("ingest", port=8700, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
