"""`pyvmm net create NAME --nat`: guests get addresses and names, and reach the world, which does not reach them."""

from __future__ import annotations

import os
import socket
import sys
from ipaddress import IPv4Network, IPv6Network

import pytest

from tests.net.managed import Host
from vmm.config import Rate
from vmm.errors import ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.create import create_nat
from vmm.host.net.store import Store

from .namespace import ip, sysctl

pytestmark = pytest.mark.net


def test_guests_get_addresses(host: Host, store: Store) -> None:
    network = create_nat(store, "lab")
    address, router, dns, domain = host.lease(host.guest("lab"))
    assert network.subnet == IPv4Network("10.77.0.0/24")
    assert socket.inet_aton(address)[:3] == b"\x0a\x4d\x00"
    assert (router, dns, domain) == ("10.77.0.1", "10.77.0.1", "lab")


#: Asks for the address of another network, and so often that it would be seen in a log.
WRONG_REQUESTS = """
import socket
channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
request = bytes((1, 1, 6)) + bytes(233) + bytes.fromhex("63825363 350103 32040a4e0009 ff")
for _ in range(100):
    channel.sendto(request, ("10.77.0.1", 67))
"""


def test_a_guest_fills_no_log(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    guest = host.guest("lab")
    host.lease(guest)
    guest.run(f"{sys.executable} -c '{WRONG_REQUESTS}'")
    host.lease(guest)  # by now all of them are answered
    assert os.path.getsize(store.path("lab", "log")) == 0


def test_guests_reach_the_world_by_the_hosts_address(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    guest = host.guest("lab")
    host.lease(guest)
    assert guest.pings("198.51.100.1")


def test_the_world_does_not_reach_guests(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    guest = host.guest("lab")
    address = host.lease(guest)[0]
    host.router.run("ip route add 10.77.0.0/24 via 192.0.2.2")
    assert not host.router.pings(address, tries=1)
    assert not host.router.pings("10.77.0.1", tries=1)


def test_networks_do_not_reach_each_other(host: Host, store: Store) -> None:
    create_nat(store, "one")
    create_nat(store, "two")
    here, there = host.guest("one"), host.guest("two")
    host.lease(here)
    address, gateway, *_ = host.lease(there)
    assert not here.pings(address, tries=1)
    assert not here.pings(gateway, tries=1)


def test_guests_of_one_network_reach_each_other(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    here, there = host.guest("lab"), host.guest("lab")
    host.lease(here)
    assert here.pings(host.lease(there)[0])


def test_a_guest_cannot_send_from_foreign_addresses(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    guest = host.guest("lab")
    host.lease(guest)
    guest.run("ip address add 203.0.113.9/32 dev lo")
    host.router.run("ip route add 203.0.113.9 via 192.0.2.2")
    assert guest.pings("198.51.100.1")
    assert not guest.pings("198.51.100.1", "-I 203.0.113.9", tries=1)


def test_guests_and_the_host_find_guests_by_name(host: Host, store: Store) -> None:
    network = create_nat(store, "lab")
    web = guests.attach(store, network, "web1")
    guest = host.guest("lab", web.mac)
    assert host.lease(guest)[0] == str(web.address)
    other = host.guest("lab")
    host.lease(other)
    assert f"Address: {web.address}\n" in other.run("busybox nslookup web1.lab 10.77.0.1")
    assert f"{web.address}\tweb1.lab web1\t# pyvmm net lab\n" in host.names()


def test_a_table_of_names_may_end_within_a_line(host: Host, store: Store) -> None:
    network = create_nat(store, "lab")
    with open(host.hosts, "w") as file:
        file.write("192.0.2.9\tmail")
    web = guests.attach(store, network, "web1")
    assert host.names() == f"192.0.2.9\tmail\n{web.address}\tweb1.lab web1\t# pyvmm net lab\n"
    guests.detach(store, network, "web1")
    assert host.names() == "192.0.2.9\tmail\n"


def test_guests_find_one_that_takes_no_lease_by_name(host: Host, store: Store) -> None:
    web = guests.attach(store, create_nat(store, "lab"), "web1")
    other = host.guest("lab")
    host.lease(other)
    for name in ("web1.lab", "web1"):
        assert f"Address: {web.address}\n" in other.run(f"busybox nslookup -type=a {name} 10.77.0.1")
    guests.detach(store, create_nat(store, "lab"), "web1")
    assert "NXDOMAIN" in other.run("busybox nslookup -type=a web1.lab 10.77.0.1 || true")


def test_a_name_has_the_same_addresses_again(host: Host, store: Store) -> None:
    network = create_nat(store, "lab")
    before = guests.attach(store, network, "web1")
    guests.detach(store, network, "web1")
    assert guests.attach(store, network, "web1") == before


def test_ipv6(host: Host, store: Store) -> None:
    network = create_nat(store, "lab", subnet6=IPv6Network("fd00:77::/64"))
    guest = host.guest("lab", "52:54:00:00:00:01")
    guest.run("ip link set eth0 up")
    guest.run("for _ in $(seq 100); do ip -6 route | grep -q ^default && exit; sleep 0.1; done; exit 1")
    assert guest.pings("fd00:77::1")
    host.router.run("ip address add 2001:db8::1/64 dev down0 nodad; ip address add 2001:db8:1::1/128 dev lo")
    ip("address add 2001:db8::2/64 dev up0 nodad")
    ip("route add 2001:db8:1::/64 via 2001:db8::1")
    assert guest.pings("2001:db8:1::1")
    assert network.gateway6 == IPv6Network("fd00:77::/64")[1]


def test_routes_learned_by_advertisements_stay(host: Host, store: Store) -> None:
    create_nat(store, "lab", subnet6=IPv6Network("fd00:77::/64"))
    assert sysctl("net/ipv6/conf/up0/accept_ra") == "2"
    networks.delete(store, "lab")
    assert sysctl("net/ipv6/conf/up0/accept_ra") == "1"


def test_a_limit(host: Host, store: Store) -> None:
    create_nat(store, "lab", limit=Rate(per_second=1 << 20, burst=1 << 16))
    assert "tbf" in ip("link show lab")
    assert networks.missing(store, "lab") == []


def test_a_subnet_on_the_hosts_way_is_refused(host: Host, store: Store) -> None:
    ip("route add 10.80.0.0/16 via 192.0.2.1")
    with pytest.raises(ConfigError, match=r"overlaps the host's route to 10.80.0.0/16 by up0"):
        create_nat(store, "lab", subnet=IPv4Network("10.80.3.0/24"))


def test_a_free_subnet_is_found(host: Host, store: Store) -> None:
    ip("route add 10.77.0.0/23 via 192.0.2.1")
    assert create_nat(store, "one").subnet == IPv4Network("10.77.2.0/24")
    assert create_nat(store, "two").subnet == IPv4Network("10.77.3.0/24")


def test_a_name_that_a_device_has_is_refused(host: Host, store: Store) -> None:
    with pytest.raises(ConfigError, match="the host has a device named up0"):
        create_nat(store, "up0")


def test_creating_it_again_changes_nothing(host: Host, store: Store) -> None:
    assert create_nat(store, "lab") == create_nat(store, "lab")
    with pytest.raises(ConfigError, match="there is such a network, with other options"):
        create_nat(store, "lab", subnet=IPv4Network("10.99.0.0/24"))
