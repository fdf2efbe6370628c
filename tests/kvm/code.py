"""Guest code as bytes, and a vCPU in a thread of its own."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmm.kvm import abi
from vmm.kvm.exits import VcpuExit
from vmm.kvm.scratch import CODE, ScratchGuest
from vmm.kvm.vcpu import Vcpu

SPIN = b"\xeb\xfe"  # jmp to itself
HLT = b"\xf4"
STI = b"\xfb"


def mov(register: int, value: int) -> bytes:
    """`MOV r64, imm64`; *register* as encoded (0 = RAX, 1 = RCX, 2 = RDX, 3 = RBX …)."""
    return bytes((0x48 | register >> 3, 0xB8 | register & 7)) + struct.pack("<Q", value)


def out(port: int, value: int) -> bytes:
    """`MOV AL, value` and `OUT port, AL`."""
    return bytes((0xB0, value, 0xE6, port))


def wrmsr(index: int, value: int) -> bytes:
    """Write *value* to the MSR *index*."""
    return mov(1, index) + mov(0, value & 0xFFFF_FFFF) + mov(2, value >> 32) + b"\x0f\x30"


def start(guest: ScratchGuest, code: bytes, **how: int) -> None:
    """Put *code* at `CODE` and begin there in ring 0."""
    guest.memory.write(CODE, code)
    guest.start(CODE, **how)


def registers(guest: ScratchGuest) -> list[int]:
    """The general registers, RIP and RFLAGS now."""
    guest.vcpu.fetch_registers()
    return list(guest.vcpu.regs)


def frame(guest: ScratchGuest) -> tuple[int, ...]:
    """Error code, RIP, CS, RFLAGS, RSP, SS: what an exception with an error code left on the stack."""
    return struct.unpack("<6Q", guest.memory.read(registers(guest)[abi.RSP], 48))


class Running:
    """The exit with which a vCPU in another thread came back."""

    def __init__(self, vcpu: Vcpu, run: Callable[[], VcpuExit]) -> None:
        self._vcpu, self._run = vcpu, run
        self.event: VcpuExit | None = None
        self.thread = threading.Thread(target=self._main)
        self.thread.start()

    def _main(self) -> None:
        self._vcpu.bind_to_thread()
        self.event = self._run()

    def wait(self, timeout_s: float = 5.0) -> VcpuExit | None:
        """The exit, None if there is none yet."""
        self.thread.join(timeout_s)
        return self.event


@contextmanager
def running(vcpu: Vcpu, run: Callable[[], VcpuExit] | None = None) -> Iterator[Running]:
    """Let *vcpu* run in a thread until its first exit; it is kicked out at the end."""
    thread = Running(vcpu, run or vcpu.run)
    yield thread
    while thread.thread.is_alive():
        vcpu.kick()
        thread.thread.join(0.02)
