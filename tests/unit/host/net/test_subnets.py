"""Which subnet a network chooses for itself."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from vmm.errors import ConfigError
from vmm.host.net.subnets import choose_subnet


@pytest.mark.parametrize(
    ("occupied", "chosen"),
    [
        ([], "10.77.0.0/24"),
        (["10.77.0.0/24", "192.0.2.0/24"], "10.77.1.0/24"),
        (["10.77.0.128/25", "10.77.1.0/24"], "10.77.2.0/24"),
        (["10.77.0.0/16"], "10.79.0.0/24"),  # 10.78.0.0/16 is every lan's
    ],
)
def test_the_first_that_is_free(occupied: list[str], chosen: str) -> None:
    assert choose_subnet({IPv4Network(subnet): "" for subnet in occupied}) == IPv4Network(chosen)


def test_ipv6_is_in_nobodys_way() -> None:
    assert choose_subnet({IPv6Network("::/0"): ""}) == IPv4Network("10.77.0.0/24")


def test_there_is_none() -> None:
    with pytest.raises(ConfigError, match="is in use"):
        choose_subnet({IPv4Network("10.0.0.0/8"): ""})
