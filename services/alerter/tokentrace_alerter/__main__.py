"""``python -m tokentrace_alerter`` runs the alerter in a process without other services."""

import sys

from tokentrace.extras import EXIT_MISSING, lacks_server


def main() -> int:
    """Run the alerter until it is stopped; return the exit code."""
    if lacks_server("tokentrace_alerter"):
        return EXIT_MISSING
    from tokentrace.service.main import run_service
    from tokentrace_alerter.app import compose
    from tokentrace_alerter.service import Config

    return run_service("alerter", port=8702, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
