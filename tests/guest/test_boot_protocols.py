"""The ways into a kernel; every other guest test enters the micro kernel as ELF."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Boot, Image

pytestmark = [pytest.mark.kvm, pytest.mark.guest]

SELF_UNPACKING_LIMIT_S = 400


@pytest.mark.parametrize(
    ("kernel", "options", "told"),
    [
        ("bzImage", [], "lz4 payload unpacked, entered as ELF"),
        ("vmlinux", ["--boot", "elf"], "vmlinux (entered as ELF"),
        ("vmlinux", ["--boot", "pvh"], "vmlinux (entered by PVH"),
    ],
)
def test_entered_by_pyvmm(boot: Boot, micro: Image, kernel: str, options: list[str], told: str) -> None:
    guest = boot("--verbose", "--initrd", micro.file("initrd.cpio"), *options, kernel=kernel)
    assert told in guest.transcript
    guest.run("test -d /proc/1")
    assert guest.power_off() == 0


@pytest.mark.slow
@pytest.mark.parametrize("option", [["--boot", "bzimage"], ["--kaslr"]])
def test_its_own_entry(start: Boot, micro: Image, option: list[str]) -> None:
    guest = start("--verbose", "--initrd", micro.file("initrd.cpio"), *option, kernel="bzImage")
    guest.wait_for_prompt(SELF_UNPACKING_LIMIT_S)
    assert "it unpacks itself" in guest.transcript
    assert guest.power_off() == 0
