"""The aggregator composed: its service; it has no routes but health."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_aggregator.service import Aggregator, Config


def compose(bus: Bus, config: Config) -> App:
    """The aggregator service."""
    return App(Aggregator(bus, config))
