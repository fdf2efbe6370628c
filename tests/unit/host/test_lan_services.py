"""What a lan gives its guests: addresses by DHCP, and each other's names by DNS."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests.fakes.lan import BROADCAST, mac
from tests.fakes.lan_guest import (
    AAAA,
    ACK,
    DECLINE,
    DISCOVER,
    INFORM,
    NAK,
    OFFER,
    PTR,
    RELEASE,
    REQUEST,
    SERVER,
    LanGuest,
    ipv4,
    udp,
)  # fmt: skip
from vmm.host.lan import leases as leases_module
from vmm.host.lan.leases import LEASE_S, Leases
from vmm.host.lan.services import MAC, Services

NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5
Join = Callable[..., LanGuest]


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def services(clock: Clock) -> Services:
    made = Services(socket.socket(), "Lab")
    made._channel.close()
    made.leases = Leases(clock)
    return made


@pytest.fixture
def join(services: Services) -> Join:
    """A guest by its number, perhaps with a name by its user and in a VLAN."""

    def join(number: int, name: str = "", vlan: int = 0) -> LanGuest:
        guest = LanGuest(services.answer, mac(number), vlan)
        if name:
            services.leases.names = services.leases.names | {guest.mac: name}
        return guest

    return join


# ARP


def test_it_answers_for_its_address(join: Join) -> None:
    guest = join(1)
    asked = b"\0\x01\x08\0\x06\x04\0\x01" + guest.mac + socket.inet_aton("10.78.1.1") + bytes(6)
    answer = guest.ask(b"\x08\x06", asked + socket.inet_aton(SERVER))
    mine = MAC + socket.inet_aton(SERVER)
    assert answer == b"\0\x01\x08\0\x06\x04\0\x02" + mine + guest.mac + socket.inet_aton("10.78.1.1")
    assert guest.ask(b"\x08\x06", asked + socket.inet_aton("10.78.0.2")) is None


# DHCP


def test_a_guest_gets_an_address_and_keeps_it(join: Join, clock: Clock) -> None:
    guest = join(1)
    address = guest.get_address()
    assert address.startswith("10.78.")
    clock.now += LEASE_S - 1
    renewed = guest.dhcp(REQUEST, current=address)
    assert renewed
    assert (renewed[0], renewed[1], renewed[2][53]) == (address, address, bytes([ACK]))
    clock.now += LEASE_S - 1
    assert guest.get_address() == address


def test_it_is_told_the_network_but_no_way_out(join: Join) -> None:
    offer = join(1, "db").dhcp(DISCOVER)
    assert offer
    assert offer[2] == {
        53: bytes([OFFER]),
        54: socket.inet_aton(SERVER),
        51: LEASE_S.to_bytes(4, "big"),
        1: socket.inet_aton("255.255.0.0"),
        6: socket.inet_aton(SERVER),
        15: b"Lab",
        12: b"db",
    }


def test_addresses_differ_and_follow_from_the_guest(join: Join, services: Services) -> None:
    addresses = [join(number).get_address() for number in range(200)]
    assert len(set(addresses)) == 200
    services.leases = Leases()
    assert join(7).get_address() == addresses[7]


def test_it_gets_the_address_that_it_had_or_asks_for(join: Join) -> None:
    wanted = socket.inet_aton("10.78.5.6")
    offer = join(1).dhcp(DISCOVER, o50=wanted)
    assert offer
    assert offer[1] == "10.78.5.6"
    other = join(2).dhcp(DISCOVER, o50=wanted)
    assert other
    assert other[1] != "10.78.5.6"


def test_a_switch_that_knows_nothing_yet_renews_a_lease(join: Join) -> None:
    renewed = join(1).dhcp(REQUEST, current="10.78.5.6")
    assert renewed
    assert renewed[2][53] == bytes([ACK])
    refused = join(2).dhcp(REQUEST, current="10.78.5.6")
    assert refused
    assert (refused[0], refused[1], refused[2][53]) == ("255.255.255.255", "0.0.0.0", bytes([NAK]))


@pytest.mark.parametrize("address", ["10.78.0.0", SERVER, "10.78.255.255", "10.77.0.9", "192.0.2.1"])
def test_other_addresses_are_not_given(join: Join, address: str) -> None:
    offer = join(1).dhcp(DISCOVER, o50=socket.inet_aton(address))
    assert offer
    assert offer[1] != address
    refused = join(1).dhcp(REQUEST, o50=socket.inet_aton(address))
    assert refused
    assert refused[2][53] == bytes([NAK])


def test_the_first_and_the_last_address(join: Join) -> None:
    for number, address in enumerate(("10.78.0.2", "10.78.255.254")):
        granted = join(number).dhcp(REQUEST, o50=socket.inet_aton(address))
        assert granted
        assert granted[1] == address


@pytest.mark.parametrize(
    ("flags", "current", "target"),
    [(0, "0.0.0.0", "10.78.5.6"), (0x8000, "0.0.0.0", "255.255.255.255"), (0x8000, "10.78.5.6", "10.78.5.6")],
)
def test_where_it_is_answered_to(join: Join, flags: int, current: str, target: str) -> None:
    answer = join(1).dhcp(REQUEST, flags=flags, current=current, o50=socket.inet_aton("10.78.5.6"))
    assert answer
    assert answer[0] == target


def test_one_that_has_an_address_is_told_the_rest(join: Join) -> None:
    answer = join(1).dhcp(INFORM, current="10.78.1.1")
    assert answer
    assert answer[:2] == ("10.78.1.1", "0.0.0.0")
    assert answer[2][53] == bytes([ACK])
    assert 51 not in answer[2]


def test_an_address_that_is_given_back_is_free(join: Join) -> None:
    address = join(1).get_address()
    assert join(1).dhcp(RELEASE, current=address) is None
    granted = join(2).dhcp(REQUEST, o50=socket.inet_aton(address))
    assert granted
    assert granted[1] == address


def test_an_address_that_somebody_else_uses_is_nobodys(join: Join) -> None:
    address = join(1).get_address()
    assert join(1).dhcp(DECLINE, o50=socket.inet_aton(address)) is None
    assert join(1).get_address() != address
    refused = join(2).dhcp(REQUEST, o50=socket.inet_aton(address))
    assert refused
    assert refused[2][53] == bytes([NAK])


def test_an_offer_is_kept_for_a_minute_a_lease_for_an_hour(join: Join, clock: Clock) -> None:
    offer = join(1).dhcp(DISCOVER)
    assert offer
    clock.now += 61
    granted = join(2).dhcp(REQUEST, o50=socket.inet_aton(offer[1]))
    assert granted
    assert granted[1] == offer[1]
    clock.now += LEASE_S
    again = join(3).dhcp(REQUEST, o50=socket.inet_aton(offer[1]))
    assert again
    assert again[2][53] == bytes([ACK])


def test_one_that_has_chosen_another_server_is_left_alone(join: Join) -> None:
    assert join(1).dhcp(REQUEST, o50=socket.inet_aton("10.78.1.1"), o54=socket.inet_aton("10.78.0.9")) is None


def test_nobody_speaks_for_others(services: Services) -> None:
    guest = LanGuest(services.answer, mac(1))
    message = b"\x01\x01\x06\0abcd" + bytes(20) + mac(2) + bytes(10 + 192) + b"\x63\x82\x53\x63\x35\x01\x01\xff"
    assert guest.ask_udp("0.0.0.0", "255.255.255.255", (68, 67), message) is None


def test_made_up_guests_leave_room_for_those_with_a_name(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASES_MAX", 20)
    for number in range(20):
        join(number, vlan=number % 3).get_address()
    assert join(20).dhcp(DISCOVER) is None
    refused = join(20).dhcp(REQUEST, o50=socket.inet_aton("10.78.5.6"))
    assert refused
    assert refused[2][53] == bytes([NAK])
    join(21, "db").get_address()


def test_the_room_of_leases_that_are_over_is_free(join: Join, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASES_MAX", 20)
    for number in range(20):
        join(number, vlan=number).get_address()
    clock.now += LEASE_S
    join(20, vlan=20).get_address()


def test_a_guest_cannot_decline_all_addresses(join: Join, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases_module, "LEASES_MAX", 20)
    for _ in range(50):
        address = join(1, "db").get_address()
        join(1, "db").dhcp(DECLINE, o50=socket.inet_aton(address))
    assert sum(map(len, services.leases._vlans.values())) <= 20


# DNS


def test_guests_find_each_other(join: Join) -> None:
    db, web = join(1, "db"), join(2)
    address = socket.inet_aton(db.get_address())
    web.get_address(name=b"Web\0")
    for name in ("db", "DB", "db.lab", "db.Lab"):
        assert web.resolve(name) == (NO_ERROR, [address])
    assert db.resolve("web") == (NO_ERROR, [socket.inet_aton(web.address)])
    assert web.resolve("mail") == web.resolve("mail.lab") == (NO_SUCH_NAME, [])


def test_a_name_without_an_ipv6_address(join: Join) -> None:
    db = join(1, "db")
    db.get_address()
    assert db.resolve("db", AAAA) == (NO_ERROR, [])


def test_addresses_have_names(join: Join) -> None:
    db = join(1, "db")
    reverse = ".".join(reversed(db.get_address().split("."))) + ".in-addr.arpa"
    assert db.resolve(reverse, PTR) == (NO_ERROR, [b"\x02db\x03lab\0"])
    for nobody in ("9.9.78.10", "1000.1.78.10", "1.2.3.78.10", "x.1.78.10"):
        assert db.resolve(f"{nobody}.in-addr.arpa", PTR) == (NO_SUCH_NAME, [])


@pytest.mark.parametrize("name", ["example.org", "1.0.0.127.in-addr.arpa", "a.b.lab"])
def test_other_names_are_other_servers(join: Join, name: str) -> None:
    assert join(1).resolve(name) == (REFUSED, [])


def test_a_name_is_its_users_choice_then_who_came_first(join: Join) -> None:
    first, second, named = join(1), join(2), join(3, "db")
    first.get_address(name=b"db")
    assert first.resolve("db") == (NO_SUCH_NAME, [])
    named.get_address(name=b"other")
    second.get_address(name=b"web")
    join(4).get_address(name=b"web")
    assert first.resolve("db") == (NO_ERROR, [socket.inet_aton(named.address)])
    assert first.resolve("web") == (NO_ERROR, [socket.inet_aton(second.address)])
    assert first.resolve("other") == (NO_SUCH_NAME, [])


@pytest.mark.parametrize("said", [b"", b"-a", b"a-", b"a.b", b"a b", b"\xe9", b"x" * 64, b"a\0b"])
def test_what_is_no_host_name(join: Join, said: bytes) -> None:
    guest = join(1)
    guest.get_address(name=said)
    reverse = ".".join(reversed(guest.address.split("."))) + ".in-addr.arpa"
    assert guest.resolve(reverse, PTR) == (NO_SUCH_NAME, [])


def test_vlans_know_nothing_of_each_other(join: Join) -> None:
    here, there = join(1, "db", vlan=5), join(2, vlan=6)
    address = here.get_address()
    assert here.resolve("db") == (NO_ERROR, [socket.inet_aton(address)])
    assert there.resolve("db") == (NO_SUCH_NAME, [])
    granted = there.dhcp(REQUEST, o50=socket.inet_aton(address))
    assert granted
    assert granted[1] == address


@pytest.mark.parametrize(
    ("query", "flags"),
    [
        (b"\0\x07\0\0\0\x01" + bytes(6) + b"\x02db", 0x8000 | FORMAT_ERROR),  # no end
        (b"\0\x07\0\0\0\x01" + bytes(6) + b"\xc0\x0c\0\x01\0\x01", 0x8000 | FORMAT_ERROR),  # a pointer to itself
        (b"\0\x07\0\0\0\x01" + bytes(6) + (b"\x3f" + b"x" * 63) * 5 + b"\0\0\x01\0\x01", 0x8000 | FORMAT_ERROR),
        (b"\0\x07\0\0\0\x01" + bytes(6) + b"\x02db\0\0\x01", 0x8000 | FORMAT_ERROR),  # no class
        (b"\0\x07\0\0\0\x02" + bytes(6) + b"\x02db\0\0\x01\0\x01", 0x8000 | FORMAT_ERROR),  # two questions
        (b"\0\x07\x28\0" + bytes(8), 0x8000 | 0x2800 | NOT_IMPLEMENTED),  # an update
    ],
)
def test_what_is_no_question(join: Join, query: bytes, flags: int) -> None:
    said = join(1).ask_udp("10.78.1.1", SERVER, (5000, 53), query)
    assert said
    assert said[1] == b"\0\x07" + flags.to_bytes(2, "big") + bytes(8)


def test_an_answer_is_not_answered(join: Join) -> None:
    assert join(1).ask_udp("10.78.1.1", SERVER, (5000, 53), b"\0\x07\x80\0\0\x01" + bytes(6)) is None


# Frames


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        BROADCAST + mac(1),
        BROADCAST + mac(1) + b"\x81\0",
        BROADCAST + mac(1) + b"\x86\xdd" + bytes(40),
        BROADCAST + mac(1) + b"\x08\0" + ipv4("10.78.1.1", SERVER, udp((5000, 80), b"x")),
        BROADCAST + mac(1) + b"\x08\0" + ipv4("10.78.1.1", "10.78.1.2", udp((5000, 53), bytes(12))),
        BROADCAST + mac(1) + b"\x08\0" + ipv4("10.78.1.1", SERVER, udp((5000, 53), bytes(12)), protocol=6),
        BROADCAST + mac(1) + b"\x08\0" + ipv4("10.78.1.1", SERVER, b"\0"),
        mac(9) + mac(1) + b"\x08\0" + ipv4("10.78.1.1", SERVER, udp((5000, 53), bytes(12))),
    ],
)
def test_what_is_not_for_it_is_ignored(services: Services, frame: bytes) -> None:
    assert services.answer(frame) is None


def test_a_fragment_is_ignored(services: Services) -> None:
    packet = bytearray(ipv4("10.78.1.1", SERVER, udp((5000, 53), bytes(12))))
    assert services.answer(BROADCAST + mac(1) + b"\x08\0" + packet)
    packet[6] = 0x20
    assert services.answer(BROADCAST + mac(1) + b"\x08\0" + packet) is None
