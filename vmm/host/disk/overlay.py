"""Copy-on-write disks: an overlay has what was written; all the rest is in its base, which many may share.

The overlay is locked like any writable image, the base like any read-only one, so nobody writes it meanwhile; between
two uses its size and time tell whether somebody did. A block's bit in the map is set in memory when the whole block is
in the overlay's file, and in the file only by a flush, after the data: power may fail at any moment, and what the
overlay then says is its own is there. So what was not flushed is gone after a SIGKILL too: the base is seen again.
"""

from __future__ import annotations

import errno
import os

from vmm.errors import BackendError, ConfigError
from vmm.host.disk import raw
from vmm.host.disk.overlay_file import (
    BLOCK,
    PAGE_BLOCKS,
    check_base,
    create,
    extents,
    new_map,
    owned,
    read_header,
    read_map,
)
from vmm.host.disk.raw import RawDisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from mmap import mmap

    from vmm.config import DiskConfig

    type_layer = tuple[RawDisk, mmap | None]

#: How many files may lie over each other; the native engine has room for so many.
LAYERS_MAX = 8


class OverlayDisk:
    """A disk of several files, one over the other; interface and threads are `RawDisk`'s.

    *file* is the uppermost one, closed with the disk as *base* is; *own* is its map, kept in the file at *map_at*, or
    nowhere if that is None: then a flush has nothing to do.
    """

    __slots__ = (
        *("alignment", "base", "can_discard", "dirty", "direct_fd", "failed", "fd", "file", "flushes", "layers"),
        *("map_at", "own", "path", "readonly", "serial", "size_bytes"),
    )

    def __init__(
        self, file: RawDisk, base: RawDisk | OverlayDisk, *, size_bytes: int, own: mmap, map_at: int | None
    ) -> None:
        self.file, self.base, self.size_bytes, self.own, self.map_at = file, base, size_bytes, own, map_at
        self.path, self.fd, self.readonly, self.serial = file.path, file.fd, file.readonly, file.serial
        self.can_discard = file.can_discard
        self.flushes = file.flushes and map_at is not None
        self.direct_fd, self.alignment = -1, 1
        #: For each page of the map, whether it has bits that the file does not have; and whether data was lost in a
        #: flush that failed: then the map in the file stays as it is. Shared with the native engine, as *own*.
        self.dirty, self.failed = bytearray(len(own) // BLOCK), bytearray(1)
        #: The files from the top, and what each has; None: all.
        self.layers: tuple[type_layer, ...] = (
            (file, own),
            *(base.layers if isinstance(base, OverlayDisk) else [(base, None)]),
        )
        if len(self.layers) > LAYERS_MAX:
            raise _too_many(self.path)

    def preadv(self, views: Sequence[memoryview], offset: int) -> None:
        """As `RawDisk.preadv`."""
        left = sum(map(len, views))
        while left:
            layer, count = self._run(offset, left)
            layer.preadv(_first(views, count), offset)
            views = raw._skip(views, count)
            offset, left = offset + count, left - count

    def pwritev(self, views: Sequence[memoryview], offset: int) -> None:
        """As `RawDisk.pwritev`."""
        self._change(offset, sum(map(len, views)), lambda: self.file.pwritev(views, offset))

    def discard(self, offset: int, size: int) -> None:
        """As `RawDisk.discard`."""
        self._change(offset, size, lambda: self.file.discard(offset, size))

    def write_zeroes(self, offset: int, size: int, *, unmap: bool) -> None:
        """As `RawDisk.write_zeroes`."""
        self._change(offset, size, lambda: self.file.write_zeroes(offset, size, unmap=unmap))

    def flush(self) -> None:
        """As `RawDisk.flush`.

        Raises:
            BackendError: the host could not. If it could not write data, no later flush succeeds.
        """
        if not self.flushes:
            return
        if self.failed[0]:
            raise BackendError(f"flush failed: {os.strerror(errno.EIO)}, as before", where=self.path)
        self._sync()
        if self._write_map():
            self._sync()
            self.dirty[:] = bytes(len(self.dirty))

    def close(self) -> None:
        """Flush if there is anything to, close and unlock.

        Raises:
            BackendError: the flush failed; all is closed.
        """
        try:
            if any(self.dirty) and not self.failed[0]:
                self.flush() if self.flushes else self._write_map()
        finally:
            self.file.close()
            self.base.close()
            self.fd = -1

    def save(self, path: str) -> None:
        """Make the overlay *path* with all that this one has over the image at the bottom. Nobody writes meanwhile.

        Raises:
            ConfigError, BackendError: as `create`.
        """
        *overlays, (image, _) = self.layers
        create(path, image.path, size_bytes=self.size_bytes, mode=0o600)
        try:
            with open(path, "r+b", buffering=0) as copy:
                map_at = read_header(copy.fileno(), path).map_at
                all_own = 0
                for file, own in overlays:
                    assert own is not None
                    seen = int.from_bytes(own, "little") & ~all_own
                    all_own |= seen
                    for run in owned(seen.to_bytes(len(own), "little"), self.size_bytes):
                        for start, end, is_data in extents(file.fd, *run):
                            if is_data:
                                _send(file.fd, copy.fileno(), start, end)
                            else:  # of the image's last block there may be something
                                raw._fallocate(copy.fileno(), raw._PUNCH_HOLE, start, end - start)
                view = memoryview(all_own.to_bytes(len(self.own), "little"))
                for at in range(0, len(view), BLOCK):
                    if any(view[at : at + BLOCK]):
                        os.pwrite(copy.fileno(), view[at : at + BLOCK], map_at + at)
        except BaseException as error:
            os.unlink(path)
            if isinstance(error, OSError):
                raise BackendError(f"cannot write it: {error.strerror}", where=path) from error
            raise

    def _run(self, offset: int, size: int) -> tuple[RawDisk, int]:
        """The file that has the first of *size* bytes at *offset*, and how many of them it has."""
        end = offset + size
        layer = self._layer(offset // BLOCK)
        at = offset - offset % BLOCK + BLOCK
        while at < end and self._layer(at // BLOCK) is layer:
            at += BLOCK
        return layer, min(at, end) - offset

    def _layer(self, block: int) -> RawDisk:
        return next(file for file, own in self.layers if own is None or own[block // 8] >> block % 8 & 1)

    def _change(self, offset: int, size: int, change: Callable[[], None]) -> None:
        """Do *change* to *size* bytes at *offset* of the uppermost file, and make their blocks whole and its own."""
        end = offset + size
        blocks = range(offset // BLOCK, -(-end // BLOCK))
        if all(self._layer(block) is self.file for block in blocks):
            change()
            return
        self._fill(offset - offset % BLOCK, offset)
        change()
        self._fill(end, min(blocks.stop * BLOCK, self.size_bytes))
        if self.map_at is not None:
            for page in range(blocks[0] // PAGE_BLOCKS, blocks[-1] // PAGE_BLOCKS + 1):
                self._reserve(page)
        for block in blocks:
            self.own[block // 8] |= 1 << block % 8

    def _fill(self, start: int, end: int) -> None:
        """Copy the bytes of one block that a change leaves alone, unless it has them."""
        if start < end and self._layer(start // BLOCK) is not self.file:
            rest = [memoryview(bytearray(end - start))]
            self.preadv(rest, start)
            self.file.pwritev(rest, start)

    def _reserve(self, page: int) -> None:
        """Have room in the file for a page of the map, so that a full disk fails the write and not a flush."""
        assert self.map_at is not None
        if not self.dirty[page]:
            code = raw._fallocate(self.fd, 0, self.map_at + page * BLOCK, BLOCK)
            if code and code not in raw._CANNOT:
                raise BackendError(f"write of the map failed: {os.strerror(code)}", where=self.path)
            self.dirty[page] = True

    def _sync(self) -> None:
        try:
            self.file.flush()
        except BackendError:
            self.failed[0] = True
            raise

    def _write_map(self) -> bool:
        """Write what is new of the map; whether there was anything."""
        if self.map_at is None or not any(self.dirty):
            return False
        view = memoryview(self.own)
        for page, dirty in enumerate(self.dirty):
            if dirty:
                self.file.pwritev([view[page * BLOCK : (page + 1) * BLOCK]], self.map_at + page * BLOCK)
        return True


def open_overlay(
    path: str,
    *,
    base: str = "",
    readonly: bool = False,
    serial: str = "",
    cache: str = "writeback",
    discard: bool = True,
    layers: int = LAYERS_MAX,
) -> OverlayDisk:
    """The disk of the overlay *path*, of so many *layers* at most. *base*: where its base is now, if not where it was.

    Raises:
        ConfigError: *path* is no overlay or not whole, its base is missing or has changed, or as `RawDisk`.
        BackendError: the host does not let us: permission, in use, an I/O error.
    """
    if not os.path.exists(path):
        raise ConfigError("there is no such overlay", where=path, fix=f"have it made: overlay={path},base=IMAGE")
    if layers < 2:
        raise _too_many(path)
    file = RawDisk(path, readonly=readonly, serial=serial, cache=cache, discard=discard)
    try:
        header = read_header(file.fd, path)
        if header.committing:
            raise ConfigError(
                "a commit into its base was interrupted", where=path, fix=f"let it end: pyvmm disk commit {path}"
            )
        below = open_base(base or header.base_path, path, over_overlay=header.over_overlay, layers=layers - 1)
        try:
            check_base(header, below.file if isinstance(below, OverlayDisk) else below, path)
            own = read_map(file.fd, header)
            return OverlayDisk(file, below, size_bytes=header.size_bytes, own=own, map_at=header.map_at)
        except BaseException:
            below.close()
            raise
    except BaseException:
        file.close()
        raise


def open_ephemeral(
    base: RawDisk | OverlayDisk, directory: str, *, serial: str = "", discard: bool = True
) -> OverlayDisk:
    """A disk over *base* that is gone when it is closed: a file without a name in *directory*. *base* goes with it.

    Raises:
        BackendError: no file can be made there.
    """
    path = os.path.join(directory, f"pyvmm-{os.urandom(8).hex()}.cow")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, base.size_bytes)
            file = RawDisk(path, serial=serial, discard=discard)
        finally:
            os.close(fd)
            os.unlink(path)
    except OSError as error:
        raise BackendError(
            f"cannot keep what is written to {base.path} there: {error.strerror}",
            where=directory,
            fix="name another directory: TMPDIR=DIRECTORY",
        ) from error
    try:
        return OverlayDisk(file, base, size_bytes=base.size_bytes, own=new_map(base.size_bytes), map_at=None)
    except BaseException:
        file.close()
        raise


def open_configured(disk: DiskConfig) -> OverlayDisk:
    """What `--disk overlay=…` and `--disk …,snapshot=on` mean.

    Raises:
        VmmError: as `open_overlay`, `create` and `open_ephemeral`.
    """
    if disk.base and not os.path.exists(disk.path):
        create(disk.path, disk.base)
    below: RawDisk | OverlayDisk
    if disk.overlay:
        below = open_overlay(
            disk.path,
            base=disk.base,
            readonly=disk.readonly or disk.snapshot,
            serial=disk.serial,
            cache=disk.cache,
            discard=disk.discard,
        )
        if not disk.snapshot:
            return below
    else:
        below = RawDisk(disk.path, readonly=True)
    try:
        directory = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108  as for all large files of the moment
        return open_ephemeral(below, directory, serial=disk.serial, discard=disk.discard)
    except BaseException:
        below.close()
        raise


def open_base(
    path: str, overlay: str, *, over_overlay: bool, readonly: bool = True, layers: int = LAYERS_MAX
) -> RawDisk | OverlayDisk:
    """The image or overlay *path*, which is the base of *overlay*; opening it leaves its identity alone.

    Raises:
        VmmError: as `RawDisk` and `open_overlay`.
    """
    if not os.path.exists(path):
        raise ConfigError(
            f"its base {path} is not there", where=overlay, fix=f"say where it is: overlay={overlay},base=IMAGE"
        )
    # Whether space can be given back is found out by trying, which sets the time.
    if over_overlay:
        return open_overlay(path, readonly=readonly, discard=False, layers=layers)
    return RawDisk(path, readonly=readonly, discard=False)


def _too_many(path: str) -> ConfigError:
    return ConfigError(
        f"lies over more than {LAYERS_MAX - 1} others", where=path, fix="put some together: pyvmm disk commit OVERLAY"
    )


def _send(source: int, target: int, start: int, end: int) -> None:
    """Copy the bytes from *start* to *end* of one open file to another."""
    os.lseek(target, start, os.SEEK_SET)
    while start < end:
        start += os.sendfile(target, source, start, end - start)


def _first(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """The first *count* bytes of *views*."""
    found = []
    for view in views:
        if count <= 0:
            break
        found.append(view[:count])
        count -= len(view)
    return found
