"""Debian's own kernel, as Debian ships it, boots to a shell with its disk, its network and its keyboard."""

from __future__ import annotations

import os

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import Image, file_on_disk, file_system_is_clean
from tests.net.namespace import make_bridge, network_namespace

pytestmark = [pytest.mark.guest, pytest.mark.net, pytest.mark.slow]

BOOT_S = 600


def test_debians_kernel_boots_to_a_shell(debian: Image, start: Start, tmp_path: os.PathLike[str]) -> None:
    root = debian.copy_root(os.path.join(tmp_path, "root.img"))
    with network_namespace():
        make_bridge()
        guest = start(
            "-k", debian.kernel(), "-i", debian.initrd, "-d", root, "-n", "bridge=br0", "-m", "512M", "-a", "quiet",
            "--no-reboot",
        )  # fmt: skip
        guest.wait_for_prompt(BOOT_S)
        assert guest.run("uname -r") == debian.manifest["kernel_release"]
        guest.run("echo from Debian > /root/note; sync")
        guest.run("ip address add 10.0.0.2/24 dev eth0; ip link set eth0 up")
        assert "3 packets received" in guest.run("ping -c 3 10.0.0.1")
        guest.type("\x01d")  # Ctrl-Alt-Del
        assert guest.finish() == 122
    assert file_on_disk(root, "/root/note") == b"from Debian\n"
    assert file_system_is_clean(root)
