"""``python -m tokentrace_api``: this service alone."""

import sys

from tokentrace.service.main import run_service
from tokentrace_api.app import compose
from tokentrace_api.service import Config


def main() -> int:
    """Run the program and return its exit code."""
    return run_service(
        "api",
        port=9090,
        configure=Config.of,
        compose=compose,
        default_addr=lambda settings: settings.http_server.addr,
    )


if __name__ == "__main__":
    sys.exit(main())
