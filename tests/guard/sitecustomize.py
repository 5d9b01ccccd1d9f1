"""Python imports this at its start in every process whose PYTHONPATH holds the directory: see ``loopback_only``."""

import loopback_only

loopback_only.install()
