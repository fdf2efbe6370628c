"""Kernels, initrds and disks that are not what they should be: exit code, path, what is wrong, what to do."""

from __future__ import annotations

import fcntl
import gzip
import os
import struct
from collections.abc import Callable

import pytest

from tests.cli.conftest import Pyvmm, finish
from tests.fakes import kernels
from tests.fakes.guest import HANG, POWER_OFF, kernel, leave, say

pytestmark = pytest.mark.kvm

ARM64_IMAGE = bytes(0x38) + b"ARM\x64" + bytes(4096)

#: The content of a kernel file, and what pyvmm says of it after its path.
KERNELS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "the kernel file is empty\n  copy or build it again"),
    "text": (lambda: b"Linux!\n" * 99, "not a kernel: neither bzImage nor ELF\n  give a bzImage or a vmlinux"),
    "ARM64": (lambda: ARM64_IMAGE, "not an x86-64 kernel but an ARM64 kernel (Image)\n  give an x86-64 kernel"),
    "ELF for ARM64": (
        lambda: kernels.elf(machine=183),
        "an ELF file for ARM64, not for x86-64\n  give an x86-64 kernel",
    ),
    "gzip": (
        lambda: gzip.compress(kernel(HANG)),
        (
            "not an x86-64 kernel but gzip-compressed data: an initramfs or a packed kernel\n"
            "  unpack it first, or give the bzImage or vmlinux itself"
        ),
    ),
    "ELF cut off": (lambda: kernel(HANG)[:70], "the ELF file is truncated: its program headers are cut off\n"),
    "bzImage cut off": (
        lambda: kernels.bzimage(kernels.payload("gzip", bytes(range(256)) * 64))[:1600],
        "the bzImage is truncated: 1600 bytes, its header says 2992\n",
    ),
    "a program": (
        lambda: kernels.elf(type_=3),
        "an ELF shared library or program, not a kernel\n  give a bzImage or a vmlinux",
    ),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_what_is_no_kernel(pyvmm: Pyvmm, kind: str) -> None:
    content, message = KERNELS[kind]
    path = pyvmm.file("kernel", content())
    run = pyvmm("--kernel", path)
    assert run.code == 2
    assert run.messages.startswith(f"pyvmm: {path}: {message}")


def test_a_missing_kernel(pyvmm: Pyvmm) -> None:
    run = pyvmm("--kernel", "vmlinuz")
    assert (run.code, run.messages) == (2, "pyvmm: vmlinuz: there is no such kernel file\n  check --kernel\n")


def test_a_directory_for_a_kernel(pyvmm: Pyvmm) -> None:
    run = pyvmm("--kernel", "/boot")
    assert (run.code, run.messages) == (2, "pyvmm: /boot: a directory, not a kernel\n  give the kernel file in it\n")


def test_a_missing_initrd(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--initrd", "initrd.img")
    assert (run.code, run.messages) == (2, "pyvmm: initrd.img: there is no such initrd file\n  check --initrd\n")


def test_too_little_ram_for_the_kernel_names_what_would_do(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("kernel", kernels.elf([(1 << 20, HANG, 40 << 20)], entry=1 << 20))
    run = pyvmm("--kernel", path, "--memory", "32M")
    assert run.code == 2
    assert run.messages == (
        "pyvmm: --memory: 32 MiB of RAM are too small: the kernel ends at 41 MiB\n  use at least --memory 41M\n"
    )


def test_too_little_ram_for_the_initrd_names_what_would_do(pyvmm: Pyvmm) -> None:
    initrd = pyvmm.file("initrd", bytes(20 << 20))
    run = pyvmm(*pyvmm.guest(HANG), "--initrd", initrd)
    assert (run.code, run.messages) == (
        2,
        (
            "pyvmm: --memory: 16 MiB of RAM are too small: the kernel ends at 2 MiB, "
            "and the initrd needs another 20 MiB\n  use at least --memory 22M\n"
        ),
    )


def test_the_ram_it_names_does(pyvmm: Pyvmm) -> None:
    initrd = pyvmm.file("initrd", bytes(20 << 20))
    guest = pyvmm.guest(leave(0))[:2]
    assert pyvmm(*guest, "--initrd", initrd, "--memory", "22M").code == 1


def test_a_bzimage_that_cannot_be_entered_as_asked(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--boot", "bzimage")
    assert run.code == 2
    assert run.messages.endswith(": an ELF kernel, not a bzImage\n  use --boot elf or --boot pvh\n")


# Disks.


def test_a_missing_disk(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--disk", "root.img")
    assert (run.code, run.messages) == (
        2,
        "pyvmm: root.img: there is no such file\n  make one: truncate -s 1G root.img\n",
    )


def test_an_empty_disk(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", b"")
    run = pyvmm(*pyvmm.guest(HANG), "--disk", path)
    assert (run.code, run.messages) == (2, f"pyvmm: {path}: is empty\n  give it a size: truncate -s 1G {path}\n")


def test_a_directory_for_a_disk(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--disk", "/tmp")
    assert (run.code, run.messages) == (
        2,
        "pyvmm: /tmp: is a directory, not a disk image\n  name a raw image or a block device\n",
    )


def test_a_disk_of_half_a_sector(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(1000))
    run = pyvmm(*pyvmm.guest(HANG), "--disk", path)
    assert (run.code, run.messages) == (
        2,
        (
            f"pyvmm: {path}: its 1000 bytes are no whole number of 512-byte sectors\n"
            f"  round it up: truncate -s %512 {path}\n"
        ),
    )


def test_a_disk_serial_number_that_is_too_long(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(512))
    run = pyvmm(*pyvmm.guest(HANG), "--disk", f"{path},serial={'x' * 21}")
    assert run.code == 2
    assert "use at most 20 printable ASCII characters" in run.messages


def test_a_disk_that_another_vm_has_names_it(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(4096))
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG), "--disk", path) as holder:
        assert holder.stdout
        holder.stdout.readline()
        run = pyvmm(*pyvmm.guest(HANG), "--disk", path)
        assert (run.code, run.messages) == (
            125,
            (
                f"pyvmm: {path}: is in use by process {holder.pid} (pyvmm)\n"
                "  end that one first; several may share an image only if all attach it read-only\n"
            ),
        )
        holder.terminate()
        finish(holder)
    assert pyvmm(*pyvmm.guest(POWER_OFF), "--disk", path).code == 0


def test_readers_share_a_disk(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(4096))
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG), "--disk", f"{path},readonly") as holder:
        assert holder.stdout
        holder.stdout.readline()
        assert pyvmm(*pyvmm.guest(POWER_OFF), "--disk", f"{path},readonly").code == 0
        assert pyvmm(*pyvmm.guest(POWER_OFF), "--disk", path).code == 125
        holder.terminate()
        finish(holder)


def test_a_killed_vm_leaves_no_lock(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(4096))
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG), "--disk", path) as holder:
        assert holder.stdout
        holder.stdout.readline()
        holder.kill()
    assert pyvmm(*pyvmm.guest(POWER_OFF), "--disk", path).code == 0


def test_the_same_disk_twice(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(4096))
    run = pyvmm(*pyvmm.guest(HANG), "--disk", path, "--disk", path)
    assert run.code == 125
    assert run.messages.startswith(f"pyvmm: {path}: is in use by this process")


def test_a_disk_locked_by_something_else(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("root.img", bytes(4096))
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    try:
        run = pyvmm(*pyvmm.guest(HANG), "--disk", path)
    finally:
        os.close(fd)
    assert run.code == 125
    assert f"is in use by process {os.getpid()} " in run.messages


# The serial port's file.


def test_the_serial_console_in_a_file(pyvmm: Pyvmm) -> None:
    path = pyvmm.file("guest.log", b"from the last run")
    run = pyvmm(*pyvmm.guest(say("hello\n"), POWER_OFF), "--serial", f"file:{path}")
    assert (run.code, run.output) == (0, "")
    with open(path, "rb") as file:
        assert file.read() == b"hello\n"


def test_the_serial_console_nowhere(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(say("hello\n"), POWER_OFF), "--serial", "null")
    assert (run.code, run.output, run.messages) == (0, "", "")


def test_a_serial_file_that_cannot_be_written(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--serial", "file:/nowhere/guest.log")
    assert (run.code, run.messages) == (
        2,
        (
            "pyvmm: --serial: cannot write /nowhere/guest.log: No such file or directory\n"
            "  name a file in a directory you may write to\n"
        ),
    )
