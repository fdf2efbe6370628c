"""The switch of a lan: who gets which frame."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")

from tests.fakes.lan import BROADCAST, SECOND_NS, Lan, frame, mac, records, switch, tag
from vmm.config import VLAN_TRUNK
from vmm.native._engine import lib


@pytest.fixture
def lan() -> Iterator[Lan]:
    with switch() as made:
        yield made


# Learning.


def test_what_is_for_nobody_known_goes_to_all_others(lan: Lan) -> None:
    a, b, c = (lan.join() for _ in range(3))
    sent = frame(mac(9), mac(1))
    a.send(sent)
    assert (a.got(), b.got(), c.got()) == ([], [sent], [sent])


@pytest.mark.parametrize("to", [BROADCAST, bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")])
def test_broadcasts_and_multicasts_go_to_all_others(lan: Lan, to: bytes) -> None:
    a, b, c = (lan.join() for _ in range(3))
    a.send(frame(to, mac(1)))
    assert (len(a.got()), len(b.got()), len(c.got())) == (0, 1, 1)


def test_an_address_is_where_it_sent_last(lan: Lan) -> None:
    a, b, c = (lan.join() for _ in range(3))
    b.send(frame(BROADCAST, mac(2)))
    a.got(), c.got()
    a.send(frame(mac(2), mac(1)))
    assert (len(b.got()), len(c.got())) == (1, 0)
    c.send(frame(BROADCAST, mac(2)))
    b.got()
    a.send(frame(mac(2), mac(1)))
    assert (len(b.got()), len(c.got())) == (0, 1)


def test_nothing_goes_back_where_it_came_from(lan: Lan) -> None:
    a, b = lan.join(), lan.join()
    a.send(frame(BROADCAST, mac(1)), frame(mac(1), mac(2)))
    assert a.got() == []
    assert len(b.got()) == 1


def test_an_address_that_is_silent_is_forgotten() -> None:
    with switch(age_ns=SECOND_NS // 20) as lan:
        a, b, c = (lan.join() for _ in range(3))
        b.send(frame(BROADCAST, mac(2)))
        c.got()
        time.sleep(0.06)
        a.send(frame(mac(2), mac(1)))
        assert len(c.got()) == 1


def test_the_addresses_of_a_port_that_has_left_are_forgotten(lan: Lan) -> None:
    a, b, c = (lan.join() for _ in range(3))
    b.send(frame(BROADCAST, mac(2)))
    c.got()
    b.channel.close()
    a.send(frame(mac(2), mac(1)))
    assert len(c.got()) == 1


def test_a_port_that_makes_up_addresses_does_not_push_out_others() -> None:
    with switch(addresses=16) as lan:
        a, b, hostile = (lan.join() for _ in range(3))
        b.send(frame(BROADCAST, mac(2)))
        for number in range(3000, 13000):
            hostile.channel.send(bytes(12) + frame(mac(4), mac(number)))
            if not number % 50:
                lan.settle()
        lan.settle()
        hostile.received()
        a.send(frame(mac(2), mac(1)))
        assert hostile.got() == []


def test_a_port_that_had_too_many_addresses_has_room_again_when_they_have_aged() -> None:
    with switch(addresses=2, age_ns=SECOND_NS // 20) as lan:
        a, b, c = (lan.join() for _ in range(3))
        b.send(*(frame(BROADCAST, mac(number)) for number in (2, 3, 4)))
        c.got()
        a.send(frame(mac(4), mac(1)))
        assert len(c.got()) == 1, "one too many"
        time.sleep(0.06)
        b.send(frame(BROADCAST, mac(4)))
        c.got()
        a.send(frame(mac(4), mac(1)))
        assert c.got() == []


# VLANs.


def test_vlans_are_apart(lan: Lan) -> None:
    plain, five, other_five, six = lan.join(), lan.join(5), lan.join(5), lan.join(6)
    sent = frame(BROADCAST, mac(1))
    five.send(sent)
    assert (plain.got(), other_five.got(), six.got()) == ([], [sent], [])


def test_an_address_is_known_in_its_vlan_only(lan: Lan) -> None:
    five, six, other_six, listener = lan.join(5), lan.join(6), lan.join(6), lan.join(6)
    five.send(frame(BROADCAST, mac(2)))
    other_six.send(frame(mac(2), mac(1)))
    assert (five.got(), len(six.got()), len(listener.got())) == ([], 1, 1)


def test_a_trunk_has_the_vlans_tagged(lan: Lan) -> None:
    trunk, plain, five = lan.join(VLAN_TRUNK), lan.join(), lan.join(5)
    five.send(frame(BROADCAST, mac(1)))
    plain.send(frame(BROADCAST, mac(2)))
    assert trunk.got() == [frame(BROADCAST, mac(1), tagged=tag(5)), frame(BROADCAST, mac(2))]
    trunk.send(frame(BROADCAST, mac(3), tagged=tag(5)), frame(BROADCAST, mac(3)))
    assert (five.got(), plain.got()) == ([frame(BROADCAST, mac(3))], [frame(BROADCAST, mac(3))])


def test_trunks_have_each_others_vlans_as_they_are(lan: Lan) -> None:
    a, b = lan.join(VLAN_TRUNK), lan.join(VLAN_TRUNK)
    sent = frame(BROADCAST, mac(1), tagged=tag(77))
    a.send(sent)
    assert b.got() == [sent]


def test_only_trunks_choose_their_vlan(lan: Lan) -> None:
    five, six, trunk = lan.join(5), lan.join(6), lan.join(VLAN_TRUNK)
    five.send(frame(BROADCAST, mac(1), tagged=tag(6)))
    five.send(frame(BROADCAST, mac(1), tagged=tag(5)))
    trunk.send(frame(BROADCAST, mac(2), tagged=tag(4095)))
    assert (five.got(), six.got(), trunk.got()) == ([], [], [])


def test_a_tag_that_is_but_a_priority_is_taken_off(lan: Lan) -> None:
    a, b = lan.join(5), lan.join(5)
    a.send(frame(BROADCAST, mac(1), tagged=b"\x81\0\xe0\0"))
    assert b.got() == [frame(BROADCAST, mac(1))]


def test_a_priority_does_not_take_a_frame_out_of_its_vlan(lan: Lan) -> None:
    five, trunk, plain = lan.join(5), lan.join(VLAN_TRUNK), lan.join()
    five.send(frame(BROADCAST, mac(1), tagged=b"\x81\0\xe0\0"))
    assert (trunk.got(), plain.got()) == ([frame(BROADCAST, mac(1), tagged=b"\x81\0\xe0\5")], [])


@pytest.mark.parametrize("vlan", [0, 6])
def test_no_tag_hides_behind_a_priority(lan: Lan, vlan: int) -> None:
    hostile, trunk = lan.join(vlan), lan.join(VLAN_TRUNK)
    hostile.send(frame(BROADCAST, mac(1), tagged=tag(0) + tag(5)))
    assert trunk.got() == []


# Ports that mean no good.


@pytest.mark.parametrize("size", [1, 11, 12, 25, 65566, 70000])
def test_what_is_no_frame_is_dropped(lan: Lan, size: int) -> None:
    a, b = lan.join(), lan.join()
    a.channel.send(bytes(size))
    a.send(frame(BROADCAST, mac(1)))
    assert len(b.got()) == 1


@pytest.mark.parametrize("body", [46, 1486, 9000, 65535])
def test_frames_of_all_sizes(lan: Lan, body: int) -> None:
    a, b = lan.join(), lan.join(VLAN_TRUNK)
    sent = frame(BROADCAST, mac(1), os.urandom(body))
    a.send(sent)
    assert b.got() == [sent]


def test_a_tag_cut_short_is_dropped(lan: Lan) -> None:
    a, b = lan.join(), lan.join(VLAN_TRUNK)
    a.send(BROADCAST + mac(1) + b"\x81\0\0")
    a.send(BROADCAST + mac(1) + b"\x81\0\0\5")
    b.send(BROADCAST + mac(1) + b"\x81\0\0\5\x88")
    assert (a.got(), b.got()) == ([], [])


def test_a_group_sends_nothing(lan: Lan) -> None:
    a, b = lan.join(), lan.join()
    a.send(frame(BROADCAST, BROADCAST))
    assert b.got() == []


def test_headers_are_wiped(lan: Lan) -> None:
    a, b = lan.join(), lan.join()
    a.send(frame(BROADCAST, mac(1)), header=b"\xff" * 12)
    assert b.got() == [frame(BROADCAST, mac(1))]


def test_an_empty_message_is_taken_for_the_end(lan: Lan) -> None:
    a, _ = lan.join(), lan.join()
    a.channel.send(b"")
    lan.settle()
    with pytest.raises(EOFError):
        a.received()


def test_floods_are_limited() -> None:
    with switch(floods=1, floods_burst=5) as lan:
        a, b = lan.join(), lan.join()
        a.send(*(frame(BROADCAST, mac(1)) for _ in range(20)))
        assert len(b.got()) == 5
        b.send(frame(mac(1), mac(2)))
        assert len(a.got()) == 1, "what is for one is not"


def test_a_port_that_does_not_read_loses_its_own_frames_only(lan: Lan) -> None:
    a, deaf, c = (lan.join() for _ in range(3))
    deaf.send(frame(BROADCAST, mac(2)))
    c.send(frame(BROADCAST, mac(3)))
    a.got()
    for _ in range(3000):
        a.channel.send(bytes(12) + frame(mac(2), mac(1)))
        lan.turn()
    a.send(frame(mac(3), mac(1)))
    assert len(c.got()) == 2
    assert 0 < len(deaf.got()) < 3000


def test_a_flooding_port_does_not_keep_others_waiting(lan: Lan) -> None:
    hostile, a, b = (lan.join() for _ in range(3))
    for _ in range(200):
        hostile.channel.send(bytes(12) + frame(mac(9), mac(8)))
    a.channel.send(bytes(12) + frame(BROADCAST, mac(1)))
    lan.turn()
    assert frame(BROADCAST, mac(1)) in b.got()


# Joining and leaving.


def test_ports_are_numbered_by_the_lowest_that_is_free(lan: Lan) -> None:
    first, second = lan.join(), lan.join()
    first.channel.close()
    lan.settle()
    assert (second.number, lan.join().number, lan.join().number) == (1, 0, 2)


def test_a_port_gets_the_number_it_had_if_that_is_free(lan: Lan) -> None:
    assert [lan.join(number=number).number for number in (7, 7, 5000)] == [7, 0, 1]


def test_the_switch_says_when_the_last_port_has_left(lan: Lan) -> None:
    assert lan.turn() == lib.LAN_EMPTY
    a, b = lan.join(), lan.join()
    assert lan.turn() == 0
    a.channel.close()
    assert lan.turn() == 0
    b.channel.close()
    assert lan.turn() == lib.LAN_EMPTY


# Recording.


def test_what_goes_through_a_port_is_recorded(lan: Lan, tmp_path: Path) -> None:
    with open(tmp_path / "a.pcap", "w+b") as file:
        a, b, five = lan.join(pcap_fd=os.dup(file.fileno())), lan.join(), lan.join(5)
        a.send(frame(BROADCAST, mac(1)))
        b.send(frame(mac(1), mac(2), b"answer"))
        five.send(frame(BROADCAST, mac(3)))
        file.seek(0)
        assert records(file.read()) == [frame(BROADCAST, mac(1)), frame(mac(1), mac(2), b"answer")]


def test_a_recording_that_cannot_be_written_ends_and_the_frames_go_on(lan: Lan) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    a, b = lan.join(pcap_fd=full), lan.join()
    a.send(frame(BROADCAST, mac(1)), frame(BROADCAST, mac(1)))
    assert len(b.got()) == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(full)


# The switch's own port.


def test_its_own_port_is_in_all_vlans(lan: Lan) -> None:
    own, native, tagged = lan.serve(), lan.join(), lan.join(vlan=5)
    native.send(frame(BROADCAST, mac(1)))
    tagged.send(frame(BROADCAST, mac(2)))
    assert own.got() == [frame(BROADCAST, mac(1)), frame(BROADCAST, mac(2), tagged=tag(5))]
    own.send(frame(mac(1), mac(9)), frame(mac(2), mac(9), tagged=tag(5)))
    assert native.got() == [frame(mac(1), mac(9))]
    assert tagged.got() == [frame(mac(2), mac(9))]


def test_its_own_port_keeps_it_from_nothing(lan: Lan) -> None:
    own = lan.serve()
    assert lan.turn() == lib.LAN_EMPTY
    guest = lan.join()
    assert lan.has(guest)
    own.channel.close()
    assert lan.turn() == 0
    guest.channel.close()
    assert lan.turn() == lib.LAN_EMPTY
    assert not lan.has(guest)


def test_its_own_port_is_nobody_elses(lan: Lan) -> None:
    lan.serve()
    assert sorted(lan.join().number for _ in range(lib.LAN_PORTS)) == list(range(lib.LAN_PORTS))
