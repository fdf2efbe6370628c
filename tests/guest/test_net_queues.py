"""A Linux guest with two queue pairs: it finds them, uses them, and sends large segments."""

from __future__ import annotations

import hashlib
import http.client
import json
import os

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import MIB, Image, make_disk, sha256
from tests.net.namespace import ip, make_bridge, network_namespace

pytestmark = [pytest.mark.guest, pytest.mark.net]

HOST, GUEST = "10.0.0.1", "10.0.0.2"
TRANSFER_BYTES, TRANSFER_S = MIB, 300


@pytest.mark.parametrize("engine", ["native", pytest.param("python", marks=pytest.mark.slow)])
def test_two_queues_and_segmentation(micro: Image, start: Start, tmp_path: os.PathLike[str], engine: str) -> None:
    disk = make_disk(os.path.join(tmp_path, "data.img"), TRANSFER_BYTES)
    with network_namespace():
        make_bridge()
        guest = start(
            "-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", "-c", "2", "--engine", engine,
            "-n", "bridge=br0,queues=2", "-d", disk, "-a", f"quiet root= ip={GUEST}::{HOST}:255.255.255.0::eth0:off",
        )  # fmt: skip
        guest.wait_for_prompt()
        assert guest.run("cd /sys/class/net/eth0/queues; ls").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
        assert "numqueues 2 " in ip("-details link show pyvmm0"), "the driver has enabled both"
        assert "2 packets received" in guest.run(f"ping -c 2 {HOST}")
        guest.run("mkdir -p /run/www && cp /dev/vda /run/www/data && httpd -h /run/www", TRANSFER_S)
        connection = http.client.HTTPConnection(GUEST, timeout=TRANSFER_S)
        connection.request("GET", "/data")
        assert hashlib.sha256(connection.getresponse().read()).hexdigest() == sha256(disk)
        connection.close()
        received = json.loads(ip("-stats -json link show pyvmm0"))[0]["stats64"]["rx"]
        assert received["bytes"] / received["packets"] > 2000, "frames are segmented by nobody"
        assert guest.power_off() == 0
