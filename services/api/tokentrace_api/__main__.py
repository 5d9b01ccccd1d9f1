"""``python -m tokentrace_api`` runs the api in a process without other services."""

import sys

from tokentrace.extras import EXIT_MISSING, lacks_server


def main() -> int:
    """Run the api until it is stopped; return the exit code."""
    if lacks_server("tokentrace_api"):
        return EXIT_MISSING
    from tokentrace.service.main import run_service
    from tokentrace_api.app import compose
    from tokentrace_api.service import Config

    return run_service(
        "api",
        port=9090,
        configure=Config.of,
        compose=compose,
        default_addr=lambda settings: settings.http_server.addr,
    )


if __name__ == "__main__":
    sys.exit(main())
