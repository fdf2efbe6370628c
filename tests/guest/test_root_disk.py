"""The root file system is on a virtio disk: what the guest writes is on the image when it has powered off."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import SOFTWARE_KVM, Image, file_on_disk, file_system_is_clean

pytestmark = pytest.mark.guest


def test_a_file_written_in_the_guest_is_on_the_image(micro: Image, root: str, start: Start) -> None:
    guest = start("--kernel", micro.kernel(), "--disk", root, "--memory", "256M", "--append", "quiet", "--stats")
    guest.wait_for_prompt()
    assert "/dev/root on / type ext4 (rw" in guest.run("mount")
    guest.run("echo written in the guest > /root/note")
    guest.run("sync")
    assert guest.power_off() == 0
    assert file_on_disk(root, "/root/note") == b"written in the guest\n"
    assert file_system_is_clean(root)
    stats = guest.transcript.rpartition("exits")[2]
    assert "vda.flush" in stats
    assert "vda.bytes_written" in stats
    if SOFTWARE_KVM in guest.transcript:
        assert "syscall" in stats.partition("assists")[2]
