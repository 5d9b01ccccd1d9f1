"""Installs ``loopback_only``; Python imports this module at the start if its directory is on PYTHONPATH."""

import loopback_only

loopback_only.install()
