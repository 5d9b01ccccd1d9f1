"""The text of metric families is what prometheus_client writes for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kit.examples import examples
from tokentrace.service.prometheus_text import render_families

TEXTS = st.one_of(st.sampled_from(["", "gpt-4o", 'a"b\\c\nd', "größer", "other"]), st.text(max_size=8))
VALUES = st.one_of(
    st.integers(0, 2**70),
    st.floats(),
    st.sampled_from([0, 0.1, 1e6, 1234567.0, 1e22, float("inf"), float("-inf"), -0.0, 12345678.9]),
)


def families_of(
    text: str, labels: list[str], rows: list[tuple[list[str], float]], buckets: list[int]
) -> Iterator[Metric]:
    """Yield a counter, a gauge and a histogram with *labels*, and a gauge without labels."""
    counter = CounterMetricFamily("tokentrace_cost", text, labels=labels)
    gauge = GaugeMetricFamily("tokentrace_quality_score", text, labels=labels)
    histogram = HistogramMetricFamily("tokentrace_latency_ms", text, labels=labels)
    for row, value in rows:
        counter.add_metric(row[: len(labels)], value)
        gauge.add_metric(row[: len(labels)], value)
        histogram.add_metric(row[: len(labels)], [*((str(edge), edge) for edge in buckets), ("+Inf", 7)], value)
    yield from (counter, gauge, histogram)
    yield GaugeMetricFamily("tokentrace_error_rate", text, value=buckets[0])
    yield CounterMetricFamily("tokentrace_sent", text, value=buckets[-1])


class Fixed(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self.families


@settings(max_examples=examples(150), deadline=None)
@given(
    TEXTS,
    st.lists(st.sampled_from(["model", "caller", "provider", "zone"]), unique=True, min_size=1, max_size=4),
    st.lists(st.tuples(st.lists(TEXTS, min_size=4, max_size=4), VALUES), max_size=5),
    st.lists(st.integers(1, 10**9), min_size=1, max_size=5, unique=True).map(sorted),
)
def test_the_text_is_that_of_prometheus_client(
    text: str, labels: list[str], rows: list[tuple[list[str], float]], buckets: list[int]
) -> None:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(families_of(text, labels, rows, buckets)))
    assert render_families(families_of(text, labels, rows, buckets)) == generate_latest(registry)
