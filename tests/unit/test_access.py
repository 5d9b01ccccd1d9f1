"""API keys: no record gives a key away, and each scope allows what it says."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokentrace.access import (
    ID_BYTES,
    SCOPES,
    SECRET_BYTES,
    ApiKey,
    digest_of,
    id_of,
    make_key,
    may,
    needed_scope,
    parse_scopes,
)
from tokentrace.errors import Rejected


def made(name: str = "shop", scopes: tuple[str, ...] = ("ingest",), **more: int) -> tuple[str, ApiKey]:
    random = secrets.token_bytes(ID_BYTES + SECRET_BYTES)
    return make_key(name, "default", scopes, random=random, now_ns=100, **more)


def test_what_is_kept_of_a_key_does_not_contain_it() -> None:
    text, key = made()
    secret = text.rpartition("_")[2] if text.count("_") == 2 else text[14:]
    assert id_of(text.encode()) == key.id
    assert digest_of(text.encode()).hex() == key.sha256
    assert secret not in repr(key)


@given(st.binary(min_size=37, max_size=37))
def test_every_key_has_the_form_of_one_and_tells_its_id(random: bytes) -> None:
    text, key = make_key("shop", "default", ["read"], random=random, now_ns=1)
    assert id_of(text.encode()) == key.id == random[:5].hex()


@given(st.binary(max_size=80))
def test_other_bytes_have_no_id_and_are_no_error(sent: bytes) -> None:
    found = id_of(sent)
    assert found == "" or sent.startswith(b"tt_" + found.encode())


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 101, "\x00"])
def test_a_name_that_cannot_be_read_is_refused(name: str) -> None:
    with pytest.raises(Rejected, match="name: "):
        made(name)


def test_scopes_are_ordered_once_and_known() -> None:
    assert parse_scopes(["admin", "ingest", "admin"]) == ("ingest", "admin")
    with pytest.raises(Rejected, match="'write' is none of ingest, read, admin"):
        parse_scopes(["write", "read"])
    with pytest.raises(Rejected, match="name one of"):
        parse_scopes([])


def test_admin_may_everything_and_the_others_what_they_say() -> None:
    allowed = {(held, wanted) for held in SCOPES for wanted in SCOPES if may((held,), wanted)}
    assert allowed == {("ingest", "ingest"), ("read", "read"), *(("admin", wanted) for wanted in SCOPES)}


def test_a_key_ends_at_its_instant_or_when_it_is_revoked() -> None:
    assert made()[1].ended(10**30) == ""
    expiring = made(expires_ns=200)[1]
    assert (expiring.ended(199), expiring.ended(200)) == ("", "has expired")
    revoked = ApiKey(**{name: getattr(expiring, name) for name in expiring.__struct_fields__} | {"revoked_ns": 150})
    assert (revoked.ended(149), revoked.ended(150)) == ("", "is revoked")


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/metrics", "read"),
        ("HEAD", "/", "read"),
        ("GET", "/spans", "read"),
        ("POST", "/spans", "ingest"),
        ("POST", "/api/traces/start", "ingest"),
        ("POST", "/api/sessions/s/end", "ingest"),
        ("POST", "/scores", "ingest"),
        ("POST", "/alerts/preview", "read"),
        ("POST", "/alerts", "admin"),
        ("PUT", "/alerts/a", "admin"),
        ("DELETE", "/traces/t", "admin"),
        ("PUT", "/spans", "admin"),
        ("POST", "/anything/new", "admin"),
    ],
)
def test_what_sends_needs_ingest_what_asks_read_and_the_rest_admin(method: str, path: str, scope: str) -> None:
    assert needed_scope(method, path, ("/spans",)) == scope
