"""virtio-net through taps and a bridge, in a network namespace of the test's own."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator

import pytest

from tests.guest.conftest import Guest, Image
from tests.net.namespace import ip, links, network_namespace

pytestmark = [pytest.mark.kvm, pytest.mark.guest, pytest.mark.net]

HOST = "10.76.1.1"
MIB = 1 << 20
SIZE = 20 * MIB
TRANSFER_LIMIT_S = 180


@pytest.fixture(scope="module")
def bridge() -> Iterator[str]:
    """A bridge with the host's address, in a namespace that lasts for this module."""
    with network_namespace():
        ip("link set lo up")
        ip("link add br0 type bridge")
        ip(f"address add {HOST}/24 dev br0")
        ip("link set br0 up")
        yield "br0"


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of 20 MiB whose bytes repeat nowhere."""
    path = os.path.join(str(tmp_path_factory.mktemp("payload")), "payload.img")
    with open(path, "wb") as file:
        file.write(hashlib.shake_128(b"payload").digest(SIZE))
    return path


def start(micro: Image, number: int, *disks: str) -> Guest:
    """Guest *number*, with the address 10.76.1.*number*."""
    address = f"ip=10.76.1.{number}::{HOST}:255.255.255.0:guest{number}:eth0:off"
    arguments = [argument for disk in disks for argument in ("--disk", f"{disk},readonly")]
    return Guest([
        "--kernel", micro.file("vmlinux"), "--append", f"quiet {address}",
        "--disk", f"{micro.file('root.img')},readonly", "--net", "bridge=br0", *arguments,
    ])  # fmt: skip


@pytest.fixture(scope="module")
def guests(micro: Image, bridge: str, payload: str) -> Iterator[tuple[Guest, Guest]]:
    """Two guests on the bridge; the first has the payload as its second disk."""
    pair = start(micro, 2, payload), start(micro, 3)
    for guest in pair:
        guest.wait_for_prompt()
    yield pair
    for guest in pair:
        guest.close()
    assert links() == {"lo", bridge}, "the taps went with their guests"


def test_each_guest_reaches_the_host(guests: tuple[Guest, Guest]) -> None:
    for guest in guests:
        assert "0% packet loss" in guest.run(f"ping -c 3 {HOST}")


def test_two_guests_on_one_bridge(guests: tuple[Guest, Guest]) -> None:
    assert "0% packet loss" in guests[0].run("ping -c 3 10.76.1.3")
    assert "0% packet loss" in guests[1].run("ping -c 3 10.76.1.2")


def test_the_cards_have_addresses_of_their_own(guests: tuple[Guest, Guest]) -> None:
    addresses = {guest.run("cat /sys/class/net/eth0/address").strip() for guest in guests}
    assert len(addresses) == 2
    assert all(address.startswith("52:54:") for address in addresses)
    assert guests[0].run("cat /sys/class/net/eth0/mtu").strip() == "1500"
    assert guests[0].run("cat /sys/class/net/eth0/carrier").strip() == "1"


def test_20_mib_of_tcp_from_the_guest(guests: tuple[Guest, Guest], payload: str) -> None:
    with socket.create_server((HOST, 5000)) as server:
        server.settimeout(TRANSFER_LIMIT_S)
        guests[0].console.sendline(f"nc {HOST} 5000 </dev/vdb; echo se''nt=$?")
        connection, _ = server.accept()
        digest, size = hashlib.sha256(), 0
        with connection:
            connection.settimeout(TRANSFER_LIMIT_S)
            while size < SIZE and (data := connection.recv(1 << 16)):
                digest.update(data)
                size += len(data)
    with open(payload, "rb") as file:
        assert digest.hexdigest() == hashlib.sha256(file.read()).hexdigest()
    guests[0].console.expect(r"sent=\d+\r", timeout=TRANSFER_LIMIT_S)


def test_20_mib_of_tcp_to_the_guest(guests: tuple[Guest, Guest], payload: str) -> None:
    with open(payload, "rb") as file:
        data = file.read()
    with socket.create_server((HOST, 5001)) as server:
        server.settimeout(TRANSFER_LIMIT_S)
        guests[1].console.sendline(f"nc {HOST} 5001 </dev/null | sha256sum | sed s/^/sum''=/")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(TRANSFER_LIMIT_S)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            guests[1].console.expect(r"sum=([0-9a-f]{64})", timeout=TRANSFER_LIMIT_S)
    found = guests[1].console.match
    assert not isinstance(found, str | type | None)
    assert found.group(1) == hashlib.sha256(data).hexdigest()
