"""The files of the page and ``/page.json``: open where they hold nothing, never stale, and as configured."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.pipeline import ROOT, Pipeline, http
from tokentrace.config import build
from tokentrace.metrics import ALERT_METRICS, METRICS, REJECTED_METRIC, TRANSPORT_METRICS
from tokentrace.records import KINDS, ROLLUP_KINDS
from tokentrace_api.routes.page import STATIC, about_of
from tokentrace_api.service import Config

FILES = {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css", "/favicon.svg": "image/svg+xml"}
BEARER = {"Authorization": "Bearer the-token"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("page"), env={"TOKENTRACE_AUTH_TOKEN": "the-token"})
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


def test_the_files_need_no_token_and_forbid_foreign_scripts(serving: Pipeline) -> None:
    for path, media in FILES.items():
        answer = serving.get(path)
        assert answer.status == 200, path
        assert answer.headers["content-type"].partition(";")[0] == media
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert policy.endswith("require-trusted-types-for 'script'; trusted-types 'none'")
        assert "unsafe" not in policy
    for path in ("/page.json", "/page.map", "/static/page.js"):
        assert serving.get(path).status == 401, path
    assert serving.post("/", {}, BEARER).status == 405


def test_a_browser_asks_whether_a_file_has_changed_and_gets_it_only_then(serving: Pipeline) -> None:
    for path in FILES:
        answer = serving.get(path)
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        unchanged = http("GET", serving.url + path, headers={"If-None-Match": f'"other", {tag}'})
        assert (unchanged.status, unchanged.body) == (304, b""), path
        assert unchanged.headers["etag"] == tag
        assert "content-security-policy" in unchanged.headers
        assert http("GET", serving.url + path, headers={"If-None-Match": 'W/"other"'}).status == 200, path
    packed = http("GET", serving.url + "/page.js", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < 120_000


def test_page_json_says_what_the_server_has(serving: Pipeline) -> None:
    about = http("GET", serving.url + "/page.json", headers=BEARER).json()
    assert about["token_needed"] is True
    assert about["paths"] == {
        "metrics": "/metrics",
        "prometheus": "/metrics/prometheus",
        "health": "/health",
        "ingest": "/spans",
    }
    assert {kind["name"]: kind["counts_as_cost"] for kind in about["kinds"]} == {
        kind: kind not in ROLLUP_KINDS for kind in KINDS
    }
    for metric in about["metrics"]:
        assert http("GET", f"{serving.url}/metrics/{metric['name']}", headers=BEARER).status == 200, metric


def test_a_route_that_is_configured_at_the_path_of_the_page_keeps_it_and_needs_the_token(tmp_path: Path) -> None:
    env = {"TOKENTRACE_AUTH_TOKEN": "the-token"}
    (tmp_path / "tokentrace.yml").write_text("http_server: {ingest_path: /}\n")
    pipeline = Pipeline(tmp_path, env=env)
    pipeline.start()
    try:
        span = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1}
        assert pipeline.post("/", span).status == 401
        assert pipeline.post("/", span, BEARER).status == 202
        assert pipeline.get("/").status == 401
        assert pipeline.get("/page.js").status == 200
    finally:
        assert pipeline.stop() == 0


def test_every_metric_is_shown_once_and_custom_ones_as_configured() -> None:
    settings = build(
        {
            "http_server": {"metrics_path": "/m", "auth_token": ""},
            "retention": {"memory_window": "3d", "max_bytes": 5_000_000},
            "custom_metrics": [
                {"name": "documents", "type": "sum", "field": "attr.documents"},
                {"name": "gpt", "type": "count", "filter_key": "model", "filter_val": "gpt-4o"},
                {"name": "slow", "type": "p95", "field": "latency_ms"},
            ],
        },
        "test.yml",
    )
    about = about_of(Config.of(settings))
    names = [metric.name for metric in about.metrics]
    assert len(names) == len(set(names))
    customs = ["documents", "gpt", "slow"]
    assert set(names) == {*METRICS, REJECTED_METRIC, *TRANSPORT_METRICS, *ALERT_METRICS, *customs}
    shown = {metric.name: (metric.unit, metric.additive) for metric in about.metrics if metric.is_custom}
    assert shown == {"documents": ("any", True), "gpt": ("spans", True), "slow": ("milliseconds", False)}
    assert (about.paths.metrics, about.paths.ingest, about.token_needed) == ("/m", None, False)
    assert (about.retention.shown_for, about.retention.max_bytes) == ("3d", 5_000_000)


def test_the_built_files_name_no_other_host_and_the_sources_make_no_markup_of_text() -> None:
    built = {path.name: path.read_text() for path in STATIC.iterdir()}
    assert set(built) == {"index.html", "page.js", "page.css", "favicon.svg", "LICENSES.txt"}
    names = r"https?://(?!www\.w3\.org/)[\w.-]+"
    assert {name: re.findall(names, text) for name, text in built.items() if re.findall(names, text)} == {}
    packed = [gzip.compress(built[name].encode(), mtime=0) for name in ("page.js", "page.css")]
    assert sum(map(len, packed)) <= 120 * 1024
    page = ROOT / "services" / "api" / "page"
    sources = [*(page / "src").rglob("*.ts*"), page / "src" / "index.html"]
    assert len(sources) > 15
    forbidden = re.compile(
        r"[iI]nnerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(|style=|srcdoc|<img"
    )
    for source in sources:
        assert not forbidden.findall(Path(source).read_text()), source
    assert "resolved" not in (page / "package-lock.json").read_text()
