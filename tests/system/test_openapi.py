"""The OpenAPI document of ingest, the api and ``serve``: valid, complete, with examples that fit their schemas."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import tokentrace_api.app
import tokentrace_ingest.app
from tokentrace.bus.memory import MemoryBroker, MemoryBus
from tokentrace.config import load
from tokentrace.service.admit import Admission
from tokentrace.service.contract import Answer, Router, operation
from tokentrace.service.credentials import Credentials
from tokentrace.service.health import Health
from tokentrace.service.main import App
from tokentrace.service.openapi import TAGS, build_document, make_documented_app
from tokentrace.service.otlp_answers import OTLP_PATHS
from tokentrace_api.service import Config as ApiConfig
from tokentrace_ingest.service import Config as IngestConfig
from tokentrace_standalone.pipeline import Configs, Pipeline

SERVICES = ("ingest", "api", "api_with_ingest", "serve")
#: The routes that every document has besides those of its service.
SHARED = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/internal/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"),
    ("GET", "/docs/{file}"),
    ("POST", "/session"),
    ("DELETE", "/session"),
}
WAYS_IN = {
    ("POST", "/spans"),
    ("POST", "/mist"),
    ("POST", "/api/traces/start"),
    ("POST", "/api/traces/ingest"),
    ("POST", "/api/traces/messages"),
    ("POST", "/api/traces/{trace_id}/end"),
    ("POST", "/v1/traces"),
    ("POST", "/v1/logs"),
    ("POST", "/v1/metrics"),
    ("POST", "/api/public/otel/v1/traces"),
}
#: The files of the page, which need no token.
PAGE = ("/", "/page.js", "/page.css", "/favicon.svg")
#: Names of schemas. Generated clients use them, so a change is incompatible and belongs in CHANGELOG.md.
COMPONENTS = """
About Accepted AlertCounts AlertEvent AlertEventPage AlertPreview AlertRule AlertSeries AlertmanagerDelivery Alive
AllSeriesAnswer AllSeriesPoint AttributeAnswer BreakdownAnswer CallsPage CallsState Change ColumnTimeline CostChanges
CostExplanation CostMetrics CostPart CounterAnswer CoverageAnswer CoverageCost CoverageGap CoverageRow CoverageShare
CustomDelivery Definition Deleted Deliveries DeliveryRecord DimensionState DiskState DocsSpan EarlierCost EndInput
ErrorInput ErrorMetrics ErrorText EvalName EvalNames EventDelivery Exemplar ExplainedModel ExportAnswer Failure
ForwardState GraphEdge GroupAnswer GroupsInStep HeatmapAnswer HeatmapPoint HeldKey HeldKeys HeldValue HeldValues
HistogramAnswer HttpDelivery LastDelivery LatencyMetrics ListedCall ListedEvent ListedTrace LogState LoggedIn
LoginInput LostMessages Message MessageInput MessagePart MessageRecorded MetricsOverview MistEnvelope MistSpan
MistTrace Neighbours NumberAnswer NumberChange OperationCounts OtherGroups OtlpLogs OtlpMetrics OtlpTraces Overflow
PartState PartialSuccess PastSilence PipelineHealth PriceExplanation PriceRate QualityMetrics Readiness ReceiptAnswer
ReceiptLine ReceiptPrice RecentSpansAnswer RejectedCounts RejectedPage RejectedRecord RejectedSpans ReporterList
ReporterRow ReportersState RpcStatus RuleCreated RuleInstance RulePoint RuleState SavedFromDoubleCount ScoreInput
ScoredSpan ScoresAccepted SdkFailure SeriesAnswer SeriesPoint SeriesState ServiceState SessionDetails SessionEndInput
SessionError SessionGraph SessionPage SessionSummary SessionSums SetAsideRecord SetAsideState ShownKind ShownMetric
ShownPaths ShownRetention SilenceInput Silenced Silences SilentCaller SpanEnded SpanError SpanInput SpanMessage
SpanMessages SpanStarted SpansIngested SpansInput Stats StdoutDelivery StoredSpan Timeline TimelineColumns TimelineRow
TokenCounts TokenMetrics TokenSums Trace TraceNode TracePage TracePoint TraceSeries TraceSpan TransportCounts
UnpricedCounts WebhookDelivery
"""


@functools.cache
def composed(service: str) -> App:
    bus, settings = MemoryBus(MemoryBroker()), load(None)
    if service == "ingest":
        return tokentrace_ingest.app.compose(bus, IngestConfig.of(settings))
    if service == "serve":
        pipeline = Pipeline(bus, Configs.of(settings))
        return App(pipeline, pipeline.routes, pipeline.hot, make_documented_app)
    config = ApiConfig.of(settings)
    if service == "api_with_ingest":
        config = replace(config, ingest_url="http://127.0.0.1:1")
    return tokentrace_api.app.compose(bus, config)


@functools.cache
def application(service: str, token: str = "") -> ASGIApp:
    app = composed(service)
    admission = Admission(credentials=Credentials(token), open_paths=("/healthz", "/readyz", "/mist"))
    return app.make_http(app.routes, app.hot, lambda: Health([], {}), list, admission)


def opened(service: str, token: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(application(service, token)), base_url="http://localhost")


async def document_of(service: str, token: str = "") -> dict[str, Any]:
    async with opened(service, token) as client:
        answer = await client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, described in item.items():
            yield method.upper(), path, described


@pytest.mark.parametrize("service", SERVICES)
async def test_the_document_is_valid_openapi_3_1_and_holds_every_route(service: str) -> None:
    app = composed(service)
    document = await document_of(service)
    validate(document)
    assert document["openapi"].startswith("3.1.")
    table = {
        (method, re.sub(r":path\}", "}", route.path))
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert {(method, path) for method, path, _ in operations(document)} == table | SHARED
    assert (table >= WAYS_IN) == (service != "api")


@pytest.mark.parametrize("service", SERVICES)
async def test_every_operation_is_described_with_parameters_answers_errors_and_examples(service: str) -> None:
    document = await document_of(service, "the-key")
    assert [tag["name"] for tag in document["tags"]] == list(TAGS)
    ids = [described["operationId"] for _, _, described in operations(document)]
    assert len(ids) == len(set(ids))
    for method, path, described in operations(document):
        where = f"{method} {path}"
        assert described["summary"], where
        assert described["description"], where
        assert set(described["tags"]) <= set(TAGS), where
        assert "422" not in described["responses"] or path in {route for _, route in WAYS_IN}, where
        for name in re.findall(r"\{(\w+)\}", path):
            assert name in {parameter["name"] for parameter in described["parameters"]}, where
        for parameter in described.get("parameters", ()):
            assert parameter["description"], (where, parameter)
            schema = parameter["schema"]
            assert schema.get("type") or schema.get("enum"), (where, parameter)
            assert {"example", "default", "examples"} & {*schema, *parameter} or parameter["name"] == "cursor", (
                parameter
            )
        if method == "POST":
            contents = described["requestBody"]["content"]
            assert contents["application/json"]["examples"], where
        successes = [answer for status, answer in described["responses"].items() if status.startswith("2")]
        assert successes, where
        for status, answer in described["responses"].items():
            assert answer["description"], (where, status)
            if "content" not in answer:
                assert (method, status) in {("POST", "202"), ("DELETE", "204"), ("GET", "304")}, (where, status)
            for content in answer.get("content", {}).values():
                assert content["schema"], (where, status)
                assert "example" in content, (where, status)
        if "503" in described["responses"]:
            assert "Retry-After" in described["responses"]["503"]["headers"], where
        is_open = path in ("/healthz", "/readyz", "/mist", "/docs", "/docs/{file}", "/session", *PAGE)
        assert described["security"] == ([] if is_open else [{"bearer": []}]), where
        # A login needs no token but can fail, and says so.
        assert ("401" in described["responses"]) != is_open or (method, path) == ("POST", "/session"), where


@pytest.mark.parametrize("service", SERVICES)
async def test_every_example_fits_its_schema(service: str) -> None:
    document = _absolute(await document_of(service))
    resource = Resource.from_contents(document, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("urn:document", resource)
    checked = 0
    for _, _, described in operations(document):
        contents = [*described.get("requestBody", {}).get("content", {}).values()]
        contents += [
            content for answer in described["responses"].values() for content in answer.get("content", {}).values()
        ]
        for content in contents:
            values = [content["example"]] if "example" in content else []
            values += [example["value"] for example in content.get("examples", {}).values()]
            for value in values:
                Draft202012Validator(content["schema"], registry=registry).validate(value)
                checked += 1
        for parameter in described.get("parameters", ()):
            schema = parameter["schema"]
            values = [*schema.get("examples", ()), *(schema[key] for key in ("default",) if key in schema)]
            for value in values:
                Draft202012Validator({k: v for k, v in schema.items() if k != "examples"}).validate(value)
                checked += 1
    assert checked > 40, (service, checked)


def _absolute(node: Any) -> Any:
    """Return *node* with absolute references, so that they still resolve in a schema taken out of the document."""
    if isinstance(node, dict):
        return {key: f"urn:document{value}" if key == "$ref" else _absolute(value) for key, value in node.items()}
    return [_absolute(value) for value in node] if isinstance(node, list) else node


async def test_the_names_of_components_do_not_change_unnoticed() -> None:
    document = await document_of("serve")
    assert sorted(document["components"]["schemas"]) == COMPONENTS.split()


async def test_the_document_says_which_names_are_deprecated() -> None:
    document = await document_of("serve")
    schemas = document["components"]["schemas"]
    assert {"log_aged_out_by", "log_expires_at"} <= set(schemas["Deleted"]["required"])
    assert "Deprecated" in schemas["Deleted"]["description"]
    assert {"left_out", "skipped"} <= set(schemas["AttributeAnswer"]["required"])
    assert "Deprecated" in schemas["AttributeAnswer"]["description"]
    assert "deprecated" in document["paths"]["/internal/metrics"]["get"]["description"]


async def test_configured_paths_are_the_documented_ones() -> None:
    settings = load(None)
    http = msgspec.structs.replace(
        settings.http_server, metrics_path="/m", prometheus_path="/m/prom", ingest_path="/in", health_path="/h"
    )
    settings = msgspec.structs.replace(settings, http_server=http)
    bus = MemoryBus(MemoryBroker())
    pipeline = Pipeline(bus, Configs.of(settings))
    document = build_document(pipeline.routes, token_required=False, open_paths=())
    assert {"/m", "/m/{name}", "/m/{name}/series", "/m/prom", "/in", "/h"} <= set(document["paths"])
    assert set(pipeline.hot) == {("POST", "/in"), ("POST", "/mist"), *(("POST", path) for path in OTLP_PATHS)}


@pytest.mark.parametrize(("service", "path"), [("ingest", "/healthz"), ("api", "/docs"), ("api", "/openapi.json")])
async def test_head_is_answered_with_the_status_of_get(service: str, path: str) -> None:
    async with opened(service) as client:
        answer = await client.head(path)
        assert answer.status_code == (await client.get(path)).status_code == 200
        assert "content-type" in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/traces/recent", "DELETE, GET, HEAD"),
        ("POST", "/traces/t1/timeline", "DELETE, GET, HEAD"),
        ("GET", "/spans", "POST"),
        ("GET", "/mist", "POST"),
        ("PUT", "/alerts", "DELETE, GET, HEAD, POST"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_405_names_every_method_that_the_path_has(method: str, path: str, allowed: str) -> None:
    async with opened("serve") as client:
        answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json() == {"error": "method not allowed"}


async def takes_a_header(request: Request, depth: int) -> Response:
    raise AssertionError


async def forgets_its_path() -> Response:
    raise AssertionError


@pytest.mark.parametrize(
    ("endpoint", "path", "text"),
    [
        (takes_a_header, "/x", "depth: an endpoint takes the request, names in its path"),
        (forgets_its_path, "/x/{name}", "takes no name from its path"),
    ],
)
def test_a_route_with_an_argument_that_would_not_be_filled_in_fails_at_start(
    endpoint: Any, path: str, text: str
) -> None:
    described = operation("x", "x", "x", Answer(None, "x", status=204))
    with pytest.raises(TypeError, match=text):
        Router("service").get(path, **described)(endpoint)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limit=1&limit=2", "limit: given twice"),
        ("since=2026-03-15T14:00:00Z&since=2026-03-15T14:00:00Z", "since: given twice"),
        ("&".join(["model=m"] * 101), "model: given over 100 times"),
        ("&".join(["attr.a=1"] * 101), "attr.a: given over 100 times"),
        ("not.limit=1", "not.limit: unknown parameter; allowed are not.model, not.caller, not.status, "),
        ("not.kind=x", "not.kind: 'x' is none of "),
        ("not.attr.=x", "not.attr.: unknown parameter; allowed are not.model, "),
        ("status=ok&status=bad", "status: 'bad' is none of ok, error, timeout"),
        ("user=a&user_id=b", "user_id: 'b' differs from user, which means the same"),
        ("window=1h&since=2026-03-15T14:00:00Z", "window: is given together with since or until"),
        ("order=name", "order: 'name' is none of started, cost, duration, tokens"),
        ("order=cost&cursor=WzE3LCJ0MSJd", "cursor: is that of a list in another order"),
        ("cursor=WyJjb3N0IiwieCIsInQxIixudWxsXQ", "cursor: 'WyJjb3N0IiwieCIsInQxIixudWxsXQ' is not a cursor of "),
        ("limit=1.0", "limit: '1.0' is not a whole number >= 0 of at most 18 digits"),
        ("limit=%2B5", "limit: '+5' is not a whole number >= 0 of at most 18 digits"),
        ("since=12", "since: instant: '12' is not RFC 3339 such as 2026-03-15T14:23:01.441Z"),
        ("status=bad", "status: 'bad' is none of ok, error, timeout"),
        ("min_cost=-1", "min_cost: '-1' is not a number >= 0 and < 1e12"),
        ("attr.=1", "attr.: unknown parameter; allowed are attribute, caller, cursor, kind, limit, max_cost, "),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(query: str, text: str) -> None:
    async with opened("api") as client:
        answer = await client.get(f"/traces?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(text)
