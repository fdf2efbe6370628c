"""A machine with a disk and a network card, from its start to its power-off: the boot that `ci/sanitize` makes."""

from __future__ import annotations

import re

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import Image, file_on_disk
from tests.net.namespace import ip, network_namespace

pytestmark = [pytest.mark.guest, pytest.mark.net]

HOST, GUEST = "10.0.0.1", "10.0.0.2"


def test_both_are_used_and_the_guest_powers_off(micro: Image, root: str, start: Start) -> None:
    with network_namespace():
        ip("link add br0 type bridge")
        ip(f"address add {HOST}/24 dev br0")
        ip("link set br0 up")
        guest = start(
            "-k", micro.kernel(), "-m", "128M", "-d", root, "-n", "bridge=br0", "--engine", "native",
            "-a", f"quiet ip={GUEST}::{HOST}:255.255.255.0::eth0:off",
        )  # fmt: skip
        guest.wait_for_prompt()
        guest.run("seq 500 > /root/numbers; sync")
        assert "2 packets received" in guest.run(f"ping -c 2 -s 1400 {HOST}")
        assert guest.power_off() == 0
    assert file_on_disk(root, "/root/numbers") == "".join(f"{n}\n" for n in range(1, 501)).encode()
    assert not re.search("Sanitizer|runtime error", guest.transcript)
