"""The programs that run as guests: PVH kernels, for pyvmm and QEMU alike."""

from __future__ import annotations

from bench.compiled import GUEST_FLAGS, compiled

_IO_SOURCES = tuple(
    f"guest/{name}" for name in ("entry.S", "main.c", "virtio.c", "blk.c", "net.c", "exits.c", "beat.c", "load.c")
)
_IO_HEADERS = ("guest/guest.h", "guest/virtio.h")
_IO_FLAGS = (
    *GUEST_FLAGS,
    "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,-z,noexecstack",
    "-fno-pic", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
    "-mno-red-zone", "-mgeneral-regs-only",
)  # fmt: skip


def tiny(work: str = "") -> str:
    """The path of the guest that idles at once, or does *work* first: `READS=n` or `LOOPS=n` (see `guest/tiny.S`)."""
    return compiled("tiny", ["guest/tiny.S"], [*GUEST_FLAGS, *([f"-D{work}"] if work else [])])


def io() -> str:
    """The path of the guest that drives virtio devices; its orders are on its command line (see `guest/guest.h`)."""
    return compiled("io", _IO_SOURCES, _IO_FLAGS, _IO_HEADERS)
