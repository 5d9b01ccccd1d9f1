"""The ingest composed: its service and its routes."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_ingest.routes import costkatana, mist, spans
from tokentrace_ingest.service import Config, Ingest


def compose(bus: Bus, config: Config) -> App:
    """The ingest service and every route it answers."""
    service = Ingest(bus, config)
    routes = [
        *spans.routes(service),
        *mist.routes(service),
        *costkatana.routes(service),
    ]
    return App(service, routes)
