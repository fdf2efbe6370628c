"""Overlays: what is made, what is refused and in which words, who may share what, and commits that are interrupted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.fakes.blk import BlkRig, header
from tests.fakes.native import both_engines
from vmm.config import parse_disk
from vmm.errors import BackendError, ConfigError, VmmError
from vmm.host.disk import raw
from vmm.host.disk.commit import commit, describe
from vmm.host.disk.overlay import LAYERS_MAX, OverlayDisk, open_configured, open_overlay
from vmm.host.disk.overlay_file import BLOCK, Header, create, write_header
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestStatus, RequestType

SIZE = 16 * BLOCK + 512
CONTENT = bytes(range(256)) * (SIZE // 256)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def overlay(base: Path) -> Path:
    path = base.with_name("work.cow")
    create(str(path), str(base))
    return path


def content(disk: RawDisk | OverlayDisk) -> bytes:
    data = bytearray(disk.size_bytes)
    disk.preadv([memoryview(data)], 0)
    return bytes(data)


def seen(overlay: Path) -> bytes:
    disk = open_overlay(str(overlay), readonly=True)
    try:
        return content(disk)
    finally:
        disk.close()


def write(overlay: Path, data: bytes, offset: int) -> None:
    disk = open_overlay(str(overlay))
    try:
        disk.pwritev([memoryview(bytearray(data))], offset)
    finally:
        disk.close()


def refused(kind: type[VmmError], words: Sequence[str], act: Callable[[], object]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(kind) as error:
        act()
    for word in words:
        assert word in str(error.value)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"


# Making one.


def test_it_takes_no_space_and_shows_the_base(base: Path, overlay: Path) -> None:
    assert seen(overlay) == CONTENT
    assert overlay.stat().st_blocks * 512 <= 2 * BLOCK


def test_a_large_one_is_made_at_once(tmp_path: Path) -> None:
    (tmp_path / "large.img").touch()
    os.truncate(tmp_path / "large.img", 1 << 40)
    times = []
    for number in range(5):
        start = time.monotonic()
        create(str(tmp_path / f"{number}.cow"), str(tmp_path / "large.img"))
        times.append(time.monotonic() - start)
    assert min(times) < 0.05
    assert (tmp_path / "0.cow").stat().st_blocks * 512 <= 2 * BLOCK


def test_it_may_be_larger_than_its_base(base: Path) -> None:
    path = base.with_name("larger.cow")
    create(str(path), str(base), size_bytes=4 * SIZE)
    assert seen(path) == CONTENT + bytes(3 * SIZE)
    write(path, b"x" * 512, 3 * SIZE)
    commit(str(path))
    assert base.read_bytes() == CONTENT + bytes(2 * SIZE) + b"x" * 512 + bytes(SIZE - 512)


def test_what_cannot_be_made(base: Path, overlay: Path) -> None:
    refused(ConfigError, ["work.cow", "is there already"], lambda: create(str(overlay), str(base)))
    refused(ConfigError, ["less than its base"], lambda: create(f"{overlay}2", str(base), size_bytes=512))
    refused(ConfigError, ["is no overlay"], lambda: create(f"{overlay}2", str(base), over_overlay=True))
    refused(BackendError, ["No such file"], lambda: create("/nowhere/w.cow", str(base)))
    assert not os.path.exists(f"{overlay}2")


def test_a_base_that_is_written_to_cannot_be_one(base: Path) -> None:
    writer = RawDisk(str(base))
    try:
        refused(BackendError, [str(base), "in use by this process"], lambda: create(f"{base}.cow", str(base)))
    finally:
        writer.close()


def test_the_command_line_makes_one_with_a_base(base: Path) -> None:
    path = base.with_name("new.cow")
    refused(ConfigError, ["no such overlay", "base=IMAGE"], lambda: open_configured(parse_disk(f"overlay={path}")))
    for _ in range(2):
        open_configured(parse_disk(f"overlay={path},base={base}")).close()
    assert seen(path) == CONTENT


# Sharing.


def test_many_share_a_base_and_none_of_them_writes_it(base: Path) -> None:
    paths = [base.with_name(f"{number}.cow") for number in range(3)]
    for path in paths:
        create(str(path), str(base))
    disks = [open_overlay(str(path)) for path in paths]
    for number, disk in enumerate(disks):
        disk.pwritev([memoryview(bytearray([number]) * SIZE)], 0)
    assert [content(disk) for disk in disks] == [bytes([number]) * SIZE for number in range(3)]
    refused(BackendError, ["in use by this process"], lambda: RawDisk(str(base)))
    refused(BackendError, ["0.cow", "in use"], lambda: create(str(base) + ".work", str(paths[0])))
    for disk in disks:
        disk.close()
    assert base.read_bytes() == CONTENT


def test_one_overlay_is_one_machine_s(overlay: Path) -> None:
    disk = open_overlay(str(overlay))
    refused(BackendError, [str(overlay), "in use by this process"], lambda: open_overlay(str(overlay)))
    refused(BackendError, [str(overlay), "in use by this process"], lambda: commit(str(overlay)))
    disk.close()


def test_what_is_thrown_away_leaves_nothing(
    base: Path, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(overlay, b"kept" * 128, 0)
    before = overlay.read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    for text, shows in ((f"{base}", CONTENT), (f"overlay={overlay}", b"kept" * 128 + CONTENT[512:])):
        several = [open_configured(parse_disk(f"{text},snapshot=on")) for _ in range(2)]
        assert [content(disk) for disk in several] == [shows] * 2
        several[0].pwritev([memoryview(bytearray(SIZE))], 0)
        several[0].flush()
        assert [content(disk) for disk in several] == [bytes(SIZE), shows]
        assert os.listdir(scratch) == []
        for disk in several:
            disk.close()
    assert (base.read_bytes(), overlay.read_bytes()) == (CONTENT, before)


def test_no_place_to_throw_away(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    refused(BackendError, ["/nowhere", "TMPDIR="], lambda: open_configured(parse_disk(f"{base},snapshot=on")))


# What is refused.


def test_a_base_that_has_changed(base: Path, overlay: Path) -> None:
    status = base.stat()
    os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    refused(ConfigError, [str(overlay), str(base), "was written to at"], lambda: open_overlay(str(overlay)))
    os.utime(base, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert seen(overlay) == CONTENT
    os.truncate(base, SIZE + 512)
    refused(ConfigError, [f"has {SIZE + 512} bytes, not {SIZE}"], lambda: open_overlay(str(overlay)))
    refused(ConfigError, [f"has {SIZE + 512} bytes, not {SIZE}"], lambda: commit(str(overlay)))


def test_a_base_that_has_moved(base: Path, overlay: Path) -> None:
    moved = base.rename(base.with_name("moved.img"))
    refused(ConfigError, [str(base), "is not there", "base=IMAGE"], lambda: open_overlay(str(overlay)))
    open_overlay(str(overlay), base=str(moved)).close()
    write_at = base.with_name("other.img")
    write_at.write_bytes(CONTENT)
    refused(ConfigError, ["was written to"], lambda: open_overlay(str(overlay), base=str(write_at)))


@pytest.mark.parametrize("size", [512, BLOCK, SIZE // 512 * 512, -BLOCK, -512, 512 + (1 << 20)])
def test_a_file_that_is_too_short_or_too_long(overlay: Path, size: int) -> None:
    length = overlay.stat().st_size
    os.truncate(overlay, size + length if size < 0 else size)
    refused(ConfigError, [str(overlay), "is no overlay, or its end is missing"], lambda: open_overlay(str(overlay)))


@pytest.mark.parametrize("at", [0x10, 0x14, 0x18, 0x20, 0x28, 0x30, 0x100, 0x200, 0xFFF])
def test_a_damaged_header(overlay: Path, at: int) -> None:
    data = bytearray(overlay.read_bytes())
    data[at - BLOCK] ^= 0x55
    overlay.write_bytes(data)
    refused(ConfigError, [str(overlay), "header is damaged"], lambda: open_overlay(str(overlay)))


def test_a_header_of_another_file(overlay: Path) -> None:
    data = overlay.read_bytes()
    overlay.write_bytes(data[BLOCK:])
    refused(ConfigError, [f"is {len(data) - BLOCK} bytes long"], lambda: open_overlay(str(overlay)))


def test_raw_images_are_not_taken_for_overlays(base: Path, overlay: Path) -> None:
    refused(ConfigError, ["is no overlay"], lambda: open_overlay(str(base)))
    # A guest may write whatever it likes into its disk.
    (base.parent / "by_guest.img").write_bytes(overlay.read_bytes())
    disk = open_configured(parse_disk(f"{base.parent}/by_guest.img,snapshot=on"))
    assert disk.size_bytes == overlay.stat().st_size
    disk.close()


def test_so_many_files_and_no_more(base: Path) -> None:
    below = base
    for number in range(LAYERS_MAX - 1):
        path = base.with_name(f"{number}.cow")
        create(str(path), str(below), over_overlay=below != base)
        write(path, bytes([number]) * 512, number * BLOCK)
        below = path
    shows = seen(below)
    assert [shows[number * BLOCK] for number in range(LAYERS_MAX - 1)] == list(range(LAYERS_MAX - 1))
    assert shows[512:BLOCK] == CONTENT[512:BLOCK]
    path = base.with_name("more.cow")
    create(str(path), str(below), over_overlay=True)
    refused(ConfigError, [f"more than {LAYERS_MAX - 1} others"], lambda: open_overlay(str(path)))


def test_an_overlay_over_itself(base: Path, overlay: Path) -> None:
    file = RawDisk(str(overlay))
    status = os.fstat(file.fd)
    itself = Header(
        size_bytes=SIZE,
        base_path=str(overlay),
        base_size=status.st_size,
        base_mtime_ns=status.st_mtime_ns,
        over_overlay=True,
    )
    write_header(file, itself)
    file.close()
    os.utime(overlay, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused(BackendError, ["in use by this process"], lambda: open_overlay(str(overlay)))
    refused(ConfigError, ["more than"], lambda: open_overlay(str(overlay), readonly=True))


# Served.


def threads() -> set[str]:
    return {Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")}


@both_engines
def test_a_read_is_put_together_from_what_is_not_in_memory(base: Path, overlay: Path, engine: str) -> None:
    """Runs of either file, in many pieces, of which some have to wait."""
    for block in (1, 2, 5, 9, 15):
        write(overlay, bytes([block]) * 700, block * BLOCK + 300)
    expected = seen(overlay)
    for name in ("native", "threads") if engine == "native" else ("python",):
        disk = open_overlay(str(overlay))
        rig = BlkRig(name, disk)
        rig.driver.start()
        for path in (base, overlay):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        targets = [rig.arena.writable(size) for size in (1, 511, 4096, 5000, 9, SIZE - 9617)]
        status = rig.arena.writable(1)
        assert rig.submit([rig.arena.readable(header(RequestType.IN)), *targets, status], indirect=True) == SIZE + 1
        assert b"".join(map(rig.arena.content, targets)) == expected
        if name == "threads":
            assert "blk-io" in threads(), "nothing had to wait"
        rig.close()
        disk.close()


@both_engines
def test_two_queues_write_parts_of_the_same_blocks(overlay: Path, engine: str) -> None:
    """Each block is completed once, and by nobody over what another has written."""
    disk = open_overlay(str(overlay))
    rig = BlkRig(engine, disk, queues=2)
    queues = rig.driver.start()
    for sector in range(SIZE // 512):
        status = rig.arena.writable(1)
        data = bytes([sector]) * 512
        queues[sector % 2].add([rig.arena.readable(header(RequestType.OUT, sector) + data), status])
    rig.driver.kick(0)
    rig.driver.kick(1)
    rig.collect(-(-SIZE // 1024), queues[0])
    rig.collect(SIZE // 1024, queues[1])
    rig.close()
    disk.close()
    assert seen(overlay) == b"".join(bytes([sector]) * 512 for sector in range(SIZE // 512))


@both_engines
def test_a_flush_that_lost_data_is_never_followed_by_one_that_succeeds(
    overlay: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_overlay(str(overlay))
    disk.pwritev([memoryview(bytearray(512))], 0)
    if engine == "python":

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fdatasync", fail)
        refused(BackendError, ["flush failed"], disk.flush)
        monkeypatch.undo()
    else:
        disk.failed[0] = 1
    rig = BlkRig(engine, disk)
    rig.driver.start()
    assert rig.request(RequestType.FLUSH)[0] == RequestStatus.IOERR
    rig.close()
    disk.close()
    assert seen(overlay) == CONTENT, "the map says of lost data that it is there"


def test_what_is_not_flushed_is_not_claimed(overlay: Path) -> None:
    disk = open_overlay(str(overlay))
    disk.pwritev([memoryview(bytearray(BLOCK))], 0)
    disk.flush()
    disk.pwritev([memoryview(bytearray(BLOCK))], BLOCK)
    disk.dirty[:] = bytes(len(disk.dirty))  # as after a SIGKILL: nothing more is written
    disk.close()
    assert seen(overlay) == bytes(BLOCK) + CONTENT[BLOCK:]


def test_a_flush_of_an_unsafe_one_waits_for_the_end(overlay: Path) -> None:
    disk = open_overlay(str(overlay), cache="unsafe")
    disk.pwritev([memoryview(bytearray(BLOCK))], 0)
    disk.flush()
    disk.close()
    assert seen(overlay) == bytes(BLOCK) + CONTENT[BLOCK:]


def test_a_read_only_one_is_not_written(overlay: Path) -> None:
    before = overlay.read_bytes()
    disk = open_configured(parse_disk(f"overlay={overlay},readonly"))
    assert disk.readonly
    disk.close()
    assert overlay.read_bytes() == before


def test_without_space_for_the_map_the_write_fails(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_overlay(str(overlay))
    monkeypatch.setattr(raw, "_fallocate", lambda *_: 28)
    refused(BackendError, ["No space left"], lambda: disk.pwritev([memoryview(bytearray(512))], 0))
    monkeypatch.undo()
    assert content(disk) == CONTENT
    disk.pwritev([memoryview(bytearray(512))], 0)
    disk.close()
    assert seen(overlay) == bytes(512) + CONTENT[512:]


# Back into the base.


def changed(overlay: Path) -> bytes:
    """Write here and there, with zeroes; what the disk shows then."""
    disk = open_overlay(str(overlay))
    disk.pwritev([memoryview(bytearray(b"new" * 1000))], 5000)
    disk.discard(8 * BLOCK - 700, 3 * BLOCK)
    disk.pwritev([memoryview(bytearray(b"end!" * 128))], SIZE - 512)
    shows = content(disk)
    disk.close()
    return shows


def test_commit(base: Path, overlay: Path) -> None:
    shows = changed(overlay)
    assert commit(str(overlay)) == describe_own(shows)
    assert base.read_bytes() == shows
    assert seen(overlay) == shows
    assert describe(str(overlay))["own_bytes"] == 0
    assert overlay.stat().st_blocks * 512 <= 3 * BLOCK


def describe_own(shows: bytes) -> int:
    """The bytes of the blocks that differ."""
    blocks = [slice(at, min(at + BLOCK, SIZE)) for at in range(0, SIZE, BLOCK)]
    return sum(piece.stop - piece.start for piece in blocks if shows[piece] != CONTENT[piece])


def test_commit_into_an_overlay(base: Path, overlay: Path) -> None:
    top = base.with_name("top.cow")
    create(str(top), str(overlay), over_overlay=True)
    shows = changed(top)
    commit(str(top))
    assert (base.read_bytes(), seen(overlay), seen(top)) == (CONTENT, shows, shows)


def test_commit_makes_other_overlays_useless(base: Path, overlay: Path) -> None:
    other = base.with_name("other.cow")
    create(str(other), str(base))
    running = open_overlay(str(other))
    changed(overlay)
    refused(BackendError, [str(base), "in use by this process"], lambda: commit(str(overlay)))
    running.close()
    commit(str(overlay))
    refused(ConfigError, [str(other), "has changed"], lambda: open_overlay(str(other)))


class Killed(BaseException):
    """The process ends here."""


def test_a_commit_may_end_anywhere_and_be_done_again(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each system call that changes something."""
    calls = 0
    while True:
        base.write_bytes(CONTENT)
        overlay = base.with_name(f"{calls}.cow")
        create(str(overlay), str(base))
        shows = changed(overlay)
        left = calls

        def before(call: Callable[..., object]) -> Callable[..., object]:
            def limited(*arguments: object) -> object:
                nonlocal left
                if not left:
                    raise Killed
                left -= 1
                return call(*arguments)

            return limited

        with monkeypatch.context() as limits:
            for name in ("pwritev", "fdatasync", "ftruncate"):
                limits.setattr(os, name, before(getattr(os, name)))
            limits.setattr(raw, "_fallocate", before(raw._fallocate))
            try:
                commit(str(overlay))
            except Killed:
                pass
            else:
                break
        try:
            assert seen(overlay) == shows
        except ConfigError as error:
            assert "a commit into its base was interrupted" in str(error)  # noqa: PT017
            assert "do it again" in describe(str(overlay))["problem"]
        commit(str(overlay))
        assert base.read_bytes() == shows
        assert seen(overlay) == shows
        calls += 1
    assert calls > 10


def test_info(base: Path, overlay: Path) -> None:
    changed(overlay)
    facts = describe(str(overlay))
    assert facts["own_bytes"] == 5 * BLOCK + 512
    assert (facts["base"], facts["in_use_by"], facts["problem"]) == (str(base), "", "")
    disk = open_overlay(str(overlay))
    assert "this process" in describe(str(overlay))["in_use_by"]
    disk.close()
    base.unlink()
    assert "is not there" in describe(str(overlay))["problem"]


def test_saving_goes_on_beside_readers(base: Path, overlay: Path) -> None:
    shows = changed(overlay)
    disk = open_overlay(str(overlay))
    disk.save(f"{overlay}.saved")
    found: list[bytes] = []
    readers = [threading.Thread(target=lambda: found.append(seen(Path(f"{overlay}.saved")))) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    disk.close()
    assert found == [shows] * 2
