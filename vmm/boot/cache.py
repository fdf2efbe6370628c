"""Unpacked kernels kept as files: the ELF, then a footer that tells a whole file from a broken one.

The files are named by the SHA-256 of the compressed payload, appear by rename, and are never changed afterwards, so a
mapped one stays what it is even when another process replaces or removes it.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct

_FOOTER = struct.Struct("<8sQI")  # magic, size and CRC-32 of what is before it
_MAGIC = b"pyvmmELF"
_SUFFIX = ".vmlinux"
_KEEP = 8


def fetch(directory: str, key: str) -> memoryview | None:
    """The bytes stored under *key*, mapped, or None where there are none or they are damaged."""
    import zlib

    try:
        fd = os.open(os.path.join(directory, key + _SUFFIX), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size <= _FOOTER.size:
            return None
        content = memoryview(mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ))
        magic, size, checksum = _FOOTER.unpack_from(content, len(content) - _FOOTER.size)
        if magic != _MAGIC or size != len(content) - _FOOTER.size or zlib.crc32(content[:size]) != checksum:
            return None
        os.utime(fd)  # the least recently used are removed first
        return content[:size]
    except OSError:
        return None
    finally:
        os.close(fd)


def store(directory: str, key: str, data: memoryview) -> None:
    """Keep *data* under *key* and drop all but the newest few files; a cache that cannot be written is no error."""
    import zlib

    temporary = os.path.join(directory, f"{key}{_SUFFIX}.{os.urandom(4).hex()}")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.write(_FOOTER.pack(_MAGIC, len(data), zlib.crc32(data)))
        os.rename(temporary, os.path.join(directory, key + _SUFFIX))
        _trim(directory)
    except OSError:
        _remove(temporary)


def _trim(directory: str) -> None:
    with os.scandir(directory) as entries:
        files = [(entry.stat().st_mtime_ns, entry.path) for entry in entries if _SUFFIX in entry.name]
    for _, path in sorted(files)[:-_KEEP]:
        _remove(path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return
