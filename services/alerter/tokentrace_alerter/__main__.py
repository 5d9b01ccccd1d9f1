"""``python -m tokentrace_alerter``: this service alone."""

import sys

from tokentrace.service.main import run_service
from tokentrace_alerter.service import Alerter, Config


def main() -> int:
    """The program; returns its exit code."""
    return run_service("alerter", port=8702, configure=Config.of, make=Alerter)


if __name__ == "__main__":
    sys.exit(main())
