"""What every server program shares: a machine and its runner, snapshots, HTTP, logs, start and stop."""

# The first loads structlog, the second configures it before any module of a service makes a logger.
from tokentrace.service import load_structlog as load_structlog  # isort: skip
from tokentrace.service import logs as logs
