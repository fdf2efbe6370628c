"""Why a vCPU came back: the closed union `VcpuExit`.

Plain slotted classes that `match` tells apart. They hold copies, never views of `kvm_run`. A vCPU has one each of the
common four and fills it anew (making one costs a quarter of a microsecond): they are valid until the next `run`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


class PortRead:
    """`IN`: *count* items of *size* bytes (1, 2, 4) from *port*; answer with `Vcpu.reply_port`."""

    __slots__ = __match_args__ = ("port", "size", "count")

    def __init__(self, port: int = 0, size: int = 1, count: int = 0) -> None:
        self.port, self.size, self.count = port, size, count


class PortWrite:
    """`OUT`: *data* holds one or more items of *size* bytes for *port*."""

    __slots__ = __match_args__ = ("port", "size", "data")

    def __init__(self, port: int = 0, size: int = 1, data: bytes = b"") -> None:
        self.port, self.size, self.data = port, size, data


class MmioRead:
    """A load of *size* bytes (1, 2, 4, 8) at *gpa* where there is no RAM; answer with `Vcpu.reply_mmio`."""

    __slots__ = __match_args__ = ("gpa", "size")

    def __init__(self, gpa: int = 0, size: int = 0) -> None:
        self.gpa, self.size = gpa, size


class MmioWrite:
    """A store of *value*, *size* bytes, at *gpa* where there is no RAM."""

    __slots__ = __match_args__ = ("gpa", "size", "value")

    def __init__(self, gpa: int = 0, size: int = 0, value: int = 0) -> None:
        self.gpa, self.size, self.value = gpa, size, value


class MsrWrite:
    """A filtered `WRMSR` of *value* to *index*; answer with `Vcpu.reply_msr`."""

    __slots__ = __match_args__ = ("index", "value")

    def __init__(self, index: int, value: int) -> None:
        self.index, self.value = index, value


class DebugTrap:
    """A breakpoint or single step at linear address *pc*; *dr6* tells which."""

    __slots__ = __match_args__ = ("pc", "dr6")

    def __init__(self, pc: int, dr6: int) -> None:
        self.pc, self.dr6 = pc, dr6


class EmulationFailure:
    """KVM met an instruction that its emulator lacks; *code* is up to 15 bytes from RIP on, perhaps empty."""

    __slots__ = __match_args__ = ("code",)

    def __init__(self, code: bytes) -> None:
        self.code = code


class InternalError:
    """Another `KVM_EXIT_INTERNAL_ERROR`, or `KVM_EXIT_FAIL_ENTRY`: the vCPU cannot go on, *reason* says why."""

    __slots__ = __match_args__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Shutdown:
    """A triple fault."""

    __slots__ = __match_args__ = ()


class Halted:
    """`HLT` on a machine without an in-kernel irqchip."""

    __slots__ = __match_args__ = ()


class Interrupted:
    """Nothing to do: a kick, or an application processor that took its INIT."""

    __slots__ = __match_args__ = ()


class Unassisted(Exception):
    """Nobody can do the instruction *code* (up to 15 bytes from RIP on)."""

    def __init__(self, code: bytes) -> None:
        self.code = code
        super().__init__(code.hex(" "))


class TripleFault(Exception):
    """The guest raised an exception that its own IDT cannot take."""


INTERRUPTED: Final = Interrupted()
SHUTDOWN: Final = Shutdown()
HALTED: Final = Halted()

VcpuExit = (
    PortRead
    | PortWrite
    | MmioRead
    | MmioWrite
    | MsrWrite
    | DebugTrap
    | EmulationFailure
    | InternalError
    | Shutdown
    | Halted
    | Interrupted
)
