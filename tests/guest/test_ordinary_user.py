"""An ordinary user who has nothing but /dev/kvm boots a guest."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.fakes.host import KVM_FOR_ALL, NOBODY, public_directory
from tests.guest.conftest import Start
from tests.guest.linux import Image

pytestmark = [pytest.mark.guest, pytest.mark.root]


def test_an_ordinary_user_boots_to_a_shell(micro: Image, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with public_directory() as directory:
        monkeypatch.setenv("PYVMM_CACHE", os.path.join(directory, "none"))
        kernel, initrd = (shutil.copy(path, directory) for path in (micro.kernel(), micro.initrd))
        guest = start(
            "-k", kernel, "-i", initrd, "-m", "128M", "-a", "quiet", before=(*KVM_FOR_ALL, *NOBODY)
        )  # fmt: skip
        guest.wait_for_prompt()
        assert guest.run("id -u") == "0"  # in the guest
        assert guest.power_off() == 0
