"""No program shows the user, password, path or query of a URL that it was given."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.commands import Command, run_commands
from kit.pipeline import Pipeline, SeparateServices, free_port, http
from kit.receiver import CALL, Receiver, Reply, make_rule, path_of, read
from kit.services import start_service
from tokentrace import Reporter, Span, TraceClient
from tokentrace.bus import subjects
from tokentrace.errors import ConfigError

pytestmark = pytest.mark.story

#: Stands wherever a URL may hold a secret.
SECRET = "geheim"
RULE = """
alerts:
  - name: told
    metric: span_count
    op: gte
    threshold: 1
    window: 1h
    eval_interval: 1s
    delivery: {{type: http, url: "{url}", max_retries: 0}}
"""


def locked(directory: Path) -> Broker:
    """Return a broker, not started yet, that only lets a user with a password in."""
    word = f"{SECRET}-word"
    return Broker(directory, extra=f"authorization {{ user: {SECRET}-user, password: {word}, timeout: 5 }}\n")


def url_of(broker: Broker, password: str = f"{SECRET}-word") -> str:
    return f"nats://{SECRET}-user:{password}@127.0.0.1:{broker.port}"


class ServeOnLocked(Pipeline):
    """``serve`` on a broker with a user and a password."""

    def __init__(self, directory: Path, broker: Broker) -> None:
        super().__init__(directory, env={"TOKENTRACE_LOG_LEVEL": "debug"})
        self._broker = broker

    def start(self, *, wait: bool = True) -> None:
        flags = ["--addr", f"127.0.0.1:{self.port}", "--also", "none", "--data-dir", str(self.data)]
        words = ["serve", *flags, "--nats", url_of(self._broker)]
        self.process = start_service(
            "tokentrace_standalone", words, directory=self.directory, env=self.env, log=self.log
        )
        self.wait_ready()


class ServicesOnLocked(SeparateServices):
    """Each service as a process of its own, on a broker with a user and a password."""

    SERVICES = ("ingest", "aggregator", "alerter", "api")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, env={"TOKENTRACE_LOG_LEVEL": "debug"})
        self.broker = locked(directory / "nats")

    def start_one(self, name: str) -> None:
        flags = ["--nats", url_of(self.broker), "--addr", f"127.0.0.1:{self.ports[name]}", "--data-dir", str(self.data)]
        self.running[name] = start_service(
            f"tokentrace_{name}", flags, directory=self.directory, env=self.env, log=self.log
        )


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    running = locked(tmp_path_factory.mktemp("broker"))
    running.start()
    yield running
    running.stop()


def test_serve_shows_no_secret_of_a_url_on_output_in_logs_or_in_answers(tmp_path: Path, broker: Broker) -> None:
    with Receiver(lambda sent: Reply(307, {"Location": f"http://h/{SECRET}"})) as receiver:
        hook = f"http://{SECRET}-a:{SECRET}-b@127.0.0.1:{receiver.port}/services/{SECRET}-c?token={SECRET}-d"
        (tmp_path / "tokentrace.yml").write_text(RULE.format(url=hook))
        serving = ServeOnLocked(tmp_path, broker)
        try:
            serving.start()
            serving.post("/alerts", make_rule("posted", {"type": "webhook", "url": hook}, eval_interval="1s"))
            assert serving.post("/spans", [CALL]).status == 202
            for name in ("told", "posted"):
                tried = partial(lambda path: serving.get(path).json()["count"] > 0, path_of(name, "/deliveries"))
                serving.until(tried, "tried")
            pages = "".join(
                serving.get(page).body.decode()
                for page in (
                    "/alerts",
                    "/alerts/told/status",
                    "/alerts/told/deliveries",
                    "/alerts/posted/deliveries",
                    "/health",
                    "/readyz",
                    "/stats",
                    "/metrics",
                    "/metrics/prometheus",
                    "/internal/metrics",
                )
            )
            shown = serving.get("/alerts/told/deliveries").json()["deliveries"][0]["destination"]
        finally:
            assert serving.stop() == 0
    assert receiver.sent[0].path == f"/services/{SECRET}-c?token={SECRET}-d"
    assert shown == f"http://127.0.0.1:{receiver.port}/..."
    log = serving.log.read_text()
    assert f"spans to nats://127.0.0.1:{broker.port}, data in" in log
    assert SECRET not in pages
    assert SECRET not in log


def test_the_stream_of_delivery_records_holds_no_secret_of_a_url(tmp_path: Path) -> None:
    with Receiver(lambda sent: Reply(404)) as receiver:
        (tmp_path / "tokentrace.yml").write_text(RULE.format(url=f"{receiver.url}/services/{SECRET}"))
        serving = Pipeline(tmp_path)
        try:
            serving.start()
            assert serving.post("/spans", [CALL]).status == 202
            serving.until(lambda: read(serving, subjects.DELIVERIES, "told") != [], "recorded")
            (record,) = read(serving, subjects.DELIVERIES, "told")
        finally:
            serving.stop()
    assert record["destination"] == f"{receiver.url}/..."
    assert SECRET not in str(record)


def test_no_service_in_a_process_of_its_own_shows_the_password_of_the_broker(tmp_path: Path) -> None:
    services = ServicesOnLocked(tmp_path)
    try:
        services.start()
        pages = "".join(
            http("GET", f"http://127.0.0.1:{services.ports[name]}{page}").body.decode()
            for name in services.SERVICES
            for page in ("/readyz", "/internal/metrics")
        )
        pages += services.get("/health").body.decode()
        # The log of a lost connection.
        services.broker.kill()
        services.until(lambda: "nats" in services.get("/readyz").body.decode(), "disconnected")
        services.broker.start()
        services.until(lambda: services.get("/readyz").status == 200, "connected again")
    finally:
        services.stop()
    assert SECRET not in pages
    log = services.log.read_text()
    assert "disconnected" in log
    assert SECRET not in log


@pytest.mark.story
def test_no_command_shows_a_secret_of_a_url_in_an_error(tmp_path: Path, broker: Broker) -> None:
    """The server is away, refuses the password, or the URL is not one; or the URL of a rule or a proxy is not one."""
    away = f"nats://{SECRET}:{SECRET}@127.0.0.1:{free_port()}"
    urls = [away, f"nats://{SECRET}@h:x", f"{SECRET}:{SECRET}@h:0", f"ftp://{SECRET}@h/{SECRET}"]
    files = {
        "rule": RULE.format(url=f"ftp://{SECRET}:{SECRET}@h/{SECRET}"),
        "list": RULE.replace('"{url}"', f"[{SECRET}]").format(),
        "manager": RULE.replace("type: http", "type: alertmanager").format(url=f"http://h/{SECRET}?x={SECRET}"),
        "proxy": f"alert_delivery: {{proxy: 'socks5://u:{SECRET}@h:1'}}",
        "proxy with a path": f"alert_delivery: {{proxy: 'http://u:{SECRET}@h:1/{SECRET}'}}",
        "proxy that is not allowed": f"alert_delivery: {{proxy: 'http://u:{SECRET}@192.0.2.1:1'}}",
        "not YAML": f'http_server: {{auth_token: "{SECRET}\nnats: [',
        "not YAML either": f"http_server:\n  auth_token: {SECRET}: {SECRET}\n",
    }
    runs = [
        *((["serve", "--nats", url], "") for url in [*urls[1:], url_of(broker, f"{SECRET}-other")]),
        *((["tail", "--nats", url], "") for url in urls[1:]),
        *((["rules", "backtest", "--nats", url], RULE.format(url="http://127.0.0.1:9")) for url in urls[1:]),
        *((["demo", "--url", url, "--seconds", "1"], "") for url in urls[1:]),
        *((["serve"], text) for text in files.values()),
        *((["config", "check"], text) for text in files.values()),
        *((["rules", "check"], text) for text in files.values()),
    ]
    commands = []
    for number, (words, text) in enumerate(runs):
        directory = tmp_path / str(number)
        directory.mkdir()
        if text:
            (directory / "tokentrace.yml").write_text(text)
        commands.append(Command(directory, words))
    for command, ended in zip(commands, run_commands(commands), strict=True):
        output = ended.stdout + ended.stderr
        assert ended.code != 0 or command.words[0] == "rules", command.words
        assert SECRET not in output, (command.words, output)
        assert "Traceback" not in output, (command.words, output)


def test_no_error_about_a_posted_rule_repeats_its_url(tmp_path: Path) -> None:
    serving = Pipeline(tmp_path)
    try:
        serving.start()
        for url in (
            f"ftp://{SECRET}@h/{SECRET}",
            f"http://{SECRET}:{SECRET}@192.0.2.1/{SECRET}",
            f"http://127.0.0.1:0/{SECRET}",
            f"http://127.0.0.1:x/{SECRET}",
            f"http://127.0.0.1/ {SECRET}",
            [SECRET],
            {SECRET: SECRET},
        ):
            for kind in ("http", "webhook", "alertmanager"):
                answer = serving.post("/alerts", make_rule("posted", {"type": kind, "url": url}))
                assert answer.status == 400
                assert SECRET not in answer.body.decode()
    finally:
        serving.stop()
    assert SECRET not in serving.log.read_text()


@pytest.mark.parametrize(
    "url",
    [
        f"nats://u:{SECRET}@h:x",
        f"nats://u:{SECRET}@",
        f"http://u:{SECRET}/@h",
        f"http://u:p@h:{SECRET}",
        f"ftp:{SECRET}",
    ],
)
def test_no_error_of_the_clients_repeats_a_secret_of_the_url(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Reporter("app", url)
    assert SECRET not in str(refused.value)
    with pytest.raises(ConfigError) as invalid:
        TraceClient("key", "project", url.replace("http:", "ftp:"))
    assert SECRET not in str(invalid.value)


@pytest.mark.parametrize("port_is_open", [True, False])
def test_a_reporter_logs_no_path_of_its_url(port_is_open: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Receiver(lambda sent: Reply(403)) as receiver:
        port = receiver.port if port_is_open else free_port()
        with Reporter("app", f"http://127.0.0.1:{port}/{SECRET}") as reporter:
            reporter.report(Span(model="gpt-4o", prompt_tokens=1, completion_tokens=1))
            reporter.flush(1.0)
    assert (len(receiver.sent) > 0) == port_is_open
    assert f"http://127.0.0.1:{port}/..." in caplog.text
    assert SECRET not in caplog.text
