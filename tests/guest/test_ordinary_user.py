"""An ordinary user with nothing but access to `/dev/kvm` boots a Linux."""

from __future__ import annotations

import os
import stat

import pytest

from tests.guest.conftest import PYVMM, Guest, Image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

NOBODY = 65534

# In a mount namespace of its own: a /dev/kvm that everybody may open, and files that everybody may read.
SCRIPT = """
set -e
mount -t tmpfs -o mode=755 none "$1"
mknod "$1/kvm" c {major} {minor}
chmod 666 "$1/kvm"
mount --bind "$1/kvm" /dev/kvm
install -m 644 "$2" "$1/kernel"
install -m 644 "$3" "$1/initrd"
exec setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all \
    env HOME=/nonexistent PYVMM_CACHE=/nonexistent "$4" --kernel "$1/kernel" --initrd "$1/initrd" --append quiet
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_nothing_but_kvm(micro: Image, tmp_path: object) -> None:
    device = os.stat("/dev/kvm").st_rdev
    assert stat.S_ISCHR(os.stat("/dev/kvm").st_mode)
    script = SCRIPT.format(major=os.major(device), minor=os.minor(device), user=NOBODY)
    mount = os.path.join("/run", f"pyvmm-test-{os.getpid()}")
    os.mkdir(mount)
    try:
        guest = Guest(
            ["--mount", "sh", "-c", script, "sh", mount, micro.file("vmlinux"), micro.file("initrd.cpio"), PYVMM],
            program="unshare",
        )
        try:
            guest.wait_for_prompt()
            assert guest.power_off() == 0
        finally:
            guest.close()
    finally:
        os.rmdir(mount)
