"""Tests send nothing beyond this machine: a guard stops it, and the services they start deliver to loopback only."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback_only
import pytest

from kit.environment import ALLOWED
from kit.pipeline import Pipeline
from kit.receiver import CALL, DeliveryRun, Receiver, Reply, delete, make_event, make_rule, path_of, read
from tokentrace.bus import subjects

#: A network reserved for documentation (RFC 5737). A socket bound to loopback cannot reach it even without the guard.
ELSEWHERE = ("192.0.2.1", 9)

# -- the guard


def assert_guarded() -> None:
    """Check that the guard is installed, before a test makes a call that the guard has to stop."""
    with socket.socket() as sock, pytest.raises(loopback_only.LeftLoopback):
        sys.audit("socket.connect", sock, ELSEWHERE)


def test_no_socket_of_this_process_leaves_loopback() -> None:
    assert_guarded()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(loopback_only.LeftLoopback, match=r"socket.connect: '192\.0\.2\.1'"):
            sock.connect(ELSEWHERE)
        with pytest.raises(OSError, match="not connected"):
            sock.getpeername()
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(loopback_only.LeftLoopback, match=r"socket.sendto: '192\.0\.2\.1'"):
            sock.sendto(b"x", ELSEWHERE)
    with pytest.raises(loopback_only.LeftLoopback, match=r"socket.getaddrinfo: 'name\.invalid'"):
        socket.getaddrinfo("name.invalid", 9)
    assert len(loopback_only.refusals()) == 4


def test_loopback_itself_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost", "::ffff:127.0.0.1"):
            socket.create_connection((host, port), timeout=10).close()
    assert loopback_only.refusals() == []


CHILD = """
import asyncio, socket, sys
import loopback_only, uvloop

def refused(call):
    try:
        call()
    except loopback_only.LeftLoopback:
        return
    sys.exit(f"not refused: {call}")

async def connect():
    # A socket bound to loopback cannot leave this machine even without the guard.
    await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, "192.0.2.1", 9, local_addr=("127.0.0.1", 0))

async def resolve():
    await asyncio.get_running_loop().getaddrinfo("name.invalid", 9)

def run(factory, work):
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work())

sock = socket.socket()
sock.bind(("127.0.0.1", 0))
refused(lambda: sys.audit("socket.connect", sock, ("192.0.2.1", 9)))
refused(lambda: sock.connect(("192.0.2.1", 9)))
for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    refused(lambda: run(factory, connect))
    refused(lambda: run(factory, resolve))
print("all refused")
"""


def test_no_socket_of_a_process_that_a_test_starts_leaves_loopback(python: str) -> None:
    assert_guarded()
    assert len(loopback_only.refusals()) == 1
    done = subprocess.run([python, "-c", CHILD], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("all refused\n", 0), done.stderr
    refused = loopback_only.refusals()
    assert len(refused) == 6, refused
    assert sum("192.0.2.1" in line for line in refused) == 4


def test_a_refusal_is_recorded_even_if_the_program_takes_it_for_a_network_error(python: str) -> None:
    quiet = "import socket\ntry: socket.getaddrinfo('name.invalid', 9)\nexcept Exception: pass"
    assert subprocess.run([python, "-c", quiet], timeout=60, check=False).returncode == 0
    (refused,) = loopback_only.refusals()
    assert "name.invalid" in refused


# -- a delivery to another host: in this process

_created: list[Any] = []
_watching = False


def _on_event(event: str, given: tuple[Any, ...]) -> None:
    # The event loop itself creates a pair of unix sockets.
    if _watching and (event == "socket.getaddrinfo" or (event == "socket.__new__" and given[1] != socket.AF_UNIX)):
        _created.append((event, given[1:]))


@pytest.fixture
def sockets() -> Iterator[list[Any]]:
    """Yield a list that records each look-up and each new socket, except unix sockets, during the test."""
    global _watching
    if not _created:
        sys.addaudithook(_on_event)
    _created[:] = [("begun",)]
    _watching = True
    yield _created
    _watching = False


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "[2001:db8::1]", "hooks.example.com", "3221225985", "[::ffff:192.0.2.1]", "127.0.0.1:1"]
)
async def test_an_event_for_a_host_that_is_not_allowed_is_dead_without_a_socket(host: str, sockets: list[Any]) -> None:
    rule = make_rule(delivery={"type": "http", "url": f"http://{host}/hook"})
    async with DeliveryRun(rule, allow_hosts=["127.0.0.0/8:2"]) as run:
        await run.publish(make_event())
        await run.done()
    assert sockets == [("begun",)]
    (record,) = run.records()
    assert (record["outcome"], record["attempt"]) == ("dead", 1)
    assert "is not in alert_delivery.allow_hosts" in record["error"]
    assert run.delivery_worker.failed == 1


@pytest.mark.parametrize("host", ["169.254.169.254", "0xA9FEA9FE", "2852039166", "[::ffff:a9fe:a9fe]", "[fe80::1]"])
async def test_an_event_for_a_metadata_address_is_dead_whatever_is_allowed(host: str, sockets: list[Any]) -> None:
    rule = make_rule(delivery={"type": "alertmanager", "url": f"http://{host}"})
    async with DeliveryRun(rule, allow_hosts=["0.0.0.0/0", "::/0"]) as run:
        await run.publish(make_event())
        await run.done()
    assert sockets == [("begun",)]
    (record,) = run.records()
    assert (record["outcome"], record["attempt"]) == ("dead", 1)
    assert "link-local or metadata" in record["error"]


class NameServer:
    """
    A replacement for name resolution: each look-up of *name* gives the next of *answers*, the last one repeatedly.

    Other names are resolved as usual. ``asked`` is the number of look-ups of *name*.
    """

    def __init__(self, patch: pytest.MonkeyPatch, name: str, *answers: list[str]) -> None:
        self.asked = 0
        own = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *given: Any, **named: Any) -> Any:
            if host not in (name, name.encode()):
                return own(host, port, *given, **named)
            answer = answers[min(self.asked, len(answers) - 1)]
            self.asked += 1
            return [entry for address in answer for entry in own(address, port, *given, **named)]

        patch.setattr(socket, "getaddrinfo", getaddrinfo)


async def test_a_name_is_resolved_once_and_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = NameServer(monkeypatch, "hooks.example.com", ["127.0.0.1"], ["169.254.169.254"])
    with Receiver() as receiver:
        url = f"http://hooks.example.com:{receiver.port}/hook"
        async with DeliveryRun(
            make_rule(delivery={"type": "http", "url": url}), allow_hosts=["hooks.example.com"]
        ) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["delivered"]
    assert names.asked == 1
    assert receiver.sent[0].header("Host") == f"hooks.example.com:{receiver.port}"


async def test_an_event_for_a_name_whose_addresses_are_link_local_is_dead_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = NameServer(monkeypatch, "hooks.example.com", ["169.254.169.254", "fe80::1"])
    rule = make_rule(delivery={"type": "http", "url": "http://hooks.example.com/hook"})
    async with DeliveryRun(rule, allow_hosts=["hooks.example.com"]) as run:
        await run.publish(make_event())
        await run.done()
    (record,) = run.records()
    assert (record["outcome"], record["attempt"], names.asked) == ("dead", 1, 1)
    assert "'hooks.example.com' has only link-local" in record["error"]


async def test_forbidden_addresses_of_a_name_are_skipped_and_after_a_closed_one_the_next_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    NameServer(monkeypatch, "hooks.example.com", ["169.254.169.254", "127.0.0.2", "127.0.0.1"])
    with Receiver() as receiver:
        url = f"http://hooks.example.com:{receiver.port}/hook"
        async with DeliveryRun(
            make_rule(delivery={"type": "http", "url": url}), allow_hosts=["hooks.example.com"]
        ) as run:
            await run.publish(make_event())
            await run.done()
    assert run.outcomes() == ["delivered"]


async def test_a_redirect_to_another_host_is_not_followed(sockets: list[Any]) -> None:
    with Receiver(lambda sent: Reply(307, {"Location": "http://192.0.2.1/hook"})) as receiver:
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
    assert [record["error"] for record in run.records()] == ["HTTP 307"]


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        async with DeliveryRun(make_rule(delivery={"type": "http", "url": receiver.url})) as run:
            await run.publish(make_event())
            await run.done()
    assert (len(proxy.sent), len(receiver.sent)) == (0, 1)


# -- a delivery to another host: through the whole pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("served"))
    try:
        serving.start()
        yield serving
    finally:
        serving.stop()


@pytest.mark.parametrize("kind", ["http", "webhook", "alertmanager"])
@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://192.0.2.1/hook", "192.0.2.1"),
        ("https://hooks.example.com/hook", "hooks.example.com"),
        ("http://169.254.169.254/latest", "169.254.169.254"),
        ("http://127.0.0.1@192.0.2.1/hook", "192.0.2.1"),
    ],
)
def test_a_rule_with_delivery_to_another_host_is_a_400_that_names_the_host(
    pipeline: Pipeline, kind: str, url: str, host: str
) -> None:
    answer = pipeline.post("/alerts", make_rule("elsewhere", delivery={"type": kind, "url": url}))
    assert answer.status == 400
    assert answer.json()["error"].startswith(f"rule.delivery.url: host '{host}'")
    assert pipeline.get(path_of("elsewhere", "/status")).status == 404


def test_a_rule_with_delivery_to_loopback_is_created(pipeline: Pipeline) -> None:
    for url in ("http://127.0.0.1:9/hook", "http://localhost:9/hook", "http://[::1]:9/hook"):
        assert pipeline.post("/alerts", make_rule("here", delivery={"type": "http", "url": url})).status == 201
        assert delete(pipeline, "here").status == 204


def test_a_shortened_list_of_allowed_hosts_applies_to_rules_that_were_created_before(tmp_path: Path) -> None:
    """The event of such a rule is dead after one attempt and is not sent; an event of another rule is delivered."""
    with Receiver() as receiver:
        before = ALLOWED["TOKENTRACE_ALERT_ALLOW_HOSTS"] + ",192.0.2.1"
        serving = Pipeline(tmp_path, env={"TOKENTRACE_ALERT_ALLOW_HOSTS": before})
        try:
            serving.start()
            for name, url in (("elsewhere", "http://192.0.2.1/hook"), ("here", receiver.url)):
                rule = make_rule(name, eval_interval="1s", delivery={"type": "http", "url": url})
                assert serving.post("/alerts", rule).status == 201
            assert serving.stop() == 0
            serving.env |= ALLOWED
            serving.start()
            assert serving.post("/spans", [CALL]).status == 202
            serving.until(lambda: len(told_of(serving, "elsewhere")) == 1, "a record of the forbidden delivery")
            serving.until(lambda: len(told_of(serving, "here")) == 1, "a record of the allowed delivery")
            (record,) = read(serving, subjects.DELIVERIES, "elsewhere")
        finally:
            serving.stop()
    assert (record["outcome"], record["attempt"]) == ("dead", 1)
    assert record["error"] == "host '192.0.2.1' with port 80 is not in alert_delivery.allow_hosts"
    assert len(receiver.sent) == 1
    # The service itself refused the delivery, so the guard had nothing to refuse.
    assert loopback_only.refusals() == []


def told_of(serving: Pipeline, rule: str) -> Any:
    return serving.get(path_of(rule, "/deliveries")).json()["deliveries"]
