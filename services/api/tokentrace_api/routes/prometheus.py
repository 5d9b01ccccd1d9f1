"""``GET /metrics/prometheus``: everything since the stream began, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from tokentrace.errors import Unavailable
from tokentrace.metrics import Answer, Counter, CustomMetric, CustomValue, Query, cost, errors, quality
from tokentrace.rollup import HISTOGRAMS, LATENCY_EDGES_MS, TOKEN_EDGES
from tokentrace.service.health import PROMETHEUS_TYPE, render_families
from tokentrace.units import MS, SECOND, nusd_to_usd
from tokentrace_api.parameters import parameters

if TYPE_CHECKING:
    from tokentrace_api.service import Api

#: The window of the gauges, seconds (SPEC C.1).
_WINDOW_S = 3600
Labels = tuple[str, ...]


def routes(api: Api) -> list[BaseRoute]:
    """The route; it comes before those of ``/metrics/{name}``."""

    async def scrape(request: Request) -> Response:
        parameters(request, ())
        now_s = time.time_ns() // SECOND
        query = _window(now_s, [one.name for one in api.config.custom.values()])
        lifetime, window = await asyncio.gather(
            api.aggregators.query(replace(query, what="lifetime")), api.aggregators.query(query)
        )
        for found in (lifetime, window):
            # A gap in a scrape is right, a counter that falls never is.
            if found.missing_shards:
                raise Unavailable(f"aggregator: shards {found.missing_shards} do not answer")
            if not found.caught_up:
                raise Unavailable("aggregator: still reading what there was before")
        if not api.alert_history.caught_up:
            raise Unavailable("alerts: still reading what there was before")
        return Response(render_families(_Page(api, lifetime, window)), headers={"content-type": PROMETHEUS_TYPE})

    return [Route(api.config.prometheus_path, scrape)]


def _window(now_s: int, custom: list[str]) -> Query:
    return Query(
        from_s=now_s - _WINDOW_S, to_s=now_s + 1, now_s=now_s, groupby="model", fields=["score"], custom=custom
    )


class _Page(Collector):
    """One scrape."""

    def __init__(self, api: Api, lifetime: Answer, window: Answer) -> None:
        self._api, self._lifetime, self._window = api, lifetime, window

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of the documents."""
        yield from self._counters(self._lifetime.cumulative.counters)
        yield from self._histograms()
        yield from self._gauges()
        yield from self._transport()
        yield from self._alerts()
        for metric in self._api.config.custom.values():
            yield self._custom(metric)

    def _counters(self, counters: Sequence[Counter]) -> Iterator[Metric]:
        def total(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
            family = CounterMetricFamily(f"tokentrace_{name}", text, labels=labels)
            added: dict[Labels, float] = {}
            for key, value in values:
                added[key] = added.get(key, 0) + value
            for key in sorted(added):
                family.add_metric(key, added[key])
            return family

        # Whole numbers are added up as such; money becomes dollars at the very end.
        spent: dict[Labels, int] = {}
        for one in counters:
            key = (one.model, one.provider, one.caller)
            spent[key] = spent.get(key, 0) + one.sums.cost
        paid = ((key, nusd_to_usd(nusd)) for key, nusd in spent.items())
        calls = [one for one in counters if one.sums.spans]
        by_vendor = ("model", "provider")
        yield total("cost", "Total cost in USD.", ("model", "provider", "caller"), paid)
        yield total(
            "spans",
            "Total spans recorded.",
            ("status", *by_vendor),
            (((one.status, one.model, one.provider), one.sums.spans) for one in calls),
        )
        yield total(
            "tokens",
            "Tokens by type.",
            ("model", "token_type"),
            (
                pair
                for one in calls
                for pair in (
                    ((one.model, "prompt"), one.sums.prompt),
                    ((one.model, "completion"), one.sums.completion),
                )
            ),
        )
        for name, text, fields in (
            ("prompt_tokens", "Prompt tokens, cached ones included.", ("prompt",)),
            ("completion_tokens", "Completion tokens.", ("completion",)),
            ("errors", "Spans that ended with an error or a timeout.", ("errors", "timeouts")),
            ("timeouts", "Spans that timed out.", ("timeouts",)),
        ):
            sums = (((one.model, one.provider), sum(getattr(one.sums, field) for field in fields)) for one in calls)
            yield total(name, text, by_vendor, sums)

    def _histograms(self) -> Iterator[Metric]:
        lived = self._lifetime.cumulative
        sums: dict[str, dict[str, int]] = {name: {} for name in HISTOGRAMS}
        for one in lived.counters:
            for name, added in sums.items():
                added[one.model] = added.get(one.model, 0) + getattr(one.sums, name)
        for index, (name, prometheus, text, edges, unit) in enumerate(
            (
                ("latency", "latency_ms", "Inference latency in milliseconds.", LATENCY_EDGES_MS, MS),
                ("ttft", "ttft_ms", "Time to the first token in milliseconds.", LATENCY_EDGES_MS, MS),
                ("prompt", "prompt_tokens", "Prompt tokens of a span.", TOKEN_EDGES, 1),
                ("completion", "completion_tokens", "Completion tokens of a span.", TOKEN_EDGES, 1),
            )
        ):
            family = HistogramMetricFamily(f"tokentrace_{prometheus}", text, labels=("model",))
            for model in sorted(lived.histograms):
                counts, upto = lived.histograms[model][index], 0
                buckets = []
                for edge, count in zip([*(str(edge) for edge in edges), "+Inf"], counts, strict=True):
                    upto += count
                    buckets.append((edge, upto))
                if upto:
                    family.add_metric((model,), buckets, sums[name].get(model, 0) / unit)
            yield family

    def _gauges(self) -> Iterator[Metric]:
        total, by_model = self._window.total, self._window.groups
        for name, text, value in (
            ("cost_per_call", "Cost of a span in USD, last hour.", cost.cost_per_call(total)),
            ("error_rate", "Fraction of spans with an error or timeout, last hour.", errors.error_rate(total)),
            ("timeout_rate", "Fraction of spans that timed out, last hour.", errors.timeout_rate(total)),
        ):
            yield _gauge(name, text, value)
        scores = GaugeMetricFamily(
            "tokentrace_quality_score", "Mean eval.score of scored spans, last hour.", labels=("model",)
        )
        for model in sorted(by_model):
            score = quality.score_avg(by_model[model])
            if score is not None:
                scores.add_metric((model,), score)
        yield scores
        for percent in (10, 50):
            text = f"{percent}th percentile of eval.score, last hour."
            yield _gauge(f"quality_score_p{percent}", text, quality.score_quantile(total, percent / 100))

    def _transport(self) -> Iterator[Metric]:
        transport = self._lifetime.transport
        for name, text, value in (
            ("sent", "Spans of reporters that arrived.", transport.sent),
            ("failed", "Spans that reporters were refused for good.", transport.failed),
            ("dropped", "Spans that reporters dropped, their queue being full.", transport.dropped),
        ):
            yield CounterMetricFamily(f"tokentrace_transport_{name}", text, value=value)
        yield _gauge("transport_queue_depth", "Spans waiting in reporters.", transport.queue_depth)

    def _alerts(self) -> Iterator[Metric]:
        counts = self._api.alert_history
        for name, text, by_rule in (
            ("firings", "Firings of a rule.", counts.firings),
            ("delivery_failed", "Firings that could not be delivered.", counts.delivery_failed),
        ):
            family = CounterMetricFamily(f"tokentrace_alert_{name}", text, labels=("rule",))
            for rule, count in by_rule.items():
                family.add_metric((rule,), count)
            yield family

    def _custom(self, metric: CustomMetric) -> Metric:
        if metric.type in ("sum", "count"):
            lived = self._lifetime.cumulative.custom.get(metric.name, CustomValue())
            value = lived.total / metric.divisor if metric.type == "sum" else lived.size
            text = f"Custom metric {metric.name}."
            if metric.falls:
                # An attribute may be negative, and a counter that falls looks like a restart.
                return _gauge(f"custom_{metric.name}", text, value)
            return CounterMetricFamily(f"tokentrace_custom_{metric.name}", text, value=value)
        tally = self._window.total.custom.get(metric.name, CustomValue())
        return _gauge(f"custom_{metric.name}", f"Custom metric {metric.name}, last hour.", metric.value(tally))


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Without data there is no sample."""
    family = GaugeMetricFamily(f"tokentrace_{name}", text)
    if value is not None:
        family.add_metric((), value)
    return family
