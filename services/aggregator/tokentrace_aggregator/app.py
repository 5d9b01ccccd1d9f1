"""Composition of the aggregator. Its only HTTP routes are health and its own metrics."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_aggregator.service import Aggregator, Config


def compose(bus: Bus, config: Config) -> App:
    """The aggregator, following the log on *bus*."""
    return App(Aggregator(bus, config))
