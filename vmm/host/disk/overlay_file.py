"""The file of an overlay: what a disk has of its own over a base, which many may share.

==========================  ========================================================================================
offset                      what
==========================  ========================================================================================
0                           the disk's bytes, each at the offset where the guest sees it
size, rounded up to 4096    the map: bit n (of byte n // 8, lowest first) is set if block n of 4096 bytes is the
                            overlay's own; up to a multiple of 4096
behind it, to the end       the header, 4096 bytes, all little endian:
0x000  16 bytes             `pyvmm overlay 1` and a zero
0x010  u32                  CRC-32 of the header, while this is 0
0x014  u32                  1: the base is an overlay itself; 2: a commit has begun and is not done
0x018  u64                  size of the disk
0x020  u64, u64             size of the base's file, and its mtime in nanoseconds
0x030  u32                  length of the base's path, which stands at 0x200
==========================  ========================================================================================

A hole is no sign: a block may be the overlay's own and all zeroes. What a commit changes of the header is in its first
sector, which a disk writes whole or not at all. The map only ever gains bits, after their data is on the disk: any
mixture of its old and new sectors is a right map.
"""

from __future__ import annotations

import binascii
import errno
import mmap
import os
import stat
import struct

from vmm.config import Value
from vmm.errors import BackendError, ConfigError
from vmm.host.disk.raw import SECTOR, RawDisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 4096
#: Blocks that one page of the map tells of.
PAGE_BLOCKS = 8 * BLOCK
_SIZE_MAX = 1 << 50
_HEADER = struct.Struct("<16sIIQQQI")
_MAGIC = b"pyvmm overlay 1\0"
_OVER_OVERLAY, _COMMITTING = 1, 2
_PATH_AT = 0x200


class Header(Value):
    """What the file says of itself; sizes in bytes."""

    size_bytes: int
    base_path: str
    base_size: int
    base_mtime_ns: int
    over_overlay: bool = False
    committing: bool = False

    @property
    def map_at(self) -> int:
        """Where the map begins."""
        return -(-self.size_bytes // BLOCK) * BLOCK

    @property
    def map_size(self) -> int:
        """The length of the map."""
        return map_size(self.size_bytes)

    def pack(self) -> bytes:
        """As it stands in the file."""
        path = os.fsencode(self.base_path)
        flags = _OVER_OVERLAY * self.over_overlay | _COMMITTING * self.committing
        fields = (flags, self.size_bytes, self.base_size, self.base_mtime_ns, len(path))
        tail = bytes(_PATH_AT - _HEADER.size) + path.ljust(BLOCK - _PATH_AT, b"\0")
        checksum = binascii.crc32(_HEADER.pack(_MAGIC, 0, *fields) + tail)
        return _HEADER.pack(_MAGIC, checksum, *fields) + tail


def map_size(size_bytes: int) -> int:
    """The bytes of the map of a disk of *size_bytes*."""
    return -(-size_bytes // (BLOCK * PAGE_BLOCKS)) * BLOCK


def read_header(fd: int, path: str) -> Header:
    """The header of the open overlay *path*.

    Raises:
        ConfigError: it is none, or not whole.
    """
    end = os.lseek(fd, 0, os.SEEK_END)
    raw = os.pread(fd, BLOCK, max(0, end - BLOCK))
    if len(raw) != BLOCK or not raw.startswith(_MAGIC):
        raise ConfigError(
            "is no overlay, or its end is missing", where=path, fix=f"make one: pyvmm disk create {path} --base IMAGE"
        )
    _, _, flags, size, base_size, mtime_ns, length = _HEADER.unpack_from(raw)
    header = Header(
        size_bytes=size,
        base_path=os.fsdecode(raw[_PATH_AT:][:length]),
        base_size=base_size,
        base_mtime_ns=mtime_ns,
        over_overlay=bool(flags & _OVER_OVERLAY),
        committing=bool(flags & _COMMITTING),
    )
    if length > BLOCK - _PATH_AT or header.pack() != raw:
        raise ConfigError("its header is damaged", where=path, fix="restore it from a copy, or make a new overlay")
    if not 0 < size <= _SIZE_MAX or size % SECTOR or end != header.map_at + header.map_size + BLOCK:
        raise ConfigError(
            f"is {end} bytes long, which an overlay of a disk of {size} bytes is not",
            where=path,
            fix="restore it from a copy, or make a new overlay",
        )
    return header


def write_header(file: RawDisk, header: Header) -> None:
    """Write *header* at the end of *file*; on the disk when this returns.

    Raises:
        BackendError: the host could not.
    """
    file.pwritev([memoryview(bytearray(header.pack()))], header.map_at + header.map_size)
    file.flush()


def new_map(size_bytes: int) -> mmap.mmap:
    """An empty map in memory for a disk of *size_bytes*; what is not touched of it takes no space."""
    return mmap.mmap(-1, map_size(size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def read_map(fd: int, header: Header) -> mmap.mmap:
    """The map of the open overlay *fd*."""
    own = new_map(header.size_bytes)
    view, map_at = memoryview(own), header.map_at
    for start, end, is_data in extents(fd, map_at, map_at + header.map_size):
        at = start
        while is_data and at < end:
            at += os.preadv(fd, [view[at - map_at : end - map_at]], at)
    return own


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """The pieces of the file *fd* within *start* … *end*, and whether each is data; the others are zeroes."""
    while start < end:
        try:
            data = min(os.lseek(fd, start, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end  # none up to the end of the file
        if start < data:
            yield start, data, False
        if data < end:
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            yield data, hole, True
            data = hole
        start = data


def owned(own: mmap.mmap | bytes, size_bytes: int) -> Iterator[tuple[int, int]]:
    """The runs of the disk, in bytes from … to, that the map *own* has."""
    start: int | None = None
    blocks = -(-size_bytes // BLOCK)
    block = 0
    while block < blocks:
        byte = own[block // 8]
        if not block % 8 and byte in (0, 0xFF) and (start is not None) == bool(byte):
            block += 8  # nothing changes here
            continue
        if (byte >> block % 8 & 1) != (start is not None):
            if start is None:
                start = block * BLOCK
            else:
                yield start, block * BLOCK
                start = None
        block += 1
    if start is not None:
        yield start, size_bytes


def identity(fd: int) -> tuple[int, int]:
    """What tells one content of the open file *fd* from another: its size, and when it was written to."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns


def check_base(header: Header, base: RawDisk, path: str) -> None:
    """Make sure that *base* is what the overlay *path* was made over.

    Raises:
        ConfigError: it is not.
    """
    size, mtime_ns = identity(base.fd)
    if size != header.base_size:
        what = f"has {size} bytes, not {header.base_size}"
    elif mtime_ns != header.base_mtime_ns:
        what = f"was written to at {_date(mtime_ns)}, not last at {_date(header.base_mtime_ns)}"
    else:
        return
    raise ConfigError(
        f"its base {base.path} has changed since the overlay was made over it: it {what}",
        where=path,
        fix="bring back the base as it was, with its time (cp -p), or make a new overlay",
    )


def _date(time_ns: int) -> str:
    import time

    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(seconds))}.{rest:09} UTC"


def create(
    path: str, base: str, *, size_bytes: int | None = None, over_overlay: bool = False, mode: int = 0o666
) -> None:
    """Make the overlay *path* over the image *base*, or over the overlay *base*; it takes no space.

    *size_bytes* may be more than the base's: the rest is zeroes. *mode* is the file's, less the umask. On the disk for
    sure after the first flush.

    Raises:
        ConfigError: *path* is there already, *base* cannot be a base, or *size_bytes* cannot be.
        BackendError: *base* is being written to, or the host does not let us.
    """
    below = RawDisk(base, readonly=True)
    try:
        if not stat.S_ISREG(os.fstat(below.fd).st_mode):
            raise ConfigError(
                "a block device cannot be a base: nobody could tell whether it was written to",
                where=base,
                fix=f"copy it into a file, or throw away what is written: --disk {base},snapshot=on",
            )
        least = read_header(below.fd, base).size_bytes if over_overlay else below.size_bytes
        size = least if size_bytes is None else size_bytes
        if not least <= size <= _SIZE_MAX or size % SECTOR:
            raise ConfigError(
                f"{size} bytes are less than its base has, or no whole number of sectors of {SECTOR} bytes", where=path
            )
        base_size, mtime_ns = identity(below.fd)
        header = Header(
            size_bytes=size,
            base_path=os.path.realpath(base),
            base_size=base_size,
            base_mtime_ns=mtime_ns,
            over_overlay=over_overlay,
        )
        if len(os.fsencode(header.base_path)) > BLOCK - _PATH_AT:
            raise ConfigError("its path is too long", where=base)
        if over_overlay and size != least:
            raise ConfigError("an overlay over an overlay has the same size", where=path)
        _write(path, header, below, least, mode)
    finally:
        below.close()


def _write(path: str, header: Header, base: RawDisk, base_size: int, mode: int) -> None:
    """Make the file, or nothing. Blocks that the *base* of *base_size* bytes does not have, or not all of, are own."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise ConfigError("is there already", where=path, fix="take another name, or delete it") from error
    except OSError as error:
        raise BackendError(f"cannot make it: {error.strerror}", where=path) from error
    try:
        os.ftruncate(fd, header.map_at + header.map_size + BLOCK)
        os.pwrite(fd, header.pack(), header.map_at + header.map_size)
        if header.size_bytes > base_size:
            own = bytearray(header.map_size)
            for block in range(base_size // BLOCK, -(-header.size_bytes // BLOCK)):
                own[block // 8] |= 1 << block % 8
            os.pwrite(fd, own, header.map_at)
            whole = base_size // BLOCK * BLOCK
            os.pwrite(fd, os.pread(base.fd, base_size - whole, whole), whole)
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise BackendError(f"cannot write it: {error.strerror}", where=path) from error
        raise
    finally:
        os.close(fd)
