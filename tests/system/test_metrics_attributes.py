"""Metrics by attribute, and exemplars, as a real ``tokentrace serve`` returns them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from kit.json_spans import fresh
from kit.metrics_http import (
    CUSTOM,
    DIMENSIONS,
    Expected,
    ask,
    assert_coverage,
    close_to,
    expected_groups,
    grouped,
    make,
    refused,
    send,
    send_traffic,
    serve_metrics,
)
from kit.pipeline import Pipeline
from tokentrace.metrics import GROUPS, METRICS


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    yield from serve_metrics(tmp_path_factory.mktemp("metrics"))


@pytest.fixture(scope="module")
def traffic(pipeline: Pipeline) -> tuple[str, list[dict[str, Any]]]:
    return send_traffic(pipeline)


# --- attributes


def test_an_attribute_groups_with_and_without_its_prefix(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    caller, spans = traffic
    parts: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        if "workflow" in span["attributes"]:
            parts.setdefault(span["attributes"]["workflow"], []).append(span)
    for key in ("workflow", "attr.workflow"):
        for group in GROUPS:
            shown = ask(pipeline, f"/{group}", caller=caller, groupby=key)["by_workflow"]
            assert list(shown) == sorted(parts), "spans without the attribute are left out"
            for value, part in parts.items():
                wanted = expected_groups(part)[group]
                assert shown[value] == (pytest.approx(wanted["total_usd"]) if group == "cost" else close_to(wanted))
        whole = ask(pipeline, "", caller=caller, groupby=key)
        assert {value: found["span_count"] for value, found in whole["by_workflow"].items()} == {
            value: len(part) for value, part in parts.items()
        }
        assert whole["span_count"] == len(Expected(spans).calls)
        for name in ("latency_p95", "error_rate", "total_cost"):
            shown = ask(pipeline, f"/{name}", caller=caller, groupby=key)["by_workflow"]
            assert shown == close_to({value: Expected(part).metric(name)[0] for value, part in parts.items()})


def test_breakdowns_by_attribute_equal_a_recount(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    for key in ("workflow", "attr.workflow"):
        shown = ask(pipeline, "/cost_by_attribute", caller=caller, key=key)
        parts = {value: [s for s in spans if s["attributes"].get("workflow") == value] for value in shown["value"]}
        assert list(parts) == ["check", "plan", "write"]
        assert shown["value"] == shown["by_workflow"]
        assert shown["value"] == pytest.approx({value: Expected(part).cost for value, part in parts.items()})
        assert_coverage(shown)
    shown = ask(pipeline, "/quality_by_attribute", caller=caller, key="document_type")["value"]
    assert shown == pytest.approx({"legal": 0.2, "news": 0.2})
    for name in ("cost_by_attribute", "quality_by_attribute"):
        assert ask(pipeline, f"/{name}", caller=caller, key="missing_key")["value"] == {}
    money = ask(pipeline, "/cost_by_attribute", caller=caller, key="tag")["value"]
    assert money == pytest.approx({caller: Expected(spans).cost})


@pytest.mark.parametrize("name", ["cost_by_attribute", "quality_by_attribute"])
def test_a_breakdown_by_attribute_needs_a_key(pipeline: Pipeline, name: str) -> None:
    for query in ("", "?key=", "?window=1h"):
        assert refused(pipeline.get(f"/metrics/{name}{query}"), 400).startswith("key: ")
    assert refused(pipeline.get(f"/metrics/{name}?key=a&key=b"), 400) == "key: given twice"
    assert refused(pipeline.get(f"/metrics/{name}?key=a&groupby=model"), 400).startswith("groupby: ")


def test_a_key_that_is_only_the_prefix_is_400(pipeline: Pipeline) -> None:
    assert "key" in refused(pipeline.get("/metrics/cost_by_attribute?key=attr."), 400)


@pytest.mark.parametrize("path", ["", "/cost", "/error_rate", "/cost_by_model", "/attr.depth", "/cost/series"])
def test_other_paths_take_no_key(pipeline: Pipeline, path: str) -> None:
    assert refused(pipeline.get(f"/metrics{path}?key=workflow"), 400).startswith("key: ")


def test_a_filter_by_attribute_keeps_only_the_spans_that_have_it(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    caller, spans = traffic
    mine = [span for span in spans if span["attributes"].get("workflow") == "plan"]
    for group, wanted in expected_groups(mine).items():
        shown = ask(pipeline, f"/{group}", caller=caller, attr__workflow="plan")
        assert {key: shown[key] for key in wanted} == close_to(wanted)
        assert shown["span_count"] == len(mine)
    for name in METRICS:
        value, count = Expected(mine).metric(name)
        shown = ask(pipeline, f"/{name}", caller=caller, attr__workflow="plan")
        assert (shown["value"], shown["span_count"]) == (value if value is None else pytest.approx(value), count), name
    both = ask(pipeline, "", caller=caller, attr__workflow="plan", attr__document_type="legal")
    assert both["span_count"] == sum(span["attributes"].get("document_type") == "legal" for span in mine)
    models = ask(pipeline, "/cost", caller=caller, attr__workflow="plan", groupby="model")
    assert models["by_model"] == {"gpt-4o": pytest.approx(Expected(mine).cost)}


def test_a_filter_that_every_span_passes_changes_nothing(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]
) -> None:
    """Rollups and the store agree on every metric group and metric, and on some of them by dimension and by kind."""
    caller, spans = traffic
    moving = ("from", "to")

    def same(path: str, **query: str) -> None:
        found = [ask(pipeline, path, **query), ask(pipeline, path, **query, attr__tag=caller)]
        plain, filtered = ({key: value for key, value in one.items() if key not in moving} for one in found)
        if "groupby" in query:
            key = f"by_{query['groupby']}"
            # Only the store may show a value of the dimension whose spans have no call, no cost and no score.
            extra = set(filtered[key]) - set(plain[key])
            assert extra <= {value for value, part in grouped(spans, query["groupby"]).items() if is_silent(part)}
            filtered[key] = {value: one for value, one in filtered[key].items() if value not in extra}
        assert filtered == plain

    for path in ("", *(f"/{name}" for name in (*GROUPS, *METRICS, *CUSTOM))):
        same(path, caller=caller)
    for dimension in DIMENSIONS:
        for path in ("", "/cost", "/latency", "/quality", "/latency_p95", "/agent_steps"):
            same(path, caller=caller, groupby=dimension)
    for kind in ("tool", "all", "agent"):
        same("", caller=caller, kind=kind)


def is_silent(spans: Sequence[Mapping[str, Any]]) -> bool:
    return not Expected(spans).calls and not Expected(spans).paid and not Expected(spans).scores


def test_a_group_of_roll_up_kinds_only_is_not_shown_by_rollups_nor_by_the_store(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    spans = [make(caller=caller), make(caller=caller, kind="http", model="", prompt_tokens=0, comp_tokens=0)]
    send(pipeline, [{**span, "attributes": {"tag": caller}} for span in spans])
    plain = ask(pipeline, "/errors", caller=caller, groupby="model")["by_model"]
    assert list(plain) == ["gpt-4o"]
    assert ask(pipeline, "/errors", caller=caller, groupby="model", attr__tag=caller)["by_model"] == plain


def test_a_numeric_attribute_is_a_metric(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, _ = traffic
    for name, values in (
        ("depth", [-4, 0, 4]),
        ("ratio", [0, 0.5, 1]),
        ("eval.score", [0, 0.1, 0.2, 0.3, 0.4, 0.9, 1]),
    ):
        shown = ask(pipeline, f"/attr.{name}", caller=caller)
        assert {key: shown.pop(key) for key in ("count", "sum", "avg", "p50", "p95")} == {
            "count": len(values),
            "sum": pytest.approx(sum(values)),
            "avg": pytest.approx(sum(values) / len(values)),
            "p50": pytest.approx(np.quantile(values, 0.5)),
            "p95": pytest.approx(np.quantile(values, 0.95)),
        }
        assert (shown.pop("window"), shown.pop("metric")) == ("1h", f"attr.{name}")
        assert set(shown) == {"from", "to", "since", "left_out", "skipped"}
    by_status = ask(pipeline, "/attr.depth", caller=caller, groupby="status")["by_status"]
    assert {status: found["sum"] for status, found in by_status.items()} == {"error": 4, "ok": -4}
    by_step = ask(pipeline, "/attr.depth", caller=caller, groupby="attr.step_name")["by_step_name"]
    assert by_step["plan"]["count"] == 3
    assert ask(pipeline, "/attr.depth", caller=caller, attr__workflow="check")["count"] == 1
    assert ask(pipeline, "/attr.eval.score", caller=caller, kind="tool")["avg"] == 0.9
    for name in ("workflow", "missing_key"):
        empty = ask(pipeline, f"/attr.{name}", caller=caller)
        assert [empty[key] for key in ("count", "sum", "avg", "p50", "p95")] == [0, None, None, None, None]


#: Attribute keys and values that need quoting in JSON paths or SQL, that look like syntax or column names, or that have
#: unusual characters or the maximum length.
ODD = (
    *(
        '"',
        "'",
        "\\",
        "`",
        ";--",
        "'); DROP TABLE spans; --",
        "x' OR '1'='1",
        "{spans}",
        "{}",
        "?",
        "%s",
        "$1",
        "$",
        "$.a",
    ),
    *(
        "a.b",
        "a..b",
        ".",
        "a/b~c",
        "a~1b",
        "/",
        "~",
        "*",
        "#-1",
        "[0]",
        "0",
        "-1",
        " ",
        "a b",
        "a+b",
        "a&b=c",
        "%",
        "%41",
    ),
    *("\t", "\n", "\x00", "\x7f", "日本", "é", "e\u0301", "\U0001f600", "\u202e", "<script>", "null", "true", "1e3"),
    *("model", "cost_nusd", "own", "spans", "attributes", "value", "x" * 256),
)


def test_unusual_keys_and_values_of_attributes_are_found_unchanged(pipeline: Pipeline) -> None:
    caller = fresh("odd")
    spans = [make(caller=caller, cost_usd=n + 1, attributes={key: key, "same": key}) for n, key in enumerate(ODD)]
    send(pipeline, spans)
    everything = {key: float(number) for number, key in enumerate(ODD, start=1)}
    assert ask(pipeline, "/cost_by_attribute", caller=caller, key="same")["value"] == everything
    for number, key in enumerate(ODD, start=1):
        for query in ({f"attr.{key}": key}, {"attr.same": key}, {f"attr.{key}": key, "attr.same": key}):
            shown = ask(pipeline, "/cost", caller=caller, **query)
            assert (shown["total_usd"], shown["span_count"]) == (number, 1), query
        shown = ask(pipeline, "/total_cost", caller=caller, groupby=f"attr.{key}")
        assert shown[f"by_{key}"] == {key: number}
        shown = ask(pipeline, "/cost_by_attribute", caller=caller, key=key)
        assert (shown["value"], shown[f"by_{key}"]) == ({key: number}, {key: number})
        if key not in DIMENSIONS:
            assert ask(pipeline, "/cost", caller=caller, groupby=key)[f"by_{key}"] == {key: number}
        for other in (key + "x", key.swapcase() if key.swapcase() != key else key * 2):
            if other not in ODD:
                assert ask(pipeline, "/cost", caller=caller, **{f"attr.{key}": other})["span_count"] == 0


def test_unusual_values_of_the_dimension_name_are_found_unchanged(pipeline: Pipeline) -> None:
    tag = fresh("odd")
    names = [text for text in ODD if len(text) < 200]
    send(pipeline, [make(caller=tag, name=name, cost_usd=0.5, attributes={"tag": tag}) for name in names])
    assert ask(pipeline, "/cost", caller=tag, groupby="name")["by_name"] == dict.fromkeys(names, 0.5)
    for name in names:
        assert ask(pipeline, "/cost", caller=tag, name=name)["span_count"] == 1
        assert ask(pipeline, "/cost", caller=tag, name=name, attr__tag=tag)["span_count"] == 1


@pytest.mark.parametrize(
    "query",
    [
        *({key: fresh("absent")} for key in ("model", "provider", "caller", "name", "status", "attr__x", "attr__tag")),
        {"attr__tag": ""},
        {"attr__tag": "\x00"},
    ],
)
def test_a_filter_that_no_span_matches_is_no_error(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], query: dict[str, str]
) -> None:
    shown = ask(pipeline, "", **query)
    assert shown["span_count"] == 0
    for group, wanted in expected_groups([]).items():
        assert {key: shown[group][key] for key in wanted} == wanted
    assert (shown["cost"]["by_model"], shown["cost"]["unpriced_by_model"]) == ({}, {})
    assert {name: shown[name] for name in CUSTOM} == dict.fromkeys(CUSTOM) | {"agent_steps": 0}
    for name in ("latency_p95", "total_cost", "error_rate", "span_count", *CUSTOM):
        found = ask(pipeline, f"/{name}", **query)
        nothing = 0 if name in ("span_count", "agent_steps") else None
        assert (found["value"], found["span_count"], found.get("exemplars", [])) == (nothing, 0, [])
    for path, key in (("/cost", "model"), ("/latency", "model"), ("/latency_p50", "workflow"), ("", "model")):
        assert ask(pipeline, path, **query, groupby=key)[f"by_{key}"] == {}
    assert ask(pipeline, "/cost_by_attribute", **query, key="workflow")["value"] == {}


def test_an_empty_dimension_is_called_unknown(pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]]) -> None:
    caller, spans = traffic
    mine = [span for span in spans if not span["provider"]]
    shown = ask(pipeline, "/cost", caller=caller, provider="unknown")
    assert shown["total_usd"] == pytest.approx(Expected(mine).cost)
    assert ask(pipeline, "/cost", caller=caller, provider="")["total_usd"] == shown["total_usd"]
    again = ask(pipeline, "/cost", caller=caller, provider="unknown", attr__tag=caller)
    assert again["total_usd"] == shown["total_usd"]


# --- exemplars


def exemplars_of(serving: Pipeline, path: str, size: int, **query: str) -> list[dict[str, Any]]:
    """Return the exemplars for *path*; if there are none, ask again (unless *size* is 0): a search may time out."""
    for _ in range(50):
        found: list[dict[str, Any]] = ask(serving, path, **query)["exemplars"]
        if found or not size:
            return found
        time.sleep(0.1)
    return []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/latency", "latency_ms"),
        ("/latency_p99", "latency_ms"),
        ("/latency_avg", "latency_ms"),
        ("/ttft_p95", "ttft_ms"),
        ("/cost", "cost_usd"),
        ("/total_cost", "cost_usd"),
        ("/cost_per_call", "cost_usd"),
    ],
)
def test_exemplars_are_the_largest_values_and_their_traces_can_be_read(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], path: str, field: str
) -> None:
    caller, spans = traffic

    def largest(kind: str, keep: Callable[[dict[str, Any]], bool]) -> list[tuple[str, float]]:
        of = Expected((span for span in spans if keep(span)), kind)
        tail = of.paid if field == "cost_usd" else of.calls
        found = [(span["trace_id"], span[field]) for span in tail if span.get(field)]
        return sorted(found, key=lambda one: -one[1])[:3]

    for query, keep in (
        ({}, lambda span: True),
        ({"model": "gpt-4o"}, lambda span: span["model"] == "gpt-4o"),
        ({"status": "error"}, lambda span: span.get("status") == "error"),
        ({"attr__workflow": "write"}, lambda span: span["attributes"].get("workflow") == "write"),
        ({"groupby": "model"}, lambda span: True),
    ):
        for kind in ("", "tool", "all"):
            asked = {"caller": caller, **query, **({"kind": kind} if kind else {})}
            wanted = largest(kind, keep)
            assert [(one["trace_id"], one[field]) for one in exemplars_of(pipeline, path, len(wanted), **asked)] == [
                (trace, pytest.approx(value)) for trace, value in wanted
            ], asked
    for one in exemplars_of(pipeline, path, 3, caller=caller):
        shown = pipeline.get(f"/traces/{one['trace_id']}").json()["spans"]
        assert {span["span_id"]: span.get(field) for span in shown}[one["span_id"]] == pytest.approx(one[field])


def test_exemplars_are_of_different_traces(pipeline: Pipeline) -> None:
    caller = fresh("caller")
    same = fresh("trace")
    spans = [make(caller=caller, trace_id=same, latency_ms=ms) for ms in (900, 800, 700)]
    spans += [make(caller=caller, latency_ms=ms) for ms in (600, 500, 400)]
    send(pipeline, spans)
    found = exemplars_of(pipeline, "/latency", 3, caller=caller)
    assert [one["latency_ms"] for one in found] == [900, 600, 500]
    assert found[0]["trace_id"] == same


@pytest.mark.parametrize("name", ["cost_of_legal", "latency_of_legal"])
def test_exemplars_of_a_custom_metric_are_spans_that_it_measures(
    pipeline: Pipeline, traffic: tuple[str, list[dict[str, Any]]], name: str
) -> None:
    caller, spans = traffic
    legal = {span["trace_id"] for span in spans if span["attributes"].get("document_type") == "legal"}
    found = ask(pipeline, f"/{name}", caller=caller).get("exemplars", [])
    assert {one["trace_id"] for one in found} <= legal
