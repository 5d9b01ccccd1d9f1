"""``/healthz``, ``/readyz`` and ``/internal/metrics`` as documented routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.health import (
    HEALTHZ,
    INTERNAL_METRICS,
    READYZ,
    Health,
    Sample,
    answer_healthz,
    answer_readyz,
    answer_samples,
)


class Alive(msgspec.Struct):
    """The event loop runs."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """
    Whether the service can do its work; each service adds details of its own, for people.

    Attributes:
        missing: What it waits for; empty = ready.
    """

    status: Literal["ok", "not_ready"]
    missing: list[str]


MetricsText = Annotated[str, Meta(description="Prometheus' text format 0.0.4.")]
_READY: dict[str, Any] = {"status": "ok", "missing": []}
_NOT_READY = {"status": "not_ready", "missing": ["shard 0"]}
_TEXT = "# HELP tokentrace_ingest_spans_total Spans accepted.\n# TYPE tokentrace_ingest_spans_total counter\n"


def health_router(health: Callable[[], Health], samples: Callable[[], Iterable[Sample]]) -> Router:
    """Return the routes; *health* and *samples* are called for every request."""
    router = Router("service", lenient=True)

    @router.get(
        HEALTHZ,
        **operation(
            "getHealthz",
            "Is the process alive",
            "200 as long as the event loop runs, whatever the broker does.",
            Answer(Alive, "It is.", {"status": "ok"}),
        ),
    )
    async def healthz() -> Response:
        return answer_healthz()

    @router.get(
        READYZ,
        **operation(
            "getReadyz",
            "Is the service ready",
            "Ready means connected and caught up; `missing` lists what the service waits for.",
            Answer(Readiness, "It is ready.", _READY),
            Answer(Readiness, "It is not ready.", _NOT_READY, status=503),
        ),
    )
    async def readyz() -> Response:
        return answer_readyz(health())

    @router.get(
        INTERNAL_METRICS,
        **operation(
            "getInternalMetrics",
            "The service's own metrics",
            """
            Metrics about the pipeline itself, for Prometheus; those about LLM calls are under `/metrics/prometheus`.

            The label `way` of `tokentrace_ingest_*` is deprecated and will go with the next release: `source` says the
            same.
            """,
            Answer(MetricsText, "The metrics.", _TEXT, media="text/plain"),
        ),
    )
    async def internal_metrics() -> Response:
        return answer_samples(samples())

    return router
