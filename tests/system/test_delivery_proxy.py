"""Deliveries through the proxy of ``alert_delivery.proxy``: the allowed hosts hold for the receiver and the proxy."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from kit.environment import ALLOWED
from kit.pipeline import Pipeline
from kit.receiver import CALL, DeliveryRun, Receiver, Reply, make_event, make_rule, path_of
from tokentrace.config import load
from tokentrace.errors import ConfigError
from tokentrace_alerter.service import Config

#: Nothing on this machine resolves this name, so only the proxy can.
ELSEWHERE = "hooks.example.com"
HOSTS = ("127.0.0.1", ELSEWHERE)


@pytest.mark.parametrize(
    ("kind", "path"), [("http", "/hook?a=b"), ("webhook", "/hook?a=b"), ("alertmanager", "/hook/api/v2/alerts")]
)
async def test_a_delivery_goes_to_the_proxy_which_resolves_the_name_of_the_receiver(kind: str, path: str) -> None:
    with Receiver() as proxy:
        url = f"http://{ELSEWHERE}:8080{path.removesuffix('/api/v2/alerts')}"
        rule = make_rule(delivery={"type": kind, "url": url, "headers": {"X-Team": "on call"}})
        async with DeliveryRun(rule, allow_hosts=HOSTS, proxy=proxy.url) as run:
            await run.publish(make_event())
            await run.done()
    (sent,) = proxy.sent
    assert sent.path == f"http://{ELSEWHERE}:8080{path}"
    assert (sent.header("Host"), sent.header("X-Team")) == (f"{ELSEWHERE}:8080", "on call")
    assert sent.header("Proxy-Authorization") is None
    (record,) = run.records()
    assert (record["outcome"], record["destination"]) == ("delivered", f"http://{ELSEWHERE}:8080/...")


async def test_the_user_of_the_proxy_is_sent_to_the_proxy() -> None:
    with Receiver() as proxy:
        rule = make_rule(delivery={"type": "http", "url": f"http://{ELSEWHERE}/hook"})
        url = f"http://me:p%40ss@127.0.0.1:{proxy.port}"
        async with DeliveryRun(rule, allow_hosts=HOSTS, proxy=url) as run:
            await run.publish(make_event())
            await run.done()
    assert proxy.sent[0].header("Proxy-Authorization") == "Basic " + base64.b64encode(b"me:p@ss").decode()


async def test_an_https_request_is_tunnelled_so_the_proxy_does_not_see_the_path() -> None:
    heard: list[bytes] = []

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        if len(heard) == 1:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            heard.append(await reader.read(3))
        else:
            writer.write(b"HTTP/1.1 403 Not here\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(tunnel, "127.0.0.1")
    async with server:
        port = server.sockets[0].getsockname()[1]
        rule = make_rule(delivery={"type": "http", "url": f"https://{ELSEWHERE}/geheim", "max_retries": 1})
        async with DeliveryRun(rule, allow_hosts=HOSTS, proxy=f"http://127.0.0.1:{port}") as run:
            await run.publish(make_event())
            await run.done()
    assert heard[0].startswith(f"CONNECT {ELSEWHERE}:443 HTTP/1.1\r\n".encode())
    assert heard[1][:2] == b"\x16\x03", "the start of a TLS handshake"
    assert b"geheim" not in b"".join(heard)
    assert run.outcomes() == ["retry", "dead"]
    assert "no answer through the proxy: 403 Not here" in run.records()[-1]["error"]


async def test_a_proxy_that_asks_for_its_password_is_tried_again() -> None:
    with Receiver(lambda sent: Reply(407 if len(proxy.sent) == 1 else 200)) as proxy:
        rule = make_rule(delivery={"type": "http", "url": f"http://{ELSEWHERE}/hook"})
        async with DeliveryRun(rule, allow_hosts=HOSTS, proxy=proxy.url) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["retry", "delivered"]


@pytest.mark.parametrize("url", ["http://192.0.2.1/x", "https://other.example.com/x", "http://169.254.169.254/x"])
async def test_a_receiver_that_is_not_allowed_is_not_reached_through_a_proxy_either(url: str) -> None:
    with Receiver() as proxy:
        rule = make_rule(delivery={"type": "http", "url": url})
        async with DeliveryRun(rule, allow_hosts=HOSTS, proxy=proxy.url) as run:
            await run.publish(make_event())
            await run.done()
    assert proxy.sent == []
    assert run.outcomes() == ["dead"]


async def test_no_connection_is_made_to_a_proxy_that_is_not_allowed() -> None:
    with Receiver() as proxy:
        rule = make_rule(delivery={"type": "http", "url": f"http://{ELSEWHERE}/hook"})
        async with DeliveryRun(rule, allow_hosts=[ELSEWHERE], proxy=proxy.url) as run:
            await run.publish(make_event())
            await run.done()
    assert proxy.sent == []
    assert run.records()[0]["error"] == f"host '127.0.0.1' with port {proxy.port} is not in alert_delivery.allow_hosts"


@pytest.mark.parametrize(
    ("proxy", "named"),
    [
        ("socks5://h:1080", "'socks5://h:1080' is not the URL of an HTTP proxy"),
        ("h:3128", "is not the URL of an HTTP proxy"),
        ("http://", "is not the URL of an HTTP proxy"),
        ("http://127.0.0.1:3128/path", "'http://127.0.0.1:3128/...' is not the URL of an HTTP proxy"),
        ("http://127.0.0.1:0", "is not the URL of an HTTP proxy"),
        ("http://u:p@192.0.2.1:3128", "host '192.0.2.1' with port 3128 is not in alert_delivery.allow_hosts"),
        ("http://169.254.169.254", "is a link-local or metadata address"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error_of_its_key(proxy: str, named: str) -> None:
    settings = load("/dev/null", {"TOKENTRACE_ALERT_PROXY": proxy} | ALLOWED)
    with pytest.raises(ConfigError) as refused:
        Config.of(settings)
    assert str(refused.value).startswith("alert_delivery.proxy: ")
    assert named in str(refused.value)


def test_there_is_no_proxy_unless_it_is_set_and_its_variable_must_not_be_empty_by_mistake(tmp_path: Path) -> None:
    assert Config.of(load("/dev/null", {})).proxy == ""
    file = tmp_path / "tokentrace.yml"
    file.write_text("alert_delivery: {proxy: 'http://u:${PROXY_WORD}@127.0.0.1:3128'}")
    assert Config.of(load(str(file), {"PROXY_WORD": "w"})).proxy == "http://u:w@127.0.0.1:3128"
    with pytest.raises(ConfigError, match=r"alert_delivery\.proxy: the environment variable PROXY_WORD is not set"):
        load(str(file), {})


@pytest.mark.story
def test_the_alerter_of_a_running_pipeline_delivers_through_the_proxy(tmp_path: Path) -> None:
    with Receiver() as proxy:
        rule = make_rule(eval_interval="1s", delivery={"type": "http", "url": f"http://{ELSEWHERE}/hook"})
        hosts = ALLOWED["TOKENTRACE_ALERT_ALLOW_HOSTS"] + f",{ELSEWHERE}"
        env = {"TOKENTRACE_ALERT_PROXY": proxy.url, "TOKENTRACE_ALERT_ALLOW_HOSTS": hosts}
        serving = Pipeline(tmp_path, env=env)
        try:
            serving.start()
            assert serving.post("/alerts", rule).status == 201
            assert serving.post("/spans", [CALL]).status == 202
            serving.until(lambda: serving.get(path_of("rule", "/deliveries")).json()["count"] == 1, "delivered")
        finally:
            serving.stop()
    assert [sent.path for sent in proxy.sent] == [f"http://{ELSEWHERE}/hook"]
