"""What all the VMs of this project have: programs of this host that the small image is without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vmm.testing import VM


@pytest.fixture(scope="session")
def vm_prepare() -> Callable[[VM], object]:
    """Runs once, before the snapshot is taken that every test starts from."""
    return lambda vm: vm.put_program("nft", "mke2fs", "e2fsck", "resize2fs", "dumpe2fs")
