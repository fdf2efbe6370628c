"""The keyboard controller, as Linux's i8042 and atkbd drivers use it."""

from __future__ import annotations

import pytest

from tests.fakes.lines import CountingIrq
from vmm.bus import Bus
from vmm.devices.i8042 import I8042, KEYBOARD_BUFFER_SIZE, SIZE

DATA, COMMAND = 0x60, 0x64
OBF, IBF, AUX_DATA = 0x01, 0x02, 0x20


class Controller:
    def __init__(self) -> None:
        self.irq = CountingIrq()
        self.resets = 0
        self.device = I8042(self.irq, self._reset)
        self.bus = Bus("pio")
        self.bus.attach(0x60, SIZE, self.device)

    def _reset(self) -> None:
        self.resets += 1

    def status(self) -> int:
        return self.bus.read(COMMAND, 1)

    def command(self, command: int, *parameters: int) -> bytes:
        """What answers to *command* with *parameters*."""
        self.bus.write(COMMAND, 1, command)
        for parameter in parameters:
            self.bus.write(DATA, 1, parameter)
        return self.answer()

    def keyboard(self, *data: int) -> bytes:
        for byte in data:
            self.bus.write(DATA, 1, byte)
        return self.answer()

    def answer(self) -> bytes:
        found = bytearray()
        while self.status() & OBF:
            found.append(self.bus.read(DATA, 1))
        return bytes(found)


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_the_input_buffer_is_never_full(controller: Controller) -> None:
    """Linux polls for it up to 65,536 times when it reboots."""
    assert not controller.status() & IBF
    controller.bus.write(COMMAND, 1, 0x60)
    assert not controller.status() & IBF


def test_the_keyboard_is_not_locked(controller: Controller) -> None:
    assert controller.status() & 0x10


def test_the_status_tells_commands_from_data(controller: Controller) -> None:
    controller.bus.write(COMMAND, 1, 0x60)
    assert controller.status() & 0x08
    controller.bus.write(DATA, 1, 0x41)
    assert not controller.status() & 0x08


@pytest.mark.parametrize(("command", "answer"), [(0xAA, b"\x55"), (0xAB, b"\x00")])
def test_the_self_tests_pass(controller: Controller, command: int, answer: bytes) -> None:
    assert controller.command(command) == answer


def test_the_command_byte_is_kept(controller: Controller) -> None:
    controller.command(0x60, 0x30)
    assert controller.command(0x20) == b"\x30"


@pytest.mark.parametrize(("off", "on", "bit"), [(0xAD, 0xAE, 0x10), (0xA7, 0xA8, 0x20)])
def test_ports_are_switched_off_and_on_in_the_command_byte(controller: Controller, off: int, on: int, bit: int) -> None:
    controller.command(off)
    assert controller.command(0x20)[0] & bit
    controller.command(on)
    assert not controller.command(0x20)[0] & bit


def test_linux_sees_without_waiting_that_there_is_no_mouse(controller: Controller) -> None:
    """i8042_check_aux: AUX_LOOP must answer without AUXDATA, AUX_TEST with 1 to 3; no answer costs 500 ms each."""
    controller.bus.write(COMMAND, 1, 0xD3)
    controller.bus.write(DATA, 1, 0x5A)
    assert controller.status() & (OBF | AUX_DATA) == OBF
    assert controller.answer() == b"\x5a"
    assert controller.command(0xA9) == b"\x01"


def test_what_is_sent_to_the_mouse_gets_no_answer(controller: Controller) -> None:
    assert controller.command(0xD4, 0xFF) == b""


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"\xff", b"\xfa\xaa"),
        (b"\xf2", b"\xfa\xab\x41"),
        (b"\xf4", b"\xfa"),
        (b"\xf5", b"\xfa"),
        (b"\xf6", b"\xfa"),
        (b"\xee", b"\xee"),
        (b"\xed\x07", b"\xfa\xfa"),
        (b"\xf3\x20", b"\xfa\xfa"),
        (b"\xf0\x00", b"\xfa\xfa\x41"),
        (b"\xf0\x02", b"\xfa\xfa"),
        (b"\x05", b"\xfe"),
    ],
)
def test_the_keyboard_answers_as_an_at_keyboard(controller: Controller, sent: bytes, answer: bytes) -> None:
    assert controller.keyboard(*sent) == answer


def test_the_keyboard_is_identified_untranslated_too(controller: Controller) -> None:
    controller.command(0x60, 0x01)
    assert controller.keyboard(0xF2) == b"\xfa\xab\x83"


def test_each_byte_that_becomes_readable_raises_irq_1_once(controller: Controller) -> None:
    controller.bus.write(DATA, 1, 0xF2)  # three bytes come back
    pulses = [controller.irq.taken()]
    for _ in range(3):
        controller.bus.read(DATA, 1)
        pulses.append(controller.irq.taken())
    assert pulses == [1, 1, 1, 0]


def test_no_interrupt_while_the_command_byte_says_so(controller: Controller) -> None:
    controller.command(0x60, 0x40)
    controller.irq.taken()
    controller.keyboard(0xF4)
    assert controller.irq.taken() == 0


def test_a_keyboard_switched_off_keeps_its_keys(controller: Controller) -> None:
    controller.command(0xAD)
    with controller.device.lock:
        controller.device.send_ctrl_alt_del()
    assert controller.answer() == b""
    controller.bus.write(COMMAND, 1, 0xAE)
    assert controller.answer() != b""


@pytest.mark.parametrize(
    ("mode", "scan_codes"), [(0x41, "1d 38 e0 53 e0 d3 b8 9d"), (0x01, "14 11 e0 71 e0 f0 71 f0 11 f0 14")]
)
def test_ctrl_alt_del_is_pressed_and_released(controller: Controller, mode: int, scan_codes: str) -> None:
    controller.command(0x60, mode)
    controller.irq.taken()
    with controller.device.lock:
        controller.device.send_ctrl_alt_del()
    assert controller.irq.taken() == 1
    assert controller.answer() == bytes.fromhex(scan_codes)


def test_0xfe_resets_the_machine(controller: Controller) -> None:
    controller.command(0xFE)
    assert controller.resets == 1


def test_the_other_pulses_do_not(controller: Controller) -> None:
    controller.command(0xFF)
    controller.command(0xF1)
    assert controller.resets == 0


def test_the_reset_line_of_the_output_port_resets_too(controller: Controller) -> None:
    assert controller.command(0xD0)[0] & 0x01
    controller.command(0xD1, 0xDF)
    assert controller.resets == 0
    controller.command(0xD1, 0xDE)
    assert controller.resets == 1


def test_d2_puts_a_byte_into_the_output_buffer(controller: Controller) -> None:
    assert controller.command(0xD2, 0x77) == b"\x77"


def test_an_unread_keyboard_fills_a_small_buffer(controller: Controller) -> None:
    for _ in range(100):
        controller.bus.write(DATA, 1, 0xF4)
    assert len(controller.answer()) == KEYBOARD_BUFFER_SIZE + 1


def test_the_ports_between_do_not_answer(controller: Controller) -> None:
    controller.bus.write(0x61, 1, 0)
    assert [controller.bus.read(port, 1) for port in (0x61, 0x62, 0x63)] == [0xFF] * 3
