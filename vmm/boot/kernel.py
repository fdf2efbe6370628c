"""From a kernel file to a plan of what goes where in guest RAM and how the first vCPU starts."""

from __future__ import annotations

import errno
import mmap
import os
import stat

from vmm import layout
from vmm.boot import e820, elf
from vmm.boot.cmdline import LINUX_MAX, ROOM, encode
from vmm.boot.plan import BootPlan
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.boot.bzimage import BzImage
    from vmm.boot.plan import Bytes, EntryState, LoadedKernel, Piece

_MIB = 1 << 20
_LINUX_INITRD_MAX = 0x7FFF_FFFF


class KernelImage:
    """A kernel file that was recognised and found sound: a bzImage or an ELF.

    An ELF is parsed already; that of a bzImage when `vmlinux` asks for it, and kept in *cache_dir* if there is one.
    """

    __slots__ = ("_cache_dir", "_elf", "bzimage", "path")

    def __init__(self, path: str, *, bz: BzImage | None, vmlinux: elf.ElfImage | None, cache_dir: str | None) -> None:
        self.path = path
        self.bzimage = bz
        self._elf = vmlinux
        self._cache_dir = cache_dir

    @property
    def kind(self) -> str:
        """Either "bzimage" or "elf"."""
        return "bzimage" if self.bzimage else "elf"

    def vmlinux(self) -> elf.ElfImage:
        """The ELF, out of the cache or unpacked if need be.

        Raises: `ConfigError` where the payload is corrupt, or compressed in a way that nobody here knows.
        """
        if self._elf is None and self.bzimage is not None:
            self._elf = elf.parse(self.bzimage.unpack(self.path, self._cache_dir), self.path)
        assert self._elf is not None
        return self._elf


def load_kernel(path: str, *, cache_dir: str | None) -> KernelImage:
    """Map the kernel at *path* and find out what it is.

    Raises: `ConfigError`, with the path and what the file is, where it cannot be read or is no x86-64 kernel.
    """
    data = _map_file(path, "kernel")
    if data[:4] == elf.MAGIC:
        return KernelImage(path, bz=None, vmlinux=elf.parse(data, path), cache_dir=cache_dir)
    from vmm.boot import bzimage, sniff

    if bzimage.looks_like(data):
        return KernelImage(path, bz=bzimage.parse(data, path), vmlinux=None, cache_dir=cache_dir)
    raise sniff.refusal(data, path)


def load_initrd(path: str) -> memoryview:
    """The initrd at *path*, mapped. Raises: `ConfigError`, with the path, where it cannot be read or is empty."""
    return _map_file(path, "initrd")


def plan_boot(
    image: KernelImage,
    *,
    initrd: Bytes | None,
    cmdline: str,
    memory_bytes: int,
    protocol: str,
    kaslr: bool,
    acpi: bytes,
) -> BootPlan:
    """Lay *image* out in a guest with *memory_bytes* of RAM.

    *protocol* is one of `config.BOOT_PROTOCOLS`; *kaslr* lets the kernel unpack and move itself; *acpi* are the tables
    for `layout.ACPI_TABLES` as `acpi.build_tables` makes them, empty for none.

    Raises: `ConfigError` where image and protocol do not go together, the command line is too long, or the RAM is too
    small, with the least `--memory` that would do.
    """
    way = _choose(image, protocol, kaslr)
    kernel, description = _load(image, way)
    low_end = layout.ram_regions(memory_bytes)[0][1]
    initrd_range = _place(kernel, len(initrd or b""), _initrd_max(image), memory_bytes, low_end)
    pieces = list(kernel.pieces)
    if initrd:
        pieces.append((initrd_range[0], initrd))
    pieces.append((layout.COMMAND_LINE, encode(cmdline, _cmdline_max(image, way))))
    rsdp = layout.ACPI_TABLES if acpi else 0
    if acpi:
        pieces.append((rsdp, acpi))
    protocol_pieces, entry = _enter(kernel, way, e820.memory_map(memory_bytes), initrd_range, rsdp)
    return BootPlan(pieces + protocol_pieces, entry, description)


def _choose(image: KernelImage, protocol: str, kaslr: bool) -> str:
    """One of "bzimage" (the kernel's own 64-bit entry), "elf" (the 64-bit Linux protocol), "pvh"."""
    bz = image.bzimage
    if kaslr and (bz is None or protocol in ("elf", "pvh")):
        raise ConfigError("a kernel that is entered as ELF cannot move itself", where="--kaslr",
                          fix="give a bzImage, without --boot elf or pvh")  # fmt: skip
    if protocol == "bzimage" and bz is None:
        raise ConfigError("an ELF kernel, not a bzImage", where=image.path, fix="use --boot elf or --boot pvh")
    if kaslr or protocol == "bzimage":
        return "bzimage"
    if protocol == "auto":
        if bz is not None:
            return "elf" if bz.compression else "bzimage"
        vmlinux = image.vmlinux()
        return "pvh" if vmlinux.pvh_entry is not None and not vmlinux.is_linux else "elf"
    return protocol


def _load(image: KernelImage, way: str) -> tuple[LoadedKernel, str]:
    """The kernel in its place, and the sentence that tells how it is entered."""
    bz = image.bzimage
    name = f"bzImage {bz.version}".rstrip() if bz else "vmlinux"
    if way == "bzimage" and bz:
        kernel = bz.load()
        return kernel, f"{name} (it unpacks itself, entered at {kernel.entry:#x})"
    vmlinux = image.vmlinux()
    entry = vmlinux.pvh_entry if way == "pvh" else vmlinux.entry
    if entry is None:
        raise ConfigError("the kernel has no PVH entry", where=image.path,
                          fix="use --boot elf, or a kernel with CONFIG_PVH=y")  # fmt: skip
    if not vmlinux.has_code_at(entry):
        raise ConfigError(f"the kernel's entry point {entry:#x} is in none of its segments", where=image.path)
    kernel = vmlinux.load(entry, bz.header if bz else b"")
    unpacked = f"{bz.compression} payload unpacked, " if bz else ""
    how = "by PVH" if way == "pvh" else "as ELF"
    return kernel, f"{name} ({unpacked}entered {how} at {entry:#x})"


def _enter(
    kernel: LoadedKernel, way: str, memory_map: list[tuple[int, int, int]], initrd: tuple[int, int], rsdp: int
) -> tuple[list[Piece], EntryState]:
    if way == "pvh":
        from vmm.boot import pvh

        pieces, entry = pvh.entry(kernel.entry)
        info = pvh.start_info(memory_map=memory_map, initrd=initrd, rsdp=rsdp)
        return [(layout.PVH_START_INFO, info), *pieces], entry
    from vmm.boot import longmode, zeropage

    pieces, entry = longmode.entry(kernel.entry, layout.ZERO_PAGE)
    page = zeropage.build(
        kernel.init_header or zeropage.synthetic_header(), memory_map=memory_map, initrd=initrd, rsdp=rsdp
    )
    return [(layout.ZERO_PAGE, page), *pieces], entry


def _place(kernel: LoadedKernel, initrd_size: int, initrd_max: int, memory_bytes: int, low_end: int) -> tuple[int, int]:
    """Where the initrd goes: `(gpa, size)`, as high as it may, page-aligned, above the kernel; (0, 0) for none."""
    floor = _pages_up(kernel.end)
    highest = min(layout.LOW_RAM_END, (initrd_max + 1) & -layout.PAGE)
    needed = floor + _pages_up(initrd_size)
    if initrd_size and needed > highest:
        raise ConfigError(f"the initrd of {_mib(initrd_size)} does not fit between the kernel, which ends at "
                          f"{kernel.end:#x}, and {highest:#x}, the end of what it may occupy",
                          where="--initrd", fix="make it smaller")  # fmt: skip
    if needed > low_end & -layout.PAGE:
        what = f"{memory_bytes >> 20} MiB of RAM are too small: the kernel ends at {_mib(kernel.end)}"
        what += f", and the initrd needs another {_mib(initrd_size)}" if initrd_size else ""
        raise ConfigError(what, where="--memory", fix=f"use at least --memory {-(-needed // _MIB)}M")
    if not initrd_size:
        return (0, 0)
    return (min(low_end, highest) - initrd_size) & -layout.PAGE, initrd_size


def _initrd_max(image: KernelImage) -> int:
    return image.bzimage.initrd_max if image.bzimage else _LINUX_INITRD_MAX


def _cmdline_max(image: KernelImage, way: str) -> int:
    if image.bzimage:
        return min(image.bzimage.cmdline_max, ROOM)
    return LINUX_MAX if way == "elf" or image.vmlinux().is_linux else ROOM


def _map_file(path: str, kind: str) -> memoryview:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigError(f"there is no such {kind} file", where=path, fix=f"check --{kind}") from None
    except OSError as error:
        fix = f"make it readable: chmod a+r {path}" if error.errno == errno.EACCES else f"check --{kind}"
        raise ConfigError(f"cannot open the {kind}: {error.strerror}", where=path, fix=fix) from error
    except ValueError:
        raise ConfigError("a path cannot have a NUL character in it", where=f"--{kind}") from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"a directory, not a {kind}", where=path, fix=f"give the {kind} file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"not a regular file, so not a {kind}", where=path, fix="give a regular file")
        if status.st_size == 0:
            raise ConfigError(f"the {kind} file is empty", where=path, fix="copy or build it again")
        return memoryview(mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)


def _pages_up(size: int) -> int:
    return (size + layout.PAGE - 1) & -layout.PAGE


def _mib(size: int) -> str:
    return f"{-(-size // _MIB)} MiB"
