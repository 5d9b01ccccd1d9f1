"""The definition of a rule that the API shows: it holds no secret, and sent back it is the same rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.errors import Rejected
from tokentrace_alerter.definitions import HIDDEN, as_written, completed, shown
from tokentrace_alerter.rules import parse_rule

_DURATIONS = st.sampled_from(["1s", "90s", "5m", "1h", "2h30m", "7d"])
_WEBHOOK = {"type": "webhook", "url": "https://user:geheim@hooks.example.com/geheim?key=geheim"}
_DELIVERIES = st.one_of(
    st.none(),
    st.just({"type": "stdout", "send_resolved": True}),
    st.just({"type": "alertmanager", "url": "http://am:9093", "timeout": "2s"}),
    st.just({"type": "custom", "target": "package.module:name", "max_retries": 3}),
    st.fixed_dictionaries(
        {key: st.just(value) for key, value in _WEBHOOK.items()},
        optional={
            "secret": st.just("geheim-key"),
            "headers": st.just({"Authorization": "Bearer geheim", "X-Team": "geheim"}),
            "format": st.just("alertmanager"),
            "send_resolved": st.booleans(),
            "timeout": st.just("1s"),
        },
    ),
)
_RULES = st.fixed_dictionaries(
    {
        "name": st.just("slow"),
        "metric": st.just("total_cost"),
        "op": st.sampled_from(["gt", "<="]),
        "threshold": st.floats(-1e6, 1e6),
        "window": _DURATIONS,
    },
    optional={
        "eval_interval": _DURATIONS,
        "cooldown": _DURATIONS,
        "for": _DURATIONS,
        "level": st.sampled_from(["warning", "critical"]),
        "filter": st.dictionaries(st.sampled_from(["model", "attr.team"]), st.text(max_size=5)),
        "group_by": st.sampled_from(["", "user_id", "attr.team"]),
        "min_spans": st.integers(0, 100),
        "no_data": st.sampled_from(["ignore", "fire", "keep"]),
        "unpriced": st.sampled_from(["ignore", "fire"]),
        "change": st.sampled_from([None, "absolute", "percent"]),
        "silenced": st.booleans(),
        "delivery": _DELIVERIES,
    },
)


@given(_RULES)
def test_a_rule_of_the_file_is_shown_as_it_could_be_written(rule: dict[str, Any]) -> None:
    compiled = parse_rule(rule, "rule")
    assert parse_rule(as_written(compiled), "rule") == compiled


@given(_RULES)
def test_what_is_shown_has_no_secret_and_sent_back_means_the_same_rule(rule: dict[str, Any]) -> None:
    for written in (rule, as_written(parse_rule(rule, "rule"))):
        safe, hidden = shown(written)
        assert "geheim" not in repr(safe)
        full = completed(safe, written)
        assert isinstance(full, dict)
        assert parse_rule(full, "rule") == parse_rule(rule, "rule")
        assert bool(hidden) == ("geheim" in repr(written))


@pytest.mark.parametrize(
    ("change", "before", "error"),
    [
        ({"url": "https://evil.example.com/x"}, True, "rule.delivery.secret: <hidden> stands for the value kept"),
        (
            {"url": "https://hooks.example.com/..."},
            False,
            "rule.delivery.url: 'https://hooks.example.com/...' is",
        ),
        ({"headers": {"X-New": HIDDEN}}, True, "rule.delivery.headers.X-New: <hidden> stands for a kept value, and"),
        (
            {"url": "https://hooks.example.com/other", "secret": "new", "headers": {"X-Team": HIDDEN}},
            True,
            "rule.delivery.headers.X-Team: <hidden> stands for the value kept for another URL",
        ),
    ],
)
def test_a_secret_is_kept_for_its_own_url_only(change: dict[str, Any], before: bool, error: str) -> None:
    rule = {"name": "slow", "delivery": {**_WEBHOOK, "secret": "geheim", "headers": {"X-Team": "geheim"}}}
    safe, _ = shown(rule)
    sent = {**safe, "delivery": {**safe["delivery"], **change}}
    with pytest.raises(Rejected) as caught:
        completed(sent, rule if before else None)
    assert str(caught.value).startswith(error)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("sent", [None, 5, [], {}, {"delivery": None}, {"delivery": "x"}, {"delivery": {"url": 5}}])
def test_what_is_no_rule_is_left_to_the_schema(sent: object) -> None:
    assert completed(sent, {"delivery": _WEBHOOK}) == sent
