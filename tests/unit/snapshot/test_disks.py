"""The files of disks that are kept with a snapshot: its own, whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.config import DiskConfig, MachineConfig
from vmm.snapshot.disks import remove, with_files

CONFIG = MachineConfig(kernel="kernel", disks=(DiskConfig(path="/image", serial="one"), DiskConfig(path="/other")))


def test_they_are_overlays_beside_it_that_nobody_writes_to() -> None:
    kept, other = with_files(CONFIG, ["snap.vda.1", ""], "/here/snap").disks
    assert kept == DiskConfig(path="/here/snap.vda.1", serial="one", overlay=True, snapshot=True)
    assert other == CONFIG.disks[1]


@pytest.mark.parametrize("names", [["../snap.vda.1", ""], ["", "/etc/passwd"], [""], ["", "", ""]])
def test_files_elsewhere_and_another_number_are_none(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"not beside it|argument 2 is"):
        with_files(CONFIG, names, "/here/snap")


def test_what_cannot_be_its_own_is_not_taken_away(tmp_path: Path) -> None:
    names = ["snap.vda.1", "snap", "precious", "snap.vdb.gone", ""]
    for name in names[:3]:
        (tmp_path / name).touch()
    remove(str(tmp_path / "snap"), names)
    assert {path.name for path in tmp_path.iterdir()} == {"snap", "precious"}
