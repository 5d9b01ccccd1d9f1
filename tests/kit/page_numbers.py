"""What the tests of the Overview and of the pages of numbers share: two seeded hours, and how they read a chart."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from urllib.parse import urlencode

from kit.chromium import Page
from kit.http_spans import assert_accepted
from kit.pipeline import Pipeline
from kit.sessions import instant

#: JavaScript: the chart with a title, and what is read off it.
_CHART = "[...document.querySelectorAll('[role=application]')].find((each) => each.ariaLabel.startsWith({title}))"


class Hours:
    """
    Two seeded hours of calls, each its own trace: the shown hour, and the hour before with less of everything.

    Attributes:
        begin, end: The shown hour, whole minutes, all of it past.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self.end = (now or datetime.now(UTC)).replace(second=0, microsecond=0) - timedelta(minutes=1)
        self.begin = self.end - timedelta(hours=1)

    @property
    def params(self) -> dict[str, str]:
        """The shown hour as parameters of a request or of an address."""
        return {"from": instant(self.begin), "to": instant(self.end)}

    def calls(self) -> list[dict[str, Any]]:
        """Return the spans of both hours; there is none from the 40th to the 45th minute of the shown one."""
        shown = [self._call(number, self.begin, 20 * number + 10) for number in range(180) if not 120 <= number < 135]
        before = self.begin - timedelta(hours=1)
        return shown + [self._call(number, before, 60 * (number - 200) + 10) for number in range(200, 255)]

    def _call(self, number: int, begin: datetime, second: int) -> dict[str, Any]:
        start = begin + timedelta(seconds=second)
        models = (
            ["gpt-4o", "gpt-4o-mini", "claude-sonnet-4-5", "own-model"] if number < 200 else ["gpt-4o", "gpt-4o-mini"]
        )
        model = models[number * 7 % len(models)]
        status = {0: "error", 13: "timeout"}.get(number % 29, "ok")
        return {
            "trace_id": f"n{number}",
            "span_id": f"s{number}",
            "name": f"answer {number % 3}",
            "kind": "llm",
            "model": model,
            "provider": {"g": "openai", "c": "anthropic", "o": "own"}[model[0]],
            "caller": f"team-{number % 5}",
            "user_id": f"user-{number % 4}",
            "attributes": {
                "tier": "gold" if number % 4 == 0 else "free",
                **({"eval.score": (number * 37 % 101) / 100} if number % 3 == 0 and model != "own-model" else {}),
            },
            "started_at": instant(start),
            "ended_at": instant(start + timedelta(milliseconds=200 + number * number % 7919)),
            "status": status,
            **({"error": "429 too many requests"} if status != "ok" else {}),
            "prompt_tokens": 500 + number * 31 % 4000,
            "comp_tokens": 50 + number * 17 % 900,
            "cache_read_tokens": 100 if number % 2 else 0,
            **({"ttft_ms": 80 + number % 60} if number % 3 else {}),
        }


def report(pipeline: Pipeline, calls: list[dict[str, Any]]) -> None:
    """Report *calls* and wait until the numbers and the list hold all of them."""
    assert_accepted(pipeline.post("/spans", calls), len(calls))
    pipeline.until(lambda: pipeline.metrics()["span_count"] == len(calls), "all in /metrics")
    pipeline.until(lambda: pipeline.get("/traces?limit=1").json()["total"] == len(calls), "all in /traces")


def ask(pipeline: Pipeline, path: str, params: dict[str, str]) -> Any:
    """Return what the API answers; it is asked again as long as it is too busy."""
    asked = f"{path}?{urlencode(params)}"
    pipeline.until(lambda: pipeline.get(asked).status != 503, f"{path} is answered")
    answer = pipeline.get(asked)
    assert answer.status == 200, answer.body
    return answer.json()


def assert_untroubled(page: Page, pipeline: Pipeline) -> None:
    """Check that nothing was refused, thrown or logged, and nothing asked of another host; a 503 is asked again."""
    assert page.problems() == []
    assert {url.split("/")[2] for url in page.requested() if url.startswith("http")} == {f"127.0.0.1:{pipeline.port}"}


def exactly(value: float | None, unit: str) -> str:
    """Return how the page writes all digits of a value when one hovers over it."""
    if value is None:
        return "no data"
    if unit == "usd":
        return f"{'−' if value < 0 else ''}${abs(value):.9f}"
    places = 3 if unit == "milliseconds" else 9
    text = f"{Decimal(repr(value)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):,f}"
    shown = text.rstrip("0").rstrip(".") if "." in text else text
    return f"{shown} ms" if unit == "milliseconds" else shown


def _digits(value: float, digits: int = 3) -> Decimal:
    """Return *value*, of which every binary digit counts, rounded to so many significant digits, half up."""
    if not value:
        return Decimal(0)
    exact = Decimal(value)
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_HALF_UP)
    # 9.996 has become 10.00, of which the last digit is one too many.
    return rounded.quantize(Decimal(1).scaleb(rounded.adjusted() - digits + 1))


def written(value: float | None, unit: str) -> str:
    """Return how the page writes a value of at least 0 in a card or a cell."""
    if value is None:
        return "no data"
    rounded = _digits(value)
    if unit == "usd":
        if rounded >= 1:
            return f"${Decimal(repr(value)).quantize(Decimal('0.01'), ROUND_HALF_UP):,}"
        whole, _, fraction = f"{rounded:f}".partition(".")
        return f"${whole}.{fraction.rstrip('0').ljust(2, '0')}" if value else "$0"
    if unit == "milliseconds":
        if rounded < 1000:
            return f"{rounded.normalize():f} ms"
        seconds = _digits(value / 1000)
        return f"{seconds} s" if seconds < 60 else f"{round(value / 1000) // 60}m {round(value / 1000) % 60}s"
    if unit == "share":
        return f"{_digits(value * 100):f} %" if value else "0 %"
    if unit == "score":
        return f"{value:.3f}"
    for size, letter in ((1, ""), (1_000, " K"), (1_000_000, " M")):
        if value < (10_000 if size == 1 else 1000 * size):
            return f"{int(value):,}" if size == 1 else f"{_digits(value / size):f}{letter}"
    raise AssertionError(f"{value} is larger than what the tests show")


def chart(title: str) -> str:
    """Return JavaScript for the chart whose name begins with *title*."""
    return f"({_CHART.format(title=json.dumps(title))})"


def table_of(page: Page, title: str, *, exact: bool = True) -> list[list[str]]:
    """
    Press T in a chart and return its table: the heads, then for each row its time and the values.

    Args:
        exact: The values with all digits, which show when one hovers, instead of those that are seen.
    """
    cell = "cell.title && cell.tagName === 'TD' ? cell.title : cell.innerText" if exact else "cell.innerText"
    page.evaluate(f"{chart(title)}.focus()")
    page.press("T")
    figure = f"{chart(title)}.closest('figure')"
    page.until(f"{figure}.querySelector('table tbody tr') !== null")
    rows: list[list[str]] = page.evaluate(
        f"[...{figure}.querySelectorAll('.chart-table tr')].map((row) => [...row.cells].map((cell) => {cell}))"
    )
    page.evaluate(f"{chart(title)}.focus()")
    page.press("T")
    return rows


def rows_of(page: Page, title: str) -> list[list[list[str]]]:
    """Return the rows of the table in the panel whose heading begins with *title*: text and title of each cell."""
    rows: list[list[list[str]]] = page.evaluate(
        f"[...[...document.querySelectorAll('.panel')].find((panel) => panel.innerText.startsWith({json.dumps(title)}))"
        ".querySelectorAll('tbody tr')].map(({cells}) => [...cells].map((cell) => [cell.innerText.trim(), cell.title]))"
    )
    return rows


def drag(page: Page, title: str, begin: float, end: float) -> None:
    """Drag in a chart from one part of its width to another, both from 0 to 1."""
    page.evaluate(f"{chart(title)}.scrollIntoView({{block: 'center'}})")
    box = json.loads(page.evaluate(f"JSON.stringify({chart(title)}.querySelector('.u-over').getBoundingClientRect())"))
    y = box["y"] + box["height"] / 2
    for kind, part, buttons in (
        ("mouseMoved", begin, 0),
        ("mousePressed", begin, 1),
        ("mouseMoved", (begin + end) / 2, 1),
        ("mouseMoved", end, 1),
        ("mouseReleased", end, 0),
    ):
        page.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=box["x"] + part * box["width"],
            y=y,
            button="none" if kind == "mouseMoved" and not buttons else "left",
            buttons=buttons,
            clickCount=1,
        )
