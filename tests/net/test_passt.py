"""`--net user`: a raw client in the guest's place gets its address, reaches the world, and is reached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.card import MAC, Card, header
from tests.fakes.native import both_engines
from vmm.config import Forward
from vmm.errors import BackendError, ConfigError
from vmm.host.doctor import check_passt
from vmm.host.passt import MTU, open_passt
from vmm.host.uplink import StreamUplink

from .frames import BROADCAST, GUEST_MAC, arp_request, await_frame
from .namespace import await_carrier, ip

pytestmark = pytest.mark.net

HOST, ROUTER, SUBNET = "10.9.0.2", "10.9.0.1", 24
HOST6, ROUTER6, WORLD6 = "2001:db8::2", "2001:db8::1", "2001:db8:1::1"
#: The guest's own, by which it asks for a router.
LINK_LOCAL = "fe80::5054:ff:fe00:1"
FORWARD = Forward(protocol="tcp", address="127.0.0.1", host_port=2222, guest_port=22)


@pytest.fixture
def world(netns: None) -> None:
    """A namespace whose host has an address and a default route, as passt wants it."""
    ip("link set lo up")
    ip("link add eth0 type veth peer name world")
    ip("link set world up")
    ip(f"address add {HOST}/{SUBNET} dev eth0")
    ip("link set eth0 up")
    ip(f"route add default via {ROUTER}")
    await_carrier("eth0")


@pytest.fixture
def world6(world: None) -> None:
    """The same with IPv6, and with somebody out there."""
    ip(f"-6 address add {WORLD6} dev lo nodad")
    ip(f"-6 address add {HOST6}/64 dev eth0 nodad")
    ip(f"-6 route add default via {ROUTER6}")


@pytest.fixture
def passt(world: None) -> Iterator[StreamUplink]:
    with contextlib.closing(open_passt(forwards=[FORWARD])) as uplink:
        yield uplink
    deadline = time.monotonic() + 5
    while passts():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def passts() -> list[int]:
    """The pids of the passts of this namespace that live."""
    ours = os.stat("/proc/thread-self/ns/net").st_ino
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
            _, name, rest = file.read().replace("(", ")").split(")", 2)
            if name.startswith("passt") and rest.split()[0] != "Z" and os.stat(f"/proc/{pid}/ns/net").st_ino == ours:
                found.append(int(pid))
    return found


def send(uplink: StreamUplink, frame: bytes) -> None:
    assert uplink.writev([memoryview(bytes(12)), memoryview(frame)])


def receive(uplink: StreamUplink, wanted: Any) -> bytes:
    """The next frame for which *wanted* holds."""
    frame = bytearray(1 << 17)
    while True:
        await_frame(uplink)
        size = uplink.readv([memoryview(frame)])
        if size and wanted(frame[12:size]):
            return bytes(frame[12:size])


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    return ~(total % 0xFFFF or 0xFFFF) & 0xFFFF


def ipv4(protocol: int, source: str, target: str, payload: bytes, *, to: bytes, mac: bytes = GUEST_MAC) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + ends
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return to + mac + b"\x08\0" + head + payload


def udp(ends: tuple[str, str], ports: tuple[int, int], payload: bytes, mac: bytes = GUEST_MAC) -> bytes:
    datagram = struct.pack(">HHHH", *ports, 8 + len(payload), 0) + payload
    return ipv4(17, *ends, datagram, to=BROADCAST, mac=mac)


def ipv6(protocol: int, ends: tuple[str, str], payload: bytes, checksum_at: int, to: bytes = BROADCAST) -> bytes:
    """A frame to *to*, which is passt's whoever that is; the checksum of *payload* is filled in (RFC 8200 §8.1)."""
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, end) for end in ends)
    total = checksum(addresses + struct.pack(">IHBB", len(payload), 0, 0, protocol) + payload)
    payload = payload[:checksum_at] + total.to_bytes(2, "big") + payload[checksum_at + 2 :]
    return (
        to + GUEST_MAC + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + addresses + payload
    )


def tcp(frame: bytes, flags: int, sequence: int, acknowledged: int, payload: bytes = b"") -> bytes:
    """An answer to the TCP segment in *frame*."""
    source, target = socket.inet_ntoa(frame[30:34]), socket.inet_ntoa(frame[26:30])
    segment = frame[36:38] + frame[34:36] + struct.pack(">IIBBHHH", sequence, acknowledged, 0x50, flags, 65535, 0, 0)
    segment += payload
    pseudo = frame[30:34] + frame[26:30] + struct.pack(">HH", 6, len(segment))
    segment = segment[:16] + checksum(pseudo + segment).to_bytes(2, "big") + segment[18:]
    return ipv4(6, source, target, segment, to=frame[6:12])


def dhcp_discover(mac: bytes = GUEST_MAC) -> bytes:
    """RFC 2131, 2132."""
    message = struct.pack(">BBBBIHH16s16s", 1, 1, 6, 0, 7, 0, 0x8000, bytes(16), mac) + bytes(192)
    message += b"\x63\x82\x53\x63" + bytes([53, 1, 1, 55, 3, 1, 3, 26, 255])
    return udp(("0.0.0.0", "255.255.255.255"), (68, 67), message, mac)


def lease(uplink: StreamUplink) -> tuple[str, dict[int, bytes]]:
    """The address that DHCP offers, and its options."""
    send(uplink, dhcp_discover())
    answer = receive(uplink, lambda frame: frame[12:14] == b"\x08\0" and frame[34:38] == b"\0\x43\0\x44")
    options, rest = {}, answer[42 + 240 :]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return socket.inet_ntoa(answer[42 + 16 : 42 + 20]), options


def test_the_router_answers(passt: StreamUplink) -> None:
    send(passt, arp_request(socket.inet_aton(ROUTER), socket.inet_aton(HOST)))
    answer = receive(passt, lambda frame: frame[12:14] == b"\x08\x06")
    assert answer[28:32] == socket.inet_aton(ROUTER)


def test_the_guest_gets_an_address_a_router_and_the_mtu(passt: StreamUplink) -> None:
    address, options = lease(passt)
    assert address == HOST
    assert options[1] == socket.inet_aton("255.255.255.0")
    assert options[3] == socket.inet_aton(ROUTER)
    assert int.from_bytes(options[26], "big") == MTU == passt.mtu


def test_a_forwarded_port_is_the_guests(passt: StreamUplink) -> None:
    lease(passt)
    with socket.create_connection(("127.0.0.1", 2222), timeout=5) as client:
        request = receive(passt, lambda frame: frame[12:14] == b"\x08\0" and frame[23] == 6 and frame[47] == 2)
        assert request[36:38] == (22).to_bytes(2, "big")
        first = int.from_bytes(request[38:42], "big") + 1
        send(passt, tcp(request, 0x12, 1000, first))
        client.sendall(b"hello guest")
        data = receive(passt, lambda frame: frame[12:14] == b"\x08\0" and b"hello guest" in frame)
        send(passt, tcp(data, 0x18, 1001, first + 11, b"hello host"))
        assert client.recv(100) == b"hello host"


def test_the_guest_reaches_the_world(passt: StreamUplink) -> None:
    lease(passt)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        send(passt, udp((HOST, ROUTER), (5555, server.getsockname()[1]), b"ping"))  # its router is the host's loopback
        data, caller = server.recvfrom(100)
        assert data == b"ping"
        server.sendto(b"pong", caller)
    assert receive(passt, lambda frame: frame[23] == 17 and b"pong" in frame)[30:34] == socket.inet_aton(HOST)


def test_the_guest_learns_its_ipv6_prefix(world6: None, passt: StreamUplink) -> None:
    everybody = bytes.fromhex("333300000002")
    send(passt, ipv6(58, (LINK_LOCAL, "ff02::2"), bytes([133]) + bytes(7), 2, everybody))
    advertised = receive(passt, lambda frame: frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] == 134)
    assert socket.inet_pton(socket.AF_INET6, "2001:db8::") in advertised


def test_the_guest_reaches_the_world_by_ipv6(world6: None, passt: StreamUplink) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind((WORLD6, 0))
        server.settimeout(5)
        datagram = struct.pack(">HHHH", 5555, server.getsockname()[1], 12, 0) + b"ping"
        send(passt, ipv6(17, (HOST6, WORLD6), datagram, 6))
        data, caller = server.recvfrom(100)
        assert data == b"ping"
        server.sendto(b"pong", caller)
    answer = receive(passt, lambda frame: frame[12:14] == b"\x86\xdd" and b"pong" in frame)
    assert answer[22:54] == socket.inet_pton(socket.AF_INET6, WORLD6) + socket.inet_pton(socket.AF_INET6, HOST6)


@both_engines
def test_a_card_behind_passt(world: None, engine: str) -> None:
    card = Card(engine, tap=open_passt())
    try:
        card.driver.start()
        piece = card.offer(2048)
        card.kick(0)
        card.send(header(), dhcp_discover(MAC))
        deadline = time.monotonic() + 5
        while not card.used(0):
            assert time.monotonic() < deadline
            card.loop.wait(0.005)
        answer = card.arena.content(piece)[12:]
        assert socket.inet_ntoa(answer[42 + 16 : 42 + 20]) == HOST
    finally:
        card.close()


def test_another_one_is_started_when_it_dies(passt: StreamUplink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.host.uplink._LIFE_MIN_S", 0)
    os.kill(passts()[0], signal.SIGKILL)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        receive(passt, lambda _: True)
    assert "connected again" in passt.mend(32)
    assert lease(passt)[0] == HOST


def test_it_ends_with_a_killed_pyvmm(world: None) -> None:
    code = (
        "import time; from vmm.host.passt import open_passt; u = open_passt(); print('up', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([shutil.which("python3") or "", "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert len(passts()) == 1
        process.kill()
    deadline = time.monotonic() + 5
    while passts():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_doctor_starts_one(passt: StreamUplink) -> None:
    row = check_passt()
    assert (row.need, row.status) == ("useful", "ok")


# What goes wrong.


def test_a_port_that_is_in_use(world: None) -> None:
    with socket.create_server(("127.0.0.1", 2222)), pytest.raises(BackendError) as caught:
        open_passt(forwards=[FORWARD])
    assert str(caught.value).startswith("--net user: passt does not start: Failed to bind any port for")
    assert "is the port in use?" in caught.value.fix


def test_a_host_without_network(netns: None) -> None:
    with pytest.raises(BackendError) as caught:
        open_passt()
    assert "does not start: External interface not usable" in str(caught.value)
    assert "default route" in caught.value.fix
    row = check_passt()
    assert (row.status, row.seen, row.fix) == ("failed", caught.value.what, caught.value.fix)


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendError) as caught:
        open_passt()
    assert str(caught.value) == "--net user: passt is not installed\n  run: sudo apt install passt"
    assert check_passt().status == "absent"


def test_an_mtu_that_is_too_large() -> None:
    with pytest.raises(ConfigError, match=f"mtu=40000 is more than the {MTU}"):
        open_passt(mtu=40000)
