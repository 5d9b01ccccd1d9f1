"""What of a URL is shown: scheme, host and port, and nothing that may be a secret."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.bus.jetstream import shown_urls
from tokentrace.shown import shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://hooks.slack.com/services/T0/B0/geheim", "https://hooks.slack.com/..."),
        ("https://discord.com/api/webhooks/1/geheim", "https://discord.com/..."),
        ("https://x.webhook.office.com/webhookb2/geheim?a=geheim", "https://x.webhook.office.com/..."),
        ("https://events.pagerduty.com?key=geheim", "https://events.pagerduty.com/..."),
        ("https://example.com/#geheim", "https://example.com/..."),
        ("http://user:geheim@10.0.0.1:9093/hook", "http://10.0.0.1:9093/..."),
        ("http://geheim@[::1]:8080", "http://[::1]:8080"),
        ("http://am:9093/", "http://am:9093"),
        ("http://am:9093", "http://am:9093"),
        ("nats://user:geheim@nats-1:4222", "nats://nats-1:4222"),
        ("nats://geheim@nats-1", "nats://nats-1"),
        ("tls://a:ge@heim@nats-1:4222", "tls://nats-1:4222"),
        # A password that should have been escaped ends the host early for a parser.
        ("http://user:ge/heim@host/x", "http://..."),
        ("http://user:ge?heim@host/x", "http://..."),
        ("http://user:ge#heim@host", "http://..."),
        ("http://[geheim/x", "http://..."),
        ("http://ge heim/x", "http://..."),
        ("http://", "http://..."),
        ("geheim", "..."),
        ("user:geheim@host:4222", "..."),
        ("", "..."),
    ],
)
def test_only_scheme_host_and_port_are_shown(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_what_is_shown_is_shown_unchanged() -> None:
    for url in ("https://hooks.slack.com/services/x", "http://am:9093", "http://u:p/w@h"):
        assert shown_url(shown_url(url)) == shown_url(url)


def test_the_servers_of_a_cluster_are_shown_without_users() -> None:
    given = "nats://u:geheim@a:4222,b:4222, nats://geheim@c,tls://u:ge,heim@d:1"
    assert shown_urls(given) == "nats://a:4222,nats://b:4222,nats://c,tls://d:1"


@given(
    user=st.text("abc:@/?#%[]\\ ", max_size=8),
    path=st.text("abc/@?#:%=&", max_size=8),
)
def test_no_secret_is_shown_wherever_it_stands(user: str, path: str) -> None:
    """The secret stands in a user or password with any characters, and in a path or query with any characters."""
    for url in (f"https://{user}geheim@host.example/{path}", f"https://host.example/{path}geheim{path}"):
        assert "geheim" not in shown_url(url), url
    assert re.fullmatch(r"[!-~]*", shown_url(f"https://{user}geheim@host.example/{path}"))
