"""Composes the api: creates the service and its routes, and passes each route what it uses."""

from __future__ import annotations

from tokentrace.bus import Bus
from tokentrace.service.main import App
from tokentrace.service.openapi import make_documented_app
from tokentrace_api.hashed_ids import hashing
from tokentrace_api.routes import (
    alert_events,
    alerts,
    alerts_described,
    alerts_replayed,
    calls,
    coverage,
    deletions,
    export,
    forward,
    health,
    messages,
    metrics,
    neighbours,
    page,
    prices,
    prometheus,
    receipt,
    rejected,
    reporters,
    scores,
    sessions,
    sessions_export,
    tail,
    trace_series,
    traces,
    values,
)
from tokentrace_api.routes.metrics_source import Source
from tokentrace_api.scoring import Scoring
from tokentrace_api.service import Api, Config


def compose(bus: Bus, config: Config) -> App:
    """Return the api service with all its routes; if two routes match a path, the first one answers."""
    service = Api(bus, config)
    aggregators, history, custom = service.aggregators, service.alert_history, config.custom
    refused = service.rejected_history
    tombstones = deletions.LogOfDeletions(
        bus,
        config.project,
        config.log_keeps_ns,
        config.keep_ns,
        service.erasure.erase,
        service.store_writer.apply_deletions,
    )
    routers = [
        page.router(config),
        prometheus.router(config.prometheus_path, aggregators, history, refused, custom, bus),
        metrics.router(config.metrics_path, Source(aggregators, service, history, refused, custom)),
        receipt.router(service, service.pricer),
        messages.router(service),
        neighbours.router(service),
        prices.router(service.pricer),
        tail.router(service.tails, lambda: service.stopping.is_set(), service.now_ns),
        deletions.router(service, tombstones),
        calls.router(service),
        trace_series.router(service),
        traces.router(service, aggregators),
        export.router(service),
        values.router(service),
        coverage.router(service, service.pricer),
        scores.router(service, Scoring(bus, service, service), config.redactor),
        sessions_export.router(service),
        sessions.router(service, service),
        alert_events.router(bus, history),
        alerts_replayed.router(bus),
        alerts_described.router(bus),
        alerts.router(bus, history),
        rejected.router(refused),
        reporters.router(service.reporters, refused, service.now_ns, lambda: service.started_ns),
        forward.router(config.ingest_url, config.ingest_path, config.max_body_bytes, config.max_otlp_bytes),
        health.router(config.health_path, service, service, aggregators, refused, bus, config.max_bytes),
    ]
    routes = [route for router in routers for route in router.routes]
    return App(service, hashing(routes, config.redactor), {}, make_documented_app)
