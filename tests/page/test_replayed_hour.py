"""The page over an hour of real traffic, replayed: its numbers, ten minutes of it, and the way to its dearest call."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from kit.chromium import Page
from kit.page_numbers import ask, assert_untroubled, chart, drag, exactly, rows_of, table_of, written
from kit.page_world import DRAWER, GRID, LISTED, needs_chromium
from kit.pipeline import TRACE, Pipeline, finish, replay
from kit.sessions import instant

pytestmark = needs_chromium
#: The totals of the hour.
CALLS, COST, TOKENS = 19366, 96.791325, 22361870 + 4088665
MINUTE = timedelta(minutes=1)
_READY = f"document.querySelectorAll('.outline, .stale').length === 0 && {chart('Cost by')}"
_CARD = "document.querySelector('.card[data-metric={metric}]')"


class Replayed:
    """
    A pipeline with the hour.

    Attributes:
        begin, end: A whole minute before all calls, and a second after them. The end is past, because a range that
            ends later is shown up to now.
        starts: Of each line of the file, when its call started here; true to the millisecond.
        dearest: Cost of the dearest call by the tokens in the file, US dollars.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        pipeline.until(lambda: pipeline.metrics()["span_count"] == CALLS, "all in /metrics")
        pipeline.until(lambda: pipeline.get("/traces?limit=1").json()["total"] == CALLS, "all in /traces")
        with TRACE.open() as file:
            lines = list(csv.DictReader(file))
        there = [datetime.fromisoformat(line["TIMESTAMP"][:26]).replace(tzinfo=UTC) for line in lines]
        newest = pipeline.get("/traces?limit=1").json()["traces"][0]
        shift = datetime.fromisoformat(newest["started_at"]) - max(there)
        self.starts = [moment + shift for moment in there]
        self.begin = min(self.starts).replace(second=0, microsecond=0)
        self.end = datetime.now(UTC).replace(microsecond=0)
        costs = [Decimal(line["ContextTokens"]) * 25 + Decimal(line["GeneratedTokens"]) * 100 for line in lines]
        self.dearest = max(costs) / 10_000_000

    @property
    def params(self) -> dict[str, str]:
        """The hour as parameters of a request or of an address."""
        return {"from": instant(self.begin), "to": instant(self.end)}

    def show(self, page: Page) -> None:
        """Open the Overview of the hour."""
        page.open(f"{self.pipeline.url}/#/?{urlencode(self.params)}")
        page.until(_READY)


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    pipeline = Pipeline(tmp_path_factory.mktemp("hour"))
    pipeline.start()
    try:
        finish(replay(pipeline, "--speed", "max"))
        yield Replayed(pipeline)
    finally:
        pipeline.stop()


def cards_of(page: Page) -> dict[str, list[str]]:
    """Return metric -> the exact value, and the lines of its card."""
    cards: dict[str, list[str]] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('.card')].map((card) => [card.dataset.metric, "
        "[card.querySelector('.card-value').title, ...card.innerText.split('\\n')]]))"
    )
    return cards


def test_every_number_of_the_overview_is_that_of_the_api(hour: Replayed, page: Page) -> None:
    hour.show(page)
    api = ask(hour.pipeline, "/metrics", {**hour.params, "compare": "before"})
    assert (api["span_count"], api["cost"]["total_usd"], api["tokens"]["total"]) == (CALLS, COST, TOKENS)
    cost, latency, tokens = api["cost"], api["latency"], api["tokens"]
    error = f"±{written(api['quantile_error'], 'share')}"
    none = "no data to compare with"
    assert cards_of(page) == {
        "total_cost": [
            exactly(COST, "usd"),
            "Cost",
            written(COST, "usd"),
            f"▲ +{written(COST, 'usd')} (new)",
            f"{written(cost['per_call_usd'], 'usd')} a call",
        ],
        "latency_p95": [
            f"{exactly(latency['p95_ms'], 'milliseconds')} {error}",
            "Latency p95",
            written(latency["p95_ms"], "milliseconds"),
            none,
            "first token p95 no data",
        ],
        "error_rate": [f"0 of {CALLS:,} calls", "Errors", "0 %", none, "0 failed, of these 0 by timeout"],
        "quality_score": ["no data", "Quality", "no data", none, "0 scored, p10 no data"],
        "span_count": [
            f"{CALLS:,}",
            "Calls",
            written(CALLS, "calls"),
            f"▲ +{written(CALLS, 'calls')} (new)",
            f"{written(tokens['total'], 'tokens')} tokens, 0 % of the prompt cached",
        ],
    }
    series = ask(hour.pipeline, "/metrics/total_cost/series", {**hour.params, "groupby": "model", "top": "10"})
    expected = [
        [series["by_model"]["gpt-4o"][at]["value"], point["value"]] for at, point in enumerate(series["points"])
    ]
    assert_table(page, "Cost by model", expected, "usd")
    assert round(sum(total or 0 for _, total in expected), 6) == COST
    for title, group, keys, unit in (
        ("Latency", "latency", ("p50_ms", "p95_ms", "p99_ms"), "milliseconds"),
        ("Errors and timeouts", "errors", ("rate", "timeout_rate"), "share"),
        ("Quality", "quality", ("score_avg", "score_p10"), "score"),
    ):
        points = ask(hour.pipeline, f"/metrics/{group}/series", hour.params)["points"]
        assert_table(page, title, [[point["value"][key] for key in keys] for point in points], unit)
    [[model, before, now, change]] = rows_of(page, "What changed")
    assert model[0] == "gpt-4o"
    assert before == ["no data", "no data"]
    assert now == [written(COST, "usd"), exactly(COST, "usd")]
    assert change[0] == f"▲ +{written(COST, 'usd')} (new)"
    for order, title in (("cost", "Most expensive"), ("latency", "Slowest")):
        shown = [[took[0], *spent] for _, _, took, spent in rows_of(page, title)]
        assert shown == [
            [
                written(call["latency_ms"], "milliseconds"),
                written(call["cost_usd"], "usd"),
                exactly(call["cost_usd"], "usd"),
            ]
            for call in listed(hour, "calls", order=order, limit="5", **hour.params)
        ]
    assert_untroubled(page, hour.pipeline)


def assert_table(page: Page, title: str, expected: list[list[float | None]], unit: str) -> None:
    """Check the values of a chart, as they are seen and with all digits; *expected* is by time."""
    for exact, write in ((True, exactly), (False, written)):
        _, *rows = table_of(page, title, exact=exact)
        assert [row[1:] for row in reversed(rows)] == [[write(value, unit) for value in row] for row in expected], title


def listed(hour: Replayed, what: str, **params: str) -> list[dict[str, Any]]:
    """Return the ``traces`` or ``calls`` that the API lists; ``from`` and ``to`` are the bounds of their starts."""
    bounds = {"since": params.pop("from"), "until": params.pop("to")}
    found: list[dict[str, Any]] = ask(hour.pipeline, f"/{what}", {**bounds, **params})[what]
    return found


def test_a_brush_of_ten_minutes_lists_exactly_their_traces(hour: Replayed, page: Page) -> None:
    hour.show(page)
    whole = hour.end - hour.begin
    begin, end = hour.begin + 20 * MINUTE, hour.begin + 30 * MINUTE
    drag(page, "Cost by model", (begin - hour.begin) / whole, (end - hour.begin) / whole)
    chosen = {"from": instant(begin), "to": instant(end)}
    page.until(f"location.hash.includes({urlencode({'from': chosen['from']})!r})")
    assert parse_qs(page.evaluate("location.hash.split('?')[1]")) == {name: [value] for name, value in chosen.items()}
    page.until(_READY)
    # Numbers hold the calls that ended in the time, the list those that started in it.
    numbers = ask(hour.pipeline, "/metrics", chosen)
    card = f"{_CARD.format(metric='total_cost')}?.querySelector('.card-value').title"
    page.until(f"{card} === {exactly(numbers['cost']['total_usd'], 'usd')!r}")
    page.evaluate(
        "[...document.querySelectorAll('.panel a')].find((link) => link.innerText === 'whole traces').click()"
    )
    page.until(f"location.hash.startsWith('#/traces?') && {LISTED} === 100")
    bounds = {"since": chosen["from"], "until": chosen["to"]}
    total = ask(hour.pipeline, "/traces", {**bounds, "limit": "1"})["total"]
    assert f"showing 100 of {total:,}\n" in page.evaluate("document.querySelector('.traces-tools').innerText")
    # A call that started within a millisecond of an end may be on either side of it.
    edge = timedelta(milliseconds=1)
    least, most = (sum(begin + by <= each < end - by for each in hour.starts) for by in (edge, -edge))
    assert least <= total <= most
    assert total > 2000
    shown = page.evaluate("[...document.querySelectorAll('td.name a')].map((a) => a.hash.split('?')[0].split('/')[2])")
    order = parse_qs(page.evaluate("location.hash.split('?')[1]"))["order"][0]
    expected = listed(hour, "traces", order=order, limit="100", **chosen)
    assert shown == [trace["trace_id"] for trace in expected]
    assert_untroubled(page, hour.pipeline)


def test_eight_keys_lead_to_the_dearest_call_and_its_receipt_adds_up(hour: Replayed, page: Page) -> None:
    hour.show(page)
    pressed = 0
    for keys, shown in (
        ("$", f"location.hash.startsWith('#/calls?') && {LISTED} === 100 && document.querySelector('.stale') === null"),
        ("j", "document.activeElement.closest('tbody tr') !== null"),
        (["Enter"], f"{GRID} !== null && ({DRAWER}).includes('sum')"),
    ):
        page.press(*keys)
        pressed += len(keys)
        page.until(shown)
    assert pressed <= 8
    assert page.evaluate("document.activeElement !== document.body")
    [dearest] = listed(hour, "calls", order="cost", limit="1", **hour.params)
    assert page.evaluate("location.hash").startswith(f"#/traces/{dearest['trace_id']}?")
    rows = page.evaluate(
        "[...document.querySelectorAll('aside tbody tr, aside tfoot tr')].map(({cells}) => "
        "[...cells].map((cell) => cell.innerText))"
    )
    amounts = [Decimal(row[3].replace("−", "-").replace("$", "")) for row in rows]
    assert rows[-1][0] == "sum"
    assert sum(amounts[:-1]) == amounts[-1] == hour.dearest == Decimal(str(dearest["cost_usd"]))
    assert_untroubled(page, hour.pipeline)
