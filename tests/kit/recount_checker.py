"""Queries to the routes of metrics, and comparisons of their answers with a recount of the spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from kit.recount_numbers import (
    DISTRIBUTIONS,
    GROUP_RECOUNTS,
    SCALARS,
    SPLIT_RECOUNTS,
    Mean,
    Number,
    Quantile,
    Spans,
    Sum,
    assert_number,
    assert_quantile,
    custom_number,
    event_s,
    has_costs,
    if_any,
    partly_priced,
    ratio,
    split_by_time,
    split_by_use,
    total_cost,
    unpriced,
    value_of,
)
from kit.recount_parts import (
    CONTRIBUTING,
    MONEY,
    SHOWN_BY,
    assert_groups,
    assert_not_priced,
    contributing,
    custom_values,
    has_calls,
    is_shown,
    left_out,
    shown_groups,
)
from kit.recount_services import MetricsServices
from kit.recount_world import DAY, DIMENSIONS, EXACT_UP_TO, HOUR, LARGEST_ERROR, SECOND
from tokentrace.metrics import ALIASES
from tokentrace.records import Span


class Ask(NamedTuple):
    """The parameters of a query; *groupby* is written as in the URL."""

    window: str = "1h"
    kind: str = ""
    filters: Mapping[str, str] = {}
    attributes: Mapping[str, str] = {}
    groupby: str = ""

    @property
    def by_attribute(self) -> bool:
        return bool(self.groupby) and self.groupby not in DIMENSIONS

    @property
    def key(self) -> str:
        return self.groupby.removeprefix("attr.")

    def parameters(self, *, groupby: bool = True) -> dict[str, str]:
        """Return the query parameters of the URL."""
        known = {"window": self.window, "kind": self.kind, "groupby": self.groupby if groupby else "", **self.filters}
        attributes = {f"attr.{key}": value for key, value in self.attributes.items()}
        return {name: value for name, value in known.items() if value} | attributes


WINDOWS = {
    "1s": 1,
    "10s": 10,
    "1m30s": 90,
    "20m": 1200,
    "1h": HOUR,
    "2h30m": 9000,
    "6h": 6 * HOUR,
    "24h": DAY,
    "36h1s": 36 * HOUR + 1,
    "7d": 7 * DAY,
    "8d": 8 * DAY,
    "30d": 30 * DAY,
    "31d": 31 * DAY,
    "60d": 60 * DAY,
}
KINDS_ASKED = st.sampled_from(["", "", "", "all", "llm", "tool", "embedding", "agent"])
GROUP_ATTRIBUTES = ("step", "attr.step", "n", "x", "attr.flag", "deep.n", "attr.deep", "attr.model", "k/e~y", "nowhere")
FILTERS: Sequence[dict[str, str]] = (
    {},
    {"model": "gpt-4o"},
    {"model": "größer/x y"},
    {"provider": "unknown", "status": "ok"},
    {"caller": "a"},
    {"name": "x", "status": "error"},
    {"model": "unknown"},
    {"caller": "absent"},
)
ATTRIBUTE_FILTERS: Sequence[dict[str, str]] = (
    {},
    {"step": "plan"},
    {"n": "3"},
    {"n": str(2**64 - 1)},
    {"x": "0.1"},
    {"x": "1.5e-9"},
    {"flag": "true"},
    {"deep.n": "5"},
    {"deep.n": "text", "flag": "false"},
    {"model": "mine"},
    {"k/e~y": "a"},
    {"nowhere": "1"},
)
ASKS = st.builds(
    Ask,
    window=st.sampled_from(list(WINDOWS)),
    kind=KINDS_ASKED,
    filters=st.sampled_from([{}, *FILTERS]),
    attributes=st.sampled_from([{}, {}, *ATTRIBUTE_FILTERS]),
    groupby=st.one_of(st.just(""), st.sampled_from(DIMENSIONS), st.sampled_from(GROUP_ATTRIBUTES)),
)
ATTRIBUTE_METRICS = ("x", "n", "deep.n", "flag", "step", "nowhere")


def instant_s(text: str) -> int:
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp())


class Truth:
    """The spans that the answer to *ask* must count, from *from_s* to *to_s*: all of them, by model and by group."""

    def __init__(self, services: MetricsServices, ask: Ask, from_s: int, to_s: int) -> None:
        self.services, self.ask, self.from_s = services, ask, from_s
        self._window = [span for span in services.world.spans if from_s <= event_s(span) < to_s]
        self._kept = [span for span in self._window if span.arrived_ns >= services.now_ns - services.keep_s * SECOND]
        self.total = split_by_use(self.matching(stored=bool(ask.attributes)), ask.kind)
        self.models = self._split(self.matching(stored=bool(ask.attributes)), "model", is_attribute=False)
        self.groups = self.by(ask.key, is_attribute=ask.by_attribute) if ask.groupby else {}

    def matching(self, *, stored: bool) -> list[Span]:
        """Return the spans that pass every filter; with *stored* only those that the store keeps."""
        ask = self.ask
        return [
            span
            for span in (self._kept if stored else self._window)
            if all(value_of(span, key, is_attribute=False) == value for key, value in ask.filters.items())
            and all(value_of(span, key, is_attribute=True) == value for key, value in ask.attributes.items())
        ]

    def by(self, key: str, *, is_attribute: bool) -> dict[str, Spans]:
        """Return value of *key* -> its spans; spans without the attribute are left out."""
        matching = self.matching(stored=is_attribute or bool(self.ask.attributes))
        return self._split(matching, key, is_attribute=is_attribute)

    def _split(self, spans: Iterable[Span], key: str, *, is_attribute: bool) -> dict[str, Spans]:
        groups: dict[str, list[Span]] = {}
        for span in spans:
            value = value_of(span, key, is_attribute=is_attribute)
            if value is not None:
                groups.setdefault(value, []).append(span)
        return {value: split_by_use(members, self.ask.kind) for value, members in groups.items()}

    def error(self, name: str, body: Mapping[str, Any], groups: Mapping[str, Spans]) -> float:
        """
        Return the error of quantiles that *body* states, after checking it; without quantiles, return LARGEST_ERROR.

        The error must be 0 if no distribution has over 100 values.
        """
        values_of = next((take for start, take in DISTRIBUTIONS.items() if f"{name}$".startswith(start)), None)
        if values_of is None:
            assert "quantile_error" not in body
            return LARGEST_ERROR
        error = float(body["quantile_error"])
        assert 0 <= error <= LARGEST_ERROR
        if all(len(values) <= EXACT_UP_TO for of in (self.total, *groups.values()) for values in values_of(of)):
            assert error == 0, name
        return error


def assert_all(got: Mapping[str, Any], want: Mapping[str, Number], error: float, where: object) -> None:
    for name, number in want.items():
        assert_number(got[name], number, error, (where, name))


class Checker:
    """Checks of the answers to one query; each method sends it to one route and compares the answer with a recount."""

    def __init__(self, services: MetricsServices, ask: Ask) -> None:
        self.services, self.ask = services, ask
        self._truths: dict[tuple[int, int], Truth] = {}

    def truth(self, body: Mapping[str, Any], *, stored: bool | None = None) -> Truth:
        """
        Return the expected answer over the interval of *body*, after checking the interval and ``since``.

        The interval must contain the requested one and may be longer by 1 % or 1 s.

        Args:
            stored: The groups come from stored spans; None = they do if they use attributes. With filters on attributes
                everything does.
        """
        ask, services = self.ask, self.services
        from_s, to_s = instant_s(body["from"]), instant_s(body["to"])
        now_s, length_s = services.world.now_s, min(WINDOWS[ask.window], 31 * DAY)
        assert to_s == now_s + 1
        assert now_s - length_s - max(1, length_s / 100) <= from_s <= now_s - length_s
        since_s = 0
        if WINDOWS[ask.window] > 31 * DAY:
            since_s = now_s - 31 * DAY
        if ask.attributes or (ask.by_attribute if stored is None else stored):
            kept_s = (services.now_ns - services.keep_s * SECOND) // SECOND
            since_s = max(since_s, kept_s) if kept_s > from_s else since_s
        assert body["since"] is None if not since_s else abs(instant_s(body["since"]) - since_s) <= 1
        assert body.get("window", ask.window) == ask.window
        if (from_s, to_s) not in self._truths:
            self._truths[from_s, to_s] = Truth(services, ask, from_s, to_s)
        return self._truths[from_s, to_s]

    def everything(self) -> None:
        """Check GET /metrics."""
        ask, body = self.ask, self.services.get("/metrics", self.ask.parameters())
        truth, world = self.truth(body), self.services.world
        assert body["span_count"] == len(truth.total.calls)
        self._assert_everything(body, truth.total, ask)
        self._assert_models(body["cost"], truth, body)
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                assert got["span_count"] == len(of.calls), where
                self._assert_everything(got, of, where)

            got = body[f"by_{ask.key}"]
            assert_groups(got, shown_groups(truth.groups, got, body, ask.key), is_shown, check, ask)
        totals = {"sent": world.sent, "failed": world.failed, "dropped": world.dropped, "queue_depth": world.waiting}
        assert body["transport"] == totals
        assert body["alerts"] == {"firings": {}, "delivery_failed": {}}

    def _assert_everything(self, got: Any, of: Spans, where: object) -> None:
        for name, recount in GROUP_RECOUNTS.items():
            assert_all(got[name], recount(of), LARGEST_ERROR, (where, name))
        for custom in self.services.customs:
            assert_number(got[custom["name"]], custom_number(custom, custom_values(custom, of)), LARGEST_ERROR, custom)

    def _assert_models(self, got: Any, truth: Truth, body: Mapping[str, Any]) -> None:
        """Check the numbers by model; ``unknown`` is left out if it has neither costs nor calls."""
        where, models = self.ask, shown_groups(truth.models, got["by_model"], body, "model")
        named = {value: of for value, of in models.items() if value != "unknown" or of.calls or has_costs(of)}
        assert_groups(
            got["by_model"],
            named,
            lambda of: bool(of.paid),
            lambda value, of, at: assert_number(value, Sum(total_cost(of)), 0, at),
            where,
        )
        counts = {
            value: {"unpriced_span_count": unpriced(of), "partly_priced_span_count": partly_priced(of)}
            for value, of in models.items()
            if unpriced(of) or partly_priced(of)
        }
        assert got["unpriced_by_model"] == counts, where

    def scalar(self, name: str) -> None:
        """Check GET /metrics/{name} of a metric that is a number."""
        ask, recount = self.ask, SCALARS[ALIASES.get(name, name)]
        body = self.services.get(f"/metrics/{name}", ask.parameters())
        truth, canonical = self.truth(body), ALIASES.get(name, name)
        assert body["metric"] == canonical
        number, contributing = recount(truth.total)
        groups = shown_groups(truth.groups, body.get(f"by_{ask.key}", {}), body, ask.key)
        error = truth.error(canonical, body, groups)
        assert_number(body["value"], number, error, (ask, name))
        assert body["span_count"] == len(contributing), (ask, name)
        if canonical in MONEY:
            assert_not_priced(body, MONEY[canonical](truth.total), (ask, name))
            if ask.groupby:
                self._assert_not_priced_by(body, {at: MONEY[canonical](of) for at, of in groups.items()})
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                assert_number(got, recount(of)[0], error, where)

            assert_groups(body[f"by_{ask.key}"], groups, is_shown, check, (ask, name))

    def group(self, name: str) -> None:
        """Check GET /metrics/{name} of a group of metrics."""
        ask, recount = self.ask, GROUP_RECOUNTS[name]
        body = self.services.get(f"/metrics/{name}", ask.parameters())
        truth = self.truth(body)
        groups = shown_groups(truth.groups, body.get(f"by_{ask.key}", {}), body, ask.key)
        error = truth.error(name, body, groups)
        counted = {"cost": truth.total.paid, "tokens": truth.total.spent}.get(name, truth.total.calls)
        assert body["span_count"] == len(counted)
        if name == "cost" or not ask.groupby:
            assert_all(body, recount(truth.total), error, (ask, name))
        if name == "cost" and ask.key != "model":
            self._assert_models(body, truth, body)
        if ask.groupby:

            def check(got: Any, of: Spans, where: object) -> None:
                if name == "cost":
                    assert_number(got, Sum(total_cost(of)), 0, where)
                else:
                    assert_all(got, recount(of), error, where)

            assert_groups(body[f"by_{ask.key}"], groups, SHOWN_BY.get(name, has_calls), check, (ask, name))
            if name == "cost":
                self._assert_not_priced_by(body, {value: of.paid for value, of in groups.items()})
        self._assert_exemplars(name, body, truth)

    def _assert_not_priced_by(self, body: Mapping[str, Any], groups: Mapping[str, Sequence[Span]]) -> None:
        want = {value: left_out(spans) for value, spans in groups.items() if any(left_out(spans).values())}
        assert body[f"unpriced_by_{self.ask.key}"] == want, self.ask

    def _assert_exemplars(self, name: str, body: Mapping[str, Any], truth: Truth) -> None:
        """Check that exemplars have the largest values and different traces; a slow search may find none."""
        if name not in ("cost", "latency") or not body["exemplars"]:
            return
        stored = split_by_use(truth.matching(stored=True), self.ask.kind)
        field, unit, shown = ("cost_nusd", 10**9, "cost_usd") if name == "cost" else ("latency_ns", 10**6, "latency_ms")
        largest: dict[str, int] = {}
        for span in stored.paid if name == "cost" else stored.calls:
            largest[span.trace_id] = max(largest.get(span.trace_id, 0), getattr(span, field) or 0)
        ranked = sorted((value for value in largest.values() if value), reverse=True)[:3]
        assert [exemplar[shown] for exemplar in body["exemplars"]] == [value / unit for value in ranked]
        assert [largest[exemplar["trace_id"]] for exemplar in body["exemplars"]] == ranked

    def split(self, name: str, key: str = "") -> None:
        """Check GET /metrics/{name} of a breakdown; *key* is the attribute of one that has no dimension."""
        ask = self.ask._replace(groupby="")
        dimension, recount = SPLIT_RECOUNTS[name]
        body = self.services.get(f"/metrics/{name}", ask.parameters() | ({"key": key} if key else {}))
        truth = self.truth(body, stored=not dimension)
        groups = truth.by(dimension or key.removeprefix("attr."), is_attribute=not dimension)
        groups = shown_groups(groups, body["value"], body, dimension)
        error = truth.error(name, body, groups)
        assert body["value"] == body[f"by_{dimension or key.removeprefix('attr.')}"]
        family = name.partition("_")[0]
        assert body["span_count"] == sum(len(CONTRIBUTING[family](of)) for of in groups.values())
        if family == "cost":
            listed = [span for of in groups.values() for span in of.paid]
            assert_not_priced(body, listed, (ask, name))

        def check(got: Any, of: Spans, where: object) -> None:
            want = recount(of)
            assert want is not None, where
            if isinstance(want, dict):
                assert_all(got, want, error, where)
            else:
                assert_number(got, want, error, where)

        assert_groups(
            body["value"], groups, lambda of: is_shown(of) and recount(of) is not None, check, (ask, name, key)
        )

    def attribute(self, key: str) -> None:
        """Check GET /metrics/attr.<key>, whose numbers come from stored spans and are exact."""
        ask = self.ask
        body = self.services.get(f"/metrics/attr.{key}", ask.parameters())
        truth = self.truth(body, stored=True)
        custom = {"type": "p95", "field": f"attr.{key}"}
        matching = split_by_use(truth.matching(stored=True), ask.kind)
        self._assert_tally(body, custom_values(custom, matching), (ask, key))
        if ask.groupby:
            groups = truth._split(truth.matching(stored=True), ask.key, is_attribute=ask.by_attribute)
            assert_groups(
                body[f"by_{ask.key}"],
                groups,
                lambda of: bool(custom_values(custom, of)),
                lambda got, of, where: self._assert_tally(got, custom_values(custom, of), where),
                (ask, key),
            )

    @staticmethod
    def _assert_tally(got: Mapping[str, Any], values: Sequence[int], where: object) -> None:
        assert got["count"] == len(values), where
        assert_number(got["sum"], if_any(values, Fraction(sum(values), 10**9)), 0, where)
        assert_number(got["avg"], Mean(ratio(sum(values), 10**9 * len(values))), 0, where)
        for name, q in (("p50", 0.5), ("p95", 0.95)):
            assert_quantile(got[name], Quantile(values, q, 10**9), 0.0, where)

    def custom(self, custom: Mapping[str, Any]) -> None:
        """Check GET /metrics/{name} of the custom metric *custom*."""
        ask, name = self.ask, custom["name"]
        body = self.services.get(f"/metrics/{name}", ask.parameters())
        truth = self.truth(body)
        values = custom_values(custom, truth.total)
        assert_number(body["value"], custom_number(custom, values), LARGEST_ERROR, (ask, custom))
        assert body["span_count"] == len(values)
        if ask.groupby:
            got = body[f"by_{ask.key}"]
            assert_groups(
                got,
                shown_groups(truth.groups, got, body, ask.key),
                lambda of: bool(custom_values(custom, of)),
                lambda got, of, at: assert_number(
                    got, custom_number(custom, custom_values(custom, of)), LARGEST_ERROR, at
                ),
                (ask, custom),
            )

    def transport(self) -> None:
        """Check the totals of reporters and alerts, which do not depend on the window."""
        world = self.services.world
        totals = {"sent": world.sent, "failed": world.failed, "dropped": world.dropped, "queue_depth": world.waiting}
        for name, value in totals.items():
            assert self.services.get(f"/metrics/transport_{name}", self.ask.parameters())["value"] == value
        for name in ("alert_firings", "alert_delivery_failed"):
            assert self.services.get(f"/metrics/{name}", {}) == {"metric": name, "value": 0, "by_rule": {}}

    def series(self, name: str, step_s: int) -> None:
        """
        Check GET /metrics/{name}/series.

        Every point equals the recount over its step, and the points of an additive metric add up to the value of the
        whole window.
        """
        ask, customs = self.ask, {custom["name"]: custom for custom in self.services.customs}
        body = self.services.get(f"/metrics/{name}/series", ask.parameters() | {"step": f"{step_s}s"})
        truth = self.truth(body)
        from_s, to_s = instant_s(body["from"]), instant_s(body["to"])
        starts = [from_s, *range((from_s // step_s + 1) * step_s, to_s, step_s)]
        wholes = {"": body["points"], **(body.get(f"by_{ask.groupby}") or {})}
        by_value = shown_groups(truth.groups, wholes, body, ask.key)
        groups = {"": truth.total, **by_value}
        missing = {
            value
            for value, of in by_value.items()
            if (custom_values(customs[name], of) if name in customs else is_shown(of))
        } - set(wholes)
        assert not missing, (ask, name, missing)
        for value, points in wholes.items():
            assert [instant_s(point["at"]) for point in points] == starts
            steps = split_by_time(groups[value], [*starts, to_s])
            for point, of, (start_s, end_s) in zip(points, steps, pairwise([*starts, to_s]), strict=True):
                where = (ask, name, value, point["at"])
                assert point["span_count"] == len(contributing(name, of, customs)), where
                if name in MONEY:
                    assert_not_priced(point, MONEY[name](of), where)
                whole = end_s - start_s == step_s and end_s <= self.services.world.now_s
                since_s = instant_s(body["since"]) if body["since"] else 0
                assert point.get("partial", False) == (not whole or start_s < since_s), where
                # The values of a point may be rounded, so the largest error is allowed.
                error = LARGEST_ERROR
                if name in GROUP_RECOUNTS:
                    want = GROUP_RECOUNTS[name](of)
                elif name in customs:
                    want = {"value": custom_number(customs[name], custom_values(customs[name], of))}
                else:
                    want = {"value": SCALARS[name](of)[0]}
                shown = point["value"] if name in GROUP_RECOUNTS else point
                for key, number in want.items():
                    if isinstance(number, Quantile):
                        assert_quantile(shown[key], number, error, where)
                    else:
                        assert_number(shown[key], number, error, where)
        self._assert_adds_up(name, body, ask)

    def _assert_adds_up(self, name: str, body: Mapping[str, Any], ask: Ask) -> None:
        """Check that the points of an additive metric add up exactly to the value of the window."""
        unit = additive_unit(name, self.services.customs)
        if unit is None:
            return
        whole = self.services.get(f"/metrics/{name}", ask.parameters())
        assert (whole["from"], whole["to"]) == (body["from"], body["to"])
        pairs = [(body["points"], whole["value"])]
        if ask.groupby:
            shown = whole[f"by_{ask.groupby}"]
            pairs += [(points, shown[value]) for value, points in body[f"by_{ask.groupby}"].items()]
        for points, total in pairs:
            parts = [point["value"] for point in points if point["value"] is not None]
            assert (total is None) == (not parts)
            # Below 2**53 a float is an exact integer.
            if parts and max(abs(total), *map(abs, parts)) * unit < 2**52:
                assert sum(round(Fraction(part) * unit) for part in parts) == round(Fraction(total) * unit), (ask, name)


def additive_unit(name: str, customs: Sequence[Mapping[str, Any]]) -> int | None:
    """Return how many integers make one unit of an additive metric; None for other metrics."""
    if name == "total_cost":
        return 10**9
    if name in ("span_count", "prompt_tokens", "completion_tokens", "total_tokens", "error_count", "timeout_count"):
        return 1
    custom = next((metric for metric in customs if metric["name"] == name), None)
    if custom is None or custom["type"] not in ("sum", "count"):
        return None
    return 1 if custom["type"] == "count" else 10**9
