"""``GET /traces/{id}/spans/{span_id}/receipt`` of a real ``tokentrace serve``: every cost, and how it came about."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import genai_prices
import pytest
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

from kit.pipeline import Answer, Pipeline

DEMO_S = 15
HALF_A_NANO = Decimal(5).scaleb(-10)
PLAIN = re.compile(r"-?\d+(\.\d*[1-9])?")
SETTINGS = """
pricing:
  models:
    in-house-7b: {prompt_per_1m: 0.333333, completion_per_1m: 1.000001, cache_read_per_1m: 0.05}
  trust_zero: [ollama]
"""
CONFIDENCES = {"exact", "reported", "overridden", "partly_priced", "unpriced", "reported_zero_ignored"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Whatever the tests send it."""
    directory = tmp_path_factory.mktemp("receipts")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    yield serving
    assert serving.stop() == 0


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:12]}"


def make(**fields: Any) -> dict[str, Any]:
    """A call to gpt-4o without a cost."""
    made = {"kind": "llm", "model": "gpt-4o", "provider": "openai", "prompt_tokens": 512, "comp_tokens": 128, **fields}
    return {"trace_id": fresh("trace"), "span_id": fresh("span"), **made}


def without_tokens(**fields: Any) -> dict[str, Any]:
    return make(prompt_tokens=0, comp_tokens=0, **fields)


def send(serving: Pipeline, spans: Sequence[dict[str, Any]]) -> None:
    """Have *spans* stored; what is sent last is stored last."""
    answer = serving.post("/spans", list(spans))
    assert answer.status == 202, answer.body
    last = spans[-1]
    path = f"/traces/{quote(last['trace_id'], safe='')}"

    def stored() -> bool:
        return last["span_id"] in {span["span_id"] for span in serving.get(path).json()["spans"]}

    serving.until(stored, "stored")


def ask(serving: Pipeline, trace_id: str, span_id: str) -> Answer:
    return serving.get(f"/traces/{quote(trace_id, safe='')}/spans/{quote(span_id, safe='')}/receipt")


def receipt_of(serving: Pipeline, span: dict[str, Any]) -> Any:
    """The receipt of *span*, which adds up."""
    answer = ask(serving, span["trace_id"], span["span_id"])
    assert answer.status == 200, answer.body
    found = answer.json()
    assert (found["trace_id"], found["span_id"]) == (span["trace_id"], span["span_id"])
    assert_adds_up(found)
    return found


def sent_receipt(serving: Pipeline, **fields: Any) -> Any:
    span = make(**fields)
    send(serving, [span])
    return receipt_of(serving, span)


def assert_adds_up(found: dict[str, Any]) -> None:
    """Text of plain digits; lines and rounding make the cost to the last one, and each line is rate x amount / per."""
    if found["cost_usd"] is None:
        assert (found["confidence"], found["lines"], found["rounding"]) == ("unpriced", [], "0"), found
        assert found["total_cost_usd"] is None
        return
    lines = found["lines"]
    for text in (
        found["cost_usd"],
        found["rounding"],
        *(line[key] for line in lines for key in ("rate_usd", "cost_usd")),
    ):
        assert PLAIN.fullmatch(text), found
    with localcontext() as context:
        context.prec = 200
        added = sum((Decimal(line["cost_usd"]) for line in lines), Decimal(found["rounding"]))
        assert added == Decimal(found["cost_usd"]), found
        assert abs(Decimal(found["rounding"])) <= HALF_A_NANO, found
        assert Decimal(found["cost_usd"]) * 10**9 % 1 == 0, found
        for line in lines:
            assert type(line["amount"]) is int
            assert type(line["per"]) is int
            assert Decimal(line["cost_usd"]) * line["per"] == Decimal(line["rate_usd"]) * line["amount"], found
    assert nano(found) == round(found["total_cost_usd"] * 1e9), found


def nano(found: dict[str, Any]) -> int:
    """The cost in nano-dollars; what is unpriced adds nothing."""
    return int(Decimal(found["cost_usd"] or 0).scaleb(9))


def lines_of(found: dict[str, Any]) -> dict[str, tuple[int, Decimal, int]]:
    """Unit -> (amount, rate, per)."""
    return {line["unit"]: (line["amount"], Decimal(line["rate_usd"]), line["per"]) for line in found["lines"]}


# --- everything that was sent, added up ------------------------------------------------------------------------------


class Traffic(NamedTuple):
    """A while of demo traffic and a span of every kind of cost, and the receipts of all of them."""

    pipeline: Pipeline
    spans: list[dict[str, Any]]
    receipts: list[dict[str, Any]]


def odd_spans() -> list[dict[str, Any]]:
    """Costs of every origin, on kinds that count and kinds that do not."""
    trace = fresh("odd")
    spans = [
        make(cost_usd=0.000000001),
        make(cost_usd=0.1),
        make(cost_usd=0.2),
        make(cost_usd=0),
        make(provider="ollama", model="llama3", cost_usd=0),
        make(model="in-house-7b", provider=""),
        make(model="in-house-7b", provider="", cache_read_tokens=17),
        make(model="no-such-model"),
        make(model="text-embedding-3-small", kind="embedding", prompt_tokens=3, comp_tokens=0),
        make(model="text-embedding-3-small", prompt_tokens=7, comp_tokens=1),
        make(usage={"web_searches": 3, "bananas": 2}),
        without_tokens(kind="tool", model="", provider=""),
        without_tokens(kind="tool", model="", provider="", cost_usd=0.0125),
        without_tokens(status="error", model=""),
        *(without_tokens(kind=kind, model="", cost_usd=5) for kind in ("agent", "workflow", "chain", "http")),
    ]
    return [{**span, "trace_id": trace, "caller": "odd"} for span in spans]


def all_spans(serving: Pipeline) -> list[dict[str, Any]]:
    """Every span of every page of ``GET /traces``, with the id of its trace."""
    found: list[dict[str, Any]] = []
    offset = 0
    while ids := serving.get(f"/traces?limit=100&offset={offset}").json()["trace_ids"]:
        offset += len(ids)
        for trace_id in ids:
            found += [{**span, "trace_id": trace_id} for span in serving.get(f"/traces/{trace_id}").json()["spans"]]
    return found


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traffic]:
    directory = tmp_path_factory.mktemp("traffic")
    (directory / "tokentrace.yml").write_text(SETTINGS, encoding="utf-8")
    serving = Pipeline(directory)
    serving.start()
    try:
        odd = odd_spans()
        command = [sys.executable, "-m", "tokentrace_standalone", "demo", "--url", serving.nats_url]
        demo = subprocess.Popen(
            [*command, "--for", f"{DEMO_S}s", "--rate", "8"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        send(serving, odd)
        said, _ = demo.communicate(timeout=DEMO_S + 30)
        assert demo.returncode == 0, said.decode()
        (sent,) = re.findall(r"(\d+) of \1 spans accepted, 0 lost", said.decode().splitlines()[-1])
        wanted = int(sent) + len(odd)
        serving.until(lambda: serving.get("/stats").json()["total_spans"] == wanted, "counted")
        serving.until(lambda: serving.get("/health").json()["stored_spans"] == wanted, "stored")
        spans = all_spans(serving)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda span: ask(serving, span["trace_id"], span["span_id"]), spans))
        assert {answer.status for answer in answers} == {200}
        yield Traffic(serving, spans, [answer.json() for answer in answers])
    finally:
        serving.stop()


def test_the_receipts_of_all_spans_are_every_total_to_the_nano_dollar(traffic: Traffic) -> None:
    serving = traffic.pipeline
    counted = sum(nano(found) for found in traffic.receipts if found["counted"])
    assert len(traffic.receipts) > 100
    assert counted > 10**7
    assert counted < sum(nano(found) for found in traffic.receipts), "some are roll-ups"
    shown = serving.get("/metrics?window=24h").json()
    assert round(shown["cost"]["total_usd"] * 1e9) == counted
    assert round(serving.get("/metrics/cost?window=1h").json()["total_usd"] * 1e9) == counted
    assert round(serving.get("/metrics/total_cost?window=1h").json()["value"] * 1e9) == counted
    assert round(serving.get("/stats").json()["total_cost_usd"] * 1e9) == counted
    listed, offset = 0, 0
    while traces := serving.get(f"/traces?limit=200&offset={offset}").json()["traces"]:
        offset += len(traces)
        listed += sum(round(trace["total_cost_usd"] * 1e9) for trace in traces)
    assert listed == counted
    by_model = serving.get("/metrics/cost_by_model?window=24h").json()["value"]
    own: dict[str, int] = {}
    for found in traffic.receipts:
        if found["counted"]:
            model = found["model"] or "unknown"
            own[model] = own.get(model, 0) + nano(found)
    assert {model: round(usd * 1e9) for model, usd in by_model.items()} == own


def test_the_receipts_say_what_could_not_be_priced(traffic: Traffic) -> None:
    shown = traffic.pipeline.get("/metrics/cost?window=24h").json()
    counted = [found for found in traffic.receipts if found["counted"]]
    unpriced = [found for found in counted if found["confidence"] == "unpriced"]
    partly = [found for found in counted if found["confidence"] == "partly_priced"]
    assert (shown["unpriced_span_count"], shown["partly_priced_span_count"]) == (len(unpriced), len(partly)) == (1, 2)
    by_model = {"no-such-model": (1, 0), "text-embedding-3-small": (0, 1), "gpt-4o": (0, 1)}
    assert shown["unpriced_by_model"] == {
        model: {"unpriced_span_count": whole, "partly_priced_span_count": part}
        for model, (whole, part) in by_model.items()
    }


def test_every_receipt_adds_up_and_is_that_of_its_span(traffic: Traffic) -> None:
    for span, found in zip(traffic.spans, traffic.receipts, strict=True):
        assert_adds_up(found)
        assert "note" not in found
        assert (found["trace_id"], found["span_id"]) == (span["trace_id"], span["span_id"])
        assert (found["model"], found["provider"]) == (span["model"], span["provider"])
        assert found["total_cost_usd"] == span["cost_usd"]
        assert found["counted"] == (span["kind"] not in ("http", "agent", "workflow", "chain"))
    assert {found["confidence"] for found in traffic.receipts} == CONFIDENCES


def test_the_lines_of_demo_traffic_are_its_tokens_each_charged_once(traffic: Traffic) -> None:
    met = 0
    for span, found in zip(traffic.spans, traffic.receipts, strict=True):
        if span["kind"] != "llm" or span.get("caller") == "odd":
            continue
        met += 1
        amounts = {unit: amount for unit, (amount, _, _) in lines_of(found).items()}
        assert found["confidence"] == "exact"
        cached = span.get("cache_read_tokens", 0)
        wanted = {
            "input_tokens": span["prompt_tokens"] - cached,
            "cache_read_tokens": cached,
            "output_tokens": span["comp_tokens"],
        }
        assert amounts == {unit: amount for unit, amount in wanted.items() if amount}
        assert found["price"]["version"] == f"genai-prices-{genai_prices.__version__}"
    assert met > 50


# --- how sure a cost is ----------------------------------------------------------------------------------------------


def test_a_cost_of_the_tables_is_exact_and_names_them(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, cache_read_tokens=100, reasoning_tokens=64)
    assert found["cost_usd"] == "0.002435"
    assert (found["confidence"], found["reason"], found["counted"]) == ("exact", None, True)
    version = f"genai-prices-{genai_prices.__version__}"
    price = found["price"]
    assert (price["source"], price["version"]) == (f"openai:gpt-4o@{version}", version)
    assert (price["matched_model"], price["tier"]) == ("gpt-4o", None)
    assert lines_of(found) == {
        "input_tokens": (412, Decimal("2.5"), 1_000_000),
        "cache_read_tokens": (100, Decimal("1.25"), 1_000_000),
        "output_tokens": (128, Decimal(10), 1_000_000),
    }


def test_a_dated_name_is_matched_with_its_model(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, model="gpt-4o-2024-08-06")
    assert (found["model"], found["price"]["matched_model"]) == ("gpt-4o-2024-08-06", "gpt-4o")


def test_the_price_is_that_of_the_moment_the_call_ended(pipeline: Pipeline) -> None:
    """claude-opus-4-6 lost its long-context tier on 2026-03-13."""
    call = {"model": "claude-opus-4-6", "provider": "anthropic", "prompt_tokens": 200_001, "comp_tokens": 0}
    before = sent_receipt(pipeline, **call, ended_at="2026-03-12T23:59:59.900Z")
    after = sent_receipt(pipeline, **call, ended_at="2026-03-13T00:00:00.000Z")
    assert (before["price"]["priced_at"], before["cost_usd"]) == ("2026-03-12T23:59:59.900Z", "2.00001")
    assert (after["price"]["priced_at"], after["cost_usd"]) == ("2026-03-13T00:00:00.000Z", "1.000005")


def test_a_call_from_the_future_is_priced_when_it_arrived(pipeline: Pipeline) -> None:
    ends = datetime.now(UTC) + timedelta(days=400)
    found = sent_receipt(pipeline, ended_at=ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
    at = datetime.fromisoformat(found["price"]["priced_at"])
    assert abs(at - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize("usd", [0.000000001, 0.00448, 0.1, 1e-8, 999_999.999999999])
def test_a_reported_cost_is_one_line(pipeline: Pipeline, usd: float) -> None:
    found = sent_receipt(pipeline, cost_usd=usd, cost_model="gpt-4o@2025-01")
    assert (found["confidence"], found["reason"]) == ("reported", None)
    assert [(line["unit"], line["amount"], line["per"]) for line in found["lines"]] == [("reported", 1, 1)]
    assert nano(found) == round(Decimal(repr(usd)).scaleb(9))
    price = found["price"]
    assert (price["source"], price["version"], price["matched_model"]) == ("gpt-4o@2025-01", "2025-01", "gpt-4o")


def test_a_price_name_without_a_version_has_none(pipeline: Pipeline) -> None:
    price = sent_receipt(pipeline, cost_usd=0.5, cost_model="our-contract")["price"]
    assert (price["source"], price["version"]) == ("our-contract", None)


def test_a_price_from_configuration_is_overridden(pipeline: Pipeline) -> None:
    found = sent_receipt(
        pipeline, model="In-House-7B", provider="", prompt_tokens=1001, comp_tokens=333, cache_read_tokens=7
    )
    assert found["confidence"] == "overridden"
    assert (found["price"]["version"], found["price"]["matched_model"]) == ("configuration", "In-House-7B")
    assert lines_of(found) == {
        "input_tokens": (994, Decimal("0.333333"), 1_000_000),
        "cache_read_tokens": (7, Decimal("0.05"), 1_000_000),
        "output_tokens": (333, Decimal("1.000001"), 1_000_000),
    }
    assert found["rounding"] == "-0.000000000335"


def test_a_unit_without_a_rate_makes_a_cost_partly_priced(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, model="text-embedding-3-small", prompt_tokens=3, comp_tokens=1)
    assert (found["confidence"], found["reason"]) == ("partly_priced", "no_rate:output_tokens")
    assert (found["cost_usd"], list(lines_of(found))) == ("0.00000006", ["input_tokens"])
    found = sent_receipt(pipeline, usage={"bananas": 3, "web_searches": 2})
    assert (found["confidence"], found["reason"]) == ("partly_priced", "no_rate:bananas")
    assert list(lines_of(found)) == ["input_tokens", "output_tokens", "web_searches"]
    found = sent_receipt(pipeline, model="in-house-7b", usage={"web_searches": 2})
    assert (found["confidence"], found["reason"]) == ("partly_priced", "no_rate:web_searches")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "no-such-model"}, "unknown_model"),
        ({"provider": "no-such-provider"}, "unknown_model"),
        ({"model": "", "status": "error"}, "no_model"),
        ({"prompt_tokens": 0, "comp_tokens": 0, "total_tokens": 640}, "no_split"),
        ({"model": "whisper-1"}, "no_token_rate"),
        ({"prompt_tokens": 2**40, "comp_tokens": 2**40}, "over_bounds"),
        ({"prompt_tokens": 0, "comp_tokens": 0, "usage": {"bananas": 3}}, "no_rate:bananas"),
        ({"model": "no-such-model", "cost_usd": 0}, "unknown_model"),
    ],
)
def test_a_call_without_a_known_price_is_unpriced_with_a_reason(
    pipeline: Pipeline, fields: dict[str, Any], reason: str
) -> None:
    found = sent_receipt(pipeline, **fields)
    assert (found["cost_usd"], found["total_cost_usd"], found["lines"]) == (None, None, [])
    assert (found["confidence"], found["reason"]) == ("unpriced", reason)


def test_a_reported_zero_with_tokens_is_ignored_and_priced(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, cost_usd=0)
    assert (found["confidence"], found["cost_usd"]) == ("reported_zero_ignored", "0.00256")
    assert list(lines_of(found)) == ["input_tokens", "output_tokens"]
    trusted = sent_receipt(pipeline, cost_usd=0, provider="Ollama", model="llama3")
    assert (trusted["confidence"], trusted["cost_usd"], list(lines_of(trusted))) == ("reported", "0", ["reported"])


# --- what is charged -------------------------------------------------------------------------------------------------


def tiered() -> tuple[str, str, int]:
    """(Provider, model, start of the first tier) of a model whose input grows dearer, today and always."""
    for provider in providers:
        for model in provider.models:
            rate = model.prices.input_mtok if isinstance(model.prices, ModelPrice) else None
            if isinstance(rate, TieredPrices) and genai_price(provider, model, 9, 9) is not None:
                return provider.id, model.id, rate.tiers[0].start
    raise AssertionError("no model has tiers any more")


def genai_price(provider: Provider, model: ModelInfo, prompt: int, completion: int) -> Decimal | None:
    """What the package itself makes of tokens, if it finds the model by its name."""
    usage = Usage(input_tokens=prompt, output_tokens=completion)
    try:
        found = genai_prices.calc_price(usage, model.id, provider_id=provider.id)
    except LookupError:
        return None
    return found.total_price if (found.provider.id, found.model.id) == (provider.id, model.id) else None


def test_a_tier_is_named_and_charged_from_one_token_above_its_start(pipeline: Pipeline) -> None:
    provider, model, start = tiered()
    fields = {"provider": provider, "model": model, "comp_tokens": 10}
    below = sent_receipt(pipeline, **fields, prompt_tokens=start)
    above = sent_receipt(pipeline, **fields, prompt_tokens=start + 1)
    assert (below["price"]["tier"], above["price"]["tier"]) == (0, start)
    (low_amount, low_rate, _), (high_amount, high_rate, _) = (lines_of(one)["input_tokens"] for one in (below, above))
    assert (low_amount, high_amount) == (start, start + 1)
    assert high_rate > low_rate
    for found in (below, above):
        amounts = {unit: amount for unit, (amount, _, _) in lines_of(found).items()}
        usage = Usage(input_tokens=amounts["input_tokens"], output_tokens=10)
        want = genai_prices.calc_price(usage, model, provider_id=provider).total_price
        assert Decimal(found["cost_usd"]) == want.quantize(Decimal(1).scaleb(-9), ROUND_HALF_EVEN)


def test_every_kind_of_cached_token_has_a_line_of_its_own(pipeline: Pipeline) -> None:
    found = sent_receipt(
        pipeline,
        provider="anthropic",
        model="claude-sonnet-4-0",
        prompt_tokens=100,
        comp_tokens=9,
        cache_read_tokens=20,
        cache_write_tokens=50,
        cache_write_1h_tokens=10,
    )
    assert {unit: amount for unit, (amount, _, _) in lines_of(found).items()} == {
        "input_tokens": 30,
        "cache_read_tokens": 20,
        "cache_write_tokens": 40,
        "cache_write_1h_tokens": 10,
        "output_tokens": 9,
    }
    assert nano(found) == 30 * 3000 + 20 * 300 + 40 * 3750 + 10 * 6000 + 9 * 15_000


def test_reasoning_tokens_have_a_line_where_they_have_a_price(pipeline: Pipeline) -> None:
    priced = [
        (provider.id, model.id)
        for provider in providers
        for model in provider.models
        if isinstance(model.prices, ModelPrice) and getattr(model.prices, "output_reasoning_mtok", None) is not None
    ]
    for provider, model in priced:
        found = sent_receipt(pipeline, provider=provider, model=model, comp_tokens=100, reasoning_tokens=60)
        amounts = {unit: amount for unit, (amount, _, _) in lines_of(found).items()}
        assert (amounts["output_tokens"], amounts["output_reasoning_tokens"]) == (40, 60)
    plain = sent_receipt(pipeline, comp_tokens=100, reasoning_tokens=60)
    assert lines_of(plain)["output_tokens"][0] == 100


def test_units_of_the_usage_map_have_lines_of_their_own(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, usage={"web_searches": 3})
    assert (found["confidence"], found["cost_usd"]) == ("exact", "0.03256")
    assert lines_of(found)["web_searches"] == (3, Decimal(10), 1000)
    audio = sent_receipt(pipeline, model="whisper-1", prompt_tokens=0, comp_tokens=0, usage={"audio_seconds": 90})
    assert (audio["cost_usd"], lines_of(audio)) == ("0.009", {"audio_seconds": (90, Decimal("0.36"), 3600)})


def test_an_embedding_is_charged_for_its_input(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, kind="embedding", model="text-embedding-3-small", prompt_tokens=1003, comp_tokens=0)
    assert (found["confidence"], found["cost_usd"], found["counted"]) == ("exact", "0.00002006", True)


def test_a_tool_that_says_nothing_of_money_costs_nothing(pipeline: Pipeline) -> None:
    found = sent_receipt(pipeline, kind="tool", model="", provider="", prompt_tokens=0, comp_tokens=0)
    assert (found["cost_usd"], found["lines"], found["rounding"], found["counted"]) == ("0", [], "0", True)
    assert (found["confidence"], found["price"]["source"]) == ("exact", None)


@pytest.mark.parametrize("kind", ["agent", "workflow", "chain", "http"])
def test_a_roll_up_is_shown_and_not_counted(pipeline: Pipeline, kind: str) -> None:
    trace = fresh("trace")
    root = make(trace_id=trace, kind=kind, model="", prompt_tokens=0, comp_tokens=0, cost_usd=0.25)
    leaf = make(trace_id=trace, parent_span_id=root["span_id"], cost_usd=0.25)
    send(pipeline, [root, leaf])
    rolled, counted = receipt_of(pipeline, root), receipt_of(pipeline, leaf)
    assert (rolled["counted"], rolled["cost_usd"], rolled["confidence"]) == (False, "0.25", "reported")
    assert (counted["counted"], counted["cost_usd"]) == (True, "0.25")
    assert pipeline.get(f"/traces/{trace}").json()["total_cost_usd"] == 0.25


def test_a_mist_span_has_a_receipt(pipeline: Pipeline) -> None:
    trace, end_ns = uuid.uuid4().hex, time.time_ns()
    attrs = {"model": "gpt-4o", "provider": "openai", "tokens_in": 512, "tokens_out": 128}
    span = {"trace_id": trace, "span_id": "1", "operation": "infer", "start_ns": end_ns - 10**9, "end_ns": end_ns}
    message = {"version": "1", "id": "1", "source": "t", "type": "trace.span", "payload": {**span, "attrs": attrs}}
    assert pipeline.post("/mist", json.dumps(message).encode()).status == 202
    pipeline.until(lambda: ask(pipeline, trace, "1").status == 200, "stored")
    found = ask(pipeline, trace, "1").json()
    assert_adds_up(found)
    assert (found["cost_usd"], found["confidence"]) == ("0.00256", "exact")


# --- asking ----------------------------------------------------------------------------------------------------------


def test_a_receipt_of_nothing_is_404(pipeline: Pipeline) -> None:
    span = make()
    send(pipeline, [span])
    for trace_id, span_id in ((span["trace_id"], "absent"), ("absent", span["span_id"]), ("absent", "absent")):
        answer = ask(pipeline, trace_id, span_id)
        assert (answer.status, answer.json()) == (404, {"error": "span not found"})


def test_a_receipt_takes_no_parameters(pipeline: Pipeline) -> None:
    span = make()
    send(pipeline, [span])
    answer = pipeline.get(f"/traces/{span['trace_id']}/spans/{span['span_id']}/receipt?format=mist")
    assert answer.status == 400
    assert "format" in answer.json()["error"]


@pytest.mark.parametrize("odd", ["a b", "a?b", "a%b", "a'b", 'a"b', "a;--", "..", "a+b", "{a}", "receipt", "a%2Fb"])
def test_a_receipt_is_found_by_odd_ids(pipeline: Pipeline, odd: str) -> None:
    span = make(trace_id=fresh("odd") + odd, span_id=odd)
    send(pipeline, [span])
    assert receipt_of(pipeline, span)["cost_usd"] == "0.00256"


@pytest.mark.parametrize(("trace", "own"), [("a/b", "1"), ("ab", "1/2"), ("a/b", "/")])
def test_a_receipt_is_found_by_ids_with_a_slash_like_its_trace(pipeline: Pipeline, trace: str, own: str) -> None:
    span = make(trace_id=fresh("slash") + trace, span_id=own)
    send(pipeline, [span])
    receipt_of(pipeline, span)


def test_of_several_versions_of_a_span_the_last_has_the_receipt(pipeline: Pipeline) -> None:
    span = make(cost_usd=0.5)
    send(pipeline, [span])
    again = {**span, "cost_usd": 0.75}
    assert pipeline.post("/spans", again).status == 202
    pipeline.until(lambda: receipt_of(pipeline, span)["cost_usd"] == "0.75", "the second version")
    assert pipeline.get(f"/traces/{span['trace_id']}").json()["total_cost_usd"] == 0.75


# --- prices that changed since ---------------------------------------------------------------------------------------


def test_a_cost_is_kept_when_prices_change_and_the_receipt_says_that_it_cannot_be_explained(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    serving.start()
    try:
        by_table, reported, unpriced = make(), make(cost_usd=0.5), make(model="in-house-7b", provider="")
        send(serving, [by_table, reported, unpriced])
        before = [receipt_of(serving, span) for span in (by_table, reported, unpriced)]
        assert serving.stop() == 0
        models = (
            "{gpt-4o: {prompt_per_1m: 1, completion_per_1m: 1}, in-house-7b: {prompt_per_1m: 1, completion_per_1m: 1}}"
        )
        (tmp_path / "tokentrace.yml").write_text(f"pricing:\n  models: {models}\n", encoding="utf-8")
        serving.start()
        after = [receipt_of(serving, span) for span in (by_table, reported, unpriced)]
        changed = after[0]
        assert (changed["cost_usd"], changed["confidence"], changed["price"]["source"]) == (
            "0.00256",
            "exact",
            before[0]["price"]["source"],
        )
        assert [line["unit"] for line in changed["lines"]] == ["as_priced_then"]
        assert "tables" in changed["note"]
        assert after[1:] == before[1:], "what was reported stays, and what was unpriced is not priced later"
        dear = sent_receipt(serving)
        assert (dear["cost_usd"], dear["confidence"]) == ("0.00064", "overridden")
        assert round(serving.metrics()["cost"]["total_usd"] * 1e9) == 2_560_000 + 500_000_000 + 640_000
    finally:
        serving.stop()
