"""The serial port, as its data sheet and Linux's 8250 driver see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.lines import CountingIrq, Sink, post
from vmm.bus import Bus
from vmm.devices.uart16550 import FIFO_SIZE, INPUT_LIMIT, POLLING_READS, SENDING_LIMIT, Uart16550
from vmm.regs import POSTED_MAX

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = EFR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

RDI, THRI, RLSI, MSI = 0x01, 0x02, 0x04, 0x08
NO_INT = 0x01
CAUSE = 0x0F
DR, OE, THRE, TEMT = 0x01, 0x02, 0x20, 0x40
DLAB = 0x80
RTS, OUT2, LOOP = 0x02, 0x08, 0x10


class Port:
    """The guest's view of the UART, and what it is wired to."""

    def __init__(self) -> None:
        self.irq, self.sink = CountingIrq(), Sink()
        self.uart = Uart16550(self.irq, self.sink)
        self.bus = Bus("pio")
        self.bus.attach(0x3F8, 8, self.uart)

    def read(self, offset: int) -> int:
        return self.bus.read(0x3F8 + offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.bus.write(0x3F8 + offset, 1, value)

    def receive(self, data: bytes) -> bool:
        with self.uart.lock:
            return self.uart.receive(data)

    def drain(self) -> None:
        """The host takes output again."""
        self.sink.full = False
        with self.uart.lock:
            self.uart.output_drained()

    def read_all(self) -> bytes:
        found = bytearray()
        while self.read(LSR) & DR:
            found.append(self.read(RBR))
        return bytes(found)


@pytest.fixture
def new_port() -> Port:
    """As after a reset."""
    return Port()


@pytest.fixture
def port(new_port: Port) -> Port:
    """Open, as drivers leave it: RTS is raised."""
    new_port.write(MCR, RTS)
    return new_port


@pytest.fixture
def fifo_port(port: Port) -> Port:
    port.write(FCR, 0x01)
    return port


# Output.


def test_a_byte_written_is_sent_and_the_transmitter_is_empty_again(port: Port) -> None:
    port.write(THR, ord("A"))
    assert port.sink.taken == b"A"
    assert port.read(LSR) & (THRE | TEMT) == THRE | TEMT


def test_while_the_host_takes_nothing_the_transmitter_is_not_empty(fifo_port: Port) -> None:
    fifo_port.sink.full = True
    fifo_port.write(THR, ord("A"))
    assert not fifo_port.read(LSR) & (THRE | TEMT)
    fifo_port.drain()
    assert fifo_port.sink.taken == b"A"
    assert fifo_port.read(LSR) & (THRE | TEMT) == THRE | TEMT


def test_what_the_host_does_not_take_waits_in_order(fifo_port: Port) -> None:
    fifo_port.sink.full = True
    for byte in range(FIFO_SIZE):
        fifo_port.write(THR, byte)
    fifo_port.drain()
    assert fifo_port.sink.taken == bytes(range(FIFO_SIZE))


def test_a_guest_that_writes_on_though_thre_is_clear_loses_what_is_too_much(port: Port) -> None:
    port.sink.full = True
    for number in range(SENDING_LIMIT + 3):
        port.write(THR, number & 0xFF)
    port.drain()
    assert port.sink.taken == bytes(number & 0xFF for number in range(SENDING_LIMIT))


def test_clearing_the_transmit_fifo_drops_what_waits(fifo_port: Port) -> None:
    fifo_port.sink.full = True
    fifo_port.write(THR, 1)
    fifo_port.write(FCR, 0x05)
    assert fifo_port.read(LSR) & THRE
    fifo_port.drain()
    assert fifo_port.sink.taken == b""


def test_thri_is_raised_by_enabling_it_while_the_transmitter_is_empty(port: Port) -> None:
    """Linux tests for it at start-up: without this it works around UART_BUG_TXEN."""
    port.write(IER, THRI)
    assert port.irq.taken() == 1
    assert port.read(IIR) & CAUSE == 0x02


def test_reading_iir_clears_thri_and_toggling_ier_raises_it_again(port: Port) -> None:
    """UART_BUG_THRE's test: IER.THRI on, IIR, off, on, and IIR must say THRI again."""
    port.write(IER, THRI)
    assert [port.read(IIR) & CAUSE for _ in range(2)] == [0x02, NO_INT]
    port.write(IER, 0)
    port.irq.taken()
    port.write(IER, THRI)
    assert port.irq.taken() == 1
    assert port.read(IIR) & CAUSE == 0x02


def test_each_byte_sent_raises_thri_again(port: Port) -> None:
    port.write(IER, THRI)
    port.read(IIR)
    port.irq.taken()
    port.write(THR, 0x55)
    assert port.irq.taken() == 1
    assert port.read(IIR) & CAUSE == 0x02


def test_thri_waits_until_the_host_has_taken_the_output(fifo_port: Port) -> None:
    fifo_port.write(IER, THRI)
    fifo_port.read(IIR)
    fifo_port.irq.taken()
    fifo_port.sink.full = True
    fifo_port.write(THR, 0x55)
    assert fifo_port.irq.taken() == 0
    assert fifo_port.read(IIR) & CAUSE == NO_INT
    fifo_port.drain()
    assert fifo_port.irq.taken() == 1
    assert fifo_port.read(IIR) & CAUSE == 0x02


# Input.


def test_a_byte_typed_while_rdi_is_enabled_raises_the_interrupt_once(port: Port) -> None:
    port.write(IER, RDI)
    port.receive(b"x")
    assert port.irq.taken() == 1
    assert port.read(LSR) & DR
    assert port.read(RBR) == ord("x")
    assert port.irq.taken() == 0
    assert port.read(IIR) & CAUSE == NO_INT


def test_a_byte_typed_before_rdi_is_enabled_raises_it_then(port: Port) -> None:
    port.receive(b"x")
    assert port.irq.taken() == 0
    port.write(IER, RDI)
    assert port.irq.taken() == 1


def test_below_the_trigger_level_the_cause_is_the_time_out(port: Port) -> None:
    port.write(FCR, 0x81)  # 8 bytes
    port.write(IER, RDI)
    port.receive(bytes(7))
    assert port.read(IIR) == 0xCC
    port.receive(b"8")
    assert port.read(IIR) == 0xC4


def test_a_handler_that_takes_one_byte_per_interrupt_gets_them_all(fifo_port: Port) -> None:
    fifo_port.write(IER, RDI)
    fifo_port.receive(b"hello")
    got = bytearray()
    while fifo_port.irq.taken():
        if fifo_port.read(IIR) & CAUSE != NO_INT:
            got.append(fifo_port.read(RBR))
    assert got == b"hello"


def test_a_handler_that_looks_and_leaves_is_called_again(fifo_port: Port) -> None:
    fifo_port.write(IER, RDI)
    fifo_port.receive(b"x")
    fifo_port.irq.taken()
    assert fifo_port.read(IIR) & CAUSE == 0x04
    assert fifo_port.irq.taken() == 1


def test_bytes_beyond_the_fifo_wait_and_follow(fifo_port: Port) -> None:
    data = bytes(range(100))
    fifo_port.receive(data)
    assert fifo_port.read_all() == data


def test_clearing_the_receive_fifo_drops_what_is_in_it_but_not_what_waits(fifo_port: Port) -> None:
    fifo_port.receive(bytes(range(FIFO_SIZE + 2)))
    fifo_port.write(FCR, 0x03)
    assert fifo_port.read_all() == bytes((FIFO_SIZE, FIFO_SIZE + 1))


def test_an_empty_receiver_reads_0(port: Port) -> None:
    assert port.read(RBR) == 0
    assert not port.read(LSR) & DR


def test_the_source_is_stopped_when_the_queue_is_full_and_wanted_again_when_half_is_gone(fifo_port: Port) -> None:
    wanted: list[int] = []
    fifo_port.uart.input_wanted = lambda: wanted.append(1)
    assert fifo_port.receive(bytes(100))
    assert not fifo_port.receive(bytes(INPUT_LIMIT))
    for _ in range(INPUT_LIMIT // 2 + 100 - FIFO_SIZE):
        assert not wanted
        fifo_port.read(RBR)
    assert wanted == [1]


def test_a_paste_of_100_kb_arrives_whole_in_constant_memory(fifo_port: Port) -> None:
    paste = bytes(i * 7 & 0xFF for i in range(100_000))
    chunks = iter(paste[i : i + 1024] for i in range(0, len(paste), 1024))
    ready = [True]
    fifo_port.uart.input_wanted = lambda: ready.append(True)
    fifo_port.write(IER, RDI)
    got = bytearray()

    def feed(chunks: Iterator[bytes]) -> None:
        while ready:
            chunk = next(chunks, None)
            if chunk is None or not fifo_port.receive(chunk):
                ready.clear()

    feed(chunks)
    while fifo_port.irq.taken():
        while fifo_port.read(IIR) & CAUSE != NO_INT:
            got += fifo_port.read_all()
            assert len(fifo_port.uart._input) <= INPUT_LIMIT + 1024
            feed(chunks)
    assert bytes(got) == paste


def test_a_guest_that_drops_rts_stops_the_flow(fifo_port: Port) -> None:
    fifo_port.write(MCR, 0)
    fifo_port.receive(b"x")
    assert not fifo_port.read(LSR) & DR
    fifo_port.write(IER, RDI)
    fifo_port.irq.taken()
    fifo_port.write(MCR, RTS)
    assert fifo_port.irq.taken() == 1
    assert fifo_port.read_all() == b"x"


def test_input_from_before_the_driver_started_outlives_its_start(new_port: Port) -> None:
    """What Linux 6.1 does: probe, print by polling, and when the port is opened clear the FIFOs and read RBR."""
    new_port.receive(b"poweroff\n")
    new_port.write(IER, 0x0F)
    new_port.write(IER, 0)
    for byte in b"Linux version " * 10:
        while not new_port.read(LSR) & THRE:
            pass
        new_port.write(THR, byte)
    for value in (0x01, 0x07, 0x00):
        new_port.write(FCR, value)
    for register in (LSR, RBR, IIR, MSR):
        new_port.read(register)
    new_port.write(IER, RDI | RLSI)
    new_port.write(FCR, 0x01)
    new_port.write(FCR, 0x81)
    new_port.write(MCR, OUT2 | 0x01)
    new_port.write(MCR, OUT2 | RTS | 0x01)
    assert new_port.irq.taken()
    assert new_port.read(IIR) & CAUSE == 0x04
    assert new_port.read_all() == b"poweroff\n"


def test_a_guest_that_polls_and_never_raises_rts_gets_its_input(new_port: Port) -> None:
    new_port.receive(b"hello")
    reads = 0
    while not new_port.read(LSR) & DR:
        reads += 1
    assert reads < POLLING_READS
    assert new_port.read(RBR) == ord("h")
    new_port.write(THR, ord("h"))
    for expected in b"ello":
        assert new_port.read(LSR) & DR
        assert new_port.read(RBR) == expected


def test_a_guest_that_takes_interrupts_and_never_raises_rts_gets_its_input(new_port: Port) -> None:
    new_port.write(IER, RDI)
    new_port.receive(b"x")
    assert new_port.irq.taken() == 1
    assert new_port.read(RBR) == ord("x")


# Loopback and the modem lines.


def test_linux_finds_the_chip_by_its_loopback(port: Port) -> None:
    """8250's autoconfig: RTS and OUT2 in loopback must read back as CTS and DCD."""
    port.write(MCR, LOOP | OUT2 | RTS)
    assert port.read(MSR) & 0xF0 == 0x90


@pytest.mark.parametrize(("output", "line"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)])
def test_each_output_comes_back_as_its_input(port: Port, output: int, line: int) -> None:
    port.write(MCR, LOOP | output)
    assert port.read(MSR) & 0xF0 == line


def test_a_change_of_the_modem_lines_raises_the_interrupt_until_msr_is_read(port: Port) -> None:
    port.write(MCR, LOOP)
    port.read(MSR)
    port.write(IER, MSI)
    assert port.irq.taken() == 0
    port.write(MCR, LOOP | RTS)
    assert port.irq.taken() == 1
    assert port.read(IIR) & CAUSE == 0x00
    assert port.read(MSR) == 0x11
    assert port.read(MSR) == 0x10
    assert port.read(IIR) & CAUSE == NO_INT


def test_only_the_trailing_edge_of_ri_is_recorded(port: Port) -> None:
    port.write(MCR, LOOP)
    port.read(MSR)
    port.write(MCR, LOOP | 0x04)
    assert port.read(MSR) == 0x40
    port.write(MCR, LOOP)
    assert port.read(MSR) == 0x04


def test_what_is_sent_in_loopback_is_received_and_not_printed(fifo_port: Port) -> None:
    fifo_port.write(MCR, LOOP)
    for byte in b"loop":
        fifo_port.write(THR, byte)
    assert fifo_port.read_all() == b"loop"
    assert fifo_port.sink.taken == b""


def test_the_line_is_cut_off_in_loopback_and_nothing_is_lost(fifo_port: Port) -> None:
    fifo_port.write(MCR, LOOP)
    fifo_port.receive(b"typed")
    assert not fifo_port.read(LSR) & DR
    fifo_port.write(MCR, RTS)
    assert fifo_port.read_all() == b"typed"


def test_too_much_loopback_is_an_overrun(fifo_port: Port) -> None:
    fifo_port.write(MCR, LOOP)
    fifo_port.write(IER, RLSI)
    for byte in range(FIFO_SIZE + 1):
        fifo_port.write(THR, byte)
    assert fifo_port.irq.taken() == 1
    assert fifo_port.read(IIR) & CAUSE == 0x06
    assert fifo_port.read(LSR) & OE
    assert not fifo_port.read(LSR) & OE
    assert fifo_port.read_all() == bytes(range(FIFO_SIZE))


# Registers.


def test_the_line_status_error_comes_before_data_before_thri(fifo_port: Port) -> None:
    fifo_port.write(MCR, LOOP)
    for byte in range(FIFO_SIZE + 1):
        fifo_port.write(THR, byte)
    fifo_port.write(IER, RDI | THRI | RLSI)
    causes = [fifo_port.read(IIR) & CAUSE]
    fifo_port.read(LSR)
    causes.append(fifo_port.read(IIR) & CAUSE)
    fifo_port.read_all()
    causes += [fifo_port.read(IIR) & CAUSE, fifo_port.read(IIR) & CAUSE]
    assert causes == [0x06, 0x04, 0x02, NO_INT]


def test_ier_has_four_bits(port: Port) -> None:
    """Linux takes a port for absent otherwise, and for an XScale one if bit 6 can be set."""
    port.write(IER, 0xFF)
    assert port.read(IER) == 0x0F
    port.write(IER, 0)
    assert port.read(IER) == 0


def test_linux_takes_it_for_a_16550a(port: Port) -> None:
    """autoconfig and autoconfig_16550a: FIFOs that work, no EFR, no 64-byte FIFO."""
    port.write(LCR, 0xBF)
    port.write(EFR, 0)
    port.write(LCR, 0)
    port.write(FCR, 0x01)
    assert port.read(IIR) >> 6 == 3
    for mode in (DLAB, 0xBF):
        port.write(LCR, mode)
        assert port.read(EFR) != 0
    for mode in (0, DLAB):
        port.write(LCR, mode)
        port.write(FCR, 0x21)
        assert port.read(IIR) >> 5 == 6


def test_without_fifos_iir_says_so(port: Port) -> None:
    assert port.read(IIR) == NO_INT


def test_the_divisor_is_behind_dlab(port: Port) -> None:
    port.write(LCR, DLAB)
    port.write(DLL, 0x34)
    port.write(DLM, 0x12)
    assert (port.read(DLL), port.read(DLM)) == (0x34, 0x12)
    port.write(LCR, 3)
    assert port.read(IER) == 0
    assert port.sink.taken == b""


def test_the_scratch_register_keeps_its_byte(port: Port) -> None:
    port.write(SCR, 0xA5)
    assert port.read(SCR) == 0xA5


def test_other_widths_read_ones_and_write_nothing(port: Port) -> None:
    port.bus.write(0x3F8, 2, 0x4141)
    assert port.sink.taken == b""
    assert port.bus.read(0x3F8, 4) == 0xFFFF_FFFF


# What the vCPU's thread does in the device's place.


def posted(port: Port, data: bytes) -> int:
    """The guest writes *data* to THR, and the writes are collected; how many there is room for."""
    return post(port.uart.plain[0], data)


def shown(port: Port, offset: int) -> int | None:
    """What the guest reads without the device, or None if the device is asked."""
    register = next(plain for plain in port.uart.plain[1:] if plain.offset == offset)
    return register.storage[0] if register.gate[0] else None


def test_posted_bytes_are_sent_when_the_machine_hands_them_over(port: Port) -> None:
    assert posted(port, b"hello") == 5
    assert not port.sink.taken
    port.uart.plain[0].hand_over()
    port.uart.plain[0].hand_over()
    assert port.sink.taken == b"hello"


@pytest.mark.parametrize("offset", range(8))
def test_posted_bytes_are_sent_before_any_other_access(port: Port, offset: int) -> None:
    posted(port, b"ab")
    port.read(offset)
    posted(port, b"cd")
    port.write(offset, 0x80 if offset == LCR else ord("e") if offset == THR else 0)
    assert bytes(port.sink.taken) == (b"abcde" if offset == THR else b"abcd")


def test_posted_bytes_mean_what_they_did_when_they_were_written(port: Port) -> None:
    port.write(LCR, DLAB)
    posted(port, b"\x34\x12")
    port.write(LCR, 0)
    port.write(MCR, LOOP)
    posted(port, b"x")
    port.write(MCR, RTS)
    assert not port.sink.taken
    assert port.read(RBR) == ord("x")
    port.write(LCR, DLAB)
    assert port.read(DLL) == 0x12


def test_posting_goes_round_the_ring_and_stops_when_it_is_full(port: Port) -> None:
    posted(port, bytes(POSTED_MAX - 2))
    port.uart.plain[0].hand_over()
    port.sink.taken.clear()
    data = bytes(index & 0xFF for index in range(POSTED_MAX + 1))
    assert posted(port, data) == POSTED_MAX
    port.write(THR, data[-1])
    assert port.sink.taken == data


def test_posted_bytes_raise_thri_when_they_are_sent(port: Port) -> None:
    port.write(IER, THRI)
    assert port.read(IIR) & CAUSE == 0x02
    port.irq.taken()
    posted(port, b"x")
    port.uart.plain[0].hand_over()
    assert port.irq.taken() == 1
    assert port.read(IIR) & CAUSE == 0x02


def test_a_host_that_takes_nothing_costs_no_posted_byte(port: Port) -> None:
    port.sink.full = True
    posted(port, bytes(POSTED_MAX))
    port.uart.plain[0].hand_over()
    assert shown(port, LSR) == 0
    posted(port, b"f" * FIFO_SIZE)  # the guest had looked at LSR just before
    port.drain()
    port.read(SCR)
    assert port.sink.taken == bytes(POSTED_MAX) + b"f" * FIFO_SIZE
    assert shown(port, LSR) == THRE | TEMT


def test_lsr_is_plain_and_current_once_rts_was_raised(new_port: Port) -> None:
    """Before, reading it tells of a guest that polls."""
    assert shown(new_port, LSR) is None
    new_port.write(MCR, RTS)
    assert shown(new_port, LSR) == new_port.read(LSR) == THRE | TEMT
    new_port.receive(b"x")
    assert shown(new_port, LSR) == new_port.read(LSR) == THRE | TEMT | DR
    new_port.read(RBR)
    assert shown(new_port, LSR) == THRE | TEMT


def test_lsr_and_msr_are_the_device_s_in_loopback(port: Port) -> None:
    port.write(MCR, RTS | LOOP)
    assert shown(port, LSR) is shown(port, MSR) is None


def test_msr_is_plain_while_it_has_nothing_to_clear(port: Port) -> None:
    assert shown(port, MSR) == port.read(MSR)
    port.write(MCR, RTS | LOOP)
    port.write(MCR, RTS)
    assert shown(port, MSR) is None
    port.read(MSR)
    assert shown(port, MSR) == port.read(MSR)
