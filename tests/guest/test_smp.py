"""`--cpus N`: the guest sees N processors, and they work at the same time."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Boot, Image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

# Each loop counts for as long as the other runs: it ends when its own mark is taken away.
COUNT = "taskset {mask} sh -c 'n=0; while [ -e /tmp/go ]; do n=$((n+1)); done; echo $n >/tmp/count{cpu}' &"


def test_both_cpus_work_at_once(boot: Boot, micro: Image, tmp_path_factory: pytest.TempPathFactory) -> None:
    disk = micro.copy_root(str(tmp_path_factory.mktemp("smp")))
    guest = boot("--cpus", "2", "--disk", disk)
    assert guest.run("nproc").strip() == "2"
    assert guest.run("cat /sys/devices/system/cpu/online").strip() == "0-1"
    guest.run("mount -t tmpfs none /tmp; touch /tmp/go")
    guest.run(f"{COUNT.format(mask=1, cpu=0)} {COUNT.format(mask=2, cpu=1)} sleep 4; rm /tmp/go; wait")
    counts = [int(guest.run(f"cat /tmp/count{cpu}")) for cpu in (0, 1)]
    assert min(counts) > 0
    busy = [int(line.split()[1]) for line in guest.run("grep '^cpu[01]' /proc/stat").splitlines()]
    assert min(busy) > 0, "each processor spent time in user space"
    assert guest.power_off() == 0
