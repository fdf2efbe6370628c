"""MSI-X: what is sent, what is held back, and that the pending bits tell the truth."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.fakes.pci import FakeSlot
from vmm.devices.pci.msix import ENABLE, ENTRY_SIZE, FUNCTION_MASK, Msix, capability

VECTORS = 70


@pytest.fixture
def port() -> FakeSlot:
    return FakeSlot()


@pytest.fixture
def msix(port: FakeSlot) -> Iterator[Msix]:
    made = Msix(VECTORS, port)
    yield made
    made.close()


def program(msix: Msix, vector: int, data: int, *, masked: int = 0, address: int = 0xFEE0_0000) -> None:
    for offset, value in ((0, address), (4, 0), (8, data), (12, masked)):
        msix.write_table(vector * ENTRY_SIZE + offset, 4, value)


def sent(port: FakeSlot) -> list[int]:
    """The data of the messages that came since the last call."""
    port.collect()
    data = [data for _, data in port.arrived]
    port.arrived.clear()
    return data


def pending(msix: Msix) -> set[int]:
    bits = msix.read_pending(0, 8) | msix.read_pending(8, 8) << 64
    return {vector for vector in range(128) if bits >> vector & 1}


def test_capability() -> None:
    assert capability(4, 0x4000, 0x5000) == bytes.fromhex("0300 00400000 00500000")


def test_all_vectors_are_masked_at_reset(msix: Msix, port: FakeSlot) -> None:
    assert all(msix.read_table(vector * ENTRY_SIZE + 12, 4) == 1 for vector in range(VECTORS))
    msix.set_control(ENABLE)
    assert not port.attached


def test_a_vector_sends_its_message(msix: Msix, port: FakeSlot) -> None:
    program(msix, 3, 0x33)
    msix.set_control(ENABLE)
    msix.signal(3)
    assert sent(port) == [0x33]
    assert port.messages[msix.fds[3]] == (0xFEE0_0000, 0x33)
    assert pending(msix) == set()


@pytest.mark.parametrize("by", ["vector", "function"])
def test_what_is_masked_is_pending_until_it_is_unmasked(msix: Msix, port: FakeSlot, by: str) -> None:
    program(msix, 3, 0x33)
    program(msix, 69, 0x69)
    msix.set_control(ENABLE)
    if by == "vector":
        msix.write_table(3 * ENTRY_SIZE + 12, 4, 1)
    else:
        msix.set_control(ENABLE | FUNCTION_MASK)
    msix.signal(3)
    os.eventfd_write(msix.fds[3], 1)  # as a worker outside Python does
    assert sent(port) == []
    assert pending(msix) == {3}
    if by == "vector":
        msix.write_table(3 * ENTRY_SIZE + 12, 4, 0)
    else:
        msix.signal(69)
        assert pending(msix) == {3, 69}
        msix.set_control(ENABLE)
    assert sorted(sent(port)) == ([0x33] if by == "vector" else [0x33, 0x69])
    assert pending(msix) == set()


def test_what_was_sent_is_not_sent_again(msix: Msix, port: FakeSlot) -> None:
    """Linux before 5.11 leaves what an irqfd has taken in the eventfd."""
    program(msix, 3, 0x33)
    msix.set_control(ENABLE)
    msix.signal(3)
    msix.write_table(3 * ENTRY_SIZE + 12, 4, 1)
    assert pending(msix) == set()
    msix.write_table(3 * ENTRY_SIZE + 12, 4, 0)
    assert sent(port) == []


def test_messages_change_while_masked_and_count_from_the_unmasking_on(msix: Msix, port: FakeSlot) -> None:
    program(msix, 3, 0x33)
    msix.set_control(ENABLE)
    msix.write_table(3 * ENTRY_SIZE + 12, 4, 1)
    msix.signal(3)
    updates = port.updates
    program(msix, 3, 0x44, address=0xFEE0_2000, masked=1)
    assert port.updates == updates, "nothing to say to KVM yet"
    msix.write_table(3 * ENTRY_SIZE + 12, 4, 0)
    assert sent(port) == [0x44]
    assert port.messages[msix.fds[3]] == (0xFEE0_2000, 0x44)


def test_a_message_that_changes_unmasked_follows_at_once(msix: Msix, port: FakeSlot) -> None:
    program(msix, 3, 0x33)
    msix.set_control(ENABLE)
    msix.write_table(3 * ENTRY_SIZE + 8, 8, 0x55)
    msix.signal(3)
    assert sent(port) == [0x55]


def test_lifting_the_function_mask_is_one_update(msix: Msix, port: FakeSlot) -> None:
    msix.set_control(ENABLE | FUNCTION_MASK)
    for vector in range(VECTORS):
        program(msix, vector, vector)
    assert port.updates == 0
    msix.set_control(ENABLE)
    assert port.updates == 1
    assert len(port.attached) == VECTORS


def test_disabled_it_sends_nothing(msix: Msix, port: FakeSlot) -> None:
    program(msix, 3, 0x33)
    msix.set_control(ENABLE)
    msix.set_control(0)
    assert not msix.enabled
    assert not port.attached
    msix.signal(3)
    assert sent(port) == []
    msix.forget()
    assert pending(msix) == set()


def test_the_table_takes_words_of_4_and_8_bytes(msix: Msix) -> None:
    msix.write_table(16, 8, 0x1122_3344_5566_7788)
    assert msix.read_table(16, 8) == 0x1122_3344_5566_7788
    assert msix.read_table(20, 4) == 0x1122_3344
    msix.write_table(24, 8, 0xFFFF_FFFF_0000_0077)
    assert msix.read_table(24, 8) == 0x1_0000_0077, "of the vector control, only the mask is there"


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (4, 8), (VECTORS * 16, 4), (VECTORS * 16 - 4, 8)])
def test_other_accesses_to_the_table_do_nothing(msix: Msix, offset: int, size: int) -> None:
    before = [msix.read_table(at, 8) for at in range(0, VECTORS * 16, 8)]
    assert msix.read_table(offset, size) == (1 << 8 * size) - 1
    msix.write_table(offset, size, 0)
    assert [msix.read_table(at, 8) for at in range(0, VECTORS * 16, 8)] == before
