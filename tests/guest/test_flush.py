"""What the guest has synced survives a power failure, and nothing else is promised.

Killing pyvmm is no power failure for a file of the host, whose page cache lives on. So the disk under it is one that
forgets what was not flushed (`DroppingDisk`).
"""

from __future__ import annotations

import os
import sys

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import Image, file_on_disk

pytestmark = pytest.mark.guest

PYVMM_ON_DROPPING_DISKS = """
import sys
import vmm.backends
from tests.fakes.disk import DroppingDisk
from vmm.cli.main import main
vmm.backends.RawDisk = DroppingDisk
sys.exit(main())
"""


def test_synced_data_survives_a_power_failure_and_unsynced_does_not(
    micro: Image, root: str, start: Start, tmp_path: os.PathLike[str]
) -> None:
    raw = os.path.join(tmp_path, "raw.img")
    with open(raw, "wb") as file:
        file.truncate(1 << 20)
    guest = start(
        "-k", micro.kernel(), "-d", root, "-d", raw, "-m", "256M", "-a", "quiet",
        command=(sys.executable, "-c", PYVMM_ON_DROPPING_DISKS),
    )  # fmt: skip
    guest.wait_for_prompt()
    guest.run("for n in 1 2 3; do echo synced $n | dd of=/root/synced$n conv=fsync 2>/dev/null; done")
    guest.run("echo unsynced > /root/unsynced")
    guest.run("printf %4096s unsynced > /run/block; dd if=/run/block of=/dev/vdb oflag=direct bs=4096")
    assert guest.run("dd if=/dev/vdb iflag=direct bs=4096 count=1 2>/dev/null").strip() == "unsynced"
    guest.cut_power()
    for n in (1, 2, 3):
        assert file_on_disk(root, f"/root/synced{n}") == f"synced {n}\n".encode()
    assert file_on_disk(root, "/root/unsynced") == b""
    with open(raw, "rb") as file:
        assert file.read(4096) == bytes(4096), "what reached the disk without a flush is there after all"
