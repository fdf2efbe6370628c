"""What is on disks that a machine would take with it is kept beside its snapshot, and nobody writes to that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kvm.machines import ECHO, Machines
from vmm.config import DiskConfig
from vmm.errors import BackendError, ConfigError
from vmm.host.disk.overlay_file import create
from vmm.machine import Machine
from vmm.snapshot.writing import Writing

BLOCK = 4096
IMAGE = os.urandom(8 * BLOCK)


@pytest.fixture
def image(machines: Machines) -> Path:
    path = machines.directory / "image"
    path.write_bytes(IMAGE)
    return path


def written(machine: Machine, block: int, byte: bytes) -> None:
    """Write to the machine's first disk, as its guest would."""
    machine._session.backends.disks[0].pwritev([memoryview(byte * BLOCK)], block * BLOCK)


def content(machine: Machine) -> bytes:
    found = bytearray(len(IMAGE))
    machine._session.backends.disks[0].preadv([memoryview(found)], 0)
    return bytes(found)


def changed(*blocks: tuple[int, bytes]) -> bytes:
    """The image with those blocks full of those bytes."""
    expected = bytearray(IMAGE)
    for block, byte in blocks:
        expected[block * BLOCK : (block + 1) * BLOCK] = byte * BLOCK
    return bytes(expected)


def thrown_away(machines: Machines, image: Path) -> Machine:
    """A machine with a disk that is thrown away at the end."""
    return machines.make(machines.config(ECHO, disks=(DiskConfig(path=str(image), snapshot=True),)))


def gone_on(machines: Machines, path: str) -> Machine:
    snapshot = machines.opened(path)
    snapshot.check_disks(snapshot.config)
    return machines.make(snapshot.config, snapshot)


def test_what_was_written_is_there_in_all_that_go_on_and_stays_each_one_s_own(machines: Machines, image: Path) -> None:
    path = str(machines.directory / "snap")
    machine = thrown_away(machines, image)
    written(machine, 1, b"x")
    machine.snapshot(path)
    written(machine, 1, b"y")
    one, other = gone_on(machines, path), gone_on(machines, path)
    written(one, 2, b"z")
    assert content(one) == changed((1, b"x"), (2, b"z"))
    assert content(other) == changed((1, b"x"))
    machines.close()
    assert image.read_bytes() == IMAGE
    assert content(gone_on(machines, path)) == changed((1, b"x"))


def test_the_snapshot_of_one_that_went_on_needs_none_of_the_first(machines: Machines, image: Path) -> None:
    first, second = (str(machines.directory / name) for name in ("first", "second"))
    machine = thrown_away(machines, image)
    written(machine, 1, b"x")
    machine.snapshot(first)
    machine = gone_on(machines, first)
    written(machine, 2, b"y")
    machine.snapshot(second)
    machines.close()
    for file in machines.directory.glob("first*"):
        file.unlink()
    assert content(gone_on(machines, second)) == changed((1, b"x"), (2, b"y"))


def test_an_overlay_is_kept_if_that_is_wanted(machines: Machines, image: Path) -> None:
    overlay, path = str(machines.directory / "cow"), str(machines.directory / "snap")
    create(overlay, str(image))
    config = machines.config(ECHO, disks=(DiskConfig(path=overlay, overlay=True),))
    machine = machines.make(config)
    written(machine, 1, b"x")
    machine.snapshot(path)
    assert machines.opened(path).config == config
    machine.snapshot(path, overlays=True)
    written(machine, 3, b"y")
    assert content(gone_on(machines, path)) == changed((1, b"x"))


def test_a_snapshot_and_its_disks_move_together(machines: Machines, image: Path) -> None:
    path = str(machines.directory / "snap")
    machine = thrown_away(machines, image)
    written(machine, 1, b"x")
    machine.snapshot(path)
    moved = machines.directory / "elsewhere"
    moved.mkdir()
    for file in machines.directory.glob("snap*"):
        file.rename(moved / file.name)
    assert content(gone_on(machines, str(moved / "snap"))) == changed((1, b"x"))


def test_a_new_snapshot_takes_the_disks_of_the_old_one_away(machines: Machines, image: Path) -> None:
    path = str(machines.directory / "snap")
    machine = thrown_away(machines, image)
    machine.snapshot(path)
    before = set(machines.directory.glob("snap.vda.*"))
    machine.snapshot(path)
    after = set(machines.directory.glob("snap.vda.*"))
    assert len(before) == len(after) == 1
    assert not before & after


def test_one_that_fails_leaves_the_old_one_s_disks_and_none_of_its_own(
    machines: Machines, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Writing) -> None:
        raise OSError(28, "No space left on device")

    path = str(machines.directory / "snap")
    machine = thrown_away(machines, image)
    machine.snapshot(path)
    before = set(machines.directory.glob("*"))
    monkeypatch.setattr(Writing, "_write_state", full)
    with pytest.raises(BackendError, match="No space left"):
        machine.snapshot(path)
    assert set(machines.directory.glob("*")) == before


def test_a_kept_disk_that_was_changed_is_refused(machines: Machines, image: Path) -> None:
    path = str(machines.directory / "snap")
    thrown_away(machines, image).snapshot(path)
    (kept,) = machines.directory.glob("snap.vda.*")
    os.utime(kept)
    snapshot = machines.opened(path)
    with pytest.raises(ConfigError, match=f"{kept}: has changed since the snapshot"):
        snapshot.check_disks(snapshot.config)
