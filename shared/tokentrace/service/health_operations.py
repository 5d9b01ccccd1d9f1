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
    """The answer of a process whose event loop runs."""

    status: Literal["ok"]


class Readiness(msgspec.Struct):
    """
    Whether the service can do its work; each service adds further keys.

    Attributes:
        missing: What the service waits for; empty = ready.
    """

    status: Literal["ok", "not_ready"]
    missing: list[str]


MetricsText = Annotated[str, Meta(description="Prometheus' text format 0.0.4.")]
_READY: dict[str, Any] = {"status": "ok", "missing": []}
_NOT_READY = {"status": "not_ready", "missing": ["shard 0"]}
_TEXT = "# HELP tokentrace_ingest_spans_total Spans accepted.\n# TYPE tokentrace_ingest_spans_total counter\n"


def health_router(health: Callable[[], Health], samples: Callable[[], Iterable[Sample]]) -> Router:
    """Return the documented routes; each request calls *health* or *samples* anew."""
    router = Router("service", lenient=True)

    @router.get(
        HEALTHZ,
        **operation(
            "getHealthz",
            "Is the process alive",
            "The answer is 200 as long as the event loop runs, whatever the state of the broker.",
            Answer(Alive, "The process is alive.", {"status": "ok"}),
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
            Answer(Readiness, "The service is ready.", _READY),
            Answer(
                Readiness,
                "The service is not ready.",
                _NOT_READY,
                status=503,
                headers={"Retry-After": "Seconds after which to ask again."},
            ),
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

            The label `way` of `tokentrace_ingest_*` is deprecated and will be removed in the next release; the label
            `source` has the same values.
            """,
            Answer(MetricsText, "The metrics.", _TEXT, media="text/plain"),
        ),
    )
    async def internal_metrics() -> Response:
        return answer_samples(samples())

    return router
