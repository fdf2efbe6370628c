"""What the guest synced survives a power cut; what it did not may be lost.

Killing pyvmm alone would prove nothing, since the host's page cache outlives it: so the disk of these guests keeps
what was not flushed to itself (`tests.fakes.disk.DroppingDisk`), and dies with the process.
"""

from __future__ import annotations

import subprocess
import sys

import pexpect
import pytest

from tests.guest.conftest import Guest, Image, read_from_image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

PYVMM_WITH_A_DROPPING_DISK = """
import sys
import vmm.backends
from tests.fakes.disk import DroppingDisk
vmm.backends.RawDisk = DroppingDisk
from vmm.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_power_cut_after_fsync(micro: Image, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = micro.copy_root(str(tmp_path_factory.mktemp("flush")))
    guest = Guest(
        ["-c", PYVMM_WITH_A_DROPPING_DISK, "--kernel", micro.file("vmlinux"), "--append", "quiet", "--disk", root],
        program=sys.executable,
    )
    guest.wait_for_prompt()
    guest.run("for n in 1 2 3; do echo kept $n | dd of=/root/kept$n conv=fsync 2>/dev/null; done")
    guest.run("echo lost >/root/lost")
    guest.console.kill(9)
    guest.console.expect(pexpect.EOF)
    guest.console.close()
    for n in (1, 2, 3):
        assert read_from_image(root, f"/root/kept{n}") == f"kept {n}\n".encode()
    listing = subprocess.run(["debugfs", "-R", "ls -l /root", root], check=True, capture_output=True, text=True).stdout
    assert "kept3" in listing
    assert "lost" not in listing, "the disk forgets what was not flushed, or this test proves nothing"
