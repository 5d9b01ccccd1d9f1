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

_PYTHON = "# Python client\n\n::: tokentrace\n    options:\n      members: true\n"


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
    for path, text in (("reference/http.md", render_http(asyncio.run(_document()))), ("reference/python.md", _PYTHON)):
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Show links to files outside ``docs`` as text, because the site does not hold these files."""
    above = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\[([^\]]+)\]\({re.escape(above)}[^)]+\)", r"\1", markdown)
