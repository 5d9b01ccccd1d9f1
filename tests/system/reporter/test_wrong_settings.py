"""Whatever is wrong with the settings of a reporter, it says so once, says at its end what was lost, and ends."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.broker import Broker
from kit.builders import make_span
from kit.peers import HttpEndpoint
from kit.pipeline import free_port
from kit.programs import assert_ended, run_program
from kit.raw_stream import create_streams, read_raw, span_names
from kit.reporting import WAIT_S
from tokentrace import Reporter
from tokentrace.bus.access import Access

pytestmark = pytest.mark.broker

_ALLOWED = "publish: ['tokentrace.raw.default.>', '$JS.API.>', '_INBOX.>'], subscribe: ['_INBOX.>', 'tokentrace.>']"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Yield a broker at which a user may send to the project ``default`` alone."""
    users = f"{{ user: all, password: all }}, {{ user: me, password: pw, permissions: {{ {_ALLOWED} }} }}"
    broker = Broker(tmp_path_factory.mktemp("guarded") / "nats", extra=f"authorization {{ users: [ {users} ] }}\n")
    broker.start()
    create_streams(broker.url, Access(user="all", password="all"))
    yield broker
    broker.stop()


@pytest.mark.parametrize("wrong", ["host", "port", "scheme", "other scheme", "password", "project"])
def test_each_wrong_setting_is_one_warning_and_one_more_at_the_end(guarded: Broker, wrong: str) -> None:
    with HttpEndpoint() as endpoint:
        url = {
            "host": f"nats://127.0.0.99:{guarded.port}",
            "port": f"nats://127.0.0.1:{free_port()}",
            "scheme": guarded.url.replace("nats://", "http://"),
            "other scheme": endpoint.url.replace("http://", "nats://"),
        }.get(wrong, guarded.url)
        done = run_program(
            "wrong = sys.argv[2]\n"
            "password = 'no' if wrong == 'password' else 'pw'\n"
            "project = 'other' if wrong == 'project' else 'default'\n"
            "reporter = Reporter('wrong', url, user='me', password=password, project=project)\n"
            "reporter.report(Span(name='x', kind='custom'))\n"
            "time.sleep(7.5)\n",
            url,
            wrong,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert "no span was accepted" in lines[0]
    assert "spans lost: 1 (1 dropped" in lines[1]


def test_the_right_settings_give_no_warning(guarded: Broker) -> None:
    done = run_program(
        "reporter = Reporter('right', url, user='me', password='pw')\n"
        "reporter.report(Span(name='x', kind='custom'))\n"
        "assert reporter.flush(15)\n",
        guarded.url,
    )
    assert_ended(done)


def test_a_reporter_is_pickled_as_its_arguments_and_connects_anew(url: str, tmp_path: Path) -> None:
    with Reporter("pickled", url, project="shop", spool=tmp_path / "spool") as reporter:
        reporter.report(make_span(name="first"))
        assert reporter.flush(WAIT_S)
        with pickle.loads(pickle.dumps(reporter)) as other:
            assert other.id != reporter.id
            assert other.source == "pickled"
            assert other.stats().acked == 0
            other.report(make_span(name="second"))
            assert other.flush(WAIT_S)
    stored = read_raw(url)
    assert span_names(stored) == Counter(["first", "second"])
    assert {message.subject.split(".")[2] for message in stored} == {"shop"}
