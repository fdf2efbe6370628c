"""pyvmm's side: the command of this checkout for each kind of guest."""

from __future__ import annotations

import os
import shutil
import sys

from bench.errors import BenchError
from vmm import layout

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BUSY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "busy.py")
#: Where the I/O guest finds its devices.
MMIO = f"mmio={layout.VIRTIO_MMIO_BASE:#x} stride={layout.VIRTIO_MMIO_STRIDE:#x}"

#: What the user wants of every pyvmm that is measured.
options: list[str] = []


def path() -> str:
    """The `pyvmm` of this checkout's virtual environment, or the one on the PATH."""
    own = os.path.join(REPOSITORY, ".venv", "bin", "pyvmm")
    found = own if os.access(own, os.X_OK) else shutil.which("pyvmm")
    if found is None:
        raise BenchError("there is no pyvmm to measure", fix="make the virtual environment: ci/demo, or pip install .")
    return found


def command(kernel: str, memory_mib: int, *own: str) -> list[str]:
    """pyvmm running the PVH *kernel*, its COM1 on stdin and stdout."""
    return [path(), "--boot", "pvh", "--memory", f"{memory_mib}M", "--kernel", kernel, *options, *own]


def beside_busy_thread(command: list[str]) -> list[str]:
    """*command*, a pyvmm's, in a process where a Python thread computes without end."""
    beside = os.path.join(os.path.dirname(command[0]), "python")
    return [beside if os.access(beside, os.X_OK) else sys.executable, _BUSY, *command[1:]]


def disk_options(image: str) -> list[str]:
    """One virtio-blk disk on the raw *image*, one queue."""
    return ["--disk", image]


def net_options(tap: str, mac: str) -> list[str]:
    """One virtio-net card on the existing *tap*, one queue pair."""
    return ["--net", f"tap={tap},mac={mac}"]
