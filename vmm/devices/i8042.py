"""The keyboard controller (Intel 8042, as in the IBM PC/AT), with a keyboard and no mouse.

Linux resets the machine through it (command 0xFE), and it is how Ctrl-Alt-Del reaches a guest.

One device in one range of five ports from 0x60: 0x60 is data, 0x64 is status and command. The ports between belong to
others on a PC; here nobody answers.
"""

from __future__ import annotations

from collections import deque

from vmm.regs import RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.irq import IrqLine
    from vmm.state import State

SIZE = 5
#: What the keyboard keeps for a guest that does not read.
KEYBOARD_BUFFER_SIZE = 16

# Bit 1, input buffer full, is never set: commands take no time, and drivers poll it up to 65,536 times.
_STATUS_OUTPUT_FULL, _STATUS_SYSTEM, _STATUS_LAST_WAS_COMMAND, _STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
_MODE_KEYBOARD_IRQ, _MODE_SYSTEM, _MODE_KEYBOARD_OFF, _MODE_MOUSE_OFF, _MODE_TRANSLATE = 0x01, 0x04, 0x10, 0x20, 0x40
_OUTPUT_PORT = 0xCF  # reset line high, A20 open
_OUTPUT_PORT_RESET_LINE = 0x01

_KEYBOARD_ACK, _KEYBOARD_RESEND = 0xFA, 0xFE
# Left Ctrl, left Alt, Del (0xE0 prefix) pressed, then released, in scan code sets 1 (translated) and 2.
_CTRL_ALT_DEL_SET_1 = bytes.fromhex("1d 38 e0 53 e0 d3 b8 9d")
_CTRL_ALT_DEL_SET_2 = bytes.fromhex("14 11 e0 71 e0 f0 71 f0 11 f0 14")


class I8042(RegisterBlock):
    """The controller; *reset* is called (lock held) when the guest pulls the processor's reset line."""

    name = "i8042"
    _awaiters = ("_set_mode", "_set_output_port", "_reply", "_ignore", "_take_parameter", "_select_scan_codes")
    kept = ("_mode", "_last_was_command", "_replies", "_keyboard", "_last_data")

    def __init__(self, irq: IrqLine, reset: Callable[[], None]) -> None:
        super().__init__()
        self._irq = irq
        self._reset = reset
        self._mode = _MODE_KEYBOARD_IRQ | _MODE_SYSTEM | _MODE_MOUSE_OFF | _MODE_TRANSLATE
        self._last_was_command = False
        #: One of `_awaiters`.
        self._awaiting: Callable[[int], None] | None = None  # who takes the next byte written to the data port
        self._replies: deque[int] = deque()  # the controller's own, a byte or none
        self._keyboard: deque[int] = deque(maxlen=KEYBOARD_BUFFER_SIZE)
        self._output: int | None = None
        self._last_data = 0

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        awaiting = next((name for name in self._awaiters if getattr(self, name) == self._awaiting), None)
        return super().state() | {"awaiting": awaiting, "output": self._output}

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`."""
        super().restore(state)
        awaiting, output = state["awaiting"], state["output"]
        if awaiting not in (None, *self._awaiters):
            raise ValueError("i8042 awaits what it cannot")
        self._awaiting = getattr(self, awaiting) if awaiting else None
        self._output = None if output is None else int(output)

    def revive(self) -> None:
        """As `RegisterBlock.revive`."""
        if self._output is not None and self._mode & _MODE_KEYBOARD_IRQ:
            self._irq.pulse()

    def send_ctrl_alt_del(self) -> None:
        """Press and release Ctrl-Alt-Del. Called with `lock` held."""
        self._keyboard.clear()
        self._keyboard.extend(_CTRL_ALT_DEL_SET_1 if self._mode & _MODE_TRANSLATE else _CTRL_ALT_DEL_SET_2)
        self._refill()

    @register(0, "DATA", width=1)
    def data(self) -> int:
        if self._output is not None:
            self._last_data, self._output = self._output, None
            self._refill()
        return self._last_data

    @data.writer
    def _write_data(self, value: int) -> None:
        self._last_was_command = False
        take, self._awaiting = self._awaiting or self._to_keyboard, None
        take(value)
        self._refill()

    @register(4, "STATUS/COMMAND", width=1)
    def status(self) -> int:
        status = _STATUS_SYSTEM | _STATUS_UNLOCKED
        if self._output is not None:
            status |= _STATUS_OUTPUT_FULL
        if self._last_was_command:
            status |= _STATUS_LAST_WAS_COMMAND
        return status

    @status.writer
    def _write_command(self, command: int) -> None:
        self._last_was_command = True
        self._awaiting = None
        if command >= 0xF0:  # pulse the lines of the output port that are 0 in the low bits
            if not command & _OUTPUT_PORT_RESET_LINE:
                self._reset()
        elif command in (0xAD, 0xAE):
            self._set_mode(self._mode & ~_MODE_KEYBOARD_OFF | (_MODE_KEYBOARD_OFF if command == 0xAD else 0))
        elif command in (0xA7, 0xA8):
            self._set_mode(self._mode & ~_MODE_MOUSE_OFF | (_MODE_MOUSE_OFF if command == 0xA7 else 0))
        elif command == 0x60:
            self._awaiting = self._set_mode
        elif command == 0xD1:
            self._awaiting = self._set_output_port
        elif command in (0xD2, 0xD3):
            # 0xD3 asks for the byte back as if from the mouse. It comes back as the keyboard's (status bit 5 clear),
            # by which Linux sees without a time-out that there is no mouse.
            self._awaiting = self._reply
        elif command == 0xD4:
            self._awaiting = self._ignore
        else:
            self._answer(command)
        self._refill()

    def _answer(self, command: int) -> None:
        """The commands that only ask. An unknown one gets no answer, as on the chip."""
        reply = {
            0x20: self._mode,
            0xA9: 0x01,  # mouse port test: the clock line is stuck, so drivers know at once that there is no mouse
            0xAA: 0x55,  # controller self test passed
            0xAB: 0x00,  # keyboard port test passed
            0xC0: 0x80,  # input port: keyboard not locked
            0xD0: _OUTPUT_PORT | (0x10 if self._output is not None else 0),
        }.get(command)
        if reply is not None:
            self._reply(reply)

    def _set_mode(self, value: int) -> None:
        self._mode = value

    def _set_output_port(self, value: int) -> None:
        if not value & _OUTPUT_PORT_RESET_LINE:
            self._reset()

    def _reply(self, value: int) -> None:
        self._replies.clear()  # the answer that nobody fetched is overwritten
        self._replies.append(value)

    def _ignore(self, value: int) -> None:
        """There is no mouse to send *value* to."""

    def _to_keyboard(self, value: int) -> None:
        """A command to the keyboard, or the parameter of the one before: each is acknowledged."""
        self._mode &= ~_MODE_KEYBOARD_OFF  # the controller lets the clock go to send
        translated = bool(self._mode & _MODE_TRANSLATE)
        if value in (0xED, 0xF3):  # LEDs; repeat rate
            self._awaiting = self._take_parameter
        elif value == 0xF0:  # scan code set
            self._awaiting = self._select_scan_codes
        answer = {
            0xEE: b"\xee",  # echo
            0xF2: b"\xfa\xab\x41" if translated else b"\xfa\xab\x83",  # identify: an AT keyboard
            0xFE: b"",  # resend: the last answer has arrived
            0xFF: b"\xfa\xaa",  # reset, and the self test passed
        }.get(value)
        if answer is None:
            answer = bytes((_KEYBOARD_ACK if value in (0xED, *range(0xF0, 0xF7)) else _KEYBOARD_RESEND,))
        self._keyboard.extend(answer)

    def _take_parameter(self, value: int) -> None:  # noqa: ARG002  a keyboard without lamps, which does not repeat
        self._keyboard.append(_KEYBOARD_ACK)

    def _select_scan_codes(self, value: int) -> None:
        self._keyboard.append(_KEYBOARD_ACK)
        if value == 0:  # which set is it? Set 2, which the controller translates to 0x41
            self._keyboard.append(0x41 if self._mode & _MODE_TRANSLATE else 0x02)

    def _refill(self) -> None:
        """Put the next byte into the output buffer if it is free, and say so on the interrupt line.

        One pulse for each byte that becomes readable: the guest's handler takes one byte per interrupt.
        """
        if self._output is not None:
            return
        if self._replies:
            self._output = self._replies.popleft()
        elif self._keyboard and not self._mode & _MODE_KEYBOARD_OFF:
            self._output = self._keyboard.popleft()
        if self._output is not None and self._mode & _MODE_KEYBOARD_IRQ:
            self._irq.pulse()
