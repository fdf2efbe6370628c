"""A lan's services answer whatever guests send in frames of sound form, or not at all, and stay within their bounds."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.lan import BROADCAST, mac
from tests.fakes.lan_guest import COOKIE, SERVER, LanGuest, checksum, ipv4, question, udp
from vmm.host.lan import leases as leases_module
from vmm.host.lan.leases import PREFIX
from vmm.host.lan.services import MAC, Services

GUESTS, LEASES, NAMED = 6, 4, 2

addresses = st.one_of(
    st.builds(lambda host: PREFIX + host.to_bytes(2, "big"), st.integers(0, 5)), st.binary(min_size=4, max_size=4)
)
options = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([12, 50, 53, 54]), st.one_of(addresses, st.sampled_from([b"db", b"web"]))),
        st.tuples(st.just(53), st.integers(0, 9).map(lambda kind: bytes([kind]))),
        st.tuples(st.integers(0, 255), st.binary(max_size=5)),
    ),
    max_size=5,
).map(lambda made: b"".join(bytes([code, len(data)]) + data for code, data in made))
names = st.one_of(st.sampled_from(["db", "web", "db.lab", "1.0.78.10.in-addr.arpa"]), st.text("abc.-", max_size=80))
queries = st.one_of(
    st.builds(
        lambda head, name, kind: head + question(name, kind),
        st.one_of(st.just(b"\0\1\1\0\0\1" + bytes(6)), st.binary(min_size=12, max_size=12)),
        names.filter(lambda name: all(len(label) < 64 for label in name.split("."))),
        st.sampled_from([1, 12, 28, 255]),
    ),
    st.binary(max_size=60),
)


@st.composite
def dhcp_messages(draw: st.DrawFn, sender: bytes) -> bytes:
    """From *sender*, mostly; with any options, perhaps cut off."""
    current = draw(st.one_of(st.just(bytes(4)), addresses))
    owner = draw(st.sampled_from([sender, sender, mac(0)]))
    head = struct.pack(">BBBB4sHH4s12s16s", 1, 1, 6, 0, b"abcd", 0, draw(st.integers(0, 0xFFFF)), current, b"", owner)
    return head + bytes(192) + COOKIE + draw(options) + draw(st.sampled_from([b"\xff", b"", b"\x35", b"\x35\xff"]))


@st.composite
def frames(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Who sends, and what."""
    sender = mac(draw(st.integers(1, GUESTS)))
    source = socket.inet_ntoa(draw(addresses))
    packet = draw(
        st.one_of(
            st.builds(udp, st.just((68, 67)), dhcp_messages(sender)),
            st.builds(udp, st.just((5000, 53)), queries),
            st.binary(max_size=40),
        )
    )
    arp = b"\0\x01\x08\0\x06\x04\0\x01" + sender + bytes(10) + socket.inet_aton(SERVER)
    body = draw(
        st.one_of(
            st.just(b"\x08\0" + ipv4(source, SERVER, packet)),
            st.just(b"\x08\x06" + arp),
            st.binary(max_size=40),
        )
    )
    tag = draw(st.sampled_from([b"", b"", b"\x81\0\0\5", b"\x81\0\xff\xff"]))
    whole = draw(st.sampled_from([MAC, BROADCAST])) + sender + tag + body
    return sender, whole[: draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))]


@pytest.fixture(autouse=True)
def few_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASES_MAX", LEASES)


@given(st.lists(frames(), max_size=25))
@settings(deadline=None)
def test_answers_are_sound_and_leases_few(sent: list[tuple[bytes, bytes]]) -> None:
    with socket.socket() as unused:
        services = Services(unused, "lab")
    services.leases.names = {mac(1): "db", mac(2): "web"}
    for sender, frame in sent:
        answer = services.answer(frame)
        if answer is None:
            continue
        assert answer[:12] == sender + MAC
        rest = answer[12:]
        if rest.startswith(b"\x81\0"):
            assert frame[12:16] == rest[:4]
            rest = rest[4:]
        if rest.startswith(b"\x08\0"):
            packet = rest[2:]
            assert checksum(packet[:20]) == 0
            assert int.from_bytes(packet[2:4], "big") == len(packet) <= 1500
            assert int.from_bytes(packet[24:26], "big") == len(packet) - 20
        else:
            assert rest.startswith(b"\x08\x06")
    held = [lease for leases in services.leases._vlans.values() for lease in leases.values()]
    assert len(held) <= LEASES + NAMED * 3


@given(st.lists(st.tuples(st.integers(1, GUESTS), st.booleans()), max_size=30))
@settings(deadline=None)
def test_no_two_guests_have_one_address(turns: list[tuple[int, bool]]) -> None:
    with socket.socket() as unused:
        services = Services(unused, "lab")
    leases_module.LEASES_MAX = GUESTS
    held: dict[int, str] = {}
    for number, leaves in turns:
        guest = LanGuest(services.answer, mac(number))
        if leaves and number in held:
            guest.dhcp(7, current=held.pop(number))
        else:
            address = guest.get_address()
            assert held.setdefault(number, address) == address
        assert len(set(held.values())) == len(held)
