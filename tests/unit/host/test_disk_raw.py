"""Raw images: what is refused and in which words, locks, and whole transfers."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vmm.errors import BackendError, ConfigError, VmmError
from vmm.host.disk import raw
from vmm.host.disk.raw import RawDisk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 16)
    return path


def refused(path: Path | str, kind: type[VmmError], *words: str, readonly: bool = False) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind) as error:
        RawDisk(str(path), readonly=readonly)
    for word in (str(path), *words):
        assert word in str(error.value)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "none.img", ConfigError, "no such file", "truncate -s 1G")
    refused(tmp_path / "none" / "disk.img", ConfigError, "no such file")


def test_a_directory(tmp_path: Path) -> None:
    refused(tmp_path, ConfigError, "directory")


def test_neither_file_nor_block_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", ConfigError, "no disk image")
    refused("/dev/null", ConfigError, "no disk image")


def test_through_a_file(image: Path) -> None:
    refused(image / "x", BackendError, "Not a directory")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    refused(tmp_path / "empty.img", ConfigError, "is empty", "truncate -s 1G")


@pytest.mark.parametrize("size", [1, 511, 513, 1025])
def test_half_a_sector(tmp_path: Path, size: int) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(size))
    refused(tmp_path / "odd.img", ConfigError, f"{size} bytes", "truncate -s %512")
    subprocess.run(["truncate", "-s", "%512", tmp_path / "odd.img"], check=True)
    with open_disk(tmp_path / "odd.img") as disk:
        assert disk.size_bytes == -(-size // 512) * 512


@pytest.mark.parametrize(
    ("code", "readonly", "word"),
    [
        (errno.EACCES, False, "read-only, or allow it: chmod u+rw"),
        (errno.EACCES, True, "chmod u+r "),
        (errno.EROFS, False, "read-only"),
        (errno.EBUSY, False, "unmount"),
        (errno.EIO, True, "Input/output error"),
    ],
)
def test_the_host_refuses(image: Path, monkeypatch: pytest.MonkeyPatch, code: int, readonly: bool, word: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.open", fail)
    refused(image, BackendError, os.strerror(code), word, readonly=readonly)


@pytest.fixture
def ordinary_user(image: Path) -> Iterator[Path]:
    """The image in a place where everybody may go, while this process is nobody special."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        moved = Path(shutil.copy(image, place))
        root = os.geteuid() == 0
        if root:
            os.chown(moved, 65534, 65534)
            os.seteuid(65534)
        try:
            yield moved
        finally:
            if root:
                os.seteuid(0)


def test_no_permission(ordinary_user: Path) -> None:
    ordinary_user.chmod(0o400)
    refused(ordinary_user, BackendError, "Permission denied", "read-only")
    with open_disk(ordinary_user, readonly=True):
        pass
    ordinary_user.chmod(0)
    refused(ordinary_user, BackendError, "Permission denied", "chmod u+r ", readonly=True)


@pytest.mark.parametrize("serial", ["x" * 21, "ä", "a\n"])
def test_serials_that_do_not_fit(image: Path, serial: str) -> None:
    with pytest.raises(ConfigError, match="serial"):
        RawDisk(str(image), serial=serial)


class open_disk:
    """A `RawDisk` for a with statement."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.disk = RawDisk(str(path), readonly=readonly)

    def __enter__(self) -> RawDisk:
        return self.disk

    def __exit__(self, *_: object) -> None:
        self.disk.close()


# Locks.

_HOLD = """
import sys
from vmm.host.disk import raw
from vmm.host.disk.raw import RawDisk
disk = RawDisk(sys.argv[1], readonly=sys.argv[2] == "ro")
print("locked", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that has the image open."""

    def __init__(self, path: Path, how: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> int:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"locked\n"
        return self.process.pid

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


@pytest.mark.parametrize(("theirs", "ours"), [("rw", "rw"), ("rw", "ro"), ("ro", "rw")])
def test_a_writer_shares_with_nobody(image: Path, theirs: str, ours: str) -> None:
    with Holder(image, theirs) as pid:
        refused(image, BackendError, "is in use by", f"process {pid} (", "read-only", readonly=ours == "ro")
    with open_disk(image):
        pass


def test_a_killed_holder_leaves_no_lock(image: Path) -> None:
    holder = Holder(image, "rw")
    with holder:
        holder.process.kill()
        holder.process.wait()
        with open_disk(image):
            pass


def test_readers_share(image: Path) -> None:
    with Holder(image, "ro"), open_disk(image, readonly=True) as disk:
        assert disk.readonly


def test_the_same_image_twice_in_one_process(image: Path) -> None:
    with open_disk(image):
        refused(image, BackendError, "is in use by this process")


def test_another_name_for_the_same_image(image: Path) -> None:
    link, symlink = image.with_name("link.img"), image.with_name("symlink.img")
    os.link(image, link)
    symlink.symlink_to(image)
    with open_disk(image):
        refused(link, BackendError, "is in use")
        refused(symlink, BackendError, "is in use")


def test_a_lock_whose_holder_is_hidden(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.listdir", lambda _path: ["1", "self"])
    with open_disk(image), pytest.raises(BackendError, match="is in use by another process"):
        RawDisk(str(image))


def test_no_locks_there(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    refused(image, BackendError, "cannot lock")


# Transfers.


def views(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


def test_reads_and_writes(image: Path) -> None:
    with open_disk(image) as disk:
        assert (disk.size_bytes, disk.serial, disk.path) == (4096, b"", str(image))
        disk.pwritev([memoryview(b"a" * 100), memoryview(b"b" * 412)], 1024)
        disk.flush()
        target = views(1, 511)
        disk.preadv(target, 1024)
    assert b"".join(target) == b"a" * 100 + b"b" * 412
    assert image.read_bytes()[1024:1536] == b"a" * 100 + b"b" * 412


def test_the_kernel_may_do_less_at_a_time(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def first_view(views: Sequence[memoryview], most: int = 7) -> list[memoryview]:
        return [views[0][:most]]

    monkeypatch.setattr("os.preadv", lambda fd, views, offset: real_read(fd, first_view(views), offset))
    monkeypatch.setattr("os.pwritev", lambda fd, views, offset: real_write(fd, first_view(views), offset))
    with open_disk(image) as disk:
        target = views(5, 20, 487)
        disk.preadv(target, 512)
        assert b"".join(target) == image.read_bytes()[512:1024]
        disk.pwritev([memoryview(b"q" * 30), memoryview(b"r" * 482)], 0)
    assert image.read_bytes()[:512] == b"q" * 30 + b"r" * 482


def test_the_file_shrinks(image: Path) -> None:
    with open_disk(image) as disk:
        os.truncate(image, 1024)
        with pytest.raises(BackendError, match="shrunk"):
            disk.preadv(views(512, 512), 512)


def test_a_read_only_image_cannot_be_written(image: Path) -> None:
    with open_disk(image, readonly=True) as disk, pytest.raises(BackendError, match="write of 512 bytes at 0x200"):
        disk.pwritev(views(512), 512)


def test_closing_twice(image: Path) -> None:
    disk = RawDisk(str(image))
    disk.close()
    disk.close()


# Cache modes, discards, zeroes.


@pytest.fixture
def page() -> Iterator[memoryview]:
    with mmap.mmap(-1, 4096) as pages, memoryview(pages) as view:
        yield view


def test_around_the_page_cache(image: Path, page: memoryview) -> None:
    disk = RawDisk(str(image), cache="none")
    assert disk.direct_fd >= 0
    assert disk.alignment in {512, 4096}
    disk.preadv([page], 0)
    assert page == bytes(range(256)) * 16
    disk.pwritev([page[1:513]], 512)
    disk.preadv([page], 0)
    assert page[512:1024] == bytes(range(1, 256)) + bytes(range(256)) + b"\0", "what is not aligned is done too"
    disk.close()


def test_where_there_is_nothing_but_the_page_cache(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(ConfigError, match="leave out cache=none"):
        RawDisk(str(image), cache="none")


@pytest.mark.parametrize(("cache", "syncs"), [("writeback", 1), ("none", 1), ("unsafe", 0)])
def test_what_a_flush_does(image: Path, monkeypatch: pytest.MonkeyPatch, cache: str, syncs: int) -> None:
    calls: list[int] = []
    monkeypatch.setattr("os.fdatasync", calls.append)
    disk = RawDisk(str(image), cache=cache)
    disk.flush()
    assert len(calls) == syncs
    disk.close()


def test_discarded_bytes_are_zeroes(image: Path) -> None:
    disk = RawDisk(str(image))
    assert disk.can_discard
    disk.discard(512, 1024)
    disk.close()
    content = bytes(range(256)) * 16
    assert image.read_bytes() == content[:512] + bytes(1024) + content[1536:]


def test_who_does_not_discard(image: Path) -> None:
    for readonly, discard in ((True, True), (False, False)):
        disk = RawDisk(str(image), readonly=readonly, discard=discard)
        assert not disk.can_discard
        disk.close()


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("missing", [(), (16,), (2, 16)])
def test_zeroes_are_written_by_whatever_way_there_is(
    image: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[int, ...], unmap: bool
) -> None:
    real = raw._fallocate

    def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
        return errno.EOPNOTSUPP if mode in missing else real(fd, mode, offset, size)

    monkeypatch.setattr(raw, "_fallocate", fallocate)
    disk = RawDisk(str(image))
    disk.write_zeroes(512, 1024, unmap=unmap)
    disk.close()
    content = bytes(range(256)) * 16
    assert image.read_bytes() == content[:512] + bytes(1024) + content[1536:]


def test_a_failing_discard(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RawDisk(str(image))
    monkeypatch.setattr(raw, "_fallocate", lambda *_: errno.EIO)
    with pytest.raises(BackendError, match="discard of 512 bytes at 0x200 failed: Input/output error"):
        disk.discard(512, 512)
    with pytest.raises(BackendError, match="zeroing of 512 bytes at 0x200 failed: Input/output error"):
        disk.write_zeroes(512, 512, unmap=True)
    disk.close()
