"""``GET /``: the page in a browser, with its files and ``/page.json``, which says what this server has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokentrace.bus import subjects
from tokentrace.metrics import ALERT_METRICS, METRICS, REJECTED_METRIC, TRANSPORT_METRICS, CustomMetric
from tokentrace.records import KINDS, counts_as_cost
from tokentrace.rollup import HORIZON_NS
from tokentrace.service.admit import NEEDS_TOKEN
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.web import reply
from tokentrace.units import render_duration
from tokentrace.version import __version__
from tokentrace_api.routes.answers import Natural
from tokentrace_api.service import Config

STATIC = Path(__file__).parent.parent / "static"
#: Path -> (file, media type, id of the operation, what it is).
_FILES = {
    "/": ("index.html", "text/html", "getPage", "The page"),
    "/page.js": ("page.js", "text/javascript", "getPageScript", "The script of the page"),
    "/page.css": ("page.css", "text/css", "getPageStyle", "The style sheet of the page"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml", "getPageIcon", "The icon of the page"),
}
#: Spans hold text that strangers wrote. So no script but the page's own runs, and no text can become markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
Unit = Literal["usd", "usd/call", "tokens", "spans", "milliseconds", "share", "score", "count", "any"]
Better = Literal["lower", "higher", "neither"]


class ShownKind(msgspec.Struct):
    """A kind of span; the cost of one that does not count is that of the calls below it."""

    name: str
    counts_as_cost: bool


class ShownMetric(msgspec.Struct):
    """
    A metric.

    Attributes:
        unit: Unit of its value; ``any`` = that of an attribute.
        additive: Values of separate groups and windows add up to that of both together.
        better: Which direction is good news.
        is_custom: The configuration defines it.
        is_for_rules: Alert rules can watch it.
    """

    name: str
    unit: Unit
    additive: bool
    better: Better
    is_custom: bool = False
    is_for_rules: bool = True


class ShownPaths(msgspec.Struct):
    """Paths that the configuration can change; ``ingest`` is null if this server takes no spans."""

    metrics: str
    prometheus: str
    health: str
    ingest: str | None


class ShownRetention(msgspec.Struct):
    """
    When what is deleted; the first limit that is reached deletes.

    Attributes:
        shown_for: How long after its arrival a span is shown.
        log_keeps: How long the log keeps records, deleted ones included.
        max_spans: Number of the newest spans that are shown; 0 = no limit.
        max_bytes: Size of the stored spans, bytes; 0 = no limit.
        metrics_for: How long metrics reach back.
        rejected_for: How long refused spans are kept.
        alerts_for: How long the events of rules are kept.
        open_for: How long a span is waited for that has begun and not ended.
    """

    shown_for: str
    log_keeps: str
    max_spans: Natural
    max_bytes: Natural
    metrics_for: str
    rejected_for: str
    alerts_for: str
    open_for: str


class About(msgspec.Struct):
    """What this server has."""

    version: str
    token_needed: bool
    project: str
    paths: ShownPaths
    kinds: list[ShownKind]
    metrics: list[ShownMetric]
    retention: ShownRetention


#: Metric -> (unit, additive, better).
_SHOWN: Mapping[str, tuple[Unit, bool, Better]] = {
    "total_cost": ("usd", True, "lower"),
    "cost_per_call": ("usd/call", False, "lower"),
    "unpriced_span_count": ("spans", True, "lower"),
    "partly_priced_span_count": ("spans", True, "lower"),
    "prompt_tokens": ("tokens", True, "neither"),
    "completion_tokens": ("tokens", True, "neither"),
    "total_tokens": ("tokens", True, "neither"),
    "prompt_token_p50": ("tokens", False, "neither"),
    "prompt_token_p95": ("tokens", False, "neither"),
    "completion_token_p50": ("tokens", False, "neither"),
    "completion_token_p95": ("tokens", False, "neither"),
    "latency_p50": ("milliseconds", False, "lower"),
    "latency_p95": ("milliseconds", False, "lower"),
    "latency_p99": ("milliseconds", False, "lower"),
    "latency_avg": ("milliseconds", False, "lower"),
    "ttft_p50": ("milliseconds", False, "lower"),
    "ttft_p95": ("milliseconds", False, "lower"),
    "error_rate": ("share", False, "lower"),
    "error_count": ("spans", True, "lower"),
    "timeout_rate": ("share", False, "lower"),
    "timeout_count": ("spans", True, "lower"),
    "span_count": ("spans", True, "neither"),
    "quality_score": ("score", False, "higher"),
    "quality_p10": ("score", False, "higher"),
    "quality_p50": ("score", False, "higher"),
    REJECTED_METRIC: ("spans", True, "lower"),
    "transport_sent": ("spans", True, "neither"),
    "transport_failed": ("spans", True, "lower"),
    "transport_dropped": ("spans", True, "lower"),
    "transport_queue_depth": ("spans", True, "lower"),
    "alert_firings": ("count", True, "lower"),
    "alert_delivery_failed": ("count", True, "lower"),
}
#: The alerter does not read the streams that these count.
_NOT_FOR_RULES = frozenset({REJECTED_METRIC, *ALERT_METRICS})
_NAMES = (*METRICS, REJECTED_METRIC, *TRANSPORT_METRICS, *ALERT_METRICS)
_CUSTOM_UNITS: Mapping[str, Unit] = {
    "cost": "usd",
    "prompt_tokens": "tokens",
    "comp_tokens": "tokens",
    "total_tokens": "tokens",
    "latency_ms": "milliseconds",
    "ttft_ms": "milliseconds",
}
_ABOUT_EXAMPLE = {
    "version": "0.2.0",
    "token_needed": True,
    "project": "default",
    "paths": {"metrics": "/metrics", "prometheus": "/metrics/prometheus", "health": "/health", "ingest": "/spans"},
    "kinds": [{"name": "llm", "counts_as_cost": True}, {"name": "workflow", "counts_as_cost": False}],
    "metrics": [
        {
            "name": "total_cost",
            "unit": "usd",
            "additive": True,
            "better": "lower",
            "is_custom": False,
            "is_for_rules": True,
        }
    ],
    "retention": {
        "shown_for": "30d",
        "log_keeps": "7d",
        "max_spans": 0,
        "max_bytes": 0,
        "metrics_for": "31d",
        "rejected_for": "7d",
        "alerts_for": "30d",
        "open_for": "1d",
    },
}


def router(config: Config) -> Router:
    """Return the routes of the page and of ``/page.json``; there is no page if another route is configured at ``/``."""
    routes, files = Router("service"), Router("service", lenient=True)
    configured = (config.metrics_path, config.prometheus_path, config.health_path, config.ingest_path)
    for path, (name, media, identity, what) in _FILES.items():
        # A path of the page needs no token, so it must not be that of a route that does.
        if path not in configured:
            _add_file(files, path, (STATIC / name).read_bytes(), media, identity, what)
    about = about_of(config)

    @routes.get(
        "/page.json",
        **operation(
            "getAbout",
            "What this server has",
            """
            For programs that show data, such as the page: the version, the paths that the configuration can change, the
            kinds of spans, every metric with its unit, and when data is deleted.
            """,
            Answer(About, "What it has.", _ABOUT_EXAMPLE),
        ),
    )
    async def page_json(request: Request) -> Response:
        return reply(msgspec.structs.replace(about, token_needed=request.scope.get(NEEDS_TOKEN, False)))

    routes.routes.extend(files.routes)
    return routes


def about_of(config: Config) -> About:
    """Return what a server with *config* has; whether it needs a token is not known from that."""
    custom = [_custom(metric) for metric in config.custom.values()]
    return About(
        version=__version__,
        token_needed=False,
        project=config.project,
        paths=ShownPaths(config.metrics_path, config.prometheus_path, config.health_path, config.spans_path),
        kinds=[ShownKind(kind, counts_as_cost(kind)) for kind in KINDS],
        metrics=[
            *(ShownMetric(name, *_SHOWN[name], is_for_rules=name not in _NOT_FOR_RULES) for name in _NAMES),
            *custom,
        ],
        retention=ShownRetention(
            render_duration(config.keep_ns),
            render_duration(config.log_keeps_ns),
            config.max_spans,
            config.max_bytes,
            metrics_for=render_duration(HORIZON_NS),
            rejected_for=render_duration(subjects.REJECTED_AGE_NS),
            alerts_for=render_duration(subjects.ALERTS_AGE_NS),
            open_for=render_duration(subjects.OPEN_SPANS_AGE_NS),
        ),
    )


def _custom(metric: CustomMetric) -> ShownMetric:
    unit: Unit = "spans" if metric.type == "count" else _CUSTOM_UNITS.get(metric.field, "any")
    return ShownMetric(metric.name, unit, metric.type in ("sum", "count"), "neither", is_custom=True)


def _add_file(routes: Router, path: str, content: bytes, media: str, identity: str, what: str) -> None:
    # Weak, because a compressed answer stands for the same content.
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    @routes.get(
        path,
        **operation(
            identity,
            what,
            f"{what}, of this installation's own files. It needs no token and holds no data.",
            Answer(str, f"{what}.", content[:30].decode("utf-8", "ignore"), media=media),
            Answer(None, "It is the one that `If-None-Match` names.", status=304),
            needs_token=False,
        ),
    )
    async def file(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in [each.strip() for each in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media, headers=headers)
