"""The transport that prints: whole lines, at once, in any encoding, and an error when nothing can be printed."""

from __future__ import annotations

import io
import json
import sys
import threading

import pytest

from kit.builders import make_span
from tokentrace import Stats
from tokentrace.client.transports import StdoutTransport, open_transport
from tokentrace.dialect.docs import decode_spans
from tokentrace.errors import ConfigError, Unavailable


def test_each_span_is_printed_at_once_on_a_line_that_ingest_reads(capsys: pytest.CaptureFixture[str]) -> None:
    StdoutTransport().send([make_span(name="a"), make_span(name="b")])
    lines = capsys.readouterr().out.splitlines()
    assert [decode_spans(line.encode())[0].name for line in lines] == ["a", "b"]


def test_pretty_prints_a_span_on_indented_lines(capsys: pytest.CaptureFixture[str]) -> None:
    transport = open_transport("stdout:?pretty=true")
    transport.send([make_span(name="a")])
    out = capsys.readouterr().out
    assert out.startswith('{\n  "trace_id": ')
    assert json.loads(out)["name"] == "a"


def test_secrets_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    StdoutTransport().send([make_span(attributes={"password": "geheim"})])
    assert "geheim" not in capsys.readouterr().out


def test_an_output_without_unicode_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    StdoutTransport().send([make_span(name="ü \U0001f600")])
    assert json.loads(raw.getvalue())["name"] == "ü \U0001f600"


def test_a_closed_output_is_an_error_and_the_spans_count_as_failed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = io.StringIO()
    output.close()
    monkeypatch.setattr(sys, "stdout", output)
    transport = StdoutTransport()
    for _ in range(50):
        with pytest.raises(Unavailable, match="the standard output: ValueError"):
            transport.send([make_span(), make_span()])
    assert transport.stats() == Stats(sent=100, acked=0, dropped=0, failed=100, queue_depth=0)
    assert len(caplog.records) == 1
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(Unavailable, match="AttributeError"):
        transport.send([make_span()])


def test_an_invalid_span_is_counted_and_named_and_the_others_are_printed(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    transport = StdoutTransport()
    transport.send([make_span(name="a"), make_span(model=""), make_span(name="c", error="x" * 50_000)])
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert transport.stats() == Stats(sent=3, acked=2, dropped=0, failed=0, queue_depth=0, rejected=1, truncated=1)
    assert "model: required when kind is llm" in caplog.text


def test_lines_of_many_threads_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    transport = StdoutTransport()

    def work() -> None:
        for _ in range(50):
            transport.send([make_span(), make_span()])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert len({json.loads(line)["span_id"] for line in lines}) == len(lines) == transport.stats().acked == 800


def test_after_close_nothing_is_printed_and_spans_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    transport = StdoutTransport()
    assert transport.flush(0)
    transport.close()
    transport.close()
    transport.send([make_span()])
    assert capsys.readouterr().out == ""
    assert transport.stats().dropped == 1


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("stdout:x", "stdout: takes no path"),
        ("stdout:?color=true", "stdout: has no option 'color', only pretty"),
        ("stdout:?pretty=1", "stdout: pretty=1 cannot be read"),
    ],
)
def test_a_url_with_what_stdout_does_not_take_is_an_error(url: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        open_transport(url)
