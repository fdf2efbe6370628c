"""What is written to a base from its overlay, and what an overlay is, without a machine.

A commit may be interrupted anywhere, and done again: the header says that one is under way, so that nobody takes the
half-written base for a changed one; then the base gets the overlay's blocks, then the map loses them, then the header
gets the base's new identity, and at last the space goes back. Each is on the disk before the next begins.
"""

from __future__ import annotations

import os
from typing import Any

from vmm.errors import BackendError, ConfigError, HostError
from vmm.host.disk.overlay import OverlayDisk, open_base
from vmm.host.disk.overlay_file import (
    BLOCK,
    Header,
    check_base,
    extents,
    identity,
    owned,
    read_header,
    read_map,
    write_header,
)
from vmm.host.disk.raw import RawDisk

_PIECE = 1 << 20


def commit(path: str, base: str = "") -> int:
    """Write what the overlay *path* has into its base, or *base* where that is now; how many bytes that was.

    The overlay is empty then. Other overlays over this base are of no use any more.

    Raises:
        ConfigError: *path* is no overlay, its base is missing or has changed.
        BackendError: one of them is in use, or the host does not let us.
    """
    file = RawDisk(path)
    try:
        header = read_header(file.fd, path)
        below = open_base(base or header.base_path, path, over_overlay=header.over_overlay, readonly=False)
        try:
            return _commit(file, header, below)
        finally:
            below.close()
    finally:
        file.close()


def _commit(file: RawDisk, header: Header, base: RawDisk | OverlayDisk) -> int:
    base_file = base.file if isinstance(base, OverlayDisk) else base
    runs = list(owned(read_map(file.fd, header), header.size_bytes))
    if not header.committing:
        check_base(header, base_file, file.path)
        write_header(file, Header(**{**vars(header), "committing": True}))
    if base.size_bytes < header.size_bytes:
        os.ftruncate(base_file.fd, header.size_bytes)
    for run in runs:
        for start, end, is_data in extents(file.fd, *run):
            if is_data:
                _copy(file, base, start, end)
            else:
                base.write_zeroes(start, end - start, unmap=True)
    base.flush()
    file.write_zeroes(header.map_at, header.map_size, unmap=True)
    file.flush()
    size, mtime_ns = identity(base_file.fd)
    write_header(file, Header(**{**vars(header), "base_size": size, "base_mtime_ns": mtime_ns, "committing": False}))
    if file.can_discard:
        for start, end in runs:
            file.discard(start, -(-end // BLOCK) * BLOCK - start)
    return sum(end - start for start, end in runs)


def _copy(file: RawDisk, base: RawDisk | OverlayDisk, start: int, end: int) -> None:
    buffer = memoryview(bytearray(min(end - start, _PIECE)))
    while start < end:
        piece = buffer[: end - start]
        file.preadv([piece], start)
        base.pwritev([piece], start)
        start += len(piece)


def describe(path: str) -> dict[str, Any]:
    """What the overlay *path* is; sizes in bytes. Where it is in use, `own_bytes` is that of the last flush.

    Raises:
        ConfigError: it is no overlay.
        BackendError: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=path) from error
    except OSError as error:
        raise BackendError(f"cannot open it to read: {error.strerror}", where=path) from error
    try:
        header = read_header(fd, path)
        own = sum(end - start for start, end in owned(read_map(fd, header), header.size_bytes))
        used = os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)
    return {
        "path": os.path.abspath(path),
        "size_bytes": header.size_bytes,
        "own_bytes": own,
        "file_bytes": used,
        "base": header.base_path,
        "base_is_overlay": header.over_overlay,
        "in_use_by": _user(path),
        "problem": _problem(path, header),
    }


def _user(path: str) -> str:
    """Who writes it, or nothing."""
    try:
        RawDisk(path, readonly=True).close()
    except HostError as error:
        return error.what.removeprefix("is in use by ")
    return ""


def _problem(path: str, header: Header) -> str:
    """Why no machine can have it, or nothing."""
    if header.committing:
        return "a commit was interrupted: do it again"
    try:
        base = open_base(header.base_path, path, over_overlay=header.over_overlay)
        try:
            check_base(header, base.file if isinstance(base, OverlayDisk) else base, path)
        finally:
            base.close()
    except (ConfigError, HostError) as error:
        return error.what
    return ""
