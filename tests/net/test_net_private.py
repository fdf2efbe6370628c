"""`private=yes`: guests with one and the same address, each behind a NAT of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from tests.net.managed import Host, state
from vmm.config import NetConfig
from vmm.errors import ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.join import join_here
from vmm.host.net.network import Nat
from vmm.host.net.private import GUEST_MAC, PrivateTap
from vmm.host.net.store import Store
from vmm.host.tap import Tap

from .frames import BROADCAST, arp_request, receive, send, udp_frame
from .namespace import await_carrier, ip, links

pytestmark = pytest.mark.net

GUEST, GATEWAY = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
HOLD = """
import time
from vmm.config import parse_net
from vmm.host.net.join import join
join(parse_net("lab,name=copy1,private=yes"))
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def private(name: str = "", network: str = "lab") -> Iterator[Tap]:
    tap, mac = join_here(NetConfig(network=network, name=name, private=True))
    assert mac == GUEST_MAC
    with closing(tap):
        yield tap


def gateway_of(tap: Tap) -> bytes:
    """The gateway's Ethernet address, as ARP gives it."""
    assert send(tap, arp_request(GATEWAY, GUEST, GUEST_MAC))
    return receive(tap, b"\x08\x06")[1][22:28]


def echo_request(mac: bytes, target: bytes) -> bytes:
    """A ping, by the help of a UDP frame's header: protocol 1, and its own checksum."""
    frame = udp_frame(GUEST, target, 0, 0, mac)
    header = frame[14:23] + b"\x01" + b"\0\0" + frame[26:34]
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    checksum = ~(total % 0xFFFF or 0xFFFF) & 0xFFFF
    return (
        mac
        + GUEST_MAC
        + b"\x08\0"
        + header[:10]
        + checksum.to_bytes(2, "big")
        + header[12:]
        + b"\x08\0\xf7\xff"
        + bytes(4)
    )


def test_copies_reach_the_world_side_by_side(host: Host, store: Store, network: Nat) -> None:
    with private("copy1") as one, private("copy2") as two:
        gateways = {gateway_of(tap) for tap in (one, two)}
        assert len(gateways) == 1
        for tap in (one, two):
            assert send(tap, echo_request(gateways.copy().pop(), bytes((198, 51, 100, 1))))
            answer = receive(tap, b"\x08\0")[1]
            assert (answer[26:30], answer[34]) == (bytes((198, 51, 100, 1)), 0)


def test_the_name_leads_to_the_guest(host: Host, store: Store, network: Nat) -> None:
    with private("copy1") as tap:
        gateway_of(tap)
        address = guests.get_guest(store, network, "copy1").address
        with subprocess.Popen(["busybox", "ping", "-c", "1", "-W", "1", str(address)], stdout=subprocess.DEVNULL):
            frame = receive(tap, b"\x08\0")[1]
        assert (frame[23], frame[30:34], frame[34]) == (1, GUEST, 8)


def test_the_guest_gets_its_address_by_dhcp(host: Host, store: Store, network: Nat) -> None:
    with private("copy1") as tap:
        discover = bytes((1, 1, 6, 0)) + b"\x12\x34\x56\x78" + bytes(20) + GUEST_MAC + bytes(202)
        discover += b"\x63\x82\x53\x63\x35\x01\x01\xff"
        empty = udp_frame(bytes(4), b"\xff" * 4, 68, 67)
        size = len(discover)
        header = bytearray(empty[14:34])
        header[2:4], header[10:12] = (28 + size).to_bytes(2, "big"), b"\0\0"
        total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
        header[10:12] = (~(total % 0xFFFF or 0xFFFF) & 0xFFFF).to_bytes(2, "big")
        udp = empty[34:38] + (8 + size).to_bytes(2, "big") + b"\0\0"
        frame = BROADCAST + GUEST_MAC + b"\x08\0" + bytes(header) + udp + discover
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert send(tap, frame)
            with suppress(TimeoutError):
                assert receive(tap, b"\x08\0", 0.2)[1][58:62] == GUEST
                return
        raise AssertionError("no offer")


def test_without_a_name_each_copy_has_the_next_that_is_free(host: Host, store: Store, network: Nat) -> None:
    with private(), private():
        pass
    with private():
        assert set(guests.read_guests(store, "lab")) == {"private1", "private2"}


def test_the_network_nat_is_made_when_it_is_needed(host: Host, store: Store) -> None:
    before = state(host)
    for _ in range(2):
        with private(network="nat"):
            assert networks.missing(store, "nat") == []
        ip("link del nat")  # as a boot of the host does
    networks.delete(store, "nat")
    assert state(host) == before


def test_a_name_that_has_a_tap_that_stays(host: Host, store: Store, network: Nat) -> None:
    guests.attach(store, network, "copy1")
    with pytest.raises(ConfigError, match="network lab: copy1 has a tap that stays"), private("copy1"):
        pass


def test_nothing_is_left(host: Host, store: Store, network: Nat) -> None:
    with private("copy1"):
        await_carrier("lab")  # its first gives a bridge a route for multicast, for good
    before = state(host)
    with private("copy2") as tap:
        assert isinstance(tap, PrivateTap)
    guests.detach(store, network, "copy2")
    assert {**state(host), "hosts": ""} == {**before, "hosts": ""}


def test_nothing_is_left_of_a_killed_process(host: Host, store: Store, network: Nat) -> None:
    before = links()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "up\n"
        assert links() > before
        os.kill(holder.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while links() != before:
        assert time.monotonic() < deadline, ip("-br link")
        time.sleep(0.02)
