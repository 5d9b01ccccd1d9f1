"""Requests about rules, and the answers to these requests: the documented JSON, and the refusal of other payloads."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokentrace.errors import Rejected
from tokentrace.records import (
    AlertAnswer,
    AlertRequest,
    CreateRule,
    DeleteRule,
    ListRules,
    PreviewRule,
    RuleDefinition,
    RuleSeries,
    RuleSilences,
    SilenceRule,
    decode_alert_answer,
    decode_alert_request,
    encode_alert_answer,
    encode_alert_request,
)

REQUESTS: list[tuple[AlertRequest, dict[str, Any]]] = [
    (ListRules(), {"ask": "list"}),
    (CreateRule({"name": "a", "threshold": 5}), {"ask": "create", "rule": {"name": "a", "threshold": 5}}),
    (DeleteRule("ü / b"), {"ask": "delete", "name": "ü / b"}),
    (PreviewRule({"name": "a"}, 5), {"ask": "preview", "rule": {"name": "a"}, "window_ns": 5}),
    (RuleSeries("a", 5), {"ask": "series", "name": "a", "window_ns": 5}),
    (RuleSeries("a", 5, 9), {"ask": "series", "name": "a", "window_ns": 5, "to_ns": 9}),
    (RuleDefinition("a"), {"ask": "definition", "name": "a"}),
    (RuleSilences("a"), {"ask": "silences", "name": "a"}),
    (SilenceRule("a", "2h"), {"ask": "silence", "name": "a", "duration": "2h", "by": "", "comment": ""}),
]


@pytest.mark.parametrize(("request_", "form"), REQUESTS, ids=[form["ask"] for _, form in REQUESTS])
def test_a_request_has_the_documented_json_and_survives_a_round_trip(
    request_: AlertRequest, form: dict[str, Any]
) -> None:
    assert json.loads(encode_alert_request(request_)) == form
    assert decode_alert_request(json.dumps(form).encode()) == request_


def test_an_empty_payload_is_a_request_for_the_list() -> None:
    assert decode_alert_request(b"") == ListRules()


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (b"rubbish", "request"),
        (b"[]", "request"),
        (b"{}", "request"),
        (b'{"ask":"explode"}', "ask"),
        (b'{"ask":3}', "ask"),
        (b'{"ask":"silence","name":"a","duration":5}', "duration"),
        (b'{"ask":"delete","name":null}', "name"),
    ],
)
def test_an_invalid_request_is_refused_with_its_key(payload: bytes, key: str) -> None:
    with pytest.raises(Rejected, match=rf"^{key}: "):
        decode_alert_request(payload)


def test_an_answer_has_a_status_and_a_body_and_survives_a_round_trip() -> None:
    answer = AlertAnswer(200, [{"name": "a"}])
    assert json.loads(encode_alert_answer(answer)) == {"status": 200, "body": [{"name": "a"}]}
    assert decode_alert_answer(encode_alert_answer(answer), ListRules()) == answer


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (ListRules(), b"rubbish"),
        (ListRules(), b'{"status":200,"body":3}'),
        (ListRules(), b'{"status":200,"body":[{"no name":1}]}'),
        (DeleteRule("a"), b'{"status":404,"body":"text"}'),
        (DeleteRule("a"), b'{"status":99,"body":null}'),
        (DeleteRule("a"), b'{"body":null}'),
    ],
)
def test_an_answer_of_another_form_is_refused(request_: AlertRequest, payload: bytes) -> None:
    with pytest.raises(Rejected, match=r"^answer: "):
        decode_alert_answer(payload, request_)
