"""The schema's formats ``ip``, ``network``, ``endpoint`` (address and port) and ``endpoint-or-ip``: text -> values,
each text parsed once."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from reconciler.state import objects
from reconciler.state.objects import Endpoint, IPAddress, IPNetwork

FORMATS: Final = ("ip", "network", "endpoint", "endpoint-or-ip")


def _parse_address(text: str) -> IPAddress:
    """As ipaddress would, without a zone, in a fifth of the time. Raises :class:`ValueError`."""
    packed = _packed(text)
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)


def _packed(text: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        raise ValueError(f"{text!r} is no address") from None


def _parse_network(text: str) -> tuple[IPNetwork, bool]:
    address, slash, length = text.partition("/")
    ip = _parse_address(address)
    bits = int(length) if length.isascii() and length.isdecimal() and len(length) <= 3 else -1
    if not slash:
        bits = ip.max_prefixlen
    if not 0 <= bits <= ip.max_prefixlen:
        raise ValueError(f"{text!r} is not of the form address/length")
    number, spare = int(ip), ip.max_prefixlen - bits
    start = number >> spare << spare
    network = IPv4Network((start, bits)) if ip.version == 4 else IPv6Network((start, bits))
    return network, start != number


def _parse_endpoint(text: str) -> Endpoint:
    """``192.0.2.1:80``, ``[2001:db8::1]:80``; port 0 for an address alone. Raises :class:`ValueError`."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or not rest.startswith(":"):
            raise ValueError(f"{text!r} is not [IPv6]:PORT")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        return Endpoint(_parse_address(text), 0)
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"{port!r} is no port")
    return Endpoint(_parse_address(host), int(port))


class Formats:
    """Parses addresses and networks and remembers them, for as long as one file is worked on."""

    def __init__(self) -> None:
        self._addresses: dict[str, IPAddress] = {}
        self._networks: dict[str, tuple[IPNetwork, bool]] = {}
        self._endpoints: dict[str, Endpoint] = {}

    def address(self, text: str) -> IPAddress:
        """An address without a zone. Raises :class:`ValueError`."""
        if text not in self._addresses:
            self._addresses[text] = objects.address(_packed(text))
        return self._addresses[text]

    def network(self, text: str) -> tuple[IPNetwork, bool]:
        """A network written as address/length, or a single address; and whether bits are set beyond the length,
        which the network then lacks. Raises :class:`ValueError`."""
        if text not in self._networks:
            self._networks[text] = _parse_network(text)
        return self._networks[text]

    def endpoint(self, text: str) -> Endpoint:
        """An address with a port, 0 where there is none. Raises :class:`ValueError`."""
        if text not in self._endpoints:
            self._endpoints[text] = _parse_endpoint(text)
        return self._endpoints[text]

    def known(self, name: str, text: str) -> bool:
        """Whether a text is of the schema's format ``name``. Raises :class:`KeyError` for an unknown one."""
        parse = {
            "ip": self.address,
            "network": self.network,
            "endpoint": self.endpoint,
            "endpoint-or-ip": self.endpoint,
        }[name]
        try:
            parsed = parse(text)
        except ValueError:
            return False
        return name != "endpoint" or (isinstance(parsed, Endpoint) and parsed.port != 0)
