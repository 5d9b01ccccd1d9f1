"""``python -m tokentrace_aggregator`` runs the aggregator in a process without other services."""

import sys

from tokentrace.extras import EXIT_MISSING, lacks_server


def main() -> int:
    """Run the aggregator until it is stopped; return the exit code."""
    if lacks_server("tokentrace_aggregator"):
        return EXIT_MISSING
    from tokentrace.service.main import run_service
    from tokentrace_aggregator.app import compose
    from tokentrace_aggregator.service import Config

    return run_service("aggregator", port=8701, configure=Config.of, compose=compose)


if __name__ == "__main__":
    sys.exit(main())
