"""Composition of ingest: the service, its routes, and the objects that the routes use."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace.service.openapi import make_documented_app
from tokentrace_ingest.routes import costkatana, mist, otlp, spans
from tokentrace_ingest.routes.checks import RequestKeys
from tokentrace_ingest.routes.intake import Limits
from tokentrace_ingest.service import Config, Ingest


def compose(bus: Bus, config: Config) -> App:
    """Return the ingest service with all of its routes."""
    service = Ingest(bus, config)
    keys, limits = RequestKeys(bus), Limits(config.max_batch_size, config.max_body_bytes)
    post_spans = spans.endpoint(service, keys, limits)
    post_mist = mist.endpoint(service, keys, limits)
    post_otlp = otlp.endpoints(service.otlp)
    routes = [
        *spans.router(config.spans_path, post_spans).routes,
        *mist.router(post_mist).routes,
        *otlp.router(post_otlp).routes,
        *costkatana.router(service, service.open_spans, keys, limits).routes,
    ]
    hot = {("POST", config.spans_path): post_spans, ("POST", mist.PATH): post_mist}
    hot |= {("POST", path): endpoint for path, endpoint in post_otlp.items()}
    return App(service, routes, hot, make_documented_app, service.otlp)
