"""The further addresses of OTLP: what cannot work is said before anything is started."""

from __future__ import annotations

import pytest

from tokentrace.config import build
from tokentrace.errors import ConfigError
from tokentrace.service import otlp_listen
from tokentrace.service.otlp_listen import OtlpListeners


def test_by_default_there_are_none() -> None:
    listeners = OtlpListeners.bind(build({}, "test.yml"))
    assert (listeners.sockets, listeners.grpc, str(listeners)) == ([], None, "")


def test_without_its_extra_an_address_for_grpc_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(otlp_listen, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"otlp\.grpc_addr: needs the extra 'grpc': pip install 'tokentrace\[grpc\]'"):
        OtlpListeners.bind(build({"otlp": {"grpc_addr": ":4317"}}, "test.yml"))


@pytest.mark.parametrize("key", ["http_addr", "grpc_addr"])
@pytest.mark.parametrize("addr", ["::1:4318", "localhost:port", "x:99999"])
def test_an_address_that_is_none_is_an_error_that_names_its_key(key: str, addr: str) -> None:
    with pytest.raises(ConfigError, match=rf"otlp\.{key}: "):
        OtlpListeners.bind(build({"otlp": {key: addr}}, "test.yml"))


def test_the_two_addresses_must_differ() -> None:
    with pytest.raises(ConfigError, match=r"is the address of otlp\.http_addr already"):
        build({"otlp": {"http_addr": ":4317", "grpc_addr": ":4317"}}, "test.yml")
