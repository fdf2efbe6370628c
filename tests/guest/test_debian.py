"""Debian's stock kernel, unmodified, from its own package: the kernel people have."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Guest, Image
from tests.net.namespace import ip, network_namespace

pytestmark = [pytest.mark.kvm, pytest.mark.guest, pytest.mark.net, pytest.mark.slow]

BOOT_LIMIT_S = 1200
HOST = "10.76.2.1"


@pytest.mark.timeout(1800)
def test_debian_boots_with_disk_and_network(debian: Image, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = debian.copy_root(str(tmp_path_factory.mktemp("debian")))
    with network_namespace():
        ip("link add br0 type bridge")
        ip(f"address add {HOST}/24 dev br0")
        ip("link set br0 up")
        guest = Guest([
            "--kernel", debian.file("vmlinuz"), "--initrd", debian.file("initrd.cpio"), "--append", "quiet",
            "--disk", root, "--net", "bridge=br0",
        ])  # fmt: skip
        try:
            guest.wait_for_prompt(BOOT_LIMIT_S)
            assert "cloud-amd64" in guest.run("uname -r")
            assert " / ext4 rw" in guest.run("cat /proc/mounts")
            guest.run("ip link set eth0 up && ip address add 10.76.2.2/24 dev eth0")
            assert "0% packet loss" in guest.run(f"ping -c 3 {HOST}")
            assert guest.power_off() == 0
        finally:
            guest.close()
