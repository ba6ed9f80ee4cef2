"""Which network addresses a reference may lead to: public ones, and named private networks."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

Network = IPv4Network | IPv6Network

#: They give out the credentials of the machine to whoever asks; refused whatever networks are allowed.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"),
    )
)
#: Translators of an IPv6-only network put the IPv4 address behind it into the last four bytes.
_NAT64 = IPv6Network("64:ff9b::/96")
#: Not public whatever a release of `ipaddress` says: relays and tunnels to IPv4, local NAT64, site-local, examples.
_REFUSED = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.88.99.0/24",
            "::/96",
            "64:ff9b:1::/48",
            "100::/64",
            "2001::/23",
            "2002::/16",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)


class AddressRefused(OSError):
    """A reference led to an address that may not be connected to; the same words for every address.

    An OSError, because the HTTP client tries the next address of a host after one.
    """

    def __init__(self) -> None:
        super().__init__("its address is not public and in none of the allowed private networks")


class AddressPolicy:
    """Decides on addresses as they are connected to, so after name resolution and for every redirect."""

    def __init__(self, private_networks: Sequence[Network]) -> None:
        self._private = tuple(private_networks)

    def allows(self, address: str) -> bool:
        """Whether `address`, as `getaddrinfo` writes it, may be connected to."""
        found: IPv4Address | IPv6Address = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, IPv6Address):
            if found.ipv4_mapped is not None:
                found = found.ipv4_mapped
            elif found in _NAT64:
                found = IPv4Address(found.packed[12:])
        if found in _METADATA:
            return False
        if any(found in network for network in self._private):
            return True
        public = found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)
        return public and not any(found in network for network in _REFUSED)

    def socket_to(self, address: tuple[Any, ...]) -> socket.socket:
        """A socket for an entry of `getaddrinfo`; the client connects it to that entry and nothing else.

        A name is resolved once, before this, so that no second answer can differ from the one that was checked.
        Raises AddressRefused.
        """
        family, kind, protocol, _, place = address
        if not self.allows(place[0]):
            raise AddressRefused
        return socket.socket(family, kind, protocol)
