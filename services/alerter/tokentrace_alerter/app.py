"""Composition of the alerter. Its only HTTP routes are those of health and of its own metrics."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_alerter.service import Alerter, Config


def compose(bus: Bus, config: Config) -> App:
    """Return the application: the alerter on *bus*."""
    return App(Alerter(bus, config))
