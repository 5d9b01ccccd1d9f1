"""The alerter composed: its service; it has no routes but health."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_alerter.service import Alerter, Config


def compose(bus: Bus, config: Config) -> App:
    """The alerter service."""
    return App(Alerter(bus, config))
