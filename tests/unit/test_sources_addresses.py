"""Which network addresses a reference may lead to."""

from __future__ import annotations

import socket
from ipaddress import ip_network

import pytest

from agents.sources.addresses import AddressPolicy, AddressRefused


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34", "64:ff9b::5db8:d822"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressPolicy([]).allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.1.1", "172.16.0.1",
        "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.1",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::7f00:1", "fc00::1", "fd12::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1",
        "2001::1", "2002:7f00:1::", "2002:5db8:d822::", "100::1", "3fff::1", "5f00::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_every_other_address_is_refused(address: str) -> None:
    assert not AddressPolicy([]).allows(address)


def test_named_networks_are_let_through_in_every_spelling_and_nothing_beside_them() -> None:
    policy = AddressPolicy([ip_network("10.1.0.0/16"), ip_network("fd12:1::/32")])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd12:1::5"):
        assert policy.allows(address), address
    for address in ("10.2.0.1", "127.0.0.1", "fd12:2::5", "192.168.0.1"):
        assert not policy.allows(address), address


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "fd00:ec2::254",
        "192.0.0.192",
    ],
)
def test_metadata_services_are_refused_whatever_is_allowed(address: str) -> None:
    assert not AddressPolicy([ip_network("0.0.0.0/0"), ip_network("::/0")]).allows(address)


def test_no_socket_is_made_for_a_refused_address() -> None:
    with pytest.raises(AddressRefused):
        AddressPolicy([]).socket_to((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))
    AddressPolicy([]).socket_to((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))).close()
