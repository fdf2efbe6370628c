"""What the guest has synced survives a power failure, and nothing else is promised.

Killing pyvmm is no power failure for a file of the host, whose page cache lives on. So the disk under it is one that
forgets what was not flushed (`tests/fakes/dropping.c`).
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fakes import cuts
from tests.guest.conftest import Start
from tests.guest.linux import MIB, Image, file_on_disk

pytestmark = pytest.mark.guest

#: The dropping disk cannot get between the system calls of io_uring; all before and after them is the same.
PYVMM_WITHOUT_IO_URING = """
import sys
from functools import partial
from vmm.cli.main import main
from vmm.virtio import blk_native
blk_native.NativeBlkDevice = partial(blk_native.NativeBlkDevice, io_uring=False)
sys.exit(main())
"""


@pytest.mark.parametrize("engine", ["native", "python"])
def test_synced_data_survives_a_power_failure_and_unsynced_does_not(
    micro: Image, root: str, start: Start, tmp_path: os.PathLike[str], engine: str
) -> None:
    dropping = os.path.join(tmp_path, "dropping.so")
    source = os.path.join(os.path.dirname(cuts.__file__), "dropping.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", dropping], check=True)
    behind = os.path.getsize(root)  # the file system
    os.truncate(root, behind + MIB)
    guest = start(
        "-k", micro.kernel(), "-d", root, "-m", "256M", "-a", "quiet", "--engine", engine,
        before=("env", f"LD_PRELOAD={dropping}", f"DROPPING={root}"),
        command=(sys.executable, "-c", PYVMM_WITHOUT_IO_URING),
    )  # fmt: skip
    guest.wait_for_prompt()
    guest.run("stty -echo")  # which takes 5 ms a character
    guest.run("for n in 1 2 3; do echo synced $n | dd of=/root/synced$n conv=fsync 2>/dev/null; done")
    guest.run("echo unsynced > /root/unsynced")
    block = behind // 4096
    guest.run(f"printf %4096s unsynced > /run/block; dd if=/run/block of=/dev/vda oflag=direct bs=4096 seek={block}")
    read = guest.run(f"dd if=/dev/vda iflag=direct bs=4096 skip={block} count=1 2>/dev/null")
    assert read.strip() == "unsynced"
    guest.cut_power()
    for n in (1, 2, 3):
        assert file_on_disk(root, f"/root/synced{n}") == f"synced {n}\n".encode()
    assert file_on_disk(root, "/root/unsynced") == b""
    with open(root, "rb") as file:
        file.seek(behind)
        assert file.read(4096) == bytes(4096), "what reached the disk without a flush is there after all"
