"""bzImage: the setup header and what it says of the kernel behind it (Linux `Documentation/arch/x86/boot.rst`).

======  ====  ===================  ==================================================
offset  size  field                used for
======  ====  ===================  ==================================================
0x1f1   1     `setup_sects`        real-mode part: (this or 4, plus 1) x 512 bytes
0x1f4   4     `syssize`            protected-mode part, in 16-byte units
0x201   1     jump offset          the header ends at 0x202 + this
0x202   4     `header`             "HdrS"
0x206   2     `version`            2.12 and up: Linux 3.8, the first with 64-bit entry flags
0x20e   2     `kernel_version`     + 0x200: the version string
0x211   1     `loadflags`          bit 0 LOADED_HIGH
0x22c   4     `initrd_addr_max`    last byte an initrd may occupy
0x230   4     `kernel_alignment`
0x236   2     `xloadflags`         bit 0 KERNEL_64
0x238   4     `cmdline_size`       without the NUL
0x248   4+4   `payload_*`          offset (in the protected-mode part) and length
0x258   8     `pref_address`       where the kernel wants to be
0x260   4     `init_size`          memory it needs from there before it reads the e820 map
======  ====  ===================  ==================================================
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.boot import zeropage
from vmm.boot.plan import LoadedKernel
from vmm.errors import ConfigError

_HEADER_END_MIN = 0x268  # behind the last field of version 2.12
_SECTOR = 512
_LOADED_HIGH = 1 << 0
_KERNEL_64 = 1 << 0
_ENTRY_64 = 0x200  # of startup_64, from the start of the protected-mode part
_CODE32_START = 0x214


class BzImage:
    """A bzImage whose header `parse` found sound: it is for x86-64 and all of it is there."""

    __slots__ = (
        "_body_size", "_init_size", "_load_gpa", "_setup_size",
        "cmdline_max", "data", "header", "initrd_max", "payload", "version",
    )  # fmt: skip

    def __init__(self, data: memoryview, setup_size: int, where: str) -> None:
        def field(form: str, offset: int) -> int:
            return int(struct.unpack_from(form, data, offset)[0])

        self.data = data
        self._setup_size = setup_size
        self._body_size = min(field("<I", 0x1F4) * 16, len(data) - setup_size)
        header_end = min(0x202 + data[0x201], zeropage.SETUP_HEADER_END, len(data))
        self.header = bytes(data[zeropage.SETUP_HEADER : header_end])
        self.initrd_max = field("<I", 0x22C)
        self.cmdline_max = field("<I", 0x238)
        self._load_gpa = field("<Q", 0x258)
        self._init_size = max(field("<I", 0x260), self._body_size)
        self.version = _version(data, setup_size, field("<H", 0x20E))
        offset, length = field("<I", 0x248), field("<I", 0x24C)
        if offset + length > self._body_size:
            raise ConfigError(f"the bzImage is truncated: {len(data)} bytes, its payload ends at "
                              f"{setup_size + offset + length}", where=where)  # fmt: skip
        alignment = field("<I", 0x230)
        if alignment == 0 or self._load_gpa % alignment:
            raise ConfigError(f"the bzImage header has a load address of {self._load_gpa:#x} and an alignment of "
                              f"{alignment:#x}", where=where)  # fmt: skip
        if self._load_gpa < layout.HIGH_RAM or self._load_gpa + self._init_size > layout.LOW_RAM_END:
            raise ConfigError(f"the bzImage header asks for memory at {self._load_gpa:#x}+{self._init_size:#x}",
                              where=where)  # fmt: skip
        #: The compressed kernel; empty where the header names none.
        self.payload = data[setup_size + offset : setup_size + offset + length]

    @property
    def compression(self) -> str | None:
        """How the payload is compressed ("gzip", "lz4", …), or None where pyvmm cannot unpack it."""
        from vmm.boot import decompress

        return decompress.method(self.payload)

    def unpack(self, where: str, cache_dir: str | None) -> memoryview:
        """The ELF in the payload, kept in *cache_dir* if there is one.

        Raises: `ConfigError` (at *where*) for a payload that is corrupt or compressed in an unknown way.
        """
        from vmm.boot import cache, decompress

        name = self.compression
        if name is None:
            raise ConfigError("the kernel is compressed in a way that pyvmm cannot unpack", where=where,
                              fix="use --boot bzimage: the kernel then unpacks itself")  # fmt: skip
        if cache_dir is None:
            return decompress.unpack(self.payload, name, where)
        import hashlib

        key = hashlib.sha256(self.payload).hexdigest()
        found = cache.fetch(cache_dir, key)
        if found is None:
            found = decompress.unpack(self.payload, name, where)
            cache.store(cache_dir, key, found)
        return found

    def load(self) -> LoadedKernel:
        """The protected-mode part at its preferred address, to be entered at its `startup_64`."""
        gpa = self._load_gpa
        body = self.data[self._setup_size : self._setup_size + self._body_size]
        header = bytearray(self.header)
        struct.pack_into("<I", header, _CODE32_START - zeropage.SETUP_HEADER, gpa)
        return LoadedKernel([(gpa, body)], gpa + self._init_size, gpa + _ENTRY_64, bytes(header))


def looks_like(data: memoryview) -> bool:
    """Whether *data* begins with a Linux/x86 setup header, sound or not."""
    return bytes(data[0x202:0x206]) == b"HdrS"


def parse(data: memoryview, where: str) -> BzImage:
    """The bzImage in *data*.

    Raises: `ConfigError` (at *where*) for one that is too old, not for x86-64, truncated, or makes no sense.
    """
    if len(data) < _HEADER_END_MIN:
        raise ConfigError("the bzImage is truncated: shorter than its header", where=where)
    version, loadflags, xloadflags = (struct.unpack_from("<H", data, at)[0] for at in (0x206, 0x211, 0x236))
    if version < 0x20C:
        raise ConfigError(f"the kernel speaks boot protocol {version >> 8}.{version & 0xFF:02}, 2.12 is needed",
                          where=where, fix="give a kernel of Linux 3.8 or later")  # fmt: skip
    if 0x202 + data[0x201] < _HEADER_END_MIN:
        raise ConfigError(f"the bzImage header ends at {0x202 + data[0x201]:#x} already", where=where)
    if not xloadflags & _KERNEL_64 or not loadflags & _LOADED_HIGH:
        raise ConfigError("a 32-bit x86 kernel", where=where, fix="give an x86-64 kernel (CONFIG_64BIT=y)")
    setup_size = ((data[0x1F1] or 4) + 1) * _SECTOR
    syssize = struct.unpack_from("<I", data, 0x1F4)[0] * 16
    # Up to 15 bytes of the last 16-byte unit may be missing in the file.
    if syssize == 0 or setup_size + syssize - 15 > len(data):
        raise ConfigError(f"the bzImage is truncated: {len(data)} bytes, its header says {setup_size + syssize}",
                          where=where, fix="copy or build it again")  # fmt: skip
    if syssize <= _ENTRY_64:
        raise ConfigError("the bzImage has no kernel behind its header", where=where)
    return BzImage(data, setup_size, where)


def _version(data: memoryview, setup_size: int, pointer: int) -> str:
    """The version up to the first space ("6.1.0-56-cloud-amd64"), or nothing."""
    at = pointer + 0x200
    if pointer == 0 or at >= setup_size:
        return ""
    raw = bytes(data[at : min(at + 64, setup_size)]).split(b"\0")[0].split(b" ")[0]
    text = raw.decode("ascii", "replace")
    return text if raw.isascii() and text.isprintable() else ""
