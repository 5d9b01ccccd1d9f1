"""What every server program shares: a machine and its runner, snapshots, HTTP, logs, start and stop."""

# Configures structlog before any module of a service makes a logger.
from tokentrace.service import logs as logs
