"""``python -m tokentrace_aggregator`` runs the aggregator in a process without other services."""

import sys

from tokentrace.service.main import run_service
from tokentrace_aggregator.app import compose
from tokentrace_aggregator.service import Config


def main() -> int:
    """Run the aggregator until it is stopped; return the exit code."""
    return run_service("aggregator", port=8701, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
