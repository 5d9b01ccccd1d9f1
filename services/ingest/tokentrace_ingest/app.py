"""Composition of ingest: the service, its routes, and the objects that the routes use."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace.service.openapi import make_documented_app
from tokentrace_ingest.routes import costkatana, mist, spans
from tokentrace_ingest.routes.checks import RequestKeys
from tokentrace_ingest.routes.intake import Limits
from tokentrace_ingest.service import Config, Ingest


def compose(bus: Bus, config: Config) -> App:
    """Return the ingest service with all of its routes."""
    service = Ingest(bus, config)
    keys, limits = RequestKeys(bus), Limits(config.max_batch_size, config.max_body_bytes)
    post_spans = spans.endpoint(service, keys, limits)
    post_mist = mist.endpoint(service, keys, limits)
    routes = [
        *spans.router(config.spans_path, post_spans).routes,
        *mist.router(post_mist).routes,
        *costkatana.router(service, service.open_spans, keys, limits).routes,
    ]
    hot = {("POST", config.spans_path): post_spans, ("POST", mist.PATH): post_mist}
    return App(service, routes, hot, make_documented_app)
