"""``alert_delivery.allow_hosts``: the meaning of its entries, the spellings of an address, and refused addresses."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokentrace.config import build, load, parse_yaml
from tokentrace.errors import ConfigError, Rejected
from tokentrace.service.allowed_hosts import AllowedHosts, parse_address
from tokentrace_alerter.service import Config

KEY = "alert_delivery.allow_hosts"
ANY = AllowedHosts()


def allows(entries: list[str] | None, url: str) -> bool:
    try:
        AllowedHosts.parse(entries, KEY).check_url(url)
    except Rejected:
        return False
    return True


# -- spellings of an address


def spelled(address: ipaddress.IPv4Address, front: list[str], last: str) -> str:
    """Return *address*: the first bytes as numbers in the bases *front*, the rest as one number in the base *last*."""
    words, rest = [], int(address)
    for at, base in enumerate(front):
        shift = 24 - 8 * at
        words.append(in_base(rest >> shift, base))
        rest &= (1 << shift) - 1
    return ".".join([*words, in_base(rest, last)])


def in_base(number: int, base: str) -> str:
    return {"decimal": f"{number}", "octal": f"0{number:o}", "hex": f"0x{number:x}", "HEX": f"0X{number:X}"}[base]


bases = st.sampled_from(["decimal", "octal", "hex", "HEX"])


@given(st.ip_addresses(v=4), st.lists(bases, max_size=3), bases)
def test_an_address_is_the_same_in_every_spelling(address: ipaddress.IPv4Address, front: list[str], last: str) -> None:
    text = spelled(address, front, last)
    assert parse_address(text) == parse_address(text + ".") == address
    assert parse_address(f"::ffff:{address}") == address
    assert parse_address(f"[::ffff:{int(address) >> 16:x}:{int(address) & 0xFFFF:x}]") == address


@given(st.text(alphabet="0123456789abcfxX.", max_size=24))
@example("0")
@example("127.1")
@example("0x")
@example("08.1.1.1")
@example("1.2.3.4.5")
@example("256.1")
@example("1.16777216")
@example("4294967296")
def test_numeric_addresses_are_parsed_as_the_c_library_parses_them(text: str) -> None:
    """Final dots are not compared, because the C library refuses an address that ends with one."""
    text = text.rstrip(".")
    try:
        wanted = ipaddress.IPv4Address(socket.inet_aton(text))
    except OSError:
        wanted = None
    assert parse_address(text) == wanted


NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "169.254.255.255",
    "2852039166",
    "0xA9FEA9FE",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "169.16689662",
    "169.254.169.254.",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[fe80::1]",
    "[febf:ffff::1]",
    "[fd00:ec2::254]",
    "[fd20:ce::254]",
    "100.100.100.200",
    "168.63.129.16",
]


@pytest.mark.parametrize("host", NEVER)
@pytest.mark.parametrize("entries", [None, ["0.0.0.0/0", "::/0"]])
def test_a_link_local_or_metadata_address_is_refused_in_many_spellings(entries: list[str] | None, host: str) -> None:
    # The HTTP client cannot parse a URL with an octal address, so no request goes there.
    with pytest.raises(Rejected, match="cannot be read" if host.startswith("0251") else "link-local or metadata"):
        AllowedHosts.parse(entries, KEY).check_url(f"http://{host}/latest")
    with pytest.raises(Rejected, match="link-local or metadata"):
        AllowedHosts.parse(entries, KEY).check_host(host, 80)


@given(st.ip_addresses(network="169.254.0.0/16"), st.lists(bases, max_size=3), bases)
def test_no_spelling_of_a_link_local_address_is_allowed(
    address: ipaddress.IPv4Address, front: list[str], last: str
) -> None:
    assert not allows(None, f"http://{spelled(address, front, last)}/")
    assert not allows(["0.0.0.0/0", "::/0"], f"https://[::ffff:{address}]:8443/x")


UNRESTRICTED = [
    "169.253.255.255",
    "169.255.0.0",
    "100.100.100.201",
    "127.0.0.1",
    "10.0.0.1",
    "[::1]",
    "[fec0::1]",
    "[fe7f::1]",
    "[fd00:ec2::255]",
    "[64:ff9b::808:808]",
    "example.org",
    "a9fea9fe",
    "0xa9fea9fe.example.org",
    "printer.local",
]


@pytest.mark.parametrize("host", UNRESTRICTED)
def test_without_a_list_every_other_host_is_allowed(host: str) -> None:
    assert allows(None, f"http://{host}:81/x")


# -- what an entry means


@pytest.mark.parametrize(
    ("entry", "url", "wanted"),
    [
        ("hooks.example.com", "https://hooks.example.com/x", True),
        ("hooks.example.com", "http://HOOKS.Example.com.:8080/x", True),
        ("Hooks.Example.Com.", "http://hooks.example.com", True),
        ("hooks.example.com", "https://a.hooks.example.com/x", False),
        ("hooks.example.com", "https://example.com/x", False),
        ("hooks.example.com", "https://hooks.example.com.evil.org/x", False),
        ("hooks.example.com", "https://hooks.example.com@evil.org/x", False),
        ("hooks.example.com", "https://evil.org/hooks.example.com", False),
        ("hooks.example.com:443", "https://hooks.example.com/x", True),
        ("hooks.example.com:443", "http://hooks.example.com/x", False),
        ("hooks.example.com:80", "http://hooks.example.com/x", True),
        ("hooks.example.com:8443", "https://hooks.example.com:8443/x", True),
        ("bücher.example", "http://xn--bcher-kva.example/", True),
        ("xn--bcher-kva.example", "http://Bücher.example/", True),
        ("alert_manager", "http://alert_manager:9093", True),
        ("10.0.0.5", "http://10.0.0.5/", True),
        ("10.0.0.5", "http://0xa.5/", True),
        ("10.0.0.5", "http://[::ffff:10.0.0.5]/", True),
        ("10.0.0.5", "http://10.0.0.6/", False),
        ("10.0.0.5:9093", "http://10.0.0.5:9093/", True),
        ("10.0.0.5:9093", "http://10.0.0.5/", False),
        ("10.0.0.0/8", "http://10.255.255.255/", True),
        ("10.0.0.0/8", "http://11.0.0.0/", False),
        ("10.0.0.0/8:9093", "http://10.1.1.1:9093/", True),
        ("10.0.0.0/8:9093", "http://10.1.1.1:9094/", False),
        ("::ffff:10.0.0.0/104", "http://10.1.1.1/", True),
        ("::1", "http://[::1]:9093/", True),
        ("[::1]", "http://[0:0:0:0:0:0:0:1]/", True),
        ("[::1]:9093", "http://[::1]:9093/", True),
        ("[::1]:9093", "http://[::1]/", False),
        ("fd00::/8", "http://[fd12::1]/", True),
        ("[fd00::/8]:80", "http://[fd12::1]/", True),
        ("[fd00::/8]:80", "http://[fd12::1]:81/", False),
        ("::/0", "http://10.0.0.1/", False),
        ("0.0.0.0/0", "http://[::1]/", False),
        # A name is not resolved to check it against a range.
        ("127.0.0.0/8", "http://localhost/", False),
        ("127.0.0.0/8", "http://2130706433/", True),
        ("127.0.0.0/8", "http://0.0.0.0/", False),
    ],
)
def test_an_entry_allows_the_hosts_that_it_names_and_no_others(entry: str, url: str, wanted: bool) -> None:
    assert allows([entry], url) is wanted
    assert allows(["other.example", entry, "192.0.2.7"], url) is wanted


@given(st.ip_addresses(), st.ip_addresses(), st.integers(0, 128), st.none() | st.integers(1, 65535))
def test_a_range_allows_the_addresses_that_begin_with_its_bits(
    base: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    bits: int,
    port: int | None,
) -> None:
    width = base.max_prefixlen
    bits = min(bits, width)
    if base.version == 6 and (int(base) >> 32 in (0, 0xFFFF) or int(other) >> 32 in (0, 0xFFFF)):
        return
    host_bits = width - bits
    start = type(base)(int(base) >> host_bits << host_bits)
    entry = f"{start}/{bits}" if base.version == 4 else f"[{start}/{bits}]"
    try:
        allowed = AllowedHosts.parse([entry if port is None else f"{entry}:{port}"], KEY)
    except ConfigError:
        assert not allows(None, f"http://{start}/" if base.version == 4 else f"http://[{start}]/")
        return
    url = f"http://{other}:{port or 80}/" if other.version == 4 else f"http://[{other}]:{port or 80}/"
    wanted = base.version == other.version and int(other) >> host_bits == int(start) >> host_bits
    try:
        allowed.check_url(url)
        assert wanted
    except Rejected:
        assert not (wanted and allows(None, url))


def test_an_empty_list_allows_no_host() -> None:
    assert not allows([], "http://127.0.0.1/")
    assert allows(None, "http://127.0.0.1/")


INVALID_ENTRIES = [
    "*",
    "*.example.com",
    "https://example.com",
    "example.com/",
    "example.com:",
    "a:0",
    "a:65536",
    "a:http",
    "a,b",
    "-a.example",
    "a..b",
    "user@host",
    "10.0.0.1/8",
    "10.0.0.0/33",
    "10.0.0.0/8/8",
    "1.2.3.4.5",
    "example.1",
    "host.0x1f",
    "[::1",
    "::1]",
    "[10.0.0.1]",
    "[::1]:",
    "::g",
]


@pytest.mark.parametrize("entry", ["", " ", "exa mple.com", "x" * 64, *INVALID_ENTRIES])
def test_an_invalid_entry_is_refused_with_its_index(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^alert_delivery\.allow_hosts\[1\]: "):
        AllowedHosts.parse(["localhost", entry], KEY)


@pytest.mark.parametrize(
    "entry", ["169.254.169.254", "169.254.0.0/16", "169.254.169.254:80", "0xa9fea9fe", "fe80::/64", "::ffff:a9fe:101"]
)
def test_a_link_local_or_metadata_entry_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"^alert_delivery\.allow_hosts\[0\]: .*cannot be allowed"):
        AllowedHosts.parse([entry], KEY)


@pytest.mark.parametrize("url", ["http://[::1", "http://\u2488example/", "http://a" + "x" * 70_000])
def test_an_unreadable_host_is_refused(url: str) -> None:
    assert not allows(None, url)


# -- the addresses of a name


@pytest.mark.parametrize(
    ("resolved", "usable"),
    [
        (["10.0.0.1"], ["10.0.0.1"]),
        (["169.254.169.254", "10.0.0.1", "10.0.0.1", "fe80::1%eth0"], ["10.0.0.1"]),
        (["fd12::1", "::ffff:169.254.169.254", "10.0.0.1"], ["fd12::1", "10.0.0.1"]),
    ],
)
def test_link_local_addresses_and_repetitions_among_those_of_a_name_are_not_used(
    resolved: list[str], usable: list[str]
) -> None:
    assert ANY.usable("name", resolved) == usable


@pytest.mark.parametrize("resolved", [[], ["169.254.169.254"], ["fe80::1%2", "fd00:ec2::254"]])
def test_a_name_without_a_usable_address_is_refused_and_named(resolved: list[str]) -> None:
    with pytest.raises(Rejected, match=r"metadata\.example"):
        AllowedHosts.parse(["metadata.example"], KEY).usable("metadata.example", resolved)


# -- the settings


RULE = "{name: r, metric: span_count, op: gt, threshold: 1, window: 1h, delivery: {type: %s, url: '%s'}}"


def configured(text: str) -> Config:
    return Config.of(build(parse_yaml(text, "test.yml", {}), "test.yml"))


@pytest.mark.parametrize("kind", ["http", "webhook", "alertmanager"])
def test_a_rule_of_the_file_for_another_host_is_refused_naming_the_rule_and_the_host(kind: str) -> None:
    rule = RULE % (kind, "http://hooks.example.com:81/x")
    with pytest.raises(ConfigError, match=r"alerts\[0\]\.delivery\.url: host 'hooks\.example\.com' with port 81 "):
        configured(f"alert_delivery: {{allow_hosts: [127.0.0.1]}}\nalerts: [{rule}]")
    config = configured(f"alert_delivery: {{allow_hosts: [hooks.example.com]}}\nalerts: [{rule}]")
    assert [one.name for one in config.rules] == ["r"]


def test_a_rule_of_the_file_for_a_metadata_address_is_refused_even_without_a_list() -> None:
    with pytest.raises(ConfigError, match=r"alerts\[0\]\.delivery\.url: host '169\.254\.169\.254'"):
        configured("alerts: [" + RULE % ("http", "http://169.254.169.254/latest") + "]")


@pytest.mark.parametrize(
    ("value", "hosts"),
    [
        ("127.0.0.0/8, ::1,localhost", ["127.0.0.0/8", "::1", "localhost"]),
        # The variable is set, so the list is a limit although it is empty: no host is allowed.
        (" , ", []),
    ],
)
def test_the_environment_variable_holds_hosts_separated_by_commas(value: str, hosts: list[str]) -> None:
    settings = load("/dev/null", {"TOKENTRACE_ALERT_ALLOW_HOSTS": value})
    assert settings.alert_delivery.allow_hosts == hosts
    assert load("/dev/null", {}).alert_delivery.allow_hosts is None
