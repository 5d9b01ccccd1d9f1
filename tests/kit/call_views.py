"""Every answer over HTTP that adds up calls, compared with a recount: to the nano-dollar and the token."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from itertools import count
from typing import Any
from urllib.parse import quote

from prometheus_client.parser import text_string_to_metric_families

from kit.call_recount import Call, Recount, Sums, grouped, nano_dollars, sums_of

#: The windows that are asked for.
WINDOWS = ("1h", "6h", "24h")
#: A trace without an id from its sender: cost, tokens, spans and unpriced spans of it.
Shape = tuple[int | None, int, int, int]


class Views:
    """
    The answers of one pipeline.

    Args:
        get: Path with its query -> the body of the answer, which must be 200.
        page: Number of traces on a page.
    """

    def __init__(self, get: Callable[[str], str], recount: Recount, *, page: int = 7) -> None:
        self._get, self._recount, self._page = get, recount, page

    def _ask(self, path: str) -> Any:
        return json.loads(self._get(path), parse_float=Decimal)

    def stored(self) -> Iterator[str]:
        """Yield a sentence for each number about traces, sessions and exported spans that differs."""
        yield from self._traces()
        yield from self._sessions()
        yield from self._export()

    # -- metrics

    def metrics(self) -> Iterator[str]:
        """Yield a sentence for each number of ``/metrics`` and ``/stats`` that differs."""
        for window in WINDOWS:
            for kind in ("", "all"):
                yield from self._window(window, kind)
        for key in ("user_id", "session_id"):
            yield from self._people(key)
        yield from self._stats()

    def _people(self, key: str) -> Iterator[str]:
        body = self._ask(f"/metrics?window=24h&groupby={key}")
        told = [call for call in self._recount.between(_second(body["from"]), _second(body["to"])) if key in call.span]
        # Someone whose calls are all roll-ups is not shown.
        groups = {
            value: wanted_sums(calls, "")
            for value, calls in grouped(told, lambda call: call.text(key)).items()
            if sums_of(calls).paid
        }
        shown = {value: _shown(group) for value, group in body[f"by_{key}"].items()}
        yield from differ(f"/metrics by {key}", shown, groups)
        for value, wanted in groups.items():
            one = self._ask(f"/metrics?window=24h&{key}={quote(value)}")
            if (one["from"], one["to"]) == (body["from"], body["to"]):
                yield from differ(f"/metrics of {key} {value}", _shown(one), wanted)

    def _window(self, window: str, kind: str) -> Iterator[str]:
        query = f"window={window}" + (f"&kind={kind}" if kind else "")
        body = self._ask(f"/metrics?{query}&groupby=model")
        where = f"/metrics?{query}"
        calls = self._recount.between(_second(body["from"]), _second(body["to"]))
        wanted = wanted_sums(calls, kind)
        yield from differ(where, _shown(body), wanted)
        models = grouped(calls, lambda call: call.text("model"))
        for model in {*models, *body["by_model"]}:
            shown = _shown(body["by_model"][model]) if model in body["by_model"] else NOTHING
            yield from differ(f"{where} {model}", shown, wanted_sums(models.get(model, ()), kind))
        by_model = {model: usd(value) for model, value in body["cost"]["by_model"].items()}
        listed = {model: wanted_sums(members, kind) for model, members in models.items() if sums_of(members).paid}
        if not any(listed.get("unknown", {}).get(name) for name in ("spans", "cost", "unpriced")):
            listed.pop("unknown", None)  # tools that name no model and cost nothing
        yield from differ(f"{where} cost.by_model", by_model, {model: sums["cost"] for model, sums in listed.items()})
        alone = self._ask(f"/metrics/cost?{query}")
        if (alone["from"], alone["to"]) == (body["from"], body["to"]):
            shown_alone = [usd(alone["total_usd"]), alone["unpriced_span_count"]]
            yield from differ(f"/metrics/cost?{query}", shown_alone, [wanted["cost"], wanted["unpriced"]])

    def _stats(self) -> Iterator[str]:
        body, wanted = self._ask("/stats"), sums_of(self._recount.counted)
        shown = [usd(body["total_cost_usd"]), *(body[f"total_{name}"] for name in ("spans", "tokens_in", "tokens_out"))]
        numbers = [wanted.cost or 0, wanted.spans, wanted.prompt or 0, wanted.completion or 0]
        yield from differ("/stats", shown, numbers)
        if "unpriced_span_count" in body:
            yield from differ("/stats unpriced", body["unpriced_span_count"], wanted.unpriced)
        operations = {name: counts["count"] for name, counts in body.get("by_operation", {}).items()}
        yield from differ(
            "/stats by_operation", operations, dict(Counter(call.span["name"] for call in self._recount.counted))
        )

    def prometheus(self) -> Iterator[str]:
        """Yield a sentence for each counter of ``/metrics/prometheus`` that differs."""
        samples: dict[str, Counter[str]] = {}
        for family in text_string_to_metric_families(self._get("/metrics/prometheus")):
            for sample in family.samples:
                # A counter is printed so that its digits are exact.
                value = nano_dollars(Decimal(repr(sample.value))) if "cost" in sample.name else int(sample.value)
                key = sample.labels.get("model", "") + sample.labels.get("token_type", "")
                samples.setdefault(sample.name, Counter())[key] += value
        recount = self._recount
        wanted: dict[str, Counter[str]] = {
            "tokentrace_repeated_spans_total": Counter({"": len(recount.repeated)}),
            "tokentrace_conflicting_spans_total": Counter({"": len(recount.conflicting)}),
            "tokentrace_conflicting_cost_total": Counter({"": sum(call.cost or 0 for call in recount.conflicting)}),
            "tokentrace_response_ids_reused_total": Counter({"": recount.reused}),
            "tokentrace_transport_sent_total": Counter({"": recount.reported}),
        }
        for model, calls in grouped(recount.counted, lambda call: call.text("model")).items():
            every, llm = sums_of(calls), sums_of(call for call in calls if call.kind == "llm")
            for name, number in (
                ("cost_total", every.cost),
                ("unpriced_spans_total", every.unpriced),
                ("spans_total", llm.spans),
                ("prompt_tokens_total", llm.prompt),
                ("completion_tokens_total", llm.completion),
            ):
                wanted.setdefault(f"tokentrace_{name}", Counter())[model] += number or 0
            tokens = wanted.setdefault("tokentrace_tokens_total", Counter())
            tokens[f"{model}prompt"] += llm.prompt or 0
            tokens[f"{model}completion"] += llm.completion or 0
        for name, by_model in wanted.items():
            # A series without anything to count need not be there.
            yield from differ(f"/metrics/prometheus {name}", +samples.get(name, Counter()), +by_model)

    # -- traces, sessions, export

    def _traces(self) -> Iterator[str]:
        shown = {trace["trace_id"]: trace for trace in self._pages()}
        told = grouped(self._recount.counted, lambda call: call.ids[0])
        made: Counter[Shape] = Counter()
        for trace, row in shown.items():
            shape = _shape_of(row)
            if trace in told:
                yield from differ(f"/traces {trace}", shape, _shape(told[trace]))
            elif shape[2]:
                made[shape] += 1
        yield from differ(
            "/traces without ids", made, Counter(_shape(told[trace]) for trace in told if _is_made(trace))
        )
        given = sorted(trace for trace in told if not _is_made(trace))
        yield from differ("/traces missing", sorted(set(given) - shown.keys()), [])
        for trace in given[:6]:
            yield from self._trace(trace, told[trace])

    def _pages(self) -> Iterator[Any]:
        cursor = ""
        for _ in count():
            page = self._ask(f"/traces?limit={self._page}" + (f"&cursor={quote(cursor)}" if cursor else ""))
            yield from page["traces"]
            cursor = page["next_cursor"]
            if not cursor:
                return

    def _trace(self, trace: str, calls: Sequence[Call]) -> Iterator[str]:
        body = self._ask(f"/traces/{trace}")
        yield from differ(f"/traces/{trace}", _shape_of(body), _shape(calls))
        counted = Counter(_row(span) for span in body["spans"] if span.get("counted", True))
        yield from differ(f"/traces/{trace} spans", counted, Counter(_told(call) for call in calls))
        later = Counter(_row(span) for span in body["spans"] if not span.get("counted", True))
        repeated = Counter(_told(call) for call in self._recount.repeated if call.ids[0] == trace)
        yield from differ(f"/traces/{trace} spans that do not count", later - repeated, Counter())
        conflicting = {_told(call) for call in self._recount.conflicting if call.ids[0] == trace}
        marked = {_row(span) for span in body["spans"] if span.get("conflicting")}
        yield from differ(f"/traces/{trace} conflicting", marked - conflicting, set())
        # Versions of a span are counted at the span, unless they are equal to one that counts.
        others = conflicting - {_told(call) for call in calls}
        for span in body["spans"]:
            versions = len({told for told in others if told[0] == span["span_id"]})
            if span.get("counted", True) and span.get("later_versions", 0) < versions:
                yield f"/traces/{trace} {span['span_id']}: {span.get('later_versions')} of {versions} later versions"

    def _sessions(self) -> Iterator[str]:
        sessions = {body["sessionId"]: body for body in self._ask("/api/sessions?limit=100")["sessions"]}
        told = grouped((call for call in self._recount.counted if "session_id" in call.span), _session)
        for session in {*told, *sessions}:
            calls = told.get(session, ())
            if session in sessions or calls:
                body = self._ask(f"/api/sessions/{quote(session)}/details") if calls else sessions[session]
                for where, own in ((f"session {session}", body), (f"listed session {session}", sessions.get(session))):
                    yield from differ(where, _session_numbers(own), _wanted_session(calls))
                summary = body["summary"]
                shown = [usd(summary["totalCost"]), summary["totalSpans"], *summary["totalTokens"].values()]
                yield from differ(f"summary of session {session}", shown, _wanted_session(calls)[:4])
        summary = self._ask("/api/sessions/summary")
        shown = [usd(summary["totalCost"]), *summary["totalTokens"].values(), summary.get("unpricedSpanCount")]
        wanted = _wanted_session([call for calls in told.values() for call in calls])
        yield from differ("/api/sessions/summary", shown, [wanted[0], *wanted[2:]])

    def _export(self) -> Iterator[str]:
        lines = self._get("/export?format=jsonl").splitlines()
        spans = [json.loads(line, parse_float=Decimal) for line in lines]
        ids = {call.ids for call in self._recount.counted}
        shown = Counter(_exported(span, (span["trace_id"], span["span_id"]) in ids) for span in spans)
        wanted = Counter((*_known_ids(call.ids), *_told(call)[1:]) for call in self._recount.counted)
        yield from differ("/export", shown, wanted)

    # -- rules

    def rules(self, rules: Iterable[Mapping[str, Any]], ask: Callable[[str], Any]) -> Iterator[str]:
        """
        Yield a sentence for each rule whose current value differs.

        Args:
            rules: The rules as they were written, each with a window of an hour.
            ask: Name of a rule -> its status, evaluated after everything was sent.
        """
        for rule in rules:
            status = ask(rule["name"])
            # A grouped rule without instances has no instant of its last evaluation.
            end = _second(status["last_evaluated"] or status["next_evaluation"])
            calls = self._recount.between(end - 3600, end)
            key = rule.get("group_by", "")
            if not key:
                yield from differ(
                    f"rule {rule['name']}", _value(rule, status["current_value"]), rule_value(rule, calls)
                )
                continue
            name = key.removeprefix("attr.")
            groups = grouped([c for c in calls if name == "model" or name in c.span], partial(Call.text, name=name))
            wanted = {group: rule_value(rule, of) for group, of in groups.items() if sums_of(of).paid}
            shown = {each["group"]: _value(rule, each["current_value"]) for each in status["instances"]}
            yield from differ(f"rule {rule['name']}", shown, wanted)


NOTHING: dict[str, Any] = {
    "cost": None,
    "unpriced": 0,
    "spans": 0,
    "prompt": None,
    "completion": None,
    "total": None,
}


def differ(where: str, shown: object, wanted: object) -> Iterator[str]:
    """Yield a sentence if *shown* is not *wanted*."""
    if shown != wanted:
        yield f"{where}: shown {shown}, recounted {wanted}"


def usd(value: Any) -> int | None:
    """Return dollars, as they stand in JSON, in nano-dollars."""
    return None if value is None else nano_dollars(value)


def _second(instant: str) -> int:
    return int(datetime.fromisoformat(instant).timestamp())


def _shown(body: Mapping[str, Any]) -> dict[str, Any]:
    cost, tokens = body["cost"], body["tokens"]
    return {
        "cost": usd(cost["total_usd"]),
        "unpriced": cost["unpriced_span_count"],
        "spans": body["span_count"],
        "prompt": tokens["prompt_total"],
        "completion": tokens["completion_total"],
        "total": tokens["total"],
    }


def wanted_sums(calls: Sequence[Call], kind: str) -> dict[str, Any]:
    """Return the numbers that must be shown of *calls*; *kind* is ``all`` or "" as in a query."""
    every = sums_of(calls)
    own: Sums = every if kind == "all" else sums_of(call for call in calls if call.kind == "llm")
    return {
        "cost": every.cost,
        "unpriced": every.unpriced,
        "spans": own.spans,
        "prompt": own.prompt,
        "completion": own.completion,
        "total": own.total,
    }


def _is_made(trace: str) -> bool:
    return trace.startswith("made")


def _stored_cost(sums: Sums) -> int | None:
    """Return the cost as traces and sessions show it: 0 if nothing in them costs money."""
    return sums.cost if sums.paid else 0


def _shape(calls: Sequence[Call]) -> Shape:
    sums = sums_of(calls)
    return _stored_cost(sums), sums.total or 0, sums.spans, sums.unpriced


def _shape_of(body: Mapping[str, Any]) -> Shape:
    return usd(body["total_cost_usd"]), body["total_tokens"], body["span_count"], body["unpriced_span_count"]


def _told(call: Call) -> tuple[Any, ...]:
    return call.ids[1], call.kind, call.cost, *(call.tokens(name) for name in ("prompt_tokens", "comp_tokens"))


def _row(span: Mapping[str, Any]) -> tuple[Any, ...]:
    return span["span_id"], span["kind"], usd(span["cost_usd"]), span["prompt_tokens"], span["comp_tokens"]


def _known_ids(ids: tuple[str, str]) -> tuple[str, str]:
    return ("", "") if _is_made(ids[0]) else ids


def _exported(span: Mapping[str, Any], is_given: bool) -> tuple[Any, ...]:
    return *((span["trace_id"], span["span_id"]) if is_given else ("", "")), *_row(span)[1:]


def _session(call: Call) -> str:
    return str(call.span["session_id"])


def _wanted_session(calls: Sequence[Call]) -> list[int | None]:
    sums = sums_of(calls)
    return [_stored_cost(sums), sums.spans, sums.prompt or 0, sums.completion or 0, sums.unpriced]


def _session_numbers(body: Mapping[str, Any] | None) -> list[int | None]:
    if body is None:
        return []
    names = ("totalSpans", "totalInputTokens", "totalOutputTokens", "unpricedSpanCount")
    return [usd(body["totalCostUSD"]), *(body.get(name) for name in names)]


def _value(rule: Mapping[str, Any], value: Any) -> int | None:
    return usd(value) if value is None or rule["metric"] == "total_cost" else int(value)


def rule_value(rule: Mapping[str, Any], calls: Iterable[Call]) -> int | None:
    """Return the value that *rule* must have over *calls*: nano-dollars or tokens."""
    if rule["metric"] == "total_cost":
        return sums_of(calls).cost
    kind = rule.get("filter", {}).get("kind", "llm")
    return sums_of(call for call in calls if call.kind == kind).total
