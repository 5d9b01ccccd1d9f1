"""``python -m tokentrace_ingest`` runs the ingest service in a process without other services."""

import sys

from tokentrace.service.main import run_service
from tokentrace_ingest.app import compose
from tokentrace_ingest.service import Config


def main() -> int:
    """Run ingest until it is stopped; return the exit code."""
    return run_service("ingest", port=8700, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
