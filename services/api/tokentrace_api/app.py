"""The api composed: its service and its routes."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace_api.routes import (
    alerts,
    deletions,
    export,
    forward,
    health,
    metrics,
    prometheus,
    receipt,
    scores,
    sessions,
    tail,
    traces,
)
from tokentrace_api.service import Api, Config


def compose(bus: Bus, config: Config) -> App:
    """The api service and every route it answers."""
    service = Api(bus, config)
    routes = [
        *prometheus.routes(service),
        *metrics.routes(service),
        *receipt.routes(service),
        *tail.routes(service),
        *deletions.routes(service),
        *traces.routes(service),
        *export.routes(service),
        *scores.routes(service),
        *sessions.routes(service),
        *alerts.routes(service),
        *forward.routes(service),
        *health.routes(service),
    ]
    return App(service, routes)
