"""The debug console port (that of Bochs, QEMU's isa-debugcon): write a byte to port 0xE9 and it is printed."""

from __future__ import annotations

from vmm.regs import RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.console import ByteSink


class DebugConsole(RegisterBlock):
    """Writes to *output*. The port cannot make the guest wait: what *output* does not take at once is lost."""

    name = "debugcon"

    def __init__(self, output: ByteSink) -> None:
        super().__init__()
        self._output = output

    @register(0, "DATA", width=1)
    def data(self) -> int:
        return 0xE9  # how a guest finds out that the port is there

    @data.writer
    def _write_data(self, value: int) -> None:
        self._output.write(bytes((value,)))
