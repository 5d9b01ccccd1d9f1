"""API keys on real servers: each scope opens what it says and nothing else, and a revoked key ends everywhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kit import otlp
from kit.environment import ROOT
from kit.pipeline import Answer, Pipeline, SeparateServices, http
from tokentrace.access import needed_scope

SPAN = {"model": "gpt-4o", "prompt_tokens": 5, "comp_tokens": 1}
SPANS_PATHS = ("/spans", "/mist", "/v1/traces", "/v1/logs", "/v1/metrics", "/api/public/otel/v1/traces")
SCOPES = ("ingest", "read", "admin")
PAGE = ROOT / "docs" / "how-to" / "keys.md"


def command(nats_url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``tokentrace keys`` with *words*."""
    run = [sys.executable, "-m", "tokentrace_standalone", "keys", *words, "--nats", nats_url]
    return subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)


def create(nats_url: str, name: str, scopes: str = "ingest", *more: str) -> str:
    made = command(nats_url, "create", name, "--scopes", scopes, *more)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    pipeline = Pipeline(tmp_path_factory.mktemp("keys"))
    pipeline.start()
    yield pipeline
    assert pipeline.stop() == 0


@pytest.fixture(scope="module")
def keys(serving: Pipeline) -> dict[str, str]:
    """One key of each scope, once the server takes them."""
    made = {scope: create(serving.nats_url, scope, scope) for scope in SCOPES}
    serving.until(lambda: http("GET", serving.url + "/page.json", headers=bearer(made["admin"])).status == 200, "known")
    serving.until(lambda: serving.get("/page.json").status == 401, "closed")
    return made


def test_every_operation_is_open_to_the_scopes_that_it_needs_and_to_no_other(
    serving: Pipeline, keys: dict[str, str]
) -> None:
    """The body is empty or the name absent, so that what is allowed changes nothing."""
    document = http("GET", serving.url + "/openapi.json", headers=bearer(keys["read"])).json()
    seen: dict[str, int] = dict.fromkeys(SCOPES, 0)
    for path, item in document["paths"].items():
        for method in item.keys() & {"get", "post", "put", "delete"}:
            if not item[method]["security"] or path == "/traces/tail":
                continue
            url = serving.url + re.sub(r"\{\w+\}", "absent", path)
            wanted = needed_scope(method.upper(), url.removeprefix(serving.url), SPANS_PATHS)
            body = b"" if method in ("post", "put") else None
            json_body = {"Content-Type": "application/json"} if body is not None else {}
            answers = {
                scope: http(method.upper(), url, body, {**json_body, **bearer(key)}) for scope, key in keys.items()
            }
            assert http(method.upper(), url, body, json_body).status == 401, (method, path)
            for scope, answer in answers.items():
                refused = answer.status == 403 and b"has no scope" in answer.body
                assert refused == (scope not in (wanted, "admin")), (method, path, scope, answer.status, answer.body)
            seen[wanted] += 1
    assert min(seen.values()) >= 5, seen


def test_a_key_sends_and_the_dashboard_key_sees_it(serving: Pipeline, keys: dict[str, str]) -> None:
    span = {**SPAN, "caller": "sender"}
    assert serving.post("/spans", span, bearer(keys["ingest"])).status == 202
    password = base64.b64encode(f"any:{keys['ingest']}".encode()).decode()
    body = json.dumps(otlp.traces([otlp.call()], "sender")).encode()
    assert serving.post("/v1/traces", body, {"Authorization": f"Basic {password}"}).status == 200

    def counted() -> bool:
        asked = http("GET", f"{serving.url}/metrics?window=1h&caller=sender", headers=bearer(keys["read"]))
        return bool(asked.json()["span_count"] == 2)

    serving.until(counted, "counted")


def test_a_refusal_names_the_key_and_the_scope_but_not_the_secret(serving: Pipeline, keys: dict[str, str]) -> None:
    answer = http("DELETE", serving.url + "/traces/t", headers=bearer(keys["ingest"]))
    id, secret = keys["ingest"][3:13], keys["ingest"][14:]
    assert answer.status == 403
    text = answer.json()["error"]
    assert text == f"key {id}: has no scope admin, which DELETE /traces/t needs; it has ingest"
    assert secret not in serving.log.read_text()


def test_a_login_with_a_key_may_what_the_key_may_and_ends_with_it(serving: Pipeline, keys: dict[str, str]) -> None:
    key = create(serving.nats_url, "browser", "read")
    own = {"Origin": serving.url}

    def log_in() -> Answer:
        return serving.post("/session", {"token": key}, own)

    serving.until(lambda: log_in().status == 200, "logged in")
    cookie = {"Cookie": log_in().headers["set-cookie"].partition(";")[0]}
    assert http("GET", serving.url + "/metrics", headers=cookie).status == 200
    refused = http("DELETE", serving.url + "/traces/t", headers={**cookie, **own})
    assert (refused.status, b"has no scope admin" in refused.body) == (403, True)
    assert command(serving.nats_url, "revoke", key[3:13]).returncode == 0
    # Both within five seconds on a usual machine.
    serving.until(lambda: http("GET", serving.url + "/metrics", headers=cookie).status == 401, "logged out", 5)
    serving.until(lambda: http("GET", serving.url + "/metrics", headers=bearer(key)).status == 401, "revoked", 5)
    assert b"is revoked" in http("GET", serving.url + "/metrics", headers=bearer(key)).body
    assert log_in().status == 401


def test_while_keys_overlap_both_are_good_and_the_list_shows_the_end(serving: Pipeline, keys: dict[str, str]) -> None:
    old = create(serving.nats_url, "scraper", "read", "--expires", "90d")
    rotated = command(serving.nats_url, "rotate", old[3:13], "--overlap", "2s")
    assert rotated.returncode == 0, rotated.stderr
    new = rotated.stdout.strip()
    url = serving.url + "/metrics"
    serving.until(lambda: http("GET", url, headers=bearer(new)).status == 200, "the new key is known")
    serving.until(lambda: b"has expired" in http("GET", url, headers=bearer(old)).body, "the old key has ended")
    listed = json.loads(command(serving.nats_url, "list", "--json").stdout)
    by_id = {row["id"]: row for row in listed}
    assert (by_id[old[3:13]]["is_good"], by_id[new[3:13]]["is_good"]) == (False, True)
    assert by_id[new[3:13]]["name"] == "scraper"
    assert by_id[new[3:13]]["expires_at"] > by_id[old[3:13]]["expires_at"]
    assert by_id[keys["read"][3:13]]["last_used_at"] is not None
    assert not any(key[14:] in json.dumps(listed) for key in (old, new, *keys.values()))


def test_the_secret_of_a_key_is_in_no_file_and_keys_outlive_a_restart(serving: Pipeline, keys: dict[str, str]) -> None:
    assert serving.stop() == 0
    secrets = [key[14:].encode() for key in keys.values()]
    files = [path for path in serving.directory.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if any(secret in path.read_bytes() for secret in secrets)]
    ids = [key[3:13].encode() for key in keys.values()]
    assert any(ids[0] in path.read_bytes() for path in files)
    serving.start()
    assert serving.get("/metrics").status == 401
    assert http("GET", serving.url + "/metrics", headers=bearer(keys["read"])).status == 200


def test_who_changed_something_is_logged_with_the_answer(serving: Pipeline, keys: dict[str, str]) -> None:
    admin, ingest = keys["admin"], keys["ingest"]
    assert http("DELETE", serving.url + "/alerts/audited-1", headers=bearer(admin)).status == 404
    assert http("DELETE", serving.url + "/alerts/audited-2", headers=bearer(ingest)).status == 403
    assert http("DELETE", serving.url + "/alerts/audited-3").status == 401
    assert http("DELETE", serving.url + "/traces/hidden-1", headers=bearer(admin)).status == 404
    lines = [line for line in serving.log.read_text().splitlines() if "audited-" in line]
    expected = [("audited-1", "404", admin[3:13]), ("audited-2", "403", ingest[3:13]), ("audited-3", "401", "")]
    for line, (rule, status, id) in zip(lines, expected, strict=True):
        assert f"DELETE /alerts/{rule}: {status}" in line
        assert id in line
        assert "tokentrace.audit" in line
        assert "127.0.0.1" in line
    # What is deleted must not stay in a log; its hash does.
    log = serving.log.read_text()
    assert "hidden-1" not in log
    assert f"DELETE /traces/sha256:{hashlib.sha256(b'hidden-1').hexdigest()[:12]}: 404" in log


def test_a_key_that_asks_too_often_is_told_to_wait(serving: Pipeline, keys: dict[str, str]) -> None:
    key = create(serving.nats_url, "batch", "read", "--rate", "2")
    url = serving.url + "/page.json"
    serving.until(lambda: http("GET", url, headers=bearer(key)).status == 200, "known")
    answers = [http("GET", url, headers=bearer(key)) for _ in range(20)]
    refused = [answer for answer in answers if answer.status == 429]
    assert refused
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].json()["error"] == f"key {key[3:13]}: over 2 requests a second; wait 1 s"
    serving.until(lambda: http("GET", url, headers=bearer(key)).status == 200, "heard again")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["create", "a\nb"], "name: "),
        (["create", "shop", "--scopes", "write"], "'write' is none of ingest, read, admin"),
        (["create", "shop", "--expires", "soon"], "--expires: "),
        (["create", "shop", "--expires", "0s"], "--expires: "),
        (["rotate", "0000000000"], "0000000000: is no key that is good"),
        (["revoke", "0000000000"], "0000000000: there is no such key"),
    ],
)
def test_a_command_that_cannot_work_says_why_in_one_sentence(
    serving: Pipeline, words: Sequence[str], text: str
) -> None:
    done = command(serving.nats_url, *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


def test_separate_services_close_with_the_first_key_and_pass_it_on(tmp_path: Path) -> None:
    services = SeparateServices(tmp_path)
    services.env["TOKENTRACE_INGEST_URL"] = f"http://127.0.0.1:{services.ports['ingest']}"
    services.start()
    try:
        assert http("GET", services.url + "/metrics").status == 200
        key = create(services.nats_url, "shop", "ingest,read")
        services.until(lambda: http("GET", services.url + "/metrics").status == 401, "closed")
        ingest = f"http://127.0.0.1:{services.ports['ingest']}"
        services.until(lambda: http("GET", ingest + "/internal/metrics").status == 401, "ingest closed")
        sent = {"Content-Type": "application/json", **bearer(key)}
        for base in (services.url, ingest):
            assert http("POST", base + "/spans", json.dumps(SPAN).encode(), sent).status == 202

        def counted() -> bool:
            asked = http("GET", services.url + "/metrics", headers=bearer(key)).json()
            return bool(asked["span_count"] == 2)

        services.until(counted, "counted")
    finally:
        services.stop()


def test_the_commands_of_the_page_about_keys_work_in_their_order(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.start()
    try:
        blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        script = "set -eu\n" + "".join(blocks)
        # A key is known after two seconds, and curl asks again as a person would.
        script = script.replace("curl localhost:8700", f"curl -sf --retry 9 --retry-all-errors {pipeline.url}")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "TOKENTRACE_NATS_URL": pipeline.nats_url}
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=env
        )
        assert done.returncode == 0, done.stderr
        assert "revoked" in done.stdout
        assert done.stdout.count('"window":"1h"') == 3
    finally:
        pipeline.stop()
