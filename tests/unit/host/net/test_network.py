"""What a managed network may be called, and which subnets it may have."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from vmm.config import Rate
from vmm.errors import ConfigError
from vmm.host.net.network import Nat, check_name, make_mac, parse_subnet, parse_subnet6
from vmm.host.net.subnets import choose_subnet, refuse_overlap


@pytest.mark.parametrize("name", ["a", "lab", "lab-2", "a23456789012345"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "2a", "Lab", "a_b", "a.b", "a/b", "..", "a2345678901234567", "auto", "user", "private", "lab\n"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name)


def test_guests_may_have_names_that_networks_may_not() -> None:
    assert check_name("user", "guest") == "user"


@pytest.mark.parametrize("text", ["10.77.0.1/24", "10.77.0.0/30", "8.8.8.0/24", "10.77.0.0/33", "lab", "fd00::/64"])
def test_what_is_no_subnet(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_subnet(text)


@pytest.mark.parametrize("text", ["fd00:77::/63", "fd00:77::1/64", "10.77.0.0/24", "x"])
def test_what_is_no_ipv6_subnet(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_subnet6(text)


def test_an_ipv6_subnet_is_made_up() -> None:
    made = {parse_subnet6("auto") for _ in range(10)}
    assert len(made) == 10
    assert all(subnet.subnet_of(IPv6Network("fd00::/8")) and subnet.prefixlen == 64 for subnet in made)


def test_the_first_free_subnet_is_chosen() -> None:
    taken: dict[IPv4Network | IPv6Network, str] = dict.fromkeys(
        map(IPv4Network, ("10.77.0.0/23", "10.77.3.128/25")), ""
    )
    assert choose_subnet({}) == IPv4Network("10.77.0.0/24")
    assert choose_subnet(taken) == IPv4Network("10.77.2.0/24")


def test_an_overlap_says_with_whom() -> None:
    with pytest.raises(ConfigError, match=r"--subnet: 10.0.0.0/8 overlaps network lab"):
        refuse_overlap(IPv4Network("10.0.0.0/8"), {IPv4Network("10.77.0.0/24"): "network lab"}, "--subnet")


@pytest.mark.parametrize("subnet6", [None, IPv6Network("fd00:77::/64")])
@pytest.mark.parametrize("limit", [None, Rate(per_second=1 << 20, burst=1 << 16)])
def test_it_survives_being_written(subnet6: IPv6Network | None, limit: Rate | None) -> None:
    network = Nat("lab", make_mac(), IPv4Network("10.77.0.0/24"), subnet6, limit)
    assert Nat.from_json(network.to_json()) == network
