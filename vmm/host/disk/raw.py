"""Raw disk images: a file or a block device, byte for byte what the guest sees.

An image is locked as long as it is open, by an open file description lock (fcntl(2), F_OFD_SETLK): one writer, or any
number of readers. The lock goes with the descriptor, so a killed pyvmm leaves none, and QEMU's locks exclude ours.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct

from vmm.errors import BackendError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    _Call = Callable[[int, Sequence[memoryview], int], int]

SECTOR = 512
SERIAL_MAX = 20
# fallocate(2)
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
#: The file system cannot, or a block device whose sectors are larger than ours cannot here.
_CANNOT = (errno.EOPNOTSUPP, errno.EINVAL)
_ZEROES = 1 << 20  # bytes written at once where the file system cannot make zeroes by itself

# struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for OFD locks); length 0 is the whole file.
_FLOCK = struct.Struct("hhqqi4x")


class RawDisk:
    """An open and locked raw image. Reads and writes are whole or fail; any thread.

    *serial* is what the guest reads as the disk's serial number, at most `SERIAL_MAX` ASCII characters. *cache* is
    `writeback` (through the page cache), `none` (around it; but what is not aligned as the file system wants it goes
    through it after all, and the kernel keeps both in step), or `unsafe` (through it, and a flush does nothing).

    Raises:
        ConfigError: *path* is missing, no image at all, empty, no whole number of sectors, or *cache* is not possible;
            or *serial* is too long.
        BackendError: the host does not let us: permission, in use, an I/O error.
    """

    __slots__ = ("alignment", "can_discard", "direct_fd", "fd", "flushes", "path", "readonly", "serial", "size_bytes")

    #: It is one file.
    layers = ()

    def __init__(
        self, path: str, *, readonly: bool = False, serial: str = "", cache: str = "writeback", discard: bool = True
    ) -> None:
        if len(serial) > SERIAL_MAX or not (serial.isascii() and serial.isprintable()):
            raise ConfigError(
                f"serial={serial!r} is no serial number",
                where=path,
                fix=f"use at most {SERIAL_MAX} printable ASCII characters",
            )
        self.path, self.readonly = path, readonly
        self.serial = serial.encode()
        #: Whether `flush` does anything.
        self.flushes = cache != "unsafe"
        self.fd = _open(path, readonly)
        #: The image around the page cache, or -1, and what that wants of addresses, offsets and lengths, in bytes.
        self.direct_fd, self.alignment = -1, 1
        try:
            _lock(self.fd, path, readonly)
            self.size_bytes = _size(self.fd, path)
            if cache == "none":
                self.direct_fd = _open_direct(self.fd, path, readonly)
                self.alignment = _alignment(self.direct_fd)
            #: Whether space is given back.
            self.can_discard = discard and not readonly and _can_punch(self.fd, self.size_bytes)
        except BaseException:
            self.close()
            raise

    def preadv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill *views* with what is at *offset* (bytes).

        Raises:
            BackendError: the host could not, or not all of it.
        """
        self._transfer(os.preadv, "read", views, offset)

    def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write *views* at *offset* (bytes); on the disk for sure only after `flush`.

        Raises:
            BackendError: the host could not, or not all of it.
        """
        self._transfer(os.pwritev, "write", views, offset)

    def flush(self) -> None:
        """Bring everything written to the disk; it survives a power failure when this returns (not if `unsafe`).

        Raises:
            BackendError: the host could not; what was written since the last flush may be lost.
        """
        if not self.flushes:
            return
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            raise BackendError(f"flush failed: {error.strerror}", where=self.path) from error

    def discard(self, offset: int, size: int) -> None:
        """Give the space of *size* bytes at *offset* back; they read as zeroes.

        Raises:
            BackendError: the host could not.
        """
        code = _fallocate(self.fd, _PUNCH_HOLE, offset, size)
        if code:
            raise BackendError(f"discard of {size} bytes at {offset:#x} failed: {os.strerror(code)}", where=self.path)

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """Make *size* bytes at *offset* read as zeroes; with *unmap* their space may be given back.

        Raises:
            BackendError: the host could not.
        """
        code = _fallocate(self.fd, _PUNCH_HOLE, offset, size) if unmap else errno.EOPNOTSUPP
        if code in _CANNOT:
            code = _fallocate(self.fd, _ZERO_RANGE, offset, size)
        if code in _CANNOT:
            zeroes = memoryview(bytearray(min(size, _ZEROES)))  # writable, as all that is asked for its address
            for start in range(0, size, _ZEROES):
                self.pwritev([zeroes[: size - start]], offset + start)
        elif code:
            raise BackendError(f"zeroing of {size} bytes at {offset:#x} failed: {os.strerror(code)}", where=self.path)

    def close(self) -> None:
        """Close and unlock the image."""
        for fd in (self.direct_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct_fd = -1

    def _transfer(self, call: _Call, verb: str, views: Sequence[memoryview], offset: int) -> None:
        """Do *call* until all of *views* is done: the kernel may do less at a time."""
        left = sum(map(len, views))
        while left:
            fd = self.fd if self.direct_fd < 0 or not _aligned(views, offset, self.alignment) else self.direct_fd
            try:
                done = call(fd, views, offset)
            except OSError as error:
                raise BackendError(
                    f"{verb} of {left} bytes at {offset:#x} failed: {error.strerror}", where=self.path
                ) from error
            if not done:
                raise BackendError(f"{verb} of {left} bytes at {offset:#x}: the file has shrunk", where=self.path)
            left -= done
            if left:
                offset += done
                views = _skip(views, done)


def _aligned(views: Sequence[memoryview], offset: int, alignment: int) -> bool:
    bits = offset
    for view in views:
        bits |= len(view) | ctypes.addressof(ctypes.c_char.from_buffer(view))
    return not bits % alignment


def _fallocate(fd: int, mode: int, offset: int, size: int) -> int:
    """fallocate(2), which keeps the file's size; 0 or the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(fd, mode | _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(size))
    return ctypes.get_errno() if done else 0


def _can_punch(fd: int, size: int) -> bool:
    """Whether any of our sectors can be given back; changes nothing."""
    status = os.fstat(fd)
    if not stat.S_ISBLK(status.st_mode):
        return not _fallocate(fd, _PUNCH_HOLE, size, SECTOR)  # beyond the end, where there is nothing
    device = f"/sys/dev/block/{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    # A partition's limits are its disk's (Documentation/ABI/stable/sysfs-block).
    queue = f"{device}/../queue" if os.path.exists(f"{device}/partition") else f"{device}/queue"
    return _number(f"{queue}/write_zeroes_max_bytes") > 0 and _number(f"{queue}/logical_block_size") == SECTOR


def _number(path: str) -> int:
    """What a file of sysfs says; 0 where it is not there."""
    try:
        with open(path) as file:
            return int(file.read())
    except OSError:
        return 0


def _skip(views: Sequence[memoryview], count: int) -> list[memoryview]:
    for index, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[index + 1 :]]
        count -= len(view)
    return []


def _open(path: str, readonly: bool) -> int:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError("is a directory, not a disk image", where=path, fix="name a raw image or a block device")
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ConfigError("is no disk image", where=path, fix="name a regular file or a block device")
        flags = os.O_RDONLY if readonly else os.O_RDWR
        if stat.S_ISBLK(mode) and not readonly:
            flags |= os.O_EXCL  # refused while the host has it mounted or otherwise in use (open(2))
        return os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError("there is no such file", where=path, fix=f"make one: truncate -s 1G {path}") from error
    except OSError as error:
        raise BackendError(
            f"cannot open it {'to read' if readonly else 'to read and write'}: {error.strerror}",
            where=path,
            fix=_open_fix(path, error.errno or 0, readonly),
        ) from error


def _open_direct(fd: int, path: str, readonly: bool) -> int:
    """The open file *fd* once more, around the page cache."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_DIRECT | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfigError(
                "its file system cannot do without the page cache", where=path, fix="leave out cache=none"
            ) from error
        raise BackendError(f"cannot open it for cache=none: {error.strerror}", where=path) from error


def _alignment(direct_fd: int) -> int:
    """What *direct_fd* wants: sectors or pages. To be found out by trying."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view, view[SECTOR : 2 * SECTOR] as piece:
        try:
            os.preadv(direct_fd, [piece], SECTOR)
        except OSError:
            return mmap.PAGESIZE
    return SECTOR


def _open_fix(path: str, code: int, readonly: bool) -> str:
    if code == errno.EBUSY:
        return "it is mounted or in use: unmount it, or attach it read-only"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY) and not readonly:
        return f"attach it read-only, or allow it: chmod u+rw {path}"
    if code in (errno.EACCES, errno.EPERM):
        return f"allow it: chmod u+r {path}"
    return ""


def _size(fd: int, path: str) -> int:
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size:
        raise ConfigError("is empty", where=path, fix=f"give it a size: truncate -s 1G {path}")
    if size % SECTOR:
        raise ConfigError(
            f"its {size} bytes are no whole number of {SECTOR}-byte sectors",
            where=path,
            fix=f"round it up: truncate -s %{SECTOR} {path}",
        )
    return size


def _lock(fd: int, path: str, readonly: bool) -> None:
    kind = fcntl.F_RDLCK if readonly else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError) as error:
        raise BackendError(
            f"is in use by {_holder(fd)}",
            where=path,
            fix="end that one first; several may share an image only if all attach it read-only",
        ) from error
    except OSError as error:
        raise BackendError(f"cannot lock it: {error.strerror}", where=path) from error


def _holder(fd: int) -> str:
    """Who holds a lock on the file behind *fd*. The kernel tells no pid for OFD locks, but fdinfo lists them."""
    inode = f":{os.fstat(fd).st_ino} "
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for entry in os.listdir(f"/proc/{pid}/fdinfo"):
                with open(f"/proc/{pid}/fdinfo/{entry}") as info:
                    if any(line.startswith("lock:") and inode in line for line in info):
                        return "this process" if int(pid) == os.getpid() else f"process {pid} ({_command(pid)})"
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return "another process"


def _command(pid: str) -> str:
    with open(f"/proc/{pid}/comm") as comm:
        return comm.read().strip()
