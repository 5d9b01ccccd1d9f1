"""
The hosts that requests of a service may go to, such as those of ``alert_delivery.allow_hosts``.

Names are compared here and not resolved. ``checked_transport`` resolves an allowed name and has its addresses checked.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import httpx

from tokentrace.errors import ConfigError, Rejected, quoted

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Link-local addresses, and the fixed addresses at which clouds give a machine its credentials.
_NEVER: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # IPv4 link-local; metadata of AWS, Google, Azure and most others
        "fe80::/10",  # IPv6 link-local
        "fd00:ec2::254",  # AWS over IPv6
        "fd20:ce::254",  # Google over IPv6
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host agent
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
#: IPv6 prefixes whose last four bytes are the IPv4 address to which a packet goes: NAT64 and IPv4-compatible.
_EMBEDDING = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
#: A host with or without a port. An IPv6 address with a port is in brackets.
_FORMS = (
    re.compile(r"([^\[\]:]+)(?::([0-9]{1,5}))?"),
    re.compile(r"\[([^\[\]]*:[^\[\]]*)\](?::([0-9]{1,5}))?"),
    re.compile(r"([^\[\]:]*:[^\[\]:]*:[^\[\]]*)()"),
)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")


@dataclass(frozen=True)
class _Entry:
    """An allowed host: either a name, or a network if the name is ""; *port* None = any port."""

    name: str
    network: Network | None
    port: int | None


@dataclass(frozen=True)
class AllowedHosts:
    """
    The hosts that requests may go to.

    Attributes:
        entries: None = every host; () = no host. Link-local and metadata addresses are refused in any case.
        key: The setting that lists them, for errors.
        private: False = unless *entries* lists them, no host on this machine or in a private network.
    """

    entries: tuple[_Entry, ...] | None = None
    key: str = ""
    private: bool = True

    @classmethod
    def parse(cls, hosts: Sequence[str] | None, key: str, *, private: bool = True) -> AllowedHosts:
        """
        Return the hosts that a setting lists.

        Args:
            hosts: Names, addresses and CIDR ranges, each with or without ``:port``; None = every host.
            key: The setting.
            private: As the attribute.

        Raises:
            ConfigError: The text names the entry and what is wrong with it.
        """
        if hosts is None:
            return cls(key=key, private=private)
        return cls(tuple(_parse_entry(text, f"{key}[{index}]") for index, text in enumerate(hosts)), key)

    def check_url(self, url: str) -> None:
        """
        Check that the host of *url* is allowed, without resolving it.

        Raises:
            Rejected: The host is not allowed, and the text names it; or *url* has no readable host.
        """
        try:
            # Use the parser of the HTTP client. Another parser could read another host than the one that is called.
            parts = httpx.URL(url)
            host, port = parts.raw_host.decode("ascii"), parts.port
        except (httpx.InvalidURL, ValueError) as exc:
            raise Rejected("its host cannot be read") from exc
        self.check_host(host, port or (443 if parts.scheme == "https" else 80))

    def check_host(self, host: str, port: int) -> Address | None:
        """
        Check that *host*, a name or an address in any spelling, is allowed.

        Returns:
            The address that *host* spells; None = *host* is a name, and ``usable`` must check its addresses.

        Raises:
            Rejected: The host is not allowed; the text names it.
        """
        address = parse_address(host)
        if address is not None and _is_never(address):
            raise Rejected(f"host {quoted(host)} is a link-local or metadata address, to which nothing is sent")
        if address is not None and self._is_hidden(address):
            raise Rejected(f"host {quoted(host)} is a private address, and {self.key} does not list it")
        if self.entries is not None and not any(
            entry.port in (None, port)
            and (entry.name == _plain(host) if address is None else _holds(entry.network, address))
            for entry in self.entries
        ):
            raise Rejected(f"host {quoted(host)} with port {port} is not in {self.key}")
        return address

    def usable(self, host: str, resolved: Iterable[str]) -> list[str]:
        """
        Return the addresses in *resolved* that a request may go to, in the same order and without repetitions.

        Args:
            host: An allowed name.
            resolved: All addresses of *host*.

        Raises:
            Rejected: There is no such address; the text names the host.
        """
        addresses: list[str] = []
        for text in resolved:
            address = parse_address(text)
            if address is None or _is_never(address) or self._is_hidden(address):
                continue
            if text not in addresses:
                addresses.append(text)
        if not addresses and not self.private and self.entries is None:
            raise Rejected(f"host {quoted(host)} has only private addresses, and {self.key} does not list it")
        if not addresses:
            raise Rejected(f"host {quoted(host)} has only link-local or metadata addresses")
        return addresses

    def _is_hidden(self, address: Address) -> bool:
        """Return True if *address* is not one of the Internet, and would have to be listed."""
        return not self.private and self.entries is None and not all(end.is_global for end in _ends(address))


def parse_address(host: str) -> Address | None:
    """Return the address that a resolver reads in *host*, also in ``0x7f.1`` or ``2130706433``; None = it is a name."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return _parse_numbers(_plain(host))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_global(text: str) -> bool:
    """Return True if *text* is an address in the Internet: neither of this machine nor of a private network."""
    address = parse_address(text)
    return address is not None and address.is_global


def _parse_numbers(host: str) -> Address | None:
    """Return the IPv4 address of 1-4 decimal, octal or hexadecimal numbers, the last of which fills the bytes left."""
    numbers = []
    for part in host.split("."):
        if re.fullmatch(r"0x[0-9a-f]+", part):
            numbers.append(int(part, 16))
        elif re.fullmatch(r"0[0-7]*", part):
            numbers.append(int(part, 8))
        elif re.fullmatch(r"[1-9][0-9]{0,9}", part):
            numbers.append(int(part))
        else:
            return None
    *front, last = numbers
    if len(front) > 3 or any(number > 255 for number in front) or last >= 256 ** (4 - len(front)):
        return None
    return ipaddress.IPv4Address(last + sum(number << 24 - 8 * at for at, number in enumerate(front)))


def _is_never(address: Address) -> bool:
    return any(_holds(network, end) for network in _NEVER for end in _ends(address))


def _ends(address: Address) -> list[Address]:
    """Return *address*, and the IPv4 address to which its packets go if it holds one."""
    ends: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address.sixtofour is not None:
            ends.append(address.sixtofour)
        if any(address in network for network in _EMBEDDING):
            ends.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return ends


def _holds(network: Network | None, address: Address) -> bool:
    return network is not None and network.version == address.version and address in network


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _parse_entry(text: str, where: str) -> _Entry:
    text = text.strip()
    match = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    host, port = (match[1], int(match[2]) if match[2] else None) if match else ("", None)
    name, network = "", _parse_network(host)
    if network is None:
        name = _ascii_name(host)
    if (network is None and not name) or (port is not None and not 1 <= port <= 65535):
        raise ConfigError(
            f"{where}: {quoted(text)} is not a host name, an address or a range such as 10.0.0.0/8, "
            "each with :port or without"
        )
    if network is not None and any(network.version == never.version and _within(network, never) for never in _NEVER):
        raise ConfigError(f"{where}: {quoted(text)} are link-local or metadata addresses, which cannot be allowed")
    return _Entry(name, network, port)


def _within(network: Network, other: Network) -> bool:
    return network.network_address in other and network.broadcast_address in other


def _parse_network(text: str) -> Network | None:
    address = parse_address(text)
    if address is not None:
        return ipaddress.ip_network(address)
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return None
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        # parse_address turns IPv4-mapped addresses into IPv4 addresses, so a range of them becomes an IPv4 range.
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _ascii_name(text: str) -> str:
    """Return *text* as the HTTP client writes the name of a host; "" if *text* is not the name of a host."""
    try:
        name = _plain(httpx.URL(scheme="http", host=text).raw_host.decode("ascii"))
    except (httpx.InvalidURL, ValueError):
        return ""
    # A resolver does not look up a name whose last label is a number: it reads an address in it or fails.
    is_name = _NAME.fullmatch(name) is not None and not re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2])
    return name if is_name else ""
