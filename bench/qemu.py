"""The peer: QEMU's smallest machine, with flags from its own documentation (`docs/system/i386/microvm`).

`microvm` has by default what pyvmm has: PIC, PIT, RTC, an ISA serial port and virtio-mmio slots; it enters the guest
by PVH, through its qboot firmware. The processor is QEMU's default model, because `-cpu host` aborts on software KVM
("failed to set MSR 0x10a"). Leaving the option ROM out (`x-option-roms=off`) does not make it faster.
"""

from __future__ import annotations

import shutil
import subprocess

from bench.errors import BenchError

FLAGS = (
    "-M", "microvm",
    "-accel", "kvm",
    "-nodefaults", "-no-user-config", "-display", "none",
    "-serial", "stdio",
)  # fmt: skip


def command(kernel: str, memory_mib: int) -> list[str]:
    """QEMU running the ELF *kernel*, its COM1 on stdin and stdout."""
    return [_path(), *FLAGS, "-m", f"{memory_mib}M", "-kernel", kernel]


def version() -> str:
    """Such as "QEMU 7.2.22"."""
    first = subprocess.run([_path(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return "QEMU " + first.split("version ")[-1].split(" ")[0]


def _path() -> str:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise BenchError("there is no qemu-system-x86_64 to compare with", fix="sudo apt install qemu-system-x86")
    return path
