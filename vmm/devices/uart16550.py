"""The serial port: a 16550A UART (National Semiconductor PC16550D data sheet) at the ports of COM1.

======  ======================  =========================================================
offset  register                with LCR.DLAB set
======  ======================  =========================================================
0       RBR (read), THR         DLL, divisor low
1       IER                     DLM, divisor high
2       IIR (read), FCR
3       LCR
4       MCR
5       LSR
6       MSR
7       SCR
======  ======================  =========================================================

The line has no speed: a byte written is sent at once, a byte that came is there at once. Instead of a baud rate,
readiness paces it in both directions, and nothing is lost or kept without bound:

* Out: while the host takes no more, the bytes stay in the transmitter and LSR.THRE stays clear, so the guest waits. A
  guest that writes on regardless overwrites nothing but loses what is more than `SENDING_LIMIT`.
* In: what the host sends waits in a queue, of which the receiver's FIFO gets as much as it holds, while the guest
  listens: raises RTS, as every driver does when its port is opened (`stty crtscts` drops it to stop the flow). So what
  is piped in before the guest has booted is not thrown away when its driver clears the FIFOs. A guest that never
  raised RTS listens while it has IER.RDI set, or for good once it polls. While the queue is full the source is told
  to stop.

A guest that sends makes an exit for every byte, and most of the others are to read LSR and MSR. The machine may answer
these in the vCPU's thread: THR is a posted register, and LSR and MSR are plain ones while reading them changes nothing.
"""

from __future__ import annotations

from collections import deque

from vmm.regs import POSTED_MAX, PlainRegister, PostedRegister, RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.host.console import ByteSink
    from vmm.irq import IrqLine
    from vmm.state import State

FIFO_SIZE = 16
#: What the transmitter holds while the host takes no more: what was posted, and what the guest wrote before it knew.
SENDING_LIMIT = 2 * POSTED_MAX
#: The source is told to stop when this many bytes wait for the guest, and to go on when half of them are gone.
INPUT_LIMIT = 4096
#: So many reads of LSR without a byte written between are polling for input, not waiting to write.
POLLING_READS = 32

_IER_RDI, _IER_THRI, _IER_RLSI, _IER_MSI = 0x01, 0x02, 0x04, 0x08
_IIR_MSI, _IIR_NO_INT, _IIR_THRI, _IIR_RDI, _IIR_RLSI, _IIR_RX_TIMEOUT = 0x00, 0x01, 0x02, 0x04, 0x06, 0x0C
_IIR_FIFO_ENABLED = 0xC0
_FCR_ENABLE, _FCR_CLEAR_RCVR, _FCR_CLEAR_XMIT = 0x01, 0x02, 0x04
_FCR_TRIGGER_LEVELS = (1, 4, 8, 14)  # by FCR[7:6]
_LCR_DLAB = 0x80
_MCR_RTS, _MCR_LOOP, _MCR_WRITABLE = 0x02, 0x10, 0x1F
_LSR_DR, _LSR_OE, _LSR_THRE, _LSR_TEMT = 0x01, 0x02, 0x20, 0x40
_MSR_TERI, _MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x04, 0x10, 0x20, 0x40, 0x80
_MSR_DELTAS = 0x0F


class Uart16550(RegisterBlock):
    """A 16550A whose transmitter is *output* and whose receiver is fed by `receive`.

    `receive` and `output_drained` are called with `lock` held, as the bus holds it for the guest's accesses.
    """

    name = "com1"
    kept = (
        "_input", "_received", "_sending", "_divisor", "_ier", "_fcr", "_lcr", "_mcr", "_scratch", "_msr", "_overrun",
        "_thr_interrupt", "_rts_used", "_lsr_reads", "_interrupting",
    )  # fmt: skip

    def __init__(self, irq: IrqLine, output: ByteSink) -> None:
        super().__init__()
        self._irq = irq
        self._output = output
        #: Called (lock held, so it must only ask the loop) when `receive` has said False and may be called again.
        self.input_wanted: Callable[[], None] = lambda: None
        self._input: deque[int] = deque()
        self._input_stopped = False
        self._received: deque[int] = deque()
        self._sending = bytearray()
        self._divisor = 12  # 9600 baud
        self._ier = self._fcr = self._lcr = self._mcr = 0
        self._scratch = bytearray(1)
        self._posted = PostedRegister(0, self.lock, self._take_posted)
        self._shown_lsr, self._shown_msr = (PlainRegister(offset, bytearray(1), width=1) for offset in (5, 6))
        self.plain = (
            self._posted,
            self._shown_lsr,
            self._shown_msr,
            PlainRegister(7, self._scratch, width=1, writable=True),
        )
        self._msr = _MSR_DCD | _MSR_DSR | _MSR_CTS
        self._overrun = False
        self._thr_interrupt = False
        self._rts_used = False
        self._lsr_reads = 0
        self._interrupting = False
        self._show()

    # The host's side.

    def receive(self, data: bytes) -> bool:
        """Take *data* (at most `INPUT_LIMIT` bytes) from the line; whether more is welcome now.

        After False the source waits until `input_wanted` is called.
        """
        self._input.extend(data)
        self._input_stopped = len(self._input) >= INPUT_LIMIT
        self._fill_receiver()
        self._signal()
        return not self._input_stopped

    @property
    def input_stopped(self) -> bool:
        """Whether `receive` has said False, and `input_wanted` is yet to be called."""
        return self._input_stopped

    def output_drained(self) -> None:
        """The output takes bytes again: send what has been waiting."""
        if self._sending and self._output.write(bytes(self._sending)):
            self._sending.clear()
            self._thr_interrupt = True
        self._signal()

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        self._take_posted()
        return super().state()

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`."""
        super().restore(state)
        self._show()

    def revive(self) -> None:
        """As `RegisterBlock.revive`."""
        self.output_drained()
        self._signal(looked=True)

    # The guest's side.

    def read(self, offset: int, size: int) -> int:
        """As `RegisterBlock.read`, after what was posted before."""
        self._take_posted()
        return super().read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """As `RegisterBlock.write`, after what was posted before."""
        self._take_posted()
        super().write(offset, size, value)

    @register(0, "RBR/THR/DLL", width=1)
    def data(self) -> int:
        if self._lcr & _LCR_DLAB:
            return self._divisor & 0xFF
        byte = self._received.popleft() if self._received else 0
        self._fill_receiver()
        self._signal(looked=True)
        return byte

    @data.writer
    def _write_data(self, value: int) -> None:
        self._transmit(bytes((value,)))

    @register(1, "IER/DLM", width=1)
    def interrupt_enable(self) -> int:
        return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier

    @interrupt_enable.writer
    def _write_interrupt_enable(self, value: int) -> None:
        if self._lcr & _LCR_DLAB:
            self._divisor = value << 8 | self._divisor & 0xFF
            return
        risen = value & ~self._ier
        self._ier = value & 0x0F
        if risen & _IER_THRI:
            # Enabling the interrupt while the transmitter is empty raises it, even if an IIR read had cleared it:
            # that is how drivers start sending, and what Linux tests for at start-up (UART_BUG_TXEN, UART_BUG_THRE).
            self._thr_interrupt = not self._sending
        if self._listens():
            self._fill_receiver()
        else:
            self._take_back()
        self._signal(looked=True)

    @register(2, "IIR/FCR", width=1)
    def interrupt_identification(self) -> int:
        cause = self._cause()
        if cause == _IIR_THRI:
            self._thr_interrupt = False
        self._signal(looked=True)
        return cause | (_IIR_FIFO_ENABLED if self._fcr & _FCR_ENABLE else 0)

    @interrupt_identification.writer
    def _write_fifo_control(self, value: int) -> None:
        if (value ^ self._fcr) & _FCR_ENABLE:
            value |= _FCR_CLEAR_RCVR | _FCR_CLEAR_XMIT
        self._fcr = value & ~(_FCR_CLEAR_RCVR | _FCR_CLEAR_XMIT) if value & _FCR_ENABLE else 0
        if value & _FCR_CLEAR_RCVR:
            self._take_back()
            self._received.clear()
            self._fill_receiver()
        if value & _FCR_CLEAR_XMIT and self._sending:
            self._sending.clear()
            self._thr_interrupt = True
        self._signal()

    @register(3, "LCR", width=1)
    def line_control(self) -> int:
        return self._lcr

    @line_control.writer
    def _write_line_control(self, value: int) -> None:
        self._lcr = value

    @register(4, "MCR", width=1)
    def modem_control(self) -> int:
        return self._mcr

    @modem_control.writer
    def _write_modem_control(self, value: int) -> None:
        self._mcr = value & _MCR_WRITABLE
        if not self._mcr & _MCR_LOOP:
            self._rts_used |= bool(self._mcr & _MCR_RTS)
        self._set_modem_lines()
        self._fill_receiver()
        self._signal()

    @register(5, "LSR", width=1)
    def line_status(self) -> int:
        if self._lsr_reads < POLLING_READS:
            self._lsr_reads += 1
            if self._lsr_reads == POLLING_READS:
                self._fill_receiver()
        status = self._line_status()
        if self._overrun:
            self._overrun = False
            self._signal(looked=True)
        return status

    @register(6, "MSR", width=1)
    def modem_status(self) -> int:
        status = self._msr
        self._msr &= ~_MSR_DELTAS
        self._signal(looked=True)
        return status

    @register(7, "SCR", width=1)
    def scratch(self) -> int:
        return self._scratch[0]

    @scratch.writer
    def _write_scratch(self, value: int) -> None:
        self._scratch[0] = value

    # Inside the chip.

    @property
    def _depth(self) -> int:
        return FIFO_SIZE if self._fcr & _FCR_ENABLE else 1

    def _take_posted(self) -> None:
        posted = self._posted.take()
        if posted:
            self._transmit(posted)

    def _transmit(self, data: bytes) -> None:
        """The guest wrote *data* at offset 0, and nothing elsewhere meanwhile."""
        if self._lcr & _LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | data[-1]
            return
        if self._lsr_reads < POLLING_READS:
            self._lsr_reads = 0
        if self._mcr & _MCR_LOOP:
            for byte in data:
                self._loop_back(byte)
        elif self._sending or not self._output.write(data):
            self._sending += data[: SENDING_LIMIT - len(self._sending)]
        self._thr_interrupt = not self._sending
        self._signal()

    def _line_status(self) -> int:
        status = _LSR_DR if self._received else 0
        if not self._sending:
            status |= _LSR_THRE | _LSR_TEMT
        return status | _LSR_OE if self._overrun else status

    def _show(self) -> None:
        """Keep the plain registers current. A guest that never raised RTS is watched for polling: see `line_status`."""
        looped = bool(self._mcr & _MCR_LOOP)
        self._shown_lsr.open(self._rts_used and not looped and not self._overrun)
        self._shown_lsr.storage[0] = self._line_status()
        self._shown_msr.open(not looped and not self._msr & _MSR_DELTAS)
        self._shown_msr.storage[0] = self._msr

    def _listens(self) -> bool:
        if self._mcr & _MCR_LOOP:  # the line is cut off
            return False
        if self._rts_used:
            return bool(self._mcr & _MCR_RTS)
        return bool(self._ier & _IER_RDI) or self._lsr_reads >= POLLING_READS

    def _fill_receiver(self) -> None:
        """Let the waiting input into the receiver's FIFO, as far as it goes."""
        if not self._listens():
            return
        while self._input and len(self._received) < self._depth:
            self._received.append(self._input.popleft())
        if self._input_stopped and len(self._input) <= INPUT_LIMIT // 2:
            self._input_stopped = False
            self.input_wanted()

    def _take_back(self) -> None:
        """Undo `_fill_receiver` while the port is not open yet: RTS was never raised.

        Linux sets all of IER for a moment when it looks for the chip, and RDI before it switches the FIFOs on, which
        clears them, and raises RTS.
        """
        if not self._rts_used and not self._mcr & _MCR_LOOP:
            self._input.extendleft(reversed(self._received))
            self._received.clear()

    def _loop_back(self, value: int) -> None:
        if len(self._received) < self._depth:
            self._received.append(value)
        else:
            self._overrun = True

    def _set_modem_lines(self) -> None:
        """Outside loopback the other side is always there; in loopback the outputs come back as inputs."""
        mcr, old = self._mcr, self._msr
        lines = _MSR_DCD | _MSR_DSR | _MSR_CTS
        if mcr & _MCR_LOOP:  # RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD
            lines = (mcr & 0x02) << 3 | (mcr & 0x01) << 5 | (mcr & 0x0C) << 4
        changed = (old ^ lines) >> 4 & _MSR_DELTAS
        if changed & _MSR_TERI and lines & _MSR_RI:
            changed &= ~_MSR_TERI  # only the trailing edge of RI is recorded
        self._msr = lines | old & _MSR_DELTAS | changed

    def _cause(self) -> int:
        """The interrupt of the highest priority, as IIR[3:0]."""
        ier = self._ier
        if ier & _IER_RLSI and self._overrun:
            return _IIR_RLSI
        if ier & _IER_RDI and self._received:
            # Below the trigger level the chip waits four character times for more; here they have passed at once.
            level = _FCR_TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & _FCR_ENABLE else 1
            return _IIR_RDI if len(self._received) >= level else _IIR_RX_TIMEOUT
        if ier & _IER_THRI and self._thr_interrupt:
            return _IIR_THRI
        if ier & _IER_MSI and self._msr & _MSR_DELTAS:
            return _IIR_MSI
        return _IIR_NO_INT

    def _signal(self, *, looked: bool = False) -> None:
        """Pulse the interrupt line if there is a cause that the guest may not know of.

        The line is edge-triggered: the guest's handler must look at IIR until it says NO_INT, and a cause that comes
        while there already is one makes no edge of its own. The race: a handler gives up early (Linux stops after 512
        rounds, simple handlers take one byte per interrupt) while a cause remains; then no edge ever comes again and
        the port is dead. So whenever the guest has *looked* (read IIR, RBR or MSR, cleared an error by reading LSR,
        written IER) and a cause is left, there is another pulse. `lock` orders looks and new causes: either the
        handler's last look reports the cause, or the cause comes after it and is pulsed. At worst the handler runs
        once more and finds NO_INT.
        """
        self._show()
        interrupting = self._cause() != _IIR_NO_INT
        if interrupting and (looked or not self._interrupting):
            self._irq.pulse()
        self._interrupting = interrupting
