"""A kernel boots through every protocol, and `--verbose` says which one it was."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Start
from tests.guest.linux import BOOT_S, Image
from tests.guest.test_clock import assert_right

pytestmark = pytest.mark.guest

#: The kernel file, the options, and how pyvmm describes it.
WAYS = {
    "vmlinux": ("vmlinux", (), r"pyvmm: vmlinux \(entered as ELF at 0x1000000\)"),
    "vmlinux by PVH": ("vmlinux", ("--boot", "pvh"), r"pyvmm: vmlinux \(entered by PVH at 0x\w+\)"),
    "bzImage": ("bzImage", (), r"pyvmm: bzImage 6\.\S+ .*\(lz4 payload unpacked, entered as ELF at 0x1000000\)"),
}
#: A bzImage that unpacks itself takes a minute where ring 0 is interpreted.
SLOW_WAYS = {
    "own entry": ("--boot", "bzimage"),
    "KASLR": ("--kaslr",),
}


@pytest.mark.parametrize("way", WAYS)
def test_boots(micro: Image, start: Start, way: str) -> None:
    kernel, options, description = WAYS[way]
    guest = start("-k", micro.kernel(kernel), "-i", micro.initrd, "-m", "128M", "-a", "quiet", "--verbose", *options)
    guest.expect(description)
    guest.wait_for_prompt()
    assert guest.run("uname -r").startswith("6.")
    assert_right(lambda: int(guest.run("date +%s")))  # by the RTC
    assert guest.power_off() == 0
    assert "reboot: Power down" in guest.transcript


@pytest.mark.slow
@pytest.mark.parametrize("way", SLOW_WAYS)
def test_a_bzimage_unpacks_itself(micro: Image, start: Start, way: str) -> None:
    options = SLOW_WAYS[way]
    guest = start("-k", micro.kernel("bzImage"), "-i", micro.initrd, "-m", "128M", "-a", "quiet", "--verbose", *options)
    guest.expect(r"pyvmm: bzImage 6\.\S+ .*\(it unpacks itself, entered at 0x1000200\)")
    guest.wait_for_prompt(4 * BOOT_S)
    assert guest.power_off() == 0
