"""The login of browsers on real servers: one cookie for every route, on all replicas, and for no foreign page."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.pipeline import Answer, Pipeline, http

TOKEN = "the-token"
JSON = {"Content-Type": "application/json"}
SPAN = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1}
RULE = {"name": "spend", "metric": "total_cost", "op": "gt", "threshold": 1, "window": "1h"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("login"), env={"TOKENTRACE_AUTH_TOKEN": TOKEN})
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


def log_in(serving: Pipeline, token: str = TOKEN) -> Answer:
    return serving.post("/session", {"token": token}, {"Origin": serving.url})


def cookie_of(serving: Pipeline) -> str:
    answer = log_in(serving)
    assert answer.status == 200, answer.body
    return answer.headers["set-cookie"].partition(";")[0]


def test_the_cookie_works_on_every_route_as_the_token_does(serving: Pipeline) -> None:
    cookie = {"Cookie": cookie_of(serving)}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    paths = http("GET", serving.url + "/openapi.json", headers=bearer).json()["paths"]
    asked = 0
    for path, item in paths.items():
        # A tail does not end.
        if "get" in item and path != "/traces/tail":
            url = serving.url + re.sub(r"\{\w+\}", "absent", path)
            with_cookie, with_token = (http("GET", url, headers=headers) for headers in (cookie, bearer))
            assert with_cookie.status == with_token.status, path
            asked += with_token.status == 200 and http("GET", url).status == 401
    assert asked > 10


def test_a_cookie_changes_something_only_with_the_origin_of_the_server(serving: Pipeline) -> None:
    cookie = {"Cookie": cookie_of(serving)}
    for origin in ({}, {"Origin": "http://127.0.0.1:1"}, {"Origin": "null"}):
        assert serving.post("/alerts", RULE, {**cookie, **origin}).status == 403
        assert http("DELETE", serving.url + "/alerts/spend", headers={**cookie, **origin}).status == 403
    own = {**cookie, "Origin": serving.url}
    assert serving.post("/alerts", RULE, own).status == 201
    assert http("DELETE", serving.url + "/alerts/spend", headers=own).status in (200, 204)
    assert serving.post("/spans", SPAN, own).status == 202


def test_a_login_without_the_token_an_origin_or_json_sets_no_cookie(serving: Pipeline) -> None:
    own = {"Origin": serving.url}
    refused = {
        401: log_in(serving, "wrong"),
        403: serving.post("/session", {"token": TOKEN}),
        400: serving.post("/session", b"[]", own),
        415: serving.post("/session", {"token": TOKEN}, {**own, "Content-Type": "text/plain"}),
        413: serving.post("/session", {"token": "x" * 9000}, own),
    }
    for status, answer in refused.items():
        assert answer.status == status, answer.body
        assert "set-cookie" not in answer.headers
        assert answer.json()["error"]
    foreign = serving.post("/session", {"token": TOKEN}, {"Origin": "http://127.0.0.1:1"})
    assert (foreign.status, "set-cookie" in foreign.headers) == (403, False)


def test_logging_out_removes_the_cookie(serving: Pipeline) -> None:
    answer = http("DELETE", serving.url + "/session", headers={"Origin": serving.url})
    assert answer.status == 204
    assert answer.headers["set-cookie"].startswith(f"tokentrace-{serving.port}=; Max-Age=0; Path=/; HttpOnly")


def test_a_login_survives_a_restart_but_no_other_token(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, env={"TOKENTRACE_AUTH_TOKEN": TOKEN})
    pipeline.start()
    try:
        cookie = {"Cookie": cookie_of(pipeline)}
        assert pipeline.stop() == 0
        pipeline.start()
        assert http("GET", pipeline.url + "/metrics", headers=cookie).status == 200
        assert pipeline.stop() == 0
        pipeline.env["TOKENTRACE_AUTH_TOKEN"] = "another"
        pipeline.start()
        assert http("GET", pipeline.url + "/metrics", headers=cookie).status == 401
    finally:
        pipeline.stop()


def test_too_many_wrong_tokens_are_a_429_with_the_time_to_wait(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, env={"TOKENTRACE_AUTH_TOKEN": TOKEN})
    pipeline.start()
    try:
        assert [log_in(pipeline, "wrong").status for _ in range(10)] == [401] * 10
        answer = log_in(pipeline)
        assert answer.status == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60
    finally:
        pipeline.stop()


def test_without_a_token_there_is_nothing_to_log_in_with(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    try:
        answer = log_in(pipeline)
        assert (answer.status, "set-cookie" in answer.headers) == (400, False)
        assert "no token" in answer.json()["error"]
        packed = http("GET", pipeline.url + "/openapi.json", headers={"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == http("GET", pipeline.url + "/openapi.json").body
    finally:
        assert pipeline.stop() == 0
