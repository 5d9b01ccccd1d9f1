"""The health of a service and its own metrics, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokentrace.service.prometheus_text import render_families
from tokentrace.service.web import TRY_AGAIN, reply

#: Content type of Prometheus' text format.
PROMETHEUS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
HEALTHZ, READYZ, INTERNAL_METRICS = "/healthz", "/readyz", "/internal/metrics"


class Health(NamedTuple):
    """
    Whether a service can do its work.

    Attributes:
        missing: What the service waits for; empty = ready.
        details: Further entries of the body of ``/readyz``.
    """

    missing: Sequence[str]
    details: Mapping[str, Any]


class Sample(NamedTuple):
    """One number of a service's own metrics; the names of counters end in ``_total``."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}


def answer_healthz() -> Response:
    """Return 200, which shows that the event loop runs."""
    return reply({"status": "ok"})


def answer_readyz(health: Health) -> Response:
    """Return 200 if the service is ready, else 503; ``missing`` in the body lists what the service waits for."""
    status = "not_ready" if health.missing else "ok"
    body = {"status": status, "missing": list(health.missing), **health.details}
    return reply(body, 503, TRY_AGAIN) if health.missing else reply(body)


def answer_samples(samples: Iterable[Sample]) -> Response:
    """Return *samples* in Prometheus' text format."""
    return Response(render_samples(samples), headers={"content-type": PROMETHEUS_TYPE})


def health_routes(health: Callable[[], Health], samples: Callable[[], Iterable[Sample]]) -> list[Route]:
    """Return the routes ``/healthz``, ``/readyz`` and ``/internal/metrics`` for a service without a document."""

    async def healthz(_: Request) -> Response:
        return answer_healthz()

    async def readyz(_: Request) -> Response:
        return answer_readyz(health())

    async def internal_metrics(_: Request) -> Response:
        return answer_samples(samples())

    return [Route(HEALTHZ, healthz), Route(READYZ, readyz), Route(INTERNAL_METRICS, internal_metrics)]


def _families(samples: Iterable[Sample]) -> Iterable[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for sample in samples:
        family = families.get(sample.name)
        if family is None:
            make = CounterMetricFamily if sample.name.endswith("_total") else GaugeMetricFamily
            family = families[sample.name] = make(sample.name, sample.help, labels=list(sample.labels))
        family.add_metric(list(sample.labels.values()), sample.value)
    return families.values()


def render_samples(samples: Iterable[Sample]) -> bytes:
    """Return *samples* in Prometheus' text format."""
    return render_families(_families(samples))
