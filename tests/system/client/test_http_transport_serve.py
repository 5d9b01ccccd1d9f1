"""The HTTP transport against our own server, and in programs that end or fork."""

from __future__ import annotations

import json
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.builders import make_span
from kit.credentials import make_certificates
from kit.peers import HttpEndpoint
from kit.pipeline import Pipeline
from kit.programs import assert_ended, run_program
from kit.receiver import Receiver, Reply
from kit.reporting import until
from tokentrace import FileTransport, HttpTransport, MultiTransport, Stats


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    serving = Pipeline(tmp_path_factory.mktemp("http-transport"))
    serving.start()
    yield serving
    serving.stop()


@pytest.fixture
def server() -> Iterator[Receiver]:
    """Yield a server of the documented API that accepts everything."""
    with Receiver(lambda sent: Reply(202)) as receiver:
        yield receiver


def stored(pipeline: Pipeline, trace_id: str, count: int) -> list[dict[str, object]]:
    """Return the spans of a trace once it has *count* of them."""
    path = f"/traces/{trace_id}"
    until(lambda: pipeline.get(path).status == 200 and len(pipeline.get(path).json()["spans"]) >= count, "stored")
    spans: list[dict[str, object]] = pipeline.get(path).json()["spans"]
    return spans


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_our_own_server_stores_what_is_posted(pipeline: Pipeline, compression: str) -> None:
    trace_id = f"http-transport-{compression}"
    transport = HttpTransport(pipeline.url, batch_size=7, compression=compression)  # type: ignore[arg-type]  # a str
    transport.send([make_span(trace_id=trace_id, name=f"{number}", attributes={"a": [1]}) for number in range(30)])
    transport.send([make_span(trace_id=trace_id, name="30", prompt_tokens=2**40, total_tokens=2**41)])
    assert transport.flush(60)
    assert transport.stats() == Stats(sent=31, acked=31, dropped=0, failed=0, queue_depth=0)
    transport.close()
    spans = stored(pipeline, trace_id, 31)
    assert Counter(span["name"] for span in spans) == Counter(f"{number}" for number in range(31))


def test_the_lines_of_a_file_are_taken_unchanged_by_our_own_server(
    pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "traces.jsonl"
    both = MultiTransport(FileTransport(path), HttpTransport(pipeline.url))
    both.send([make_span(trace_id="posted-twice", name=f"{number}") for number in range(5)])
    assert both.flush(60)
    both.close()
    for line in path.read_bytes().splitlines():
        assert pipeline.post("/spans", json.loads(line)).status == 202
    assert len(stored(pipeline, "posted-twice", 5)) == 5  # a call that is told twice counts once


def test_a_program_that_just_ends_posts_its_spans_first(server: Receiver) -> None:
    done = run_program(
        "from tokentrace import HttpTransport\n"
        "transport = HttpTransport(url)\n"
        "transport.send([Span(name=f'{index}', kind='custom') for index in range(250)])\n"
        "sys.exit(3)\n",
        server.url,
    )
    assert_ended(done, 3)
    assert [span["name"] for sent in server.sent for span in sent.json()] == [f"{index}" for index in range(250)]


def test_a_program_ends_although_the_server_is_away_and_says_what_is_lost(server: Receiver) -> None:
    server.answer = lambda sent: Reply(503)
    done = run_program(
        "from tokentrace import HttpTransport\n"
        "HttpTransport(url, retry_backoff=60).send([Span(name='x', kind='custom')])\n"
        "print('end')\n",
        server.url,
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
    assert "spans lost: 1 (1 dropped" in done.stderr
    assert done.stderr.count("\n") == 2


def test_a_silent_server_does_not_keep_a_file_from_being_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run_program(
            "from tokentrace import FileTransport, HttpTransport, MultiTransport\n"
            "both = MultiTransport(HttpTransport(url, timeout=600), FileTransport(sys.argv[2]))\n"
            "both.send([Span(name=f'{index}', kind='custom') for index in range(10)])\n",
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            str(path),
        )
    assert done.returncode == 0
    assert "spans lost: 10 (10 dropped" in done.stderr
    assert done.stderr.count("\n") == 2
    assert [json.loads(line)["name"] for line in path.read_bytes().splitlines()] == [f"{index}" for index in range(10)]


def test_over_tls_only_a_server_that_can_prove_its_name_gets_spans(tmp_path: Path) -> None:
    ca, cert, key = make_certificates(tmp_path / "certificates")
    program = (
        "from tokentrace import HttpTransport\n"
        "transport = HttpTransport(url, max_retries=0)\n"
        "transport.send([Span(name='a', kind='custom'), Span(name='b', kind='custom')])\n"
        "assert transport.flush(30)\n"
        "print(transport.stats().acked, transport.stats().failed)\n"
    )
    with HttpEndpoint() as endpoint:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        endpoint.use_tls(context)
        refused = run_program(program, endpoint.url)
        assert refused.stdout == "0 2\n", refused.stderr
        assert "SSLCertVerificationError" in refused.stderr
        assert endpoint.bodies == []
        trusted = run_program(f"os.environ['SSL_CERT_FILE'] = {str(ca)!r}\n{program}", endpoint.url)
        assert_ended(trusted)
        assert trusted.stdout == "2 0\n"
        assert [span["name"] for span in json.loads(endpoint.bodies[0])] == ["a", "b"]


def test_a_forked_child_uses_a_connection_and_keys_of_its_own(server: Receiver) -> None:
    done = run_program(
        "from tokentrace import HttpTransport\n"
        "transport = HttpTransport(url, batch_size=10)\n"
        "transport.send([Span(name='before', kind='custom')])\n"
        "assert transport.flush(30)\n"
        "transport.send([Span(name=f'parent-{index}', kind='custom') for index in range(5)])\n"
        "for child in range(6):\n"
        "    if os.fork() == 0:\n"
        "        assert not any(transport.stats()), transport.stats()\n"
        "        transport.send([Span(name=f'child-{child}-{index}', kind='custom') for index in range(25)])\n"
        "        sys.exit(0)\n"
        "for child in range(6):\n"
        "    assert os.wait()[1] == 0\n"
        "transport.send([Span(name='after', kind='custom')])\n"
        "assert transport.flush(30)\n"
        "assert transport.stats().acked == 7, transport.stats()\n",
        server.url,
        forks=True,
    )
    assert_ended(done)
    found = Counter(span["name"] for sent in server.sent for span in sent.json())
    assert found == Counter(
        [
            *("before", "after"),
            *(f"parent-{index}" for index in range(5)),
            *(f"child-{child}-{index}" for child in range(6) for index in range(25)),
        ]
    )
    assert len({sent.key for sent in server.sent}) == len(server.sent)
    for sent in server.sent:
        assert len({span["name"].split("-")[0] for span in sent.json()} - {"before", "after"}) <= 1
