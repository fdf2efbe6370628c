"""The console device, by both transports' rules: nothing is lost, nothing grows, nobody waits."""

from __future__ import annotations

import struct

import pytest

from tests.fakes.driver import Buffer, DriverQueue, Rig
from tests.fakes.lines import Sink
from tests.unit.virtio.conftest import MakeRig
from vmm.virtio.console import INPUT_LIMIT, PIECE, QUEUE_SIZE, RECEIVE, TRANSMIT, ConsoleDevice, ConsoleFeature
from vmm.virtio.spec import DescFlag, Status


class Wired:
    """A console that its driver has set going, with what is at its other end."""

    def __init__(self, make_rig: MakeRig, *, kind: str = "mmio", features: int | None = None) -> None:
        self.sink = Sink()
        self.size: tuple[int, int] | None = (80, 24)
        self.welcome = 0
        self.device = ConsoleDevice("console", self.sink, lambda: self.size)
        self.device.input_wanted = self._input_wanted
        self.rig: Rig = make_rig(self.device, tracing=True, kind=kind)
        self.driver = self.rig.driver
        self.start(features)

    def start(self, features: int | None = None) -> None:
        """Set the driver going."""
        self.receiveq, self.transmitq = self.driver.start(features)
        self.rig.run_kicks()

    def _input_wanted(self) -> None:
        self.welcome += 1

    def send(self, *buffers: Buffer) -> None:
        """The guest sends *buffers*, a chain."""
        self.transmitq.add(buffers)
        self.serve(TRANSMIT)

    def serve(self, index: int) -> None:
        """A kick, and all that follows from it."""
        self.driver.kick(index)
        self.rig.run_kicks()

    def offer(self, size: int) -> Buffer:
        """The guest offers a buffer of *size* bytes to receive into."""
        buffer = self.rig.arena.writable(size)
        self.receiveq.add([buffer])
        self.serve(RECEIVE)
        return buffer

    def type(self, data: bytes) -> bool:
        """The host sends *data*; whether more is welcome."""
        with self.rig.transport.lock:
            more = self.device.receive(data)
        self.rig.run_kicks()
        return more

    def drain(self) -> None:
        """The host takes output again."""
        self.sink.full = False
        with self.rig.transport.lock:
            self.device.output_drained()
        self.rig.run_kicks()


@pytest.fixture
def console(make_rig: MakeRig) -> Wired:
    """One whose guest has set it going."""
    return Wired(make_rig)


# Output.


@pytest.mark.parametrize("kind", ["mmio", "pci"])
def test_what_the_guest_sends_reaches_the_host(make_rig: MakeRig, kind: str) -> None:
    console = Wired(make_rig, kind=kind)
    console.send(console.rig.arena.readable(b"hello, "), console.rig.arena.readable(b"world"))
    assert console.sink.taken == b"hello, world"
    assert console.transmitq.collect() == [(0, 0)]
    assert console.rig.tally.counts["console.bytes_out"] == 12


def test_a_long_buffer_is_sent_piece_by_piece(console: Wired) -> None:
    data = bytes(index % 251 for index in range(3 * PIECE + 5))
    console.send(*(console.rig.arena.readable(data[start : start + 5000]) for start in range(0, len(data), 5000)))
    assert console.sink.taken == data
    assert len(console.transmitq.collect()) == 1


def test_a_host_that_takes_nothing_stops_the_queue_and_loses_nothing(console: Wired) -> None:
    console.sink.full = True
    for number in range(QUEUE_SIZE):
        console.send(console.rig.arena.readable(b"%02d" % number))
    assert console.transmitq.collect() == []
    console.drain()
    assert console.sink.taken == b"".join(b"%02d" % number for number in range(QUEUE_SIZE))
    assert len(console.transmitq.collect()) == QUEUE_SIZE


def test_a_host_that_stops_in_mid_buffer_goes_on_where_it_stopped(console: Wired) -> None:
    class Reluctant(Sink):
        """Takes every other write."""

        def write(self, data: bytes) -> bool:
            self.full = not self.full
            return super().write(data)

    console.device._output = sink = Reluctant()
    data = bytes(index % 251 for index in range(3 * PIECE))
    console.send(console.rig.arena.readable(data))
    while not console.transmitq.collect():
        with console.rig.transport.lock:
            console.device.output_drained()
        console.rig.run_kicks()
    assert sink.taken == data


def test_a_reset_forgets_the_buffer_that_was_half_sent(console: Wired) -> None:
    console.sink.full = True
    console.send(console.rig.arena.readable(b"old"))
    console.sink.full = False
    console.start()
    console.drain()
    console.send(console.rig.arena.readable(b"new"))
    assert console.sink.taken == b"new"


def test_a_buffer_for_the_device_to_write_to_sends_nothing(console: Wired) -> None:
    console.send(console.rig.arena.writable(10))
    assert console.transmitq.collect() == [(0, 0)]
    assert not console.sink.taken


# Input.


def test_what_is_typed_comes_in_the_guest_s_buffers(console: Wired) -> None:
    buffers = [console.offer(4) for _ in range(3)]
    assert console.type(b"abcdef")
    assert console.receiveq.collect() == [(0, 4), (1, 2)]
    assert console.rig.arena.content(buffers[0]) == b"abcd"
    assert console.rig.arena.content(buffers[1])[:2] == b"ef"
    assert console.rig.arena.content(buffers[2]) == b"\xcc" * 4


def test_what_is_typed_before_there_is_a_buffer_waits(console: Wired) -> None:
    console.type(b"early")
    buffer = console.offer(16)
    assert console.receiveq.collect() == [(0, 5)]
    assert console.rig.arena.content(buffer)[:5] == b"early"


def test_what_is_typed_before_the_driver_starts_waits(make_rig: MakeRig) -> None:
    console = Wired(make_rig)
    console.driver.reset()
    console.type(b"early")
    console.start()
    assert console.rig.arena.content(console.offer(16))[:5] == b"early"


def test_the_source_is_stopped_while_the_guest_takes_nothing(console: Wired) -> None:
    assert console.type(bytes(INPUT_LIMIT - 1))
    assert not console.type(b"xy")
    assert console.welcome == 0
    console.offer(INPUT_LIMIT)
    assert console.welcome == 0
    console.offer(16)
    assert console.welcome == 1
    assert console.receiveq.collect() == [(0, INPUT_LIMIT), (1, 1)]


def test_a_buffer_with_no_room_takes_nothing_and_loses_nothing(console: Wired) -> None:
    console.type(b"x")
    console.receiveq.add([console.rig.arena.readable(b"mine")])
    console.serve(RECEIVE)
    assert console.receiveq.collect() == [(0, 0)]
    assert console.rig.arena.content(console.offer(1)) == b"x"


# The terminal's size.


def config(console: Wired) -> tuple[int, int]:
    cols, rows = struct.unpack("<HH", bytes(console.device.config[:4]))
    return cols, rows


def test_the_driver_is_told_of_the_size_when_it_starts_and_when_it_changes(console: Wired) -> None:
    assert config(console) == (80, 24)
    assert console.driver.take_interrupt() == 2
    console.size = (132, 50)
    generation = console.device.generation
    with console.rig.transport.lock:
        console.device.resized()
    assert console.driver.take_interrupt() == 2
    assert config(console) == (132, 50)
    assert console.device.generation > generation


def test_without_a_terminal_there_is_no_size(make_rig: MakeRig) -> None:
    device = ConsoleDevice("console", Sink(), lambda: None)
    rig = make_rig(device)
    rig.driver.start()
    assert not rig.driver.features & ConsoleFeature.SIZE
    assert rig.driver.take_interrupt() == 0


# A hostile driver.


def broken(console: Wired) -> bool:
    return bool(console.driver.status & Status.DEVICE_NEEDS_RESET)


@pytest.mark.parametrize("index", [RECEIVE, TRANSMIT])
def test_a_broken_ring_stops_the_device_until_its_reset(console: Wired, index: int) -> None:
    console.type(b"x")
    queue: DriverQueue = (console.receiveq, console.transmitq)[index]
    queue.set_avail_idx(QUEUE_SIZE + 1)
    console.serve(index)
    assert broken(console)
    console.type(b"y")
    console.drain()
    console.start()
    assert console.rig.arena.content(console.offer(2)) == b"xy"
    assert len(console.rig.faults) == 1


def test_buffers_outside_of_ram_are_refused_when_input_comes(console: Wired) -> None:
    console.receiveq.set_descriptor(0, 1 << 40, 4096, DescFlag.WRITE, 0)
    console.receiveq.offer(0)
    console.serve(RECEIVE)
    assert not broken(console)
    console.type(b"x")
    assert broken(console)


def test_a_buffer_that_shrinks_while_it_waits_is_done(console: Wired) -> None:
    console.sink.full = True
    buffer = console.rig.arena.readable(bytes(2 * PIECE))
    console.transmitq.add([buffer])
    console.device._sent = PIECE  # a piece is sent
    console.transmitq.set_descriptor(0, buffer.gpa, 1, 0, 0)
    console.drain()
    assert console.transmitq.collect() == [(0, 0)]
    assert not console.sink.taken
