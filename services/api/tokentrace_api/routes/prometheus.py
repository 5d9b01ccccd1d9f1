"""``GET /metrics/prometheus``: counters since the stream began and gauges, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import asyncio
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample
from starlette.responses import Response

from tokentrace.bus import Bus
from tokentrace.errors import Unavailable
from tokentrace.metrics import Answer as MetricsAnswer
from tokentrace.metrics import Counter, CustomMetric, CustomValue, Query, cost, errors, quality
from tokentrace.metrics.tokens import unclassified
from tokentrace.records import REFUSAL_REASONS
from tokentrace.rollup import HISTOGRAMS, LATENCY_EDGES_MS, REASONS, TOKEN_EDGES, Sums, distinct
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.health import PROMETHEUS_TYPE
from tokentrace.service.prometheus_text import render_families
from tokentrace.units import MS, SECOND, nusd_to_usd
from tokentrace_api.aggregator_client import AggregatorClient
from tokentrace_api.alert_history import AlertHistory
from tokentrace_api.alerter_client import rule_names
from tokentrace_api.rejected_history import RejectedHistory

#: Window of the gauges that cover the last hour, seconds.
_WINDOW_S = 3600
#: How long a scrape waits for the names of the rules, seconds.
_RULES_WAIT_S = 1.0
Labels = tuple[str, ...]
#: Categories of characters that readers of lines may take for the end of a line, such as CR, NEL and U+2028; other
#: control characters are among them.
_BREAKING = ("Cc", "Zl", "Zp")


MetricsText = Annotated[str, Meta(description="Prometheus' text format 0.0.4.")]
_EXAMPLE = """\
# HELP tokentrace_cost_total Total cost in USD.
# TYPE tokentrace_cost_total counter
tokentrace_cost_total{caller="checkout",model="gpt-4o",provider="openai"} 1.42
"""
_SCRAPE = operation(
    "getPrometheusMetrics",
    "Scrape metrics about LLM calls",
    """
    Prometheus' text format 0.0.4: counters and histograms since the stream began, gauges over the last hour. The answer
    is 503 while a shard or the counts of alerts or refused spans are missing or not caught up, because a counter must
    never fall.
    """,
    Answer(MetricsText, "The metrics.", _EXAMPLE, media="text/plain"),
    errors={400: "window: unknown parameter; allowed are none", 503: "aggregator: shards [1] do not answer"},
)


def router(
    path: str,
    aggregators: AggregatorClient,
    history: AlertHistory,
    refused: RejectedHistory,
    custom: Mapping[str, CustomMetric],
    bus: Bus,
) -> Router:
    """
    Return the route at *path*; it must be registered before ``/metrics/{name}``.

    Args:
        custom: Name -> custom metric.
        bus: Reaches the alerters, which know the rules that have not fired yet.
    """
    routes = Router("metrics")
    known: list[str] = []

    @routes.get(path, **_SCRAPE)
    async def scrape() -> Response:
        now_s = aggregators.now_ns() // SECOND
        query = _window(now_s, [metric.name for metric in custom.values()])
        lifetime, window, rules = await asyncio.gather(
            aggregators.query(replace(query, what="lifetime")),
            aggregators.query(query),
            rule_names(bus, _RULES_WAIT_S),
        )
        # Without an alerter, the series that were shown before stay.
        known[:] = known if rules is None else rules
        for answer in (lifetime, window):
            # A gap in a scrape is harmless; a counter that falls looks like a restart.
            if answer.missing_shards:
                raise Unavailable(f"aggregator: shards {answer.missing_shards} do not answer")
            if not answer.caught_up:
                raise Unavailable("aggregator: not caught up with the log")
        if not history.caught_up:
            raise Unavailable("alerts: not caught up with the events")
        if not refused.caught_up:
            raise Unavailable("rejected: not caught up with the dead letters")
        page = _Page(history, refused, custom, lifetime, window, known)
        # Built here, because the counts of alerts may change, and written in a thread: there may be 30,000 samples.
        families = list(page.collect())
        body = await asyncio.to_thread(render_families, families)
        return Response(body, headers={"content-type": PROMETHEUS_TYPE})

    return routes


def _window(now_s: int, custom: list[str]) -> Query:
    return Query(
        from_s=now_s - _WINDOW_S, to_s=now_s + 1, now_s=now_s, groupby="model", fields=["score"], custom=custom
    )


class _Page:
    """The metrics of one scrape."""

    def __init__(
        self,
        history: AlertHistory,
        refused: RejectedHistory,
        custom: Mapping[str, CustomMetric],
        lifetime: MetricsAnswer,
        window: MetricsAnswer,
        rules: Sequence[str],
    ) -> None:
        self._history, self._refused, self._metrics, self._rules = history, refused, custom, rules
        self._lifetime, self._window = lifetime, window
        self._shown: dict[str, str] = {}
        #: (Model, provider) -> sums since the stream began.
        self._vendors: dict[Labels, Sums] = {}
        for counter in lifetime.cumulative.counters:
            self._vendors.setdefault((counter.model, counter.provider), Sums()).add(counter.sums)

    def _label(self, value: str) -> str:
        """Return *value* with control characters and line separators written as Python escapes, such as ``\\u2028``."""
        # The format itself escapes a line feed.
        if value.isprintable():
            return value
        shown = self._shown.get(value)
        if shown is None:
            shown = self._shown[value] = "".join(
                ascii(letter)[1:-1] if letter != "\n" and unicodedata.category(letter) in _BREAKING else letter
                for letter in value
            )
        return shown

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        yield from self._counters(self._lifetime.cumulative.counters)
        yield self._unpriced_tokens()
        yield from self._left_out()
        yield from self._histograms()
        yield from self._gauges()
        yield from self._state()
        yield from self._transport()
        yield self._rejected()
        yield from self._alerts()
        for metric in self._metrics.values():
            yield self._custom(metric)

    def _counters(self, counters: Sequence[Counter]) -> Iterator[Metric]:
        def total(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
            family = CounterMetricFamily(f"tokentrace_{name}", text, labels=labels)
            added: dict[Labels, float] = {}
            for raw, value in values:
                key = tuple(map(self._label, raw))
                added[key] = added.get(key, 0) + value
            for key in sorted(added):
                family.add_metric(key, added[key])
            return family

        # Sum integers and convert to dollars at the end, so that rounding errors do not add up.
        cost_nusd: dict[Labels, int] = {}
        for counter in counters:
            key = (self._label(counter.model), self._label(counter.provider), self._label(counter.caller))
            cost_nusd[key] = cost_nusd.get(key, 0) + counter.sums.cost
        paid = ((key, nusd_to_usd(nusd)) for key, nusd in cost_nusd.items())
        calls = {vendor: sums for vendor, sums in self._vendors.items() if sums.spans}
        by_vendor = ("model", "provider")
        yield total("cost", "Total cost in USD.", ("model", "provider", "caller"), paid)
        yield total(
            "spans",
            "Total spans recorded.",
            ("status", *by_vendor),
            (
                ((counter.status, counter.model, counter.provider), counter.sums.spans)
                for counter in counters
                if counter.sums.spans
            ),
        )
        yield total(
            "tokens",
            "Tokens by type.",
            ("model", "token_type"),
            (pair for (model, _), sums in calls.items() for pair in _tokens_by_type(model, sums)),
        )
        for name, text, fields in (
            ("prompt_tokens", "Prompt tokens, cached ones included.", ("prompt",)),
            ("completion_tokens", "Completion tokens.", ("completion",)),
            ("errors", "Spans that ended with an error or a timeout.", ("errors", "timeouts")),
            ("timeouts", "Spans that timed out.", ("timeouts",)),
        ):
            added = ((vendor, sum(getattr(sums, field) for field in fields)) for vendor, sums in calls.items())
            yield total(name, text, by_vendor, added)
        for name, text in (
            ("unpriced", "Spans whose cost is unknown."),
            ("partly_priced", "Spans whose cost lacks a part."),
        ):
            numbers = ((vendor, getattr(sums, name)) for vendor, sums in self._vendors.items())
            yield total(f"{name}_spans", text, by_vendor, numbers)

    def _unpriced_tokens(self) -> Metric:
        family = CounterMetricFamily(
            "tokentrace_unpriced_tokens",
            "Tokens of spans whose cost is unknown or lacks a part, by reason.",
            labels=("reason",),
        )
        for reason in REASONS:
            family.add_metric((reason,), self._lifetime.cumulative.unpriced_tokens.get(reason, 0))
        return family

    def _left_out(self) -> Iterator[Metric]:
        left_out, told_twice = self._lifetime.cumulative.left_out, self._lifetime.told_twice
        for name, text, value in (
            ("repeated_spans", "Spans that told a call again and are in no sum.", left_out.repeated),
            ("conflicting_spans", "Repeated spans with another usage or cost.", left_out.conflicting),
            (
                "conflicting_cost",
                "Cost of the conflicting spans in USD, which is in no sum.",
                nusd_to_usd(left_out.conflicting_nusd),
            ),
            ("saved_from_double_count_calls", "Calls that an OTLP request told a second time.", told_twice.calls),
            (
                "saved_from_double_count_cost",
                "What the second tellings of calls would have cost in USD, which is in no sum.",
                nusd_to_usd(told_twice.nusd),
            ),
            ("response_ids_reused", "Spans counted although another call had their response id.", left_out.reused),
        ):
            yield CounterMetricFamily(f"tokentrace_{name}", text, value=value)

    def _histograms(self) -> Iterator[Metric]:
        lifetime = self._lifetime.cumulative
        sums: dict[str, dict[str, int]] = {name: {} for name in HISTOGRAMS}
        for (model, _), of_vendor in self._vendors.items():
            for name, added in sums.items():
                added[model] = added.get(model, 0) + getattr(of_vendor, name)
        for index, (name, prometheus, text, edges, unit) in enumerate(
            (
                ("latency", "latency_ms", "Inference latency in milliseconds.", LATENCY_EDGES_MS, MS),
                ("ttft", "ttft_ms", "Time to the first token in milliseconds.", LATENCY_EDGES_MS, MS),
                ("prompt", "prompt_tokens", "Prompt tokens of a span.", TOKEN_EDGES, 1),
                ("completion", "completion_tokens", "Completion tokens of a span.", TOKEN_EDGES, 1),
            )
        ):
            family = HistogramMetricFamily(f"tokentrace_{prometheus}", text, labels=("model",))
            bucket, shown_edges = f"{family.name}_bucket", [*(str(edge) for edge in edges), "+Inf"]
            for model in sorted(lifetime.histograms):
                label, counts = self._label(model), lifetime.histograms[model][index]
                if not any(counts):
                    continue
                # Appending samples takes a third of the time of add_metric.
                upto = list(itertools.accumulate(counts))
                family.samples += [
                    Sample(bucket, {"le": edge, "model": label}, count)
                    for edge, count in zip(shown_edges, upto, strict=True)
                ]
                family.samples.append(Sample(f"{family.name}_count", {"model": label}, upto[-1]))
                family.samples.append(Sample(f"{family.name}_sum", {"model": label}, sums[name].get(model, 0) / unit))
            yield family

    def _gauges(self) -> Iterator[Metric]:
        total, by_model = self._window.total, self._window.groups
        for name, text, value in (
            (
                "cost_per_call",
                "Mean cost in USD of the LLM calls with a known cost, last hour.",
                cost.cost_per_call(total),
            ),
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
                scores.add_metric((self._label(model),), score)
        yield scores
        for percent in (10, 50):
            text = f"{percent}th percentile of eval.score, last hour."
            yield _gauge(f"quality_score_p{percent}", text, quality.score_quantile(total, percent / 100))

    def _state(self) -> Iterator[Metric]:
        behind_s = max(self._lifetime.behind_s, self._window.behind_s)
        yield _gauge("behind_seconds", "Age of the last message that is counted while others wait, else 0.", behind_s)
        family = GaugeMetricFamily(
            "tokentrace_folded_values",
            "About how many values of a dimension are counted together as other.",
            labels=("dimension",),
        )
        for dimension, use in self._lifetime.cumulative.dimensions.items():
            family.add_metric((dimension,), distinct(use.folded))
        yield family

    def _transport(self) -> Iterator[Metric]:
        transport = self._lifetime.transport
        for name, text, value in (
            ("sent", "Spans of reporters that arrived.", transport.sent),
            ("failed", "Spans of reporters that were refused for good.", transport.failed),
            ("dropped", "Spans that reporters dropped because their queue was full.", transport.dropped),
        ):
            yield CounterMetricFamily(f"tokentrace_transport_{name}", text, value=value)
        yield _gauge("transport_queue_depth", "Spans waiting in reporters.", transport.queue_depth)

    def _rejected(self) -> Metric:
        family = CounterMetricFamily("tokentrace_rejected_spans", "Spans that were refused.", labels=("reason",))
        counts = self._refused.spans
        # All reasons: the increase of a series that begins with its first refusal would be unknown.
        for reason in REFUSAL_REASONS:
            family.add_metric((reason,), counts.get(reason, 0))
        return family

    def _alerts(self) -> Iterator[Metric]:
        counts = self._history
        for name, text, by_rule in (
            ("firings", "Firings of a rule.", counts.firings),
            ("delivery_failed", "Events of a rule that could not be delivered.", counts.delivery_failed),
        ):
            family = CounterMetricFamily(f"tokentrace_alert_{name}", text, labels=("rule",))
            # A counter has to be seen at 0: increase() does not count the first value of a series.
            for rule, count in sorted({**dict.fromkeys(self._rules, 0), **by_rule}.items()):
                family.add_metric((rule,), count)
            yield family

    def _custom(self, metric: CustomMetric) -> Metric:
        if metric.type in ("sum", "count"):
            lifetime = self._lifetime.cumulative.custom.get(metric.name, CustomValue())
            value = lifetime.total / metric.divisor if metric.type == "sum" else lifetime.size
            text = f"Custom metric {metric.name}."
            if metric.falls:
                # This value can fall, and a counter that falls looks like a restart.
                return _gauge(f"custom_{metric.name}", text, value)
            return CounterMetricFamily(f"tokentrace_custom_{metric.name}", text, value=value)
        measured = self._window.total.custom.get(metric.name, CustomValue())
        return _gauge(f"custom_{metric.name}", f"Custom metric {metric.name}, last hour.", metric.value(measured))


def _tokens_by_type(model: str, sums: Sums) -> Iterator[tuple[Labels, int]]:
    """Yield ((model, type), tokens); tokens of unknown type have a series only where there are any."""
    yield (model, "prompt"), sums.prompt
    yield (model, "completion"), sums.completion
    if unclassified(sums):
        yield (model, "unclassified"), unclassified(sums)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a gauge; if *value* is None, it has no sample."""
    family = GaugeMetricFamily(f"tokentrace_{name}", text)
    if value is not None:
        family.add_metric((), value)
    return family
