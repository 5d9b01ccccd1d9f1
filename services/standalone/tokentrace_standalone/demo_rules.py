"""The alert rules of the demo: made, listed and removed through the API of a running pipeline."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from tokentrace.errors import ConfigError, Unavailable, shorten
from tokentrace.shown import shown_url

#: The names of all rules of the demo begin with this.
PREFIX = "demo-"
_TIMEOUT_S = 10.0
#: Nothing listens there, so that there is a delivery that fails; it is this machine.
_DEAD_WEBHOOK = "http://127.0.0.1:9/hooks/demo"

#: Thresholds on costs are those for a request a second.
RULES: tuple[dict[str, Any], ...] = (
    {
        "name": "demo-hourly-cost",
        "metric": "total_cost",
        "op": "gt",
        "threshold": 25,
        "window": "1h",
        "eval_interval": "10s",
        "level": "critical",
        "delivery": {
            "type": "http",
            "url": _DEAD_WEBHOOK,
            "send_resolved": True,
            "max_retries": 1,
            "timeout": "1s",
        },
    },
    {
        "name": "demo-dear-call",
        "metric": "cost_per_call",
        "op": "gt",
        "threshold": 0.02,
        "window": "20s",
        "eval_interval": "2s",
        "cooldown": "20s",
    },
    {
        "name": "demo-slow-chat",
        "metric": "latency_p95",
        "op": "gt",
        "threshold": 3000,
        "window": "2m",
        "eval_interval": "5s",
        "recovery_threshold": 2500,
        "filter": {"caller": "support-chat"},
    },
    {
        "name": "demo-errors",
        "metric": "error_rate",
        "op": "gt",
        "threshold": 0.05,
        "window": "5m",
        "eval_interval": "5s",
        "for": "10s",
        "min_spans": 10,
        "level": "critical",
    },
    {
        "name": "demo-spend-of-a-user",
        "metric": "total_cost",
        "op": "gt",
        "threshold": 4,
        "window": "1h",
        "eval_interval": "10s",
        "group_by": "user_id",
    },
    {
        "name": "demo-quality",
        "metric": "quality_score",
        "op": "lt",
        "threshold": 0.6,
        "window": "30m",
        "eval_interval": "10s",
        "min_spans": 5,
    },
    {
        "name": "demo-no-traffic",
        "metric": "span_count",
        "op": "lt",
        "threshold": 1,
        "window": "5m",
        "eval_interval": "10s",
        "no_data": "fire",
        "level": "critical",
    },
    {
        "name": "demo-unpriced",
        "metric": "unpriced_span_count",
        "op": "gt",
        "threshold": 3,
        "window": "1h",
        "eval_interval": "10s",
    },
)
#: The rule that is silenced, and what the silence says.
SILENCED = "demo-unpriced"
_SILENCE = {"duration": "8h", "by": "demo", "comment": "the price of acme-writer-7b is being agreed"}


class DemoRules:
    """
    The demo's rules at the API at *url*.

    Args:
        url: The base URL, such as ``http://127.0.0.1:8700``.

    Raises:
        ConfigError: *url* is not an HTTP URL.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("--api: must be none or start with http:// or https://")
        token = os.environ.get("TOKENTRACE_TOKEN") or os.environ.get("TOKENTRACE_AUTH_TOKEN")
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"),
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=_TIMEOUT_S,
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError, UnicodeError) as exc:
            raise ConfigError("--api: the URL cannot be read") from exc
        self._shown = shown_url(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def make(self, rate: float) -> list[str]:
        """
        Make or replace the rules, silence one of them, and return their names.

        Args:
            rate: Requests per second, by which thresholds on costs are multiplied.

        Raises:
            Unavailable: The API does not answer or refuses a rule.
        """
        for rule in RULES:
            body = {key: value for key, value in rule.items() if key != "name"}
            if rule["metric"] == "total_cost":
                body["threshold"] *= rate
            self._ask("PUT", f"/alerts/{quote(rule['name'])}", body)
        self._ask("POST", f"/alerts/{quote(SILENCED)}/silence", _SILENCE)
        return [rule["name"] for rule in RULES]

    def remove(self) -> list[str]:
        """
        Delete every rule whose name begins with ``demo-``, and return their names.

        Raises:
            Unavailable: The API does not answer or refuses.
        """
        rules = self._ask("GET", "/alerts")
        names = [rule["name"] for rule in rules if rule["name"].startswith(PREFIX)]
        for name in names:
            self._ask("DELETE", f"/alerts/{quote(name, safe='')}")
        return names

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as exc:
            raise Unavailable(f"{method} {path} at {self._shown}: {type(exc).__name__}") from exc
        if answer.status_code >= 300:
            raise Unavailable(f"{method} {path} at {self._shown}: {answer.status_code} {shorten(answer.text, 200)}")
        return answer.json() if answer.content else None
