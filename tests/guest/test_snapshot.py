"""A Linux at work is written to a file, killed, and goes on from there: more than once, as if nothing had been."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from tests.fakes.host import PYVMM
from tests.guest.booted import Booted
from tests.guest.conftest import Start
from tests.guest.linux import Image, LinuxGuest, sha256

TIMES = 2
#: Reads the disk around the cache.
READ = "dd if=/dev/vdb bs=64k count=8 iflag=direct 2>/dev/null | sha256sum"


def take(name: str, path: str) -> None:
    subprocess.run([PYVMM, "snapshot", name, path], check=True, timeout=120)


@pytest.mark.usefixtures("no_others")
@pytest.mark.parametrize("transport", [pytest.param("mmio", marks=pytest.mark.slow), "pci"])
def test_it_goes_on_with_its_work(
    start: Start, micro: Image, large: Booted, tmp_path: os.PathLike[str], transport: str
) -> None:
    path = os.path.join(tmp_path, "snap")
    if transport == "pci":
        guest: LinuxGuest = start(*large.arguments("--name", "first"))
        guest.ask_for_prompt()
    else:
        guest = start(
            "--kernel", micro.kernel(), "--cpus", "2", "--memory", "256M", "--append", "quiet",
            "--disk", f"{micro.root},readonly", "--disk", f"{large.disk},readonly", "--net", "lan=snap",
            "--name", "first",
        )  # fmt: skip
        guest.wait_for_prompt()
    guest.run("ip link set eth0 up")
    expected = f"{sha256(large.disk, 512 << 10)}  -"
    guest.run(f'while :; do [ "$({READ})" = "{expected}" ] || echo ba""d; done & sleep 1')
    guest.run("x=remembered")
    take("first", path)
    guest.run("x=changed")
    guest.cut_power()
    for number in range(TIMES):
        guest = start("restore", path, "--name", f"copy{number}")
        guest.console.sendline("")
        assert guest.run("echo $x") == "remembered"
        assert abs(int(guest.run("date +%s")) - time.time()) < 30
        assert guest.run(READ) == expected
        guest.run("sleep 2; kill -0 $!")
        assert "LOWER_UP" in guest.run("ip link show eth0")
        path = os.path.join(tmp_path, f"snap{number}")
        take(f"copy{number}", path)
        assert "bad" not in guest.transcript
        guest.cut_power()
