"""A reporter is admitted by what the server asks for: a user, a token, a key, credentials or a certificate."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nkeys
import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.credentials import Certificates, make_certificates, make_key, operator_mode
from kit.peers import HttpEndpoint
from kit.pipeline import free_port
from kit.programs import run_program
from kit.raw_stream import create_streams, read_raw, span_names
from kit.reporting import WAIT_S
from tokentrace import ConfigError, Reporter
from tokentrace.bus.access import Access

pytestmark = pytest.mark.broker

#: A password with every character that has a meaning in a URL.
PASSWORD = "p,w:/?#[]@%41 \u00e9"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Broker]]:
    """Yield a function that starts a broker with further lines of configuration."""
    brokers: list[Broker] = []

    def make(extra: str) -> Broker:
        brokers.append(Broker(tmp_path / f"nats{len(brokers)}", extra=extra))
        brokers[-1].start()
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates") / "tls")


def assert_accepted(url: str, **access: Any) -> None:
    with Reporter("access", url, **access) as reporter:
        reporter.report(make_span())
        assert reporter.flush(WAIT_S)
        assert reporter.stats().acked == 1


def assert_waits(url: str, **access: Any) -> None:
    reporter = Reporter("access", url, **access)
    reporter.report(make_span())
    assert not reporter.flush(1)
    reporter.close(0)
    assert reporter.stats().acked == 0


def test_user_and_password_are_taken_from_the_url_or_the_arguments(start: Callable[[str], Broker]) -> None:
    broker = start(f"authorization {{ user: reporter, password: '{PASSWORD}' }}\n")
    create_streams(broker.url, Access(user="reporter", password=PASSWORD))
    host = f"127.0.0.1:{broker.port}"
    assert_accepted(f"nats://reporter:{quote(PASSWORD, safe='')}@{host}")
    assert_accepted(f"nats://{host}", user="reporter", password=PASSWORD)
    assert_accepted(f"nats://other:wrong@{host}", user="reporter", password=PASSWORD)
    assert_waits(f"nats://{host}", user="reporter", password="wrong")


def test_a_token_admits_to_nats(start: Callable[[str], Broker]) -> None:
    broker = start("authorization { token: 's3cret-t0ken' }\n")
    create_streams(broker.url, Access(token="s3cret-t0ken"))
    assert_accepted(broker.url, token="s3cret-t0ken\n")
    assert_accepted(broker.url.replace("://", "://s3cret-t0ken@"))
    assert_waits(broker.url, token="other")


def test_the_seed_of_a_key_admits_to_nats(start: Callable[[str], Broker], tmp_path: Path) -> None:
    key = make_key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "seed").write_text(f"{key.seed}\n")
    (tmp_path / "rubbish").write_text("rubbish\n")
    (tmp_path / "other").write_text(make_key(nkeys.PREFIX_BYTE_USER).seed)
    broker = start(f"authorization {{ users: [ {{ nkey: {key.public} }} ] }}\n")
    create_streams(broker.url, Access(nkey=str(tmp_path / "seed")))
    assert_accepted(broker.url, nkey=tmp_path / "seed")
    assert_waits(broker.url, nkey=tmp_path / "other")
    assert_waits(broker.url, nkey=tmp_path / "rubbish")


def test_a_credentials_file_admits_to_nats(start: Callable[[str], Broker], tmp_path: Path) -> None:
    broker = start(operator_mode(tmp_path / "user.creds"))
    create_streams(broker.url, Access(creds=str(tmp_path / "user.creds")))
    assert_accepted(broker.url, creds=tmp_path / "user.creds")
    assert_waits(broker.url)


def test_an_authority_and_a_client_certificate_admit_to_nats(
    start: Callable[[str], Broker], certificates: Certificates
) -> None:
    ca, cert, key = certificates
    broker = start(f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", verify: true }}\n')
    create_streams(broker.url, Access(ca=str(ca), cert=str(cert), key=str(key)))
    tls = broker.url.replace("nats://", "tls://")
    assert_accepted(tls, ca=ca, cert=cert, key=key)
    assert_accepted(broker.url, ca=ca, cert=cert, key=key)
    assert_waits(tls, ca=ca)
    assert_waits(tls, cert=cert, key=key)


def test_an_authority_and_a_client_certificate_admit_over_https(certificates: Certificates) -> None:
    ca, cert, key = certificates
    with HttpEndpoint() as endpoint:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
        endpoint.use_tls(context)
        assert_accepted(endpoint.url, ca=ca, cert=cert, key=key)
        assert_waits(endpoint.url, ca=ca)
        assert_waits(endpoint.url, cert=cert, key=key)
        assert len(endpoint.bodies) == 1


def test_a_user_or_a_token_is_sent_over_http() -> None:
    with HttpEndpoint() as endpoint:
        named = endpoint.url.replace("://", f"://me:{quote(PASSWORD, safe='')}@")
        for url, access in (
            (endpoint.url, {"token": "t"}),
            (endpoint.url, {"user": "me", "password": PASSWORD}),
            (named, {}),
        ):
            assert_accepted(url, **access)
        bearer, basic, from_url = (headers["Authorization"] for headers in endpoint.headers)
    assert bearer == "Bearer t"
    assert basic == from_url
    assert basic.startswith("Basic ")


def test_of_several_servers_one_that_answers_is_used(broker: Broker) -> None:
    create_streams(broker.url)
    assert_accepted(f"nats://127.0.0.1:{free_port()},{broker.url}, 127.0.0.1:{free_port()}")


def test_replies_are_received_on_the_inbox_prefix(start: Callable[[str], Broker]) -> None:
    """The user of a reporter may subscribe below its own prefix alone."""
    allowed = "publish: ['tokentrace.raw.>', '$JS.API.>'], subscribe: ['_INBOX_reporter.>']"
    broker = start(
        "authorization { users: [ { user: all, password: all }, "
        f"{{ user: reporter, password: pw, permissions: {{ {allowed} }} }} ] }}\n"
    )
    create_streams(broker.url, Access(user="all", password="all"))
    assert_accepted(broker.url, user="reporter", password="pw", inbox_prefix="_INBOX_reporter")
    assert_waits(broker.url, user="reporter", password="pw")


def test_every_setting_can_come_from_the_environment(start: Callable[[str], Broker]) -> None:
    broker = start("authorization { user: reporter, password: 'from env' }\n")
    create_streams(broker.url, Access(user="reporter", password="from env"))
    done = run_program(
        "os.environ.update(TOKENTRACE_URL=url, TOKENTRACE_PROJECT='shop', TOKENTRACE_SOURCE='till',\n"
        "    TOKENTRACE_USER='reporter', TOKENTRACE_PASSWORD='from env', TOKENTRACE_INBOX_PREFIX='_MINE')\n"
        "reporter = Reporter()\n"
        "reporter.report(Span(name='x', kind='custom'))\n"
        "assert reporter.flush(15), reporter.stats()\n"
        "print(reporter.source)\n",
        broker.url,
    )
    assert (done.stdout, done.stderr) == ("till\n", "")
    (stored,) = read_raw(broker.url.replace("://", "://reporter:from%20env@").replace("%20", " "))
    assert stored.subject.startswith("tokentrace.raw.shop.")
    assert stored.batch.source == "till"
    assert span_names([stored]).total() == 1


def test_without_a_source_the_name_of_the_program_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENTRACE_SOURCE", raising=False)
    for argument, name in (
        ("/srv/app/worker.py", "worker"),
        ("/srv/shop/__main__.py", "shop"),
        ("-c", "c"),
        ("", "python"),
    ):
        monkeypatch.setattr("sys.argv", [argument])
        assert Reporter(url="").source == name


@pytest.mark.parametrize(
    ("url", "access", "part"),
    [
        ("nats://h", {"token": "t", "user": "u"}, "user and token"),
        ("nats://h", {"password": "p"}, "no user"),
        ("nats://h", {"ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ("nats://h", {"key": "/nowhere/key.pem"}, "no cert"),
        ("http://h", {"creds": __file__}, "creds"),
        ("http://h", {"nkey": __file__}, "nkey"),
        ("http://h", {"ca": __file__}, "https://"),
        ("http://u:p@h", {"token": "t"}, "only one"),
        ("nats://a,ws://b", {}, "list of servers"),
        ("nats://h", {"inbox_prefix": "a b"}, "inbox_prefix"),
    ],
)
def test_what_cannot_work_is_a_config_error_that_names_it(url: str, access: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Reporter("wrong", url, **access)


def test_without_the_package_nkeys_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "seed").write_text("SU")
    done = run_program(
        "sys.modules['nkeys'] = None\n"
        "import importlib.util\n"
        "from tokentrace import ConfigError\n"
        "try:\n"
        "    Reporter('x', 'nats://127.0.0.1', nkey=url)\n"
        "except ConfigError as exc:\n"
        "    print(exc)\n",
        str(tmp_path / "seed"),
    )
    assert "tokentrace[nkeys]" in done.stdout, done.stderr
