"""``otlp.forward``: what is accepted, what is refused, and that no error shows a secret."""

from __future__ import annotations

from typing import Any

import pytest

from kit.forwarding import HEADER_SECRET, URL_SECRET, settings_of
from tokentrace.bus import subjects
from tokentrace.config import build, parse_yaml
from tokentrace.errors import ConfigError
from tokentrace.service.allowed_hosts import AllowedHosts
from tokentrace.service.forward_state import ForwardState, add_up, warnings_of
from tokentrace_ingest.forward.targets import Forwarding

GOOD = {"name": "a", "url": f"https://example.com/{URL_SECRET}", "headers": {"X-Key": HEADER_SECRET}}


def test_the_defaults_send_everything_redacted_and_no_spans_of_other_ways() -> None:
    [target] = Forwarding.of(settings_of(GOOD, allow_hosts=None)).targets
    assert target.signals == {"traces", "logs", "metrics"}
    assert (target.redact, target.spans, target.timeout_s) == (True, False, 10.0)
    assert target.url_of("logs") == f"https://example.com/{URL_SECRET}/v1/logs"
    assert target.shown == "https://example.com/..."
    assert URL_SECRET not in repr(target)
    assert HEADER_SECRET not in repr(target)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "A"}, r"otlp\.forward\[0\]\.name"),
        ({"name": "-a"}, r"\.name"),
        ({"name": "a" * 33}, r"\.name"),
        ({"name": "a.b"}, r"\.name"),
        ({"url": f"ftp://example.com/{URL_SECRET}"}, r"\.url: is not a URL"),
        ({"url": f"example.com/{URL_SECRET}"}, r"\.url: is not a URL"),
        ({"url": f"https://example.com/{URL_SECRET}?a=b"}, r"\.url: has a query"),
        ({"url": f"https://user:{URL_SECRET}@example.com"}, r"\.url: has a user"),
        ({"url": f"https://example.com/{URL_SECRET}/v1/traces"}, r"\.url: ends with /v1/"),
        ({"url": f"https://example.com:port/{URL_SECRET}"}, r"\.url"),
        ({"url": f"https://exa mple.com/{URL_SECRET}"}, r"\.url"),
        ({"headers": {"Content-Type": HEADER_SECRET}}, r"\.headers: Content-Type is set by tokentrace"),
        ({"headers": {"X Key": HEADER_SECRET}}, r"\.headers: 'X Key'"),
        ({"headers": {"X-Key": f"{HEADER_SECRET}\nX: y"}}, r"\.headers\.X-Key: has a character"),
        ({"headers": {"X-Key": [HEADER_SECRET]}}, r"headers"),
        ({"signals": []}, r"\.signals: is empty"),
        ({"signals": ["profiles"]}, r"signals"),
        ({"signals": ["logs"], "spans": True}, r"\.spans: has no effect"),
        ({"timeout": "2m"}, r"\.timeout: 2m"),
        ({"max_age": "0s"}, r"\.max_age"),
        ({"max_bytes": 1}, r"max_bytes"),
        ({"endpoint": "x"}, r"endpoint"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key_and_shows_no_secret(
    change: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        settings_of({**GOOD, **change})
    assert URL_SECRET not in str(caught.value)
    assert HEADER_SECRET not in str(caught.value)


def test_two_targets_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"otlp\.forward\[1\]\.name: a is the name of another target"):
        settings_of(GOOD, GOOD)


@pytest.mark.parametrize("line", ["url: 'https://${UNSET}'", "url: 'https://x'\n      headers: {A: 'Bearer ${UNSET}'}"])
def test_a_secret_whose_variable_is_not_set_is_refused(line: str) -> None:
    text = f"otlp:\n  forward:\n    - name: a\n      {line}\n"
    with pytest.raises(ConfigError, match=r"otlp\.forward\[0\]\..*UNSET is not set, and a secret needs it"):
        build(parse_yaml(text, "test.yml", {}), "test.yml")


def test_there_is_no_stream_without_targets() -> None:
    assert [stream.name for stream in subjects.streams() if stream.name.startswith(subjects.FORWARD)] == []


@pytest.mark.parametrize(
    ("address", "is_public"),
    [("93.184.216.34", True), ("127.0.0.1", False), ("10.0.0.1", False), ("::1", False), ("64:ff9b::7f00:1", False)],
)
def test_hosts_with_private_addresses_are_usable_only_if_listed(address: str, is_public: bool) -> None:
    strict = AllowedHosts.parse(None, "key", private=False)
    listed = AllowedHosts.parse(["example.com"], "key", private=False)
    assert listed.usable("example.com", [address]) == [address]
    assert AllowedHosts.parse(None, "key").usable("example.com", [address]) == [address]
    if is_public:
        assert strict.usable("example.com", [address]) == [address]
    else:
        with pytest.raises(Exception, match="private addresses, and key does not list it"):
            strict.usable("example.com", [address])


def test_the_processes_of_ingest_add_up_what_each_counts_and_not_what_all_measure() -> None:
    one = ForwardState(to="x", waiting=5, lag_s=2.0, sent=10, refused=1, rejected_records=2, lost=3, failing="HTTP 503")
    other = ForwardState(
        to="x", waiting=4, lag_s=1.0, sent=7, lost=3, last_error="HTTP 400", last_error_at="2026-03-15T14:23:01.441Z"
    )
    total = add_up([{"a": one}, {"a": other}, {}])["a"]
    assert total == ForwardState(
        to="x",
        waiting=5,
        lag_s=2.0,
        sent=17,
        refused=1,
        rejected_records=2,
        lost=3,
        failing="HTTP 503",
        last_error="HTTP 400",
        last_error_at="2026-03-15T14:23:01.441Z",
    )
    assert warnings_of({"a": total}) == [
        "ingest: the target a of otlp.forward takes nothing: HTTP 503; 5 requests wait",
        "ingest: the target a of otlp.forward has refused 1 requests: HTTP 400",
        "ingest: the target a of otlp.forward has not got 3 requests, which were discarded before they were sent",
    ]
    assert warnings_of({"a": ForwardState(to="x", waiting=3)}) == []
