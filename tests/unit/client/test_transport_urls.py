"""Which transport a URL opens, and the error for a URL that opens none."""

from __future__ import annotations

import logging

import pytest

from kit.builders import make_span
from tokentrace.client.transports import (
    BufferTransport,
    NatsTransport,
    NoopTransport,
    PipelineTransport,
    Transport,
    open_transport,
)
from tokentrace.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("nats://127.0.0.1:4222", NatsTransport),
        ("tls://127.0.0.1:4222", NatsTransport),
        ("http://127.0.0.1:8700", PipelineTransport),
        ("https://127.0.0.1:8700/base", PipelineTransport),
        ("noop:", NoopTransport),
    ],
)
def test_the_scheme_of_a_url_chooses_the_transport(url: str, kind: type) -> None:
    transport = open_transport(url, source="test", project="shop", shards=None, redactor=None)
    assert type(transport) is kind
    assert isinstance(transport, Transport)
    transport.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://host", "transport: the scheme ftp: is none of nats:, tls:, http:, https:, file:, stdout:, noop:"),
        ("no scheme", "transport: the URL has no scheme"),
        ("geheim word:4222", "transport: the URL has no scheme"),
        ("noop:x", "transport: noop: takes no path and no options"),
        ("nats://", "reporter: "),
        ("http://host:0", "reporter: the URL names port 0"),
    ],
)
def test_a_url_that_opens_no_transport_is_an_error_that_says_why(url: str, error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_transport(url)
    assert str(raised.value).startswith(error)
    assert "geheim" not in str(raised.value)


def test_a_nats_transport_refuses_a_url_of_another_scheme() -> None:
    with pytest.raises(ConfigError, match="must start with nats:// or tls://"):
        NatsTransport("http://127.0.0.1:8700")


def test_without_an_argument_the_environment_names_the_transport(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOKENTRACE_URL", "noop:")
    assert type(open_transport()) is NoopTransport
    monkeypatch.delenv("TOKENTRACE_URL")
    with caplog.at_level(logging.WARNING, "tokentrace"):
        open_transport(source="forgotten")
    assert "forgotten: spans are ignored, because neither url nor TOKENTRACE_URL is set" in caplog.text


def test_every_transport_has_the_methods_of_the_protocol() -> None:
    assert isinstance(BufferTransport(), Transport)
    assert not isinstance(object(), Transport)


def test_options_of_the_transport_that_the_url_names_are_used_and_the_url_wins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_transport("stdout:", pretty=True, project="shop").send([make_span()])
    assert len(capsys.readouterr().out.splitlines()) > 10
    open_transport("stdout:?pretty=false", pretty=True).send([make_span()])
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "option", "error"),
    [
        ("stdout:", "rotate", "stdout: has no option 'rotate', only pretty"),
        ("file:x", "pretty", "file: has no option 'pretty', only rotate"),
        ("nats://127.0.0.1:4222", "rotate", "rotate: is no option of a transport to a pipeline"),
    ],
)
def test_an_option_of_another_transport_is_an_error(url: str, option: str, error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        open_transport(url, **{option: True})  # type: ignore[arg-type]  # wrong on purpose
