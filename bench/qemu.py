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
#: virtio as it is today: QEMU's virtio-mmio is the legacy one unless told otherwise.
MODERN = ("-global", "virtio-mmio.force-legacy=false")
#: Where the I/O guest finds its devices (hw/i386/microvm.c).
MMIO = "mmio=0xfeb00000 stride=0x200"


def command(kernel: str, memory_mib: int, *options: str) -> list[str]:
    """QEMU running the ELF *kernel*, its COM1 on stdin and stdout."""
    return [_path(), *FLAGS, "-m", f"{memory_mib}M", "-kernel", kernel, *options]


def disk_options(image: str) -> list[str]:
    """One virtio-blk disk on the raw *image*, one queue, served by a thread of its own with io_uring."""
    return [
        *MODERN,
        "-object", "iothread,id=worker",
        "-drive", f"if=none,id=disk,file={image},format=raw,cache=writeback,aio=io_uring",
        "-device", "virtio-blk-device,drive=disk,iothread=worker",
    ]  # fmt: skip


def net_options(tap: str, mac: str) -> list[str]:
    """One virtio-net card on the existing *tap*, one queue pair, served by QEMU's main thread: without vhost it has
    no other."""
    return [
        *MODERN,
        "-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no,vhost=off",
        "-device", f"virtio-net-device,netdev=net,mac={mac}",
    ]  # fmt: skip


def version() -> str:
    """Such as "QEMU 7.2.22"."""
    first = subprocess.run([_path(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    return "QEMU " + first.split("version ")[-1].split(" ")[0]


def _path() -> str:
    path = shutil.which("qemu-system-x86_64")
    if path is None:
        raise BenchError("there is no qemu-system-x86_64 to compare with", fix="sudo apt install qemu-system-x86")
    return path
