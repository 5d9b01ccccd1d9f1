"""``python -m tokentrace_ingest`` runs the ingest service in a process without other services."""

import sys

from tokentrace.extras import EXIT_MISSING, lacks_server


def main() -> int:
    """Run ingest until it is stopped; return the exit code."""
    if lacks_server("tokentrace_ingest"):
        return EXIT_MISSING
    from tokentrace.service.main import run_service
    from tokentrace_ingest.app import compose
    from tokentrace_ingest.service import Config

    return run_service("ingest", port=8700, configure=Config.of, compose=compose, takes_otlp=True)


if __name__ == "__main__":
    sys.exit(main())
