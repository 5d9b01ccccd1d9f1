"""
Hooks of mkdocs for `make docs`: pages that are generated from the program, and links that leave ``docs``.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import load
from tokentrace.service.admit import Admission
from tokentrace.service.health import Health
from tokentrace.service.openapi import make_documented_app
from tokentrace_standalone.pipeline import Configs, Pipeline

#: The page of the Python client: topic, what it is about, and its public names.
TOPICS: list[tuple[str, str, list[str]]] = [
    (
        "Trace a program",
        "A trace is one logical operation, a span is one call in it. "
        "[How to trace a program](../how-to/trace-a-program.md)",
        [
            "Tracer",
            "Trace",
            "OpenSpan",
            "SpanFields",
            "current",
            "start",
            "traced",
            "default_tracer",
            "set_default_tracer",
            "RemoteParent",
        ],
    ),
    (
        "Track providers",
        "Each call of a provider's SDK becomes a span. [Track OpenAI and Anthropic](../how-to/track-providers.md), "
        "[Gemini, Bedrock and litellm](../how-to/track-more-providers.md)",
        ["instrument", "uninstrument", "suppress", "tracked", "TrackedOpenAI", "TrackedAnthropic", "TraceContext"],
    ),
    (
        "Trace requests and tasks",
        "Each request of a web application, and each run of a task, becomes a trace. "
        "[How to trace frameworks](../how-to/frameworks.md)",
        ["TraceMiddleware", "WsgiTraceMiddleware", "instrument_celery"],
    ),
    (
        "Transports",
        "Where spans go. [How to choose a transport](../how-to/transports.md)",
        [
            "Transport",
            "open_transport",
            "NatsTransport",
            "HttpTransport",
            "FileTransport",
            "StdoutTransport",
            "MultiTransport",
            "BufferTransport",
            "NoopTransport",
            "Stats",
        ],
    ),
    (
        "Costs and budgets",
        "What a call costs, and limits of what is spent. [How to keep budgets](../how-to/budgets.md)",
        [
            "cost",
            "cost_or_none",
            "cost_with_rate",
            "estimate_cost",
            "Rate",
            "Budget",
            "SharedBudget",
            "Lease",
            "BudgetState",
            "BudgetStats",
            "BudgetExceeded",
            "BudgetUnavailable",
        ],
    ),
    (
        "Sessions",
        "Conversations with the methods of Cost Katana's clients.",
        ["TraceClient", "LocalTraceService", "TraceService", "StartedSpan"],
    ),
    (
        "Alert rules",
        "Rules for `Tracer(alerts=...)`, a pipeline inside of the program.",
        ["cost_spike", "error_rate_spike", "latency_regression", "quality_drop"],
    ),
    (
        "Report spans",
        "The reporter sends finished spans. [How to send spans](../how-to/send-spans.md)",
        ["Reporter", "Span"],
    ),
    ("Errors", "", ["TokentraceError", "ConfigError", "Rejected", "Unavailable", "Conflict"]),
]
_ABOUT = (
    "Everything is imported from `tokentrace`, as in `from tokentrace import Tracer`; `tokentrace.__version__` is the "
    "version. Times end in `_ms`, `_s` or `_ns`, and amounts of money in `_usd`."
)
#: Names whose modules are called like them, and where they are defined.
_PLACES = {
    "instrument": "tokentrace.client.track.instrument.instrument",
    "traced": "tokentrace.client.tracing.default.traced",
}
#: Members that other parts of the client use, and applications do not.
INTERNAL = {
    "Tracer": ["hand_over", "begin_close", "finish_close", "forget", "reset"],
    "Trace": ["owner", "defaults", "state", "parent_id", "add", "discard", "failed_with"],
    "OpenSpan": ["home"],
    "LocalTraceService": ["begin_close", "finish_close", "reset", "send", "flush", "stats"],
}


def place_of(name: str) -> str:
    """Return the path by which mkdocstrings finds a public name, which is also its anchor."""
    return _PLACES.get(name, f"tokentrace.{name}")


def render_python() -> str:
    """Return the page of the Python client in Markdown, which mkdocstrings fills with the docstrings."""
    lines = [
        "# Python client",
        "",
        "Everything here is imported from `tokentrace`: `from tokentrace import Tracer`.",
        "",
    ]
    for topic, about, names in TOPICS:
        lines += [f"## {topic}", "", about, ""]
        for name in names:
            hidden = "".join(f", '!^{member}$'" for member in INTERNAL.get(name, ()))
            lines += [f"::: {place_of(name)}", "    options:", f"      filters: ['!^_'{hidden}]", ""]
    lines += ["## Ids in log lines", "", "::: tokentrace.logs", "    options:", "      show_root_heading: false", ""]
    return "\n".join(lines)


async def _document() -> dict[str, Any]:
    """Return the OpenAPI document of ``tokentrace serve``, which is not started for it."""
    pipeline = Pipeline(MemoryBus(MemoryBroker()), Configs.of(load(None)))
    admission = Admission(open_paths=("/healthz", "/readyz", "/mist"))
    app = make_documented_app(pipeline.routes, pipeline.hot, lambda: Health([], {}), list, admission)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        document: dict[str, Any] = (await client.get("/openapi.json")).json()
    return document


def _parameters(operation: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{item['name']}` | {item['in']} | {' '.join(item.get('description', '').split())} |"
        for item in operation.get("parameters", ())
    ]
    return ["| Parameter | In | Meaning |", "|---|---|---|", *rows, ""] if rows else []


def _answers(operation: dict[str, Any]) -> list[str]:
    return [
        "| Status | Meaning |",
        "|---|---|",
        *(
            f"| {status} | {' '.join(answer['description'].split())} |"
            for status, answer in operation["responses"].items()
        ),
        "",
    ]


def render_http(document: dict[str, Any]) -> str:
    """Return the page of all HTTP routes in Markdown, by tag."""
    lines = ["# HTTP routes", "", "A running server shows the same with schemas and examples at `/docs`.", ""]
    operations = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    for tag in document["tags"]:
        lines += [f"## {tag['name'].capitalize()}", "", tag.get("description", ""), ""]
        for method, path, operation in operations:
            if tag["name"] in operation.get("tags", ()):
                lines += [
                    f"### `{method} {path}`",
                    "",
                    f"{operation['summary']}",
                    "",
                    operation.get("description", ""),
                    "",
                ]
                lines += [*_parameters(operation), *_answers(operation)]
    return "\n".join(lines)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, text in (
        ("reference/http.md", render_http(asyncio.run(_document()))),
        ("reference/python.md", render_python()),
    ):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Show links to files outside ``docs`` as text, because the site does not hold these files."""
    above = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({re.escape(above)}[^)]+\)", r"\1", markdown)
