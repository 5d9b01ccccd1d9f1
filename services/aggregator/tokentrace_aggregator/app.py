"""Composition of the aggregator. Its only HTTP routes are those of health and of its own metrics."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_aggregator.service import Aggregator, Config


def compose(bus: Bus, config: Config) -> App:
    """Return the application: the aggregator on *bus*."""
    return App(Aggregator(bus, config))
