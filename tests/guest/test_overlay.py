"""A Linux on an overlay, and on an image whose changes are thrown away, which is the base of the first."""

from __future__ import annotations

import os

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import Image, file_on_disk, sha256
from vmm.host.disk.commit import commit

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("engine", ["native", pytest.param("python", marks=pytest.mark.slow)])
def test_the_base_stays_as_it_is_until_the_commit(
    micro: Image, root: str, start: Start, tmp_path: os.PathLike[str], engine: str
) -> None:
    before, overlay = sha256(root), os.path.join(tmp_path, "work.cow")
    guest = start(
        "-k", micro.kernel(), "-d", f"overlay={overlay},base={root}", "-d", f"{root},snapshot=on", "-m", "256M",
        "-a", "quiet", "--engine", engine,
    )  # fmt: skip
    guest.wait_for_prompt()
    guest.run("stty -echo")  # which takes 5 ms a character
    guest.run("echo in the overlay | dd of=/root/note conv=fsync 2>/dev/null")
    guest.run("mount /dev/vdb /mnt; echo thrown away > /mnt/root/other; umount /mnt; mount /dev/vdb /mnt")
    assert guest.run("cat /mnt/root/other; ls /root /mnt/root").split("\n")[0] == "thrown away"
    assert "note" not in guest.run("ls /mnt/root")
    guest.run("umount /mnt")
    guest.cut_power()
    assert sha256(root) == before
    assert commit(overlay) > 0
    assert file_on_disk(root, "/root/note") == b"in the overlay\n"
    assert file_on_disk(root, "/root/other") == b""
