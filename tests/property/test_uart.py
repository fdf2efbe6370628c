"""The legacy devices under whatever a guest does with their ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.lines import Clock, CountingIrq, Sink, post
from vmm.bus import Bus
from vmm.devices import acpi_pm, cmos, debugexit, i8042
from vmm.devices.acpi_pm import AcpiPm
from vmm.devices.cmos import Cmos
from vmm.devices.debugcon import DebugConsole
from vmm.devices.debugexit import DebugExit
from vmm.devices.i8042 import I8042, KEYBOARD_BUFFER_SIZE
from vmm.devices.pvpanic import PvPanic
from vmm.devices.uart16550 import FIFO_SIZE, INPUT_LIMIT, SENDING_LIMIT, Uart16550

if TYPE_CHECKING:
    from vmm.bus import Device

RBR, IER, FCR, MCR, LSR = 0, 1, 2, 4, 5
RDI, NO_INT, DR = 1, 1, 1


class Machine:
    """All legacy devices on one bus, wired to fakes."""

    def __init__(self) -> None:
        self.irq, self.sink, self.clock = CountingIrq(), Sink(), Clock(1.7e9)
        self.events = 0
        self.uart = Uart16550(self.irq, self.sink)
        self.keyboard = I8042(self.irq, self._event)
        self.cmos = Cmos(self.irq, self.clock.call_later, 1 << 30, clock=self.clock)
        pm = AcpiPm(self._event, self._event, lambda: int(self.clock.now_s * 1e9))
        self.bus = Bus("pio")
        self.ranges: list[tuple[int, int, Device]] = [
            (0x3F8, 8, self.uart),
            (0x60, i8042.SIZE, self.keyboard),
            (0x70, cmos.SIZE, self.cmos),
            (0x600, acpi_pm.SIZE, pm),
            (0xF4, debugexit.SIZE, DebugExit(lambda _value: self._event())),
            (0x505, 1, PvPanic(lambda _events: self._event())),
            (0xE9, 1, DebugConsole(self.sink)),
        ]
        for base, size, device in self.ranges:
            self.bus.attach(base, size, device)

    def _event(self) -> None:
        self.events += 1


#: Every port of every device, and one to each side.
PORTS = [port for base, size, _ in Machine().ranges for port in range(base - 1, base + size + 1)]

ACCESSES = st.one_of(
    st.tuples(st.just("read"), st.sampled_from(PORTS), st.sampled_from([1, 2, 4, 8]), st.just(0)),
    st.tuples(st.just("write"), st.sampled_from(PORTS), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("byte"), st.sampled_from(PORTS), st.just(1), st.integers(0, 255)),
    st.tuples(st.just("time"), st.just(0), st.just(0), st.integers(0, 10**6)),
    st.tuples(st.just("input"), st.just(0), st.just(0), st.integers(1, 1024)),
    st.tuples(st.just("full"), st.just(0), st.just(0), st.integers(0, 1)),
    st.tuples(st.just("ctrl-alt-del"), st.just(0), st.just(0), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ACCESSES, max_size=200))
def test_no_access_fails_or_grows_anything(accesses: list[tuple[str, int, int, int]]) -> None:
    """Any width at any port reads a number that fits; the guest's part of every buffer stays bounded."""
    machine = Machine()
    more_welcome = [True]
    machine.uart.input_wanted = lambda: more_welcome.append(True)
    for what, port, size, value in accesses:
        if what == "read":
            assert 0 <= machine.bus.read(port, size) < 1 << 8 * size
        elif what in ("write", "byte"):
            machine.bus.write(port, size, value & (1 << 8 * size) - 1)
        elif what == "time":
            machine.clock.advance(value / 1000)
        elif what == "full":
            machine.sink.full = bool(value)
            with machine.uart.lock:
                machine.uart.output_drained()
        elif what == "ctrl-alt-del":
            with machine.keyboard.lock:
                machine.keyboard.send_ctrl_alt_del()
        elif more_welcome:
            with machine.uart.lock:
                if not machine.uart.receive(bytes(value)):
                    more_welcome.clear()
        uart, keyboard = machine.uart, machine.keyboard
        assert len(uart._input) < INPUT_LIMIT + 1024 + FIFO_SIZE
        assert len(uart._received) <= FIFO_SIZE
        assert len(uart._sending) <= SENDING_LIMIT
        assert len(keyboard._keyboard) <= KEYBOARD_BUFFER_SIZE
        assert len(keyboard._replies) <= 1
        assert len(machine.cmos._memory) == 128
        assert len(machine.clock.timers) <= 1


STEPS = st.one_of(
    st.binary(min_size=1, max_size=600),  # the host sends
    st.integers(1, 40),  # the guest reads that many bytes, if they are there
    st.sampled_from(["rts", "no rts", "loop", "no loop", "rdi", "no rdi", "interrupt"]),
)


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.lists(STEPS, max_size=100))
def test_no_input_byte_is_lost_or_duplicated(fifo: bool, steps: list[bytes | int | str]) -> None:
    """Whatever the interleaving of the host's bytes and the guest's reads, they come out as they went in."""
    irq = CountingIrq()
    uart = Uart16550(irq, Sink())
    bus = Bus("pio")
    bus.attach(0, 8, uart)
    bus.write(FCR, 1, int(fifo))
    sent, got = bytearray(), bytearray()
    welcome = [True]
    uart.input_wanted = lambda: welcome.append(True)
    mcr = 0

    def read_some(count: int) -> None:
        for _ in range(count):
            if not bus.read(LSR, 1) & DR:
                return
            got.append(bus.read(RBR, 1))

    for step in steps:
        if isinstance(step, bytes):
            if welcome:
                sent += step
                with uart.lock:
                    if not uart.receive(step):
                        welcome.clear()
        elif isinstance(step, int):
            read_some(step)
        elif step == "interrupt":
            if bus.read(2, 1) & 0x0F != NO_INT:
                read_some(1)
        elif step.endswith("rdi"):
            bus.write(IER, 1, 0 if step.startswith("no") else RDI)
        else:
            bit = 0x02 if step.endswith("rts") else 0x10
            mcr = mcr & ~bit if step.startswith("no") else mcr | bit
            bus.write(MCR, 1, mcr)
    bus.write(MCR, 1, 0x02)
    read_some(1 << 20)
    assert got == sent
    assert welcome


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.integers(0, 20)), max_size=60))
def test_no_wake_up_is_lost(steps: list[bytes | int]) -> None:
    """A guest that only looks when it is interrupted, and each time takes as many bytes as it likes, gets all."""
    irq = CountingIrq()
    uart = Uart16550(irq, Sink())
    bus = Bus("pio")
    bus.attach(0, 8, uart)
    bus.write(FCR, 1, 1)
    bus.write(IER, 1, RDI)
    sent, got = bytearray(), bytearray()

    def handle(limit: int) -> None:
        """One run of a guest's handler, which takes at most *limit* bytes."""
        if bus.read(2, 1) & 0x0F != NO_INT:
            for _ in range(limit):
                if bus.read(LSR, 1) & DR:
                    got.append(bus.read(RBR, 1))

    for step in steps:
        if isinstance(step, bytes):
            sent += step
            with uart.lock:
                uart.receive(step)
        elif irq.taken():
            handle(step)
    for _ in range(2 * len(sent) + 2):
        if not irq.taken():
            break
        handle(1)
    assert got == sent


OUTPUT = st.one_of(
    st.tuples(st.just("post"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("write"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.sampled_from(["hand over", "full", "drain", "look"]), st.just(b"")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(OUTPUT, max_size=60))
def test_no_output_byte_is_lost_or_out_of_order(steps: list[tuple[str, bytes]]) -> None:
    """Whether bytes are collected or written at once, and whatever the host takes: they go out as they came."""
    sink = Sink()
    uart = Uart16550(CountingIrq(), sink)
    bus = Bus("pio")
    bus.attach(0, 8, uart)
    sent = bytearray()
    for what, data in steps:
        if what == "post":
            sent += data[: post(uart.plain[0], data)]
        elif what == "write":
            sent += data
            for byte in data:
                bus.write(0, 1, byte)
        elif what == "hand over":
            uart.plain[0].hand_over()
        elif what == "look":
            bus.read(LSR, 1)
        else:
            sink.full = what == "full"
            with uart.lock:
                uart.output_drained()
    sink.full = False
    with uart.lock:
        uart.output_drained()
    uart.plain[0].hand_over()
    assert sink.taken == sent
