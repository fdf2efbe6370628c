"""Guests on a bridge reach the host and each other."""

from __future__ import annotations

import http.server
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.guest.booted import PROBE, Booted
from tests.guest.linux import MIB, LinuxGuest, sha256
from tests.guest.transfer import TRANSFER_S, end_serving, fetch_here, serve
from tests.net.namespace import links, make_bridge, network_namespace

pytestmark = [pytest.mark.guest, pytest.mark.net]

HOST = "10.0.0.1"
ADDRESSES = ("10.0.0.2", "10.0.0.3")
SIZES_MIB = (1, pytest.param(20, marks=pytest.mark.slow))
PORT = 5000


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    """The tests of this file run in a network namespace with a bridge."""
    with network_namespace():
        yield make_bridge()
        assert links() == {"lo", "br0"}


@pytest.fixture(scope="module")
def pair(small: Booted, bridge: str, data: str) -> Iterator[tuple[LinuxGuest, LinuxGuest]]:
    """Two guests on the bridge, with the disk."""
    with ExitStack() as ends:
        one, other = (ends.enter_context(closing(small.go_on(disk=data, net=f"bridge={bridge}"))) for _ in ADDRESSES)
        for guest, address in zip((one, other), ADDRESSES, strict=True):
            guest.run(PROBE)
            guest.run(f"ip address add {address}/24 dev eth0; ip link set eth0 up")
        yield one, other


def test_a_guest_pings_the_host(pair: tuple[LinuxGuest, LinuxGuest]) -> None:
    assert "3 packets received" in pair[0].run(f"ping -c 3 {HOST}")


def test_two_guests_ping_each_other(pair: tuple[LinuxGuest, LinuxGuest]) -> None:
    for guest, other in zip(pair, reversed(ADDRESSES), strict=True):
        assert "3 packets received" in guest.run(f"ping -c 3 {other}")


def test_the_cards_differ_and_tell_their_mtu(pair: tuple[LinuxGuest, LinuxGuest]) -> None:
    addresses = {guest.run("cat /sys/class/net/eth0/address") for guest in pair}
    assert len(addresses) == 2
    assert pair[0].run("cat /sys/class/net/eth0/mtu /sys/class/net/eth0/carrier") == "1500\n1"


@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_mib_from_the_guest_by_tcp(pair: tuple[LinuxGuest, LinuxGuest], data: str, size_mib: int) -> None:
    serve(pair[0], size_mib)
    fetch_here(ADDRESSES[0], data, size_mib)
    end_serving(pair[0])


@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_mib_to_the_guest_by_tcp(pair: tuple[LinuxGuest, LinuxGuest], data: str, size_mib: int) -> None:
    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with open(data, "rb") as file:
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + file.read(size_mib * MIB))

        def log_message(self, *_: object) -> None:
            pass

    guest = pair[1]
    with http.server.HTTPServer((HOST, PORT), Server) as server:
        server.timeout = TRANSFER_S
        guest.console.sendline(f"wget -q -O /run/data http://{HOST}:{PORT}/; echo go''t=$?")
        server.handle_request()
        assert guest.expect(r"got=(\d+)\r", TRANSFER_S).group(1) == "0"
    assert guest.run("sha256sum /run/data; rm /run/data", TRANSFER_S).split()[0] == sha256(data, size_mib * MIB)
