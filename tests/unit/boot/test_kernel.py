from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tests.fakes import kernels
from tests.fakes.kernels import LOAD
from vmm import layout
from vmm.boot.kernel import KernelImage, load_initrd, load_kernel, plan_boot
from vmm.boot.plan import BootPlan
from vmm.errors import ConfigError

MIB = 1 << 20


def load(tmp_path: Path, data: bytes, *, cache: bool = False) -> KernelImage:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    return load_kernel(str(path), cache_dir=str(tmp_path / "cache") if cache else None)


def plan(
    image: KernelImage,
    *,
    initrd: bytes | None = None,
    cmdline: str = "quiet",
    memory_bytes: int = 64 * MIB,
    protocol: str = "auto",
    kaslr: bool = False,
    acpi: bytes = b"tables",
) -> BootPlan:
    return plan_boot(image, initrd=initrd, cmdline=cmdline, memory_bytes=memory_bytes, protocol=protocol, kaslr=kaslr,
                     acpi=acpi)  # fmt: skip


def piece(boot: BootPlan, gpa: int) -> bytes:
    return next(bytes(data) for at, data in boot.pieces if at == gpa)


def test_bzimage_is_unpacked_by_default(tmp_path: Path) -> None:
    vmlinux = kernels.vmlinux()
    boot = plan(load(tmp_path, kernels.bzimage(kernels.payload("lz4", vmlinux))))
    assert boot.description == "bzImage 6.1.0-test (lz4 payload unpacked, entered as ELF at 0x1000000)"
    assert piece(boot, LOAD) == b"\xfa\xf4" * 0x800
    assert boot.entry.rip == LOAD
    assert boot.entry.rsi == layout.ZERO_PAGE
    zero_page = piece(boot, layout.ZERO_PAGE)
    assert zero_page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<Q", zero_page, 0x258) == (LOAD,)  # the bzImage's own header
    assert struct.unpack_from("<Q", zero_page, 0x070) == (layout.ACPI_TABLES,)
    assert piece(boot, layout.COMMAND_LINE) == b"quiet\0"
    assert piece(boot, layout.ACPI_TABLES) == b"tables"


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
def test_every_compression(tmp_path: Path, compression: str) -> None:
    boot = plan(load(tmp_path, kernels.bzimage(kernels.payload(compression, kernels.vmlinux()))))
    assert f"{compression} payload unpacked" in boot.description


@pytest.mark.parametrize("options", [{"kaslr": True}, {"protocol": "bzimage"}])
def test_bzimage_by_its_own_entry(tmp_path: Path, options: dict[str, bool | str]) -> None:
    boot = plan(load(tmp_path, kernels.bzimage(b"anything")), **options)  # type: ignore[arg-type]
    assert boot.entry.rip == LOAD + 0x200
    assert boot.description == "bzImage 6.1.0-test (it unpacks itself, entered at 0x1000200)"


def test_unknown_compression_is_left_to_the_kernel(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(b"\x89LZO and so on"))
    assert plan(image).entry.rip == LOAD + 0x200
    with pytest.raises(ConfigError, match="cannot unpack") as caught:
        plan(image, protocol="elf")
    assert "--boot bzimage" in caught.value.fix


def test_vmlinux_by_the_linux_protocol(tmp_path: Path) -> None:
    boot = plan(load(tmp_path, kernels.vmlinux()))
    assert boot.description == "vmlinux (entered as ELF at 0x1000000)"
    zero_page = piece(boot, layout.ZERO_PAGE)
    assert zero_page[0x1FE:0x200] == b"\x55\xaa"
    assert zero_page[0x202:0x206] == b"HdrS"
    assert zero_page[0x210] == 0xFF


def test_pvh_when_asked_for(tmp_path: Path) -> None:
    boot = plan(load(tmp_path, kernels.vmlinux()), protocol="pvh", initrd=b"initrd")
    assert boot.entry.rip == LOAD + 0x10
    assert boot.entry.rbx == layout.PVH_START_INFO
    assert boot.entry.efer == 0
    assert boot.description == "vmlinux (entered by PVH at 0x1000010)"


def test_pvh_by_default_where_it_is_not_linux(tmp_path: Path) -> None:
    assert plan(load(tmp_path, kernels.elf(notes=kernels.pvh_note(LOAD + 4)))).entry.rip == LOAD + 4


def test_pvh_from_a_bzimage(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(kernels.payload("xz", kernels.vmlinux())))
    assert plan(image, protocol="pvh").entry.rip == LOAD + 0x10


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (kernels.vmlinux(pvh=False), {"protocol": "pvh"}, "no PVH entry"),
        (kernels.vmlinux(), {"protocol": "bzimage"}, "an ELF kernel, not a bzImage"),
        (kernels.vmlinux(), {"kaslr": True}, "--kaslr: a kernel that is entered as ELF cannot move itself"),
        (kernels.bzimage(b"x"), {"kaslr": True, "protocol": "elf"}, "--kaslr: "),
        (kernels.elf(entry=0x123), {}, "entry point 0x123 is in none of its segments"),
        (kernels.vmlinux(), {"cmdline": "x" * 2048}, "2048 bytes long, this kernel takes 2047"),
        (kernels.bzimage(b"x", cmdline_size=10), {"cmdline": "x" * 11}, "11 bytes long, this kernel takes 10"),
        (kernels.bzimage(kernels.payload("gzip", b"not ELF")), {}, "truncated"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, data: bytes, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(load(tmp_path, data), **options)  # type: ignore[arg-type]


def test_other_pvh_kernels_may_have_long_command_lines(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.elf(notes=kernels.pvh_note(LOAD)))
    assert len(piece(plan(image, cmdline="x" * 0xFFFF), layout.COMMAND_LINE)) == 0x1_0000


# The initrd.


def test_initrd_is_as_high_as_it_may_be(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.vmlinux())
    boot = plan(image, initrd=b"i" * 5000, memory_bytes=64 * MIB)
    at = 64 * MIB - 0x2000
    assert piece(boot, at) == b"i" * 5000
    assert struct.unpack_from("<II", piece(boot, layout.ZERO_PAGE), 0x218) == (at, 5000)


def test_initrd_below_the_kernels_limit(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(kernels.payload("gzip", kernels.vmlinux()), initrd_max=0x37FF_FFFF))
    assert piece(plan(image, initrd=b"i", memory_bytes=8 << 30), 0x37FF_F000) == b"i"


def test_initrd_below_the_hole(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(kernels.payload("gzip", kernels.vmlinux()), initrd_max=0xFFFF_FFFF))
    assert piece(plan(image, initrd=b"i", memory_bytes=8 << 30), layout.LOW_RAM_END - 0x1000) == b"i"


def test_initrd_keeps_clear_of_init_size(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(b"x", init_size=40 * MIB))
    initrd = bytes(8 * MIB)
    assert piece(plan(image, initrd=initrd, memory_bytes=64 * MIB, protocol="bzimage"), 56 * MIB) == initrd
    with pytest.raises(ConfigError, match="ends at 56 MiB, and the initrd needs another 8 MiB") as caught:
        plan(image, initrd=initrd, memory_bytes=63 * MIB, protocol="bzimage")
    assert caught.value.where == "--memory"
    assert caught.value.fix == "use at least --memory 64M"


def test_ram_too_small_for_the_kernel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="16 MiB of RAM are too small: the kernel ends at 19 MiB") as caught:
        plan(load(tmp_path, kernels.vmlinux()), memory_bytes=16 * MIB)
    assert caught.value.fix == "use at least --memory 19M"
    plan(load(tmp_path, kernels.vmlinux()), memory_bytes=19 * MIB)


def test_initrd_that_no_memory_is_enough_for(tmp_path: Path) -> None:
    image = load(tmp_path, kernels.bzimage(b"x", initrd_max=0x1FF_FFFF))
    with pytest.raises(ConfigError, match="the initrd of 9 MiB does not fit") as caught:
        plan(image, initrd=bytes(9 * MIB), memory_bytes=512 * MIB, protocol="bzimage")
    assert caught.value.where == "--initrd"


# Files.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the kernel file is empty"),
        (b"MZ" + bytes(0x36) + b"ARM\x64", "an ARM64 kernel"),
        (b"MZ\0\0zimg" + bytes(100), "a compressed EFI kernel"),
        (bytes(0x24) + b"\x18\x28\x6f\x01", "a 32-bit ARM kernel"),
        (b"MZ" + bytes(100), "an EFI or Windows program"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip-compressed data"),
        (b"\xfd7zXZ\0" + bytes(100), "xz-compressed data"),
        (b"070701" + b"0" * 200, "a cpio archive: an initramfs"),
        (bytes(0x438) + b"\x53\xef" + bytes(100), "an ext2/3/4 file system image"),
        (b"QFI\xfb" + bytes(100), "a qcow2 disk image"),
        (b"#!/bin/sh\n", "a script"),
        (bytes(510) + b"\x55\xaa", "a disk image with a boot sector"),
        (bytes(5000), "it begins with zeros only"),
        (b"hello", "neither bzImage nor ELF"),
    ],
)
def test_not_a_kernel(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, data)
    assert caught.value.where == str(tmp_path / "kernel")
    assert caught.value.fix


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("missing", "there is no such kernel file"),
        (".", "a directory, not a kernel"),
        ("fifo", "not a regular file"),
        ("x" * 300, "cannot open the kernel: File name too long"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_kernel(str(tmp_path / name), cache_dir=None)
    with pytest.raises(ConfigError, match="NUL"):
        load_kernel("a\0b", cache_dir=None)


def test_kernel_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernels.vmlinux())
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(ConfigError, match="Permission denied") as caught:
            load_kernel(str(path), cache_dir=None)
    finally:
        os.seteuid(user)
    assert "chmod" in caught.value.fix


def test_initrd_file(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="the initrd file is empty"):
        load_initrd(str(path))
    path.write_bytes(b"070701")
    assert bytes(load_initrd(str(path))) == b"070701"


def test_no_fd_is_left(tmp_path: Path) -> None:
    def fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = fds()
    plan(load(tmp_path, kernels.bzimage(kernels.payload("xz", kernels.vmlinux())), cache=True))
    plan(load(tmp_path, kernels.vmlinux()), protocol="pvh")
    with pytest.raises(ConfigError):
        load_kernel(str(tmp_path), cache_dir=None)
    assert fds() == before


# The cache.


def cached_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache").iterdir()
    return path


def test_cache_is_written_and_used(tmp_path: Path) -> None:
    data = kernels.bzimage(kernels.payload("zstd", kernels.vmlinux()))
    first = plan(load(tmp_path, data, cache=True))
    path = cached_file(tmp_path)
    assert path.read_bytes().startswith(kernels.vmlinux())
    os.utime(path, (0, 0))
    second = plan(load(tmp_path, data, cache=True))
    assert path.stat().st_mtime > 0  # it was used
    assert [(gpa, bytes(piece)) for gpa, piece in first.pieces] == [(gpa, bytes(piece)) for gpa, piece in second.pieces]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "directory"])
def test_damaged_cache_is_made_anew(tmp_path: Path, damage: str) -> None:
    data = kernels.bzimage(kernels.payload("zstd", kernels.vmlinux()))
    plan(load(tmp_path, data, cache=True))
    path = cached_file(tmp_path)
    whole = path.read_bytes()
    if damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        flipped = whole[:3000] + bytes((whole[3000] ^ 1,)) + whole[3001:]
        path.write_bytes({"cut": whole[:-100], "flip": flipped, "empty": b""}[damage])
    boot = plan(load(tmp_path, data, cache=True))
    assert piece(boot, LOAD) == b"\xfa\xf4" * 0x800
    if damage != "directory":
        assert path.read_bytes() == whole
    assert cached_file(tmp_path) == path  # and nothing is left beside it


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the directory should be")
    plan(load(tmp_path, kernels.bzimage(kernels.payload("lz4", kernels.vmlinux())), cache=True))


def test_cache_keeps_the_eight_newest(tmp_path: Path) -> None:
    for number in range(10):
        plan(load(tmp_path, kernels.bzimage(kernels.payload("lz4", kernels.vmlinux(bss=number + 1))), cache=True))
    assert len(list((tmp_path / "cache").iterdir())) == 8
