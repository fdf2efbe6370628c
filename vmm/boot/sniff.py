"""What a file is that is no x86-64 kernel: so that the message can say it."""

from __future__ import annotations

from vmm.errors import ConfigError

#: (offset, magic, what it is, what to do)
_UNPACK = "unpack it first, or give the bzImage or vmlinux itself"
_DISK = "give it as --disk, and a kernel as --kernel"
_INITRD = "give it as --initrd, and a kernel as --kernel"
_ARCH = "give an x86-64 kernel"
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0x38, b"ARM\x64", "an ARM64 kernel (Image)", _ARCH),
    (0x38, b"RSC\x05", "a RISC-V kernel (Image)", _ARCH),
    (0x24, b"\x18\x28\x6f\x01", "a 32-bit ARM kernel (zImage)", _ARCH),
    (4, b"zimg", "a compressed EFI kernel (vmlinuz.efi) of another architecture", _ARCH),
    (0, b"\x27\x05\x19\x56", "a U-Boot image (uImage)", _UNPACK),
    (0, b"070701", "a cpio archive: an initramfs", _INITRD),
    (0, b"070702", "a cpio archive: an initramfs", _INITRD),
    (0, b"\x1f\x8b", "gzip-compressed data: an initramfs or a packed kernel", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed data: an initramfs or a packed kernel", _UNPACK),
    (0, b"\xfd7zXZ", "xz-compressed data: an initramfs or a packed kernel", _UNPACK),
    (0, b"BZh", "bzip2-compressed data", _UNPACK),
    (0, b"\x02\x21\x4c\x18", "LZ4-compressed data: an initramfs or a packed kernel", _UNPACK),
    (0, b"\x04\x22\x4d\x18", "LZ4-compressed data: an initramfs or a packed kernel", _UNPACK),
    (0x438, b"\x53\xef", "an ext2/3/4 file system image", _DISK),
    (0, b"QFI\xfb", "a qcow2 disk image", _DISK),
    (0, b"hsqs", "a squashfs image", _DISK),
    (0x8001, b"CD001", "an ISO 9660 image", _DISK),
    (0x200, b"EFI PART", "a disk image with a GPT", _DISK),
    (0, b"PK\x03\x04", "a zip archive", _UNPACK),
    (0, b"!<arch>\n", "an archive (.a or .deb)", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"#!", "a script", "give a bzImage or a vmlinux"),
    (0, b"MZ", "an EFI or Windows program without a Linux kernel in it", "give a bzImage or a vmlinux"),
    (510, b"\x55\xaa", "a disk image with a boot sector", _DISK),
)


def refusal(data: memoryview, where: str) -> ConfigError:
    """The error that says what *data*, which is neither ELF nor bzImage, looks like."""
    for offset, magic, what, fix in _SIGNATURES:
        if data[offset : offset + len(magic)] == magic:
            return ConfigError(f"not an x86-64 kernel but {what}", where=where, fix=fix)
    if not any(data[:0x1000]):
        return ConfigError("not a kernel: it begins with zeros only", where=where, fix="give a bzImage or a vmlinux")
    return ConfigError("not a kernel: neither bzImage nor ELF", where=where, fix="give a bzImage or a vmlinux")
