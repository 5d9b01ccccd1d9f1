"""``python -m tokentrace_alerter`` runs the alerter in a process without other services."""

import sys

from tokentrace.service.main import run_service
from tokentrace_alerter.app import compose
from tokentrace_alerter.service import Config


def main() -> int:
    """Run the alerter until it is stopped; return the exit code."""
    return run_service("alerter", port=8702, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
