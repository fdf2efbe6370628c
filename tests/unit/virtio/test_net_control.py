"""The control queue: what each command does, on both engines, and what is refused."""

from __future__ import annotations

import struct

import pytest

from tests.fakes.card import MAC, RX, Card, frame, header
from tests.unit.virtio.conftest import MakeCard
from vmm.virtio.net_filter import TABLE_MAX
from vmm.virtio.net_frame import NetFeature
from vmm.virtio.spec import Feature, Status

HEADER = header()
OK, ERR = b"\0", b"\1"
OTHER, ANOTHER = b"\x52\x54\0\0\0\7", b"\x52\x54\0\0\0\x08"
GROUP, ALL = b"\x33\x33\0\0\0\1", b"\xff" * 6
PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST = (bytes([0, number]) for number in range(6))
TABLE_SET, ADDR_SET = b"\1\0", b"\1\1"
ANNOUNCE_ACK = b"\3\0"
VQ_PAIRS_SET = b"\4\0"
OFFLOADS_SET = b"\5\0"
BASE = Feature.VERSION_1 | NetFeature.MAC | NetFeature.CTRL_VQ


def table(*addresses: bytes) -> bytes:
    return struct.pack("<I", len(addresses)) + b"".join(addresses)


def passing(card: Card, *addresses: bytes, index: int = RX, queue: int = 0) -> list[bytes]:
    """Those of *addresses* that frames for reach the driver."""
    passed = []
    for address in addresses:
        card.offer(200, index=index)
        card.kick(index)
        card.arrive(HEADER + frame(to=address), queue=queue)
        if card.used(index):
            passed.append(address)
    return passed


# Receive modes and addresses.


@pytest.mark.parametrize(
    ("commands", "passes"),
    [
        ([], [MAC, ALL]),
        ([PROMISC], [MAC, OTHER, GROUP, ALL]),
        ([ALLMULTI], [MAC, GROUP, ALL]),
        ([ALLUNI], [MAC, OTHER, ALL]),
        ([NOMULTI, ALLMULTI], [MAC, ALL]),
        ([NOUNI, ALLUNI], [ALL]),
        ([NOBCAST], [MAC]),
        ([NOBCAST, NOUNI, NOMULTI, PROMISC], [MAC, OTHER, GROUP, ALL]),
    ],
)
def test_modes(card: Card, commands: list[bytes], passes: list[bytes]) -> None:
    card.driver.start()
    for command in commands:
        assert card.command(command, b"\1") == OK
    assert passing(card, MAC, OTHER, GROUP, ALL) == passes
    for command in commands:
        assert card.command(command, b"\0") == OK
    assert passing(card, MAC, OTHER, GROUP, ALL) == [MAC, ALL]


def test_the_table_of_addresses(card: Card) -> None:
    card.driver.start()
    assert card.command(TABLE_SET, table(OTHER), table(GROUP)) == OK
    assert passing(card, MAC, OTHER, ANOTHER, GROUP, ALL) == [MAC, OTHER, GROUP, ALL]
    assert card.command(TABLE_SET, table(ANOTHER), table()) == OK
    assert passing(card, MAC, OTHER, ANOTHER, GROUP, ALL) == [MAC, ANOTHER, ALL]


def test_a_table_that_is_too_long_lets_all_of_the_kind_through(card: Card) -> None:
    card.driver.start()
    many = [b"\x33\x33" + number.to_bytes(4, "little") for number in range(TABLE_MAX + 1)]
    assert card.command(TABLE_SET, table(), table(*many[:-1])) == OK
    assert passing(card, many[0], many[63], many[64], OTHER) == [many[0], many[63]]
    assert card.command(TABLE_SET, table(), table(*many)) == OK
    assert passing(card, many[0], many[64], b"\x33\x33\xff\xff\xff\xff", OTHER) == [
        many[0], many[64], b"\x33\x33\xff\xff\xff\xff"
    ]  # fmt: skip


def test_the_address_can_be_changed_until_the_reset(card: Card) -> None:
    card.driver.start()
    assert card.command(ADDR_SET, OTHER) == OK
    assert passing(card, MAC, OTHER) == [OTHER]
    assert card.driver.read(0x100, 8).to_bytes(8, "little")[:6] == OTHER
    card.driver.start()
    assert card.driver.read(0x100, 8).to_bytes(8, "little")[:6] == MAC
    assert passing(card, MAC, OTHER) == [MAC]


def test_a_driver_without_filters_gets_everything(card: Card) -> None:
    card.driver.start(BASE)
    assert passing(card, MAC, OTHER, GROUP, ALL) == [MAC, OTHER, GROUP, ALL]


# Offloads and announcements.


def test_offloads_can_be_switched_among_those_negotiated(card: Card) -> None:
    offloads = NetFeature.GUEST_CSUM | NetFeature.GUEST_TSO4
    card.driver.start(BASE | NetFeature.CTRL_GUEST_OFFLOADS | NetFeature.MRG_RXBUF | offloads)
    assert card.command(OFFLOADS_SET, struct.pack("<Q", NetFeature.GUEST_CSUM)) == OK
    assert card.tap.offloads == [3, 1]
    card.offer(4000)
    card.kick(RX)
    card.arrive(header(gso=1) + frame(3000))
    assert card.used(RX) == [], "TSO is off"
    assert card.command(OFFLOADS_SET, struct.pack("<Q", offloads)) == OK
    card.arrive(header(gso=1) + frame(3000))
    assert card.used(RX) == [3012]
    assert card.command(OFFLOADS_SET, struct.pack("<Q", offloads | NetFeature.GUEST_TSO6)) == ERR
    assert card.tap.offloads == [3, 1, 3]


def test_the_driver_is_asked_to_announce_itself(card: Card) -> None:
    card.driver.start()
    card.card.announce()
    assert card.driver.read(0x106, 2) == 3
    assert card.driver.take_interrupt() == 2
    assert card.command(ANNOUNCE_ACK) == OK
    assert card.driver.read(0x106, 2) == 1


def test_a_driver_that_cannot_is_not_asked(card: Card) -> None:
    card.card.announce()
    card.driver.start(BASE)
    card.card.announce()
    assert card.driver.read(0x106, 2) == 1
    assert card.irq.pulses == 0


# Queue pairs.


def test_pairs_are_switched_on_and_off(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, pairs=3)
    card.driver.start()
    for count, works in ((1, [MAC]), (3, [MAC, MAC, MAC]), (2, [MAC, MAC]), (3, [MAC, MAC, MAC])):
        assert card.command(VQ_PAIRS_SET, struct.pack("<H", count)) == OK
        got = [address for pair in range(count) for address in passing(card, MAC, index=2 * pair, queue=pair)]
        assert got == works
        for pair in range(count):
            card.send(HEADER + frame(), index=2 * pair + 1)
            assert len(card.tap.queues[pair].received()) == 1
    assert card.tap.enabled == [1, 1, 3, 2, 3]


def test_a_pair_that_is_off_moves_nothing(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, pairs=2)
    card.driver.start()
    card.send(HEADER + frame(), index=3)
    assert card.used(3) == []
    assert passing(card, MAC, index=2, queue=1) == []
    assert card.command(VQ_PAIRS_SET, b"\2\0") == OK
    assert len(card.used(3)) == 1, "what waited goes now"
    assert len(card.used(2)) == 1


def test_a_driver_without_mq_finds_the_control_queue_behind_its_pair(make_card: MakeCard, engine: str) -> None:
    card = make_card(engine, pairs=2)
    card.driver.negotiate(BASE | NetFeature.CTRL_RX)
    for index in range(3):
        card.driver.set_up_queue(index)
    card.driver.status |= Status.DRIVER_OK
    assert card.command(PROMISC, b"\1") == OK
    assert card.command(VQ_PAIRS_SET, b"\2\0") == ERR
    assert passing(card, OTHER) == [OTHER]


# What is refused.


@pytest.mark.parametrize(
    "command",
    [
        [b"\0"], [b"\0\0"], [b"\0\0\2"], [b"\0\0\1\0"], [b"\0\6\1"],
        [TABLE_SET], [TABLE_SET, b"\0\0\0"], [TABLE_SET, table(OTHER)], [TABLE_SET, table(OTHER), table(GROUP), b"\0"],
        [TABLE_SET, b"\xff\xff\xff\xff", table()], [TABLE_SET, table(), b"\2\0\0\0" + GROUP],
        [TABLE_SET, bytes(1 << 16)], [b"\1\2", MAC], [ADDR_SET, MAC[:5]], [ADDR_SET, MAC + b"\0"],
        [b"\2\0\0\0"], [ANNOUNCE_ACK, b"\0"], [b"\3\1"],
        [VQ_PAIRS_SET, b"\0\0"], [VQ_PAIRS_SET, b"\3\0"], [VQ_PAIRS_SET, b"\1"], [VQ_PAIRS_SET, b"\1\0\0"],
        [b"\4\1\1\0"],
        [OFFLOADS_SET, bytes(7)], [OFFLOADS_SET, b"\1" + bytes(7)], [b"\5\1", bytes(8)], [b"\6\0"], [b"\xff\xff"],
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(make_card: MakeCard, command: list[bytes]) -> None:
    card = make_card("python", pairs=2)
    card.driver.start()
    assert card.command(*command) == ERR
    assert card.tally.counts["net0.commands_refused"] == 1
    assert card.faults == []
    assert passing(card, MAC, OTHER, GROUP, ALL) == [MAC, ALL]


@pytest.mark.parametrize(
    "command",
    [
        PROMISC + b"\1", NOMULTI + b"\1", TABLE_SET + table() + table(), ADDR_SET + OTHER, ANNOUNCE_ACK,
        VQ_PAIRS_SET + b"\1\0", OFFLOADS_SET + bytes(8),
    ],
)  # fmt: skip
def test_what_was_not_negotiated_is_refused(make_card: MakeCard, command: bytes) -> None:
    card = make_card("python", pairs=2)
    card.driver.start(BASE)
    queue = card.driver.queues.pop(2)  # without MQ it is here
    card.driver.queues.append(queue)
    answer = card.arena.writable(1)
    queue.add([card.arena.readable(command), answer])
    card.kick(2)
    assert card.arena.content(answer) == ERR


def test_an_answer_goes_to_the_first_byte_there_is(python_card: Card) -> None:
    python_card.driver.start()
    assert python_card.command(b"\0", b"\0", b"\1", room=3) == b"\0\xcc\xcc"
    assert python_card.used(2) == [1]


def test_a_command_without_room_for_an_answer_is_done(python_card: Card) -> None:
    python_card.driver.start()
    python_card.driver.queues[2].add([python_card.arena.readable(PROMISC + b"\1")])
    python_card.kick(2)
    assert python_card.used(2) == [0]


def test_a_hostile_control_ring(card: Card) -> None:
    card.driver.start()[2].offer(999)
    card.kick(2)
    assert card.driver.status & Status.DEVICE_NEEDS_RESET
    assert card.faults == ["net0: descriptor 999 of a table of 64; the device waits for a reset"]
