"""A host whose disk is full: the guest is paused, and nothing is lost when it goes on."""

from __future__ import annotations

import os
import resource
import signal
import struct
import time

import pytest

from tests.cli.conftest import Pyvmm
from tests.fakes.guest import POWER_OFF, store
from tests.fakes.native import both_engines
from vmm import layout
from vmm.virtio.spec import DescFlag

pytestmark = pytest.mark.kvm

MIB = 1 << 20
#: The host has room for so much of each file; the image is longer, and the guest writes behind it.
ROOM, SIZE, SECTOR = 32 * MIB, 64 * MIB, 80_000
#: Where the guest has its ring, the request, and the data.
DESC, AVAIL, USED, HEADER, DATA, STATUS = (0x30_0000 + 0x1000 * page for page in range(6))
WORD = 0x2A2A2A2A


def register(offset: int, value: int) -> bytes:
    return store(layout.VIRTIO_MMIO_BASE + offset, value)


def memory(gpa: int, data: bytes) -> bytes:
    return b"".join(store(gpa + 4 * index, word) for index, (word,) in enumerate(struct.iter_unpack("<I", data)))


def wait_for(gpa: int) -> bytes:
    """Until the 16 bits at *gpa* are not 0: cmp word [gpa], 0; je back."""
    return b"\x66\x83\x3d" + struct.pack("<I", gpa) + b"\x00\x74\xf6"


def writer() -> bytes:
    """A driver that writes a sector, waits for that without an interrupt, and powers off."""
    descriptors = (HEADER, 16, DescFlag.NEXT, 1), (DATA, 512, DescFlag.NEXT, 2), (STATUS, 1, DescFlag.WRITE, 0)
    return b"".join([
        *(register(0x070, status) for status in (0, 1, 3)),
        register(0x024, 1), register(0x020, 1),  # VERSION_1
        register(0x070, 11),
        register(0x030, 0), register(0x038, 4),
        register(0x080, DESC), register(0x090, AVAIL), register(0x0A0, USED), register(0x044, 1),
        register(0x070, 15),
        memory(DESC, b"".join(struct.pack("<QIHH", *descriptor) for descriptor in descriptors)),
        memory(HEADER, struct.pack("<IIQ", 1, 0, SECTOR)),
        memory(DATA, struct.pack("<I", WORD) * 128),
        store(AVAIL, 1 << 16),
        register(0x050, 0),
        wait_for(USED + 2),
        POWER_OFF,
    ])  # fmt: skip


def cpu_s(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@both_engines
def test_the_guest_is_paused_and_goes_on(pyvmm: Pyvmm, engine: str) -> None:
    image = pyvmm.file("disk.img", b"")
    os.truncate(image, SIZE)
    limit = ("prlimit", f"--fsize={ROOM}:unlimited")
    process = pyvmm.start(*pyvmm.guest(writer()), "--disk", f"{image},werror=stop", "--engine", engine, before=limit)
    with process:
        assert process.stderr is not None
        said = ""
        while "kill -CONT" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line.decode()
        assert f"{image}: write of 512 bytes at {SECTOR * 512:#x} failed: File too large" in said
        assert said.endswith(f"kill -CONT {process.pid}\n")
        time.sleep(0.2)
        before = cpu_s(process.pid)
        time.sleep(0.5)
        assert cpu_s(process.pid) - before < 0.2, "the guest polls, and would take all of a CPU"
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SIZE, resource.RLIM_INFINITY))
        process.send_signal(signal.SIGCONT)
        assert process.wait(30) == 0
    with open(image, "rb") as file:
        file.seek(SECTOR * 512)
        assert file.read(512) == struct.pack("<I", WORD) * 128
