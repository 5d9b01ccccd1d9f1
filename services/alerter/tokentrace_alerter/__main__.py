"""``python -m tokentrace_alerter``: this service alone."""

import sys

from tokentrace.service.main import run_service
from tokentrace_alerter.app import compose
from tokentrace_alerter.service import Config


def main() -> int:
    """The program; returns its exit code."""
    return run_service("alerter", port=8702, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
